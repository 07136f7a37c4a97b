"""The one door for modules of the user's: what every rule asks of them, tried out before a net is built around one.

The trials run on a copy, so the module's weights, buffers, mode and any random state that it holds stay as they are.
"""

import copy
import math
import random  # noqa: TID251  (nothing is drawn: a module's draws are put back)
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sidestep.errors import InputError, SidestepError
from sidestep.nets.shapes import Shape
from sidestep.noise import Noise

__all__ = ["check_module", "inplace_explained", "made_by", "name_of"]

_IMAGES = 2


def name_of(given: nn.Module | Callable[[], nn.Module]) -> str:
    """Return what to call a module, or the function or class that makes it, in a message."""
    return getattr(given, "__qualname__", None) or type(given).__qualname__


def made_by(make: Callable[[], nn.Module], name: str) -> nn.Module:
    """Return the module that a function or class makes.

    Raises:
        InputError: if it needs arguments, fails, or makes something else.
    """
    try:
        module = make()
    except SidestepError:
        raise
    except Exception as error:  # it is the user's code: anything may come out of it
        needs = isinstance(error, TypeError) and "argument" in str(error)
        fix = (
            f"it is called without arguments: give a function that fills them in, lambda: {name}(...)"
            if needs
            else "it is called once for every image path: see that it runs by itself"
        )
        raise InputError(f"the module {name} cannot be made ({_words(error)}); {fix}") from error
    if not isinstance(module, nn.Module):
        raise InputError(
            f"an image path must be a torch.nn.Module, but {name} made a {type(module).__name__}; return the module"
        )
    return module


def check_module(module: nn.Module, name: str, image_shape: Shape, noise: Noise) -> None:
    """Raise InputError, in one sentence with the fix, for a module that no rule can train as it stands.

    It must take images (batch, channels, height, width) in training and evaluation mode, give one float tensor (batch,
    ...), leave its input as it was, and in evaluation mode say the same for the same images and change nothing.
    """
    with _set_aside(module) as twin:
        images = _taken(twin, name, image_shape, noise)
        first = _called(twin.eval(), name, images, noise.sub(0), "evaluation")
        _check_output(first, name)
        before = _state(twin)
        again = _called(twin, name, images, noise.sub(1), "evaluation")
        changed = [key for key, value in _state(twin).items() if not _same(value, before.get(key))]
        if changed:
            raise InputError(
                f"the module {name} changes {changed[0]} in evaluation mode, so a prediction would depend on those "
                "before it; change it only while self.training is true"
            )
        if not _same(first, again):
            raise InputError(
                f"the module {name} gives different outputs for the same images in evaluation mode, so predictions "
                "could not be repeated: draw random numbers, and count calls, only while self.training is true"
            )
        _check_output(_called(twin.train(), name, images, noise.sub(2), "training"), name)


class inplace_explained:  # noqa: N801  (a class, no generator: every step of a small net enters it)
    """Inside, a derivative that fails for what a module of the user's does is an InputError with the fix."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Explain the error, if it is one that a derivative gives."""
        if not isinstance(error, RuntimeError):
            return
        if any(said in str(error) for said in ("does not require grad", "not have been used in the graph")):
            raise InputError(
                "the loss does not depend on the weights as far as derivatives go: a part of the module cuts them off; "
                "leave detach(), torch.no_grad() and .data out of it, or train it by spsa or evolution"
            ) from error
        if "mutate a captured Tensor" in str(error):
            raise InputError(
                "a part of the module changes a buffer of its own in place in training mode, through which there is no "
                "forward-mode derivative; write self.count = self.count + 1 in place of self.count += 1, or leave it "
                "out"
            ) from error
        if "modified by an inplace operation" not in str(error):
            return
        raise InputError(
            "a part of the module changes in place what an earlier part keeps for its derivative "
            f"({str(error).split('. Hint')[0]}); write x = x * 2 in place of x *= 2, or leave inplace=True out"
        ) from error


