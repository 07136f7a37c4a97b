"""`sidestep reproduce`: tables that are filled cell by cell, and can be stopped, resumed and trusted."""

import dataclasses
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from sidestep import checkpoint, data
from sidestep.bench.paper_tables import cells
from sidestep.bench.paper_tables import rows as table_rows
from sidestep.bench.paper_tables.accuracy import accuracy_row, accuracy_tables, accuracy_text, verdict
from sidestep.bench.paper_tables.elsewhere import runs_elsewhere
from sidestep.bench.paper_tables.memory import memory_record, memory_tables, memory_text
from sidestep.bench.paper_tables.reproduce import Plan
from sidestep.bench.paper_tables.rows import budget_data, command_for, recipe_of, table_presets, wanted_presets
from sidestep.cli import main
from sidestep.cli import reproduce as reproduce_cli
from sidestep.cli.preset_times import times
from sidestep.cli.reproduce_plan import plan_record, plan_table
from sidestep.errors import InputError
from sidestep.measure import environment_of, processor_name
from sidestep.presets.catalogue import PRESETS, Changes, PaperCell, Preset
from sidestep.rules import RULES, NoPropDT
from sidestep.training.loop import Loop
from sidestep.version import __version__

TINY = {"tiny": Changes({"epochs": 1}), "cpu": Changes({"epochs": 2})}
FORWARD = Preset(
    name="small-forward",
    data="digits",
    rule="backprop",
    options={"net": "mlp", "hidden": (16,), "learning_rate": 0.01},
    train={"epochs": 3, "batch": 32},
    summary="a deterministic reading",
    reading="forward",
    validation=0.0,
    table="noprop-table1",
    row="forward-one-hot",
    paper=PaperCell(99.0),
    memory_gb=0.5,
    budgets=TINY,
)
SAMPLED = dataclasses.replace(
    FORWARD,
    name="small-sampled",
    memory_gb=None,
    rule="noprop-dt",
    options={"blocks": 1, "draws": 1},
    summary="a reading that draws noise",
    reading="ancestral",
    row="sampled-one-hot",
    paper=PaperCell(50.0, 0.5),
    sampled=True,
)


@pytest.fixture(autouse=True)
def two_small_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIDESTEP_DATA", raising=False)
    for preset in (FORWARD, SAMPLED):
        monkeypatch.setitem(PRESETS, preset.name, preset)
    monkeypatch.setattr(table_rows, "FIRST_TRAIN", 320)  # ten steps
    monkeypatch.setattr(table_rows, "FIRST_TEST", 100)


def run(capsys, *arguments):
    """Return exit status, standard output, standard error."""
    status = 0
    try:
        main(["reproduce", *arguments])
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, " ".join(captured.err.split())


def fill(capsys, *arguments):
    words = [
        "noprop-table1",
        "--data",
        "digits",
        "--budget",
        "tiny",
        "--seeds",
        "2",
        "--out",
        "out",
        *arguments,
        "--json",
    ]
    status, out, error = run(capsys, *words)
    return status, json.loads(out.splitlines()[-1]) if out else None, error


def row_of(record, preset):
    return next(row for row in record["rows"] if row["preset"] == preset.name)


class TestArithmetic:
    def test_mean_and_standard_error_count_every_inference_run(self):
        done = {"seconds": 10.0, "epochs": 3.0, "peak_memory_bytes": 5, "device": "cpu", "precision": "float32"}
        found = [
            {**done, "seed": 0, "accuracies": [0.5, 0.7], "default_reading": {"ddim": 0.8}},
            {**done, "seed": 1, "accuracies": [0.6, 0.6], "default_reading": {"ddim": 0.9}, "seconds": 20.0},
            {"seed": 2, "failed": "OutOfMemoryError: no"},
        ]
        row = accuracy_row(SAMPLED, SAMPLED, found, "full")
        # deviations -10, 10, 0, 0 from 60: variance 200 / 3, over 4 values 200 / 12
        assert row["mean"] == pytest.approx(60.0)
        assert row["error"] == pytest.approx((200 / 12) ** 0.5)
        assert row["error_of_seeds"] == pytest.approx(0.0, abs=1e-9)  # both seeds have mean 60
        assert row["by_default"]["mean"] == pytest.approx(85.0)
        assert row["by_default"]["error"] == pytest.approx(5.0)  # 80 and 90
        assert (row["seconds"], row["seeds"], row["verdict"]) == (15.0, 2, "pass")
        assert row["failed"] == [{"seed": 2, "why": "OutOfMemoryError: no"}]

    def test_accuracies_have_the_error_of_the_test_images_too_where_their_number_is_known(self):
        done = {"seconds": 10.0, "epochs": 3.0, "peak_memory_bytes": 5, "device": "cpu", "precision": "float32"}
        cells = [
            {**done, "seed": seed, "accuracies": [0.8, 0.8], "default_reading": {"ddim": 0.5}} for seed in range(2)
        ]

        def words(*found):
            row = accuracy_row(SAMPLED, SAMPLED, found, "full")
            (table,) = accuracy_tables({"rows": [row]})
            return [table.rows[0][table.columns.index(name)] for name in ("ours", "by default")]

        # sqrt(0.8 * 0.2 / 400) = 0.02 and sqrt(0.5 * 0.5 / 400) = 0.025: of four equal runs the error is not 0 alone
        assert words(*({**cell, "test_images": 400} for cell in cells)) == [
            "80.00 (0; 2.00)",
            "50.00 (0; 2.50) ddim",
        ]
        assert words(*cells) == ["80.00 (0)", "50.00 (0) ddim"]  # written before their number was
        # over seeds, 70 and 90: 10; over the four values it would be sqrt(400 / 3 / 4) = 5.77
        apart = [{**cells[0], "accuracies": [0.7, 0.7]}, {**cells[1], "accuracies": [0.9, 0.9]}]
        assert words(*apart)[0] == "80.00 (10.00)"
        assert words({**apart[0], "test_images": 400})[0] == "70.00 (-; 2.29)"

    def test_verdict_by_hand(self):
        cell = PaperCell(99.47, 0.04)
        assert verdict(99.391, cell) == "pass"  # from 99.47 - 2 * 0.04 = 99.39 on
        assert verdict(99.389, cell) == "fail"
        assert verdict(99.9, cell) == "pass"
        assert verdict(97.85, PaperCell(97.84)) == "pass"  # without an error of the paper, its mean
        assert verdict(97.83, PaperCell(97.84)) == "fail"
        assert verdict(99.0, None) == "-"

    @pytest.mark.parametrize("budget", ["tiny", "cpu"])
    def test_there_is_no_verdict_on_fewer_epochs_than_the_paper_s(self, budget):
        cell = {"seed": 0, "accuracies": [0.1, 0.1], "default_reading": {"ddim": 0.1}, "seconds": 1.0, "epochs": 1.0,
                "peak_memory_bytes": 5, "device": "cpu", "precision": "float32"}  # fmt: skip
        assert accuracy_row(SAMPLED, SAMPLED, [cell], budget)["verdict"] == "-"
        assert accuracy_row(SAMPLED, SAMPLED, [cell], "full")["verdict"] == "fail"


