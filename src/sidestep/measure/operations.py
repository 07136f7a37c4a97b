"""How many floating point operations a piece of code takes in matrix products and convolutions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["Operations", "count_operations"]

# Products with a vector, for which torch has no formula; from the shapes' numbers of elements: 2 per multiply and add.
_WITH_A_VECTOR: Mapping[Any, Callable[..., int]] = {
    torch.ops.aten.mv: lambda matrix, vector: 2 * matrix.numel(),
    torch.ops.aten.addmv: lambda added, matrix, vector, **_: 2 * matrix.numel(),
    torch.ops.aten.dot: lambda one, other: 2 * one.numel(),
    torch.ops.aten.vdot: lambda one, other: 2 * one.numel(),
    torch.ops.aten.addr: lambda added, left, right, **_: 2 * left.numel() * right.numel(),
}


@dataclass
class Operations:
    """What `count_operations` found; it grows while its block runs."""

    count: int = 0


@contextmanager
def count_operations(one_thread: bool = True) -> Iterator[Operations]:
    """Count the floating point operations of matrix products, convolutions and attention inside.

        (m, k) times (k, n)     2 m k n

    by the formulas of `torch.utils.flop_counter`, and for products with vectors alike, as the operations reach the
    kernels: on the way back of autograd, in custom functions, recomputed under checkpointing, in forward mode, and
    under `vmap` and `jvp`, all as it is executed (so also torch's products with a tangent of zeros). **Nothing else is
    counted**: sums, activations, norms, noise, and what optimisers do; nor what a kernel of someone's own does inside.

    Like `peak_allocation`, the count follows the thread that entered, so while it counts torch has one thread, and
    units that could run at once run one after another, which changes no count.

    Args:
        one_thread: set torch to one thread inside. False is right for code that does not compute in threads.

    >>> with count_operations() as operations:
    ...     product = torch.ones(2, 3) @ torch.ones(3, 5)
    >>> operations.count
    60
    """
    found, threads = Operations(), torch.get_num_threads()
    if one_thread:
        torch.set_num_threads(1)
    try:
        with _Counting(found):
            yield found
    finally:
        if one_thread:
            torch.set_num_threads(threads)


class _Counting(TorchDispatchMode):
    """Adds up the operations of this thread.

    `FlopCounterMode` itself also follows modules by hooks on gradients, which fail inside `torchdiffeq`'s adjoint.
    """

    def __init__(self, found: Operations) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry and packet not in _WITH_A_VECTOR:
            with self:  # an operation that is made of others: in inference mode they come here whole
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
        made = func(*args, **given)
        if packet in flop_registry:
            self._found.count += int(flop_registry[packet](*args, **given, out_val=made))
        elif packet in _WITH_A_VECTOR:
            self._found.count += _WITH_A_VECTOR[packet](*args, **given)
        return made
