"""`config.toml`: what a run was started with, the mark that its folder is ours, and a digest of what it says."""

import dataclasses
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from sidestep.errors import CheckpointError, InputError
from sidestep.files import digest_of_json, read_plain, write_text
from sidestep.rules import RULES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["check_belongs", "check_same", "identity_of", "is_ours", "read_config", "write_config"]

FORMAT = 2  # of the folder; raised when an older Sidestep could not read it any more
_MARK = "sidestep"  # the table that says that a folder is a run's
_DATA = (
    "task.mean",
    "task.std",
    "task.image_shape",
    "data.train_images",
    "data.validation_images",
    "data.labels",
    "data.pixels",
)
_MOVED = {"data.name", "data.labels", "data.pixels", "data.in_memory", "data.size", "data.columns"}
_MOST = 1 << 26  # bytes
_HEAD = (
    "# A run of Sidestep. Whoever edits this by hand removes the line with the digest; it is then read with a notice.\n"
)
_OLDER = (
    "{path} has no mark of this version: it is of an earlier Sidestep, or somebody removed it. It is read as it is, "
    "and whether it was changed cannot be told"
)
_UNSEALED = "{path} has no digest: whether it says what the run was trained with cannot be told; it is read as it is"
_CHANGED = (
    "{path} was changed after the run wrote it, so it no longer says what was trained: bring it back as it was. "
    "If you changed it on purpose, remove the line that begins with `digest` from its table [sidestep]; it is then "
    "read as it is, with a notice"
)


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write a configuration with the mark and the digest; entries that are None are left out."""
    plain = without_none(config)
    digest = digest_of_json(tomllib.loads(tomli_w.dumps(plain)))
    mark = {"format": FORMAT, "kind": "run", "digest": digest}
    write_text(path, _HEAD + tomli_w.dumps({_MARK: mark, **plain}))


def read_config(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return the configuration, and a sentence for whoever reads it where nobody can tell whether it was changed.

    Raises:
        CheckpointError: if there is none, it cannot be read, it was changed, or is of a newer format.
    """
    try:
        entries = tomllib.loads(read_plain(path, _MOST).decode())
    except FileNotFoundError as error:
        lacks = f"it has no {path.name}" if path.parent.is_dir() else "there is no such folder"
        raise CheckpointError(f"{path.parent} is not the folder of a run: {lacks}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    mark = entries.pop(_MARK, None)
    if mark is None and _looks_like_a_run(entries):
        return entries, _OLDER.format(path=path)
    if not isinstance(mark, dict) or mark.get("kind") != "run" or not isinstance(mark.get("format"), int):
        raise CheckpointError(f"{path.parent} is not the folder of a run: its {path.name} does not say so")
    if mark["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {mark['format']}, this Sidestep reads up to {FORMAT}: upgrade sidestep"
        )
    if "digest" not in mark:
        return entries, _UNSEALED.format(path=path)
    if mark["digest"] != digest_of_json(entries):
        raise CheckpointError(_CHANGED.format(path=path))
    return entries, None


def is_ours(path: Path) -> bool:
    """Say whether a `config.toml` is that of a run, damaged or not, whose folder may be overwritten.

    Raises CheckpointError if it cannot be read at all.
    """
    try:
        text = read_plain(path, _MOST).decode(errors="replace")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    try:
        entries = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError):
        lines = {line.strip() for line in text.splitlines()}
        return {f"[{_MARK}]", 'kind = "run"'} <= lines or bool(re.search(r"^sidestep = \"\d+\.\d+", text, re.MULTILINE))
    mark = entries.get(_MARK)
    return mark.get("kind") == "run" if isinstance(mark, dict) else _looks_like_a_run(entries)


def _looks_like_a_run(entries: Mapping[str, Any]) -> bool:
    """Whether a configuration without a mark has what every run's has, of the versions before there were marks."""
    tables = all(isinstance(entries.get(name), dict) for name in ("rule", "task", "train", "data", "versions"))
    return tables and isinstance(entries["rule"].get("name"), str) and "sidestep" in entries["versions"]