def test_a_table_is_filled_written_and_not_filled_twice(capsys, monkeypatch):
    status, record, error = fill(capsys, "--inference-runs", "3")
    assert status == 0, error
    forward, sampled = row_of(record, FORWARD), row_of(record, SAMPLED)
    assert len(forward["values"]) == 2  # deterministic: once a seed
    assert len(sampled["values"]) == 6
    assert (forward["verdict"], sampled["verdict"]) == ("-", "-")
    folder = Path("out/tiny/small-sampled-1")
    result = json.loads((folder / "result.json").read_text())
    inference = json.loads((folder / "inference.json").read_text())
    assert inference["accuracies"]["ancestral"][0] == result["readings"]["ancestral"]
    assert len(set(inference["accuracies"]["ancestral"])) > 1  # each with noise of its own
    config = (folder / "config.toml").read_text()
    assert 'preset = "small-sampled"' in config
    assert "train_images = 320" in config
    assert inference["images"] == 100

    page, mean = Path("out/noprop-table1-tiny.md").read_text(), forward["mean"]
    for words in (
        "sidestep reproduce noprop-table1 --data digits --budget tiny --seeds 2",
        "first 1,280 images",
        f"torch {torch.__version__}",
        "1 thread." if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads.",
        "sd / sqrt(n)",
        "| forward-one-hot | digits | 99.00 |",
        "| sampled-one-hot | digits | 50.00 (0.50) |",
        f"; {(mean * (100 - mean) / 100) ** 0.5:.2f}) | forward |",  # 100 sqrt(p (1 - p) / n), n = 100 test images
        "| 2 x 3 |",
        "1 of 3",
    ):
        assert words in page, words
    assert json.loads(Path("out/noprop-table1-tiny.json").read_text()) == record

    def never(*_arguments, **_named):
        raise AssertionError("computed again")

    monkeypatch.setattr("sidestep.bench.studies.blocks.train", never)
    monkeypatch.setattr("sidestep.training.result.accuracies", never)
    monkeypatch.setattr(cells, "accuracies", never)
    status, again, error = fill(capsys, "--inference-runs", "3")
    assert status == 0, error
    assert {**again, "command": ""} == {**record, "command": ""}
    status, fewer, error = fill(capsys, "--inference-runs", "2")  # of those that are there, the first two
    assert row_of(fewer, SAMPLED)["values"] == [v for i, v in enumerate(sampled["values"]) if i % 3 < 2]


def test_more_inference_runs_keep_those_that_are_there(capsys):
    _, record, _ = fill(capsys, "--rows", "sampled-onehot", "--inference-runs", "2", "--seeds", "1")
    _, more, _ = fill(capsys, "--rows", "sampled-one-hot", "--inference-runs", "4", "--seeds", "1")
    assert row_of(more, SAMPLED)["values"][:2] == row_of(record, SAMPLED)["values"]
    assert len(row_of(more, SAMPLED)["values"]) == 4
    # a row that was run earlier stays on the page of the next
    status, other, _ = fill(capsys, "--rows", "forward-one-hot", "--inference-runs", "4", "--seeds", "1")
    assert status == 0
    assert row_of(other, SAMPLED)["values"] == row_of(more, SAMPLED)["values"]
    shown = "--data digits --rows forward-one-hot sampled-one-hot"
    command = "sidestep reproduce noprop-table1 --budget tiny --seeds 2 --out out --inference-runs 4 --seeds 1 --json"
    assert other["command"] == f"{command} {shown}"  # and so is it in the command
    page = Path("out/noprop-table1-tiny.md").read_text()
    assert f"\n    {command} {shown}\n" in page
    assert "1 seed, 4 inference runs each" in page
    assert other["rows_left_out"] == len(table_presets("noprop-table1")) - 2


def test_a_stopped_table_goes_on_to_the_same_bits(capsys, monkeypatch):
    fill(capsys, "--rows", "forward-one-hot", "--report", "pages", "--out", "whole")
    take_step, taken = Loop.take_step, 0

    def interrupted(loop, state, *more):
        nonlocal taken
        taken += 1
        if taken == 14:  # in the second seed, of ten steps each
            os.kill(os.getpid(), signal.SIGINT)
        take_step(loop, state, *more)

    monkeypatch.setattr(Loop, "take_step", interrupted)
    status, _, error = fill(capsys, "--rows", "forward-one-hot")
    assert status == 128 + signal.SIGINT
    assert "to go on, run the same command again: sidestep reproduce noprop-table1 --data digits" in error
    page = Path("out/noprop-table1-tiny.json").read_text()
    assert row_of(json.loads(page), FORWARD)["seeds"] == 1
    assert not Path("out/tiny/small-forward-1/result.json").exists()
    status, record, error = fill(capsys, "--rows", "forward-one-hot")
    assert status == 0, error
    assert taken == 20
    assert row_of(record, FORWARD)["seeds"] == 2
    for seed in range(2):
        one, two = (Path(f"{out}/tiny/small-forward-{seed}/model.safetensors").read_bytes() for out in ("whole", "out"))
        assert one == two
    assert Path("pages/noprop-table1-tiny.md").exists()
    assert not Path("whole/noprop-table1-tiny.md").exists()


def test_only_the_readings_of_the_table_are_counted(capsys):
    fill(capsys, "--seeds", "1", "--inference-runs", "1")
    for name, readings in (("small-forward-0", ["forward"]), ("small-sampled-0", ["ddim", "ancestral"])):
        assert list(json.loads(Path(f"out/tiny/{name}/result.json").read_text())["readings"]) == readings


def test_an_inference_run_that_is_stopped_goes_on(capsys, monkeypatch):
    monkeypatch.setattr("sidestep.training.evaluate._BATCH", 20)  # five batches of the 100 test images
    words = ["--rows", "sampled-one-hot", "--seeds", "1", "--inference-runs", "3"]
    _, whole, _ = fill(capsys, *words, "--out", "whole")
    batches, predict = [], NoPropDT.predict

    def interrupted(self, net, images, noise, start, names=None):
        if names == ["ancestral"]:  # of a further inference run
            batches.append(start)
            if len(batches) == 7:  # the second one's second batch
                signal.raise_signal(signal.SIGTERM)
        return predict(self, net, images, noise, start, names)

    monkeypatch.setattr(NoPropDT, "predict", interrupted)
    status, _, error = fill(capsys, *words)
    assert status == 128 + signal.SIGTERM
    assert "stopped after 40 images of the evaluation on the test split; to go on, run the same command" in error
    status, record, error = fill(capsys, *words)
    assert status == 0, error
    assert batches == [0, 20, 40, 60, 80] * 2  # none twice
    assert row_of(record, SAMPLED)["values"] == row_of(whole, SAMPLED)["values"]
    assert not Path("out/tiny/small-sampled-0/inference-run.json").exists()


def test_a_row_that_fails_is_noted_and_the_others_go_on(capsys, monkeypatch):
    whole = cells.trained_run

    def sometimes(rule, *rest):
        if rule.name == FORWARD.rule:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more lines")
        return whole(rule, *rest)

    monkeypatch.setattr(cells, "trained_run", sometimes)
    status, record, error = fill(capsys, "--seeds", "1", "--inference-runs", "1")
    assert (status, "1 run failed" in error) == (1, True)
    why = "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB"
    assert row_of(record, FORWARD)["failed"] == [{"seed": 0, "why": why}]
    assert row_of(record, SAMPLED)["seeds"] == 1
    page = Path("out/noprop-table1-tiny.md").read_text()
    assert "| forward-one-hot | digits | 99.00 | failed |" in page
    assert f"| small-forward | 0 | {why} |" in page
    monkeypatch.setattr(cells, "trained_run", whole)
    status, record, error = fill(capsys, "--seeds", "1", "--inference-runs", "1")
    assert status == 0, error
    assert row_of(record, FORWARD)["failed"] == []
    assert "failed" not in Path("out/noprop-table1-tiny.md").read_text()


