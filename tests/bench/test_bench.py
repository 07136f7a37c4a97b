"""Rules side by side: entries, the order of runs, what a run measures, ratios, resuming, failures, and the pages."""

import dataclasses
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import get_args, get_type_hints

import numpy
import pytest
import torch

from sidestep.bench import process as apart_module
from sidestep.bench.comparison import rounds as race_module
from sidestep.bench.comparison.entries import find_baseline, read_entries, with_learning_rate
from sidestep.bench.comparison.numbers import common_threshold, ratios, spread_of
from sidestep.bench.comparison.one_run import Budget, RunPlan, measure_counts, measure_run
from sidestep.bench.comparison.page import Report, write_report
from sidestep.bench.comparison.records import ComparisonFolder
from sidestep.bench.comparison.rounds import Comparison, check_race, race_order, run_comparison, settings
from sidestep.bench.comparison.summary import sentences
from sidestep.bench.comparison.tables import race_tables
from sidestep.bench.process import failure, run_in_process
from sidestep.cli import main
from sidestep.cli.bench import BenchOptions, _names
from sidestep.data import notices
from sidestep.data.notices import DataNotice
from sidestep.errors import InputError, NonFiniteError
from sidestep.rules import RULES
from sidestep.training import Options, Stopped
from sidestep.training.stopping import StopRequest

SMALL = "backprop:net=mlp,hidden=8"
OTHER = "local-loss:hidden=16"


class Quiet:
    """Watches a comparison."""

    def __init__(self):
        self.started, self.ended = [], []

    def begin(self, done, total, line):
        self.started.append((done, total, line))

    def progress(self, share, news):
        assert 0 <= share <= 1

    def end(self, record):
        self.ended.append(record)


def in_here(work, given, told, stop, threads=None):
    """What `run_in_process` does, without a process."""
    try:
        return work(given, told)
    except Exception as error:
        return {"failed": failure(error)}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIDESTEP_DATA", raising=False)


@pytest.fixture
def stripes(tmp_path):
    """A data set of 5 x 5 images whose class is the bright column; 90 to train on, 10 to validate, 20 to test."""
    generator = numpy.random.default_rng(0)

    def part(count):
        labels = numpy.arange(count) % 5
        images = generator.integers(0, 60, (count, 5, 5), dtype=numpy.uint8)
        images[numpy.arange(count), :, labels] += 150
        return images, labels

    (images, labels), (test_images, test_labels) = part(100), part(20)
    path = tmp_path / "stripes.npz"
    numpy.savez(path, x_train=images, y_train=labels, x_test=test_images, y_test=test_labels)
    return str(path)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(race_module, "run_in_process", in_here)


def a_race(data, *words, **other):
    budget = other.pop("budget", Budget(epochs=2))
    return Comparison(tuple(read_entries(words or [SMALL, OTHER])), (data,), budget, **{"seeds": 2, **other})


# --- entries -----------------------------------------------------------------------------------------------------


def test_entries_are_cut_at_commas_and_options_belong_to_the_rule_before():
    found = read_entries(["backprop,evolution:hidden=128,64,population=32,spsa", "noprop-dt:blocks=4,batch=64"])
    assert [entry.label for entry in found] == [
        "backprop", "evolution:hidden=128,64,population=32", "spsa", "noprop-dt:blocks=4,batch=64"
    ]  # fmt: skip
    assert found[1].options == {"hidden": (128, 64), "population": 32}
    assert (found[3].options, found[3].train) == ({"blocks": 4}, {"batch": 64})
    assert found[3].training({"batch": 32, "decay": "linear"}).batch == 64
    (checkpointed,) = read_entries(["backprop:activation-checkpointing=true,dimension=none"])
    assert checkpointed.make().activation_checkpointing is True
    assert checkpointed.make().dimension is None


def test_spaces_cut_like_commas():
    words = ["backprop evolution:hidden=128 64,  population=32\nspsa"]
    assert [e.label for e in read_entries(words)] == ["backprop", "evolution:hidden=128,64,population=32", "spsa"]


def test_data_sets_are_cut_at_spaces_but_a_path_with_one_is_whole(tmp_path):
    (tmp_path / "my images").mkdir()
    assert _names(("digits mnist, cifar10", "my images", "a,b")) == (
        "digits", "mnist", "cifar10", "my images", "a", "b"
    )  # fmt: skip


@pytest.mark.parametrize("name", ["augment", "decay", "precision", "units"])
def test_the_command_takes_every_value_that_training_takes(name):
    taken = {value for part in get_args(get_type_hints(BenchOptions)[name]) for value in get_args(part)}
    assert taken == set(get_args(get_type_hints(Options)[name]))


