"""Walks with adaptive steps by torchdiffeq, one example at a time; nothing here is imported from the package."""

from types import SimpleNamespace

import torch
from torchdiffeq import odeint
from torchdiffeq._impl.odeint import SOLVERS


def plain_adaptive(rate, ends, z, method, tolerance):
    """`rate(z, t)` with t of shape (); z of shape (1, dimension), in float64."""
    times = torch.tensor(ends, dtype=torch.float64)
    found = odeint(
        lambda time, state: rate(state, time), z, times, method=method, rtol=tolerance, atol=tolerance,
        options={"step_t": times[-1:]},
    )  # fmt: skip
    return found[-1]


def plain_pair(method):
    """The coefficients of one of its pairs, under the names that the package has for them."""
    solver = SOLVERS[method]
    alpha, beta, weights, errors = solver.tableau
    return SimpleNamespace(
        order=solver.order, nodes=alpha.tolist(), stages=[row.tolist() for row in beta], weights=weights.tolist(),
        errors=errors.tolist(),
    )  # fmt: skip
