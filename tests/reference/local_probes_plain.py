"""Local probes, slowly: one `torch.func.jvp` for each example and direction, through the modules as they stand."""

import torch
from torch.func import jvp


def alpha(tail, loss, outputs, target, direction):
    """The derivative of one example's loss along one direction of the outputs of its stage's layer."""

    def after(z):
        return loss(tail(z[None]), target[None]).sum()

    return jvp(after, (outputs,), (direction,))[1]


def estimate(tail, loss, outputs, targets, directions):
    """`sum_k alpha_k u_k` for each example; `directions` are (batch, K, n)."""
    rows = []
    for z, target, those in zip(outputs, targets, directions, strict=True):
        rows.append(sum(alpha(tail, loss, z, target, u.view_as(z)) * u for u in those))
    return torch.stack(rows).view_as(outputs)


def hadamard(size):
    """Sylvester's matrix of a power of two."""
    table = torch.ones(1, 1, dtype=torch.float64)
    while len(table) < size:
        table = torch.cat([torch.cat([table, table], dim=1), torch.cat([table, -table], dim=1)])
    return table