def test_all_is_every_rule_and_a_preset_is_its_rules_options():
    assert [entry.rule for entry in read_entries(["all"])] == list(RULES)
    (entry,) = read_entries(["noprop-dt-bloodmnist"])
    assert (entry.rule, entry.data) == ("noprop-dt", "bloodmnist")
    assert "epochs" not in entry.train
    (entry,) = read_entries(["noprop-dt-bloodmnist:blocks=3"], {"batch": 16})
    assert entry.make().blocks == 3
    assert entry.training({"batch": 16}).batch == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bakprop"], "did you mean backprop"),
        (["backprop:bloks=3"], "did you mean blocks"),
        (["backprop,backprop"], "listed once"),
        (["backprop,backprop:blocks=10"], "are the same"),
        (["all,spsa"], "listed once"),
        (["backprop:blocks=x"], "whole number, got 'x'"),
        (["backprop:learning_rate=fast"], "a number, got 'fast'"),
        (["backprop:net=tree"], "one of chained-blocks"),
        (["backprop:ternary=perhaps"], "true or false"),
        (["backprop:blocks=0"], "backprop:blocks=0: blocks must lie"),
        (["backprop:net"], "is no option"),
        (["blocks=3,backprop"], "before any rule"),
        (["backprop:seed=3"], "no option 'seed'"),
        (["backprop:align=0.01"], "no option 'align'"),
        ([], "nothing to compare"),
    ],
)
def test_entries_that_cannot_be_read(words, message):
    with pytest.raises(InputError, match=message):
        read_entries(words)


def test_the_baseline_is_found_by_label_or_by_rule():
    entries = read_entries(["spsa,backprop:net=mlp,hebbian"])
    assert find_baseline(entries, "backprop").label == "backprop:net=mlp"
    assert find_baseline(entries, "spsa").label == "spsa"
    with pytest.raises(InputError, match="not among the rules"):
        find_baseline(entries, "evolution")
    with pytest.raises(InputError, match="could be several"):
        find_baseline(read_entries(["backprop:net=mlp,backprop:blocks=2"]), "backprop")


# --- order and checks --------------------------------------------------------------------------------------------


def test_every_round_runs_all_entries_and_begins_one_further_on():
    race = Comparison(tuple(read_entries(["hebbian,spsa,backprop"])), ("a", "b"), Budget(epochs=1), seeds=4, seed=5)
    order = [(seed, data, entry.rule) for seed, data, entry in race_order(race)]
    firsts = [order[at][2] for at in range(0, len(order), 6)]
    assert firsts == ["hebbian", "spsa", "backprop", "hebbian"]
    for number in range(4):
        part = order[6 * number : 6 * number + 6]
        assert {seed for seed, _, _ in part} == {5 + number}
        assert [data for _, data, _ in part] == ["a"] * 3 + ["b"] * 3
        assert {rule for _, _, rule in part} == {"hebbian", "spsa", "backprop"}
        assert [rule for _, data, rule in part if data == "a"] == [rule for _, data, rule in part if data == "b"]
    places = {rule: {order.index((5 + n, "a", rule)) - 6 * n for n in range(3)} for rule in ("hebbian", "spsa")}
    assert places == {"hebbian": {0, 1, 2}, "spsa": {0, 1, 2}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "--seeds must lie"),
        ({"every": 0}, "--every"),
        ({"data": ()}, "--data"),
        ({"data": ("digits", "digits")}, "each once"),
        ({"data": ("digitz",)}, "digits"),
        ({"device": "tpu"}, "unknown device"),
        ({"entries": tuple(read_entries(["noprop-dt-bloodmnist"]))}, "preset for bloodmnist, not for digits"),
        ({"common": {"decay": "cosine"}, "budget": Budget(seconds=3)}, "does not tell"),
        ({"entries": tuple(read_entries(["spsa:warmup=0.1"])), "budget": Budget(seconds=3)}, "does not tell"),
        ({"validation": 0.0}, "has none"),
        ({"entries": tuple(read_entries(["backprop:units=in-turn"]))}, "backprop:units=in-turn: units = in-turn needs"),
    ],
)
def test_a_comparison_that_cannot_work(change, message):
    given = {"entries": tuple(read_entries([SMALL])), "data": ("digits",), "budget": Budget(epochs=1)}
    with pytest.raises(InputError, match=message):
        check_race(Comparison(**{**given, **change}))


