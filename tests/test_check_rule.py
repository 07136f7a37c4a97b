"""`sidestep.testing`: a rule that keeps its promises passes, and each planted fault is found by its check."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from sidestep import data, testing
from sidestep.errors import InputError
from sidestep.gradients.end_to_end import gradients_of
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.stages.layerwise import LayerwiseNet, layerwise_net
from sidestep.noise import Noise
from sidestep.rules import SPSA, Evolution, OutputRule, Takes
from sidestep.update import Dense


@dataclass(frozen=True)
class Plain(OutputRule[LayerwiseNet]):
    """Back-propagation as somebody else would write it."""

    hidden: tuple[int, ...] = (8, 8)
    """Widths of the hidden layers."""
    norm: str = "batch"
    """Norm before each ReLU."""
    learning_rate: float = 1e-3
    """Step size."""
    weight_decay: float = 1e-3
    """Weight decay."""

    name: ClassVar[str] = "plain"
    summary: ClassVar[str] = "Back-propagation"
    takes: ClassVar[Takes] = Takes(targets=("classes", "labels", "values", "own"))

    def build(self, task, noise, examples, module):
        with noise.stream("layers").torch_seeded():
            return layerwise_net("mlp", task.shape, self.hidden, task.classes, self.norm, local=False)

    def estimate(self, net, batch, noise):
        net.train()
        with kept_statistics(net) as changed:
            loss = batch.objective.mean(net(batch.inputs), batch.targets)
            gradients = gradients_of(loss, dict(net.named_parameters()))
            return Dense(gradients, changed(), {"net: loss": loss.detach()})


FAULTS = {}


def fault(check):
    """Plant a fault, which this check is to find."""

    def planted(kind):
        FAULTS[kind.__name__] = (check, dataclass(frozen=True)(kind))
        return kind

    return planted


def scaled(update, factor):
    return replace(update, gradients={name: gradient * factor for name, gradient in update.gradients.items()})


@fault("net_follows_the_seed")
class OneSeedForAll(Plain):
    def build(self, task, noise, examples, module):
        return super().build(task, Noise(5), examples, module)


@fault("net_follows_the_seed")
class NoSeed(Plain):
    def build(self, task, noise, examples, module):
        return layerwise_net("mlp", task.shape, self.hidden, task.classes, self.norm, local=False)


@fault("torch_generator_stays")
class DrawsFromTorch(Plain):
    def estimate(self, net, batch, noise):
        torch.rand(1)
        return super().estimate(net, batch, noise)


@fault("estimate_leaves_the_net")
class MovesStatistics(Plain):
    def estimate(self, net, batch, noise):
        net.train()
        loss = batch.objective.mean(net(batch.inputs), batch.targets)
        return Dense(gradients_of(loss, dict(net.named_parameters())), {}, {"net: loss": loss.detach()})


@fault("estimate_leaves_the_net")
class LeavesGradients(Plain):
    def estimate(self, net, batch, noise):
        update = super().estimate(net, batch, noise)
        batch.objective.mean(net.eval()(batch.inputs), batch.targets).backward()
        return update


@fault("estimate_follows_the_seed")
class CountsItsCalls(Plain):
    calls: ClassVar[list[int]] = []

    def estimate(self, net, batch, noise):
        self.calls.append(1)
        return scaled(super().estimate(net, batch, noise), 1 / len(self.calls))


@fault("losses_are_named")
class NamelessLoss(Plain):
    def estimate(self, net, batch, noise):
        update = super().estimate(net, batch, noise)
        return replace(update, losses={"loss": update.losses["net: loss"]})


@fault("losses_are_named")
class LossWithItsGraph(Plain):
    def estimate(self, net, batch, noise):
        update = super().estimate(net, batch, noise)
        return replace(update, losses={"net: loss": next(net.parameters()).square().mean()})


@fault("units_cover")
class ForgetsOne(Plain):
    def units(self, net):
        return {"net": super().units(net)["net"][1:]}


@fault("units_cover")
class TwoUnitsShareOne(Plain):
    def units(self, net):
        names = super().units(net)["net"]
        return {"first": names[:2], "second": names[1:]}


@fault("decide_leaves_the_net")
class DecidesByWriting(Plain):
    def decide(self, net, update, optimizer):
        with torch.no_grad():
            next(net.parameters()).add_(1)
        return update


@fault("apply_repeats")
class AppliesByTheGenerator(Plain):
    def apply(self, net, update, optimizer):
        super().apply(net, scaled(update, float(torch.rand(()))), optimizer)


@fault("apply_repeats")
class NeverMoves(Plain):
    def apply(self, net, update, optimizer):
        pass


@fault("frozen_stays")
class DecaysAll(Plain):
    def apply(self, net, update, optimizer):
        super().apply(net, update, optimizer)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(0.99)


@fault("hyper_parameters_survive")
class WidensItself(Plain):
    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "hidden", (*self.hidden, 8))


@fault("hyper_parameters_are_explained")
class Unexplained(Plain):
    sharpness: float = 1.0

    other: float = 2.0
    """Another one."""


@fault("rates_are_checked")
class TakesAnyRate(Plain):
    def __post_init__(self):
        pass


@fault("predictions_fit")
class PredictsLogits(Plain):
    def predict(self, net, images, noise, start=0, names=None):
        return {"forward": net.eval()(images).detach()}


@fault("predictions_fit")
class AnotherReading(Plain):
    def predict(self, net, images, noise, start=0, names=None):
        return {"output": super().predict(net, images, noise)["forward"]}


@fault("predictions_repeat")
class PredictsInTraining(Plain):
    def predict(self, net, images, noise, start=0, names=None):
        return {"forward": net.train()(images).softmax(dim=1).detach()}


@fault("predictions_repeat")
class LooksAtTheBatch(Plain):
    def predict(self, net, images, noise, start=0, names=None):
        return super().predict(net, images - images.mean(dim=0), noise)


@fault("batch_of_one")
class NeedsTwo(Plain):
    norm: str = "none"
    """Norm before each ReLU."""

    def estimate(self, net, batch, noise):
        if len(batch.targets) < 2:
            raise InputError("two, please")
        return super().estimate(net, batch, noise)


@fault("batch_of_one")
class DividesByTheSpread(Plain):
    norm: str = "none"
    """Norm before each ReLU."""

    def estimate(self, net, batch, noise):
        return scaled(super().estimate(net, batch, noise), 1 / batch.inputs.flatten(1).std(dim=0).mean())


@fault("resume_has_the_same_bits")
class RemembersBesideTheNet(Plain):
    def estimate(self, net, batch, noise):
        net.calls = getattr(net, "calls", 0) + 1
        return scaled(super().estimate(net, batch, noise), net.calls)


@fault("log_replays")
class AppliesWhatItSaw(SPSA):
    hidden: tuple[int, ...] = (8,)
    """Widths of the hidden layers."""

    def estimate(self, net, batch, noise):
        net.seen = float(batch.inputs.mean())
        return super().estimate(net, batch, noise)

    def apply(self, net, update, optimizer):
        super().apply(net, update, optimizer)
        with torch.no_grad():
            next(net.parameters()).add_(getattr(net, "seen", 0.0))


def test_every_check_has_a_fault_that_it_finds():
    assert {check for check, _ in FAULTS.values()} == set(testing.CHECKS)


@pytest.mark.parametrize("check", testing.CHECKS)
@pytest.mark.parametrize("rule", [Plain(), Plain(norm="none"), SPSA(hidden=(8,))], ids=["norm", "plain", "spsa"])
def test_a_sound_rule_passes(rule, check):
    testing.check_rule(rule, only=check)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name):
    check, kind = FAULTS[name]
    with pytest.raises(testing.CheckFailedError, match=f"^{check}, of {kind.name}: "):
        testing.check_rule(kind(), only=check)


def test_all_checks_run_and_the_first_fault_is_reported_as_an_assertion():
    with pytest.raises(AssertionError, match="units_cover"):
        testing.check_rule(FAULTS["ForgetsOne"][1](), only=["net_follows_the_seed", "units_cover"])


class Real(Plain):
    takes: ClassVar[Takes] = Takes(targets=("values",), inputs=("features",))


def test_data_follow_what_a_rule_takes_or_are_given():
    testing.check_rule(Real(), only=["predictions_fit", "estimate_leaves_the_net"])
    testing.check_rule(Plain(), "digits", only="predictions_fit")
    testing.check_rule(Plain(), data.load("digits"), only="units_cover")


def test_a_batch_is_a_multiple_of_what_the_rule_needs():
    testing.check_rule(Evolution(hidden=(8,), per="group", group=12), only="estimate_leaves_the_net")


class Tokens(Plain):
    takes: ClassVar[Takes] = Takes(targets=("tokens",), inputs=("tokens",))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (lambda: testing.check_rule(Plain), "make one, MyRule"),
        (lambda: testing.check_rule(Plain(), only="bits"), "no check 'bits'; there are: "),
        (lambda: testing.check_rule(Tokens()), "give a data set"),
        (lambda: testing.check_rule(Plain(), 3), "data must be a data set"),
    ],
)
def test_what_cannot_be_checked_is_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        arguments()


@pytest.mark.parametrize("rule", [MovesStatistics(), LeavesGradients()])
def test_of_all_checks_the_one_that_a_fault_is_about_speaks(rule):
    with pytest.raises(testing.CheckFailedError, match=r"^estimate_leaves_the_net"):
        testing.check_rule(rule)
