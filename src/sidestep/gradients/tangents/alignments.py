"""Alignments: the exact directional derivative of a net's loss along every probe.

    alpha_i = J nu_i = d/de L(w + e nu_i) at e = 0,     L the mean loss of the batch

Forward-mode differentiation after Brickner, "noise_step" (2024), section 2: no gradient by the weights exists, and a
probe is made again from its seed whenever it is needed. Three ways give the same numbers:

    any net              `torch.func.jvp` under `vmap`: plain forward mode, and the reference
    a chain, any probes  tangents carried from the first layer to the logits: forward mode
    a chain, sparse      mixed mode: the loss gradient is pushed back through the last layer, and the norm and ReLU
                         below it, once for all probes (`sidestep.gradients.tangents.columns`); the rest is forward mode

The last is taken where it is cheaper, so in most MLPs. Torch's reverse mode is called for a `loss` of yours
alone that is a plain function, and no objective.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp, vmap

from sidestep.data.objective import Objective
from sidestep.errors import InputError, NonFiniteError
from sidestep.gradients.tangents.chain import Chain, Direct, RankOneDirect, SparseDirect, carry, read_chain, walk
from sidestep.gradients.tangents.columns import columns_bytes, columns_cost, fold_columns
from sidestep.nets.precision import at_least_float32, full_precision, product_dtype
from sidestep.nets.substituted import functional_call
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.probes import Probes, RankOneProbes

__all__ = ["Loss", "alignments"]

Loss = Objective | Callable[[Tensor, Tensor], Tensor]

LEAST_MEMORY = 1 << 20
ENTRY_BYTES = 256  # what one non-zero takes for a moment while it is made
ENTRIES_MEMORY = 1 << 24  # more non-zeros at a time make nothing faster
CACHED = 48 << 20  # more tangents at a time make nothing faster on a processor
GENERIC_ACTIVATIONS = 6  # tensors of the size of the largest activation that are there at once, for each tangent


def alignments(
    net: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    probes: Probes,
    memory: int = 256 << 20,
    loss: Loss | None = None,
    taken: range | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the directional derivative of the loss along every probe, and the loss.

        alpha_i = sum_p dL/dw_p nu_ip,     L = mean cross-entropy of net(inputs) with labels

    Exact and with respect to the trits, so a layer's scale is in them. A chain of `TernaryLinear`, `nn.ReLU`,
    `nn.LayerNorm` without affine, `nn.Identity` and `nn.Flatten` takes a fast path, be it an `nn.Sequential` or a
    module whose `chain()` returns its modules in order; others go through `torch.func.jvp`, which has to know their
    operations. Under autocast matrix products are rounded to its dtype.

    Args:
        net: a module whose parameters are all trits; it is left as it was.
        inputs: (batch, ...), float32 or float64, as the net takes them.
        labels: (batch,), int64, or the targets that `loss` takes.
        probes: K probes over all weights of the net, in the order of `ternary_parameters`.
        memory: bytes for the tangents of probes that are worked on together, at least 1 MiB (and one probe): the speed,
            and the last bits of the result.
        loss: an objective, or a function to a mean, (), whose derivative by the logits is taken backwards; by default
            the cross-entropy.
        taken: numbers of consecutive probes, if these alone are asked for.

    Returns:
        alpha, (K,), and the loss, (): float64 for float64 inputs, else float32.

    Raises:
        InputError: if the net has other parameters than trits, if the probes are for another number of weights, or if
            `memory` is too small.
        NonFiniteError: if an alignment or the loss is not a finite number.

    >>> from sidestep.nets.ternary.convert import ternarize
    >>> from sidestep.noise import Noise
    >>> from sidestep.probes import SparseProbes
    >>> net = ternarize(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), Noise(0))
    >>> probes = SparseProbes(Noise(1), weights=17, count=4, density=0.2, exclusive=True)
    >>> alpha, value = alignments(net, torch.ones(5, 2), torch.zeros(5, dtype=torch.int64), probes)
    >>> alpha.shape, value.shape
    (torch.Size([4]), torch.Size([]))
    """
    weights = ternary_parameters(net)
    asked = _Asked(net, weights, inputs, labels, probes, memory, loss, taken or range(probes.count))
    asked.check()
    with torch.no_grad():
        chain = read_chain(net, weights, inputs)
        if chain is None:
            alpha, value = _through_any_net(asked)
        else:
            product = product_dtype(inputs)
            with full_precision(inputs):
                alpha, value = _through_chain(asked, chain, product)
    _check_finite(alpha, value)
    return alpha, value


