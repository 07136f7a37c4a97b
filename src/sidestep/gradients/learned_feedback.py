"""How the loss depends on a layer's outputs, learned from noise on them: what a layer of any kind can be trained by.

    z +- s a          signs a of every example on the layer's outputs z, its own size s
    alpha = (L+ - L-) / (2 s)             an estimate of dL/dz . a, through thresholds and whatever else there is
    g     = psi(z / s) * (B e)            what alpha a is on average, given the error e at the net's outputs

One number for each example says little of the many outputs of a layer, but what it says can be kept: B, (outputs,
errors), and one slope psi for each range of z are fitted by least squares to all that was seen, older steps counting
less. A step along g has the noise of that fit alone. `g + r (alpha - a . g) a` adds a part r of what the fit leaves,
and with r = 1 it is an unbiased estimate of the gradient of the loss with the noise in it, whatever B is.

No derivative is taken. Source: Lansdell, Prakash and Kording, "Learning to solve the credit assignment problem" (2020),
for B learned from noise; the slopes are ours.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["LayerFeedback", "errors_of", "spread_of"]

_RANGE = 2.0  # bins span this many standard deviations of z to either side; the outer ones hold the rest
_RIDGE = 1.0
_PRIOR = 1e-3


class LayerFeedback:
    """What was learned of one layer: B, the slopes, the spread of its outputs, and the sums that they come from."""

    def __init__(self, outputs: int, errors: int, bins: int, memory: float, like: Tensor) -> None:
        """Know nothing: B = 0, slopes 1.

        Args:
            outputs: of the layer.
            errors: numbers of an error, as many as the net has outputs.
            bins: ranges of z with a slope of their own.
            memory: what earlier steps count for beside the next, from 0 to 1.
            like: for dtype and device.
        """
        self._memory, self._bins = memory, bins
        self.state: dict[str, Tensor] = {
            "feedback": like.new_zeros(outputs, errors),
            "slopes": like.new_ones(bins),
            "spread": like.new_zeros(()),
            "products": like.new_zeros(outputs, errors),
            "squares": like.new_zeros(errors, errors),
            "slope_products": like.new_zeros(bins),
            "slope_squares": like.new_zeros(bins),
        }

    @property
    def spread(self) -> Tensor:
        """The standard deviation of the layer's outputs, (): the unit of noise and ranges."""
        return self.state["spread"]

    def expected(self, errors: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return `psi(z) B e`, `B e`, both (examples, outputs), and the range of each z."""
        state = self.state
        plain = errors @ state["feedback"].T
        scaled = outputs / state["spread"] * (self._bins / (2 * _RANGE)) + self._bins / 2
        ranges = scaled.nan_to_num().floor().clamp(0, self._bins - 1).long()
        return state["slopes"][ranges] * plain, plain, ranges

    def see(self, outputs: Tensor) -> None:
        """Follow the spread of a layer's outputs."""
        here, before = spread_of(outputs), self.state["spread"]
        self.state["spread"] = torch.lerp(here, before, 0.95) if bool(before) else here

    def learn(self, seen: Tensor, errors: Tensor, plain: Tensor, ranges: Tensor) -> None:
        """Fit B and the slopes to one more batch.

        Args:
            seen: estimates of the gradient by the layer's outputs, without bias, (examples, outputs).
            errors: (examples, errors).
            plain: `B e`.
            ranges: of each output.
        """
        state, memory = self.state, self._memory
        places = ranges.flatten()
        for name, values in (("slope_products", seen * plain), ("slope_squares", plain.square())):
            found = torch.bincount(places, values.flatten(), self._bins).to(plain.dtype)
            state[name] = memory * state[name] + found
        state["slopes"] = (state["slope_products"] + _PRIOR) / (state["slope_squares"] + _PRIOR)
        state["products"] = memory * state["products"] + seen.T @ errors
        state["squares"] = memory * state["squares"] + errors.T @ errors
        ridge = _RIDGE * torch.eye(len(state["squares"]), dtype=errors.dtype, device=errors.device)
        state["feedback"] = torch.linalg.solve(state["squares"] + ridge, state["products"].T).T.contiguous()


def spread_of(outputs: Tensor) -> Tensor:
    """Return the standard deviation of a layer's outputs, (), never 0."""
    return outputs.std(correction=0).clamp_min(1e-3)


def errors_of(losses: Callable[[Tensor], Tensor], outputs: Tensor, size: float) -> Tensor:
    """Return how each example's loss changes with each of its outputs, (examples, k): central differences.

    It calls the loss and not the net, and it may be a count of errors, for which `size` is to be as large as what the
    outputs differ by.
    """
    count = outputs.shape[1]
    moves = size * torch.eye(count, dtype=outputs.dtype, device=outputs.device)
    return torch.stack([losses(outputs + move) - losses(outputs - move) for move in moves], dim=1) / (2 * size)
