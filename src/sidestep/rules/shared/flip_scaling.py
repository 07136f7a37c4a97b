"""By what the momentum of direct flips divides a gradient g of a layer, whose root mean square is one.

    layer               nothing more
    rows-and-columns    sqrt(R_i C_j / mean R),      R and C running means of g^2 over each row and each column

The second is the factored second moment of Shazeer and Stern, "Adafactor" (2018), equation 7 and algorithm 1: rows +
columns numbers in place of one a weight. It lets the few gradients of a rare token, a row of a head or a column of an
embedding, compete with those of a frequent one; by the layer alone they never are among the largest.
"""

from typing import Any, Literal

from torch import Tensor

__all__ = ["FlipScaling", "by_rows_and_columns"]

FlipScaling = Literal["layer", "rows-and-columns"]

_KEPT = 0.99  # of a running mean, at each step
_LEAST = 1e-8  # of R C / mean R, where g^2 has a mean of one


def by_rows_and_columns(state: dict[str, Any], gradient: Tensor) -> Tensor:
    """Advance a parameter's running means by one gradient, and return the gradient over their root.

    Args:
        state: of the parameter; gets `rows`, `columns` and `averaged`, the weight of all squares in the means so far.
        gradient: of root mean square one, (rows, ...); what follows the rows counts as columns.

    >>> import torch
    >>> by_rows_and_columns({}, torch.tensor([[2.0, -2.0], [0.5, 0.5]])).tolist()
    [[1.0, -1.0], [1.0, 1.0]]
    """
    squares = gradient.reshape(len(gradient), -1).square()
    for name, dim in (("rows", 1), ("columns", 0)):
        found = squares.mean(dim=dim)
        state[name] = state[name].lerp_(found, 1 - _KEPT) if name in state else found.mul_(1 - _KEPT)
    averaged = state["averaged"] = _KEPT * state.get("averaged", 0.0) + 1 - _KEPT  # what the means begin without
    rows, columns = state["rows"] / averaged, state["columns"] / averaged
    size = (rows / rows.mean().clamp_min(_LEAST)).unsqueeze(1) * columns
    return gradient / size.clamp_min_(_LEAST).sqrt_().view_as(gradient)
