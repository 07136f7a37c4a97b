"""The first losses of every rule, written down: a change of numbers must be meant, and named in CHANGELOG.md.

python -m tests.test_golden                        writes the curves of cases that have none yet
python -m tests.test_golden "local-loss"           writes that of one case, or of several
python -m tests.test_golden "local-loss" --again   writes it over the one that is there
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sidestep import data
from sidestep.noise import Noise
from sidestep.rules import RULES, SPSA, Backprop, LocalLoss, NoiseStep, NoPropCT, NoPropDT, NoPropFM, Task
from sidestep.training import Options
from sidestep.training.loop import Loop
from sidestep.training.options import Compute
from sidestep.training.state import State
from tests.small_rules import SMALL

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
    "blockwise": SMALL["blockwise"],
    "blockwise vit": SMALL["blockwise vit"],
    "backprop chained-blocks": Backprop(blocks=3),
    "backprop mlp": SMALL["backprop mlp"],
    "backprop ternary": SMALL["backprop ternary"],
    "backprop linear": SMALL["backprop linear"],
    "backprop accumulated": Backprop(net="mlp", hidden=(32, 16), norm="batch", accumulate=4),
    "backprop deep supervision": Backprop(net="mlp", hidden=(32, 16), deep_supervision=0.3),
    "neural-ode": SMALL["neural-ode"],
    "feedback-alignment": SMALL["feedback-alignment"],
    "direct-feedback-alignment": SMALL["direct-feedback-alignment"],
    "local-loss": LocalLoss(hidden=(32, 16), similarity=0.5),
    "forward-forward": SMALL["forward-forward"],
    "hebbian": SMALL["hebbian"],
    "evolution": SMALL["evolution"],
    "spsa": SPSA(
        hidden=(16,), pairs=4, sides="both", distribution="rademacher", optimizer_kind="sgd", learning_rate=1e-3
    ),
    "forward-gradient": replace(SMALL["forward-gradient"], hidden=(32, 16), groups=16),
    "noise-step": NoiseStep(hidden=(32, 32)),
    "noise-step weight probes": SMALL["noise-step weight probes"],
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


def write(names, again, file=FILE):
    """Write the curves of some cases, and leave the lines of all others as they are."""
    written = json.loads(file.read_text()) if file.exists() else {}
    unknown = [name for name in names if name not in CASES]
    if unknown:
        return f"there is no case {unknown[0]!r}; there are: {', '.join(CASES)}"
    there = [name for name in names if name in written]
    if there and not again:
        return f"{', '.join(there)}: there already; a change of numbers must be meant, --again writes over them"
    new = {name: losses(CASES[name]) for name in names or CASES if name in names or name not in written}
    curves = written | new
    file.write_text(json.dumps({name: curves[name] for name in CASES if name in curves}, indent=1) + "\n")
    print("written:", ", ".join(new) or "nothing, since every case has its curve")
    return None


class TestWriting:
    def test_one_case_is_written_and_the_others_keep_their_bytes(self, tmp_path, capsys):
        curves = json.loads(FILE.read_text())
        moved = {name: curve for name, curve in curves.items() if name != "backprop linear"}
        file = tmp_path / "losses.json"
        file.write_text(json.dumps(moved, indent=1) + "\n")
        assert write(["backprop linear"], again=False, file=file) is None
        before, after = FILE.read_text().splitlines(), file.read_text().splitlines()
        assert len(before) == len(after)
        assert sum(one != two for one, two in zip(before, after, strict=True)) <= STEPS  # other processors' digits
        assert "written: backprop linear" in capsys.readouterr().out

    def test_what_is_there_is_kept_unless_asked(self, tmp_path):
        file = tmp_path / "losses.json"
        file.write_text('{"hebbian": {"a": [1.0]}, "backprop linear": {"a": [1.0]}}')
        assert "backprop linear: there already" in write(["backprop linear"], again=False, file=file)
        assert json.loads(file.read_text())["backprop linear"] == {"a": [1.0]}
        assert write(["backprop linear"], again=True, file=file) is None
        curves = json.loads(file.read_text())
        assert curves["hebbian"] == {"a": [1.0]}
        assert curves["backprop linear"].keys() == {"net: cross-entropy"}

    def test_another_name_is_refused(self):
        assert "there is no case 'x'" in write(["x"], again=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="CASE")
    parser.add_argument("--again", action="store_true", help="write over curves that are there")
    given = parser.parse_args()
    sys.exit(write(given.names, given.again))
