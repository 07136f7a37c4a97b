"""Images that say nothing: a set or a class whose images are all alike, or of one colour throughout."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sidestep.data.notices import report
from sidestep.data.rows import Rows, blocks
from sidestep.data.splits import Split
from sidestep.wording import counted

__all__ = ["report_sameness"]

NAMED = 10  # classes in one notice


def report_sameness(name: str, train: Split, class_names: Sequence[str]) -> None:
    """Say so where all images of train or of a class (of two images or more) are alike, pixel for pixel, or where
    at least half of a class's images are of one colour throughout.
    """
    if train.images.shape[1:].numel() < 4:
        return
    alike: list[int] = []
    blank: list[int] = []
    if isinstance(train.images, Rows):
        alike, blank, whole = _in_one_pass(train.images, train.targets)
    else:
        for label in torch.unique(train.labels).tolist():
            own = (train.labels == label).nonzero()[:, 0]
            if len(own) > 1 and _all_alike(train.images, own):
                alike.append(label)
            if 2 * int(_blank(train.images, own).sum()) >= len(own):
                blank.append(label)
        whole = len(alike) > 1 and _all_alike(train.images, torch.arange(len(train)))
    if whole:
        report(f"{name}: all {counted(len(train), 'training image')} are alike, pixel for pixel: nothing can be learnt")
        return
    if alike:
        report(f"{name}: all training images of {_named(alike, class_names)} are alike, pixel for pixel")
    if blank:
        report(
            f"{name}: at least half the training images of {_named(blank, class_names)} are of one colour throughout"
        )


def _in_one_pass(images: Rows, labels: Tensor) -> tuple[list[int], list[int], bool]:
    """Classes whose images are all alike, classes half of whose images are blank, and whether all images are alike: in
    one walk through the file, since a walk for each class would read it as many times.
    """
    classes, numbers, counts = labels.unique(return_inverse=True, return_counts=True)
    firsts = images[torch.stack([(labels == label).nonzero()[0, 0] for label in classes])]
    same, blank, start = torch.ones(len(classes), dtype=torch.bool), torch.zeros(len(classes)), 0
    for block in blocks(images):
        own = numbers[start : start + len(block)]
        start += len(block)
        different = (block != firsts[own]).flatten(1).any(1)
        same[own[different]] = False
        flat = block.flatten(2)
        blank += torch.bincount(own[(flat == flat[:, :, :1]).flatten(1).all(1)], minlength=len(classes))
    alike = classes[same & (counts > 1)].tolist()
    whole = len(alike) == len(classes) > 1 and bool((firsts == firsts[:1]).all())
    return alike, classes[2 * blank >= counts].tolist(), whole


def _all_alike(images: Tensor, rows: Tensor) -> bool:
    first = images[rows[0]]
    return bool((images[rows[1]] == first).all()) and all(
        bool((images[part] == first).all()) for part in rows.split(1024)
    )


def _blank(images: Tensor, rows: Tensor) -> Tensor:
    """(rows,) bool: every channel has one value in all of its pixels."""
    flat = images.flatten(2)
    middle = flat.shape[2] // 2
    likely = (flat[rows, :, 0] == flat[rows, :, middle]).all(1) & (flat[rows, :, 0] == flat[rows, :, -1]).all(1)
    if 2 * int(likely.sum()) < len(rows):
        return likely & False  # not half of them: of no interest
    for part in likely.nonzero()[:, 0].split(1024):
        pixels = flat[rows[part]]
        likely[part] = (pixels == pixels[:, :, :1]).flatten(1).all(1)
    return likely


def _named(labels: list[int], class_names: Sequence[str]) -> str:
    more = f" and {len(labels) - NAMED:,} more" if len(labels) > NAMED else ""
    one = "class" if len(labels) == 1 else "classes"
    return f"{one} {', '.join(class_names[label] for label in labels[:NAMED])}{more}"
