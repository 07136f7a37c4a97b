"""The optimizers of torch.optim, to the bit but for denormal numbers, without the import of torch's compiler.

torch.optim wraps its methods for torch.compile, and the first call of any of them imports torch._dynamo and sympy: one
to two seconds before a first step that compiles nothing. The classes here are torch's own, whose methods are called
without that wrapping (`inspect.unwrap`, which gives the method itself where there is none). Names, states, hooks and
schedulers are torch's, so checkpoints fit either.

Fused Adam and AdamW step all groups with the same settings at once: every weight's step is its own, so the bits are
those of one call for each group. What surrounds a step in torch (a label for its profiler) is left out; on a net of ten
thousand weights it takes longer than the arithmetic.

In one thing Adam and AdamW differ from torch's, on a CPU: every 64th step of a weight sets denormal numbers (below the
smallest normal one, 1.2e-38 in float32) in it and its moments to zero, and a negative zero to a positive one. The first
moment of a unit that gets no gradient is denormal after some 750 steps and stays so, and with L2 weight decay its
weights follow; a processor's arithmetic with them is many times slower. Such a weight is zero until a gradient comes:
in torch's Adam it may grow again without one, thousands of steps later, when the second moment has faded, too.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import adam, optimizer

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
        if not set_to_none:
            _unwrapped(torch.optim.Optimizer.zero_grad)(self, set_to_none)
            return
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

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


_DROPPED = 64  # steps from one look for denormal numbers to the next
_DROPPED_IN = (torch.float32, torch.float64, torch.bfloat16)  # those of float16 are numbers that count, below 6e-5
_ADAM = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "capturable", "differentiable", "fused",
         "decoupled_weight_decay")  # fmt: skip


class _Fused(WithoutCompiler):
    """Adam whose fused kernel is called once for all groups with the same settings."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step along the gradients; what a closure returns is returned."""
        first, *others = groups = self.param_groups
        loss = None
        if closure is not None or _hooks(self) or not all(group["fused"] for group in groups):
            loss = _with_hooks(self, closure)
        else:
            with torch.no_grad():
                if not all(group[name] == first[name] for group in others for name in _ADAM):
                    self._step_apart()
                elif not self._step_on_cpu(first):
                    self._step_groups(groups)
        self._drop_denormals()
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # hooks are called above, so torch need not wrap it

    def _drop_denormals(self) -> None:
        """Set denormal numbers to zero in weights that took this step, if it is time by a weight's own steps."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None or not weight.is_cpu or weight.dtype not in _DROPPED_IN:
                    continue
                state = self.state[weight]
                if int(state["step"]) % _DROPPED == 0:
                    for tensor in (weight, state["exp_avg"], state["exp_avg_sq"]):
                        _without_denormals_(tensor)

    def _step_apart(self) -> None:
        """Call the kernel once for all groups with the same settings."""
        alike: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for group in self.param_groups:
            alike.setdefault(tuple(_hashable(group[name]) for name in _ADAM), []).append(group)
        for groups in alike.values():
            self._step_groups(groups)

    def _step_on_cpu(self, settings: dict[str, Any]) -> bool:
        """Call the kernel for all groups, if this is a plain later step on a CPU; return whether it was.

        Plain: float weights of one kind, whose states are there. What torch looks through besides, at each step, is
        for other devices, and takes a small net as long as its arithmetic.
        """
        given = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        states: list[Any] = [self.state.get(each) for each in given]
        if not given or not all(states) or hasattr(self, "grad_scale") or hasattr(self, "found_inf"):
            return False
        kind = given[0].dtype
        if not all(each.is_cpu and each.dtype is kind and each.grad.layout is torch.strided for each in given):
            return False
        plain = kind.is_floating_point and not (settings["differentiable"] or settings["amsgrad"])
        if not plain or any(isinstance(settings[name], Tensor) for name in ("lr", "weight_decay")):
            return False
        beta1, beta2 = settings["betas"]
        if isinstance(beta1, Tensor) or isinstance(beta2, Tensor):
            return False
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        kernel = torch._fused_adamw_ if settings["decoupled_weight_decay"] else torch._fused_adam_
        kernel(given, [each.grad for each in given], [state["exp_avg"] for state in states],
               [state["exp_avg_sq"] for state in states], [], steps, amsgrad=False, lr=settings["lr"], beta1=beta1,
               beta2=beta2, weight_decay=settings["weight_decay"], eps=settings["eps"],
               maximize=settings["maximize"])  # fmt: skip
        return True

    def _step_groups(self, groups: list[dict[str, Any]]) -> None:
        self._accelerator_graph_capture_health_check()
        lists: list[list[Tensor]] = [[] for _ in range(6)]  # parameters, gradients, and four of what a state holds
        inner: Any = self  # torch's own methods, which its types leave out
        for group in groups:
            inner._init_group(group, *lists)
        settings = {name: groups[0][name] for name in _ADAM if name not in ("betas", "fused")}
        settings["beta1"], settings["beta2"] = groups[0]["betas"]
        scaled = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
        adam._fused_adam(*lists, **scaled, **settings, has_complex=False)  # type: ignore[misc, arg-type]


def _without_denormals_(tensor: Tensor) -> None:
    """Set numbers to zero, in place, that are smaller than the smallest normal one of their dtype."""
    limits = torch.finfo(tensor.dtype)
    largest = limits.smallest_normal * (1 - limits.eps)  # of the denormal ones
    with torch.no_grad():
        torch.ops.aten.hardshrink.out(tensor, largest, out=tensor)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # betas that were JSON on the way, which torch takes too


def _hooks(given: torch.optim.Optimizer) -> bool:
    """Whether anything is to be called before or after a step."""
    own = given._optimizer_step_pre_hooks or given._optimizer_step_post_hooks
    return bool(own or optimizer._global_optimizer_pre_hooks or optimizer._global_optimizer_post_hooks)


@torch.optim.Optimizer.profile_hook_step
def _with_hooks(given: _Fused, closure: Callable[[], Any] | None = None) -> Any:
    return super(_Fused, given).step(closure)


class AdamW(_Fused, torch.optim.AdamW):
    """torch.optim.AdamW."""


class Adam(_Fused, torch.optim.Adam):
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