@contextmanager
def _set_aside(module: nn.Module) -> Iterator[nn.Module]:
    """A copy to try things out on; the module itself, put back afterwards, where it cannot be copied."""
    held = random.getstate()
    try:
        twin = copy.deepcopy(module)
    except Exception:  # what cannot be copied says so in many ways
        twin = module
    modes = [(layer, layer.training) for layer in module.modules()]
    tensors = {} if twin is not module else _state(module)
    try:
        yield twin
    finally:
        random.setstate(held)
        for layer, mode in modes:
            layer.training = mode
        with torch.no_grad():
            for key, value in [*module.named_parameters(), *module.named_buffers()]:
                if key in tensors:
                    value.copy_(tensors[key])


def _taken(twin: nn.Module, name: str, image_shape: Shape, noise: Noise) -> Tensor:
    """Images that the module takes: of noise, or black ones for a module that expects certain values."""
    drawn = noise.stream("images").normal(_IMAGES * math.prod(image_shape)).view(_IMAGES, *image_shape)
    try:
        _called(twin.eval(), name, drawn, noise, "evaluation")
    except InputError as refused:
        if refused.__cause__ is None:  # it took them
            raise
        try:
            _called(twin, name, torch.zeros_like(drawn), noise, "evaluation")
        except InputError:
            raise refused from refused.__cause__
        return torch.zeros_like(drawn)
    return drawn


def _called(twin: nn.Module, name: str, images: Tensor, noise: Noise, mode: str) -> Any:
    given, several = images.clone(), dict[str, str]()  # layers that give something else than a tensor

    def hook_for(layer: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, found: Any) -> None:
            if not isinstance(found, Tensor):
                several[f"{layer} ({type(module).__name__})"] = type(found).__name__

        return hook

    hooks = [layer.register_forward_hook(hook_for(path)) for path, layer in twin.named_modules() if path]
    try:
        with torch.no_grad(), noise.torch_seeded():
            found = twin(given)
    except Exception as error:  # it is the user's code: anything may come out of it
        shape = ", ".join(map(str, images.shape[1:]))
        raise InputError(
            f"the module {name} does not take images of shape (batch, {shape}) in {mode} mode ({_words(error)}); "
            f"{_fix(twin, several)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if given._version or not _same(given, images):  # written to, also where black images stay black
        raise InputError(
            f"the module {name} changes its input in place, which others are to see as it was; copy it first: "
            "x = x - 0.5 in place of x -= 0.5, or x = x.clone() at its beginning"
        )
    return found


def _fix(twin: nn.Module, several: dict[str, str]) -> str:
    """What is likely to help a module whose forward pass fails."""
    for layer, kind in several.items():
        return f"its layer {layer} gives a {kind}: wrap it in a module that returns what the next one needs"
    for name, parameter in twin.named_parameters():
        if not is_lazy(parameter) and parameter.dtype == torch.float64:
            return f"its parameter {name} is float64, and images are float32: end the module with .float()"
    return "change its layers, or the images"


def _check_output(found: Any, name: str) -> None:
    if not isinstance(found, Tensor):
        parts = f" of {len(found)}" if isinstance(found, tuple | list | dict) else ""
        raise InputError(
            f"the module {name} must return a tensor (batch, features ...), got a {type(found).__name__}{parts}; "
            "return the part that is meant (an LSTM's outputs are the first of two)"
        )
    if found.layout != torch.strided or found.device.type == "meta":
        kind = "one without values (meta)" if found.device.type == "meta" else str(found.layout)
        raise InputError(
            f"the module {name} must return a plain tensor with values, got {kind.removeprefix('torch.')}; end it with "
            ".to_dense(), or leave the change of device out"
        )
    if found.dim() < 2 or len(found) != _IMAGES or not found.numel():
        raise InputError(
            f"the module {name} must return a tensor (batch, features ...); for {_IMAGES} images it gave "
            f"{tuple(found.shape)}"
        )
    if found.dtype != torch.float32:
        kind = str(found.dtype).removeprefix("torch.")
        raise InputError(f"the module {name} returns {kind}, and what follows it is float32; end it with .float()")


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer as it stands; also buffers that are not saved."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach().clone() for name, value in named if not is_lazy(value)}


def _same(one: Any, other: Any) -> bool:
    """Whether two tensors are equal, NaN for NaN."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return not isinstance(one, Tensor) and type(one) is type(other)
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _words(error: Exception) -> str:
    """What an error says, on one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__
