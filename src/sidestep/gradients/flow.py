"""The end of a flow from noise to the label, and its gradient: by the adjoint method, or through the solver's steps.

    z_1 = z_0 + integral over [0, 1] of v(z_t, x, t) dt          v = outputs W, of the continuous-time net

Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations" (2018), section 2 and appendix B.
"""

from typing import NamedTuple

from torch import Tensor

from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.nets.precision import full_precision
from sidestep.nets.solvers import Field, solved

__all__ = ["Solver", "flow_end", "gradients_through"]


class Solver(NamedTuple):
    """How a flow is solved; see `solved`."""

    method: str
    steps: int
    tolerance: float

    def end(self, field: Field, latent: Tensor, adjoint: list[Tensor] | None = None) -> Tensor:
        """Return z_1, (batch, dimension), from z_0; `adjoint`: whose gradients the adjoint method is to give."""
        return solved(field, latent, self.method, self.steps, self.tolerance, adjoint)


def flow_end(net: Denoiser, held: Tensor, latent: Tensor, solver: Solver, adjoint: bool) -> Tensor:
    """Return z_1, (batch, dimension), with a gradient for the rate's parameters and what `held` holds.

    Args:
        net: the net, whose block gives the rate.
        held: the image's share of the first fusing layer, (batch, 256).
        latent: z_0, (batch, dimension).
        solver: how the flow is solved.
        adjoint: solved back in time, off by the solver's error; otherwise exact, through all steps, which are kept.
    """

    def field(time: Tensor, state: Tensor) -> Tensor:
        with full_precision(state):  # on the way back the rate is computed again, and outside of autocast
            return net.velocity(net.block.outputs(held, state, time.reshape(1)))

    block = net.block
    dense = [p for part in (block.latent, block.time, block.fuse) for p in part.parameters()]
    return solver.end(field, latent, [held, block.join.weight, *dense, net.embedding] if adjoint else None)


def gradients_through(net: Denoiser, loss: Tensor, prepared: Tensor, held: Tensor) -> dict[str, Tensor]:
    """Return the gradients through the flow, and on from `held` through the image path; `join` has a share of both."""
    parameters: dict[str, Tensor] = dict(net.named_parameters())
    gradients = gradients_of(loss, {**parameters, "prepared": held})
    onwards = (prepared * gradients.pop("prepared")).sum()  # its gradient is the product with the Jacobian
    for name, gradient in gradients_of(onwards, parameters).items():
        gradients[name] = gradients[name] + gradient if name in gradients else gradient
    return gradients
