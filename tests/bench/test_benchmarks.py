"""The benchmarks run, at tiny sizes, and say what they promise; operations are counted as a hand would."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import engines, evaluation, gpu, noprop_step, peer_steps
from benchmarks.machine import Ratio, Roof, alternating, count_flops, made_up, ready, use_clock
from sidestep.rules import NoPropDT
from sidestep.training.options import Compute

CPU = Compute.find("cpu", "float32")


@pytest.fixture(autouse=True)
def wall_clock():
    yield
    use_clock("wall")


def test_operations_of_a_step_are_counted_as_by_hand():
    """Two for each weight and position: forward, for the weights, and for the inputs, but images need no gradient."""
    batch, size, classes, blocks = 16, 8, 10, 2
    convolutions = [(1, 32, size), (32, 64, size // 2), (64, 128, size // 2)]
    forward = [2 * batch * 9 * a * b * side**2 for a, b, side in convolutions]
    dense = [(128 * 4, 256), (classes, 256), (256, 256), (256, 256), (512, 256), (256, 128), (128, classes)]
    forward += [2 * batch * a * b for a, b in dense]
    forward += [2 * batch * classes * classes]  # the expected embedding, whose rows are fixed
    block = 3 * sum(forward) - forward[0] - forward[len(convolutions) + 1] - forward[-1]
    readout = 2 * 2 * batch * classes * classes
    loop, state = ready(NoPropDT(blocks=blocks), made_up("digits", 64), CPU, batch=batch)
    threads = torch.get_num_threads()
    assert count_flops(loop, state) == blocks * block + readout
    assert torch.get_num_threads() == threads


def test_ratios_and_roofs():
    assert str(Ratio.of([2.0, 6.0, 4.0], [1.0, 2.0, 4.0])) == "2.00x (from 1.00x to 3.00x)"
    roof = Roof(flops=100.0, bandwidth=10.0)
    assert roof.seconds(flops=200) == 2.0
    assert roof.seconds(flops=200, moved=30) == 3.0
    measured = Roof.measure(size=64, tries=2)
    assert measured.flops > 0
    assert measured.bandwidth > 0


def test_runs_take_turns():
    order = []
    columns = alternating([lambda: order.append("a"), lambda: order.append("b")], 2)
    assert order == ["a", "b"] * 3  # once to warm up
    assert [len(column) for column in columns] == [2, 2]


def test_a_step_is_timed_against_plain_backprop_and_the_machine(capsys):
    noprop_step.main(["--data", "digits", "--blocks", "2", "--batch", "8", "--repeats", "2", "--steps", "1",
                      "--matrix", "64", "--precision", "float32"])  # fmt: skip
    said = capsys.readouterr().out
    for words in ("ratio, alternating", "cost of a NoProp step over a backprop step", "GB/s", "matrix rate"):
        assert words in said


def test_the_ways_are_timed_against_one_another(capsys):
    engines.main(["--data", "digits", "--blocks", "2", "--batch", "8", "--repeats", "2", "--precision", "float32"])
    said = capsys.readouterr().out
    assert "| digits | 2 | together |" in said


def test_a_gpu_that_is_not_there_is_said_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        gpu.main(["--out", str(tmp_path / "new"), "--device", "cuda:99"])
    assert leaving.value.code == 2
    assert "cuda:99" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_all_that_is_wanted_from_a_gpu_runs_without_one(tmp_path, capsys):
    parts = [name for name in gpu.PARTS if name not in ("compiled", "to 93")]
    gpu.main(["--out", str(tmp_path), "--device", "cpu", "--tiny", "--only", *parts])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == parts
    assert not any("failed" in line for line in lines)
    found = {line["part"]: line for line in lines}
    assert all(found["noise"]["equal"].values())
    assert found["together"]["losses apart from per block"] < 1e-4
    assert found["graph"]["losses apart from per block"] < 1e-4
    assert found["paper"]["projected minutes"] == pytest.approx(
        50_000 // 16 * 150 * found["paper"]["seconds a step"] / 60
    )


def test_a_part_that_breaks_is_written_down_and_the_others_go_on(tmp_path, monkeypatch):
    def breaks(command, limit):
        if "machine" in command:
            raise subprocess.TimeoutExpired(command, limit)
        return subprocess.CompletedProcess(command, 1, "", "out of memory")

    monkeypatch.setattr(gpu, "run_with_all_it_starts", breaks)
    gpu.main(["--out", str(tmp_path), "--device", "cpu", "--only", "noise", "machine", "paper"])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["part"] for line in lines] == ["noise", "machine", "paper"]
    assert "out of memory" in lines[0]["failed"]
    assert "not done after" in lines[1]["failed"]


STARTS_ANOTHER = """
import subprocess, sys, time
command = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(300)"]
process = subprocess.Popen(command, stdout=subprocess.PIPE)
process.stdout.readline()
open(sys.argv[1], "w").write(str(process.pid))
time.sleep(300)
"""


def running(process):
    """Whether a process is there and has not ended."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_a_part_has_started_does_not_outlive_it(tmp_path):
    with pytest.raises(subprocess.TimeoutExpired):
        gpu.run_with_all_it_starts([sys.executable, "-c", STARTS_ANOTHER, str(tmp_path / "pid")], 3)
    started = (tmp_path / "pid").read_text()
    for _ in range(50):
        if not running(started):
            return
        time.sleep(0.1)
    pytest.fail(f"process {started} still runs")


