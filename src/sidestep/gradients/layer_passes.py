"""Forward passes of any module with the outputs of its dense layers changed on the way, and which layer feeds which.

A layer that is called several times in a pass, as at time steps, is changed at every call; what entered and left it is
summed. Which layer depends on which is found without looking into the module: one layer is shifted, and those that then
compute something else depend on it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.gradients.any_module import called
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.trained import device_of
from sidestep.noise import Noise

__all__ = ["OUTPUTS", "LayerGraph", "LayerPass", "Seen", "layer_graph", "layer_pass", "spread_of"]

OUTPUTS = ""  # stands for the net's outputs, where a layer's name stands for that layer's
Change = Callable[[str, Tensor], Tensor]  # of a layer's name and its outputs


@dataclass
class Seen:
    """Sums over the calls of one layer in a pass: what entered it, and what left it before it was changed.

    tokens: (batch, tokens) where it saw a row for each token.
    """

    inputs: Tensor
    outputs: Tensor
    calls: int = 1
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class LayerPass:
    """One pass.

    outputs: of the net, (batch, k).
    seen: by layer, in the order of first calls.
    last: the layer whose changed outputs are the net's, with nothing in between, not even in place; OUTPUTS if there is
        none.
    statistics: buffers that the module would have changed; they are as before.
    """

    outputs: Tensor
    seen: dict[str, Seen]
    last: str
    statistics: dict[str, Tensor]


@dataclass(frozen=True)
class LayerGraph:
    """What depends on what.

    order: of first calls.
    sources: of every layer and OUTPUTS the earlier layers that it depends on; those without any are left out.
    last: as in LayerPass.
    """

    order: tuple[str, ...]
    sources: dict[str, tuple[str, ...]]
    last: str


def layer_pass(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any, noise: Noise, change: Change
) -> LayerPass:
    """Run a module with changed layers; what it draws itself follows from `noise`.

    Raises InputError for a layer that does not see one row for each example, or outputs that are not (batch, k).
    """
    seen: dict[str, Seen] = {}
    returned: dict[str, tuple[Tensor, int | None]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def changed(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            _note(seen, name, given[0], output)
            given_on = change(name, output)
            returned[name] = given_on, _version_of(given_on)
            return given_on

        return changed

    hooks = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        with kept_statistics(model) as statistics, noise.stream("module").torch_seeded(device_of(model)):
            outputs = called(model, inputs, "wrap the model so that it gives one")
            kept = statistics()
    finally:
        for each in hooks:
            each.remove()
    _check(outputs, seen)
    same = [
        name for name, (tensor, version) in returned.items() if tensor is outputs and _version_of(tensor) == version
    ]
    last = next((name for name in same if seen[name].calls == 1), OUTPUTS)
    return LayerPass(outputs, seen, last, kept)


def layer_graph(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any, noise: Noise) -> LayerGraph:
    """Find which layer depends on which, by one pass as it is, and one for each layer in which that layer is shifted.

    A layer whose shift by a standard deviation changes nothing is taken to feed all later ones, since for other inputs
    or weights it may.
    """
    plain = layer_pass(model, layers, inputs, noise, lambda _, output: output)
    order = tuple(plain.seen)
    sources: dict[str, list[str]] = {name: [] for name in (*order, OUTPUTS)}
    for place, source in enumerate(order):
        shifted = layer_pass(model, layers, inputs, noise, _shift_of(source, noise))
        later = [name for name in order[place + 1 :] if name in shifted.seen]
        found = [name for name in later if not torch.equal(shifted.seen[name].outputs, plain.seen[name].outputs)]
        if not torch.equal(shifted.outputs, plain.outputs):
            found.append(OUTPUTS)
        for name in found or [*later, OUTPUTS]:
            sources[name].append(source)
    return LayerGraph(order, {name: tuple(own) for name, own in sources.items() if own}, plain.last)


def spread_of(outputs: Tensor) -> Tensor:
    """Return the standard deviation of a layer's outputs, (), never 0."""
    return outputs.std(correction=0).clamp_min(1e-3)


def _version_of(tensor: Tensor) -> int | None:
    """Return how often a tensor was written to in place."""
    return None if tensor.is_inference() else tensor._version


def _shift_of(source: str, noise: Noise) -> Change:
    """Shift one layer, by the same at every call."""

    def change(name: str, output: Tensor) -> Tensor:
        if name != source:
            return output
        signs = noise.stream(name).signs(output.numel(), device=output.device).view_as(output)
        return output + spread_of(output) * signs.to(output.dtype)

    return change


def _note(seen: dict[str, Seen], name: str, rows: Tensor, output: Tensor) -> None:
    if rows.ndim not in (2, 3):
        raise InputError(
            f"layer {name} is given shape {tuple(rows.shape)}; it can be trained so where it sees one row for "
            "each example, (batch, features), or for each token, (batch, tokens, features); freeze it, or take a rule "
            "that shifts weights"
        )
    shape = tuple(rows.shape[:-1]) if rows.ndim == 3 else ()
    rows, output = rows.flatten(0, -2), output.flatten(0, -2)
    if name in seen:
        seen[name].inputs, seen[name].outputs = seen[name].inputs + rows, seen[name].outputs + output
        seen[name].calls += 1
    else:
        seen[name] = Seen(rows, output, tokens=shape)


def _check(outputs: Tensor, seen: dict[str, Seen]) -> None:
    if outputs.ndim not in (2, 3):
        raise InputError(
            f"the model must give outputs (batch, k), or (batch, tokens, k), got shape {tuple(outputs.shape)}"
        )
    rows = outputs[..., 0].numel()
    if not seen:
        raise InputError("the model called none of its trained layers for this batch; let its forward call them")
    for name, own in seen.items():
        if len(own.outputs) != rows:
            kind = "examples" if outputs.ndim == 2 else "tokens"
            raise InputError(
                f"layer {name} saw {len(own.outputs)} rows for {rows} {kind}; call it with one row for each, or freeze "
                "it"
            )
        if own.tokens and own.tokens != tuple(outputs.shape[:-1]):
            raise InputError(
                f"layer {name} saw rows in the order {own.tokens}, and the outputs have theirs in the order "
                f"{tuple(outputs.shape[:-1])}; give both as (batch, tokens), as with batch_first=True"
            )