class TestMerge:
    """Runs of other folders and machines on one page."""

    PAGE = "noprop-table1-tiny.json"

    @pytest.fixture
    def two_folders(self, capsys):
        """One row here, another there, each with its page."""
        fill(capsys, "--rows", "forward-one-hot", "--out", "here")
        fill(capsys, "--rows", "sampled-one-hot", "--out", "there", "--inference-runs", "3")

    @pytest.fixture
    def nothing_trains(self, monkeypatch):
        def never(*_arguments, **_named):
            raise AssertionError("trained again")

        monkeypatch.setattr("sidestep.bench.studies.blocks.train", never)
        monkeypatch.setattr(cells, "accuracies", never)

    def record(self, folder):
        return json.loads(Path(folder, self.PAGE).read_text())

    def change(self, folder, change):
        """Change the runs of a folder's page."""
        record = self.record(folder)
        for row in record["rows"]:
            for cell in row["cells"]:
                change(cell)
        Path(folder, self.PAGE).write_text(json.dumps(record))

    @pytest.mark.usefixtures("two_folders", "nothing_trains")
    def test_rows_of_two_folders_make_one_page_and_nothing_is_trained_again(self, capsys):
        words = ["--out", "here", "--merge", f"there/{self.PAGE}", "--inference-runs", "2"]
        apart, other = row_of(self.record("here"), FORWARD), row_of(self.record("there"), SAMPLED)
        status, record, error = fill(capsys, *words)
        assert status == 0, error
        assert row_of(record, FORWARD) == apart
        assert row_of(record, SAMPLED)["values"] == [v for i, v in enumerate(other["values"]) if i % 3 < 2]
        assert [len(cell["accuracies"]) for cell in row_of(record, SAMPLED)["cells"]] == [3, 3]  # none is dropped
        page = Path("here/noprop-table1-tiny.md").read_text()
        assert "| 2 x 2 |" in page
        assert "2 runs of other folders were merged" in page
        # once merged, this page stands for both
        status, again, error = fill(capsys, "--out", "new", f"--merge=here/{self.PAGE}", "--inference-runs", "3")
        assert (status, row_of(again, SAMPLED)["values"]) == (0, other["values"]), error
        assert row_of(again, FORWARD)["values"] == apart["values"]

    @pytest.mark.usefixtures("two_folders")
    def test_what_is_not_in_the_records_is_trained_here(self, capsys):
        words = ["--rows", "sampled-one-hot", "--out", "new", "--merge", f"there/{self.PAGE}"]
        status, record, error = fill(capsys, *words, "--seeds", "3", "--inference-runs", "3")
        assert status == 0, error
        assert [path.name for path in sorted(Path("new/tiny").iterdir())] == ["small-sampled-2"]
        assert row_of(record, SAMPLED)["seeds"] == 3
        # read less often than asked: its net is not here, so it stands as it is
        status, record, error = fill(capsys, *words, "--seeds", "3", "--inference-runs", "4")
        assert (status, row_of(record, SAMPLED)["inference_runs"]) == (0, [3, 3, 4]), error
        assert "| 3 x 3 to 4 |" in Path("new/noprop-table1-tiny.md").read_text()
        assert [path.name for path in sorted(Path("new/tiny").iterdir())] == ["small-sampled-2"]

    @pytest.mark.usefixtures("two_folders")
    def test_the_plan_counts_what_was_merged(self, capsys):
        words = ["noprop-table1", "--data", "digits", "--budget", "tiny", "--seeds", "2", "--out", "here", "--json"]
        merge, counts = ["--merge", f"there/{self.PAGE}"], []
        for more in (["3"], ["3", *merge], ["4", *merge]):
            _, out, _ = run(capsys, *words, "--plan", "--inference-runs", *more)
            row = row_of(json.loads(out.splitlines()[-1]), SAMPLED)
            counts.append((row["done"], row["to_be_read"]))
        assert counts == [(0, 0), (2, 0), (2, 0)]  # its net is not here to be read a fourth time

    @pytest.mark.usefixtures("two_folders", "nothing_trains")
    def test_of_one_run_in_two_records_that_which_was_read_more_often_counts(self, capsys):
        Path("less").mkdir()
        Path("less", self.PAGE).write_text(Path("there", self.PAGE).read_text())
        self.change("less", lambda cell: cell.update(accuracies=[0.125]))
        words = ["--rows", "sampled-one-hot", "--out", "new", "--inference-runs", "3"]
        status, record, error = fill(capsys, *words, "--merge", f"less/{self.PAGE}", f"there/{self.PAGE}")
        assert (status, row_of(record, SAMPLED)["values"]) == (0, row_of(self.record("there"), SAMPLED)["values"]), (
            error
        )
        # of two that were read as often, the first
        self.change("less", lambda cell: cell.update(accuracies=[0.125] * 3))
        words = [*words, "--report", "other"]
        status, record, error = fill(capsys, *words, "--merge", f"less/{self.PAGE}", f"there/{self.PAGE}")
        assert (status, row_of(record, SAMPLED)["values"]) == (0, [12.5] * 6), error

    @pytest.mark.usefixtures("two_folders", "nothing_trains")
    def test_a_run_of_the_folder_comes_before_one_of_a_record_and_that_before_a_failure(self, capsys):
        own = row_of(self.record("there"), SAMPLED)["values"]
        Path("there", self.PAGE).rename("other.json")
        record = json.loads(Path("other.json").read_text())
        for cell in record["rows"][0]["cells"]:
            cell["accuracies"] = [0.125] * 3
        Path("other.json").write_text(json.dumps(record))
        words = ["--rows", "sampled-one-hot", "--out", "there", "--inference-runs", "3", "--merge", "other.json"]
        status, found, error = fill(capsys, *words)
        assert (status, row_of(found, SAMPLED)["values"]) == (0, own), error
        Path("there/tiny/small-sampled-1").rename("moved")
        Path("there", self.PAGE).unlink()
        checkpoint.write_json(Path("there/tiny/small-sampled-1.failed.json"), {"failed": "RuntimeError: no"})
        status, found, error = fill(capsys, *words)
        assert (status, row_of(found, SAMPLED)["values"]) == (0, [*own[:3], 12.5, 12.5, 12.5]), error

    @pytest.mark.usefixtures("two_folders")
    def test_a_page_is_not_written_over_without_the_runs_that_it_holds(self, capsys):
        before = self.record("there")
        words = ["--out", "here", "--rows", "forward-one-hot", "--report", "there"]
        status, _, error = fill(capsys, *words)
        assert status == 2
        holds = f"there/{self.PAGE} holds 2 runs that here does not have"
        for said in (
            holds,
            "(first sampled-one-hot, seed 0)",
            f"add --merge there/{self.PAGE}, choose another --report",
        ):
            assert said in error, error
        assert self.record("there") == before
        # what it advises, as it stands, keeps every value, though more were asked for
        for more in ([], ["--inference-runs", "1"]):
            status, record, error = fill(capsys, *words, "--merge", f"there/{self.PAGE}", *more)
            assert status == 0, error
            kept = [cell["accuracies"] for cell in row_of(record, SAMPLED)["cells"]]
            assert kept == [cell["accuracies"] for cell in row_of(before, SAMPLED)["cells"]]
        status, _, error = fill(capsys, *words, "--merge", f"there/{self.PAGE}", "--seeds", "1")
        assert (status, "(first sampled-one-hot, seed 1)" in error, "and --seeds 2" in error) == (2, True, True), error

    @pytest.mark.usefixtures("two_folders")
    def test_runs_of_a_wanted_row_are_not_trained_over_by_what_the_refusal_advises(self, capsys):
        def of_another_machine(cell):
            cell.update(accuracies=[0.125, 0.125, 0.25], seconds=7.0)

        self.change("there", of_another_machine)
        words = ["--rows", "sampled-one-hot", "--out", "new", "--report", "there"]
        status, _, error = fill(capsys, *words)
        assert (status, "holds 2 runs" in error, "add --merge" in error) == (2, True, True), error
        status, record, error = fill(capsys, *words, "--merge", f"there/{self.PAGE}")
        assert (status, row_of(record, SAMPLED)["values"]) == (0, [12.5, 12.5, 25.0] * 2), error

    @pytest.mark.parametrize(
        "change",
        [{"seconds": 7.0}, {"device": "cuda"}, {"precision": "float16"}, {"accuracies": [0.5] * 3}, "last", "more",
         {"default_reading": {"ddim": 0.0}}],
    )  # fmt: skip
    @pytest.mark.usefixtures("two_folders")
    def test_another_run_of_that_row_and_seed_does_not_stand_for_it(self, capsys, change):
        def of_another_machine(cell):
            if change == "last":
                cell["accuracies"][-1] = 0.123
            elif change == "more":
                cell["accuracies"].append(0.123)
            else:
                cell.update(change)

        self.change("there", of_another_machine)
        words = ["--rows", "sampled-one-hot", "--out", "there", "--inference-runs", "3"]
        status, _, error = fill(capsys, *words)
        # the folder has another run of them, so that merging would not bring them back
        assert (status, "holds 2 runs" in error, "choose another --report" in error) == (2, True, True), error
        assert "--merge" not in error

    @pytest.mark.usefixtures("two_folders", "nothing_trains")
    def test_of_one_run_in_the_folder_and_a_record_that_which_was_read_more_often_counts(self, capsys):
        self.change("there", lambda cell: cell["accuracies"].append(0.5))
        words = ["--rows", "sampled-one-hot", "--out", "there", "--inference-runs", "4"]
        status, record, error = fill(capsys, *words, "--merge", f"there/{self.PAGE}")
        assert (status, row_of(record, SAMPLED)["inference_runs"]) == (0, [4, 4]), error

    @pytest.mark.usefixtures("two_folders")
    def test_a_folder_s_own_page_is_not_taken_for_that_of_another(self, capsys):
        words = ["--rows", "sampled-one-hot", "--out", "there", "--merge", f"there/{self.PAGE}", "--seeds", "1"]
        status, record, error = fill(capsys, *words, "--inference-runs", "4", "--report", "other")
        (cell,) = row_of(record, SAMPLED)["cells"]
        assert (status, len(cell["accuracies"]), "merged" in cell) == (0, 4, False), (
            error
        )  # read once more, from its net

    @pytest.mark.usefixtures("two_folders")
    def test_a_refusal_leaves_no_folder(self, capsys):
        status, _, error = fill(capsys, "--rows", "forward-one-hot", "--out", "new", "--report", "there")
        assert (status, Path("new").exists()) == (2, False), error

    @pytest.mark.usefixtures("two_folders")
    def test_a_finished_run_with_a_failure_since_is_a_failure(self, capsys):
        file = Path("there/tiny/small-sampled-1.failed.json")
        checkpoint.write_json(file, {"failed": "RuntimeError: no"})
        before = self.record("there")
        status, record, error = fill(capsys, "--rows", "forward-one-hot", "--out", "there", "--inference-runs", "3")
        assert (status, row_of(record, SAMPLED)["failed"]) == (1, [{"seed": 1, "why": "RuntimeError: no"}]), error
        # and a merged one comes before it
        Path("before.json").write_text(json.dumps(before))
        words = ["--rows", "forward-one-hot", "--out", "there", "--inference-runs", "3", "--merge", "before.json"]
        status, record, error = fill(capsys, *words)
        assert (status, row_of(record, SAMPLED)["values"]) == (0, row_of(before, SAMPLED)["values"]), error

    @pytest.mark.usefixtures("two_folders")
    def test_a_page_of_before_is_not_written_over_either(self, capsys):
        record = self.record("there")
        for row in record["rows"]:
            del row["cells"]
        Path("there", self.PAGE).write_text(json.dumps(record))
        words = ["--rows", "forward-one-hot", "--out", "here", "--report", "there"]
        status, _, error = fill(capsys, *words)
        assert (status, "holds 1 run" in error, "--merge" in error) == (2, True, False), error
        words = ["--rows", "sampled-one-hot", "--out", "there", "--inference-runs", "3"]
        assert fill(capsys, *words)[0] == 0  # the folder has them

    @pytest.mark.parametrize(
        "change",
        [
            lambda record: "something else",
            lambda record: json.dumps({**record, "table": "another"}),
            lambda record: json.dumps({**record, "budget": "full"}),
            lambda record: json.dumps(record).replace('"accuracies": [', '"accuracies": 5, "x": ['),
            lambda record: json.dumps(record).replace('"preset"', '"x"'),
            lambda record: json.dumps({**record, "rows": [5]}),
        ],
    )
    @pytest.mark.usefixtures("two_folders")
    def test_a_file_in_the_page_s_place_is_not_written_over(self, capsys, change):
        file = Path("there", self.PAGE)
        file.write_text(change(self.record("there")))
        before = file.read_bytes()
        status, _, error = fill(capsys, "--rows", "sampled-one-hot", "--out", "there", "--inference-runs", "3")
        assert (status, "is no record of this table; move it away" in error) == (2, True), error
        assert file.read_bytes() == before

    @pytest.mark.usefixtures("two_folders")
    def test_a_row_that_is_no_longer_there_is_not_lost_without_a_word(self, capsys, monkeypatch):
        monkeypatch.delitem(PRESETS, SAMPLED.name)
        status, _, error = fill(capsys, "--rows", "forward-one-hot", "--out", "here", "--report", "there")
        assert (status, "(first sampled-one-hot, seed 0)" in error, "--merge" in error) == (2, True, False), error

    @pytest.mark.usefixtures("two_folders")
    def test_runs_without_a_recipe_are_named(self, capsys):
        self.change("there", lambda cell: cell.update(recipe=None))
        status, _, error = fill(capsys, "--rows", "forward-one-hot", "--out", "here", "--merge", f"there/{self.PAGE}")
        assert (status, "sampled-one-hot on digits, seed 0, has no recipe" in error) == (2, True), error

    @pytest.mark.usefixtures("two_folders")
    def test_rows_say_where_they_were_computed_if_that_differs(self, capsys):
        def move(cell):
            assert cell["environment"]["torch"] == torch.__version__
            if cell["seed"]:
                cell["environment"] |= {"processor": "another processor", "commit": "a" * 12}
            else:
                cell["environment"]["commit"] = "b" * 12  # of another commit of the same place
                assert cell["environment"]["processor"] == processor_name()

        self.change("there", move)
        status, _, error = fill(capsys, "--out", "here", "--merge", f"there/{self.PAGE}", "--inference-runs", "3")
        assert status == 0, error
        page = Path("here/noprop-table1-tiny.md").read_text().replace("\n  ", " ")  # entries as they were before lines
        places = dict(line[2:].rsplit(": ", 1) for line in page.splitlines() if line.startswith("- cpu, "))
        assert sorted(places.values()) == [
            "forward-one-hot (digits), sampled-one-hot (digits, seed 0)", "sampled-one-hot (digits, seed 1)"
        ]  # fmt: skip
        (other,) = [place for place in places if "another processor" in place]
        (here,) = places.keys() - {other}
        assert f"sidestep {__version__} ({'a' * 12}), torch" in other
        own = environment_of()["commit"]
        assert ("others not kept" if own is None else own) in here
        assert "b" * 12 in here
        assert "others not kept" not in other

    @pytest.mark.usefixtures("two_folders")
    def test_a_row_of_a_folder_keeps_the_recipe_that_it_was_trained_by(self, capsys, monkeypatch):
        changed = dataclasses.replace(FORWARD, options={**FORWARD.options, "learning_rate": 0.02})
        monkeypatch.setitem(PRESETS, FORWARD.name, changed)
        fill(
            capsys, "--rows", "sampled-one-hot", "--out", "here"
        )  # the page is written anew, the other row stays on it
        status, _, error = fill(capsys, "--out", "new", "--merge", f"here/{self.PAGE}")
        learning_rate = FORWARD.options["learning_rate"]
        assert (status, f"was trained with learning_rate {learning_rate}, and the row has 0.02 now" in error) == (
            2,
            True,
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda record: "{", "is no record: it is not JSON"),
            (lambda record: "[" * 100_000, "is no record: it is not JSON"),
            (lambda record: json.dumps([]), "is no record of noprop-table1 at --budget tiny"),
            (lambda record: json.dumps({**record, "budget": "cpu"}), "is no record of noprop-table1 at --budget tiny"),
            (lambda record: json.dumps({**record, "rows": [{"row": "x"}]}), "does not hold whole runs"),
            (lambda record: json.dumps({**record, "rows": 5}), "is no record of noprop-table1 at --budget tiny"),
            (lambda record: json.dumps(record).replace('"preset": "small', '"preset": "large'), "has no row 'large-"),
        ],
    )
    @pytest.mark.usefixtures("two_folders")
    def test_a_file_that_does_not_fit_is_refused(self, capsys, change, message):
        file = Path("there", self.PAGE)
        file.write_text(change(json.loads(file.read_text())))
        status, _, error = fill(capsys, "--out", "here", "--merge", str(file))
        assert (status, message in error, str(file) in error) == (2, True, True), error

    CELL: ClassVar = {
        "seed": 0, "accuracies": [0.5], "default_reading": {"ancestral": 0.5}, "seconds": 1.0, "epochs": 1.0,
        "peak_memory_bytes": 1, "device": "cpu", "precision": "float32", "test_images": 10,
        "environment": {"sidestep": "1", "torch": "2", "threads": 1, "processor": "x"},
    }  # fmt: skip

    def merged(self, *changes):
        cells = [{**self.CELL, "recipe": recipe_of(SAMPLED), **change} for change in changes]
        for cell in cells:
            cell["default_reading"] = cell.get("reading", {RULES[SAMPLED.rule].readings[0]: 0.5})
        record = {"table": "t", "budget": "full", "rows": [{"preset": SAMPLED.name, "row": "r", "cells": cells}]}
        Path("t.json").write_text(json.dumps(record))
        return runs_elsewhere([Path("t.json")], "t", "full", [SAMPLED])

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": -1}, {"seed": False}, {"seed": 0.0}, {"accuracies": []}, {"accuracies": [99.0]},
            {"accuracies": [float("nan")]}, {"accuracies": ["x"]}, {"reading": {"ddim": "x"}},
            {"seconds": float("nan")},
            {"seconds": -1.0}, {"epochs": None}, {"peak_memory_bytes": "x"}, {"device": 1}, {"precision": None},
            {"test_images": "x"}, {"test_images": 0}, {"environment": {"threads": 1}}, {"environment": "x"},
            {"environment": {"sidestep": "1", "torch": "2", "threads": "x", "processor": "x"}}, {"failed": "no"},
            *({"environment": {"sidestep": "1", "torch": "2", "threads": 1, "processor": "x", "commit": odd}}
              for odd in ("<b>", 7, ["0123456"], "0123456++")),
            {"recipe": "x"},
        ],
    )  # fmt: skip
    def test_a_run_that_no_page_can_be_made_of_is_refused(self, change):
        assert list(self.merged({})) == [(SAMPLED.name, 0)]
        with pytest.raises(InputError, match="does not hold whole runs"):
            self.merged({}, {"seed": 1, **change} if "seed" not in change else change)

    def test_a_seed_that_stands_twice_in_a_row_is_refused(self):
        with pytest.raises(InputError, match="does not hold whole runs"):
            self.merged({}, {"accuracies": [0.25]})

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rule": "backprop"}, "rule backprop"),
            ({"train": {**SAMPLED.train, "epochs": 7}}, "epochs 7, and the row has 3 now"),
            ({"train": {**SAMPLED.train, "new": None}}, "new None, and the row has nothing now"),
            ({"options": {}}, "nothing, and the row has"),
            ({"reading": "other"}, "reading other, and the row has ancestral now"),
            ({"validation": 0.5}, "validation 0.5"),
        ],
    )
    def test_a_run_by_another_recipe_is_refused(self, change, message):
        with pytest.raises(InputError, match=message):
            self.merged({"recipe": {**recipe_of(SAMPLED), **change}})
        with pytest.raises(InputError, match="default reading other"):
            self.merged({"reading": {"other": 0.5}})

    def test_a_file_that_is_not_there_is_refused(self, capsys):
        status, _, error = fill(capsys, "--merge", "nowhere.json")
        assert (status, "--merge: nowhere.json cannot be read: No such file" in error) == (2, True), error


