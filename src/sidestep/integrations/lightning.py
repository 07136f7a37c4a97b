"""A rule under Lightning's Trainer: a callback takes the rule's step in place of back-propagation.

training_step(batch) -> estimate(loss of the batch) -> decide -> apply         the rest of the loop is the Trainer's
"""

import json
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from sidestep.errors import CheckpointError, InputError
from sidestep.integrations.trainer_rules import check_for_trainer
from sidestep.rules.protocol import Rule
from sidestep.rules.record import rule_record
from sidestep.training.attach import attach
from sidestep.training.step import Step

try:
    from lightning.pytorch import Callback as _Callback
except ImportError:  # the module can be read without it; SidestepCallback says what is missing
    _Callback = object

__all__ = ["SidestepCallback"]

_REPLACED = ("training_step", "backward", "configure_optimizers")  # of the module, while fit runs
_OTHER_CALLBACKS = {
    "GradientAccumulationScheduler": "a rule takes a whole step for every batch; make the batches larger",
    "StochasticWeightAveraging": "it steps an optimiser of its own; leave it out, or average the weights afterwards",
    "LearningRateFinder": "it looks for the rate of the module's own optimiser; give the rate to the rule",
    "BaseFinetuning": "weights that it frees later are unknown to the rule; freeze and free them before fit",
}


class SidestepCallback(_Callback):
    """Lets a rule that takes any module train a LightningModule: `Trainer(callbacks=[SidestepCallback(SPSA())])`.

    `training_step` returns the loss, as ever. The Trainer's logging, validation, callbacks and checkpoints stay;
    the optimiser is the rule's, so the module's `configure_optimizers` is not called. Frozen weights stay as they are.
    Random directions, and what dropout draws in a step, come from `seed` and the number of the step, so
    `fit(ckpt_path=...)` goes on to the same bits.

    Args:
        rule: from `sidestep.rules`: `SPSA`, `Evolution`, `ForwardGradient`, `Backprop`, or another for any module.
        seed: where random directions, and what dropout draws, come from.
        scheduler: makes a schedule of torch's from the rule's optimiser; it is stepped once for every batch.

    Raises:
        InputError: without Lightning, for a rule that needs more than the loss, and, when `fit` begins, for what a
            rule cannot honour: accumulated or clipped gradients, mixed precision, several devices, a compiled module.
        CheckpointError: on going on from a checkpoint of another rule or seed.
    """

    def __init__(
        self,
        rule: Rule,
        seed: int = 0,
        scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler] | None = None,
    ) -> None:
        if _Callback is object:
            raise InputError("SidestepCallback needs Lightning, which is missing: pip install 'sidestep[lightning]'")
        check_for_trainer(rule)
        self.rule, self.seed, self._scheduler = rule, seed, scheduler
        self._attached: Step | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put the rule's step in place of the module's, until `fit` ends."""
        if stage != "fit":
            return
        _check_trainer(trainer)
        _check_module(pl_module)
        loss = pl_module.training_step

        @wraps(loss)  # whose arguments the Trainer looks at
        def training_step(*batch: Any, **named: Any) -> Any:
            return self._step(trainer, pl_module, lambda: loss(*batch, **named))

        pl_module.training_step = training_step
        pl_module.backward = _do_nothing  # and the Trainer's optimizer.step() finds no gradient, and moves nothing
        pl_module.configure_optimizers = lambda: self._optimizers(pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the module its own step back."""
        _restore(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the module its own step back."""
        _restore(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return which rule and seed a checkpoint is of."""
        return {"record": json.dumps(self._record())}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Mapping[str, Any]) -> None:
        """Refuse to go on from a checkpoint of another rule or seed."""
        if trainer.state.fn != "fit":
            return
        there = checkpoint["callbacks"].get(self.state_key)
        if there is None:
            raise CheckpointError(
                "the checkpoint was written without SidestepCallback, so its optimiser is not the rule's; load its "
                "weights, and begin: LightningModule.load_from_checkpoint"
            )
        found, here = json.loads(there["record"]), json.loads(self.state_dict()["record"])
        for name, own in here.items():
            if found.get(name) != own:
                raise CheckpointError(
                    f"the checkpoint is of another {name}: {found.get(name)} there, {own} here; go on with what it was "
                    "begun with"
                )

    def _record(self) -> dict[str, Any]:
        return {"rule": rule_record(self.rule), "seed": self.seed}

    def _optimizers(self, module: Any) -> Any:
        """Attach the rule to the module, which now is on its device, and return the rule's optimiser."""
        self._attached = attach(module, self.rule, seed=self.seed)
        optimizer = self._attached.optimizer
        if self._scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "step"},
        }

    def _step(self, trainer: Any, module: Any, returned: Callable[[], Any]) -> dict[str, Tensor]:
        """Take one step; what the module logs in the first of its forward passes is what is logged."""
        assert self._attached is not None  # the Trainer makes optimisers before it steps
        passes = 0  # the later ones are at other shifted weights

        def loss() -> Tensor:
            nonlocal passes
            passes += 1
            if passes == 2:
                module.log = _do_nothing
            return _loss_of(returned())

        self._attached.steps = trainer.global_step  # which the Trainer knows after a resume, too
        try:
            return {"loss": self._attached(loss)}
        finally:
            module.__dict__.pop("log", None)


