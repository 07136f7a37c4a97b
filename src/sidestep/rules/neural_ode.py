"""The continuous-time baseline: a neural ODE from noise to the label, trained end to end by the adjoint method.

Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations", NeurIPS 2018, arXiv 1806.07366, section
2 and appendix B; Li, Teh, Pascanu (arXiv 2503.24322) compare NoProp in continuous time with it. The net is the same:

    dz/dt = v(z, x, t) = outputs(z, x, t) W,    z_0 ~ N(0, I),    L = CE(p_out(z_1), y)

The adjoint a = dL/dz is integrated back from t = 1 together with z, so that what is kept does not grow with the steps:

    da/dt = -a dv/dz,    dL/dtheta = integral over [0, 1] of a dv/dtheta dt

That is the gradient of the exact flow. The gradient of the solver's own z_1 differs from it by the solver's error, and
that is not small with a few steps: the block knows t by sines of up to 1000 t, which they do not resolve.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from sidestep.checks import check_positive
from sidestep.gradients.end_to_end import end_to_end
from sidestep.gradients.flow import Solver, flow_end, gradients_through
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.nets.noprop.denoiser_readings import Walker
from sidestep.nets.precision import full_precision
from sidestep.nets.training_pass import training_pass
from sidestep.rules.protocol import Batch, Dense, Noise, Update
from sidestep.rules.shared.denoising import readout_loss
from sidestep.rules.shared.timed import DenoisingRule, Samplers

__all__ = ["NeuralODE"]


@dataclass(frozen=True)
class NeuralODE(DenoisingRule):
    """Train the flow from noise to the label end to end, by the adjoint method (Chen et al. 2018)."""

    steps: int = 20
    """Steps of the solver from z_0 to z_1, 1 to 1000 (the paper: 1000); dopri5 finds its own."""
    method: Literal["euler", "midpoint", "rk4", "dopri5"] = "euler"
    """Solver (torchdiffeq): of first, second or fourth order with fixed steps, or with adaptive ones."""
    tolerance: float = 0.01
    """Tolerance of dopri5, relative and absolute, there and back (which may take hundreds of evaluations), and of the
    reading `adaptive`."""
    gradient: Literal["adjoint", "direct"] = "adjoint"
    """Adjoint: solved back in time, off by the solver's error; direct: exact, through all steps, which are kept."""
    embedding: Literal["one-hot", "orthogonal", "learned", "prototype"] = "one-hot"
    """Class embedding u_y: fixed one-hot or orthogonal; learned, or learned from an image of each class (prototype)."""
    dimension: int | None = None
    """Length of a learned (default 20, the paper's d) or orthogonal embedding; one-hot and prototype have their own."""
    unit_norm: bool = False
    """Keep every class embedding at norm 1."""
    readout: Literal["softmax", "radial", "nearest"] = "softmax"
    """Posterior p(y | z_1): linear with softmax, by distance after a softmax, or the nearest class embedding."""
    path: Literal["auto", "figure-6", "pooled", "resnet-9"] = "auto"
    """Image path: Figure 6 of the paper; pooled, for images beyond 64 x 64; a ResNet-9; auto: one of the first two."""
    norm: Literal["none", "batch"] = "none"
    """End of a built-in path but resnet-9: ReLU (none), as the paper has it here, or batch norm, as in NoProp-DT."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW."""

    name: ClassVar[str] = "neural-ode"
    summary: ClassVar[str] = "Neural ODE from noise to the label, trained end to end by the adjoint method"
    readings: ClassVar[tuple[str, ...]] = ("from zero", "from noise", "adaptive")
    for_inference: ClassVar[tuple[str, ...]] = ("steps", "method", "tolerance")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(1, tolerance=self.tolerance)

    def estimate(self, net: Denoiser, batch: Batch, noise: Noise) -> Update:
        """Return the gradient of the mean cross-entropy at the flow's end, from one noise start per image."""
        generator = noise.generator(batch.inputs.device)
        latent = net.embedding.new_empty(len(batch.targets), net.dimension).normal_(generator=generator)
        with training_pass(net, batch.inputs.device, noise, generator) as changed:
            net.block.latent.eval()  # an image-shaped z has a path with dropout: a rate with fresh masks is no ODE
            prepared, statistics = net.block.prepare(batch.inputs), changed()
            # A graph of its own: differentiated at every step, the rate must not lead back into the image path, nor to
            # the share of `join` that is in `prepared` already and would be counted again each time.
            held = prepared.detach().requires_grad_()
            last = flow_end(net, held, latent, self._solver, self.gradient == "adjoint")
            loss = readout_loss(net.space, net.readout, net.embedding, last, batch.targets)
            gradients = gradients_through(net, loss, prepared, held)
        return Dense(gradients, statistics, {"net: cross-entropy": loss.detach()})

    @property
    def _solver(self) -> Solver:
        return Solver(self.method, self.steps, self.tolerance)

    def true_gradients(self, net: Denoiser, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the reading `from zero`, through the solver's own steps."""

        def logits_of(images: Tensor) -> Tensor:
            held = net.block.prepare(images)
            zero = net.embedding.new_zeros(len(held), net.dimension)
            return net.readout(flow_end(net, held, zero, self._solver, adjoint=False), net.embedding)

        return end_to_end(net, batch, logits_of, running=True)

    def samplers(self, net: Denoiser, walk: Walker) -> Samplers:
        """Return the solver from z_0 = 0 and from noise, and dopri5 from z_0 = 0."""

        def read(latent: Tensor, adaptive: bool) -> Tensor:
            with full_precision(latent):  # as in training
                if adaptive:  # torchdiffeq's dopri5 would choose its steps for the batch as a whole
                    return walk.read([walk.adaptive(latent, "dopri5", self.tolerance)])
                return walk.read([self._solver.end(lambda time, z: walk.rate(z, time.reshape(1)), latent)])

        adaptive = self.method == "dopri5"
        return {
            "from zero": lambda: read(walk.zero(), adaptive),
            "from noise": lambda: read(walk.normal(0, 0), adaptive),
            "adaptive": lambda: read(walk.zero(), True),
        }