@pytest.mark.parametrize("budget", ["tiny", "full"])
def test_the_terminal_says_what_the_numbers_mean(capsys, monkeypatch, budget):
    fill(capsys, "--rows", "forward-one-hot", "--seeds", "1")
    monkeypatch.setattr(
        reproduce_cli, "reproduce", lambda *_, **__: json.loads(Path("out/noprop-table1-tiny.json").read_text())
    )
    status, out, error = run(capsys, "noprop-table1", "--data", "digits", "--budget", budget, "--out", "out")
    said = " ".join(out.split())
    assert (status, "*" in out, "written: out/noprop-table1-" in said) == (0, False, True), error
    assert ("Only a check that everything runs: trained on the first 1,280 images" in said) == (budget == "tiny")
    assert ("Epochs and settings are the paper's." in said) == (budget == "full")


class TestPlan:
    def test_it_says_what_is_done_and_to_go_and_writes_nothing(self, capsys):
        status, out, error = run(
            capsys, "noprop-table1", "--data", "digits", "--budget", "cpu", "--out", "out", "--plan"
        )
        assert (status, Path("out").exists()) == (0, False), error
        assert "forward-one-hot  digits  2 of 3" in out
        assert out.count("0 of 3") == 2
        fill(capsys, "--rows", "forward-one-hot", "--inference-runs", "1")
        _, record, _ = fill(capsys, "--seeds", "3", "--plan")
        by_name = {row["preset"]: row for row in record["rows"]}
        assert [(by_name[each.name]["done"], by_name[each.name]["seeds"]) for each in (FORWARD, SAMPLED)] == [
            (2, 3), (0, 3)]  # fmt: skip
        assert not Path("out/tiny/small-forward-2").exists()

    def test_a_run_that_was_read_less_often_than_asked_is_trained_but_not_done(self, capsys):
        fill(capsys, "--rows", "sampled-one-hot", "--seeds", "1", "--inference-runs", "1")
        _, record, _ = fill(capsys, "--seeds", "1", "--inference-runs", "1", "--plan")
        assert (row_of(record, SAMPLED)["done"], row_of(record, SAMPLED)["to_be_read"]) == (1, 0)
        _, record, _ = fill(capsys, "--seeds", "1", "--inference-runs", "2", "--plan")
        assert (row_of(record, SAMPLED)["done"], row_of(record, SAMPLED)["to_be_read"]) == (0, 1)

    def test_times_are_of_the_runs_that_are_left_on_this_machine(self):
        Path("out/cpu").mkdir(parents=True)
        checkpoint.write_json(Path("out/cpu/small-sampled-1.failed.json"), {"failed": "RuntimeError: no"})
        timed = {FORWARD.name: {"cpu": {"steps": 600, "seconds": 0.5, "matrix": 0.02}}}
        rows = plan_record([FORWARD, SAMPLED], Plan(Path("out"), "cpu", 3), timed, here=0.04)
        assert [row["minutes"] for row in rows] == [10.0, None]  # of a machine half as fast
        table = plan_table("", rows)
        assert [line[-2:] for line in table.rows] == [["10 min", "30 min"], ["-", "-"], ["", "30 min"]]
        assert table.rows[1][4] == "0 of 3, 1 failed"
        assert [line[0] for line in table.rows] == ["forward-one-hot", "sampled-one-hot", "all timed"]
        assert [row["minutes"] for row in plan_record([FORWARD], Plan(Path("out"), "tiny", 3), timed, 0.04)] == [None]

    def test_of_a_run_that_is_under_way_the_rest_is_to_go(self, capsys):
        record = fill(capsys, "--rows", "forward-one-hot")[1]
        steps = row_of(record, FORWARD)["cells"][1]["steps"]
        Path("out/tiny/small-forward-1/result.json").unlink()  # as if it had been stopped
        Path("out/tiny").rename("out/cpu")
        timed = {FORWARD.name: {"cpu": {"steps": 4 * steps, "seconds": 60 / steps, "matrix": 1.0}}}  # 4 minutes a run
        (row,) = plan_record([FORWARD], Plan(Path("out"), "cpu", 3), timed, here=1.0)
        assert (row["done"], row["under_way"], row["minutes_to_go"]) == (1, 1, pytest.approx(3 + 4))
        assert plan_table("", [row]).rows[0][4] == "1 of 3, 1 under way"
        (row,) = plan_record([FORWARD], Plan(Path("out"), "cpu", 3), {}, here=1.0)  # not timed
        assert (row["under_way"], row["minutes_to_go"]) == (1, None)
        state, (tensors, record) = (
            Path("out/cpu/small-forward-1/state.safetensors"),
            checkpoint.load(Path("out/cpu/small-forward-1/state.safetensors")),
        )
        for odd in ("7", None, [1], -3, True):
            checkpoint.save(state, tensors, {**record, "step": odd})
            (row,) = plan_record([FORWARD], Plan(Path("out"), "cpu", 3), timed, here=1.0)
            assert (row["under_way"], row["minutes_to_go"]) == (0, pytest.approx(8)), odd
        state.write_bytes(b"damaged")
        (row,) = plan_record([FORWARD], Plan(Path("out"), "cpu", 3), timed, here=1.0)
        assert (row["under_way"], row["minutes_to_go"]) == (0, pytest.approx(8))

    @pytest.mark.parametrize("changes", [{"options": {**FORWARD.options, "learning_rate": 0.02}},
                                         {"train": {**FORWARD.train, "batch": 64}}])  # fmt: skip
    def test_a_run_that_the_row_cannot_go_on_from_is_not_under_way(self, capsys, changes):
        fill(capsys, "--rows", "forward-one-hot", "--seeds", "1")
        Path("out/tiny/small-forward-0/result.json").unlink()
        plan = Plan(Path("out"), "tiny", 1)
        assert [plan_record([each], plan, {}, 1.0)[0]["under_way"] for each in
                (FORWARD, dataclasses.replace(FORWARD, **changes))] == [1, 0]  # fmt: skip
        checkpoint.write_json(plan.failure_file(FORWARD, 0), {"failed": "RuntimeError: no"})
        (row,) = plan_record([FORWARD], plan, {}, 1.0)
        assert (row["under_way"], row["failed"]) == (0, 1)

    @pytest.mark.parametrize(("words", "said"), [
        (["--report", "run"], "run is the folder of a run"), (["--out", "run"], "run is the folder of a run"),
        (["--report", "file/x"], "the folder file/x cannot be made: file is a file"),
        (["--device", "cuda:99"], "cuda"),
        (["--report", "page"], "page/noprop-table1-tiny.md is a folder"),
    ])  # fmt: skip
    def test_what_the_command_would_refuse_is_said(self, capsys, words, said):
        Path("run").mkdir()
        Path("run/config.toml").touch()
        Path("file").touch()
        Path("page/noprop-table1-tiny.md").mkdir(parents=True)
        given = ["noprop-table1", "--data", "digits", "--budget", "tiny", "--seeds", "1", *words]
        status, out, error = run(capsys, *given, "--plan")
        shown = " ".join(out.split())
        assert (status, said in shown.partition("Without --plan this is refused: ")[2]) == (0, True), (shown, error)
        assert run(capsys, *given)[0] == 2  # and it is

    def test_it_says_that_the_command_would_be_refused(self, capsys):
        words = ["noprop-table1", "--data", "digits", "--budget", "tiny", "--seeds", "1", "--report", "pages", "--plan"]
        fill(capsys, "--rows", "forward-one-hot", "--report", "pages")
        _, out, _ = run(capsys, *words, "--out", "out", "--seeds", "2")
        assert "refused" not in out
        status, out, _ = run(capsys, *words, "--out", "elsewhere")
        said = " ".join(out.split())
        assert (status, Path("elsewhere").exists()) == (0, False)
        assert (
            "Without --plan this is refused: pages/noprop-table1-tiny.json holds 2 runs that elsewhere does not" in said
        )
        record = json.loads(run(capsys, *words, "--out", "elsewhere", "--json")[1].splitlines()[-1])
        assert record["refusal"].startswith("pages/noprop-table1-tiny.json holds 2 runs")

    def test_what_is_done_has_no_time_to_go(self):
        row = {**plan_record([FORWARD], Plan(Path("out"), "cpu", 3), {}, 1.0)[0], "minutes": 10.0, "minutes_to_go": 0.0}
        assert [line[-2:] for line in plan_table("", [row]).rows] == [["10 min", "-"], ["", "-"]]

    @pytest.mark.parametrize(("has", "precision", "said"), [(True, "auto", True), (True, "float32", False),
                                                            (False, "auto", False)])  # fmt: skip
    def test_it_says_that_bfloat16_takes_less_where_the_runs_are_in_it(self, capsys, monkeypatch, has, precision, said):
        monkeypatch.setattr("sidestep.training.options.has_bfloat16", lambda device: has)
        words = ["--data", "mnist", "--rows", "fm-one-hot", "--budget", "cpu", "--precision", precision, "--plan"]
        _, out, error = run(capsys, "noprop-table1", *words)
        assert ("In bfloat16, in which they would run here" in " ".join(out.split())) == said, error

    def test_every_row_of_the_table_was_timed(self):
        known, rows = times(), table_presets("noprop-table1")
        assert [preset.name for preset in rows if not {"cpu", "full"} <= known.get(preset.name, {}).keys()] == [
            FORWARD.name, SAMPLED.name]  # fmt: skip

    def test_what_cannot_work_is_refused_before(self, capsys):
        status, _, error = run(capsys, "noprop-table1", "--data", "digits", "--seeds", "0", "--plan")
        assert (status, "--seeds must lie between 1 and 100, got 0" in error) == (2, True)


