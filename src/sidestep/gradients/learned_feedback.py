"""How layers respond to those before them, learned from noise on their outputs: what errors can be carried back by.

    z +- s a               signs a of every example on the outputs z of a layer, of size s in one pass and -s in another
    d, D = d + s a         half the difference of what a layer computes in the two passes, and of what it passes on
    d_m = sum_l T_ml (psi_l(z_l) D_l)     a layer's response to the layers l before it, fitted by least squares
    g_l = psi_l(z_l) sum_m T_ml^T g_m     how the loss depends on a layer's outputs, from the error at the net's outputs

T is one matrix for each layer that feeds another, and psi one slope for each range of z: thresholds and rounding have
those of their average effect over the noise. A response is as many numbers as the layer has outputs, where the loss is
one; so a few thousand examples tell T, and older ones may count less as weights move. g is as good as this fit.
`g + r (alpha - sum_l a_l . s_l g_l) a / s`, with alpha half the difference of the loss, adds a part r of what the fit
leaves; with r = 1 its mean is the gradient of the loss with the noise in it, whatever T is, to the second order in s.

No derivative is taken. Sources: Akrout, Wilson, Humphreys, Lillicrap and Tweed, "Deep learning without weight
transport" (2019), for feedback learned from what noise does to the next layer; Lansdell, Prakash and Kording, "Learning
to solve the credit assignment problem" (2020), for such a fit on perturbations; paired passes and slopes are ours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sidestep.gradients.layer_passes import OUTPUTS, LayerGraph

__all__ = ["REFIT", "Measured", "Responses", "errors_of"]

_RANGE = 2.0  # bins span this many standard deviations of z to either side; the outer ones hold the rest
_RIDGE = 1.0  # examples that say that nothing responds
_RELATIVE = 1e-5  # of the mean square, beside that: what rounding may take from a sum over many steps
_PRIOR = 1e-2  # what a slope's last value counts for beside what was seen of a range of average weight
REFIT = 4  # steps between fits


@dataclass(frozen=True)
class Measured:
    """One layer in a pair of passes, in units of the size of its noise.

    noise: signs, (batch, outputs); zeros for a layer without noise.
    size: of the noise; 1 for a layer without.
    change: half the difference of what it computed, before its own noise.
    ranges: of each output.
    """

    noise: Tensor
    size: Tensor
    change: Tensor
    ranges: Tensor


class Responses:
    """What was learned of all layers: matrices, slopes, and the sums that they come from."""

    def __init__(self, graph: LayerGraph, widths: dict[str, int], bins: int, memory: float, like: Tensor) -> None:
        """Know nothing: T = 0, slopes 1.

        Args:
            graph: which layer feeds which.
            widths: of every layer's outputs, and of OUTPUTS.
            bins: ranges of z with a slope of their own.
            memory: what earlier steps count for beside the next, from 0 to 1.
            like: for dtype and device.
        """
        self._graph, self._widths, self._bins, self._memory = graph, widths, bins, memory
        self.outputs = widths[OUTPUTS]
        self._groups: dict[tuple[str, ...], list[str]] = {}  # layers with the same sources share a fit
        for target, sources in graph.sources.items():
            if target != OUTPUTS or graph.last == OUTPUTS:
                self._groups.setdefault(sources, []).append(target)
        self.state: dict[str, Tensor] = {}
        for name in graph.order:
            self.state[f"slopes {name}"] = like.new_ones(bins)
            self.state[f"slope products {name}"] = like.new_zeros(bins)
            self.state[f"slope squares {name}"] = like.new_zeros(bins, bins)
        for number, (sources, targets) in enumerate(self._groups.items()):
            shape = sum(widths[name] for name in sources), sum(widths[name] for name in targets)
            self.state[f"matrix {number}"] = like.new_zeros(shape)
            self.state[f"products {number}"] = like.new_zeros(shape)
            self.state[f"squares {number}"] = like.new_zeros(shape[0], shape[0])

    def ranges(self, middle: Tensor, spread: Tensor) -> Tensor:
        """Return the range of each output, from 0 to bins - 1, given the standard deviation of all."""
        scaled = middle / spread * (self._bins / (2 * _RANGE)) + self._bins / 2
        return scaled.nan_to_num().floor().clamp(0, self._bins - 1).long()

    def expected(self, errors: Tensor, seen: dict[str, Measured]) -> dict[str, Tensor]:
        """Return by layer how the loss depends on its outputs, times the size of its noise: (batch, outputs).

        Args:
            errors: at the net's outputs, (batch, k).
            seen: the layers that were called.
        """
        found = {self._graph.last: errors}
        for name in reversed(self._graph.order):
            if name in seen and name not in found:
                carried = torch.zeros_like(seen[name].noise)
                for number, sources, targets in self._numbered(name):
                    known = [
                        found.get(target, errors.new_zeros(len(errors), self._widths[target])) for target in targets
                    ]
                    start = sum(self._widths[other] for other in sources[: sources.index(name)])
                    matrix = self.state[f"matrix {number}"][start : start + self._widths[name]]
                    carried = carried + torch.cat(known, dim=1) @ matrix.T
                found[name] = self.state[f"slopes {name}"][seen[name].ranges] * carried
        return found

    def learn(self, seen: dict[str, Measured], change: Tensor, refit: bool) -> None:
        """Take one more pair of passes into account.

        Args:
            seen: the layers that were called; what depends on others, or has them as sources, waits.
            change: half the difference of the net's outputs, (batch, k).
            refit: False leaves matrices and slopes as they are for now.
        """
        told: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in seen}
        for number, (sources, targets) in enumerate(self._groups.items()):
            if not {*sources, *targets} <= {*seen, OUTPUTS}:
                continue
            passed = [seen[name].change + seen[name].noise for name in sources]
            slopes = [self.state[f"slopes {name}"][seen[name].ranges] for name in sources]
            given = torch.cat([slope * each for slope, each in zip(slopes, passed, strict=True)], dim=1)
            answers = torch.cat([change if name == OUTPUTS else seen[name].change for name in targets], dim=1)
            self.state[f"products {number}"].mul_(self._memory).addmm_(given.T, answers)
            self.state[f"squares {number}"].mul_(self._memory).addmm_(given.T, given)
            if refit:
                matrix = self._solved(number)
                parts = matrix.split([self._widths[name] for name in sources])
                for name, each, part in zip(sources, passed, parts, strict=True):
                    told[name].append((self._by_range(each, seen[name].ranges, part), answers - given @ matrix))
        if refit:
            for name, found in told.items():
                if found:
                    self._fit_slopes(name, found, seen[name].ranges)

    def _solved(self, number: int) -> Tensor:
        squares = self.state[f"squares {number}"]
        ridge = _RIDGE + _RELATIVE * squares.diagonal().mean()
        eye = torch.eye(len(squares), dtype=squares.dtype, device=squares.device)
        factor = torch.linalg.cholesky(squares + ridge * eye)
        self.state[f"matrix {number}"] = torch.cholesky_solve(self.state[f"products {number}"], factor)
        return self.state[f"matrix {number}"]

    def _by_range(self, passed: Tensor, ranges: Tensor, matrix: Tensor) -> Tensor:
        """Return what the outputs of each range come to at slope 1, (bins, batch, answers)."""
        own = [torch.where(ranges == place, passed, 0.0) @ matrix for place in range(self._bins)]
        return torch.stack(own)

    def _fit_slopes(self, name: str, found: list[tuple[Tensor, Tensor]], ranges: Tensor) -> None:
        slopes = self.state[f"slopes {name}"]
        parts = torch.cat([each.flatten(1) for each, _ in found], dim=1)
        left = torch.cat([each.flatten() for _, each in found])
        here, memory = parts @ parts.T, self._memory**REFIT
        self.state[f"slope squares {name}"].mul_(memory).add_(here)
        self.state[f"slope products {name}"].mul_(memory).add_(parts @ left + here @ slopes)
        squares = self.state[f"slope squares {name}"]
        prior = _PRIOR * squares.diagonal().mean() + torch.finfo(squares.dtype).tiny
        eye = torch.eye(self._bins, dtype=squares.dtype, device=squares.device)
        solved = torch.linalg.solve(squares + prior * eye, self.state[f"slope products {name}"] + prior * slopes)
        size = solved[ranges].square().mean().sqrt()
        if bool(size > 0) and bool(solved.isfinite().all()):
            self.state[f"slopes {name}"] = solved / size  # what is common to all ranges is the matrix's

    def _numbered(self, source: str) -> Iterator[tuple[int, tuple[str, ...], list[str]]]:
        for number, (sources, targets) in enumerate(self._groups.items()):
            if source in sources:
                yield number, sources, targets


def errors_of(losses: Callable[[Tensor], Tensor], outputs: Tensor, size: float) -> Tensor:
    """Return how each example's loss changes with each of its outputs, (examples, k): central differences.

    It calls the loss and not the net, and it may be a count of errors, for which `size` is to be as large as what the
    outputs differ by.
    """
    count = outputs.shape[1]
    moves = size * torch.eye(count, dtype=outputs.dtype, device=outputs.device)
    return torch.stack([losses(outputs + move) - losses(outputs - move) for move in moves], dim=1) / (2 * size)
