"""What a layer sees of a row of tokens: at each place, that one and earlier ones alone; or which tokens there are."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PlaceWindow", "TokenShares", "TokenWindow"]


class PlaceWindow(nn.Module):
    """Features of several places side by side: (batch, length, n) -> (batch, length, offsets x n).

        y_t = [c_d h_(t - d) for d in offsets]          0 before the row begins

    Args:
        offsets: how many places back, 0 for the place itself; none is negative.
        weights: c, one for each offset, used with a root mean square of one; all 1 by default.

    >>> PlaceWindow((0, 2))(torch.tensor([[[1.0], [2.0], [3.0]]])).tolist()
    [[[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]]]
    """

    def __init__(self, offsets: tuple[int, ...], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.offsets = offsets
        given = [1.0] * len(offsets) if weights is None else list(weights)
        size = math.sqrt(sum(weight * weight for weight in given) / max(1, len(given)))
        self.weights = tuple(weight / size for weight in given)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the windows."""
        length = rows.shape[1]
        parts = [
            weight * F.pad(rows[:, : max(0, length - back)], (0, 0, min(back, length), 0))
            for back, weight in zip(self.offsets, self.weights, strict=True)
        ]
        return torch.cat(parts, dim=-1)

    def extra_repr(self) -> str:
        """Return the offsets, for printing."""
        return str(self.offsets)


class TokenWindow(nn.Module):
    """The last tokens up to each place, one-hot: ids (batch, length) -> (batch, length, width x vocabulary), float32.

    A linear layer on it adds up one embedding for each token and distance. Before the row begins all are 0. `weights`
    stand in place of the ones, as in `PlaceWindow`.

    >>> TokenWindow(2, 2)(torch.tensor([[1, 0]])).tolist()
    [[[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]]
    """

    def __init__(self, vocabulary: int, width: int, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.window = PlaceWindow(tuple(range(width)), weights)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the windows."""
        known: Tensor = self.window(F.one_hot(ids.long(), self.vocabulary).float())
        return known


class TokenShares(nn.Module):
    """How often each token stands in a row, over the root of its length: ids (batch, length) -> (batch, vocabulary).

    A linear layer on it adds up one embedding for each token; their places say nothing.

    >>> TokenShares(3)(torch.tensor([[1, 0, 1, 1]])).tolist()
    [[0.5, 1.5, 0.0]]
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, ids: Tensor) -> Tensor:
        """Return the shares, float32."""
        known = F.one_hot(ids.long(), self.vocabulary).sum(dim=1)
        return known.float() / ids.shape[1] ** 0.5
