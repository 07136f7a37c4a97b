"""Accuracy of a net on a split, by each of its rule's readings. Labels are compared with, never shown to the net."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_type_hints

from torch import Tensor, nn

from sidestep.data import Split
from sidestep.data.objective import Objective
from sidestep.data.rows import Stored
from sidestep.errors import InputError, NonFiniteError
from sidestep.noise import Noise
from sidestep.rules import RULES
from sidestep.rules.protocol import Rule, Task
from sidestep.training.evaluation_progress import Count
from sidestep.training.options import Compute

__all__ = ["accuracies", "check_readings", "check_rule", "predictions", "with_inference"]

_BATCH = 500


def check_rule(rule: Any) -> None:
    """Refuse what is no rule object, such as a rule's name or class."""
    if isinstance(rule, type) or not (dataclasses.is_dataclass(rule) and hasattr(rule, "estimate")):
        kind = rule if isinstance(rule, type) and rule in RULES.values() else None
        kind = kind or (RULES.get(rule) if isinstance(rule, str) else None) or next(iter(RULES.values()))
        raise InputError(f"rule must be a rule object, for instance rules.{kind.__name__}(), got {rule!r}")


def check_readings(rule: Rule, names: Sequence[str]) -> None:
    """Refuse a name that is not one of the rule's readings."""
    for name in names:
        if name not in rule.readings:
            raise InputError(f"{rule.name} has no reading {name!r}; it has: {', '.join(rule.readings)}")


def predictions(  # long: a prediction depends on these
    rule: Rule,
    net: nn.Module,
    images: Stored,
    task: Task,
    compute: Compute,
    noise: Noise,
    names: Sequence[str],
    first: int = 0,
) -> Iterator[dict[str, Tensor]]:
    """Yield class probabilities by the wanted readings, batch by batch; images are raw, as they lie in a split.

    Image `first` is the first, at a limit between batches: what is drawn for an image depends on where it stands.
    """
    stream = noise.stream("predict")
    for start in range(first, len(images), _BATCH):
        part = task.prepare(images[start : start + _BATCH].to(compute.device))
        with compute.autocast():
            found = rule.predict(net, part, stream, start, names)
        for name, probabilities in found.items():
            if not bool(probabilities.isfinite().all()):
                raise NonFiniteError(
                    f"the reading {name!r} gave probabilities that are not finite, from image {start} on; try "
                    "--precision float32, or a schedule that ends further from 0 and 1"
                )
        yield found


def accuracies(  # long: an accuracy depends on the first seven
    rule: Rule,
    net: nn.Module,
    split: Split,
    task: Task,
    compute: Compute,
    noise: Noise,
    names: Sequence[str],
    count: Count | None = None,
    more: Callable[[str, Tensor, Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Return reading name -> share of right answers, in [0, 1]; for targets that are no classes, the objective's score.

    Args:
        rule: the rule that knows how to predict.
        net: its net.
        split: images and labels.
        task: how inputs are prepared, and what counts.
        compute: device and precision.
        noise: what sampled predictions draw from.
        names: which of the rule's readings to count.
        count: what was counted before, whole batches of it; counted on in place.
        more: from a reading's name, its probabilities and the labels of a batch to what is added up in `count.sums`.
    """
    count = count or Count(dict.fromkeys(names, 0))
    for found in predictions(rule, net, split.images, task, compute, noise, names, count.images):
        size = len(next(iter(found.values())))
        labels = split.labels[count.images : count.images + size].to(compute.device)
        right = {name: _score(task.objective, found[name], labels) for name in names}
        count.add(right, size, {name: more(name, found[name], labels) for name in names} if more else None)
    return {name: right / max(1, len(split)) for name, right in count.right.items()}


def _score(objective: Objective, answers: Tensor, targets: Tensor) -> float:
    """The number of right answers, or the sum of scores."""
    if objective.kind == "classes":
        return int((answers.argmax(dim=1) == targets).sum())
    return float(objective.scored(answers, targets).double().sum())


def with_inference(rule: Rule, changes: Mapping[str, Any]) -> Rule:
    """Return the rule with new values of hyper-parameters that only predictions depend on (`rule.for_inference`)."""
    for name in changes:
        if name not in rule.for_inference:
            known = ", ".join(rule.for_inference) or "there are none"
            raise InputError(f"{rule.name} has no setting {name!r} that can change after training; it has: {known}")
    kinds = get_type_hints(type(rule))
    return dataclasses.replace(rule, **{name: _as_kind(name, value, kinds[name]) for name, value in changes.items()})


def _as_kind(name: str, value: Any, kind: Any) -> Any:
    """Return a number as its field has it: 200.0 is a whole number, and 1 a float; choices are checked by the rule."""
    if kind not in (int, float):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and value != int(value)):
        raise InputError(f"{name} must be a {'whole ' if kind is int else ''}number, got {value!r}")
    return kind(value)
