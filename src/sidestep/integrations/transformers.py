"""Hugging Face's Trainer with a rule in place of back-propagation.

training_step(batch) -> estimate(loss of the batch) -> decide -> apply         the rest of the loop is the Trainer's
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import CheckpointError, InputError
from sidestep.files import read_plain, write_text
from sidestep.integrations.trainer_rules import check_for_trainer
from sidestep.rules.protocol import Rule
from sidestep.rules.record import rule_record
from sidestep.training.attach import attach
from sidestep.training.step import Step
from sidestep.world.launched import launched

try:
    from transformers import Trainer as _Trainer
except ImportError:  # the module can be read without it; SidestepTrainer says what is missing
    _Trainer = object

__all__ = ["SidestepTrainer"]

FILE = "sidestep.json"
_OF_THE_RULE = (
    "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "adafactor", "optim", "optim_args",
    "optim_target_modules",
)  # fmt: skip
_REFUSED = {
    "gradient_checkpointing": "it saves activations for a backward pass, and the step of a rule is not one; leave it "
    "out, the rules of forward passes keep no activations",
    "activation_checkpointing": "it saves activations for a backward pass, and the step of a rule is not one; leave it "
    "out, the rules of forward passes keep no activations",
    "gradient_accumulation_steps": "a rule takes a whole step for every batch; raise per_device_train_batch_size",
    "max_grad_norm": "there is no gradient in .grad to be clipped; leave it out, or set it to 0",
    "fp16": "scaled or rounded losses would drown the differences that a rule compares; train in float32",
    "bf16": "rounded losses would drown the differences that a rule compares; train in float32",
    "deepspeed": "a rule steps the model in one process; train without it",
    "fsdp": "a rule steps the model in one process; train without it",
    "parallelism_config": "a rule steps the model in one process; train without it",
    "torch_compile": "a rule shifts weights while the model's own operations read them; train without it",
    "torch_empty_cache_steps": "a rule's step does not empty the device's cache; leave it out",
}


class SidestepTrainer(_Trainer):
    """A `transformers.Trainer` whose training step is that of a rule that takes any module.

    `SidestepTrainer(rule=SPSA(), model=model, args=args, train_dataset=data).train()`. Schedules, callbacks,
    evaluation, logging and checkpoints are the Trainer's; the optimiser, with its learning rate, is the rule's. Frozen
    weights stay as they are. Random directions, and what dropout draws in a step, come from `args.seed` and the number
    of the step, so `resume_from_checkpoint` goes on to the same bits.

    Args:
        rule: from `sidestep.rules`: `SPSA`, `Evolution`, `ForwardGradient`, `Backprop`, or another for any module.
        given, named: what `transformers.Trainer` takes.

    Raises:
        InputError: without transformers, for a rule that needs more than the loss, and for an argument of the Trainer
            that a rule cannot honour.
        CheckpointError: on going on from a checkpoint of another rule or seed.
    """

    optimizer: torch.optim.Optimizer | None
    lr_scheduler: Any

    def __init__(self, *given: Any, rule: Rule, **named: Any) -> None:
        if _Trainer is object:
            raise InputError(
                "SidestepTrainer needs transformers, which is missing: pip install 'sidestep[transformers]'"
            )
        check_for_trainer(rule)
        for name in ("optimizers", "optimizer_cls_and_kwargs"):
            if any(part is not None for part in named.get(name) or ()):
                raise InputError(f"{name} has no use, the optimiser is the rule's own: {_where('optimizer')}")
        super().__init__(*given, **named)
        _check_arguments(self.args)
        if self.optimizer is not None or self.lr_scheduler is not None:  # given by place
            raise InputError(f"optimizers has no use, the optimiser is the rule's own: {_where('optimizer')}")
        precision = self.accelerator.mixed_precision
        if precision not in (None, "no"):
            raise InputError(f"mixed precision {precision} of accelerate cannot be honoured: {_REFUSED['bf16']}")
        self.rule = rule
        self._attached: Step | None = None

    def create_optimizer(self, *given: Any, **named: Any) -> torch.optim.Optimizer:
        """Attach the rule to the model, and return the rule's optimiser."""
        if self.optimizer is None or self._attached is None:
            if launched() > 1:
                raise InputError(
                    f"a Trainer with a rule trains in one process, and a launcher has started {launched()} "
                    "(WORLD_SIZE): start one, or take a loop of your own, sidestep.attach, which divides each step"
                )
            self._attached = attach(self.model, self.rule, seed=self.args.seed)
            self.optimizer = self._attached.optimizer
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: Mapping[str, Any], num_items_in_batch: Any = None, *given: Any
    ) -> Tensor:
        """Take one step of the rule, and return the loss that it was estimated from, shape ().

        The Trainer's own `optimizer.step()` comes after it, finds no gradient, and moves nothing.
        """
        if self._attached is None:
            raise InputError("the rule is attached to the model by train(); call that")
        model.train()
        batch = self._prepare_inputs(inputs)

        def loss() -> Tensor:  # a copy for each pass: label smoothing takes the labels out of it
            with self.compute_loss_context_manager():
                found: Tensor = self.compute_loss(model, copy.copy(batch), num_items_in_batch=num_items_in_batch)
            return found

        self._attached.steps = self.state.global_step  # which the Trainer knows after a resume, too
        return self._attached(loss)

    def log(self, logs: dict[str, float], *given: Any, **named: Any) -> None:
        """Log, without the norm of a gradient that there is none of."""
        super().log({name: value for name, value in logs.items() if name != "grad_norm"}, *given, **named)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            write_text(Path(output_dir) / FILE, json.dumps(self._record(), indent=1))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and (Path(checkpoint) / "optimizer.pt").exists():
            _check_record(Path(checkpoint) / FILE, self._record())
        super()._load_optimizer_and_scheduler(checkpoint)

    def _record(self) -> dict[str, Any]:
        return {"rule": rule_record(self.rule), "seed": self.args.seed}


def _check_arguments(args: Any) -> None:
    """Raise InputError for arguments of the Trainer that a rule cannot honour."""
    defaults = {field.name: field.default for field in fields(args)}
    for name in _OF_THE_RULE:
        value = getattr(args, name, None)
        if name in defaults and value != defaults[name]:
            raise InputError(f"{name} = {value} has no use, the optimiser is the rule's own: {_where(name)}")
    for name, why in _REFUSED.items():
        value = getattr(args, name, None)
        if value and value != defaults.get(name):
            raise InputError(f"{name} = {value!s:.40} cannot be honoured: {why}")
    for name in ("world_size", "n_gpu"):
        if (count := getattr(args, name)) > 1:
            raise InputError(
                f"a rule steps the model in one process on one device, and {name} is {count}; start one process, and "
                "show it one device (CUDA_VISIBLE_DEVICES=0)"
            )


def _where(name: str) -> str:
    if name in ("learning_rate", "weight_decay"):
        return f"leave it out, and give it to the rule, {name}=..."
    return "leave it out, and choose one by the rule, SPSA(optimizer_kind='adam', learning_rate=1e-4)"


def _check_record(path: Path, here: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless a checkpoint is of this rule and seed."""
    try:
        there = json.loads(read_plain(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.parent} cannot be gone on from: {FILE}, which says of which rule it is, is missing or damaged; "
            "take a checkpoint that SidestepTrainer wrote"
        ) from error
    for name, value in here.items():
        own = json.loads(json.dumps(value))
        if not isinstance(there, dict) or there.get(name) != own:
            found = there.get(name) if isinstance(there, dict) else there
            raise CheckpointError(
                f"{path.parent} is of another {name}: {found} there, {own} here; go on with what it was begun with"
            )