def _restore(module: Any) -> None:
    for name in _REPLACED:
        module.__dict__.pop(name, None)


def _do_nothing(*given: Any, **named: Any) -> None:
    """Stand in for what a rule has no use for: a backward pass, and logs of a step's later passes."""


def _loss_of(returned: Any) -> Tensor:
    loss = returned.get("loss") if isinstance(returned, Mapping) else returned
    if not isinstance(loss, Tensor):
        raise InputError(
            f"training_step has to return the loss, or a dictionary with 'loss', for a rule to step by it, got "
            f"{type(returned).__name__}"
        )
    return loss


def _check_trainer(trainer: Any) -> None:
    """Raise InputError for what the Trainer was asked for and a rule cannot honour."""
    one_device = type(trainer.strategy).__name__ == "SingleDeviceStrategy"
    refused = {
        f"accumulate_grad_batches = {trainer.accumulate_grad_batches}": trainer.accumulate_grad_batches != 1
        and "a rule takes a whole step for every batch; make the batches larger",
        f"gradient_clip_val = {trainer.gradient_clip_val}": trainer.gradient_clip_val
        and "there is no gradient in .grad to be clipped; leave it out",
        f"precision = {trainer.precision}": trainer.precision not in ("32-true", "64-true")
        and "rounded losses would drown the differences that a rule compares; train in 32-true",
        f"strategy {type(trainer.strategy).__name__}, {trainer.world_size} processes": not one_device
        and "a rule steps the module in one process on one device; take devices=1, strategy='auto'",
    }
    for what, why in refused.items():
        if why:
            raise InputError(f"{what} cannot be honoured: {why}")
    for callback in trainer.callbacks:
        for kind in type(callback).__mro__:
            if kind.__name__ in _OTHER_CALLBACKS:
                raise InputError(f"{kind.__name__} cannot be honoured: {_OTHER_CALLBACKS[kind.__name__]}")
    if sum(isinstance(callback, SidestepCallback) for callback in trainer.callbacks) > 1:
        raise InputError("one SidestepCallback trains a module, got several; leave one in the Trainer's callbacks")


def _check_module(module: Any) -> None:
    """Raise InputError for a module that steps by itself, is compiled, or takes its batches itself."""
    name = type(module).__name__
    if not module.automatic_optimization:
        raise InputError(
            f"{name} steps its own optimisers (automatic_optimization is False), and the rule takes the steps; leave "
            "that out, and let training_step return the loss"
        )
    if getattr(module, "_compiler_ctx", None) is not None:
        raise InputError(
            f"{name} is compiled, and a rule shifts weights while the module's own operations read them; give fit the "
            "module as it was before torch.compile"
        )
    code = getattr(module.training_step, "__code__", None)
    if code is not None and "dataloader_iter" in code.co_varnames[: code.co_argcount]:
        raise InputError(
            f"{name}.training_step takes dataloader_iter, and a step may need the same batch several times; take batch"
        )
