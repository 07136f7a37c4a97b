"""Which of the suite's nets a rule can have, by what it declares, and what then differs from the other rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import nn

from sidestep.nets.stages.layerwise import Norm, layerwise_stages
from sidestep.nets.ternary.nets import ChannelsLast, GridAverage
from sidestep.presets.matched import COMMON, MatchedRule, Net
from sidestep.rules import RULES, Rule

__all__ = ["Fitted", "NoFit", "fitted", "hidden_of"]


@dataclass(frozen=True)
class Fitted:
    """A rule on a net of the suite."""

    options: Mapping[str, Any]  # of the rule's fields, before the search
    module: Callable[[], nn.Module] | None  # in place of the rule's hidden layers
    differs: tuple[str, ...]  # in words; nothing where all is matched


@dataclass(frozen=True)
class NoFit:
    """A rule that cannot have a net."""

    why: str


def hidden_of(net: Net, data: str) -> tuple[int, ...]:
    """Return the widths of a net on a data set."""
    return net.hidden.get(data, net.hidden.get("", ()))


def fitted(row: MatchedRule, net: Net, data: str, shape: tuple[int, ...]) -> Fitted | NoFit:
    """Return how a row trains a net, or why it cannot.

    Args:
        row: of the suite.
        net: likewise.
        data: name of the data set.
        shape: of an example.
    """
    kind = RULES[row.rule]
    fields = get_type_hints(kind)
    options: dict[str, Any] = {name: value for name, value in COMMON.items() if name in fields}
    differs = [f"no {name.replace('_', ' ')}" for name in COMMON if name not in fields]
    module = None
    if net.kind in row.unfit:
        return NoFit(row.unfit[net.kind])
    if net.kind not in row.nets:
        return NoFit("the suite has this row on other nets")
    if net.kind == "blocks":
        found = _blocks(kind, fields, net)
    else:
        found = _stages(row, kind, fields, net, hidden_of(net, data))
    if isinstance(found, NoFit):
        return found
    options |= found
    if net.kind == "blocks" and "blocks" not in fields:  # a block for all times has the paper's: none; or one
        differs.append("batch norm at the image path's end alone" if "norm" in row.options else "no batch norm")
    if net.kind != "blocks" and options.get("net") != "linear":
        norm = _norm(fields)
        differs += [] if norm == "batch" else ["layer norm" if norm else "norm of its own"]
        options |= {"norm": "batch"} if norm == "batch" and options.get("net") == "mlp" and not row.own_net else {}
        if net.kind == "conv" and kind.takes.module in ("any", "stages") and not row.own_net:
            module = partial(_conv, shape, hidden_of(net, data), norm or "layer", kind.takes.module == "any")
        elif net.kind == "conv":
            differs.append("convolutions of its own")
    options |= {**row.options, **row.on.get(net.kind, {})}
    read = [f"read by {row.reading}"] if row.reading else []
    return Fitted(options, module, tuple(dict.fromkeys([*differs, *row.differs, *read])))


def _blocks(kind: type[Rule], fields: Mapping[str, Any], net: Net) -> dict[str, Any] | NoFit:
    """The options for blocks of the NoProp paper, of which some rules have one, and some as many as one says."""
    chain = "chained-blocks" in _choices(fields.get("net"))
    if "blocks" in fields:
        return {"blocks": net.blocks, **({"net": "chained-blocks"} if chain else {})}
    if kind.takes.module == "blocks":
        return {} if net.blocks == 1 else NoFit("it has one block for all times")
    return NoFit("its nets are stages, not blocks that see the image and a noisy label")


def _stages(
    row: MatchedRule, kind: type[Rule], fields: Mapping[str, Any], net: Net, hidden: tuple[int, ...]
) -> dict[str, Any] | NoFit:
    """The options for an MLP or a conv net."""
    if row.options.get("net") == "linear":
        return {"net": "linear"}
    if kind.takes.module == "blocks":
        return NoFit("it trains blocks that see the image and a noisy label, not stages")
    given = {"hidden": hidden} if "hidden" in fields else {}
    if net.kind in _choices(fields.get("net")):
        return {"net": net.kind, **given}
    if net.kind == "mlp" and "hidden" in fields:
        return given
    if kind.takes.module in ("any", "stages"):
        return {}
    return NoFit(kind.takes.no_module)


def _norm(fields: Mapping[str, Any]) -> Norm | None:
    """Which of the norms a rule's nets can have: batch before layer; or none that can be chosen."""
    return "batch" if "batch" in _choices(fields.get("norm")) else "layer" if fields.get("norm") is bool else None


def _choices(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) in (Union, UnionType):
        return tuple(choice for part in get_args(kind) for choice in _choices(part))
    return get_args(kind) if get_origin(kind) is Literal else ()


def _conv(shape: tuple[int, ...], hidden: tuple[int, ...], norm: Norm, whole: bool) -> nn.Sequential:
    """The conv stages; `whole`: with the averages over places that a head of stages takes."""
    layers = [layer for stage in layerwise_stages("conv", shape, hidden, norm) for layer in stage.children()]
    if norm == "layer":  # for the rules that have no other: without parameters, as their own, and in torch's own layout
        found = [n for n in layers if not isinstance(n, ChannelsLast)]
        layers = [nn.GroupNorm(1, n.num_channels, affine=False) if isinstance(n, nn.GroupNorm) else n for n in found]
    return nn.Sequential(*layers, *([GridAverage((4, 4)), nn.Flatten()] if whole else []))