@pytest.mark.parametrize(
    "given", [{}, {"epochs": 0}, {"steps": 0}, {"seconds": 0.0}, {"seconds": math.nan}, {"forward_passes": -1.0},
              {"epochs": 1, "accuracy": 1.0}, {"epochs": 1, "accuracy": 0.0}, {"accuracy": 0.9}]
)  # fmt: skip
def test_budgets_that_cannot_work(given):
    with pytest.raises(InputError):
        Budget(**given)


# --- a run -------------------------------------------------------------------------------------------------------


def run_of(data, budget, word=SMALL, **other):
    return measure_run(RunPlan(read_entries([word])[0], data, 0, budget, **other), lambda news: None)


def test_a_run_measures_finite_numbers_and_its_curve_excludes_evaluation(stripes, monkeypatch):
    whole = time.perf_counter()
    slow = race_module.measure_run.__globals__["accuracies"]
    monkeypatch.setitem(
        race_module.measure_run.__globals__, "accuracies", lambda *given: time.sleep(0.05) or slow(*given)
    )
    found = run_of(stripes, Budget(epochs=6), common={"batch": 30})
    whole = time.perf_counter() - whole
    assert (found["ended_by"], found["steps"], found["epochs"], found["steps_per_epoch"]) == ("epochs", 18, 6, 3)
    assert [point[0] for point in found["curve"]] == [3, 6, 9, 12, 15, 18]
    seconds = [point[1] for point in found["curve"]]
    assert seconds == sorted(seconds)
    assert seconds[-1] == found["seconds"] < whole - 7 * 0.05
    assert 0 < found["seconds_per_step"] < found["seconds"]
    assert found["images_per_second"] == pytest.approx(30 / found["seconds_per_step"])
    assert 0 <= found["test_accuracy"] <= 1
    assert found["validation_accuracy"] == found["curve"][-1][2]
    parameters = 25 * 8 + 8 + 8 * 5 + 5
    assert found["optimizer_bytes"] == 2 * 4 * parameters + 4 * 4  # two moments, and a step count per tensor
    json.dumps(found, allow_nan=False)


def test_what_an_accuracy_took_is_read_from_the_curve(stripes):
    word = "backprop:net=mlp,hidden=32,learning_rate=0.01"
    found = run_of(stripes, Budget(epochs=40, accuracy=0.85), word, common={"batch": 30}, every=2)
    assert found["ended_by"] == "accuracy"
    assert found["steps"] < 120
    assert found["curve"][-1][2] >= 0.85 > max((point[2] for point in found["curve"][:-1]), default=0)
    assert found["reached"]["0.85"] == {"seconds": found["seconds"], "steps": found["steps"]}
    first = next(point for point in found["curve"] if point[2] >= 0.5)
    assert found["reached"]["0.5"] == {"seconds": first[1], "steps": first[0]}


def test_budgets_end_a_run(stripes):
    assert run_of(stripes, Budget(epochs=50, seconds=1e-6))["steps"] == 1
    assert run_of(stripes, Budget(seconds=1e-6))["ended_by"] == "seconds"
    found = run_of(stripes, Budget(forward_passes=10), common={"batch": 30}, forward_equivalents=2.5)
    assert (found["ended_by"], found["steps"]) == ("forward passes", 12)  # 10 passes of 3 batches, 2.5 a step
    found = run_of(stripes, Budget(epochs=2, forward_passes=10), common={"batch": 30}, forward_equivalents=2.5)
    assert (found["ended_by"], found["steps"]) == ("epochs", 6)
    found = run_of(stripes, Budget(epochs=2, steps=4), common={"batch": 30})
    assert (found["ended_by"], found["steps"]) == ("steps", 4)
    with pytest.raises(InputError, match="could not be counted"):
        run_of(stripes, Budget(forward_passes=10))


def test_a_run_trains_as_train_does(stripes):
    from sidestep import Options, data, train

    options = Options(epochs=3, batch=30, decay="cosine", average=0.5)
    (entry,) = read_entries([SMALL])
    usual = train(entry.make(), data.load(stripes), options)
    found = run_of(stripes, Budget(epochs=3), common={"batch": 30, "decay": "cosine", "average": 0.5})
    for name in ("test_accuracy", "validation_accuracy"):
        assert found[name] == usual.result[name]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_a_run_is_that_of_its_steps(stripes):
    """A fresh process, since what an earlier test has freed would be used again."""
    plan = RunPlan(read_entries(["backprop:net=mlp,hidden=100000"])[0], stripes, 0, Budget(epochs=1, seconds=1e-6))
    found = run_in_process(measure_run, plan, lambda news: None, StopRequest(), 1)
    gradients = 4 * (25 * 100_000 + 100_000 + 5 * 100_000 + 5)
    assert gradients < found["peak_memory_bytes"] < 20 * gradients


