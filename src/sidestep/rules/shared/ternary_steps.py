"""Steps of ternary weights, whatever module they are in: what is logged of an estimate, and how it moves them."""

import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sidestep.data.share import WHOLE, Share
from sidestep.errors import InputError
from sidestep.gradients.any_module import Losses
from sidestep.gradients.ternary_any import alignments_of_losses
from sidestep.nets.ternary.around import ternary_around
from sidestep.nets.ternary.layers import ternary_parameters, trit_count
from sidestep.nets.ternary.nets import SCHEDULE, TernaryNet
from sidestep.noise import Noise
from sidestep.probes import DenseProbes, Probes, SparseProbes
from sidestep.rules.shared.any_module import LOSS, as_dense, of_share
from sidestep.rules.shared.codecs import codec_and_update
from sidestep.rules.shared.density import DensitySchedule, after_step, density_and_count, first_density
from sidestep.rules.shared.flip_scaling import FlipScaling
from sidestep.rules.shared.flips import TernaryOptimizer, choose_by_threshold, choose_flips, choose_sets
from sidestep.rules.shared.tracked import follow, threshold_of, trits_above
from sidestep.rules.shared.trits import accumulate, move, sign_and_median, subtract, with_zeros
from sidestep.update import Flips, Seeded, Update

__all__ = ["TernarySteps"]


