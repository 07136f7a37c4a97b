"""The optimizers of torch.optim, to the bit, without the import of torch's compiler that their methods begin with.

torch.optim wraps its methods for torch.compile, and the first call of any of them imports torch._dynamo and sympy: one
to two seconds before a first step that compiles nothing. The classes here are torch's own, whose methods are called
without that wrapping (`inspect.unwrap`, which gives the method itself where there is none). Names, states, hooks and
schedulers are torch's, so checkpoints fit either.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

__all__ = [
    "ASGD",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "WithoutCompiler",
]

_unwrapped = cache(inspect.unwrap)  # of a few methods, which every step calls


class WithoutCompiler(torch.optim.Optimizer):
    """Stands before an optimizer of torch's and calls its methods unwrapped; not for use under torch.compile."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as torch.optim does."""
        _unwrapped(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove the gradients, or fill them with zeros."""
        _unwrapped(torch.optim.Optimizer.zero_grad)(self, set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state and the parameter groups, as torch.optim has them."""
        return _unwrapped(torch.optim.Optimizer.state_dict)(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, of torch's own class too."""
        _unwrapped(torch.optim.Optimizer.load_state_dict)(self, state_dict)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step along the gradients; what a closure returns is returned."""
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return _unwrapped(super().step.__func__)(self, closure)  # type: ignore[attr-defined]


class AdamW(WithoutCompiler, torch.optim.AdamW):
    """torch.optim.AdamW."""


class Adam(WithoutCompiler, torch.optim.Adam):
    """torch.optim.Adam."""


class SGD(WithoutCompiler, torch.optim.SGD):
    """torch.optim.SGD."""


class RMSprop(WithoutCompiler, torch.optim.RMSprop):
    """torch.optim.RMSprop."""


class Adagrad(WithoutCompiler, torch.optim.Adagrad):
    """torch.optim.Adagrad."""


class Adadelta(WithoutCompiler, torch.optim.Adadelta):
    """torch.optim.Adadelta."""


class Adafactor(WithoutCompiler, torch.optim.Adafactor):
    """torch.optim.Adafactor."""


class Adamax(WithoutCompiler, torch.optim.Adamax):
    """torch.optim.Adamax."""


class NAdam(WithoutCompiler, torch.optim.NAdam):
    """torch.optim.NAdam."""


class RAdam(WithoutCompiler, torch.optim.RAdam):
    """torch.optim.RAdam."""


class ASGD(WithoutCompiler, torch.optim.ASGD):
    """torch.optim.ASGD."""