@pytest.mark.parametrize("units", ["in-turn", "one-resident"])
def test_units_take_their_turns_in_a_run_and_leave_no_files(stripes, units, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    threads, ways = torch.get_num_threads(), []
    usual = race_module.measure_run.__globals__["begin"]

    def seen(*given):
        state, loop = usual(*given)
        ways.append((loop.options.units, state.files is not None))
        return state, loop

    monkeypatch.setitem(race_module.measure_run.__globals__, "begin", seen)
    torch.set_num_threads(1)
    try:
        one, other = (
            run_of(stripes, Budget(epochs=1), f"local-loss:hidden=16,8,units={way}") for way in ("together", units)
        )
    finally:
        torch.set_num_threads(threads)
    assert ways == [("together", False), (units, units == "one-resident")]
    for name in ("test_accuracy", "validation_accuracy"):
        assert one[name] == other[name]
    counted = measure_counts(
        RunPlan(read_entries([f"local-loss:hidden=16,8,units={units}"])[0], stripes, 0, Budget(epochs=1)), print
    )
    assert counted["units"] == 2
    left = {path.name for path in (tmp_path / "temporary").iterdir()}
    assert not {name for name in left if not name.startswith("torchinductor_")}  # torch's own, made by whoever is first


def test_a_step_is_counted(stripes):
    (entry,) = read_entries([SMALL])
    found = measure_counts(RunPlan(entry, stripes, 0, Budget(epochs=1), {"batch": 30}), lambda news: None)
    first, second = 25 * 8, 8 * 5
    assert found["forward_operations"] == 2 * 30 * (first + second)
    assert found["forward_equivalents"] == pytest.approx(3 - first / (first + second))
    assert found["parameters"] == first + 8 + second + 5
    assert found["estimate_bytes"] == found["decided_bytes"] == 4 * found["parameters"]
    assert (found["estimate_kind"], found["units"]) == ("Dense", 1)
    assert 4 * found["parameters"] < found["allocated_bytes"] < 100_000


def test_what_is_decided_can_be_smaller_than_what_is_estimated(stripes):
    (entry,) = read_entries(["noise-step:estimator=weight-probes,hidden=16,probes=40"])
    found = measure_counts(RunPlan(entry, stripes, 0, Budget(epochs=1), {"batch": 30}), lambda news: None)
    assert (found["estimate_kind"], found["decided_kind"]) == ("Seeded", "Seeded")
    # 40 numbers become 40 trits; the schedule of the density (16 bytes) follows from the loss, and is added
    assert found["estimate_bytes"] - found["decided_bytes"] == 4 * 40 - 8 - 16


# --- numbers -----------------------------------------------------------------------------------------------------


def made_up(entry, seed, step=1.0, memory=100, accuracy=0.9, seconds=5.0, bytes_=10, parameters=7, data="d"):
    reached = {"0.5": {"seconds": 4.0, "steps": 3}, "0.8": None if seconds is None else {"seconds": seconds}}
    counts = {"estimate_bytes": bytes_, "decided_bytes": bytes_, "forward_equivalents": 3.0, "allocated_bytes": memory,
              "parameters": parameters}  # fmt: skip
    return {
        "entry": entry, "rule": entry.partition(":")[0], "data": data, "seed": seed, "seconds_per_step": step,
        "images_per_second": 1 / step, "peak_memory_bytes": memory, "test_accuracy": accuracy, "seconds": 9.0,
        "validation_accuracy": accuracy, "reached": reached, "curve": [[1, 1.0, 0.5], [2, 2.0, accuracy]],
        "counts": counts, "precision": "float32",
    }  # fmt: skip


BASE = [made_up("base", seed, step) for seed, step in enumerate((1.0, 2.0, 4.0))]
FAILED = {"entry": "new", "rule": "new", "data": "d", "seed": 3, "failed": {"kind": "killed", "why": "a | b"}}


def test_ratios_are_taken_pair_by_pair():
    new = [made_up("new", 0, 3.0), made_up("new", 1, 2.0), made_up("new", 2, 2.0), made_up("new", 9, 50.0), FAILED]
    assert ratios([*BASE, *new], "d", "new", "base", "seconds_per_step") == (1.0, 0.5, 3.0, 3)
    assert ratios([*BASE, *new], "d", "base", "base", "seconds_per_step") == (1.0, 1.0, 1.0, 3)
    assert ratios(new, "d", "new", "base", "seconds_per_step") is None
    assert ratios([*BASE, *new], "other", "new", "base", "seconds_per_step") is None
    slow = [made_up("new", 0, seconds=10.0), made_up("new", 1, seconds=None)]
    assert ratios([*BASE, *slow], "d", "new", "base", "seconds_to", 0.8) == (2.0, 2.0, 2.0, 1)
    assert spread_of([None]) is None


def test_seconds_are_counted_to_what_all_runs_of_the_baseline_reached():
    assert common_threshold(BASE, "d", "base", None) == 0.8
    assert common_threshold(BASE, "d", "base", 0.93) == 0.93
    assert common_threshold([*BASE, made_up("base", 5, seconds=None)], "d", "base", None) == 0.5
    assert common_threshold([], "d", "base", None) is None


LABELS = {"base": "base", "base:less": "base", "new": "new"}


def test_where_the_baselines_rule_wins_the_summary_says_so():
    worse = [made_up("new", seed, 9.0, 100, 0.895, 7.0, 10) for seed in range(3)]
    said = " ".join(sentences([*BASE, *worse], "d", {"base": "base", "new": "new"}, "base", 0.8))
    assert "base is the better choice here" in said
    less = [made_up("base:less", seed, 9.0, 20, 0.9, 7.0, 10) for seed in range(3)]
    thrifty = [made_up("new", seed, 9.0, 19.5, 0.895, 7.0, 10) for seed in range(3)]  # less than 5 % below: even
    said = " ".join(sentences([*BASE, *less, *thrifty], "d", LABELS, "base", 0.8))
    assert "base is the better choice here" in said
    assert "base:less needs the least memory (0.0195 KiB)" in said


def test_where_another_rule_gains_the_summary_says_what_and_what_it_costs():
    gains = [made_up("new", seed, 2 * step, 50, 0.895, 9.0, 10) for seed, step in enumerate((1.0, 2.0, 4.0))]
    said = " ".join(sentences([*BASE, *gains], "d", LABELS, "base", 0.8))
    assert "better choice" not in said
    assert "base keeps the least time to that accuracy, the shortest step and the fewest bytes exchanged" in said
    assert "new (seconds to 1.8 x, step 2 x, memory 0.5 x, exchange 1 x)" in said
    assert "No run finished of base:less." in said


def test_speed_at_the_price_of_accuracy_is_no_gain():
    fast = [made_up("new", seed, 0.01, 1, 0.6, 0.1, 1, parameters=3) for seed in range(3)]
    said = " ".join(sentences([*BASE, *fast], "d", LABELS, "base", 0.8))
    assert "base is the better choice here" in said
    assert "new (-30.0 points)" in said
    assert "from 3 to 7 parameters" in said
    best = [made_up("new", seed, accuracy=0.95) for seed in range(3)]
    said = " ".join(sentences([*BASE, *best], "d", LABELS, "base", 0.8))
    assert "The nearest of base is base, 5.0 points below the best." in said
    assert "No run of base has finished" in " ".join(sentences(best, "d", LABELS, "base", 0.8))
    assert sentences([FAILED], "d", LABELS, "base", None) == ["On d no run has finished."]


def test_tables_say_what_was_reached_and_what_failed():
    some = [made_up("new", 0, 0.5, 1 << 21), made_up("new", 1, 0.5, 1 << 21, seconds=None), FAILED]
    main_table, reached, failed = race_tables([*BASE, *some], "d", ["base", "new", "gone"], "base", 0.8)
    rows = [dict(zip(range(20), row, strict=False)) for row in main_table.rows]
    assert all(len(row) == len(main_table.columns) for row in main_table.rows)
    assert (rows[1][1], rows[1][3], rows[1][6], rows[1][8]) == ("2 of 3", "5 (1 of 2)", "0.375 (0.25–0.5)", "2 MiB")
    assert rows[2][2] == "not run"
    assert reached.columns == ["rule", "50 %", "80 %"]  # nobody reached more
    assert reached.rows == [["base", "4", "5"], ["new", "4", "5 (1 of 2)"], ["gone", "-", "-"]]
    assert failed.rows == [["new", "3", "killed", "a / b"]]


def test_numbers_are_written_without_powers_of_ten():
    runs = [made_up("base", 0, 0.9997, 1023 << 20), made_up("new", 0, 1234.4, 1023 << 10, seconds=0.004)]
    table, *_ = race_tables(runs, "d", ["base", "new"], "base", 0.8)
    words = [word for row in table.rows for word in row]
    assert {"1,000", "1,234,400", "1,235", "1,023 MiB"} <= set(words)
    assert [word for word in words if "e+" in word] == []


def test_where_no_accuracy_was_reached_no_table_says_when():
    runs = [{**made_up("base", 0), "reached": {"0.5": None}}]
    assert len(race_tables(runs, "d", ["base"], "base", None)) == 1


# --- failures and processes --------------------------------------------------------------------------------------


def test_kinds_of_failure():
    assert failure(MemoryError())["kind"] == "out of memory"
    assert failure(torch.OutOfMemoryError("x"))["kind"] == "out of memory"
    assert failure(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))["kind"] == "out of memory"
    assert failure(NonFiniteError("the loss is nan at step 3; training stopped")) == {
        "kind": "not finite", "why": "the loss is nan at step 3"
    }  # fmt: skip
    assert failure(InputError("no"))["kind"] == "refused"
    assert failure(ZeroDivisionError("a\nb")) == {"kind": "error", "why": "ZeroDivisionError: a"}


