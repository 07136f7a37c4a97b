"""`sidestep fit-memory`: budgets, predictions, the choice, and what the command says."""

import json
import re

import pytest

from sidestep.bench.memory import fit as module
from sidestep.bench.memory.fit import Line, Row, Way, fit_memory, fit_table, parse_bytes, small_batches, verdict
from sidestep.bench.memory.step_cost import Cost, Work, in_fresh_process, step_cost
from sidestep.cli import main
from sidestep.cli.fit_memory import FitOptions, ShapeOptions, _ways
from sidestep.errors import InputError
from sidestep.rules import (
    RULES,
    SPSA,
    Backprop,
    DirectFeedbackAlignment,
    FeedbackAlignment,
    Hebbian,
    LocalLoss,
    NoiseStep,
    NoPropDT,
)
from sidestep.rules.protocol import UnitByUnit

MIB = 1 << 20
SHAPE = (1, 8, 8)
DIGITS = ShapeOptions(data="digits")


def row(label, megabytes, seconds, own=True):
    cost = Cost(round(megabytes * MIB), seconds)
    return Row(label, own, cost, cost)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 * MIB), ("2GB", 2 * 10**9), ("1.5GiB", 3 * 2**29), (" .5 kib ", 512), ("7b", 7), ("1TB", 10**12)],
)
def test_budgets_are_parsed(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "512", "MiB", "-1GB", "0MiB", "1,5GB", "1e3MB", "nanGB", "5 parsecs", "9" * 50 + "B"]
)
def test_budgets_that_are_none(text):
    with pytest.raises(InputError, match=r"such as 512MiB, 2GB or 1\.5GiB"):
        parse_bytes(text)


def test_a_line_through_two_batches_gives_the_others():
    line = Line.through(16, Cost(1160, 0.26, 50), 32, Cost(1320, 0.42, 50))
    assert line.at(128) == (1000 + 128 * 10, pytest.approx(0.1 + 128 * 0.01), 50)
    assert line.at(128, micro=8) == (1000 + 16 * 10 + 50, pytest.approx(8 * 0.1 + 128 * 0.01), 50)
    falling = Line.through(16, Cost(200, 0.2), 32, Cost(180, 0.1))  # noise: never less with more images
    assert falling.at(128) == (180, pytest.approx(0.1), 0)


def test_small_batches():
    assert small_batches(128) == (16, 32)
    with pytest.raises(InputError, match="16 or more"):
        small_batches(15)


class TestVerdict:
    def test_nothing_fits(self):
        rows = [row("a", 300, 1), row("b", 200, 5), row("backprop", 900, 1, own=False)]
        assert verdict(rows, 100 * MIB) == "Nothing fits into 100 MiB. The least that would: b (200 MiB, 5 s a step)."

    def test_backprop_fits_and_is_faster(self):
        rows = [row("a", 300, 1.5), row("checkpointed", 200, 1, own=False), row("backprop", 900, 0.5, own=False)]
        said = verdict(rows, 400 * MIB)
        assert said.startswith("checkpointed (200 MiB, 1 s a step) is the better choice: it fits, a step is 1.50 times")
        assert said.endswith("as that of a (300 MiB, 1.5 s a step), and it takes less memory.")

    def test_of_two_that_are_as_fast_the_smaller_one(self):
        rows = [row("a", 300, 1), row("backprop", 200, 1.03, own=False)]
        assert verdict(rows, 400 * MIB).startswith("backprop (200 MiB, 1.03 s a step) is the better choice")
        rows = [row("a", 200, 1.03), row("backprop", 300, 1, own=False)]
        said = verdict(rows, 400 * MIB)
        assert said.startswith("a (200 MiB, 1.03 s a step) is the better choice: it fits, a step is about as fast")

    def test_one_kind_alone_fits(self):
        rows = [row("a", 100, 9), row("backprop", 300, 1, own=False)]
        assert "of those of back-propagation none fits, the least is backprop (300" in verdict(rows, 150 * MIB)
        rows = [row("a", 300, 1), row("backprop", 100, 9, own=False)]
        assert "of the rule's own ways none fits, the least is a (300" in verdict(rows, 150 * MIB)

    def test_the_other_kind_was_not_measured(self):
        missing = Row("backprop", False, why="not there: it cannot")
        said = verdict([row("a", 100, 9), missing], 150 * MIB)
        assert said == (
            "a (100 MiB, 9 s a step) is the best that fits. There is nothing to compare it with: back-propagation was "
            "not measured."
        )

    def test_nothing_was_measured(self):
        assert verdict([Row("a", True, why="it cannot")], 1) == "Nothing could be measured."


