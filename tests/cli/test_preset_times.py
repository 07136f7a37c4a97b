"""Presets of a rule that train in so many minutes."""

import json

import pytest

from sidestep.cli import catalogue, main, preset_times
from sidestep.presets.catalogue import PRESETS

TIMED = {
    "noprop-best-mnist-ct": {
        "full": {"steps": 6000, "seconds": 0.1, "matrix": 0.02},
        "tiny": {"steps": 300, "seconds": 0.1, "matrix": 0.02},
    },
    "noprop-best-mnist-fm": {"full": {"steps": 60, "seconds": 0.1, "matrix": 0.02}},
    "backprop-best-mnist": {"full": {"steps": 60, "seconds": 0.01, "matrix": 0.02}},
}


@pytest.fixture
def here(monkeypatch):
    """A machine that is twice as slow as the one that the steps were timed on."""
    monkeypatch.setattr(catalogue, "times", lambda: TIMED)
    monkeypatch.setattr(catalogue, "matrix_seconds", lambda: 0.04)


def listed(capsys, *words):
    main(["presets", *words, "--json"])
    return {name: (of["budget"], of["minutes"]) for name, of in json.loads(capsys.readouterr().out).items()}


def test_the_longest_budget_that_fits_is_listed(capsys, here):
    ct, fm = "noprop-best-mnist-ct", "noprop-best-mnist-fm"
    assert listed(capsys, "--rule", "noprop-ct", "--minutes", "20.1") == {ct: ("full", 20.0)}
    assert listed(capsys, "--rule", "noprop-ct", "--minutes", "5") == {ct: ("tiny", 1.0)}
    assert listed(capsys, "--data", "mnist", "--minutes", "0.5") == {
        fm: ("full", 0.2),
        "backprop-best-mnist": ("full", 0.02),
    }
    main(["presets", "--rule", "noprop-fm", "--minutes", "5"])
    said = capsys.readouterr().out
    assert "12 s" in said
    assert preset_times.machine() in " ".join(said.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--minutes 0", "minutes must be above 0, got 0"),
        ("--minutes nan", "minutes must be above 0, got nan"),
        ("--minutes -1", "minutes must be above 0, got -1"),
        ("--rule noprop-ct --minutes 0.5", "takes about 1 min: --minutes 1"),
        ("--rule spsa", "there is no preset of spsa here: leave --rule out"),
        ("--rule noprop-dd", "did you mean noprop-dt"),
        ("--rule noise-step --data text --minutes 5", "of noise-step-text no step was timed"),
    ],
)
def test_what_no_preset_fits_is_said_in_one_sentence(words, said, capsys, here):
    with pytest.raises(SystemExit) as leaving:
        main(["presets", *words.split()])
    printed = capsys.readouterr()
    assert (leaving.value.code, printed.out) == (2, "")
    assert said in printed.err
    assert printed.err.count("\n") == 1


def test_what_was_timed_are_presets_with_all_their_budgets():
    timed = preset_times.times()
    assert set(timed) >= {name for name, of in PRESETS.items() if name.startswith("noprop-best-mnist")}
    for name, budgets in timed.items():
        assert set(budgets) == {"full", *PRESETS[name].budgets}
        assert all(of["steps"] >= 1 and of["seconds"] > 0 and of["matrix"] > 0 for of in budgets.values()), name
