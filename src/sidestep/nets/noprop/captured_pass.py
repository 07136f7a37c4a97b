"""The pass over all blocks as one function of tensors alone, so that it can be recorded or compiled as a whole.

A recorded CUDA graph is started once, where the pass by itself starts some hundred kernels; on a device without graphs
the function runs as it is. Masks are drawn before, in the order in which the pass asks for them.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sidestep.nets.noprop.batched_blocks import BlocksTogether, MaskSource

__all__ = ["WRAPPERS", "captured_logits"]

Function: TypeAlias = Callable[..., tuple[Tensor, ...]]


def _graph(function: Function, inputs: tuple[Tensor, ...]) -> Function:
    if inputs[0].device.type != "cuda":
        return function
    graphed: Any = torch.cuda.make_graphed_callables(function, inputs)
    return graphed


def _compiled(function: Function, inputs: tuple[Tensor, ...]) -> Function:
    return torch.compile(function, dynamic=False)


WRAPPERS: dict[str, Callable[[Function, tuple[Tensor, ...]], Function]] = {"graph": _graph, "compiled": _compiled}


class _Recorded(NamedTuple):
    call: Function
    masks: list[tuple[tuple[int, ...], float, torch.dtype]]  # what the pass asked of its source, in order


_known: "WeakKeyDictionary[nn.Module, dict[Any, _Recorded]]" = WeakKeyDictionary()


def captured_logits(run: BlocksTogether, execution: str, images: Tensor, latents: Tensor, masks: MaskSource) -> Tensor:
    """Return what `run.logits` returns, from a graph or compiled code that is made at the first call.

    There is one for each first block, shape, dtype and precision; it takes the weights anew at each call.

    Args:
        run: the blocks.
        execution: one of WRAPPERS.
        images: (batch, channels, height, width).
        latents: (T, batch, dimension).
        masks: where dropout masks come from.
    """
    kind = images.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    key = (execution, run.count, tuple(images.shape), latents.shape[2], images.dtype, str(images.device), precision)
    there = _known.setdefault(run.blocks[0], {})
    names = [name for name in run.statistics if not name.endswith("num_batches_tracked")]
    if key in there:
        drawn = [masks(*asked) for asked in there[key].masks]
    else:
        there[key], drawn = _record(run, execution, names, images, latents, masks)
    logits, *changed = there[key].call(*_inputs(run, names, images, latents, drawn))
    for name in run.statistics:
        if name in names:
            run.statistics[name] = changed[names.index(name)].detach().clone()
        else:
            run.statistics[name] += 1
    return logits


def _inputs(
    run: BlocksTogether, names: list[str], images: Tensor, latents: Tensor, masks: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    return (images, latents, *run.weights.values(), *(run.statistics[name] for name in names), *masks)


def _record(
    run: BlocksTogether, execution: str, names: list[str], images: Tensor, latents: Tensor, masks: MaskSource
) -> tuple[_Recorded, list[Tensor]]:
    """Run once to see which masks are drawn, and make the function; return both, and the masks."""
    asked: list[tuple[tuple[int, ...], float, torch.dtype]] = []
    drawn: list[Tensor] = []

    def listen(shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
        asked.append((tuple(shape), rate, dtype))
        drawn.append(masks(shape, rate, dtype))
        return drawn[-1]

    weights, count = list(run.weights), run.count
    # the layers without their weights: with them the record would hold the block that it is kept for as long as
    structure = copy.deepcopy(run.blocks[0]).to("meta")
    counts = {name: value for name, value in run.statistics.items() if name not in names}
    with torch.no_grad():
        BlocksTogether.copied(run.blocks).logits(images, latents, listen)

    def whole(images: Tensor, latents: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        values = iter(given)
        again = BlocksTogether(
            [structure] * count,
            {name: next(values) for name in weights},
            {
                **{name: value.clone() for name, value in counts.items()},
                **{name: next(values).clone() for name in names},
            },
        )
        logits = again.logits(images, latents, lambda *_: next(values))
        return (logits, *(again.statistics[name] for name in names))

    return _Recorded(WRAPPERS[execution](whole, _inputs(run, names, images, latents, drawn)), asked), drawn