def test_a_run_that_does_not_stop_when_asked_is_made_to():
    stubborn = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", stubborn], stderr=subprocess.PIPE, text=True) as process:
        assert gpu.said_until_the_end(process, 1, patience=0.2) == ""
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_the_long_run_is_taken_up_again(tmp_path):
    for _ in range(2):
        gpu.main(["--out", str(tmp_path), "--device", "cpu", "--tiny", "--only", "to 93"])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines[1]["epochs"] >= lines[0]["epochs"] > 0


@pytest.mark.slow
def test_micro_benchmarks_print_ratios_and_shares():
    pytest.importorskip("pytest_benchmark")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "pytest", "benchmarks/micro", "-c", "benchmarks/micro/pytest.ini", "-k", "trit"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "of the roof" in done.stdout
    assert "trit packing" in done.stdout


class Steps:
    """A library that takes steps, in place of skorch."""

    def NeuralNet(self, module, criterion, optimizer, lr, verbose, train_split):  # noqa: N802
        self.initialize = lambda: None
        self.train_step = lambda batch: {"loss": criterion()(module(batch[0]), batch[1])}
        return self


def test_a_peer_that_is_missing_is_skipped_and_the_others_have_rows(monkeypatch, capsys, tmp_path):
    def there(name):
        if name == "skorch":
            return Steps()
        raise ImportError(name)

    monkeypatch.setattr(peer_steps, "import_module", there)
    monkeypatch.setattr(peer_steps, "NETS", {"784-4-10": (784, 4, 10)})
    threads = torch.get_num_threads()
    monkeypatch.setattr(peer_steps.metadata, "version", lambda name: "1.0")
    peer_steps.main(["--rounds", "5", "--steps", "1", "--threads", "1", "--out", str(tmp_path / "peers.json")])
    torch.set_num_threads(threads)
    *missing, skorch, ours = capsys.readouterr().out.splitlines()
    names = ("torchzero", "cma", "evosax")
    assert [line.partition(",")[0] for line in missing] == [f"{name} is not installed" for name in names]
    assert "skorch" in skorch
    assert "over ours" in skorch
    assert ours.split()[:4] == ["backprop", "784-4-10", "1", "ours"]
    found = json.loads((tmp_path / "peers.json").read_text())
    assert found["environment"].items() >= {"torch": torch.__version__, "skorch": "1.0"}.items()
    assert [(row["way"], len(row["rounds"])) for row in found["rows"]] == [("skorch", 5), ("ours", 5)]
    ratios = [a / b for a, b in zip(*(row["rounds"] for row in found["rows"]), strict=True)]
    assert found["rows"][0]["over ours"] == {"median": sorted(ratios)[2], "least": min(ratios), "most": max(ratios)}


def test_evaluations_are_set_beside_the_roof_with_the_operations_of_figure_6(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(evaluation, "steps", dict)
    threads = torch.get_num_threads()
    evaluation.main(["--images", "4", "--rounds", "1", "--out", str(tmp_path / "found.json")])
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {row["what"]: row["operations"] for row in found["rows"]}
    maps = 9 * (28 * 28 * 32 + 14 * 14 * 32 * 64 + 14 * 14 * 64 * 128)
    path = 2 * (maps + 7 * 7 * 128 * 256)  # of one image
    assert rows["noprop-dt, image paths"] == 4 * 10 * path
    assert rows["noprop-ct, image paths"] == 4 * (path + 2 * 256 * 256)  # with the image's share of the fusing layer
    # the image paths are computed once, for all readings and all steps of a walk
    assert rows["noprop-dt, image paths"] < rows["noprop-dt, all readings"] < 1.5 * rows["noprop-dt, image paths"]
    assert rows["noprop-ct, image paths"] < rows["noprop-ct, readings at a run's end"]
    assert rows["noprop-ct, readings at a run's end"] < 1.5 * rows["noprop-ct, image paths"]
    assert "roof before: matrix products" in capsys.readouterr().out
    assert len(found["roofs"]) == 2