def telling(given, report):
    report("on my way")
    if given == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    raise MemoryError(f"{given}, {torch.get_num_threads()} threads")


def test_a_process_that_is_killed_leaves_a_record():
    told = []
    found = run_in_process(telling, "die", told.append, StopRequest())
    assert told == ["on my way"]
    assert found["failed"]["kind"] == "killed"
    assert "SIGKILL" in found["failed"]["why"]


def test_a_process_tells_and_fails_and_leaves_ctrl_c_to_its_parent(monkeypatch):
    signals, sent = [], []
    monkeypatch.setattr(apart_module.signal, "signal", lambda *given: signals.append(given))

    class There:
        send, close = sent.append, lambda self: None

    apart_module._in_there(There(), telling, "much", torch.get_num_threads())
    assert signals == [(signal.SIGINT, signal.SIG_IGN)]
    why = f"MemoryError: much, {torch.get_num_threads()} threads"
    assert sent == [("report", "on my way"), ("record", {"failed": {"kind": "out of memory", "why": why}})]


def test_a_stop_ends_the_process():
    stop = StopRequest()
    stop.signal_number = signal.SIGINT
    with pytest.raises(Stopped):
        run_in_process(telling, "much", lambda value: None, stop)
    assert multiprocessing.active_children() == []


