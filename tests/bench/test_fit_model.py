"""Which way to train a model of one's own: what is measured, what is recommended, and what is refused."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from sidestep.bench.memory import model_ways
from sidestep.bench.memory.model_ways import (
    WAYS,
    Found,
    ModelCost,
    ModelWork,
    best_of,
    fit_model,
    model_cost,
    recommended,
)
from sidestep.cli import main
from sidestep.data import load
from sidestep.data.objective import CLASSES
from sidestep.data.task import Task
from sidestep.noise import Noise

MIB = 1 << 20


def tiny():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def made():
    with Noise(0).torch_seeded():
        return tiny()


def found(label, mebibytes, loss):
    return Found(label, ModelCost(mebibytes * MIB, 0.1, 10, loss), None)


def test_the_least_loss_of_what_fits_is_recommended_and_backprop_where_it_wins():
    ways = [found("back-propagation, AdamW", 100, 0.1), found("micro", 40, 0.101), found("zeroth order", 30, 2.0)]
    assert recommended(ways, 200 * MIB).startswith("Use micro (40 MiB")  # about as good, in less memory
    assert best_of(ways, 35 * MIB).label == "zeroth order"
    assert "2 of 3 ways take more than 35 MiB" in recommended(ways, 35 * MIB)
    said = recommended(ways, 10 * MIB)
    assert said.startswith("Nothing fits into 10 MiB. The least that would: zeroth order (30 MiB")
    assert best_of([found("broken", 1, float("nan"))], 200 * MIB) is None


@pytest.mark.parametrize("label", [way for way in WAYS if way.startswith("back-propagation, AdamW")])
def test_every_cut_of_the_same_step_takes_the_same_step(label):
    inputs, targets = Noise(0).normal(32 * 64).view(32, 1, 8, 8), torch.arange(32) % 10
    plain, other = made(), made()
    WAYS["back-propagation, AdamW"](plain, CLASSES)(inputs, targets)
    WAYS[label](other, CLASSES)(inputs, targets)
    assert not torch.equal(plain[1].weight, made()[1].weight)
    torch.testing.assert_close(dict(other.named_parameters()), dict(plain.named_parameters()), rtol=1e-3, atol=2e-5)


def test_checkpointed_parts_are_computed_twice():
    calls = 0

    class Counted(nn.ReLU):
        def forward(self, rows):
            nonlocal calls
            calls += 1
            return super().forward(rows)

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Counted(), nn.Linear(16, 10))
    WAYS["back-propagation, AdamW, checkpointed"](net, CLASSES)(torch.ones(4, 1, 8, 8), torch.arange(4))
    assert calls == 2


@pytest.fixture
def here(monkeypatch):
    """Measurements in this process, of few ways."""
    data = load("digits")
    few = "back-propagation, AdamW, checkpointed"
    monkeypatch.setattr(model_ways, "WAYS", {few: WAYS[few]})

    def measured(function, *arguments):
        try:
            return function(*arguments), None
        except Exception as error:  # as the other process would tell of it
            return None, f"{type(error).__name__}: {error}"

    monkeypatch.setattr(model_ways, "in_fresh_process", measured)
    return data


def test_a_way_learns_and_one_that_cannot_says_why(here):
    data = here
    work = ModelWork(tiny, Task.of(data), data.train.images[:600], data.train.targets[:600], 64, {}, 0.2)
    cost = model_cost(work, "back-propagation, AdamW, checkpointed")
    assert cost.steps >= 2
    assert cost.loss < 2.4
    assert cost.seconds > 0
    lines = []
    broken = ModelWork(lambda: nn.Linear(8, 10), work.task, work.inputs, work.targets, 64, {}, 0.0)
    ways = fit_model(broken, lines.append)
    assert "no nn.Sequential or nn.ModuleList" in ways[0].why
    assert lines[0].startswith("1 of 1: back-propagation, AdamW, checkpointed")
    assert "no nn.Sequential or nn.ModuleList" in lines[1]


def test_the_command_recommends_and_ends_with_1_where_nothing_fits(here, tmp_path, capsys):
    file = tmp_path / "own.py"
    layers = "nn.Flatten(), nn.Linear(64, 60_000), nn.Linear(60_000, 10)"  # so large that a step is felt in any process
    file.write_text(f"from torch import nn\ndef make():\n    return nn.Sequential({layers})\n")
    common = ["fit-memory", "--module", f"{file}:make", "--data", "digits", "--seconds", "0", "--batch", "32", "--json"]
    main([*common, "--budget", "4GiB"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["use"] in [way["label"] for way in record["ways"]]
    assert [way["why"] for way in record["ways"]] == [None, None, None]
    assert all(way["steps"] == 2 for way in record["ways"])
    command = [sys.executable, "-m", "sidestep", *common[:-1], "--budget", "1MiB"]
    own = subprocess.run(command, capture_output=True, text=True)  # this process may have freed memory for the steps
    assert own.returncode == 1, own.stdout
    assert "Nothing fits into 1 MiB. The least that would:" in own.stderr


def test_a_misspelt_module_gets_a_suggestion(tmp_path, capsys):
    (tmp_path / "own.py").write_text("def make_net():\n    return None\n")
    for reference, said in (
        ("own.py:mak_net", "did you mean 'make_net'?"),
        ("onw.py:make_net", "did you mean 'own.py'?"),
    ):
        with pytest.raises(SystemExit):
            main(["fit-memory", "--budget", "1GiB", "--module", f"{tmp_path}/{reference}", "--data", "digits"])
        assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--module needs examples"),
        (["--data", "digits", "--rule", "spsa"], "leave --rule and its options out"),
        (["--data", "digits", "--blocks", "3"], "leave --rule and its options out"),
    ],
)
def test_what_has_no_use_beside_a_module_is_refused(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit-memory", "--budget", "1GiB", "--module", "own.py:make", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