def test_a_run_of_other_options_is_not_taken_for_this_one(capsys, monkeypatch):
    fill(capsys, "--rows", "forward-one-hot", "--seeds", "1")
    changed = dataclasses.replace(FORWARD, options={**FORWARD.options, "learning_rate": 0.02})
    monkeypatch.setitem(PRESETS, FORWARD.name, changed)
    status, record, _ = fill(capsys, "--rows", "forward-one-hot", "--seeds", "1")
    assert status == 1
    assert "otherwise" in row_of(record, FORWARD)["failed"][0]["why"]


def test_the_smallest_budget_cuts_both_splits_and_the_others_none(monkeypatch):
    monkeypatch.undo()
    cut, whole = (budget_data(FORWARD, budget, None) for budget in ("tiny", "cpu"))
    assert (len(cut.train), len(cut.validation), len(cut.test)) == (1280, 0, 360)
    assert (len(whole.train), len(whole.test)) == (1437, 360)
    assert torch.equal(cut.train.images, data.load("digits", validation=0).train.images[:1280])


def test_the_command_of_a_page_merges_nothing():
    two = wanted_presets("noprop-table1", ["mnist"], ["dt-one-hot", "ct-one-hot"])
    typed = "sidestep reproduce noprop-table1 --merge 'a b.json' c.json --seeds 2 --merge=d.json"
    assert command_for(typed, two, two) == "sidestep reproduce noprop-table1 --seeds 2"
    shown = "sidestep reproduce noprop-table1 --seeds 2 --data mnist --rows dt-one-hot ct-one-hot"
    assert sorted(command_for(typed, two, two[:1]).split()) == sorted(shown.split())


