"""Whether a base model can be there, before a library asks a hub for it: a mistyped folder is named at once."""

import importlib
from collections.abc import Iterator
from pathlib import Path

from sidestep.errors import InputError
from sidestep.wording import meant

__all__ = ["check_base"]

_SECONDS = 5.0  # for the hub's answer; transformers itself asks for each of its files, several times


def check_base(base: str) -> None:
    """Raise InputError unless a base model is a folder, a name in the local cache, or one that the hub knows.

    Args:
        base: a folder, or a name NAME or OWNER/NAME.

    Raises:
        InputError: at once for what can only be a folder and is none; else after one question to the hub.
    """
    path = Path(base)
    if path.is_dir():
        return
    near = meant(path.name, _folders_beside(path), quoted=False)
    missing = f"there is no folder {base}"
    if _is_path(base):
        raise InputError(f"{missing}; {near}give one with config.json, weights and the tokenizer's files")
    try:
        hub, errors = (importlib.import_module(name) for name in ("huggingface_hub", "huggingface_hub.errors"))
    except ImportError:  # what is to be installed is said where transformers is needed
        return
    try:
        if not isinstance(hub.try_to_load_from_cache(base, "config.json"), str):
            hub.get_hf_file_metadata(hub.hf_hub_url(base, "config.json"), timeout=_SECONDS)
    except errors.EntryNotFoundError:  # a model with files of other names
        return
    except (errors.HFValidationError, errors.RepositoryNotFoundError) as error:
        raise InputError(
            f"{missing} here, and the hub has no model {base} that you may read; {near}".rstrip(" ;")
        ) from error
    except Exception as error:  # of the network, whose errors differ between versions of the library
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"{missing} here, the local cache has no model {base}, and the hub does not answer ({first}); {near}give "
            "a folder with config.json, weights and the tokenizer's files, or try again"
        ) from error


def _is_path(base: str) -> bool:
    """Whether it can be no name on a hub, NAME or OWNER/NAME: by its form, or since a file of that name is here."""
    parts = base.split("/")
    return len(parts) > 2 or "\\" in base or base.startswith((".", "~")) or not all(parts) or Path(base).exists()


def _folders_beside(path: Path) -> Iterator[str]:
    try:
        yield from (each.name for each in path.parent.iterdir() if each.is_dir())
    except OSError:
        return