def way(label, rule=None, **options):
    work = Work(rule or NoPropDT(blocks=1), SHAPE, 4, 64, options.pop("units", "together"))
    return Way(label, work, **options)


def costs(work, steps):
    """As if measured: 100 MiB and 1 MiB an image, 1 s and 10 ms an image; the larger batch takes a little more."""
    micro = getattr(work.rule, "blocks", 1)  # stands for the number of micro-batches here
    return Cost(round((100 + work.batch / micro + (5 if work.batch == 64 else 0)) * MIB), micro + 0.01 * work.batch)


@pytest.fixture
def measured(monkeypatch):
    asked = []

    def apart(function, work, steps):
        asked.append(work.batch)
        if work.units == "in-turn":
            return None, "MemoryError: none left"
        return costs(work, steps), None

    monkeypatch.setattr(module, "in_fresh_process", apart)
    return asked


def test_ways_are_predicted_and_measured(measured):
    told = []
    rows = fit_memory(
        [way("a"), way("b", units="in-turn"), way("c", LocalLoss(), units="one-resident")], 1, told.append
    )
    assert measured == [8, 16, 8, 8, 16, 64, 64]  # all are predicted first
    assert told[-2:] == ["a: batch 64", "c: batch 64"]
    assert rows[0].predicted == (164 * MIB, pytest.approx(1.64), 0)
    assert rows[0].measured == (169 * MIB, pytest.approx(1.64), 0)
    assert rows[0].error == pytest.approx(164 / 169 - 1)
    assert rows[1] == Row("b", True, why="failed with a batch of 8: MemoryError: none left")
    table = fit_table(rows, 200 * MIB)
    assert table.rows[0] == ["a", "yes", "169 MiB", "164 MiB", "-3.0%", "1.64", "1.64"]
    assert table.rows[1] == ["b", *["-"] * 6]


def test_a_rule_that_cannot_is_said_and_not_measured(measured):
    rows = fit_memory([way("a", Backprop(net="mlp"), units="in-turn")], 1, lambda _: None)
    assert "backprop does not have" in rows[0].why
    assert measured == []


@pytest.mark.parametrize(("budget", "chosen"), [(122, 4), (110, 8), (1, 8), (500, 2)])
def test_as_few_micro_batches_as_fit_are_measured(measured, budget, chosen):
    ways = [way("plain", own=False)]
    ways += [way(f"{k}", NoPropDT(blocks=k), own=False, micro=k, like="plain") for k in (2, 4, 8)]
    rows = fit_memory(ways, budget * MIB, lambda _: None)
    assert measured == [8, 16, 64, 64]
    assert [r.label for r in rows[1:] if r.measured] == [str(chosen)]
    assert rows[2].predicted == (116 * MIB, pytest.approx(4.64), 0)


def test_where_a_cut_does_not_fit_after_all_the_next_is_measured(measured):
    ways = [way("plain", own=False)]
    ways += [way(f"{k}", NoPropDT(blocks=k), own=False, micro=k, like="plain") for k in (2, 4, 8)]
    rows = fit_memory(ways, 117 * MIB, lambda _: None)  # 4 are predicted to take 116, and take 121
    assert [r.label for r in rows[1:] if r.measured] == ["4", "8"]
    assert [r.fits(117 * MIB) for r in rows[2:]] == [False, True]


def test_what_is_larger_than_the_machine_is_not_tried(measured, monkeypatch):
    monkeypatch.setattr(module, "free_memory_bytes", lambda device: 100 * MIB)
    rows = fit_memory([way("a"), way("b", units="one-resident")], 1, lambda _: None)
    assert rows[1].measured  # whose predictions are too high
    assert rows[0].why == "not measured: only 100 MiB are free"
    assert rows[0].predicted
    assert rows[0].measured is None


def ran(arguments, capsys):
    status = 0
    try:
        main(["fit-memory", *arguments])
    except SystemExit as stopped:
        status = stopped.code
    out, err = capsys.readouterr()
    return status, out, err