@dataclass(frozen=True)
class _Asked:
    """What `alignments` was given."""

    net: nn.Module
    weights: dict[str, Tensor]
    inputs: Tensor
    labels: Tensor
    probes: Probes
    memory: int
    loss: Loss | None  # None: the mean cross-entropy
    taken: range

    def check(self) -> None:
        if self.memory < LEAST_MEMORY:
            raise InputError(f"memory must be at least 1 MiB = {LEAST_MEMORY:,} bytes, got {self.memory:,}")
        sizes = [weight.numel() for weight in self.weights.values()]
        if isinstance(self.probes, RankOneProbes):
            if [math.prod(shape) for shape in self.probes.shapes] != sizes:
                raise InputError(
                    f"rank-one probes need one shape for each of the {len(sizes)} parameters of the net, of {sizes} "
                    f"weights, got shapes {list(self.probes.shapes)}"
                )
        elif self.probes.weights != sum(sizes):
            raise InputError(f"the net has {sum(sizes):,} weights, but the probes are for {self.probes.weights:,}")

    @property
    def work(self) -> torch.dtype:
        return torch.float64 if self.inputs.dtype == torch.float64 else torch.float32

    @property
    def non_zeros(self) -> float:
        """How many there are in a probe, on average."""
        if isinstance(self.probes, RankOneProbes):
            return float(sum(math.prod(shape) for shape in self.probes.shapes))
        return max(1.0, self.probes.density * self.probes.weights)

    @property
    def most(self) -> int:  # bytes of tangents at a time from which on there is nothing to gain
        return CACHED if self.inputs.device.type == "cpu" else self.memory

    def chunks(self, probe_bytes: float, memory: float) -> Iterator[tuple[int, int]]:
        """Yield the first probe and the end of each chunk that fits into `memory`."""
        size = max(1, int(memory / probe_bytes))
        for first in range(self.taken.start, self.taken.stop, size):
            yield first, min(first + size, self.taken.stop)

    def loss_at(self, logits: Tensor) -> Tensor:
        mean = self.loss.mean if isinstance(self.loss, Objective) else self.loss
        return (mean or F.cross_entropy)(at_least_float32(logits), self.labels)

    def gradient_at(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient by the logits, (batch, classes), and the loss."""
        if isinstance(self.loss, Objective):
            slopes, value = self.loss.derivative(at_least_float32(logits), self.labels)
            return (slopes / len(logits)).to(logits.dtype), value
        if self.loss is not None:
            return torch.func.grad_and_value(self.loss_at)(logits)
        gradient = at_least_float32(logits).log_softmax(dim=1).exp_().mul_(1 / len(logits))
        gradient[torch.arange(len(logits), device=logits.device), self.labels] -= 1 / len(logits)
        return gradient.to(logits.dtype), self.loss_at(logits)


def _through_chain(asked: _Asked, chain: Chain, product: torch.dtype) -> tuple[Tensor, Tensor]:
    sizes = [(linear.shape[0], linear.shape[1]) for linear in chain.linears]
    kept = columns_bytes(sizes, len(asked.inputs), asked.work)
    if not isinstance(asked.probes, RankOneProbes) and kept < asked.memory:
        single, whole = columns_cost(sizes, asked.non_zeros / asked.probes.weights)
        if single < whole:
            return _by_columns(asked, chain, product, asked.memory - kept)
    return _by_tangents(asked, chain, product, sizes)


def _by_columns(asked: _Asked, chain: Chain, product: torch.dtype, memory: int) -> tuple[Tensor, Tensor]:
    """Sparse probes, in mixed mode: all that is shared is made once, then a tile of non-zeros after another."""
    steps = list(walk(chain, asked.inputs, product))
    gradient, value = asked.gradient_at(steps[-1].outputs.T)
    widest = max(linear.shape[0] for linear in chain.linears)
    row = (3 * len(asked.inputs) + 3 * widest) * product.itemsize
    columns = fold_columns(steps, gradient.T, product, int(memory / 2 / row))
    del steps, gradient
    probe_bytes, most = ENTRY_BYTES * asked.non_zeros, ENTRIES_MEMORY
    if columns.early:
        probe_bytes, most = probe_bytes + 6 * widest * len(asked.inputs) * asked.work.itemsize, asked.most
    found = [
        columns.alignments(_sparse(asked, chain, first, last))
        for first, last in asked.chunks(probe_bytes, min(memory / 2, most))
    ]
    return torch.cat(found), value


def _by_tangents(
    asked: _Asked, chain: Chain, product: torch.dtype, sizes: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Any probes, in forward mode: whole tangents up to the logits; activations are kept only if there is room."""
    batch, size = len(asked.inputs), asked.work.itemsize
    stored = 3 * batch * sum(units for units, _ in sizes) * size
    keep = stored < asked.memory / 2
    steps = list(walk(chain, asked.inputs, product)) if keep else None
    probe_bytes = 4.0 * batch * max(units for units, _ in sizes) * size
    if not isinstance(asked.probes, RankOneProbes):
        probe_bytes += 2 * size * max(units * columns for units, columns in sizes) + ENTRY_BYTES * asked.non_zeros
    found, value = [], asked.inputs.new_zeros(())
    for first, last in asked.chunks(probe_bytes, min(asked.most, asked.memory - (stored if keep else 0))):
        direct: Direct
        if isinstance(asked.probes, RankOneProbes):
            direct = RankOneDirect(asked.probes, chain.places, first, last)
        else:
            direct = _sparse(asked, chain, first, last)
        outputs, tangent = carry(steps or walk(chain, asked.inputs, product), direct, product)
        gradient, value = asked.gradient_at(outputs.T)
        found.append(tangent.mul_(gradient.T[:, None]).sum((0, 2)))
    return torch.cat(found), value


def _sparse(asked: _Asked, chain: Chain, first: int, last: int) -> SparseDirect:
    entries = asked.probes.entries(first, last, asked.inputs.device)  # type: ignore[union-attr]
    return SparseDirect(entries.probe - first, entries.sign, chain.split(entries.position), last - first)


def _through_any_net(asked: _Asked) -> tuple[Tensor, Tensor]:
    """Plain forward mode, by torch: one net with plain weights, many with tangents."""
    dtype = asked.inputs.dtype if asked.inputs.is_floating_point() else torch.float32
    weights = {name: weight.to(dtype) for name, weight in asked.weights.items()}

    def value_of(changed: dict[str, Tensor]) -> Tensor:
        return asked.loss_at(functional_call(asked.net, changed, (asked.inputs,)))

    def along(tangent: dict[str, Tensor]) -> Tensor:
        return jvp(value_of, (weights,), (tangent,))[1]

    largest, value = _largest_output(asked, lambda: value_of(weights))
    together, found = True, list[Tensor]()
    total = sum(weight.numel() for weight in weights.values())
    probe_bytes = GENERIC_ACTIVATIONS * largest + 3.0 * dtype.itemsize * total + ENTRY_BYTES * asked.non_zeros
    for first, last in asked.chunks(probe_bytes, asked.memory):
        tangents = _whole_probes(asked, dtype, first, last)
        if together and last - first > 1:
            try:
                found.append(vmap(along)(tangents))
                continue
            except RuntimeError:  # an operation that does not know vmap: then one after another
                together = False
        for index in range(last - first):
            found.append(along({name: tangent[index] for name, tangent in tangents.items()})[None])
    return torch.cat(found).to(asked.work), value.to(asked.work)


def _largest_output(asked: _Asked, run: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Return the bytes of the largest tensor that a module of the net returns, and what `run` does."""
    largest = 0

    def look(_: nn.Module, __: object, returned: object) -> None:
        nonlocal largest
        if isinstance(returned, Tensor):
            largest = max(largest, returned.numel() * returned.element_size())

    handles = [module.register_forward_hook(look) for module in asked.net.modules()]
    try:
        value = run()
        return largest, value
    finally:
        for handle in handles:
            handle.remove()


def _whole_probes(asked: _Asked, dtype: torch.dtype, first: int, last: int) -> dict[str, Tensor]:
    """Return name -> (probes, ...) with probes `first` to `last` - 1 written out."""
    device, count = asked.inputs.device, last - first
    if isinstance(asked.probes, RankOneProbes):
        found = {}
        for layer, (name, weight) in enumerate(asked.weights.items()):
            rows, columns = asked.probes.factors(layer, device, first, last)
            found[name] = (rows.to(dtype)[:, :, None] * columns[:, None, :]).view(count, *weight.shape)
        return found
    entries = asked.probes.entries(first, last, device)
    total = asked.probes.weights
    flat = torch.zeros(count * total, dtype=dtype, device=device)
    flat.index_add_(0, (entries.probe - first) * total + entries.position, entries.sign.to(dtype))
    parts = flat.view(count, total).split([weight.numel() for weight in asked.weights.values()], dim=1)
    pairs = zip(parts, asked.weights.items(), strict=True)
    return {name: part.reshape(count, *weight.shape) for part, (name, weight) in pairs}


def _check_finite(alpha: Tensor, value: Tensor) -> None:
    wrong = int((~alpha.isfinite()).sum())
    if wrong or not value.isfinite():
        raise NonFiniteError(
            f"{wrong} of {len(alpha)} alignments are not finite, at loss {value.item():.6g}: look for values in the "
            "batch that are not finite, and if there are none, compute without autocast, or give layers smaller scales "
            "(a layer norm before each rectifier keeps activations small)"
        )