def test_the_command_of_a_page_asks_for_its_rows():
    typed = "sidestep reproduce noprop-table1 --rows=dt-one-hot --data cifar10 mnist --out 'my runs'"
    two = wanted_presets("noprop-table1", ["mnist", "cifar10"], ["dt-one-hot"])
    assert command_for(typed, two, two) == typed
    more = [*two, *wanted_presets("noprop-table1", ["mnist"], ["ct-one-hot"])]
    assert command_for(typed, more, two).splitlines() == [
        "sidestep reproduce noprop-table1 --out 'my runs' --data mnist --rows dt-one-hot ct-one-hot",
        "sidestep reproduce noprop-table1 --out 'my runs' --data cifar10 --rows dt-one-hot",
    ]


class TestPrecision:
    BOTH: ClassVar = ("--rows", "forward-one-hot", "--seeds", "1", "--precision")

    def refused(self, capsys, *words):
        """Return why float32 is refused, by --plan and by the command."""
        _, planned, _ = run(capsys, "noprop-table1", "--data", "digits", "--budget", "tiny", "--out", "out", *self.BOTH,
                            "float32", *words, "--plan", "--json")  # fmt: skip
        status, _, error = fill(capsys, *self.BOTH, "float32", *words)
        refusal = json.loads(planned.splitlines()[-1])["refusal"]
        assert (status, bool(refusal) and refusal in " ".join(error.split())) == (2, True), (planned, error)
        return refusal

    def test_the_rows_are_trained_in_the_precision_that_is_asked_for(self, capsys):
        status, record, error = fill(capsys, *self.BOTH, "bfloat16")
        assert (status, record["computed_on"]) == (0, ["cpu, bfloat16"]), error
        status, _, error = fill(capsys, "--checkpoint-seconds", "0")
        assert (status, "checkpoint_seconds must be above 0" in error) == (2, True), error

    def test_a_run_of_the_other_precision_does_not_count(self, capsys):
        fill(capsys, *self.BOTH, "bfloat16")
        assert "was trained in bfloat16 (out/tiny/small-forward-0)" in self.refused(capsys)
        merge = ("--merge", "out/noprop-table1-tiny.json", "--out", "elsewhere")
        assert "was trained in bfloat16 (--merge)" in self.refused(capsys, *merge)
        assert not Path("elsewhere").exists()
        status, record, error = fill(capsys, *self.BOTH, "float32", "--out", "elsewhere")
        assert (status, record["computed_on"]) == (0, ["cpu, float32"]), error

    def test_a_merged_run_that_is_not_used_is_no_reason(self, capsys):
        fill(capsys, *self.BOTH, "bfloat16", "--out", "other")
        fill(capsys, *self.BOTH, "float32")
        status, record, error = fill(capsys, *self.BOTH, "float32", "--merge", "other/noprop-table1-tiny.json")
        assert (status, record["computed_on"]) == (0, ["cpu, float32"]), error

    @pytest.mark.parametrize("lost", [["inference.json"], ["inference.json", "result.json"]], ids=["unread", "unended"])
    def test_nor_does_one_that_is_not_read_or_ended(self, capsys, lost):
        fill(capsys, *self.BOTH, "bfloat16")
        for name in lost:
            Path("out/tiny/small-forward-0", name).unlink()
        for page in Path("out").glob("noprop-*"):
            page.unlink()
        assert "was trained in bfloat16" in self.refused(capsys)

    def test_nor_does_one_that_failed_since(self, capsys):
        fill(capsys, *self.BOTH, "bfloat16")
        checkpoint.write_json(Plan(Path("out"), "tiny").failure_file(FORWARD, 0), {"failed": "RuntimeError: no"})
        assert "was trained in bfloat16" in self.refused(capsys)

    def test_the_command_of_a_page_of_both_asks_for_none(self, capsys):
        fill(capsys, *self.BOTH, "bfloat16")
        _, record, error = fill(capsys, "--rows", "sampled-one-hot", "--seeds", "1", "--precision", "float32")
        assert record["computed_on"] == ["cpu, bfloat16", "cpu, float32"], error
        assert "--precision" not in record["command"]


