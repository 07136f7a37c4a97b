"""A rule inside a loop of the user's own: one object that takes a step whenever it is called with a loss.

estimate(model, loss, noise of this step) -> decide -> step log -> apply         one call, one step
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from torch import Tensor, nn

from sidestep.data.objective import Objective
from sidestep.data.share import Division
from sidestep.errors import InputError
from sidestep.keywords import known_keywords
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule
from sidestep.schedule import Decay
from sidestep.training.attached_ranks import ranks_of
from sidestep.training.attached_rule import as_objective
from sidestep.training.attached_schedule import AttachedSchedule
from sidestep.training.evaluate import check_rule
from sidestep.training.own_optimizer import OptimizerFactory
from sidestep.training.step import Step

__all__ = ["attach"]


@known_keywords()
def attach(  # long: what a step can be given
    model: nn.Module,
    rule: Rule,
    *,
    objective: Objective | Callable[[Tensor, Tensor], Tensor] | str | None = None,
    seed: int = 0,
    optimizer: OptimizerFactory | None = None,
    log: str | Path | None = None,
    resume: str | Path | None = None,
    example: Tensor | None = None,
    split: Division | None = None,
    shares: int | None = None,
    steps: int | None = None,
    decay: Decay = "none",
    warmup: float = 0.0,
) -> "Step":
    """Return a rule that trains `model`, in place, one step for every call from a loop of your own.

    Args:
        model: any module, with its weights as they are; what is frozen (`requires_grad` False) stays as it is. Rules
            that train stages take an nn.Sequential, whose last part with weights is the output.
        rule: from `sidestep.rules`, for instance `SPSA(learning_rate=1e-6)` or `LocalLoss()`.
        objective: for steps of inputs and targets: a function of outputs and targets that returns one loss per example,
            or classes (the default), labels, values or tokens.
        seed: where the rule's random directions and added weights come from, and what dropout draws.
        optimizer: makes an optimiser from parameter groups, in place of the rule's own:
            `lambda groups: torch.optim.SGD(groups, lr=0.1)`.
        log: file to write the step log to, for rules that tell a step by one number per direction.
        resume: folder that `Step.save` wrote; the loop goes on from there.
        example: a batch of inputs, for rules that train stages and need `step.optimizer` before the first step.
        split: what of a step is divided, among the processes of torchrun or in one: the batch (the default), of which
            each is given its own part, or the probes, where each is given the whole batch.
        shares: in how many equal parts; by default one for each process.
        steps: how many steps the loop is going to take, where the learning rate follows a schedule. A log then holds
            the schedule in place of the rates, so do not change them yourself.
        decay: how the learning rate falls over these steps: none, cosine or linear.
        warmup: share of the steps over which it rises first.

    Raises:
        InputError: for a rule or a module that cannot be used so.
        CheckpointError: if `resume` is of another model or rule, or the log cannot be written.

    >>> import torch
    >>> from sidestep import attach, rules
    >>> from torch.nn.functional import mse_loss
    >>> with Noise(0).torch_seeded():
    ...     model = nn.Linear(3, 1)
    >>> step = attach(model, rules.Backprop(learning_rate=0.1))
    >>> inputs = torch.eye(3)
    >>> losses = [float(step(lambda: mse_loss(model(inputs), torch.ones(3, 1)))) for _ in range(50)]
    >>> losses[-1] < 0.1 * losses[0]
    True
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"attach trains an nn.Module, got {type(model).__name__}")
    if isinstance(rule, str | type):
        check_rule(rule)
    if optimizer is not None and log is not None:
        raise InputError("a log can be replayed with the rule's own optimiser alone; leave log or optimizer out")
    ranks = ranks_of(rule, split, shares)
    with ranks.together() if ranks else nullcontext():
        schedule = AttachedSchedule.of(steps, decay, warmup)
        step = Step(model, rule, as_objective(objective), Noise(seed), optimizer, ranks, schedule)
        step.check_ranks()
        if example is not None:
            step.begin(example)
        if resume is not None:
            step.load(resume, log)
        elif log is not None:
            step.begin_log(Path(log))
    return step