# --- a whole comparison ------------------------------------------------------------------------------------------


def test_what_is_done_is_not_run_again(stripes, here, tmp_path):
    race = a_race(stripes)
    out, asked = tmp_path / "out", settings(race)
    watch = Quiet()
    run_comparison(race, ComparisonFolder(out, asked), watch, StopRequest())
    assert [(r["entry"], r["seed"]) for r in watch.ended] == [(SMALL, 0), (OTHER, 0), (OTHER, 1), (SMALL, 1)]
    assert all("failed" not in record for record in watch.ended)
    lines = (out / "bench.jsonl").read_text().splitlines()
    assert [json.loads(line)["place"] for line in lines] == [0, 1, 2, 3]
    again = Quiet()
    run_comparison(race, ComparisonFolder(out, asked), again, StopRequest())
    assert again.started == []
    (out / "bench.jsonl").write_text("\n".join([*lines[:2], lines[2][:50]]))  # as a kill of an older writer would
    run_comparison(race, ComparisonFolder(out, asked), again, StopRequest())
    assert [(record["entry"], record["seed"]) for record in again.ended] == [(OTHER, 1), (SMALL, 1)]
    assert (out / "bench.jsonl").read_text().splitlines()[:2] == lines[:2]
    more = Quiet()
    run_comparison(a_race(stripes, seeds=3), ComparisonFolder(out, asked), more, StopRequest())
    assert [record["seed"] for record in more.ended] == [2, 2]


def test_a_rule_that_fails_is_recorded_and_the_others_go_on(stripes, here, tmp_path):
    race = a_race(stripes, "evolution:per=group,group=7,hidden=8", SMALL, seeds=1)
    folder = ComparisonFolder(tmp_path / "out", settings(race))
    run_comparison(race, folder, Quiet(), StopRequest())
    failed, fine = folder.records
    assert failed["failed"]["kind"] == "refused"
    assert "multiple of group = 7" in failed["failed"]["why"]
    assert "failed" not in fine
    again = Quiet()
    run_comparison(race, folder, again, StopRequest())
    assert again.started == []
    run_comparison(race, folder, again, StopRequest(), retry=True)
    assert [record["entry"] for record in again.ended] == [failed["entry"]]
    report = Report(race, folder.records, SMALL, "sidestep bench")
    write_report(report, folder, settings(race))
    assert "runs that failed" in folder.page_file.read_text()


