"""The first losses of every rule, written down: a change of numbers must be meant, and named in CHANGELOG.md.

python -m tests.test_golden      writes the file anew
"""

import json
from pathlib import Path

import pytest

from sidestep import data
from sidestep.noise import Noise
from sidestep.rules import (
    RULES,
    SPSA,
    Backprop,
    DirectFeedbackAlignment,
    Evolution,
    FeedbackAlignment,
    ForwardForward,
    ForwardGradient,
    Hebbian,
    LocalLoss,
    NeuralODE,
    NoiseStep,
    NoPropCT,
    NoPropDT,
    NoPropFM,
    Task,
)
from sidestep.training import Options
from sidestep.training.loop import Loop
from sidestep.training.options import Compute
from sidestep.training.state import State

FILE = Path(__file__).parent / "golden" / "losses.json"
STEPS = 6
CASES = {
    "noprop-dt": NoPropDT(blocks=3),
    "noprop-dt learned radial": NoPropDT(blocks=3, embedding="learned", dimension=6, readout="radial"),
    "noprop-dt prototype": NoPropDT(blocks=2, embedding="prototype"),
    "noprop-ct": NoPropCT(),
    "noprop-ct learned paper": NoPropCT(
        loss="paper", schedule="learned", embedding="learned", dimension=6, readout="radial"
    ),
    "noprop-fm": NoPropFM(),
    "noprop-fm velocity": NoPropFM(prediction="velocity", loss="paper", embedding="learned", dimension=6),
    "backprop chained-blocks": Backprop(blocks=3),
    "backprop mlp": Backprop(net="mlp", hidden=(32,)),
    "backprop ternary": Backprop(net="mlp", hidden=(32,), ternary=True),
    "backprop linear": Backprop(net="linear"),
    "backprop accumulated": Backprop(net="mlp", hidden=(32, 16), norm="batch", accumulate=4),
    "backprop deep supervision": Backprop(net="mlp", hidden=(32, 16), deep_supervision=0.3),
    "neural-ode": NeuralODE(steps=4),
    "feedback-alignment": FeedbackAlignment(hidden=(32, 16)),
    "direct-feedback-alignment": DirectFeedbackAlignment(hidden=(32, 16)),
    "local-loss": LocalLoss(hidden=(32, 16), similarity=0.5),
    "forward-forward": ForwardForward(hidden=(32, 16)),
    "hebbian": Hebbian(hidden=(32, 16)),
    "evolution": Evolution(hidden=(16,)),
    "spsa": SPSA(
        hidden=(16,), pairs=4, sides="both", distribution="rademacher", optimizer_kind="sgd", learning_rate=1e-3
    ),
    "forward-gradient": ForwardGradient(hidden=(32, 16)),
    "noise-step": NoiseStep(hidden=(32, 32)),
    "noise-step weight probes": NoiseStep(estimator="weight-probes", hidden=(32,), bias=True),
}


def losses(rule):
    """Return loss name -> its values over the first steps, in float32 on the CPU."""
    digits = data.load("digits")
    task = Task(digits.image_shape, digits.class_names, digits.mean, digits.std)
    compute = Compute.find("cpu", "float32")
    net = rule.build(task, Noise(0).stream("build"), digits.train, None)
    loop, state = Loop(rule, digits, Options(batch=64), compute, None), State(net, rule.optimizer(net))
    found: dict[str, list[float]] = {}
    for _ in range(STEPS):
        state.sums = {}
        loop.take_step(state)
        for name, value in state.sums.items():
            found.setdefault(name, []).append(float(value))
    return found


def test_every_rule_has_a_golden_curve():
    assert {rule.name for rule in CASES.values()} == set(RULES)


@pytest.mark.parametrize("case", CASES)
def test_the_first_losses_are_as_written_down(case):
    wanted = json.loads(FILE.read_text())[case]
    found = losses(CASES[case])
    assert found.keys() == wanted.keys()
    for name in wanted:  # other processors round otherwise, and six steps of Adam let that grow
        assert found[name] == pytest.approx(wanted[name], rel=0.02, abs=1e-4), name


if __name__ == "__main__":
    FILE.write_text(json.dumps({name: losses(rule) for name, rule in CASES.items()}, indent=1) + "\n")
