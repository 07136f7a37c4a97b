"""Which folders of pictures are what: splits, classes, and what lies there that is neither."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sidestep.data.notices import report
from sidestep.errors import DataError
from sidestep.wording import counted

__all__ = ["Layout", "Listing", "entries_of", "find_layout", "holds_runs"]

Listing = tuple[tuple[Path, int], ...]  # image files with their labels

NAMES = {  # of the splits, in lower case
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
NOT_OURS = {
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
PICTURES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
UNLABELLED = (["unknown"], ["images"], ["test"], ["all"], ["unlabelled"], ["unlabeled"])  # as Kaggle has them
DEEPEST = 8  # folders with nothing but one folder in them
HELP = "put the images of each class into a folder of its own: CLASS/, or train/CLASS/, test/CLASS/ and val/CLASS/"


@dataclass(frozen=True)
class Layout:
    """The files of a folder by split, each with its label."""

    root: Path  # the folder given, or the only one in it that goes on
    class_names: tuple[str, ...]
    train: Listing
    validation: Listing | None  # None: no such folder
    test: Listing | None
    split: bool  # train/ is there; else `train` has the files of all splits


def find_layout(given: Path) -> Layout:
    """Read root/train/CLASS/ with root/test/ and root/val/ where they exist, or root/CLASS/.

    The splits' folders may be called train or training, test or testing, val, valid or validation, in any case. A
    folder that holds nothing but one folder of folders stands for that one. Hidden files, those that systems leave
    behind (`NOT_OURS`) and folders of runs are skipped. Raises DataError for anything else, with the layout that was
    understood.
    """
    root = _only_child(given)
    if root != given:
        report(f"{given}: read as {root}, the only folder in it")
    splits = _splits(root)
    if "train" not in splits:
        _check_no_splits(root, splits)
        names = _class_names(root, root)
        return Layout(root, names, _files(root, names), None, None, split=False)
    _tell_layout(root, splits)
    top = _only_child(splits["train"])
    names = _class_names(top, root)
    parts = {
        split: _files(_only_child(splits[split]), names)
        for split in ("validation", "test")
        if split in splits and _has_classes(splits[split], split, names)
    }
    return Layout(root, names, _files(top, names), parts.get("validation"), parts.get("test"), split=True)


def entries_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and the folders in a folder, by name, without what is hidden or left there by a system."""
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if not entry.name.startswith(".") and entry.name.lower() not in NOT_OURS:
                    (folders if _is_folder(entry) else files).append(entry.name)
    except OSError as error:
        raise DataError(f"{folder}: this folder cannot be read ({error.strerror or error})") from error
    return [folder / name for name in sorted(files)], [folder / name for name in sorted(folders)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: as a file it is named among those that cannot be read
        return False


def _folders(root: Path) -> list[Path]:
    return [path for path in entries_of(root)[1] if not holds_runs(path)]


def _only_child(folder: Path) -> Path:
    """The folder itself, or the only folder in it, as long as that one has folders in turn."""
    for _ in range(DEEPEST):
        inside = _folders(folder)
        if len(inside) != 1 or _split_of(inside[0]) or _pictures(folder) or not _folders(inside[0]):
            break
        folder = inside[0]
    return folder


def _splits(root: Path) -> dict[str, Path]:
    """The folders that are named like a split and have folders (or, beside a split, files) in them."""
    found: dict[str, Path] = {}
    named = [(path, split) for path in _folders(root) if (split := _split_of(path))]
    if not any(_folders(path) for path, _ in named):
        return {}  # classes of these names, such as kinds of vehicles with a train
    for path, split in named:
        if split in found:
            raise DataError(f"{root}: {found[split].name}/ and {path.name}/ are both taken for {split}; keep one")
        found[split] = path
    return found


def _split_of(path: Path) -> str | None:
    return next((split for split, names in NAMES.items() if path.name.lower() in names), None)


def _check_no_splits(root: Path, splits: dict[str, Path]) -> None:
    """Refuse splits without train, and splits that hold images without classes."""
    if splits:
        there = ", ".join(f"{path.name}/ ({split})" for split, path in splits.items())
        raise DataError(
            f"{root}: there is {there}, but no train/ (or training/); put the training images into train/CLASS/"
        )
    names = [path.name for path in _folders(root)]
    if names and all(_split_of(root / name) for name in names):
        raise DataError(
            f"{root}: {' and '.join(f'{name}/' for name in names)} hold images, but no folder for each class, so "
            "nothing says what they show; make train/CLASS/ with the images of each class in its own folder"
        )


def _tell_layout(root: Path, splits: dict[str, Path]) -> None:
    """Say what was taken for what where that is not plain from the names, and what is not used."""
    if any(path.name != NAMES[split][0] for split, path in splits.items() if split != "validation"):
        report(f"{root}: read as " + ", ".join(f"{path.name}/ ({split})" for split, path in splits.items()))
    beside = [path.name for path in _folders(root) if path not in splits.values()]
    if beside:
        report(f"{root}: {', '.join(beside[:10])} beside {splits['train'].name}/ {_are(beside)} not used")


def _class_names(top: Path, root: Path) -> tuple[str, ...]:
    folders = _folders(top)
    skipped = [path.name for path in entries_of(top)[1] if path not in folders]
    if skipped:
        report(f"{top}: {', '.join(skipped[:10])} {_are(skipped)} skipped: runs of sidestep, no classes")
    loose = _pictures(top)
    if len(folders) < 2:
        place = "train/" if top != root else "it"
        pictures = f", and {counted(loose, 'image')} outside of any" if loose else ""
        raise DataError(
            f"{root}: need a folder for each of at least two classes, directly or in train/; found "
            f"{', '.join(path.name for path in folders) or 'none'} in {place}{pictures}; {HELP}"
        )
    cases = Counter(path.name.casefold() for path in folders)
    alike = [path.name for path in folders if cases[path.name.casefold()] > 1]
    if alike:
        report(f"{top}: the classes {', '.join(alike[:10])} differ from one another in upper and lower case alone")
    if loose:
        report(
            f"{top}: not used, since nothing says what it shows: {counted(loose, 'image')} beside the classes' folders"
        )
    return tuple(path.name for path in folders)


def _has_classes(folder: Path, split: str, class_names: Sequence[str]) -> bool:
    """Whether a split has folders of classes; one with images alone has no labels, which is reported."""
    folders = _folders(_only_child(folder))
    alone = folders[0] if [path.name.lower() for path in folders] in UNLABELLED else None
    alone = None if alone and alone.name in class_names else alone
    if folders and not alone:
        return True
    images = _pictures(alone or folder)
    if not images:
        raise DataError(f"{folder}: no images in it; add a folder for each class, or remove it")
    consequence = "there is no test accuracy" if split == "test" else "the validation split is cut from train"
    report(
        f"{alone or folder}: {counted(images, 'image')}, but no folder for each class, so nothing says what is shown "
        f"and {consequence}; `sidestep predict RUN FOLDER` classifies them"
    )
    return False


def _files(root: Path, class_names: Sequence[str]) -> Listing:
    """Every file with its label, by class and name; also for test and validation, which may lack a class."""
    label_of = {name: label for label, name in enumerate(class_names)}
    files: list[tuple[Path, int]] = []
    nested: list[Path] = []
    for folder in _folders(root):
        if folder.name not in label_of:
            raise DataError(
                f"{folder}: there is no class of this name in train; classes are {', '.join(class_names[:20])}"
            )
        found, inside = entries_of(folder)
        if not found and not inside:
            raise DataError(f"{folder}: no images in it; add some, or remove the folder")
        nested.extend(inside)
        files.extend((path, label_of[folder.name]) for path in found)
    if nested:
        more = f" and {len(nested) - 3:,} more" if len(nested) > 3 else ""
        raise DataError(
            f"{root}: {', '.join(class_names[:10])} {_are(class_names)} taken for classes, since their folders lie "
            f"directly in it, but there is a folder inside a class's folder: "
            f"{', '.join(map(str, nested[:3]))}{more}; put the images directly into the class's folder"
        )
    return tuple(files)


def _pictures(folder: Path) -> int:
    """How many files are named like pictures."""
    return sum(path.suffix.lower() in PICTURES for path in entries_of(folder)[0])


def holds_runs(folder: Path, deep: int = 2) -> bool:
    """Whether a folder is a run's, or has runs (or is called so, and has folders) and no picture in it."""
    if _is_run(folder):
        return True
    try:
        with os.scandir(folder) as found:
            inside = [folder / entry.name for entry in found if entry.is_dir(follow_symlinks=False)] if deep else []
    except OSError:
        return False
    named = folder.name == "runs" and bool(inside)  # by default; of a run that has just started there is no more to see
    return (named or any(holds_runs(path, deep - 1) for path in inside)) and not _pictures(folder)


def _is_run(folder: Path) -> bool:
    file = folder / "config.toml"
    try:
        if not file.is_file():
            return False
        with file.open("rb") as handle:
            head = handle.read(1 << 16)
    except OSError:
        return False
    return bool(re.search(rb"^\[rule\]\s*$", head, re.MULTILINE) and re.search(rb"^\[task\]\s*$", head, re.MULTILINE))


def _are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"