def test_rows_and_data_are_chosen_by_name():
    assert len(wanted_presets("noprop-table1", ["mnist"])) == 13
    found = wanted_presets("noprop-table1", ["cifar10", "mnist"], ["dt-onehot", "ct-learned"])
    assert sorted(preset.name for preset in found) == [
        "noprop-ct-cifar10-learned",
        "noprop-ct-mnist-learned",
        "noprop-dt-cifar10-one-hot",
        "noprop-dt-mnist-one-hot",
    ]
    with pytest.raises(InputError, match="has no row forward-one-hot on mnist"):
        wanted_presets("noprop-table1", ["mnist"], ["forward-one-hot"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["noprop-tabel1"], "did you mean noprop-table1?"),
        (["noprop-table1", "--rows", "dt-onehott"], "did you mean dt-one-hot? There are: backprop-one-hot"),
        (["noprop-table1", "--data", "xyzzy"], "unknown 'xyzzy': there are: mnist, cifar10"),
        (["noprop-table1", "--data", "cifar"], "unknown 'cifar': did you mean cifar10?"),
        (["noprop-table1", "--seeds", "0"], "--seeds must lie between 1 and 100, got 0"),
        (["noprop-table1", "--inference-runs", "0"], "--inference-runs must lie between"),
        (["noprop-table1", "--device", "cuda:63"], "--device cpu"),
        (["noprop-table1", "--budget", "huge"], "huge"),
        (["noprop-table1", "--data", "digits", "--out", "file"], "cannot be made"),
        (["noprop-table1", "--rows", "dt-onehott", "--rows", "ct-learned"], "unknown 'dt-onehott'"),
        (["noprop-table2", "--steps", "0"], "--steps must lie between"),
        (["noprop-table2", "--rows", "dt-learned"], "one-hot labels only"),
    ],
)
def test_wrong_input_ends_in_one_clear_line_and_status_2(capsys, words, message):
    Path("file").write_text("x")
    status, _, error = run(capsys, *words)
    assert (status, message in error, "Traceback" in error) == (2, True, False), error
    assert not Path("runs/reproduce/full").exists()


