"""Ways to train a module of the user's: memory, seconds a step, and the loss after equal processor time, measured.

Each in a process of its own. Learning rates are defaults, the same for every model, and nothing is tuned.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sidestep.bench.memory.fit import readable_bytes
from sidestep.bench.memory.step_cost import in_fresh_process, warm_up
from sidestep.bench.report import Table
from sidestep.data.batches import batch_indices
from sidestep.data.objective import Objective
from sidestep.data.task import Task
from sidestep.errors import InputError
from sidestep.measure import memory_growth
from sidestep.measure.memory import return_freed_memory
from sidestep.noise import Noise
from sidestep.rules import Rule
from sidestep.training import Compute
from sidestep.training.attach import attach

__all__ = [
    "WAYS",
    "Found",
    "ModelCost",
    "ModelWork",
    "best_of",
    "fit_model",
    "model_record",
    "model_table",
    "recommended",
]

_ADAM, _SGD = 1e-3, 0.05
_CLOSE = 1.02  # of two losses that differ by less, the one that takes less memory is the better

Step = Callable[[Any, Tensor], object]
Make = Callable[[nn.Module, Objective], Step]


@dataclass(frozen=True)
class ModelWork:
    """What is trained, and on what.

    make: makes the module; of a file, so that another process finds it.
    task: what inputs and targets are.
    inputs: raw examples, as the data set has them.
    targets: theirs.
    batch: examples a step.
    rules: by label, those that train any module, and are ways beside back-propagation's.
    seconds: processor seconds that every way trains for.
    """

    make: Callable[[], nn.Module]
    task: Task
    inputs: Any
    targets: Tensor
    batch: int
    rules: Mapping[str, Rule]
    seconds: float

    @property
    def ways(self) -> dict[str, "Make"]:
        """All ways by label."""
        return {**WAYS, **{label: _by_rule(rule) for label, rule in self.rules.items()}}


class ModelCost(NamedTuple):
    """What a way came to."""

    bytes: int  # the most memory in use over that before the model was made
    seconds: float  # processor seconds of a step
    steps: int  # in the processor seconds that all ways had
    loss: float  # afterwards, on examples that no step had


class Found(NamedTuple):
    """A way, and its cost or why there is none."""

    label: str
    cost: ModelCost | None
    why: str | None

    def fits(self, budget: int) -> bool:
        """Whether the memory is within the budget."""
        return self.cost is not None and self.cost.bytes <= budget


def _backward(model: nn.Module, objective: Objective, inputs: Any, targets: Tensor, parts: int) -> None:
    """Add the gradient of the mean loss, a part of the batch at a time."""
    for rows, wanted in zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True):
        if len(wanted):
            (objective.mean(model(rows), wanted) * (len(wanted) / len(targets))).backward()


def _whole_or_cut(parts: int = 1, adam: bool = True, checkpointed: bool = False) -> Make:
    def make(model: nn.Module, objective: Objective) -> Step:
        if checkpointed:
            _checkpoint_parts(model)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=_ADAM) if adam else torch.optim.SGD(trained, lr=_SGD)

        def step(inputs: Any, targets: Tensor) -> None:
            optimizer.zero_grad()
            _backward(model, objective, inputs, targets, parts)
            optimizer.step()

        return step

    return make


def _fused(adam: bool) -> Make:
    """Return steps that are taken for each weight as soon as its gradient is there, which is then let go of."""

    def make(model: nn.Module, objective: Objective) -> Step:
        for weight in (weight for weight in model.parameters() if weight.requires_grad):
            optimizer = torch.optim.AdamW([weight], lr=_ADAM) if adam else torch.optim.SGD([weight], lr=_SGD)

            def hook(weight: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.step()
                weight.grad = None

            weight.register_post_accumulate_grad_hook(hook)
        return lambda inputs, targets: _backward(model, objective, inputs, targets, 1)

    return make


def _by_rule(rule: Rule) -> Make:
    def make(model: nn.Module, objective: Objective) -> Step:
        return attach(model, rule, objective=objective)

    return make


def _checkpoint_parts(model: nn.Module) -> None:
    """Keep only the inputs of the members of the longest nn.Sequential or nn.ModuleList for the backward pass."""
    lists = [part for part in model.modules() if isinstance(part, nn.Sequential | nn.ModuleList) and len(part) > 1]
    if not lists:
        raise InputError("the model has no nn.Sequential or nn.ModuleList of parts to be computed twice")
    for part in max(lists, key=len):
        whole = part.forward
        part.forward = lambda *given, whole=whole: checkpoint(whole, *given, use_reentrant=False)


WAYS: Mapping[str, Make] = {
    "back-propagation, AdamW": _whole_or_cut(),
    "back-propagation, AdamW, 4 micro-batches": _whole_or_cut(4),
    "back-propagation, AdamW, 16 micro-batches": _whole_or_cut(16),
    "back-propagation, AdamW, checkpointed": _whole_or_cut(checkpointed=True),
    "back-propagation, AdamW, step within backward": _fused(adam=True),
    "back-propagation, SGD, 16 micro-batches": _whole_or_cut(16, adam=False),
    "back-propagation, SGD, step within backward": _fused(adam=False),
}


def model_cost(work: ModelWork, label: str) -> ModelCost:
    """Make the model and train it in one way; for a process of its own."""
    return_freed_memory()
    warm_up(Compute.find("cpu", "float32"))
    held = min(max(work.batch, 256), len(work.targets) // 2)
    inputs, targets = work.inputs[held:], work.targets[held:]
    batch = min(work.batch, len(targets))
    with memory_growth() as growth:
        with Noise(0).stream("model").torch_seeded():
            model = work.make()
        step, steps = work.ways[label](model.train(), work.task.objective), 0
        begun = time.process_time()
        while steps < 2 or time.process_time() - begun < work.seconds:
            rows = batch_indices(Noise(0), steps, len(targets), batch)
            step(work.task.prepare(inputs[rows]), targets[rows])
            steps += 1
        spent = time.process_time() - begun
    model.eval()
    with torch.no_grad():
        pairs = zip(work.inputs[:held].split(batch), work.targets[:held].split(batch), strict=True)
        losses = [work.task.objective.each(model(work.task.prepare(rows)), wanted) for rows, wanted in pairs]
    return ModelCost(growth.bytes, spent / steps, steps, float(torch.cat(losses).mean()))


def fit_model(work: ModelWork, report: Callable[[str], None]) -> list[Found]:
    """Return what every way costs; `report` is called with a line before each, and one of what it came to."""
    found = []
    for number, label in enumerate(work.ways, 1):
        report(f"{number} of {len(work.ways)}: {label}, {work.seconds:g} processor seconds")
        way = Found(label, *in_fresh_process(model_cost, work, label))
        report(f"  {_cost(way)}")
        found.append(way)
    return found


def best_of(found: Sequence[Found], budget: int) -> Found | None:
    """Return the way that fits and has the least loss; of those about as good, the one that takes the least memory."""
    losses = {
        way.label: way.cost.loss for way in found if way.cost and way.fits(budget) and way.cost.loss == way.cost.loss
    }
    if not losses:
        return None
    least = min(losses.values())
    good = [way for way in found if way.label in losses and losses[way.label] <= least + (_CLOSE - 1) * abs(least)]
    return min(good, key=_bytes)


def recommended(found: Sequence[Found], budget: int) -> str:
    """Return in a sentence what to use."""
    best, measured = best_of(found, budget), [way for way in found if way.cost]
    if not measured:
        return "Nothing could be measured."
    if best is None or best.cost is None:
        return f"Nothing fits into {readable_bytes(budget)}. The least that would: {_said(min(measured, key=_bytes))}."
    rest = [way for way in measured if not way.fits(budget)]
    over = f"; {len(rest)} of {len(measured)} ways take more than {readable_bytes(budget)}" if rest else ""
    return f"Use {_said(best)}: the least loss after equal processor time of all that fits{over}."


def _said(way: Found) -> str:
    return f"{way.label} ({_cost(way)})"


def _cost(way: Found) -> str:
    if way.cost is None:
        return str(way.why)
    return f"{readable_bytes(way.cost.bytes)}, {way.cost.seconds:.3g} s a step, loss {way.cost.loss:.4g}"


def _bytes(way: Found) -> int:
    return way.cost.bytes if way.cost else 0


def model_table(found: Sequence[Found], budget: int) -> Table:
    """Return the table of all ways."""
    columns = ["", "fits", "memory", "s a step", "steps", "loss"]
    lines = []
    for label, cost, _ in found:
        if cost is None:
            lines.append([label, *"-----"])
            continue
        fits = "yes" if cost.bytes <= budget else "no"
        seconds, loss = f"{cost.seconds:.3g}", f"{cost.loss:.4g}"
        lines.append([label, fits, readable_bytes(cost.bytes), seconds, str(cost.steps), loss])
    return Table(f"budget: {readable_bytes(budget)}", columns, lines)


def model_record(found: Sequence[Found], budget: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that was found as plain values."""
    best = best_of(found, budget)
    ways = [{"label": way.label, "fits": way.fits(budget), "why": way.why, **(way.cost._asdict() if way.cost else {})}
            for way in found]  # fmt: skip
    verdict = recommended(found, budget)
    return {**asked, "budget": budget, "ways": ways, "use": best and best.label, "verdict": verdict}
