"""The continuous-time baseline: a neural ODE from noise to the label, trained end to end by the adjoint method.

Chen, Rubanova, Bettencourt, Duvenaud, "Neural ordinary differential equations", NeurIPS 2018, arXiv 1806.07366, section
2 and appendix B; Li, Teh, Pascanu (arXiv 2503.24322) compare NoProp in continuous time with it. The net is the same:

    dz/dt = v(z, x, t) = outputs(z, x, t) W,    z_0 ~ N(0, I),    L = CE(p_out(z_1), y)

The adjoint a = dL/dz is integrated back from t = 1 together with z, so that what is kept does not grow with the steps:

    da/dt = -a dv/dz,    dL/dtheta = integral over [0, 1] of a dv/dtheta dt

That is the gradient of the exact flow. The gradient of the solver's own z_1 differs from it by the solver's error, and
that is not small with a few steps: the block knows t by sines of up to 1000 t, which they do not resolve.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sidestep.checks import check_positive, check_range
from sidestep.data import Split
from sidestep.gradients.end_to_end import end_to_end, gradients_of
from sidestep.nets.dropout import masks_from
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.nets.noprop.denoiser_readings import Walker
from sidestep.nets.noprop.samplers import check_steps
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import full_precision
from sidestep.nets.solvers import Field, solved
from sidestep.nets.trained import set_training
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Task
from sidestep.rules.shared.denoising import (
    TAKES,
    DenoisingRule,
    check_options,
    embedding_for,
    make_denoiser,
    readout_loss,
)
from sidestep.rules.takes import Takes
from sidestep.update import Dense, Update

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
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW."""

    name: ClassVar[str] = "neural-ode"
    summary: ClassVar[str] = "Neural ODE from noise to the label, trained end to end by the adjoint method"
    takes: ClassVar[Takes] = TAKES
    readings: ClassVar[tuple[str, ...]] = ("from zero", "from noise", "adaptive")
    for_inference: ClassVar[tuple[str, ...]] = ("steps", "method", "tolerance")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps)
        check_positive(1, tolerance=self.tolerance)
        if self.dimension is not None:
            check_range(1, 1_000_000, dimension=self.dimension)

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> Denoiser:
        """Make the net of the paper's block, or of a block around a module of the user's."""
        check_options(task, self.readout)
        rows = embedding_for(self.embedding, self.dimension, self.unit_norm, task, noise.stream("embedding"), examples)
        return make_denoiser(task, noise, module, self.path, rows, self.embedding, self.readout, None)

    def fits(self, net: Denoiser) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return net.schedule is None

    def estimate(self, net: Denoiser, batch: Batch, noise: Noise) -> Update:
        """Return the gradient of the mean cross-entropy at the flow's end, from one noise start per image."""
        set_training(net)
        net.block.latent.eval()  # an image-shaped z has a path with dropout: a rate with fresh masks is no ODE
        generator = noise.generator(batch.inputs.device)
        latent = net.embedding.new_empty(len(batch.targets), net.dimension).normal_(generator=generator)
        with (
            kept_statistics(net) as changed,
            masks_from(generator),
            noise.stream("module").torch_seeded(batch.inputs.device),
        ):
            prepared = net.block.prepare(batch.inputs)
            statistics = changed()
        # A graph of its own: differentiated at every step, the rate must not lead back into the image path, nor to the
        # share of `join` that is in `prepared` already and would be counted again each time.
        held = prepared.detach().requires_grad_()
        last = self._flow(net, held, latent)
        loss = readout_loss(net.space, net.readout, net.embedding, last, batch.targets)
        gradients = _through_both(net, loss, prepared, held)
        return Dense(gradients, statistics, {"net: cross-entropy": loss.detach()})

    def _flow(self, net: Denoiser, held: Tensor, latent: Tensor) -> Tensor:
        """Return z_1, (batch, dimension), with a gradient for the rate's parameters and what `held` holds."""

        def field(time: Tensor, state: Tensor) -> Tensor:
            with full_precision(state):  # on the way back the rate is computed again, and outside of autocast
                return _velocity(net, net.block.outputs(held, state, time.reshape(1)))

        if self.gradient == "direct":
            return self._solve(field, latent)
        block = net.block
        dense = [p for part in (block.latent, block.time, block.fuse) for p in part.parameters()]
        return self._solve(field, latent, [held, block.join.weight, *dense, net.embedding])

    def _solve(self, field: Field, latent: Tensor, adjoint: list[Tensor] | None = None) -> Tensor:
        return solved(field, latent, self.method, self.steps, self.tolerance, adjoint)

    def true_gradients(self, net: Denoiser, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the reading `from zero`, through the solver's own steps."""

        def logits_of(images: Tensor) -> Tensor:
            held = net.block.prepare(images)
            last = replace(self, gradient="direct")._flow(net, held, net.embedding.new_zeros(len(held), net.dimension))
            return net.readout(last, net.embedding)

        return end_to_end(net, batch, logits_of, running=True)

    def predict(
        self, net: Denoiser, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return class probabilities by the solver from z_0 = 0 and from noise, and by dopri5 from z_0 = 0."""
        net.eval()

        with torch.no_grad():
            walk = Walker(net, images, lambda outputs, _z, _time: _velocity(net, outputs), noise, start, self.steps)

            def end(latent: Tensor) -> Tensor:
                if self.method == "dopri5":  # torchdiffeq's would choose its steps for the batch as a whole
                    return walk.adaptive(latent, "dopri5", self.tolerance)
                return self._solve(lambda time, state: walk.rate(state, time.reshape(1)), latent)

            readings: dict[str, Callable[[], Tensor]] = {
                "from zero": lambda: walk.read([end(walk.zero())]),
                "from noise": lambda: walk.read([end(walk.normal(0, 0))]),
                "adaptive": lambda: walk.read([walk.adaptive(walk.zero(), "dopri5", self.tolerance)]),
            }
            with full_precision(images):  # as in training
                return walk.wanted(names or self.readings, readings)


def _velocity(net: Denoiser, outputs: Tensor) -> Tensor:
    """Return `v = outputs W`, (batch, dimension)."""
    return outputs @ net.embedding


def _through_both(net: Denoiser, loss: Tensor, prepared: Tensor, held: Tensor) -> dict[str, Tensor]:
    """Return the gradients through the flow, and on from `held` through the image path; `join` has a share of both."""
    parameters: dict[str, Tensor] = dict(net.named_parameters())
    gradients = gradients_of(loss, {**parameters, "prepared": held})
    onwards = (prepared * gradients.pop("prepared")).sum()  # its gradient is the product with the Jacobian
    for name, gradient in gradients_of(onwards, parameters).items():
        gradients[name] = gradients[name] + gradient if name in gradients else gradient
    return gradients
