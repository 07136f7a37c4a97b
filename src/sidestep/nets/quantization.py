"""`quantize`: weights of a module as whole numbers; `dequantize`: as floats again."""

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from sidestep.checks import check_range
from sidestep.errors import InputError
from sidestep.nets.quantized import (
    QuantizedConv2d,
    QuantizedEmbedding,
    QuantizedLayer,
    QuantizedLinear,
    dequantized,
    tiles,
)

__all__ = ["dequantize", "quantize"]

_TRIED = 24  # scales, where a few whole numbers are to stand for a row
Made = tuple[nn.Parameter, nn.Parameter]  # whole numbers and their scales


def quantize(module: nn.Module, bits: Literal[8, 4, 2] = 8, headroom: float = 1.0) -> nn.Module:
    """Put whole numbers in the place of a module's linear, convolution and embedding weights, and return the module.

        w_rj = s_r q_rj          q_rj = round(w_rj / s_r), |q_rj| <= limit = 2^(bits - 1) - 1
        s_r  = headroom max_j |w_rj| / limit; below 8 bits the one of 24 between that and an eighth of it whose squared
               error over the row is least, times headroom

    The module is changed in place, one layer after another, unless it is itself such a layer. Weights are held as int8
    whatever the bits; with bits = 2 they are trits. Biases, norms and all other layers stay floats. `SPSA` trains such
    a module without any float copy of its weights; what was frozen stays (later, a layer's `moves = False` freezes it,
    and `requires_grad_` does not), and weights that two layers share stay one. Layers of exactly the types nn.Linear,
    nn.Conv2d (with zeros as padding) and nn.Embedding (without max_norm) are taken, and the Conv1D of transformers'
    GPT-2, which is a linear layer that holds its weights transposed: here a row is an output, as elsewhere.
    `dequantize` is the way back.

    Args:
        module: in floats.
        bits: 8, 4 or 2.
        headroom: how far a weight may grow, as a multiple of the largest of its row.

    Raises:
        InputError: for a module with no such layer, or whose layers have hooks, buffers or no floats.

    >>> from sidestep.noise import Noise
    >>> with Noise(0).torch_seeded():
    ...     net = quantize(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> net[0].weight.dtype, int(net[0].weight.abs().max())
    (torch.int8, 127)

    Source: of weights trained so, Xu et al., "Quantized evolution strategies" (2026).
    """
    if bits not in (8, 4, 2):
        raise InputError(f"bits must be 8, 4 or 2 (trits), got {bits!r}")
    check_range(1.0, 64.0, headroom=headroom)
    made: dict[int, Made] = {}
    _check(module)
    whole = _form(module, bits, headroom, made) if _is_taken(module) else None
    if whole is None:
        _replace(module, bits, headroom, made, {})
    if not made:
        kinds = sorted({type(part).__name__ for part in module.modules() if part._parameters}) or ["none"]
        raise InputError(
            "the module has nothing to quantise: nn.Linear, nn.Conv2d, nn.Embedding, of exactly these types, and "
            f"transformers' Conv1D are taken, and its layers with parameters are {', '.join(kinds)}; put one of those "
            "in, or train it as it is"
        )
    return module if whole is None else whole


