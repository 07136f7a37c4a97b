"""Local losses by forward mode alone: directional derivatives of each example's loss along directions on a stage's z.

    z = W x        alpha_k = d loss / d z along u_k, for each example        g_z = sum_k alpha_k u_k / |u_k|^2 n / K
    g_W = mean over examples of g_z x^T        g_head = mean of (d loss / d logits) features^T

Only the tail of the stage (pooling, norm, ReLU, head) has tangents; no reverse derivative is taken and no graph is
recorded. Directions of an example are orthogonal: fair signs on the units i with i % K = k, which span what rows 0 to
K - 1 of a Hadamard matrix of a power of two span, times the same signs. The estimate is a projection on that span
times n / K, hence the same for both, with squared error (n / K - 1) |g_z|^2 in the mean: least for K directions whose
distribution prefers none. With K = n they are a complete set, and g_z is exact.

The loss's derivative by the logits is known, not taken. Source: Ren et al., "Scaling forward gradient with local
losses" (2022).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.data.objective import CLASSES, Objective
from sidestep.errors import InputError
from sidestep.gradients.activities import cotangent, tangent_of
from sidestep.gradients.forward_mode import forward_mode
from sidestep.gradients.probed_tail import Guide, ProbedTail
from sidestep.gradients.ternary_directions import weight_gradients
from sidestep.nets.precision import at_least_float32, full_precision
from sidestep.nets.ternary.layers import TernaryConv2d, TernaryLayer, TernaryLinear
from sidestep.nets.ternary.nets import ChannelsLast, GridAverage, TernaryNet
from sidestep.nets.user_modules import parts_in_order
from sidestep.noise import Noise

__all__ = ["LocalProbes", "check_local_probes", "local_probe_gradients"]

_PLAIN = 64  # directions by default where each costs a pass of the tail


@dataclass(frozen=True)
class _Stage:
    """A stage and its head, cut at their layers, with the layers' names in the net."""

    before: list[nn.Module]
    name: str
    layer: TernaryLinear | TernaryConv2d
    after: list[nn.Module]
    to_head: list[nn.Module]
    head_name: str
    head: TernaryLinear

    @property
    def closed(self) -> bool:
        """Whether the tail is one whose tangents are known in closed form."""
        parts = [part for part in self.after if not isinstance(part, ChannelsLast)]
        if len(parts) < 2 or type(parts[-1]) is not nn.ReLU:
            return False
        pool, norm = parts[:-2], parts[-2]
        if isinstance(self.layer, TernaryConv2d):
            pools = not pool or (len(pool) == 1 and type(pool[0]) is nn.MaxPool2d)
            grid = [type(part) for part in self.to_head] == [GridAverage, nn.Flatten]
            return pools and grid and type(norm) is nn.GroupNorm and norm.num_groups == 1 and not norm.affine
        flat = not pool and not [part for part in self.to_head if type(part) is not nn.Flatten]
        return (
            flat
            and type(norm) is nn.LayerNorm
            and norm.weight is None
            and norm.normalized_shape == self.layer.shape[:1]
        )


@dataclass(frozen=True)
class LocalProbes:
    """What is drawn and what is judged.

    directions: K, per example and stage; None for a complete set where tangents have a closed form (layer norm, ReLU
        and a linear head), and otherwise 64, each of which costs a pass of the tail.
    guide: directions before the random ones, as in `ProbedTail.gradient`.
    label_smoothing: share of a class label that is spread over all classes.
    """

    directions: int | None = None
    guide: Guide = "none"
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class _Judge:
    """What the logits of a stage are compared with."""

    targets: Tensor
    objective: Objective
    label_smoothing: float

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return cotangent(logits, self.targets, self.objective, self.label_smoothing)


@dataclass(frozen=True)
class _Found:
    """What a stage's tail gave: features, what the head's layer saw, and the derivatives for its logits and for z."""

    features: Tensor
    seen: Tensor
    at_logits: Tensor
    at_outputs: Tensor
    loss: Tensor


