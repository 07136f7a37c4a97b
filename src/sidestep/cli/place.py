"""Where a run's folder goes: the word for its data in its name, and what it must not lie in."""

from pathlib import Path

from sidestep.data import names
from sidestep.data.images.layout import holds_runs
from sidestep.data.tables.files import is_table_file
from sidestep.errors import InputError

__all__ = ["check_place", "label"]


def label(data: str) -> str:
    """Return a word for a data set in the name of a run's folder: `pets` for `.` in a folder of that name."""
    folder = _folder(data)
    if folder:
        return folder.name or "root"
    stem = "/" in data or is_table_file(Path(data)) or data.endswith(".txt")
    return Path(data).stem if stem else data.removesuffix(".npz")


def check_place(out: Path, data: str) -> None:
    """Refuse to write a run among the pictures of a class; a folder of runs beside the classes is not read as one."""
    root = _folder(data)
    if root is None:
        return
    at = out.resolve()
    if root != at and root not in at.parents:
        return
    inside = at.relative_to(root).parts
    beside = root / inside[0] if inside else root
    if not inside or len(inside) > 3 or (beside.is_dir() and any(beside.iterdir()) and not holds_runs(beside)):
        raise InputError(
            f"--out {out} lies among the images of --data {data}, where it would be taken for one of them; choose "
            "another --out"
        )


def _folder(data: str) -> Path | None:
    """Return the folder that a data set is read from, with its real name, or None if it is no folder of pictures."""
    if data in {known.name for known in names()}:
        return None
    try:
        path = Path(data).expanduser()
        return path.resolve() if path.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # no name of a file; `load` says so
        return None
