"""`ternarize`: a net of trits from a module of the user's."""

import copy
from typing import Any

from torch import nn

from sidestep.errors import InputError
from sidestep.nets.dropout import Dropout
from sidestep.nets.ternary.layers import (
    TernaryConv2d,
    TernaryEmbedding,
    TernaryLayer,
    TernaryLinear,
    ternary_parameters,
)
from sidestep.noise import Noise

__all__ = ["ternarize"]

NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm2d)  # taken over without their scales and shifts
_ONE_NET = "a directional derivative needs one fixed net; leave it out"
REFUSED: dict[type, str] = {
    nn.modules.batchnorm._BatchNorm: "no probe moves its running statistics; use nn.GroupNorm or nn.LayerNorm",
    nn.modules.dropout._DropoutNd: _ONE_NET,
    Dropout: _ONE_NET,
    nn.MultiheadAttention: "its weights are plain parameters; build attention from nn.Linear layers and a softmax",
    nn.RNNBase: "its weights are plain parameters; build the recurrence from nn.Linear layers",
    nn.modules.conv._ConvTransposeNd: "there is no ternary form of it yet; use nn.Upsample and nn.Conv2d",
    nn.Conv1d: "there is no ternary form of it; use nn.Conv2d on (batch, channels, 1, length)",
    nn.modules.lazy.LazyModuleMixin: "its shape is not known yet; run the module on a batch first, or give its sizes",
}


def ternarize(module: nn.Module, noise: Noise) -> nn.Module:
    """Return a copy of `module` whose linear, convolution and embedding layers hold only trits, drawn from `noise`.

    Layer, RMS, group and instance norms lose their scales and shifts. Modules of the user's stay, if they have no
    parameters of their own outside of such layers; so do layers whose parameters are all frozen, with their floats.

    Raises:
        InputError: naming the layer that has no ternary form, and what to do.

    >>> ternarize(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), Noise(0))[0].weight.dtype
    torch.int8
    """
    _check_kept(module)
    twin = copy.deepcopy(module)
    if (replaced := _ternary_form("the module itself", twin)) is not None:
        twin = replaced
    else:
        _replace_children(twin, "", {})
    for index, layer in enumerate(layer for layer in twin.modules() if isinstance(layer, TernaryLayer)):
        layer.draw(noise.sub(index))
    ternary_parameters(twin)
    return twin


def _check_kept(module: nn.Module) -> None:
    """Raise InputError for what a layer has and its ternary form would drop without a word: hooks, shared weights."""
    seen: dict[int, str] = {}
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        replaced = isinstance(layer, (nn.Linear, nn.Conv2d, nn.Embedding, *NORMS))
        if replaced and (layer._forward_pre_hooks or layer._forward_hooks) and not _is_lazy(layer):
            raise InputError(
                f"layer {name or 'the module itself'} ({kind}) cannot be ternary: it has hooks, as weight or spectral "
                "norm leave them, which a ternary layer does not run; remove them first"
            )
        for own, parameter in layer.named_parameters(recurse=False):
            here = f"{name}.{own}".lstrip(".")
            if seen.setdefault(id(parameter), here) != here:
                raise InputError(
                    f"{here} and {seen[id(parameter)]} are one parameter, and would become two: use one layer in both "
                    "places, or give each layer weights of its own"
                )


def _is_lazy(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.lazy.LazyModuleMixin)


def _replace_children(module: nn.Module, prefix: str, made: dict[nn.Module, nn.Module]) -> None:
    """Replace what has a ternary form below `module`; `made` knows what took a layer's place elsewhere."""
    own = [name for name, parameter in module.named_parameters(recurse=False) if parameter.requires_grad]
    if own and not isinstance(module, TernaryLayer):
        raise InputError(
            f"{prefix.rstrip('.') or 'the module itself'} ({type(module).__name__}) holds the parameter {own[0]} "
            "itself, which has no ternary form: put it into a linear, convolution or embedding layer"
        )
    for name, child in list(module._modules.items()):
        if child is None:
            continue
        replaced = made.get(child) or _ternary_form(prefix + name, child)
        if replaced is not None:
            made[child] = replaced
            setattr(module, name, replaced)
        elif not isinstance(child, TernaryLayer):
            _replace_children(child, f"{prefix}{name}.", made)


def _ternary_form(name: str, layer: nn.Module) -> nn.Module | None:
    """Return what takes the layer's place, or None if it stays, as a frozen one does."""
    kind = type(layer).__name__
    if _is_frozen(name, layer):
        return None
    for refused, reason in REFUSED.items():
        if isinstance(layer, refused):
            raise InputError(f"layer {name} ({kind}) cannot be ternary: {reason}")
    if type(layer) is nn.Linear:
        return TernaryLinear(layer.in_features, layer.out_features, layer.bias is not None)
    if type(layer) is nn.Conv2d:
        return _ternary_convolution(name, layer)
    if type(layer) is nn.Embedding:
        if layer.padding_idx is not None or layer.max_norm is not None:
            raise InputError(f"layer {name} (Embedding) cannot be ternary with a padding_idx or a max_norm")
        return TernaryEmbedding(layer.num_embeddings, layer.embedding_dim)
    if type(layer) in NORMS:
        return _plain_norm(name, layer)
    if any(True for _ in layer.parameters(recurse=False)) and not isinstance(layer, TernaryLayer):
        raise InputError(
            f"layer {name} ({kind}) cannot be ternary: it has parameters of its own; there are ternary nn.Linear, "
            "nn.Conv2d and nn.Embedding, of exactly these types and without parametrisations, and "
            f"{', '.join(norm.__name__ for norm in NORMS)} without theirs"
        )
    return None


def _is_frozen(name: str, layer: nn.Module) -> bool:
    """Whether a layer has parameters, and all of them are frozen."""
    own = [] if isinstance(layer, TernaryLayer) else list(layer.parameters(recurse=False))
    frozen = [parameter for parameter in own if not parameter.requires_grad]
    if frozen and len(frozen) < len(own) and not isinstance(layer, NORMS):
        raise InputError(
            f"layer {name} ({type(layer).__name__}) is frozen in part, and a ternary layer is trained as a whole: "
            "freeze all of its parameters, which keeps it as it is, or none"
        )
    return bool(frozen) and len(frozen) == len(own)


def _ternary_convolution(name: str, layer: nn.Conv2d) -> nn.Module:
    if layer.padding_mode != "zeros":
        raise InputError(f"layer {name} (Conv2d) cannot be ternary: padding_mode {layer.padding_mode!r}; use 'zeros'")
    pairs: dict[str, Any] = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
    kernel = (layer.kernel_size[0], layer.kernel_size[1])
    return TernaryConv2d(layer.in_channels, layer.out_channels, kernel, bias=layer.bias is not None, **pairs)


def _plain_norm(name: str, layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.LayerNorm):
        return nn.LayerNorm(layer.normalized_shape, layer.eps, elementwise_affine=False)
    if isinstance(layer, nn.RMSNorm):
        return nn.RMSNorm(list(layer.normalized_shape), layer.eps, elementwise_affine=False)
    if isinstance(layer, nn.GroupNorm):
        return nn.GroupNorm(layer.num_groups, layer.num_channels, layer.eps, affine=False)
    assert isinstance(layer, nn.InstanceNorm2d)
    if layer.track_running_stats:
        raise InputError(f"layer {name} (InstanceNorm2d) keeps running statistics: leave track_running_stats out")
    return nn.InstanceNorm2d(layer.num_features, layer.eps)
