"""Solvers of differential equations for nets that are flows, by torchdiffeq, with the adjoint method or without."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Field", "solved"]

Field = Callable[[Tensor, Tensor], Tensor]  # (t of shape (), z) -> dz/dt, (batch, dimension)


def solved(  # long: a field, where it starts, and the four things that a solver is
    field: Field,
    latent: Tensor,
    method: str,
    steps: int,
    tolerance: float,
    adjoint: list[Tensor] | None = None,
) -> Tensor:
    """Return z_1, (batch, dimension), of `dz/dt = field(t, z)` from t = 0 to 1.

    Args:
        field: (t of shape (), z) -> dz/dt, (batch, dimension).
        latent: z_0, (batch, dimension).
        method: euler, midpoint or rk4 with fixed steps, or dopri5 with adaptive ones.
        steps: their number, for a method with fixed ones.
        tolerance: relative and absolute, for dopri5.
        adjoint: tensors whose gradients the adjoint method is to give; without them the steps are kept.
    """
    from torchdiffeq import odeint, odeint_adjoint  # imports scipy, which takes a while

    def grid(_field: Field, _state: Tensor, ends: Tensor) -> Tensor:
        return torch.linspace(float(ends[0]), float(ends[-1]), steps + 1, dtype=ends.dtype, device=ends.device)

    times = latent.new_tensor([0.0, 1.0])
    given: dict[str, Any] = {"method": method, "options": {"grid_constructor": grid}}
    back: dict[str, Any] = {}
    if method == "dopri5":
        exact = {} if latent.device.type == "mps" else {"dtype": torch.float64}  # of the time, not of z
        given |= {"options": exact, "rtol": tolerance, "atol": tolerance}
        # The gradient of a batch's mean is that much smaller than z, and so is the error to tolerate. The
        # parameters' share of it feeds back into nothing and sets no step (Kidger, Chen, Lyons 2021).
        back = {"adjoint_atol": tolerance / len(latent), "adjoint_options": {**exact, "norm": "seminorm"}}
    if adjoint is None:
        found: Tensor = odeint(field, latent, times, **given)
    else:
        found = odeint_adjoint(field, latent, times, adjoint_params=tuple(adjoint), **given, **back)
    return found[-1]