class TernarySteps:
    """What noise_step does to any module of ternary layers: by its loss with weight probes, or in a chain of stages."""

    name: ClassVar[str]
    by_loss_with: ClassVar[str] = "estimator='weight-probes', schedule='constant'"
    estimator: Any
    codec: Any
    update: Any
    probes: int
    most_probes: int
    density: float | None
    schedule: DensitySchedule
    exclusive: bool
    threshold: int | None
    trit_threshold: Any
    flip_share: float
    head_share: float | None
    flip_scaling: FlipScaling
    set_size: int
    momentum: float
    bop_rate: float
    bop_threshold: float
    bias: bool

    @property
    def choices(self) -> tuple[str, str]:
        """The codec and the update, with `auto` resolved."""
        return codec_and_update(self.estimator, self.codec, self.update)

    @property
    def by_loss(self) -> bool:
        """Whether the loss of a whole module is all that it has to see."""
        return bool(self.estimator == "weight-probes")

    def check_weights(self, net: nn.Module) -> None:
        """Raise InputError for weights that are no trits."""
        ternary_parameters(net)

    def check_any(self, net: nn.Module) -> None:
        """Raise InputError for a module with float weights, or for a density that follows the loss."""
        if self.schedule != "constant":
            raise InputError(
                f"schedule = {self.schedule} keeps the density of probes in a net that {self.name} builds, and a "
                "module of yours has no place for it: NoiseStep(estimator='weight-probes', schedule='constant')"
            )
        if self.trit_threshold == "tracked":
            threshold_of(net)
        ternary_parameters(net)
        first_density(self.density, trit_count(net))

    def optimizer_any(self, net: nn.Module) -> torch.optim.Optimizer:
        """Make what keeps the momentum or the accumulators; heads, in a net of stages, have a share of their own."""
        trits = ternary_parameters(net)
        staged = isinstance(net, TernaryNet)
        heads = [p for name, p in trits.items() if staged and name.startswith("heads.")]
        own = {id(p) for p in heads}
        others = [p for p in trits.values() if id(p) not in own]
        if self.choices[1] == "bop":
            shares = [(others, self.bop_rate), (heads, self.bop_rate)]
        else:
            shares = [(others, self.flip_share), (heads, self.head_share or self.flip_share)]
        return TernaryOptimizer(shares if staged else shares[:1])

    def estimate_any(self, net: nn.Module, losses: Losses, noise: Noise, share: Share = WHOLE) -> Update:
        """Return the derivative of the loss along every probe, by a forward-mode pass each."""
        probes = self._sparse(net, noise)
        taken = share.probes(probes.count)
        coefs, loss, statistics = alignments_of_losses(net, losses, probes, noise.stream("module"), taken)
        part = of_share(coefs, taken, probes.count, share)
        return self._settled(net, with_zeros(coefs, probes, {LOSS: loss}, part, statistics))

    def adopt(self, model: nn.Module, example: Tensor, noise: Noise) -> nn.Module:
        """Return a net of the model's own ternary stages, whose last head is its output; the other heads are new."""
        if self.estimator != "local-losses":
            raise InputError(
                f"in a chain of stages of yours {self.name} trains by local losses, got estimator = {self.estimator}; "
                "take local-losses, or weight-probes for any module"
            )
        if self.choices[0] != "flips":
            raise InputError(f"in a chain of stages of yours {self.name} logs flips, got codec = {self.choices[0]}")
        return ternary_around(model, example, self.bias, noise)

    def decide_any(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Return sign and median over all probes of the step, or the flips that the momentum asks for."""
        if self.choices[0] == "trits":
            if not isinstance(update, Seeded):
                raise InputError(f"trits are made of one number per probe (Seeded), got {type(update).__name__}")
            moved = after_step(self.schedule, _schedule_of(net), update)
            if update.coefs.dtype == torch.int8:  # made where they were estimated
                trits = update.coefs
            elif self.trit_threshold == "tracked":
                trits = trits_above(update.coefs, threshold_of(net))
            else:
                trits = sign_and_median(update.coefs)
            return replace(update, coefs=trits, statistics=update.statistics | moved)
        gradients = as_dense(net, update).gradients
        kept = {"statistics": update.statistics, "losses": update.losses}
        if self.choices[1] == "bop":
            return choose_by_threshold(net, gradients, optimizer, self.bop_threshold, **kept)
        if self.choices[1] == "sets":
            return choose_sets(net, gradients, optimizer, self.momentum, self.flip_scaling, self.set_size, **kept)
        return choose_flips(net, gradients, optimizer, self.momentum, self.flip_scaling, **kept)

    def apply_any(self, net: nn.Module, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Move the weights; the same update moves the same weights wherever it is applied."""
        with torch.no_grad():
            if isinstance(update, Flips):
                move(net, update.positions, update.moves)
            elif not isinstance(update, Seeded) or isinstance(update.probes, DenseProbes):
                raise InputError(f"this rule applies trits or flips, got {type(update).__name__}")
            elif self.choices[1] == "accumulators":
                accumulate(net, update.coefs, update.probes, optimizer, self._threshold(update.probes))
            else:
                subtract(net, update.coefs, update.probes)
            if isinstance(update, Seeded) and self.trit_threshold == "tracked":
                follow(net, update.coefs)
            for name, value in update.statistics.items():
                net.get_buffer(name).copy_(value)

    def _settled(self, net: nn.Module, update: Seeded) -> Seeded:
        """Return the trits of a part that took some of the probes, where their threshold is known before the step."""
        if self.trit_threshold == "median" or update.taken is None:
            return update
        return replace(update, coefs=trits_above(update.coefs, threshold_of(net)))

    def _density(self, net: nn.Module) -> tuple[float, int]:
        weights = trit_count(net)
        start = first_density(self.density, weights)
        return density_and_count(self.schedule, _schedule_of(net), start, self.probes, self.most_probes, weights)

    def _threshold(self, probes: Probes) -> int:
        if self.threshold is not None:
            return self.threshold
        return 3 if isinstance(probes, SparseProbes) else round(10 * math.sqrt(probes.count / 2))

    def _sparse(self, net: nn.Module, noise: Noise) -> SparseProbes:
        density, count = self._density(net)
        return SparseProbes(noise.stream("probes"), trit_count(net), count, density, self.exclusive)


def _schedule_of(net: nn.Module) -> Tensor:
    """Where the density stands, in a net that keeps it; at its start in a module of the user's."""
    return net.schedule if isinstance(net, TernaryNet) else torch.zeros(SCHEDULE)