class TestCommand:
    def test_prints_a_table_and_the_choice(self, measured, capsys):
        status, out, _ = ran(["--budget", "170MiB", "--blocks", "1", "--data", "digits", "--batch", "64"], capsys)
        assert status == 0
        assert re.search(r"noprop-dt, one-resident +yes", out)
        assert "backprop, checkpointed" in out
        assert "noprop-dt, in-turn: failed with a batch of 8: MemoryError" in out
        assert "is the better choice" in out

    def test_as_json(self, measured, capsys):
        arguments = ["--budget", "1GB", "--rule", "local-loss", "--hidden", "32", "--batch", "64", "--json"]
        status, out, _ = ran(arguments, capsys)
        found = json.loads(out.splitlines()[-1])
        assert status == 0
        assert found["budget"] == 10**9
        assert found["options"]["hidden"] == [32]
        labels = [each["label"] for each in found["ways"]]
        assert labels[:4] == ["local-loss, together", "local-loss, in-turn", "local-loss, one-resident", "backprop"]
        assert found["ways"][0]["measured"]["bytes"] == 169 * MIB
        assert "better choice" in found["verdict"]

    def test_nothing_fits(self, measured, capsys):
        status, _, err = ran(["--budget", "2MiB", "--batch", "64"], capsys)
        assert status == 1
        assert "Nothing fits into 2 MiB. The least that would:" in err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "--budget 512MiB"),
            (["--budget", "much"], "such as 512MiB"),
            (["--budget", "1GB", "--rule", "nopropdt"], "did you mean noprop-dt"),
            (["--budget", "1GB", "--data", "my.npz"], "name of a known set"),
            (["--budget", "1GB", "--batch", "8"], "16 or more"),
        ],
    )
    def test_bad_input(self, arguments, message, capsys):
        status, _, err = ran(arguments, capsys)
        assert status == 2
        assert message in err


FEW_OPTIONS = {
    "local-loss conv": LocalLoss(net="conv", hidden=(4, 6)),
    "feedback-alignment conv": FeedbackAlignment(net="conv", hidden=(4, 6)),
    "direct-feedback-alignment conv": DirectFeedbackAlignment(net="conv", hidden=(4, 6)),
    "noise-step conv": NoiseStep(net="conv", hidden=(4, 6)),
    "hebbian conv": Hebbian(net="conv", hidden=(4, 6)),
    "backprop conv": Backprop(net="conv", hidden=(4, 6)),
    "backprop checkpointed": Backprop(activation_checkpointing=True),
    "backprop mlp": Backprop(net="mlp"),
    "backprop accumulated": Backprop(accumulate=4),
}


@pytest.mark.parametrize("rule", [*(kind() for kind in RULES.values()), *FEW_OPTIONS.values()], ids=str)
def test_every_rule_has_a_baseline_or_a_row_that_says_why(rule, measured):
    given = FitOptions(batch=64)
    ways = _ways(rule, given, DIGITS)
    labels = [each.label for each in ways]
    assert len(set(labels)) == len(labels)
    modes = [each.work.units for each in ways if each.own]
    assert modes == (["together", "in-turn", "one-resident"] if isinstance(rule, UnitByUnit) else ["together"])
    for each in ways:
        assert each.unsupported_reason or each.own or each.like in (None, *labels)
        assert each.work.batch % each.micro == 0
    rows = {each.label: each for each in fit_memory(ways, 10**9, lambda _: None)}
    assert [r.why for r in rows.values() if r.why and "could not be" in r.why] == []
    baselines = [each for each in ways if not each.own]
    assert rows["backprop" if "backprop" in rows else "backprop, together"].measured
    assert any(each.micro > 1 for each in baselines)
    checkpointed = rows.get("backprop, checkpointed", rows[labels[0]])  # or the rule itself
    assert checkpointed.measured or "not there: activation_checkpointing" in checkpointed.why


@pytest.mark.parametrize(
    ("rule", "norm"),
    [(LocalLoss(), "batch"), (LocalLoss(norm="layer"), "layer"), (SPSA(), "layer"), (SPSA(norm=False), "none"),
     (NoiseStep(), "layer"), (Hebbian(), "none"), (LocalLoss(net="conv", hidden=(4,)), "none")],
    ids=str,
)  # fmt: skip
def test_the_baseline_has_the_norm_of_the_rule_s_net(rule, norm):
    plain = next(each for each in _ways(rule, FitOptions(), DIGITS) if each.label == "backprop").work.rule
    assert (plain.norm, plain.hidden) == (norm, rule.hidden)


def test_only_batches_that_divide_are_cut():
    cuts = [each.micro for each in _ways(NoPropDT(blocks=2), FitOptions(batch=100), DIGITS) if each.micro > 1]
    assert sorted(set(cuts)) == [2, 4]


def test_a_step_is_measured_in_a_fresh_process():
    work = Work(LocalLoss(hidden=(2000,), norm="none"), SHAPE, 4, 16, "in-turn")
    cost, failed = in_fresh_process(step_cost, work, 1)
    assert failed is None
    net = 4 * (64 * 2000 + 2000 + 2000 * 4 + 4)
    assert 2 * net < cost.bytes < 200 * MIB
    assert 0 < cost.seconds < 60