def test_a_count_that_fails_is_shown_and_tried_again(stripes, monkeypatch, tmp_path):
    race, counted = a_race(stripes, SMALL, seeds=3), []

    def failing(work, given, told, stop, threads=None):
        if work is measure_counts:
            counted.append(given.seed)
            if len(counted) == 1:
                return {"failed": {"kind": "killed", "why": "by the system"}}
        return in_here(work, given, told, stop)

    monkeypatch.setattr(race_module, "run_in_process", failing)
    folder = ComparisonFolder(tmp_path / "out", settings(race))
    run_comparison(race, folder, Quiet(), StopRequest())
    assert counted == [0, 1]  # and the third run takes over what the second has counted
    assert [("failed" in record, "failed" in record["counts"]) for record in folder.records] == [
        (False, True), (False, False), (False, False)
    ]  # fmt: skip
    tables = Report(race, folder.records, SMALL, "sidestep bench").tables[stripes]
    assert tables[-1].rows == [[SMALL, "0", "killed, while a step was counted", "by the system"]]
    again = ComparisonFolder(tmp_path / "out", settings(race))
    run_comparison(race, again, Quiet(), StopRequest(), retry=True)
    assert counted == [0, 1]
    assert all("failed" not in record["counts"] for record in again.records)


def test_a_loss_that_is_not_finite_is_a_failure_of_that_run(stripes, here, tmp_path):
    race = a_race(stripes, SMALL, "backprop:net=mlp,hidden=8,learning_rate=100,weight_decay=1", seeds=1,
                  budget=Budget(epochs=60))  # fmt: skip
    folder = ComparisonFolder(tmp_path / "out", settings(race))
    run_comparison(race, folder, Quiet(), StopRequest())
    fine, bad = folder.records
    assert "failed" not in fine
    assert bad["failed"]["kind"] == "not finite"