def dequantize(module: nn.Module) -> nn.Module:
    """Put float layers in the place of a module's quantised ones, and return the module: `quantize` the other way.

        w_rj = s_r q_rj          of the type of s; in a Conv1D of transformers' GPT-2 transposed, (inputs, outputs)

    The module is changed in place, unless it is itself such a layer. nn.Linear, nn.Conv2d, nn.Embedding and Conv1D come
    back with the weights and biases of now. Weights that two layers share stay one, and want a gradient if a rule could
    move them (`moves` of one of these layers). Outputs are the same but for the order of sums, in the type of the
    weights. So a model that was trained in whole numbers goes where others go: to `save_pretrained`, to ONNX, to a rule
    that takes floats.

    Args:
        module: with layers that `quantize` made.

    Raises:
        InputError: for a module with no quantised layer, or where one of them has hooks.

    >>> net = dequantize(quantize(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))))
    >>> net[0], net[0].weight.dtype
    (Linear(in_features=4, out_features=3, bias=True), torch.float32)
    """
    found = {name: part for name, part in module.named_modules() if isinstance(part, QuantizedLayer)}
    if not found:
        kinds = sorted({type(part).__name__ for part in module.modules() if part._parameters}) or ["none"]
        raise InputError(
            "the module has no quantised layers: dequantize takes what quantize made, and the layers with parameters "
            f"here are {', '.join(kinds)}"
        )
    for name, layer in found.items():
        _check_hooks(f"layer {name or 'the module itself'} ({type(layer).__name__})", layer)
    moved = {id(layer.weight) for layer in found.values() if layer.moves}
    made: dict[int, nn.Parameter] = {}
    forms = {layer: _floats(layer, id(layer.weight) in moved, made) for layer in found.values()}
    for part in list(module.modules()):
        for name, child in part._modules.items():
            if isinstance(child, QuantizedLayer):
                part._modules[name] = forms[child]
    return forms[module] if isinstance(module, QuantizedLayer) else module


def _floats(layer: QuantizedLayer, moves: bool, made: dict[int, nn.Parameter]) -> nn.Module:
    """Return what a quantised layer was, with its weights of now; `made` holds those that others share with it."""
    own: Any = layer
    (rows, columns), biased = own.weight.shape[:2], own.bias is not None
    with torch.device("meta"):  # no values, so that nothing is drawn
        if isinstance(layer, QuantizedConv2d):
            place = {"stride": own.stride, "padding": own.padding, "dilation": own.dilation, "groups": own.groups}
            form: Any = nn.Conv2d(columns * own.groups, rows, tuple(own.weight.shape[2:]), **place, bias=biased)
        elif isinstance(layer, QuantizedEmbedding):
            form = nn.Embedding(rows, columns, own.padding_idx)
        else:
            form = own.conv1d(rows, columns) if own.conv1d else nn.Linear(columns, rows, biased)
    if id(layer.weight) not in made:
        whole = dequantized(layer.weight.detach(), layer.scale.detach(), 0, rows)
        made[id(layer.weight)] = nn.Parameter(whole.t().contiguous() if _is_transposed(form) else whole, moves)
    form.weight = made[id(layer.weight)]
    if biased:
        form.bias = layer.bias
    return cast(nn.Module, form.train(layer.training))


def _replace(  # long: what was made already
    module: nn.Module, bits: int, headroom: float, made: dict[int, Made], forms: dict[nn.Module, nn.Module]
) -> None:
    """Replace what is taken below `module`; `forms` knows what took a layer's place elsewhere."""
    for name, child in list(module._modules.items()):
        if child is None or isinstance(child, QuantizedLayer):
            continue
        if not _is_taken(child):
            _replace(child, bits, headroom, made, forms)
            continue
        if child not in forms:
            forms[child] = _form(child, bits, headroom, made)
        setattr(module, name, forms[child])


def _is_taken(layer: nn.Module) -> bool:
    """Return whether a layer has a quantised form."""
    padded = isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros"
    bounded = isinstance(layer, nn.Embedding) and layer.max_norm is not None
    return (type(layer) in (nn.Linear, nn.Conv2d, nn.Embedding) or _is_transposed(layer)) and not padded and not bounded


