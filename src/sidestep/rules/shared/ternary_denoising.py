"""NoProp's blocks trained by noise_step: ternary blocks, each by local losses of its own, moved by logged flips.

Block t is given `[x, g z_(t-1)]` with z_(t-1) ~ q(. | y), and every stage of it a head and the loss CE(head, y). With
`local-probes` the gradient of each stage is a sum of directional derivatives, taken forward (a complete set, so it is
the exact one); with `local-losses` it is taken by reverse mode within the stage. No derivative passes between stages
or blocks, and no float weight exists. Sources: Li, Teh, Pascanu (2025); Brickner (2024); Nøkland and Eidnes (2019).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.checks import check_positive, check_range, check_used
from sidestep.data.task import Batch, Task
from sidestep.errors import InputError
from sidestep.gradients.end_to_end import end_to_end
from sidestep.gradients.local_losses import floating, local_gradients
from sidestep.gradients.local_probes import LocalProbes, local_probe_gradients
from sidestep.nets.noprop.stack import DenoisingStack
from sidestep.nets.noprop.stack_readings import ddim_logits
from sidestep.nets.noprop.ternary_blocks import TernaryBlock
from sidestep.nets.substituted import functional_call
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.nets.trained import set_training
from sidestep.nets.user_modules import ImagePath
from sidestep.noise import Noise
from sidestep.rules.shared.flips import TernaryOptimizer, choose_flips
from sidestep.rules.shared.trits import move
from sidestep.rules.takes import set_takes
from sidestep.update import Dense, Flips, Update

__all__ = ["WITH_FLIPS", "TernarySolver", "check_dense", "settle_solver"]


WITH_FLIPS = "solver = noise-step"
_NO_MODULE = (
    "solver = noise-step makes dense ternary blocks and has no place for a module of your own; use solver = "
    "back-propagation, or train the module by the rule noise-step"
)
_NO_TOKENS = (
    "solver = noise-step makes dense ternary blocks of the inputs' numbers, and token ids are none; use solver = "
    "back-propagation"
)
_AUTO = {"loss": ("paper", "cross-entropy"), "readout": ("softmax", "nearest")}  # with float weights, and with trits


def settle_solver(rule: Any) -> None:
    """Set the loss and the read-out that were left at auto; ternary blocks have no others.

    Raises InputError for options that would need float weights, or that have a use with ternary blocks alone.
    """
    for name, (usual, ternary) in _AUTO.items():
        given = getattr(rule, name)
        if rule.solver == "noise-step" and given not in ("auto", ternary):
            raise InputError(
                f"solver = noise-step trains ternary weights by {name} = {ternary} alone, got {given}; leave {name} out"
            )
        if given == "auto":
            object.__setattr__(rule, name, ternary if rule.solver == "noise-step" else usual)
    if rule.solver != "noise-step":
        for option in ("hidden", "estimator", "flip_share", "momentum"):
            check_used(rule, option, "solver", "noise-step")
        return
    check_positive(1, flip_share=rule.flip_share)
    check_range(0, 0.9999, momentum=rule.momentum)
    if not rule.hidden or min(rule.hidden) < 1:
        raise InputError(
            f"a ternary block needs one hidden stage or more, of at least one unit each, got {rule.hidden}"
        )
    set_takes(rule, log="yes", optimizer=False)
    if rule.embedding not in ("one-hot", "orthogonal"):
        raise InputError(
            f"solver = noise-step trains no float weights, so the embedding must be one-hot or orthogonal, got "
            f"{rule.embedding}"
        )


@dataclass(frozen=True)
class TernarySolver:
    """What trains the ternary blocks of a stack.

    estimator: local-probes or local-losses.
    flip_share: share of a layer's weights that flip per step.
    momentum: beta.
    label_smoothing: share of a label that is spread over all classes.
    """

    estimator: str
    flip_share: float
    momentum: float
    label_smoothing: float

    def estimate(self, net: DenoisingStack, batch: Batch, noise: Noise) -> Dense:
        """Return the gradients of all blocks' stages, named `blocks.t.net.`, and the last stage's loss of each."""
        set_training(net)
        gradients, losses = {}, {}
        features = batch.inputs.flatten(1)
        for index in range(len(net.blocks)):
            block, draws = net.block(index), noise.sub(index)
            assert isinstance(block, TernaryBlock)
            latent = net.drawn_label(batch.targets, index, draws.generator(batch.inputs.device))
            data = (block.joined(features, latent), batch.targets)
            with torch.no_grad():
                if self.estimator == "local-probes":
                    ways = LocalProbes(label_smoothing=self.label_smoothing)
                    found, each = local_probe_gradients(block.net, *data, draws, ways, batch.objective)
                else:
                    found, each = local_gradients(block.net, *data, self.label_smoothing, batch.objective)
            gradients.update({f"blocks.{index}.net.{name}": gradient for name, gradient in found.items()})
            losses[f"block {index + 1}: denoising"] = list(each.values())[-1]
        return Dense(gradients, {}, losses)

    def true_gradients(self, net: DenoisingStack, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the reading `ddim` by the trits, taken for real numbers, through all blocks."""
        weights = {name: leaf.requires_grad_() for name, leaf in floating(net, batch.inputs).items()}
        given = {f"net.{name}": leaf for name, leaf in weights.items()}
        return end_to_end(net, batch, lambda inputs: functional_call(_Chain(net), given, (inputs,)), weights)

    def optimizer(self, net: DenoisingStack) -> torch.optim.Optimizer:
        """Make what keeps the momentum, a group for each block; its rate is the share of flips."""
        trits = ternary_parameters(net)
        blocks = range(len(net.blocks))
        groups = [[p for name, p in trits.items() if name.startswith(f"blocks.{index}.")] for index in blocks]
        return TernaryOptimizer([(group, self.flip_share) for group in groups])

    def decide(self, net: DenoisingStack, update: Update, optimizer: torch.optim.Optimizer) -> Flips:
        """Return the flips that the momentum asks for."""
        if not isinstance(update, Dense):
            raise InputError(f"flips are chosen by named gradients (Dense), got {type(update).__name__}")
        if not isinstance(optimizer, TernaryOptimizer):
            raise InputError("ternary blocks move by flips, and have no use for an optimiser of yours; leave it out")
        return choose_flips(net, update.gradients, optimizer, self.momentum, losses=update.losses)

    def apply(self, net: DenoisingStack, update: Update) -> None:
        """Move the weights."""
        if not isinstance(update, Flips):
            raise InputError(f"ternary blocks move by Flips, got {type(update).__name__}")
        with torch.no_grad():
            move(net, update.positions, update.moves)


class _Chain(nn.Module):
    """Inputs to logits, (batch, ...) -> (batch, classes), through all blocks from z_0 = 0."""

    def __init__(self, net: DenoisingStack) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        return ddim_logits(self.net, inputs)


def check_dense(task: Task, module: ImagePath | None) -> None:
    """Raise InputError for a module of the user's, or for token ids, which dense ternary blocks do not take."""
    if module is not None or task.inputs == "tokens":
        raise InputError(_NO_TOKENS if module is None else _NO_MODULE)
