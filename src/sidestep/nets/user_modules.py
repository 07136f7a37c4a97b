"""Image paths that are given from outside: one freshly initialised module per block."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sidestep.errors import InputError
from sidestep.nets.check_module import check_module, made_by, name_of
from sidestep.nets.dropout import draw_from_torch
from sidestep.nets.shapes import Shape
from sidestep.noise import Noise

__all__ = ["ImagePath", "each_image_path", "image_paths", "parts_in_order"]

ImagePath = nn.Module | Callable[[], nn.Module]


def image_paths(given: ImagePath, blocks: int, noise: Noise, image_shape: Shape | None = None) -> list[nn.Module]:
    """Return all that `each_image_path` yields."""
    return list(each_image_path(given, blocks, noise, image_shape))


def each_image_path(
    given: ImagePath, blocks: int, noise: Noise, image_shape: Shape | None = None
) -> Iterator[nn.Module]:
    """Yield one freshly initialised image path per block, made when it is asked for: from a factory, or as copies.

    Args:
        given: a function or class that makes a module, or a module, which is copied for every block and initialised
            anew through its layers' own `reset_parameters`.
        blocks: T.
        noise: where the initial weights come from.
        image_shape: (channels, height, width), for a module of the user's, which is tried out on such images.

    Raises:
        InputError: for a module that cannot be made, or that no rule can train (see `check_module`).
    """
    name = name_of(given)
    make = partial(_fresh_copy, given) if isinstance(given, nn.Module) else partial(made_by, given, name)
    seen: WeakSet[nn.Module] = WeakSet()  # a path may be gone before the next is made
    for index in range(blocks):
        with noise.sub(index).torch_seeded():
            path = make()
        if image_shape is not None:
            draw_from_torch(path)
        if index == 0 and image_shape is not None:
            check_module(path, name, image_shape, noise.stream("trial"))
        if path in seen:
            raise InputError("the factory returned one and the same module twice; each block needs a new one")
        seen.add(path)
        yield path
        del path


def parts_in_order(path: nn.Module) -> list[nn.Module]:
    """Return what an nn.Sequential runs, one after another, with modules that stand there twice; of others, nothing."""
    plain = isinstance(path, nn.Sequential) and type(path).forward is nn.Sequential.forward
    if not plain or path._forward_hooks or path._forward_pre_hooks:
        return []
    return [part for part in path._modules.values() if part is not None]


def _fresh_copy(module: nn.Module) -> nn.Module:
    """A copy that starts anew; what is frozen keeps its values, which is what freezing asks for."""
    twin = copy.deepcopy(module)
    for name, layer in twin.named_modules():
        reset, own = getattr(layer, "reset_parameters", None), list(layer.parameters(recurse=False))
        frozen = [(p, p.detach().clone()) for p in own if not (p.requires_grad or is_lazy(p))]
        if own and len(frozen) == len(own):
            continue
        if callable(reset):
            reset()
            with torch.no_grad():
                for parameter, value in frozen:
                    parameter.copy_(value)
        elif own:
            raise InputError(
                f"layer {name or 'the module itself'} ({type(layer).__name__}) has parameters but no "
                "reset_parameters(), so its copies would all start alike; give the class or a function that makes the "
                "module instead"
            )
    return twin