def _is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer is the Conv1D of transformers, `y = x W + b`, W (inputs, outputs); nothing is imported."""
    return (type(layer).__module__, type(layer).__name__) == ("transformers.pytorch_utils", "Conv1D")


def _check(module: nn.Module) -> None:
    """Raise InputError for what cannot be quantised, before anything is changed."""
    first: dict[int, tuple[bool, str]] = {}  # weight -> whether its rows are inputs, and in which layer it is first
    for name, layer in module.named_modules():
        where = f"layer {name or 'the module itself'} ({type(layer).__name__})"
        if isinstance(layer, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            raise InputError(
                f"{where} reads the weights of its parts itself, as floats; build the block from nn.Linear layers and "
                "scaled_dot_product_attention"
            )
        if not _is_taken(layer):
            continue
        own: Any = layer
        _check_hooks(where, layer)
        turned, other = first.setdefault(id(own.weight), (_is_transposed(layer), where))
        if turned != _is_transposed(layer):
            raise InputError(f"{where} shares its weights with {other}, which reads them transposed; give each its own")
        if not own.weight.is_floating_point():
            raise InputError(
                f"{where} has weights of {own.weight.dtype}, and only floats are quantised; give the module in "
                "float32, module.float()"
            )
        if not bool(own.weight.isfinite().all()):
            raise InputError(f"{where} has weights that are infinite or no numbers")


def _check_hooks(where: str, layer: nn.Module) -> None:
    """Raise InputError for what is kept in a layer, and what takes its place would not run."""
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        raise InputError(f"{where} has hooks, which what takes its place would not run; remove them first")
    if "forward" in vars(layer):
        raise InputError(f"{where} has a forward that was set from outside, and what takes its place would not run it")
    if layer._modules or layer._buffers:
        raise InputError(f"{where} has buffers or parts besides its weights, which what takes its place would not have")


def _form(layer: nn.Module, bits: int, headroom: float, made: dict[int, Made]) -> QuantizedLayer:
    """Return what takes the layer's place."""
    own: Any = layer
    if id(own.weight) not in made:
        rows = own.weight.detach().t() if _is_transposed(layer) else own.weight.detach()
        made[id(own.weight)] = _rounded(rows, 2 ** (bits - 1) - 1, headroom)
    weight, scale = made[id(own.weight)]
    if type(layer) is nn.Conv2d:
        found: QuantizedLayer = QuantizedConv2d(weight, scale, layer.bias, bits, layer)
    elif type(layer) is nn.Embedding:
        found = QuantizedEmbedding(weight, scale, None, bits)
        found.padding_idx = own.padding_idx
    else:
        found = QuantizedLinear(weight, scale, own.bias, bits)
        found.conv1d = type(layer) if _is_transposed(layer) else None
    found.moves = own.weight.requires_grad
    return found.train(layer.training)


def _rounded(weight: Tensor, limit: int, headroom: float) -> Made:
    whole = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = _scales(weight, limit, headroom).to(weight.dtype)
    kind = torch.finfo(weight.dtype)
    scale.clamp_(min=kind.smallest_normal * kind.eps)  # in float16, what small weights want may be 0
    for rows in tiles(weight):
        own = scale[rows].view(-1, *[1] * (weight.ndim - 1))
        whole[rows] = (weight[rows].float() / own.float()).round_().clamp_(-limit, limit).to(torch.int8)
    return nn.Parameter(whole, requires_grad=False), nn.Parameter(scale, requires_grad=False)


def _scales(weight: Tensor, limit: int, headroom: float) -> Tensor:
    """Return s, (rows,), at least float32. A row of zeros gets the mean of the others, or that of fresh weights."""
    flat = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
    most = flat.abs().amax(dim=1)
    fresh = flat.shape[1] ** -0.5
    most = torch.where(most > 0, most, most[most > 0].mean() if bool((most > 0).any()) else fresh)
    best = most / limit
    if limit < 127:
        least = torch.full_like(best, torch.inf)
        for share in torch.linspace(1, 1 / 8, _TRIED).tolist():
            tried = most * share / limit
            back = (flat / tried[:, None]).round_().clamp_(-limit, limit).mul_(tried[:, None])
            error = (back - flat).square().sum(dim=1)
            best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return best * headroom