def test_other_settings_are_refused_in_the_same_folder(stripes, tmp_path):
    race = a_race(stripes)
    ComparisonFolder(tmp_path / "out", settings(race))
    ComparisonFolder(tmp_path / "out", settings(a_race(stripes, seeds=9)))
    other = a_race(stripes, SMALL.replace("8", "9"), OTHER, common={"batch": 16})
    with pytest.raises(InputError, match="training: batch: was 128, given 16"):
        ComparisonFolder(tmp_path / "out", settings(other))
    ComparisonFolder(tmp_path / "out", settings(other), overwrite=True)
    (tmp_path / "out" / "bench.json").write_text("nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        ComparisonFolder(tmp_path / "out", settings(other))


@pytest.mark.parametrize(("words", "place"), [
    (["--epochs", "1", "--out", "o", "--overwrite"], "sidestep.cli.bench.run_comparison"),
    (["--suite", "matched", "--out", "o", "--budget", "tiny"], "sidestep.cli.suite.run_suite"),
])  # fmt: skip
def test_a_comparison_that_is_stopped_twice_says_how_it_goes_on(words, place, monkeypatch, capsys):
    def at_once(*_arguments, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, at_once)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--rules", "backprop", *words])
    said = " ".join(capsys.readouterr().err.split())
    again = " ".join(["bench", "--rules", "backprop", *words]).replace(" --overwrite", "")
    assert ended.value.code == 130
    assert said.endswith(f"stopped at once; finished runs are kept in o. Go on with: sidestep {again}")


def test_a_stopped_comparison_keeps_what_was_done(stripes, monkeypatch, tmp_path, capsys):
    calls = []

    def stopping(work, given, told, stop, threads=None):
        calls.append(work)
        if len(calls) > 3:
            raise Stopped("stopped", 0, signal.SIGINT)
        return in_here(work, given, told, stop)

    monkeypatch.setattr(race_module, "run_in_process", stopping)
    words = [
        "bench",
        "--baseline",
        "backprop",
        "--rules",
        SMALL,
        "--data",
        stripes,
        "--epochs",
        "1",
        "--seeds",
        "2",
        "--out",
        "o",
        "--rules",
        OTHER,
    ]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 130
    assert "finished runs are kept in o (1)" in capsys.readouterr().err
    monkeypatch.setattr(race_module, "run_in_process", in_here)
    main(words)
    assert len((tmp_path / "o" / "bench.jsonl").read_text().splitlines()) == 4


def test_the_command_prints_a_table_and_writes_one_file_of_html(stripes, here, tmp_path, capsys):
    words = [
        "bench",
        "--rules",
        f"{SMALL},{OTHER}",
        "--data",
        stripes,
        "--baseline",
        "backprop",
        "--epochs",
        "2",
        "--seeds",
        "2",
        "--out",
        "o",
    ]
    main(words)
    printed = capsys.readouterr().out
    assert SMALL in printed
    assert "On " in printed
    html = (tmp_path / "o" / "bench.html").read_text()
    assert html.count("<figure>") == html.count('<svg viewBox="0 0 340') == 3
    outside = [word for word in ("http:", "https:", "<link", "<script", "@import", "url(") if word in html]
    assert outside == []
    assert "src=" not in html
    assert "sidestep bench --rules" in html
    threads = f"{torch.get_num_threads()} thread"
    for version in (torch.__version__, threads, settings(a_race(stripes))["machine"]["processor"]):
        assert version in html
    page = (tmp_path / "o" / "bench.md").read_text()
    assert f"| {OTHER} | 2 |" in page
    main([*words, "--json"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(record["runs"]) == 4
    assert len(list((tmp_path / "o").iterdir())) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rules", "spsa", "--epochs", "1", "--baseline", "backprop"], "baseline backprop is not among the rules"),
        (["--rules", "backprop"], "needs a budget"),
        (["--rules", "backprop", "--epochs", "1", "--to", "96"], "above 0 and below 1"),
        (["--rules", "backprop,noprp-dt", "--epochs", "1"], "did you mean noprop-dt"),
        (["--rules", "backprop:blokcs=2", "--epochs", "1"], "did you mean blocks"),
        (["--rules", "backprop", "--epochs", "1", "--data", ","], "names no data set"),
        (["--rules", "backprop", "--epochs", "1", "--data", "mnits"], "mnist"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(words, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["bench", *words])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(stripes, tmp_path):
    out = tmp_path / "real"
    words = [sys.executable, "-m", "sidestep", "bench", "--rules", f"{SMALL},{OTHER}", "--data", stripes,
             "--baseline", "backprop", "--epochs", "2", "--seeds", "2", "--out", str(out)]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "bench.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.2)
    process.kill()
    process.wait()
    kept = (out / "bench.jsonl").read_text().splitlines()
    assert 1 <= len(kept) < 4
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    lines = (out / "bench.jsonl").read_text().splitlines()
    assert lines[: len(kept)] == kept
    assert len(lines) == 4
    assert all("failed" not in json.loads(line) for line in lines)
    assert "written" in done.stdout


def _reports_a_notice(given, told):
    notices.report(f"{given}: read otherwise")
    return {"given": given}


def test_what_is_to_be_told_of_data_in_another_process_is_told_here():
    with pytest.warns(DataNotice, match="^stripes: read otherwise$"):
        assert run_in_process(_reports_a_notice, "stripes", lambda news: None, StopRequest(), 1) == {"given": "stripes"}


def test_one_learning_rate_is_that_of_every_entry_without_one_of_its_own():
    entries = read_entries(["backprop,local-loss:learning_rate=0.5"])
    assert [entry.make().learning_rate for entry in with_learning_rate(entries, 0.25)] == [0.25, 0.5]
    with pytest.raises(InputError, match="noise-step has no learning rate: leave it out"):
        with_learning_rate(read_entries(["noise-step"]), 0.25)
    with pytest.raises(InputError, match="learning_rate must be"):
        with_learning_rate(entries, -1.0)


def test_a_table_is_compared_by_a_column_of_classes(tmp_path):
    rows = "".join(f"{i % 7},{'odd' if i % 2 else 'even'},{i / 3:.3f}\n" for i in range(60))
    (tmp_path / "t.csv").write_text("a,kind,b\n" + rows)
    race = Comparison(tuple(read_entries(["local-loss:hidden=4"], {})), ("t.csv",), Budget(steps=2), target="kind")
    check_race(race)
    found = measure_run(race.plan(race.entries[0], "t.csv", 0), lambda news: None)
    assert found["steps"] == 2
    assert 0 <= found["validation_accuracy"] <= 1
    assert settings(race)["target"] == "kind"
    with pytest.raises(InputError, match="targets of t are values"):
        check_race(dataclasses.replace(race, target="b"))
    with pytest.raises(InputError, match="name the column"):
        check_race(dataclasses.replace(race, target=None))
