"""noise_step: ternary nets whose history of steps is the model.

As the source has it (`--estimator weight-probes`):

    nu_i    = Bernoulli(s) * U{-1, 1} per weight, from the seed       alpha_i = d loss / d w along nu_i, by forward mode
    tau_i   = sgn(alpha_i) if |alpha_i| >= median_j |alpha_j| else 0  one trit per probe
    w      <- clamp(w - clamp(sum_i tau_i nu_i, -1, 1), -1, 1)

Three choices make it a family: what estimates the gradient, what is logged of it, and how logged values move weights.
The default, local losses, is ternary local back-propagation with logged flips: reverse mode, within each stage.
Sources: Brickner, "noise_step: Training in 1.58b With No Gradient Memory" (2024); for the other estimators see
`sidestep.gradients.ternary_directions` and `sidestep.gradients.local_losses`, for flips `sidestep.rules.shared.flips`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sidestep.checks import check_positive, check_range
from sidestep.errors import InputError
from sidestep.gradients.end_to_end import end_to_end
from sidestep.gradients.local_losses import floating, local_gradients
from sidestep.gradients.local_probes import LocalProbes, check_local_probes, local_probe_gradients
from sidestep.gradients.probed_tail import Guide
from sidestep.gradients.tangents.alignments import alignments
from sidestep.gradients.ternary_directions import activity_gradients, check_chain, rank_one_alignments, rank_one_shapes
from sidestep.nets.check_module import inplace_explained
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.stages.heads import answers_of_heads
from sidestep.nets.substituted import functional_call
from sidestep.nets.ternary.causal import ternary_causal_net, ternary_shares_net
from sidestep.nets.ternary.layers import ternary_parameters, trit_count
from sidestep.nets.ternary.nets import TernaryNet, ternary_conv_net, ternary_mlp, ternary_own
from sidestep.nets.trained import set_training
from sidestep.probes import RankOneProbes
from sidestep.rules.protocol import Batch, Dense, Division, ImagePath, Noise, Rule, Split, Takes, Task, Update
from sidestep.rules.shared.any_module import of_examples, of_share, one_unit
from sidestep.rules.shared.codecs import LOCAL, check_choices, check_tokens, codec_and_update, note_projection
from sidestep.rules.shared.dense import numbered_units
from sidestep.rules.shared.density import DensitySchedule, first_density
from sidestep.rules.shared.flip_scaling import FlipScaling
from sidestep.rules.shared.ternary_steps import TernarySteps
from sidestep.rules.shared.tracked import start_threshold, threshold_of
from sidestep.rules.shared.trits import along_probes, with_zeros

__all__ = ["NoiseStep"]


@dataclass(frozen=True)
class NoiseStep(TernarySteps, Rule[TernaryNet]):
    """Train ternary weights by local back-propagation or by probes; the log of the steps rebuilds them."""

    net: Literal["mlp", "conv"] = "mlp"
    """Network: dense layers or 3 x 3 convolutions, each with a norm and ReLU. Of rows of tokens: dense layers on
    windows up to each place for the next token, else on how often each token stands in a row."""
    hidden: tuple[int, ...] = (512, 512)
    """Widths of the MLP's hidden layers, or channels of the conv net's stages."""
    pooled: tuple[int, ...] | None = None
    """Stages of the conv net that pool, from 1. Default: the first ones, while a feature map has 9 rows or more."""
    norm: Literal["auto", "layer", "batch"] = "auto"
    """Norm of the stages, without scales: over each example's features, or for local losses over the batch, with
    running statistics, which the log keeps too. Default: batch for local losses in conv nets, otherwise layer."""
    bias: bool = False
    """Give every layer a ternary bias, as the paper has it (in a module of your own, the heads)."""
    estimator: Literal["local-losses", "local-probes", "weight-probes", "rank-one", "activity-probes"] = "local-losses"
    """What estimates the gradient. local-losses: local back-propagation, of a loss of its own in each stage.
    weight-probes: the paper's, by forward mode; in MLPs by mixed mode. Forward-only: local-probes, local losses along
    directions on each layer's outputs; rank-one, a probe per example; activity-probes, such directions of all."""
    directions: int | None = None
    """Directions per example and stage of local-probes. Default: a complete set, as many as a layer has outputs, which
    gives the exact local gradient; in modules of your own, where each may cost a pass, 64."""
    guide: Guide = "none"
    """Directions before the random ones of local-probes: fixed random feedback of the loss, or the head's own rows."""
    codec: Literal["auto", "trits", "flips"] = "auto"
    """What is logged: sign and median of one number per probe, or which weights move. Default: trits with weight-probes
    and rank-one, otherwise flips."""
    update: Literal["auto", "clamped-sum", "accumulators", "flips", "sets", "bop"] = "auto"
    """How weights move: by the clamped sum of the signed probes (the paper's), when integer accumulators of that sum
    reach a threshold, by direct flips with momentum, by seeded sets of moves, each the best of 256 and a byte of the
    log, or by Bop's (Helwegen et al. 2019), where the gradient's moving average is above a threshold. Default: flips
    for flips, accumulators for the trits of rank-one, otherwise clamped-sum."""
    trit_threshold: Literal["median", "tracked"] = "median"
    """How large a number of a probe has to be for a trit that is not 0: the median of the step's, or one tracked from
    the trits of earlier steps, with which ranks that divide probes exchange trits alone."""
    probes: int = 128
    """Number of weight probes per step, K, or of probes that a gradient is projected on for the trits of a log."""
    tangents: int = 1
    """Forward-mode passes per step of rank-one (a probe per example each) and activity-probes."""
    density: float | None = None
    """Share of non-zeros in a sparse probe, s. Default: 16 / (number of weights)."""
    schedule: DensitySchedule = "two-stage"
    """Whether the density falls: to a quarter at loss 2 and again at loss 1 (the paper), by half when the loss rises
    (with twice the probes), or not at all."""
    most_probes: int = 1024
    """Largest number of probes that the loss-triggered schedule goes to."""
    exclusive: bool = False
    """Draw probes without replacement, each with the same number of non-zeros: none is empty."""
    threshold: int | None = None
    """Evidence, in probes, at which an accumulator moves its weight. Default: 3; 10 sqrt(K / 2) with rank-one, whose
    probes each touch all weights."""
    flip_share: float = 0.002
    """Share of a layer's weights that flip per step, p, or that seeded sets draw; --decay lets it fall."""
    head_share: float | None = None
    """The same for the heads, which are small. Default: flip_share."""
    flip_scaling: FlipScaling = "layer"
    """By what the momentum of direct flips divides gradients: the layer's root mean square, or running ones of its rows
    and columns, too, for tokens of which some are rare."""
    set_size: int = 4
    """Moves in a seeded set, n: a byte of the log makes as many."""
    momentum: float = 0.95
    """Decay of the momentum of direct flips and of sets, beta."""
    bop_rate: float = 1e-3
    """Share of a new gradient in Bop's moving average, gamma; --decay lets it fall."""
    bop_threshold: float = 3e-6
    """Size that Bop's moving average must pass for a weight to move, tau."""
    label_smoothing: float = 0.1
    """Share of a label that is spread over all classes, in local losses."""
    memory: int = 256
    """Memory for the tangents of weight probes, in MiB: more are carried at once if it is larger."""

    name: ClassVar[str] = "noise-step"
    summary: ClassVar[str] = (
        "Ternary nets by local back-propagation, or by probes (noise_step); the log of steps is the model"
    )
    takes: ClassVar[Takes] = Takes(
        "stages",
        inputs=("image", "features", "tokens"),
        targets=("classes", "labels", "values", "tokens", "own"),
        log="yes",
        optimizer=False,
    )
    readings: ClassVar[tuple[str, ...]] = ("forward", "heads")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, 1 << 24, probes=self.probes, most_probes=self.most_probes)
        check_range(1, 10_000, tangents=self.tangents)
        check_range(1, 256, set_size=self.set_size)
        if self.threshold is not None:
            check_range(1, 1 << 30, threshold=self.threshold)
        check_positive(1, flip_share=self.flip_share, bop_rate=self.bop_rate)
        check_range(0, 1e6, bop_threshold=self.bop_threshold)
        if self.head_share is not None:
            check_positive(1, head_share=self.head_share)
        check_range(0, 0.9999, momentum=self.momentum)
        check_range(1, 1 << 20, memory=self.memory)
        check_choices(self.net, self.norm, self.pooled, self.estimator, self.directions, self.guide)
        if codec_and_update(self.estimator, self.codec, self.update)[1] != "flips" and self.flip_scaling != "layer":
            raise InputError(
                f"flip_scaling = {self.flip_scaling} is for direct flips, and update = {self.choices[1]} has no "
                "momentum that it could scale; leave it out, or take codec = flips and update = flips"
            )
        if self.choices[0] != "trits" and self.trit_threshold != "median":
            raise InputError(
                f"trit_threshold = {self.trit_threshold} is for codec = trits, and estimator = {self.estimator} logs "
                f"{self.choices[0]} here; leave it out, or take estimator = weight-probes"
            )

    @property
    def divides(self) -> Mapping[Division, int]:
        """The batch, and of weight probes their number."""
        return {"batch": 0, "probes": self.probes} if self.estimator == "weight-probes" else {"batch": 0}

    @property
    def common_noise(self) -> bool:
        """The probes, of which trits are made, are the same in every part of a step."""
        return self.choices[0] == "trits"

    @property
    def takes_signs(self) -> bool:
        """The momentum of flips divides each gradient by its root mean square."""
        return self.choices == ("flips", "flips") and self.flip_scaling == "layer"

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> TernaryNet:
        """Make the ternary net; a module of the user's takes the place of its stages."""
        local = self.estimator in LOCAL
        if "tokens" in (task.inputs, task.targets):
            check_tokens(task, module, self.estimator, self.net)
        if module is not None:
            net = ternary_own(module, task.shape, task.classes, self.bias, local, noise.stream("own"))
        else:
            net = self._make(task)
        net.draw(noise.stream("trits"))
        if self.trit_threshold == "tracked":
            start_threshold(net)
        if self.estimator in ("rank-one", "activity-probes"):
            check_chain(net)
        if self.estimator == "local-probes":
            check_local_probes(net, task.shape, LocalProbes(self.directions, self.guide))
        first_density(self.density, trit_count(net))
        if self.choices[0] == "trits" and self.estimator in (*LOCAL, "activity-probes") and examples is not None:
            note_projection(self.estimator, self.probes, trit_count(net))
        return net

    def fits(self, net: TernaryNet) -> bool:
        """Whether a net is one that this rule builds with its hyper-parameters."""
        return net.ternary and (net.local or self.estimator not in LOCAL)

    def units(self, net: TernaryNet) -> dict[str, list[str]]:
        """Return the stages with their heads for local losses, otherwise the one unit: all parameters."""
        if self.estimator not in LOCAL:
            return one_unit(net)
        return {unit: list(own) for unit, own in numbered_units(net, len(net.stages)).items()}

    def optimizer(self, net: TernaryNet) -> torch.optim.Optimizer:
        """Make what keeps the momentum or the accumulators; it has no learning rate, but the share of flips."""
        return self.optimizer_any(net)

    def estimate(self, net: TernaryNet, batch: Batch, noise: Noise) -> Update:
        """Return the derivative along every probe, or a gradient, each up to a positive factor.

        weight-probes: of the batch's mean cross-entropy, exact; activity-probes: an unbiased gradient of it; rank-one:
        of each example's own; local-losses: exact gradients of each stage's smoothed loss, local-probes: unbiased ones.
        """
        data, objective = (batch.inputs, batch.targets), batch.objective
        set_training(net)
        seeded = noise.stream("module").torch_seeded(batch.inputs.device)  # for modules that draw in their forward pass
        with torch.no_grad(), kept_statistics(net) as changed, seeded, inplace_explained():
            if self.estimator == "weight-probes":
                probes, memory = self._sparse(net, noise), self.memory << 20
                taken = batch.share.probes(probes.count)
                coefs, loss = alignments(net, *data, probes, memory, objective.unless_classes, taken)
                part = of_share(coefs, taken, probes.count, batch.share)
                return self._settled(net, with_zeros(coefs, probes, {f"net: {objective.name}": loss}, part))
            if self.estimator == "rank-one":
                whole = batch.share.whole(len(batch.targets))
                rank_one = RankOneProbes(noise.stream("probes"), rank_one_shapes(net), self.tangents * whole)
                own = batch.share.examples(whole)
                coefs, loss = rank_one_alignments(net, *data, rank_one, objective, (own.start, whole))
                losses, part = {f"net: {objective.name}": loss}, of_examples(coefs, own, whole)
                return self._settled(net, with_zeros(coefs, rank_one, losses, part))
            if self.estimator == "activity-probes":
                gradients, loss = activity_gradients(net, *data, noise.stream("activities"), self.tangents, objective)
                losses = {f"net: {objective.name}": loss}
            elif self.estimator == "local-probes":
                ways = LocalProbes(self.directions, self.guide, self.label_smoothing)
                gradients, losses = local_probe_gradients(net, *data, noise, ways, objective)
            else:
                gradients, losses = local_gradients(net, *data, self.label_smoothing, objective)
            if self.choices[0] == "flips":
                return Dense(gradients, changed(), losses)
            probes = self._sparse(net, noise)
            coefs = along_probes(net, gradients, probes)
            part = of_share(coefs, range(probes.count), probes.count, batch.share)
            return with_zeros(coefs, probes, losses, part, changed())

    def true_gradients(self, net: TernaryNet, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the last head's mean cross-entropy by the trits, taken for real numbers."""
        weights = {name: leaf.requires_grad_() for name, leaf in floating(net, batch.inputs).items()}
        return end_to_end(net, batch, lambda images: functional_call(net, weights, (images,)), weights)

    def decide(self, net: TernaryNet, update: Update, optimizer: torch.optim.Optimizer) -> Update:
        """Return sign and median over all probes of the step, or the flips that the momentum asks for."""
        return self.decide_any(net, update, optimizer)

    def apply(self, net: TernaryNet, update: Update, optimizer: torch.optim.Optimizer) -> None:
        """Move the weights; the same update moves the same weights wherever it is applied."""
        self.apply_any(net, update, optimizer)

    def predict(
        self, net: TernaryNet, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the softmax of the last head's logits, and of the sum of all heads'."""
        return answers_of_heads(net, images, self.readings if names is None else names)

    def diagnostics(self, net: TernaryNet) -> dict[str, float]:
        """Return the share of weights that are not zero, and where the density of probes stands."""
        trits = ternary_parameters(net).values()
        found = {"share of non-zero weights": sum(int(t.count_nonzero()) for t in trits) / trit_count(net)}
        if self.choices[0] == "trits" and self.estimator != "rank-one":
            density, count = self._density(net)
            found |= {"non-zeros per probe": density * trit_count(net), "probes": count}
        if self.trit_threshold == "tracked":
            found["threshold of trits"] = threshold_of(net)
        return found

    def _make(self, task: Task) -> TernaryNet:
        local = self.estimator in LOCAL
        if task.inputs == "tokens":
            if task.targets == "tokens":
                return ternary_causal_net(task.shape[0], task.classes, self.hidden, self.bias)
            return ternary_shares_net(task.vocabulary, self.hidden, task.classes, self.bias)
        if self.net == "mlp":
            return ternary_mlp(task.shape, self.hidden, task.classes, self.bias, local)
        auto = "batch" if self.estimator == "local-losses" else "group"
        norm = {"auto": auto, "layer": "group"}.get(self.norm, self.norm)
        return ternary_conv_net(task.shape, self.hidden, task.classes, self.bias, local, self.pooled, norm)
