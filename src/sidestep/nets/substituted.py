"""A net called with other weights than its own, which stay as they are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call as torch_functional_call

__all__ = ["functional_call", "substituted"]


def functional_call(net: nn.Module, weights: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Any:
    """Return `net(*arguments)` with the `weights`, by name as `named_parameters` gives it, in every place of each.

    torch's own leaves the given weights in the net where one module stands twice: it takes them for two, and puts back
    at the second place what it had put in at the first.
    """
    given = {id(p): weights[name] for name, p in net.named_parameters() if name in weights}
    places = {
        f"{path}.{name}" if path else name: given[id(p)]
        for path, layer in net.named_modules()
        for name, p in layer._parameters.items()
        if p is not None and id(p) in given
    }
    return torch_functional_call(net, places, arguments, tie_weights=False)


@contextmanager
def substituted(net: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let code inside meet the `weights`, by name as `named_parameters` gives it, wherever `net` is called from.

    As `functional_call`, for calls that are not ours to make: a function of the user's that calls the net itself.
    Afterwards the net has its own parameters, the same objects, in every place.
    """
    given = {id(p): weights[name] for name, p in net.named_parameters() if name in weights}
    places = [
        (layer._parameters, key, parameter)
        for layer in net.modules()
        for key, parameter in layer._parameters.items()
        if parameter is not None and id(parameter) in given
    ]
    try:
        for parameters, key, own in places:
            parameters[key] = given[id(own)]  # type: ignore[assignment]  # torch reads what is there
        yield
    finally:
        for parameters, key, own in places:
            parameters[key] = own
