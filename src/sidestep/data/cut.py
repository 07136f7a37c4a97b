"""The cut of a split off another: the same for every run's seed, and no class is taken out of train."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from sidestep.data.notices import report
from sidestep.data.splits import Split
from sidestep.errors import InputError
from sidestep.noise import Noise

__all__ = [
    "check_validation",
    "cut_rows",
    "cut_validation",
    "held_count",
    "hold_out",
    "keep_classes",
    "report_kept",
]

CUT_SEED = 0  # of every cut: no run's seed moves an image from one split to another


def hold_out(examples: int, count: int, purpose: str) -> tuple[Tensor, Tensor]:
    """Indices that stay and `count` indices that are held out, each ascending: a function of its arguments
    alone.

    The first `count` of a counter-based permutation are held out, so a smaller cut is part of a larger one.
    """
    order = Noise(CUT_SEED).stream(f"data/{purpose}").permutation(examples)
    return order[count:].sort().values, order[:count].sort().values


def keep_classes(kept: Tensor, held: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """The same cut with one image of each class that it would take out of `kept` put back, the last one held.

    Args:
        kept: indices that stay, ascending.
        held: indices that are held out, ascending.
        labels: of all examples, (examples,).

    Returns:
        What stays, what is held out, both ascending, and the classes that got an image back.
    """
    lost = sorted(set(labels[held].tolist()) - set(labels[kept].tolist()))
    back = torch.zeros(len(held), dtype=torch.bool)
    for label in lost:
        back[(labels[held] == label).nonzero()[-1]] = True
    return torch.cat([kept, held[back]]).sort().values, held[~back], lost


def check_validation(fraction: Any) -> None:
    """Raise InputError unless a share of train to be held out is a number from 0 to 0.5."""
    number = isinstance(fraction, Real) and not isinstance(fraction, bool)
    if not (number and 0.0 <= float(fraction) <= 0.5):  # also refuses NaN
        raise InputError(f"validation must be a fraction of the train split from 0 to 0.5, got {fraction!r}")


def held_count(examples: int, fraction: float) -> int:
    """How many examples a share of them is: at least one, unless it is 0."""
    return max(round(examples * fraction), 1) if fraction else 0


def cut_rows(train: Split, fraction: float) -> tuple[Split, Split]:
    """What stays of train, and a share of it for validation, where there are no classes to be kept."""
    kept, held = hold_out(len(train), held_count(len(train), fraction), "validation")
    return train.part(kept), train.part(held)


def cut_validation(train: Split, fraction: float, class_names: Sequence[str], name: str) -> tuple[Split, Split]:
    """What stays of train, and a fraction of it (of at least one image, unless it is 0) for validation.

    The cut does not look at classes, but a class that it would take out of train keeps one image there, reported.
    """
    count = held_count(len(train), fraction)
    if not count:
        return train, Split(train.images[:0], train.labels[:0])
    kept, held, lost = keep_classes(*hold_out(len(train), count, "validation"), train.targets)
    report_kept(name, "validation", [class_names[label] for label in lost], len(held))
    return train.part(kept), train.part(held)


def report_kept(name: str, split: str, classes: Sequence[str], left: int) -> None:
    """Say which classes a cut would have taken out of train, if any."""
    if not classes:
        return
    one = len(classes) == 1
    named = ", ".join(classes[:20]) + (f" and {len(classes) - 20:,} more" if len(classes) > 20 else "")
    none = "" if left else f", so that there is no {split} split"
    report(
        f"{name}: class{'' if one else 'es'} {named} {'has' if one else 'have'} so few images that all would be cut "
        f"off for {split}: one {'' if one else 'of each '}stays in train{none}"
    )