def test_help_explains_the_tables(capsys):
    status, out, _ = run(capsys)
    assert (status, "noprop-table2" in out) == (0, True)
    status, out, _ = run(capsys, "noprop-table1", "--help")
    assert "--inference-runs" in out


def test_an_empty_table_has_words_for_it():
    row = accuracy_row(SAMPLED.for_budget("cpu"), SAMPLED, [], "cpu")
    record = {"table": "t", "command": "c", "budget": "cpu", "seeds": 3, "inference_runs": 5, "threads": 1,
              "torch": "2", "sidestep": "0", "computed_on": [], "rows": [row], "rows_left_out": 38}  # fmt: skip
    assert "not finished" in accuracy_tables(record)[0].rows[0]
    assert "Fewer epochs than the paper's" in accuracy_text(record)


class TestMemory:
    def test_a_table_of_methods_by_data_sets(self):
        known = {"row": "a-one-hot", "paper_gb": 0.5, "failed": None}
        record = {
            "table": "noprop-table2", "command": "sidestep reproduce noprop-table2", "steps": 3, "batch": [128],
            "device": "cpu", "precision": "float32", "threads": 1, "sidestep": "0.1.0", "torch": "2",
            "cells": [{**known, "preset": "x", "data": "mnist", "bytes": 1_234_000_000},
                      {**known, "preset": "y", "data": "cifar10", "bytes": None, "failed": "killed"}],
        }  # fmt: skip
        table, failed = memory_tables(record)
        assert table.columns == ["row", "mnist, ours", "mnist, paper", "cifar10, ours", "cifar10, paper"]
        assert table.rows == [["a-one-hot", "1.23", "0.50", "failed", "0.50"]]
        assert failed.rows == [["y", "killed"]]
        assert "128 random images" in memory_text(record)

    def test_a_cell_is_measured_in_a_process_of_its_own(self):
        told = []
        record = memory_record("noprop-table2", [FORWARD], "cpu", "c", told.append, steps=2)
        (cell,) = record["cells"]
        assert cell["failed"] is None
        weights = 4 * (64 * 16 + 16 + 16 * 10 + 10)
        assert 3 * weights < cell["bytes"] < 3_000_000  # weights and Adam's two moments at least
        assert told == ["backprop on digits"]
        assert cell["environment"] == environment_of() | {"threads": 1}  # of the process that has measured it

    def test_the_page_names_what_measured_its_cells(self):
        cell = {"row": "a", "data": "mnist", "preset": "x", "bytes": 1, "failed": None, "paper_gb": None}
        here = {"sidestep": "0.2.0", "torch": "2", "processor": "Xeon", "threads": 1}
        record = {"table": "t", "command": "c", "steps": 3, "batch": [128], "device": "cpu", "precision": "float32",
                  "threads": 1, "sidestep": "0.2.0", "torch": "2"}  # fmt: skip
        for environments, said in (
            ([None], "sidestep 0.2.0, torch 2, 1 thread."),
            ([{**here, "commit": each} for each in ("b", "a", "b")], "sidestep 0.2.0 (b, a), torch 2, Xeon, 1 thread."),
            ([{**here, "commit": "a"}, {**here, "commit": None}], "sidestep 0.2.0 (a, others not kept), torch 2, Xeon"),
            ([{**here, "commit": "a"}, None], "(a), torch 2, Xeon, 1 thread; sidestep 0.2.0, torch 2, 1 thread."),
        ):
            failed = {**cell, "bytes": None, "failed": "killed", "environment": None}
            cells = [failed, *({**cell, "environment": each} for each in environments)]
            assert said in memory_text({**record, "cells": cells})
            cells = [{**cell, "environment": each} for each in environments]
            assert said in memory_text({**record, "cells": cells})

    def test_a_cell_that_fails_is_noted(self, monkeypatch):
        class Here(ThreadPoolExecutor):
            def __init__(self, workers, mp_context):
                super().__init__(workers)

        def killed(preset, *_rest):
            if preset.name == SAMPLED.name:
                raise BrokenProcessPool("a child process terminated abruptly")
            raise torch.OutOfMemoryError("no 9 GiB\nand more lines")

        monkeypatch.setattr("sidestep.bench.memory.step_cost.ProcessPoolExecutor", Here)
        monkeypatch.setattr("sidestep.bench.paper_tables.memory.training_peak", killed)
        one, two = memory_record("noprop-table2", [FORWARD, SAMPLED], "cpu", "c", lambda line: None)["cells"]
        assert (one["bytes"], one["failed"]) == (None, "OutOfMemoryError: no 9 GiB")
        assert (two["bytes"], two["failed"]) == (None, "the process was killed, for instance for lack of memory")

    def test_the_command_writes_the_page(self, capsys, monkeypatch):
        monkeypatch.setattr(
            "sidestep.bench.paper_tables.memory._apart", lambda *_: {"bytes": 2_000_000, "failed": None}
        )
        status, out, error = run(capsys, "noprop-table2", "--data", "mnist", "--report", "pages", "--json")
        assert status == 0, error
        record = json.loads(out.splitlines()[-1])
        assert len(record["cells"]) == 5
        page = Path("pages/noprop-table2.md")
        assert "| dt-one-hot | 0.00 | 0.49 |" in page.read_text()
        # a part that is measured again takes the place of its cells only, unless it was measured otherwise
        monkeypatch.setattr(
            "sidestep.bench.paper_tables.memory._apart", lambda *_: {"bytes": 7_000_000_000, "failed": None}
        )
        words = ["noprop-table2", "--data", "mnist", "--rows", "dt-onehot", "--report", "pages"]
        assert run(capsys, *words)[0] == 0
        assert "| dt-one-hot | 7.00 | 0.49 |" in page.read_text()
        assert "| ct-one-hot | 0.00 | 1.05 |" in page.read_text()
        rows = "backprop-one-hot dt-one-hot neural-ode-one-hot ct-one-hot fm-one-hot"
        assert f"    sidestep reproduce noprop-table2 --report pages --data mnist --rows {rows}\n" in page.read_text()
        assert run(capsys, *words, "--steps", "2")[0] == 0
        assert "ct-one-hot" not in page.read_text()
