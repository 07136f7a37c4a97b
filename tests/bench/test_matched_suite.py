"""The matched suite: every row fits or says why, runs go on where they were stopped, and differences are paired."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from experiments import matched_pages
from experiments.matched_pages import BEGIN, END, put_into, seeds_of
from sidestep.bench.comparison.records import ComparisonFolder
from sidestep.bench.suite import one_run
from sidestep.bench.suite.errors import difference
from sidestep.bench.suite.nets import NoFit, fitted
from sidestep.bench.suite.one_run import packed, part_of, run_work, unpacked
from sidestep.bench.suite.page import write_pages
from sidestep.bench.suite.records import SuiteRecords
from sidestep.bench.suite.suite import Suite, chosen_rows, file_of, run_suite
from sidestep.bench.suite.table import RowRuns, cautions, rows_of
from sidestep.bench.suite.work import best_trial, drawn, search_of
from sidestep.cli import main
from sidestep.data import load
from sidestep.errors import InputError
from sidestep.presets.matched import COMMON, MATCHED, NETS, TRAIN, Among, Between, MatchedRule
from sidestep.rules import RULES
from sidestep.training import Options, Stopped
from sidestep.training.begin import begin
from sidestep.training.evaluate import predictions
from sidestep.training.stopping import StopRequest

WILD = MatchedRule("wild", "backprop", "a step too large", {}, {"learning_rate": 1e38})
ENVIRONMENT = {"command": "none", "sidestep": "0", "torch": "0", "processor": "none", "threads": 1}


class Heard:
    def __init__(self) -> None:
        self.begun: list[str] = []

    def begin(self, words):
        self.begun.append(words)

    def end(self, words, record):
        pass


def run(suite):
    heard = Heard()
    run_suite(suite, ENVIRONMENT, heard, StopRequest())
    return heard.begun


@pytest.fixture
def suite(tmp_path):
    return Suite(("digits",), ("mlp",), chosen_rows(["linear", "backprop", "noprop-dt"]), 2, 3, "tiny", tmp_path)


@pytest.fixture(scope="module")
def digits():
    return part_of(load("digits"), 32, 8)


@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize("row", MATCHED, ids=lambda row: row.name)
def test_every_row_takes_a_step_on_the_net_or_says_why_it_cannot(row, net, digits):
    small = dataclasses.replace(NETS[net], hidden={"": (16, 16)})
    fit = fitted(row, small, "digits", digits.image_shape)
    if isinstance(fit, NoFit):
        assert fit.why
        assert "Error" not in fit.why
        return
    rule = RULES[row.rule](**fit.options)
    for name, value in COMMON.items():  # what is not as in the other rows is said
        assert getattr(rule, name, None) == value or any(name.replace("_", " ") in words for words in fit.differs)
    state, loop = begin(rule, digits, Options(**{**TRAIN, "batch": 32, "epochs": 1}), fit.module)
    loop.take_step(state)


def test_nets_are_the_same_where_a_row_says_so(digits):
    shapes = set()
    for row in chosen_rows(["backprop", "local-loss", "feedback-alignment", "direct-feedback-alignment"]):
        fit = fitted(row, NETS["conv"], "digits", digits.image_shape)
        state, _ = begin(RULES[row.rule](**fit.options), digits, Options(batch=16, epochs=1), fit.module)
        stages = [tuple(value.shape) for name, value in state.net.named_parameters() if name.startswith("stages")]
        shapes.add(tuple(shape for shape in stages if shape))
    assert len(shapes) == 1


def test_a_search_starts_at_the_rows_own_values_and_stays_within_its_ranges():
    for row in MATCHED:
        assert drawn(row, 1) == {}
        for trial in range(2, 30):
            for name, value in drawn(row, trial).items():
                searched = row.search[name]
                if isinstance(searched, Between):
                    assert searched.low <= value <= searched.high
                else:
                    assert isinstance(searched, Among)
                    assert value in searched.values
    assert len({json.dumps(drawn(MATCHED[1], trial)) for trial in range(2, 30)}) == 28


def test_the_best_trial_is_the_earliest_of_the_highest_and_none_that_failed():
    records = [{"number": 3, "validation": 0.5}, {"number": 1, "validation": 0.4}, {"number": 2, "validation": 0.5}]
    assert best_trial([*records, {"number": 4, "failed": {}}])["number"] == 2
    assert best_trial([{"number": 4, "failed": {}}]) is None


def test_a_suite_goes_on_where_it_was_stopped_and_more_seeds_run_no_trial_again(suite):
    assert len(run(suite)) == 2 * (3 + 2)
    assert run(suite) == []
    file = file_of(suite.out, "digits", "mlp")
    whole = file.read_text()
    file.write_text(whole[:-40])  # as a process leaves it that is killed while it writes
    assert len(run(suite)) == 1
    again = SuiteRecords(file, ENVIRONMENT).runs
    for line in map(json.loads, whole.splitlines()[1:]):
        assert again[line["key"]].get("right") == line.get("right")
        assert ("test" in line) == (line["kind"] == "seed")  # no choice is made on the test images
    more = run(dataclasses.replace(suite, seeds=3))
    assert [words.rpartition(", ")[2] for words in more] == ["seed 2", "seed 2"]


def test_lines_that_are_no_utf8_count_as_not_run(tmp_path):
    file = tmp_path / "runs.jsonl"
    lines = [{"entry": "a", "data": "d", "seed": seed, "key": str(seed), "note": "père"} for seed in range(2)]
    first, second = (json.dumps(line, ensure_ascii=False) for line in lines)
    file.write_bytes(first.encode("latin-1") + b"\n" + second.encode() + b"\n")
    (tmp_path / "bench.jsonl").write_bytes(file.read_bytes())
    assert list(SuiteRecords(file, ENVIRONMENT).runs) == ["1"]
    assert [each["seed"] for each in ComparisonFolder(tmp_path, {}).records] == [1]


def test_a_stop_loses_the_run_under_way_alone(suite):
    stop = StopRequest()

    class Impatient(Heard):
        def begin(self, words):
            super().begin(words)
            if len(self.begun) == 3:
                stop.signal_number = 15

    with pytest.raises(Stopped):
        run_suite(suite, ENVIRONMENT, Impatient(), stop)
    assert len(SuiteRecords(file_of(suite.out, "digits", "mlp"), ENVIRONMENT).runs) == 2
    assert len(run(suite)) == 10 - 2


def test_seeds_have_what_the_search_has_chosen(suite):
    run(suite)
    runs = SuiteRecords(file_of(suite.out, "digits", "mlp"), ENVIRONMENT).runs.values()
    for name in ("linear", "backprop"):
        trials = [run for run in runs if run["row"] == name and run["kind"] == "trial"]
        seeds = [run for run in runs if run["row"] == name and run["kind"] == "seed"]
        assert {json.dumps(run["searched"]) for run in seeds} == {json.dumps(best_trial(trials)["searched"])}
        assert {run["seed"] for run in trials}.isdisjoint({run["seed"] for run in seeds})


def test_a_run_that_fails_is_kept_and_named_and_the_others_go_on(suite, tmp_path):
    wild = dataclasses.replace(suite, rows=(WILD, *suite.rows))
    run(wild)
    write_pages(wild, ENVIRONMENT, tmp_path / "pages", "none")
    page = (tmp_path / "pages" / "matched-digits.md").read_text()
    assert "| wild | failed: " in page
    assert "| noprop-dt | does not fit: it trains blocks" in page
    assert "| linear | all but: no hidden layer |" in page
    assert "(0.00" not in page


def test_a_page_is_made_again_from_the_records_beside_it(suite, tmp_path):
    run(suite)
    write_pages(suite, ENVIRONMENT, tmp_path / "pages", "none")
    page = tmp_path / "pages" / "matched-digits.md"
    first = page.read_text()
    page.unlink()
    write_pages(dataclasses.replace(suite, out=tmp_path / "nothing"), ENVIRONMENT, page.parent, "none")
    assert page.read_text() == first


def test_a_plan_for_data_that_are_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--suite", "matched", "--plan", "--data", "digitz"])
    assert "unknown data set 'digitz': did you mean digits?" in capsys.readouterr().err


def test_the_plan_counts_what_is_done_and_reads_no_data(suite, capsys):
    run(suite)
    file = file_of(suite.out, "digits", "mlp")  # runs of the same length under another budget's name are the same runs
    file.write_text(file.read_text().replace('"budget": "tiny"', '"budget": "quick"'))
    words = ["--nets", "mlp", "--budget", "tiny", "--seeds", "4", "--trials", "3", "--out", str(suite.out), "--plan"]
    main(["bench", "--suite", "matched", *words])
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("backprop ")).split()[1:7] == ["3", "of", "3", "2", "of", "4"]
    assert any(line.startswith("noprop-dt") and "does not fit" in line for line in lines)


def test_without_a_folder_for_pages_the_tables_are_printed(suite, capsys):
    run(suite)
    words = ["--nets", "mlp", "--budget", "tiny", "--seeds", "2", "--trials", "3", "--out", str(suite.out), "--draw"]
    main(["bench", "--suite", "matched", *words])
    said = capsys.readouterr().out
    assert "mlp on digits, budget tiny" in said
    assert "a seed: 1 epoch of the first 256 training images" in said
    assert "compare nothing" in said  # two steps
    assert "Beside backprop" not in said
    assert any(line.startswith("backprop ") and "%" not in line for line in said.splitlines())
    assert "pages:" not in said


def test_a_command_whose_runs_are_all_finished_says_so(suite, capsys):
    run(suite)
    words = ["--nets", "mlp", "--budget", "tiny", "--seeds", "2", "--trials", "3", "--out", str(suite.out)]
    main(["bench", "--suite", "matched", *words, "--rules", "linear", "backprop"])
    assert "no run was taken" in capsys.readouterr().out
    main(["bench", "--suite", "matched", *words, "--rules", "backprop-checkpointed"])
    assert "no run was taken" not in capsys.readouterr().out


def test_a_row_that_is_counted_alone_is_not_trained_and_keeps_less_for_the_way_back(suite, tmp_path):
    memory = dataclasses.replace(suite, rows=chosen_rows(["backprop", "backprop-checkpointed"]), seeds=1, trials=1)
    memory = dataclasses.replace(memory, nets=("conv",))
    assert len(run(memory)) == 2 + 1
    runs = SuiteRecords(file_of(suite.out, "digits", "conv"), ENVIRONMENT).runs.values()
    bytes_of = {found["row"]: found["allocated_bytes"] for found in runs if "allocated_bytes" in found}
    assert bytes_of["backprop-checkpointed"] < bytes_of["backprop"]
    write_pages(memory, ENVIRONMENT, tmp_path / "pages", "none")
    page = (tmp_path / "pages" / "matched-digits.md").read_text()
    assert "| backprop-checkpointed | - | - | - | the updates of backprop | - |" in page


def test_a_row_that_sees_no_label_is_read_at_its_first_look(digits, tmp_path, monkeypatch):
    read: list[str] = []

    def watched(*given):
        read.extend(given[6])
        return predictions(*given)

    monkeypatch.setattr(one_run, "predictions", watched)
    (row,) = chosen_rows(["noprop-ct-blind"])
    found = []
    for each in (row, dataclasses.replace(row, reading="")):
        suite = Suite(("digits",), ("blocks-1",), (each,), 1, 1, "tiny", tmp_path)
        ((_, cell),) = suite.cells("digits", (1, 8, 8), "blocks-1")
        (trial,) = search_of(cell, 1)
        found.append(run_work(trial, digits, "cpu", StopRequest()))
    assert read == ["first step", "ddim"]
    assert found[0]["reading"] == "first step"
    assert "reading" not in found[1]
    assert found[0]["key"] != found[1]["key"]


def test_records_are_still_those_of_the_rows_that_made_them():
    """The keys of committed trials: what a change of the suite makes untrue must be run again, and nothing else."""
    lines = Path(__file__).parents[2].joinpath("docs/results/matched-mnist-blocks-3.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines if '"trial"' in line]
    suite = Suite(("mnist",), ("blocks-3",), chosen_rows([]), 3, 12, "quick", Path("none"))
    cells = {row.name: cell for row, cell in suite.cells("mnist", (), "blocks-3") if not isinstance(cell, NoFit)}
    for name in ("backprop", "noprop-dt", "noprop-dt-squared"):
        keys = [work.key for work in search_of(cells[name], 12)]
        assert keys == [record["key"] for record in kept if record["row"] == name]


def test_a_row_says_what_norm_its_block_has():
    rows = chosen_rows(["noprop-dt", "noprop-ct", "noprop-ct-blind", "noprop-fm-plain"])
    fits = [fitted(row, NETS["blocks-1"], "digits", (1, 8, 8)).differs for row in rows]
    alone = "batch norm at the image path's end alone"
    assert fits == [(), (alone,), (alone, "never sees a label", "read by first step"), ("no batch norm",)]


def test_a_page_is_put_between_its_marks_and_the_rest_stays(suite, tmp_path):
    run(suite)
    write_pages(suite, ENVIRONMENT, tmp_path, "none")
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\nbefore\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    put_into(page, tmp_path / "matched-digits.md")
    text = page.read_text()
    assert text.startswith("# Title\n\nbefore\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "\n### mlp on digits\n" in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        put_into(page, tmp_path / "matched-digits.md")


def test_a_search_without_a_seed_makes_no_page(suite, tmp_path):
    run(suite)
    file = file_of(suite.out, "digits", "mlp")
    file.write_text("\n".join(line for line in file.read_text().splitlines() if '"kind": "seed"' not in line) + "\n")
    write_pages(suite, ENVIRONMENT, tmp_path / "pages", "none")
    assert list((tmp_path / "pages").iterdir()) == []


def test_a_difference_is_of_the_same_seeds_and_images():
    base = [torch.arange(400) % 4 != 0, torch.arange(400) % 4 != 1]  # 75% right
    better = [each | (torch.arange(400) < 40) for each in base]
    found = difference(base, better)
    assert found.mean == pytest.approx(0.025)
    assert 0 < found.low < 0.025 < found.high
    assert found.p < 0.01
    assert difference(base, base).level
    assert difference(base, base).p == 1
    swapped = difference(better, base)
    assert swapped.mean == pytest.approx(-0.025)
    assert swapped.high < 0
    with pytest.raises(InputError, match="seed by seed"):
        difference(base, better[:1])


def test_seeds_that_disagree_widen_the_interval():
    images = torch.arange(1000)
    base = [images >= 0] * 4
    alike = [images >= 100] * 4
    apart = [images >= 0, images >= 200, images >= 0, images >= 200]
    narrow, wide = difference(base, alike), difference(base, apart)
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_right_images_come_back_whatever_their_number():
    for count in (1, 7, 8, 1001):
        right = torch.arange(count) % 3 == 0
        assert torch.equal(unpacked(packed(right), count), right)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nets", "mpl"], "unknown net 'mpl'"),
        (["--rules", "bakprop"], "unknown row of the suite 'bakprop'"),
        (["--trials", "0"], "--trials must lie between 1 and 1000, got 0"),
        (["--suite", "fair"], "fair"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--suite", "matched", "--out", str(tmp_path), *words])
    assert ended.value.code
    assert said in capsys.readouterr().err


def test_the_pages_command_names_as_many_seeds_as_a_table_has(monkeypatch):
    monkeypatch.setattr(matched_pages, "REPORT", Path(__file__).parents[2] / "docs" / "results")
    suite = Suite(("mnist",), ("mlp", "blocks-3", "blocks-10"), chosen_rows([]), 5, 12, "quick", Path("none"))
    assert [seeds_of(suite, "mnist", net) for net in suite.nets] == [5, 3, 3]
    fewer = dataclasses.replace(suite, seeds=2)
    assert seeds_of(fewer, "mnist", "mlp") == 2
    other = dataclasses.replace(suite, budget="full")  # whose runs are not among the records
    assert seeds_of(other, "mnist", "mlp") == 0


def test_a_part_of_a_table_says_where_its_own_rows_were_computed_and_no_others(monkeypatch):
    monkeypatch.setattr(matched_pages, "REPORT", Path(__file__).parents[2] / "docs" / "results")
    suite = Suite(("mnist",), ("mlp", "blocks-3"), chosen_rows([]), 5, 12, "quick", Path("none"))
    records = matched_pages.kept_records(suite, "mnist", "mlp")
    rows = list(rows_of(suite, "mnist", "mlp", records))
    mine = next(row for row in rows if row.row.name == "backprop")
    used = {run["environment"] for run in (*mine.trials, *mine.runs)}
    for index, place in enumerate(records.environments):
        place["processor"] = "processor A" if index in used else "processor B"
    other = next(row for row in rows if row.runs and not {run["environment"] for run in row.runs} & used)
    head, marks, line, by = matched_pages.part_of_table(rows, records, ["backprop"], ["row", "seeds"]).split("\n", 3)
    assert [head, marks, line] == ["| row | seeds |", "| --- | --- |", f"| backprop | {len(mine.runs)} |"]
    assert ("processor A" in by, "processor B" in by) == (True, False)
    _, by = matched_pages.part_of_table(rows, records, ["backprop", other.row.name], ["row"]).rsplit("\n\n", 1)
    assert ("processor A" in by, "processor B" in by) == (True, True)
    assert [each for each in matched_pages.ternary_part(suite, "mnist").splitlines() if each.startswith("#")] == [
        "### mlp on mnist"]  # fmt: skip


class TestCautions:
    """What the page says of a baseline whose seeds are far apart, and of searches that chose an end of a range."""

    SEARCH: ClassVar = {"learning_rate": Between(1e-4, 1e-2), "momentum": Among((0.8, 0.9, 0.98))}

    def row(self, name, tests, **chosen):
        rule = MatchedRule(name, "backprop", "", self.SEARCH)
        trial = {"searched": chosen, "validation": 0.9, "number": 0}
        return RowRuns(rule, None, "", (trial,), tuple({"test": test} for test in tests))

    def test_seeds_of_the_baseline_that_are_far_apart_are_told(self):
        near, far = (self.row("backprop", tests, learning_rate=1e-3) for tests in ((0.95, 0.97), (0.886, 0.968)))
        other = self.row("other", (0.1, 0.9), learning_rate=1e-3)
        assert cautions([near, other]) == ""
        assert cautions([other, far]).startswith("The seeds of backprop have from 88.6 to 96.8 %")

    def test_choices_at_an_end_are_named(self):
        rows = [
            self.row("inside", (0.9,), learning_rate=5e-3, momentum=0.9),
            self.row("ends", (0.9,), learning_rate=9.9e-3, momentum=0.8),
            self.row("one", (0.9,), learning_rate=1.01e-4, momentum=0.9),
            self.row("not run", (), learning_rate=1e-2, momentum=0.8),
        ]
        assert cautions(rows) == (
            "At an end of what was searched, so that better may lie beyond: ends (learning_rate, momentum); "
            "one (learning_rate)."
        )