def identity_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a net is made and used by: it stands in the files of weights, which config.toml must not contradict.

    What may change while a run goes on (epochs, device, versions) is not in it.
    """
    plain = without_none(config)
    found = {"rule": plain.get("rule"), "task": plain.get("task"), "module": plain.get("module"),
             "seed": (plain.get("train") or {}).get("seed")}  # fmt: skip
    return dict(json.loads(json.dumps(found, default=str)))


def check_belongs(file: Path, record: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a file of weights is of another run than a configuration says.

    Entries that only one of the two has are not compared: an option may be younger than the file.
    """
    wrote = record.get("run")
    if not isinstance(wrote, dict):  # of an earlier version, or made by a replay
        return
    had, says = flat(wrote), flat(identity_of(config))
    different = [key for key in sorted(had.keys() & says.keys()) if had[key] != says[key]]
    different += ["module"] * (bool(wrote.get("module")) != bool(says.keys() & {"module.name"}))
    if different:
        key = different[0]
        raise CheckpointError(
            f"{file} is of a run with {key} = {had.get(key)!r}, but config.toml beside it says {says.get(key)!r}"
            + (f" (and {len(different) - 1} more entries differ)" if len(different) > 1 else "")
            + ": one of the two is not of this run, or was changed; bring it back. Settings of predictions alone can "
            "be given to eval and predict with --set"
        )


def check_same(path: Path, saved: dict[str, Any], given: dict[str, Any]) -> None:
    """Raise InputError if a run cannot go on under another configuration, with the entries that differ.

    Args:
        path: of the folder, for the error.
        saved: what the run was started with.
        given: what it is to go on with.
    """
    _check_own(path, saved, given)
    saved, given = flat(saved), flat(without_none(given))
    kind = RULES.get(str(saved.get("rule.name")))
    for field in dataclasses.fields(kind) if kind else ():  # a run from before an option was there had its default
        if f"rule.{field.name}" not in saved and given.get(f"rule.{field.name}") == field.default:
            saved[f"rule.{field.name}"] = field.default
    free = {
        "train.epochs",
        "train.steps",
        "train.checkpoint_seconds",
        "train.device",
        "train.precision",
        "data.data_dir",
    }
    free |= {"versions.sidestep", "versions.torch", "versions.threads"}  # other bits, but the run can go on
    free |= {"train.align", "train.units"}  # the one changes nothing but the metrics, the other the rounding
    free |= {"optimizer.name", "scheduler.name"}  # of the functions; what they make is compared
    free |= {"train.patience"}  # only when the run ends
    free |= {"data.pictures.stretched"}  # follows from the data, of which the images' shape is compared
    free |= {"data.validation"}  # what counts is how many images it left, which is compared
    if given.get("train.decay") != "none" or given.get("train.warmup"):
        free -= {"train.epochs", "train.steps"}  # the learning rate follows from it, at every step
    if all(saved.get(key) == given.get(key) for key in _DATA if key in saved):  # of a run from before, not all
        free |= _MOVED  # it is where they lie that may be another
    different = sorted(
        key for key in saved.keys() | given.keys() if saved.get(key) != given.get(key) and key not in free
    )
    if different:
        lines = "; ".join(
            f"{key}: was {saved.get(key, 'absent')}, given {given.get(key, 'absent')}" for key in different
        )
        raise InputError(
            f"{path} was started otherwise ({lines}); resume it with the same options, or start "
            "another run with another --out"
            + "; with --decay or --warmup the learning rate depends on --epochs or --steps"
            * bool({"train.epochs", "train.steps"} & set(different))
        )


def _check_own(path: Path, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Ask for what the run was started with and no file holds: functions of the user's."""
    for what in ("optimizer", "scheduler"):
        if what in saved and not given.get(what):
            name = saved[what].get("name", what)
            raise InputError(
                f"{path} was started with {what} = {name}, of its own: resume it from Python with the same, "
                f"train(..., {what}={name})"
            )


def without_none(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the entries that are None, which TOML does not have."""
    return {
        key: without_none(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if value is not None
    }


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return TABLE.ENTRY -> value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found