def local_probe_gradients(
    net: TernaryNet,
    inputs: Tensor,
    targets: Tensor,
    noise: Noise,
    ways: LocalProbes,
    objective: Objective = CLASSES,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return parameter name -> estimate of the gradient of its stage's mean loss, and unit name -> that loss.

    Args:
        net: with a head on every stage.
        inputs: (batch, ...).
        targets: what the objective compares with.
        noise: stands at the step.
        ways: how many directions, and which.
        objective: what the stages' outputs are judged by.
    """
    judge = _Judge(targets, objective, ways.label_smoothing)
    gradients: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    for index, (stage, head) in enumerate(zip(net.stages, net.heads, strict=True)):
        parts = _cut(stage, head, index)
        given = _run(parts.before, inputs)
        outputs = at_least_float32(parts.layer(given))
        draws = noise.stream("local probes").stream(str(index))
        with full_precision(outputs), forward_mode(stage):
            found = (_closed if parts.closed else _plain)(parts, outputs, draws, ways, judge)
        for name, layer, x, derivative in (
            (parts.name, parts.layer, given, found.at_outputs),
            (parts.head_name, parts.head, found.seen, found.at_logits),
        ):
            each = weight_gradients(layer, _rows(x), _rows(derivative))
            gradients.update({f"{name}.{key}": gradient / len(x) for key, gradient in each.items()})
        losses[f"stage {index}: {objective.name}"] = found.loss
        inputs = found.features
    return gradients, losses


def check_local_probes(net: TernaryNet, shape: tuple[int, ...], ways: LocalProbes) -> None:
    """Raise InputError for stages that have no local probes, or fewer units than `directions`.

    Args:
        net: as built.
        shape: of one input.
        ways: a guide needs tails in closed form.
    """
    inputs = torch.zeros(1, *shape)
    for index, (stage, head) in enumerate(zip(net.stages, net.heads, strict=True)):
        parts = _cut(stage, head, index)
        for part in stage.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                raise InputError(
                    f"stage {index} has a norm over the batch ({type(part).__name__}), which makes examples depend on "
                    "each other; local-probes need one over an example's own features, such as LayerNorm or GroupNorm"
                )
        if ways.guide != "none" and not parts.closed:
            raise InputError(
                f"guide = {ways.guide} needs stages of a linear layer, LayerNorm without scales and ReLU, and stage "
                f"{index} is none; use guide = none"
            )
        outputs = parts.layer(_run(parts.before, inputs))
        count = _rows(outputs)[0].numel()
        if ways.directions is not None and ways.directions > count:
            raise InputError(
                f"directions must be at most the outputs of a stage's layer, and stage {index} has "
                f"{count}, got {ways.directions}: {count} are a complete set there, which gives "
                "the exact local gradient; leave directions out to have it"
            )
        inputs = _run(parts.after, outputs)


def _closed(parts: _Stage, outputs: Tensor, noise: Noise, ways: LocalProbes, judge: _Judge) -> _Found:
    """By `ProbedTail`; a place that its pooling leaves out has no derivative, so it gets no direction."""
    norm = parts.after[-2]
    assert isinstance(norm, nn.LayerNorm | nn.GroupNorm)
    pooled, places = outputs, None
    for part in parts.after[:-2]:
        if isinstance(part, nn.MaxPool2d):
            how = (part.kernel_size, part.stride, part.padding, part.dilation, part.ceil_mode)
            pooled, places = F.max_pool2d(outputs, *how, return_indices=True)
    flat = _flat(pooled)
    normed, _, scale = torch.native_layer_norm(flat, flat.shape[1:], None, None, norm.eps)
    features = normed.relu()
    matrix = _matrix(parts, pooled, flat)
    shaped = _shaped(features, pooled)
    seen = _run(parts.to_head, shaped)
    at_logits, loss = judge(parts.head(seen))
    count = flat.shape[1]
    groups = min(ways.directions or count, count)
    signs = None if groups == count else noise.signs(flat.numel(), device=flat.device).view_as(flat).to(flat.dtype)
    feedback = None
    if ways.guide == "feedback":  # the same at every step
        fixed = noise.at(0).stream("feedback").signs(matrix.numel(), device=flat.device)
        feedback = fixed.view_as(matrix).to(flat.dtype)
    tail = ProbedTail(normed, scale, matrix, _rows(at_logits))
    upstream = tail.gradient(signs, groups, ways.guide, feedback)
    if places is not None:
        batch, channels, height, width = outputs.shape
        rows = torch.zeros(batch, height * width, channels, dtype=flat.dtype, device=flat.device)
        chosen = places.movedim(1, -1).flatten(1, 2)
        upstream = rows.scatter_add_(1, chosen, upstream.view(chosen.shape)).flatten(1)
    return _Found(shaped, seen, at_logits, _shaped(upstream, outputs), loss)


def _plain(parts: _Stage, outputs: Tensor, noise: Noise, ways: LocalProbes, judge: _Judge) -> _Found:
    """For any tail: one pass with tangents for each direction, and one direction in memory at a time."""
    features = _run(parts.after, outputs)
    seen = _run(parts.to_head, features)
    at_logits, loss = judge(parts.head(seen))
    count = outputs[0].numel()
    groups = min(ways.directions or _PLAIN, count)
    signs = noise.signs(outputs.numel(), device=outputs.device).view(-1, count).to(outputs.dtype)
    tail = nn.Sequential(*parts.after, *parts.to_head, parts.head)
    found = torch.zeros_like(signs)
    for group in range(groups):
        direction = torch.zeros_like(signs)
        direction[:, group::groups] = signs[:, group::groups]
        _, tangent = tangent_of(tail, outputs, direction.view_as(outputs))
        found.addcmul_(direction, (tangent * at_logits).sum(dim=1, keepdim=True))
    return _Found(features, seen, at_logits, found.view_as(outputs), loss)


def _matrix(parts: _Stage, pooled: Tensor, flat: Tensor) -> Tensor:
    """What takes a stage's features, as `_flat` orders them, to its logits, without the bias: (m, n)."""
    trits = parts.head.trits("weight", flat)
    assert trits is not None
    if not isinstance(parts.layer, TernaryConv2d):
        return trits * parts.head.scale
    grid = parts.to_head[0]
    assert isinstance(grid, GridAverage)
    windows = grid.windows(pooled).mul(parts.head.scale)  # (places, pixels)
    rows = trits.view(len(trits), len(windows), -1)
    return torch.einsum("pl,mpc->mlc", windows, rows).flatten(1)


def _flat(images: Tensor) -> Tensor:
    """(batch, n), with the channels last, as a CPU's convolutions have them in memory; of tokens, a row a place."""
    return images.movedim(1, -1).flatten(1) if images.ndim == 4 else _rows(images)


def _rows(features: Tensor) -> Tensor:
    """Features (batch, length, n) of tokens as (batch x length, n): a stage's tail works at one place."""
    return features.flatten(0, 1) if features.ndim == 3 else features


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """The opposite of `_flat`."""
    if like.ndim != 4:
        return flat.view_as(like) if like.ndim == 3 else flat
    batch, channels, height, width = like.shape
    return flat.view(batch, height, width, channels).movedim(-1, 1)


def _run(parts: list[nn.Module], inputs: Tensor) -> Tensor:
    for part in parts:
        inputs = part(inputs)
    return inputs


def _cut(stage: nn.Module, head: nn.Module, index: int) -> _Stage:
    parts = _named(stage, f"stages.{index}")
    places = [place for place, (_, part) in enumerate(parts) if isinstance(part, TernaryLayer)]
    *to_head, (head_name, last) = _named(head, f"heads.{index}")
    name, layer = parts[places[0]] if len(places) == 1 else ("", stage)
    known = isinstance(layer, TernaryLinear) or (
        isinstance(layer, TernaryConv2d) and layer.groups == 1 and not isinstance(layer.padding, str)
    )
    inside = sum(isinstance(part, TernaryLayer) for part in stage.modules())
    if not (known and inside == 1 and isinstance(last, TernaryLinear)):
        raise InputError(
            f"stage {index} has no one linear or convolutional layer (without groups, padded by numbers) directly in "
            "an nn.Sequential, which local-probes need; write the module so, or use local-losses"
        )
    before, after = ([part for _, part in some] for some in (parts[: places[0]], parts[places[0] + 1 :]))
    assert isinstance(layer, TernaryLinear | TernaryConv2d)
    return _Stage(before, name, layer, after, [part for _, part in to_head], head_name, last)


def _named(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """What a chain runs, one after another, each with its name in the net."""
    if not parts_in_order(module):
        return [(name, module)]
    return [
        found for key, part in module._modules.items() if part is not None for found in _named(part, f"{name}.{key}")
    ]
