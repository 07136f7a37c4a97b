"""The loop, the run's folder, resuming, and what happens when things go wrong."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy
import pytest
import torch

from sidestep import Options, data, load_run, train
from sidestep.errors import CheckpointError, InputError, NonFiniteError
from sidestep.files import read_json
from sidestep.noise import Noise
from sidestep.rules import Backprop, Batch, NoPropCT, NoPropDT, NoPropFM
from sidestep.training import Stopped
from sidestep.training.config import read_config, write_config
from sidestep.training.evaluation_progress import Count, EvaluationProgress
from sidestep.training.folder import RunFolder
from sidestep.training.loop import Loop
from sidestep.training.options import Compute
from sidestep.training.stopping import StopRequest

QUICK = Backprop(net="mlp", hidden=(16,))


def quick(tmp_path=None, name="run", rule=QUICK, **options):
    out = tmp_path / name if tmp_path else None
    return train(rule, "digits", Options(**{"epochs": 1, "out": out, **options}))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_seconds(lines):
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


class TestRunFolder:
    def test_holds_what_it_takes_to_know_resume_and_use_the_run(self, tmp_path):
        run = quick(tmp_path)
        names = {path.name for path in (tmp_path / "run").iterdir()}
        assert names == {"config.toml", "metrics.jsonl", "model.safetensors", "state.safetensors", "result.json"}
        wanted = (
            "rule data seed steps epochs seconds parameters peak_memory_bytes "
            "train_accuracy validation_accuracy test_accuracy run"
        )
        result = read_json(tmp_path / "run/result.json")
        assert set(wanted.split()) <= result.keys()
        assert result == json.loads(json.dumps(run.result))
        config = RunFolder(tmp_path / "run").config()
        assert config["rule"]["name"] == "backprop"
        assert config["rule"]["hidden"] == [16]
        assert config["task"]["image_shape"] == [1, 8, 8]
        assert metrics(tmp_path / "run")[-1]["step"] == run.step

    def test_nothing_is_written_without_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        quick()
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_run_is_not_touched_without_resume_or_overwrite(self, tmp_path):
        quick(tmp_path)
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        with pytest.raises(InputError, match=r"--resume.*--overwrite"):
            quick(tmp_path, seed=5)
        assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        quick(tmp_path, seed=5, overwrite=True)
        assert RunFolder(tmp_path / "run").config()["train"]["seed"] == 5

    def test_a_folder_with_other_things_is_never_taken(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run/thesis.txt").write_text("three years")
        (tmp_path / "other").mkdir()
        (tmp_path / "other/model.safetensors").write_text("another program's")
        for options in ({}, {"overwrite": True}, {"resume": True}):
            for name in ("run", "other"):
                with pytest.raises(InputError, match="not empty and not a run"):
                    quick(tmp_path, name=name, **options)
        assert (tmp_path / "other/model.safetensors").read_text() == "another program's"
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match="is a file"):
            quick(tmp_path, name="file")

    def test_overwriting_deletes_the_run_s_own_files_only(self, tmp_path):
        quick(tmp_path)
        (tmp_path / "run/notes.txt").write_text("mine")
        quick(tmp_path, overwrite=True)
        assert (tmp_path / "run/notes.txt").read_text() == "mine"

    def test_resuming_with_other_options_names_them(self, tmp_path):
        quick(tmp_path)
        with pytest.raises(InputError, match=r"train\.seed: was 0, given 1"):
            quick(tmp_path, seed=1, resume=True)
        with pytest.raises(InputError, match=r"rule\.learning_rate"):
            quick(tmp_path, rule=Backprop(net="mlp", hidden=(16,), learning_rate=0.1), resume=True)

    def test_resuming_with_more_epochs_writes_them_down(self, tmp_path):
        quick(tmp_path)
        assert RunFolder(tmp_path / "run").config()["train"]["epochs"] == 1
        assert quick(tmp_path, resume=True, epochs=2).step == 20
        assert RunFolder(tmp_path / "run").config()["train"]["epochs"] == 2

    def test_resuming_where_nothing_is_yet_starts_the_run(self, tmp_path):
        assert quick(tmp_path, resume=True).step == 10

    def test_resuming_a_finished_run_changes_nothing(self, tmp_path):
        quick(tmp_path)
        before = (tmp_path / "run/model.safetensors").read_bytes()
        lines = metrics(tmp_path / "run")
        quick(tmp_path, resume=True)
        assert before == (tmp_path / "run/model.safetensors").read_bytes()
        assert lines == metrics(tmp_path / "run")
        with pytest.raises(InputError, match="more than"):
            quick(tmp_path, resume=True, epochs=0)
        assert RunFolder(tmp_path / "run").config()["train"]["epochs"] == 1  # a refused resume changes nothing

    @pytest.mark.parametrize("name", ["state.safetensors", "config.toml"])
    @pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
    def test_damaged_files_are_refused_by_name(self, tmp_path, name, damage):
        quick(tmp_path)
        path = tmp_path / "run" / name
        raw = path.read_bytes()
        middle = len(raw) // 2
        new = {
            "cut": raw[:middle],
            "flip": raw[:middle] + bytes([raw[middle] ^ 0x80]) + raw[middle + 1 :],
            "empty": b"",
        }
        path.write_bytes(new[damage])
        with pytest.raises((CheckpointError, InputError), match=name.replace(".", r"\.") + "|started otherwise"):
            load_run(tmp_path / "run")
        with pytest.raises((CheckpointError, InputError)):
            quick(tmp_path, resume=True)

    def test_metrics_shorter_than_the_checkpoint_counts_on_are_noticed(self, tmp_path):
        quick(tmp_path)
        (tmp_path / "run/metrics.jsonl").write_text("")
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl has 0 bytes"):
            quick(tmp_path, resume=True, epochs=2)

    def test_what_a_killed_step_wrote_beyond_the_checkpoint_is_cut_off(self, tmp_path):
        quick(tmp_path, epochs=2)
        quick(tmp_path, name="other")
        with (tmp_path / "other/metrics.jsonl").open("a") as handle:
            handle.write('{"step": 15, "spl')
        (tmp_path / "other/.partial.state.safetensors.123").write_bytes(b"half")
        quick(tmp_path, name="other", epochs=2, resume=True)
        assert without_seconds(metrics(tmp_path / "run")) == without_seconds(metrics(tmp_path / "other"))
        assert not list((tmp_path / "other").glob(".partial*"))

    def test_no_folder_is_no_run(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"no config\.toml"):
            load_run(tmp_path)

    def test_a_run_without_a_checkpoint_says_so(self, tmp_path):
        quick(tmp_path)
        (tmp_path / "run/state.safetensors").unlink()
        (tmp_path / "run/model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="--resume"):
            load_run(tmp_path / "run")

    def test_the_weights_alone_can_be_shipped(self, tmp_path):
        run = quick(tmp_path)
        (tmp_path / "run/state.safetensors").unlink()
        images = data.load("digits").test.images[:10]
        assert torch.equal(load_run(tmp_path / "run").predict(images), run.predict(images))


def test_two_runs_with_one_seed_are_equal_to_the_bit(tmp_path):
    rule = NoPropDT(blocks=3, embedding="learned", dimension=8)
    for name in ("one", "two"):
        quick(tmp_path, name=name, rule=rule, epochs=2, batch=256)
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()
    one, two = (without_seconds(metrics(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    quick(tmp_path, name="three", rule=rule, epochs=2, batch=256, seed=1)
    assert without_seconds(metrics(tmp_path / "three")) != one


def test_embedding_norms_and_distances_are_in_the_metrics(tmp_path):
    quick(tmp_path, rule=NoPropDT(blocks=2, embedding="learned"), batch=512)
    names = {line["name"] for line in metrics(tmp_path / "run")}
    assert {"smallest embedding norm", "smallest embedding distance", "accuracy", "block 2: denoising"} <= names


def test_a_run_stopped_by_a_signal_saves_and_resumes_to_the_same_bits(tmp_path):
    class Interrupting:
        def begin(self, *given): ...
        def epoch(self, *given): ...
        def evaluating(self, what): ...
        def step(self, step, examples):
            if step == 13:
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    options = {"epochs": 3, "batch": 128}
    quick(tmp_path, name="whole", **options)
    with pytest.raises(Stopped, match="after step 13"):
        train(QUICK, "digits", Options(**options, out=tmp_path / "parts"), progress=Interrupting())
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_run(tmp_path / "parts").step == 13
    quick(tmp_path, name="parts", resume=True, **options)
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "parts/model.safetensors").read_bytes()
    assert without_seconds(metrics(tmp_path / "whole")) == without_seconds(metrics(tmp_path / "parts"))


class TestEvaluationAtTheEnd:
    options: ClassVar[dict] = {"epochs": 1, "batch": 128, "seed": 3}

    @staticmethod
    def stopping(at):
        """Return what sends SIGTERM when `at` is being evaluated, and notes all that is."""

        class Interrupting:
            told: ClassVar[list] = []

            def begin(self, *given): ...
            def step(self, *given): ...
            def epoch(self, *given): ...
            def evaluating(self, what):
                self.told.append(what)
                if what == at:
                    signal.raise_signal(signal.SIGTERM)

        return Interrupting()

    @pytest.mark.parametrize("at", ["train: 54%", "validation: 100%", "test: 56%", "test: 100%"])
    def test_a_stop_loses_nothing_that_was_counted(self, tmp_path, monkeypatch, at):
        monkeypatch.setattr("sidestep.training.evaluate._BATCH", 100)
        rule = NoPropDT(blocks=2)  # whose ancestral reading draws noise
        whole = train(rule, "digits", Options(**self.options, out=tmp_path / "whole")).result
        first = self.stopping(at)
        with pytest.raises(Stopped, match=rf"images of the evaluation on the {at.split(':')[0]} split") as stopped:
            train(rule, "digits", Options(**self.options, out=tmp_path / "parts"), progress=first)
        assert (stopped.value.signal_number, stopped.value.step) == (signal.SIGTERM, whole["steps"])
        assert (tmp_path / "parts/model.safetensors").exists()
        assert (tmp_path / "parts/evaluation.json").exists()
        second = self.stopping("nothing")
        again = Options(**self.options, out=tmp_path / "parts", resume=True)
        parts = train(rule, "digits", again, progress=second).result
        own = {"seconds", "peak_memory_bytes", "run"}
        assert {k: v for k, v in parts.items() if k not in own} == {k: v for k, v in whole.items() if k not in own}
        counted = [what for what in first.told + second.told if ":" in what]
        assert len(counted) == len(set(counted))  # no batch was counted twice
        assert not (tmp_path / "parts/evaluation.json").exists()

    def test_counts_of_another_setting_or_a_damaged_file_are_not_taken(self, tmp_path):
        file, stop = tmp_path / "evaluation.json", StopRequest()
        split, other = (data.Split(torch.zeros(20, 1, 2, 2), torch.arange(20) % n) for n in (2, 3))
        first = EvaluationProgress(file, {"steps": 5}, 0.0, stop)
        first.of("test", split, ["ddim"]).add({"ddim": 7}, 10)
        assert EvaluationProgress(file, {"steps": 5}, 60.0, stop).of("test", split, ["ddim"]) == Count({"ddim": 7}, 10)
        assert EvaluationProgress(file, {"steps": 6}, 60.0, stop).of("test", split, ["ddim"]).images == 0
        assert EvaluationProgress(file, {"steps": 5}, 60.0, stop).of("test", split, ["mean"]).images == 0
        assert EvaluationProgress(file, {"steps": 5}, 60.0, stop).of("train", split, ["ddim"]).images == 0
        assert EvaluationProgress(file, {"steps": 5}, 60.0, stop).of("test", other, ["ddim"]).images == 0
        for damage in ("", "{", "[]", "3", '{"key": {"steps": 5}}'):
            file.write_text(damage)
            assert EvaluationProgress(file, {"steps": 5}, 60.0, stop).of("test", split, ["ddim"]).images == 0

    def test_only_the_wanted_readings_are_counted_and_unknown_ones_refused_before_training(self, tmp_path):
        rule, options = NoPropDT(blocks=2), Options(**self.options, out=tmp_path / "run")
        with pytest.raises(InputError, match="noprop-dt has no reading 'euler'; it has: ddim, "):
            train(rule, "digits", options, readings=["ddim", "euler"])
        assert not (tmp_path / "run").exists()
        result = train(rule, "digits", options, readings=["mean"]).result
        assert list(result["readings"]) == ["ddim", "mean"]
        assert result["test_accuracy"] == result["readings"]["ddim"]

    @pytest.mark.parametrize("rule", [NoPropDT(blocks=2), NoPropCT(steps=3), NoPropFM(steps=3)])
    def test_by_default_the_cheap_readings_are_counted_with_the_numbers_that_they_have_among_all(self, rule):
        options = Options(steps=2, batch=128)
        some = train(rule, "digits", options).result
        every = train(rule, "digits", options, readings=rule.readings).result
        assert tuple(some["qualities"]) == rule.at_end != rule.readings == tuple(every["qualities"])
        assert rule.at_end[0] == rule.readings[0]
        assert some["qualities"] == {name: every["qualities"][name] for name in rule.at_end}


def test_a_run_from_before_an_option_was_there_goes_on_with_its_default(tmp_path):
    quick(tmp_path, rule=NoPropDT(blocks=2))
    config = tmp_path / "run/config.toml"

    def forget():
        entries = read_config(config)[0]
        del entries["rule"]["draws"]
        write_config(config, entries)

    forget()
    quick(tmp_path, rule=NoPropDT(blocks=2), resume=True)
    forget()
    with pytest.raises(InputError, match="draws: was absent, given 3"):
        quick(tmp_path, rule=NoPropDT(blocks=2, draws=3), resume=True)


class Exploding(Backprop):
    """Back-propagation whose loss or gradient stops being finite at step 14."""

    def __init__(self, what):
        super().__init__(net="mlp", hidden=(16,))
        object.__setattr__(self, "what", what)

    def estimate(self, net, batch: Batch, noise: Noise):
        update = super().estimate(net, batch, noise)
        if noise.step == 14 and self.what == "loss":
            update.losses["net: cross-entropy"] *= math.nan
        if noise.step == 14 and self.what == "gradient":
            update.gradients["layers.0.weight"][0, 0] = math.inf
        return update


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match=r"nan at step 14, unit net, term cross-entropy.*step 10.*is kept"):
        train(Exploding("loss"), "digits", Options(epochs=3, out=tmp_path / "run"))
    tensors, record = RunFolder(tmp_path / "run").load_state()
    assert record["step"] == 10
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(NonFiniteError, match=r"layers\.0\.weight|at step 15"):
        train(Exploding("gradient"), "digits", Options(epochs=3, out=tmp_path / "run"))
    assert RunFolder(tmp_path / "run").load_state()[1]["step"] == 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": -1}, "epochs must be 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"seed": -1}, "seed must lie"),
        ({"precision": "float8"}, "precision must be"),
        ({"augment": "mixup"}, "augment must be"),
        ({"checkpoint_seconds": 0.0}, "above 0"),
        ({"resume": True, "overwrite": True}, "contradict"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(InputError, match=words):
        Options(**options)


@pytest.mark.parametrize(
    ("device", "words"), [("cuda:63", "CUDA devices"), ("abacus", "unknown device"), ("meta", "not supported")]
)
def test_a_device_that_is_not_there(device, words):
    with pytest.raises(InputError, match=words):
        Compute.find(device, "auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_asked_for_and_absent():
    with pytest.raises(InputError, match="use --device cpu"):
        quick(device="cuda")


def test_a_batch_larger_than_the_data_is_the_whole_data():
    run = quick(batch=100_000, epochs=3)
    assert run.step == 3


def test_without_a_validation_or_test_split_the_accuracies_are_absent(tmp_path):
    pixels = (Noise(0).uniform(64 * 64) * 255).to(torch.uint8).view(64, 8, 8).numpy()
    own = data.from_arrays(pixels, numpy.arange(64) % 3, validation=0)
    run = train(QUICK, own, Options(epochs=1, batch=32, out=tmp_path / "run"))
    assert run.result["validation_accuracy"] is None
    assert run.result["test_accuracy"] is None
    assert run.result["train_accuracy"] is not None


def test_the_test_split_is_read_at_the_end_only():
    reads = []
    digits = data.load("digits")

    class Watched(data.DataSet):
        @property
        def test(self):
            reads.append("test")
            return digits.test

        def to(self, device):
            return self

    watched = Watched(
        digits.name, digits.train, digits.validation, digits.class_names, digits.mean, digits.std, lambda: digits.test
    )

    class Listening:
        def begin(self, *given): ...
        def step(self, *given): ...
        def epoch(self, *given):
            assert reads == []

        def evaluating(self, what):
            assert reads == [] or what.startswith("test")

    train(QUICK, watched, Options(epochs=2), progress=Listening())
    assert set(reads) == {"test"}


def test_augmentation_is_a_function_of_the_seed_and_changes_training():
    plain, first, second = (quick(epochs=2, augment=how) for how in ("none", "flip-crop", "flip-crop"))
    weights = [run.net.state_dict()["layers.0.weight"] for run in (plain, first, second)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])


def test_flips_alone_mirror_some_images_and_move_none():
    digits, compute = data.load("digits"), Compute.find("cpu", "float32")
    plain, flipped = (
        Loop(QUICK, digits, Options(augment=how), compute, None).batch(0).inputs for how in ("none", "flip")
    )
    kept, mirrored = (
        [torch.equal(a, b) for a, b in zip(flipped, each, strict=True)] for each in (plain, plain.flip(3))
    )
    assert all(a or b for a, b in zip(kept, mirrored, strict=True))
    assert 40 < sum(mirrored) < 88  # of 128


def test_prediction_refuses_other_shapes_and_unknown_readings():
    run = quick()
    with pytest.raises(InputError, match="trained on"):
        run.predict(torch.zeros(2, 1, 9, 9, dtype=torch.uint8))
    with pytest.raises(InputError, match="it has: forward"):
        run.predict(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "ddim")
    assert run.predict(torch.zeros(0, 1, 8, 8, dtype=torch.uint8)).shape == (0, 10)


@pytest.fixture
def tiny_disk(tmp_path):
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_while_training_leaves_the_last_checkpoint(tiny_disk):
    rule = Backprop(net="mlp", hidden=(128,))
    run = train(rule, "digits", Options(epochs=1, out=tiny_disk / "run"))
    before = (tiny_disk / "run/state.safetensors").read_bytes()
    (tiny_disk / "filler").write_bytes(b"x" * 100_000)
    with pytest.raises(CheckpointError, match="disk is full"):
        train(rule, "digits", Options(epochs=2, out=tiny_disk / "run", resume=True))
    assert (tiny_disk / "run/state.safetensors").read_bytes() == before
    (tiny_disk / "filler").unlink()
    assert train(rule, "digits", Options(epochs=2, out=tiny_disk / "run", resume=True)).step == 2 * run.step


def start(folder, *options):
    command = [
        sys.executable,
        "-m",
        "sidestep",
        "train",
        "noprop-dt",
        "--blocks",
        "2",
        "--epochs",
        "6",
        "--batch",
        "512",
    ]
    environment = {**os.environ, "PYTHONPATH": "src", "COLUMNS": "200"}
    return subprocess.Popen(
        [*command, "--out", str(folder), "--checkpoint-seconds", "0.05", *options],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_killed_runs_resume_to_the_same_bits(tmp_path):
    kills(tmp_path, 3)


@pytest.mark.slow
def test_two_hundred_kills(tmp_path):
    kills(tmp_path, 200)


def kills(tmp_path, wanted):
    """Kill -9 at random instants of a run, import of torch and writing of files included; resume after each."""
    whole = start(tmp_path / "whole")
    started = time.perf_counter()
    assert whole.wait() == 0, whole.stderr.read().decode()
    seconds = time.perf_counter() - started
    expected = (tmp_path / "whole/model.safetensors").read_bytes()
    instants = iter(Noise(17).uniform(100 * wanted).tolist())  # one for each start
    done = rounds = 0
    while done < wanted:
        rounds += 1
        folder = tmp_path / f"killed{rounds}"
        while True:
            process = start(folder, "--resume")
            if done < wanted:
                try:
                    process.wait(timeout=next(instants) * seconds * 1.1)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    done += 1
                    continue
            assert process.wait() == 0, process.stderr.read().decode()
            break
        assert (folder / "model.safetensors").read_bytes() == expected
        assert without_seconds(metrics(folder)) == without_seconds(metrics(tmp_path / "whole"))
        shutil.rmtree(folder)
    print(f"{done} kills over {rounds} runs of {seconds:.1f} s each")
