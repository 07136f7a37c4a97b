"""The folder of a run may come from anybody, and two processes may want it: links, locks, marks, digests."""

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
import warnings

import pytest
import torch

from sidestep import Options, data, load_run, train
from sidestep.cli import main
from sidestep.errors import BusyError, CheckpointError, InputError, SidestepError
from sidestep.files import read_json
from sidestep.notices import RunNotice
from sidestep.rules import Backprop, NoiseStep
from sidestep.training import Stopped
from sidestep.training.align import alignment_curves
from sidestep.training.config import read_config, write_config
from sidestep.training.folder import RunFolder
from sidestep.training.lock import LOCK_FILES, only_writer
from sidestep.training.progress import Silent
from sidestep.training.stopping import stop_on_signals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs links, pipes and signals")
QUICK = Backprop(net="mlp", hidden=(4,))
LOGGED = NoiseStep(hidden=(8,))
NAMES = ("config.toml", "metrics.jsonl", "model.safetensors", "state.safetensors", "result.json", "steps.steplog",
         "evaluation.json", *LOCK_FILES)  # fmt: skip


def small(images=64):
    pixels = torch.arange(images * 16, dtype=torch.float32).reshape(images, 1, 4, 4) % 7
    labels = torch.arange(images) % 3
    return data.from_arrays(pixels[:48], labels[:48], pixels[48:], labels[48:], validation=0.25)


SET = small()


def run(out, rule=QUICK, **options):
    return train(rule, SET, Options(**{"epochs": 1, "batch": 12, "out": out, **options}))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and not path.is_symlink()}


class Notices(Silent):
    def __init__(self):
        self.told = []

    def notice(self, text):
        self.told.append(text)


class TestLinks:
    @pytest.mark.parametrize("name", [*NAMES, "units"])
    @pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
    def test_no_file_of_a_run_leads_out_of_its_folder(self, tmp_path, name, kind):
        out, mine, place = tmp_path / "run", tmp_path / "mine", tmp_path / "run" / name
        run(out, LOGGED)
        mine.mkdir()
        (mine / "file").write_text("three years")
        (mine / "block-0.safetensors").write_text("three years")
        before = contents(mine)
        if place.exists():
            place.unlink()
        if kind == "folder":
            if name == "units":
                return  # is what belongs there
            place.mkdir()
        elif kind == "pipe":
            os.mkfifo(place)
        else:
            place.symlink_to((mine if name == "units" else mine / "file") if kind == "link" else mine / "nowhere")
        for options in ({"resume": True, "epochs": 2}, {"overwrite": True}):
            with pytest.raises(SidestepError, match=r"is a link|is a folder|is a pipe|no folder"):
                run(out, LOGGED, **options)
        assert contents(mine) == before
        if name in ("config.toml", "state.safetensors"):  # what is looked at first by whoever reads
            with pytest.raises(CheckpointError, match=r"is a link|is a folder|is a pipe"):
                load_run(out)

    @pytest.mark.parametrize("name", ["metrics.jsonl", "steps.steplog"])
    def test_a_file_with_a_second_name_elsewhere_is_not_cut(self, tmp_path, name):
        run(tmp_path / "run", LOGGED)
        os.link(tmp_path / "run" / name, tmp_path / "backup")
        before = (tmp_path / "backup").read_bytes()
        with pytest.raises(CheckpointError, match="2 names"):
            run(tmp_path / "run", LOGGED, resume=True, epochs=2)
        assert (tmp_path / "backup").read_bytes() == before
        load_run(tmp_path / "run")

    def test_in_the_folder_of_units_nothing_but_ours_is_removed(self, tmp_path):
        run(tmp_path / "run")
        units = tmp_path / "run/units"
        units.mkdir()
        (tmp_path / "mine").write_text("three years")
        (units / "block-1-0.safetensors").symlink_to(tmp_path / "mine")
        (units / "notes.safetensors").write_text("mine")
        run(tmp_path / "run", resume=True)
        assert [path.name for path in units.iterdir()] == ["notes.safetensors"]
        assert (tmp_path / "mine").read_text() == "three years"

    def test_the_folder_itself_may_be_a_link_and_may_be_moved(self, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "run").symlink_to(tmp_path / "disk", target_is_directory=True)
        one = run(tmp_path / "run")
        (tmp_path / "disk").rename(tmp_path / "moved")
        two = load_run(tmp_path / "moved")
        assert torch.equal(one.predict(SET.test.images), two.predict(SET.test.images))


def hold(folder, ready, leave):
    config = {"rule": {"name": "backprop"}}
    with RunFolder(folder).prepared(config, False, False, Silent()):
        ready.set()
        leave.wait(30)
        os._exit(9)  # as if it was killed


class TestLock:
    @pytest.fixture
    def holder(self, tmp_path):
        context = multiprocessing.get_context("fork")
        ready, leave = context.Event(), context.Event()
        process = context.Process(target=hold, args=(tmp_path / "run", ready, leave))
        process.start()
        assert ready.wait(30)
        yield process, leave
        leave.set()
        process.join()

    def test_the_second_process_is_told_who_writes_and_touches_nothing(self, tmp_path, holder):
        process, leave = holder
        before = contents(tmp_path / "run")
        for options in ({"resume": True}, {"overwrite": True}):
            words = rf"is being written by process {process.pid} on \S+ since 20\d\d-"
            with pytest.raises(InputError, match=words + "|was started otherwise"):
                run(tmp_path / "run", **options)
        assert contents(tmp_path / "run") == before
        with pytest.raises(BusyError, match=words):
            run(tmp_path / "run", overwrite=True)
        leave.set()  # it ends without letting go
        process.join()
        assert (tmp_path / "run" / LOCK_FILES[1]).exists()
        told = Notices()
        train(QUICK, SET, Options(epochs=1, batch=12, out=tmp_path / "run", overwrite=True), progress=told)
        assert not told.told
        assert not [name for name in LOCK_FILES if (tmp_path / "run" / name).exists()]

    def test_two_threads_of_one_process_do_not_write_together(self, tmp_path):
        run(tmp_path / "run")
        errors, inside, leave = [], threading.Event(), threading.Event()

        class Waiting(Silent):
            def begin(self, *given):
                inside.set()
                leave.wait(30)

        def again(progress):
            try:
                options = Options(epochs=2, batch=12, out=tmp_path / "run", resume=True)
                train(QUICK, SET, options, progress=progress)
            except BusyError as error:
                errors.append(str(error))

        first = threading.Thread(target=again, args=(Waiting(),))
        first.start()
        assert inside.wait(30)
        again(Silent())
        leave.set()
        first.join()
        assert len(errors) == 1
        assert "by this process since" in errors[0]
        assert load_run(tmp_path / "run").step == 6

    def test_a_file_system_that_cannot_lock_is_noticed_and_used(self, tmp_path, monkeypatch):
        def cannot(*given):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", cannot)
        told = Notices()
        done = train(QUICK, SET, Options(epochs=1, batch=12, out=tmp_path / "run"), progress=told)
        assert done.step == 3
        assert any("cannot lock files" in sentence for sentence in told.told)

    def test_a_folder_that_cannot_be_written_says_so(self, tmp_path, monkeypatch):
        run(tmp_path / "run")
        real = os.open

        def read_only(path, flags, *rest, **more):
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path).startswith(str(tmp_path)):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", read_only)
        with pytest.raises(InputError, match=r"cannot be written to \(Read-only .*eval and predict read it"):
            run(tmp_path / "run", resume=True, epochs=2)
        assert load_run(tmp_path / "run").step == 3


class TestDigests:
    @pytest.fixture
    def done(self, tmp_path):
        run(tmp_path / "run")
        return tmp_path / "run"

    def test_a_changed_configuration_is_refused_until_somebody_says_it_is_on_purpose(self, done):
        file = done / "config.toml"
        text = file.read_text()
        file.write_text(text.replace("epochs = 1", "epochs = 3").replace("[task]", "# a remark\n[task]"))
        for use in (lambda: load_run(done), lambda: run(done, resume=True)):
            with pytest.raises(CheckpointError, match=r"was changed after the run wrote it.*remove the line"):
                use()
        file.write_text("".join(line for line in file.read_text().splitlines(True) if "digest" not in line))
        with pytest.warns(RunNotice, match="has no digest"):
            assert load_run(done).step == 3
        file.write_text(text.replace("[task]", "# a remark\n[task]"))
        load_run(done)  # the same entries: the same digest

    def test_no_change_of_one_byte_is_silent(self, done):
        file = done / "config.toml"
        raw, expected = file.read_bytes(), read_config(file)
        silent = []
        for place in range(len(raw)):
            file.write_bytes(raw[:place] + bytes([b"0z]7"[place % 4]]) + raw[place + 1 :])
            try:
                found = read_config(file)
            except CheckpointError:
                continue
            if found != expected and not found[1]:
                silent.append(place)
        assert not silent

    @pytest.mark.parametrize("file", ["state.safetensors", "model.safetensors"])
    def test_weights_of_another_run_are_refused(self, done, file):
        config, _ = read_config(done / "config.toml")
        config["task"]["mean"] = [0.25]
        write_config(done / "config.toml", config)  # consistent in itself
        if file.startswith("model"):
            (done / "state.safetensors").unlink()
        with pytest.raises(CheckpointError, match=rf"{file} is of a run with task\.mean.*\[0\.25\]"):
            load_run(done)

    def test_an_earlier_folder_is_read_with_a_notice(self, done):
        file = done / "config.toml"
        lines = file.read_text().splitlines(True)
        file.write_text("".join(lines[lines.index("[rule]\n") :]))
        with pytest.warns(RunNotice, match="an earlier Sidestep"):
            load_run(done)
        told = Notices()
        train(QUICK, SET, Options(epochs=2, batch=12, out=done, resume=True), progress=told)
        assert any("an earlier Sidestep" in sentence for sentence in told.told)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_run(done)  # has its mark now

    def test_changed_metrics_are_refused(self, done):
        file = done / "metrics.jsonl"
        raw = file.read_bytes()
        file.write_bytes(raw.replace(b'"value": ', b'"value":  ', 1)[: len(raw)])
        for use in (lambda: run(done, resume=True, epochs=2), lambda: alignment_curves(done)):
            with pytest.raises(CheckpointError, match=r"metrics\.jsonl was changed or damaged"):
                use()
        file.write_bytes(raw + b'{"step": 99, ')  # what a killed step leaves
        assert run(done, resume=True, epochs=2).step == 6

    def test_a_changed_result_is_not_taken(self, done):
        file = done / "result.json"
        whole = RunFolder(done).result()
        assert whole == read_json(file)
        file.write_text(file.read_text().replace('"steps": 3', '"steps": 4'))
        assert RunFolder(done).result() is None
        with pytest.raises(CheckpointError, match="was changed or damaged"):
            read_json(file)


class TestMark:
    @pytest.mark.parametrize("text", ['title = "my site"\n', "[sidestep]\nkind = 'theme'\n", "x = [\n", "", "\xff"])
    def test_somebody_s_folder_is_never_overwritten(self, tmp_path, text):
        out = tmp_path / "site"
        out.mkdir()
        (out / "config.toml").write_text(text)
        (out / "result.json").write_text("{}")
        before = contents(out)
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises((InputError, CheckpointError), match=r"not the folder of a run|is damaged"):
                run(out, **options)
            assert contents(out) == before

    def test_a_damaged_run_may_be_replaced_and_other_files_stay(self, tmp_path):
        out = tmp_path / "run"
        run(out)
        (out / "notes.txt").write_text("mine")
        file = out / "config.toml"
        file.write_text(file.read_text() + "x = [\n")
        run(out, overwrite=True, seed=5)
        assert read_config(file)[0]["train"]["seed"] == 5
        assert (out / "notes.txt").read_text() == "mine"


class TestBeforeTheFirstCheckpoint:
    def test_the_state_before_the_first_step_is_there_before_the_log(self, tmp_path):
        """A log of flips does not hold the momentum, so what is replayed from it alone would go on otherwise."""

        class Looking(Silent):
            def step(self, step, examples):
                raise KeyboardInterrupt  # as a kill: nothing is saved

        with pytest.raises(KeyboardInterrupt):
            train(LOGGED, SET, Options(epochs=1, batch=12, out=tmp_path / "run"), progress=Looking())
        assert "state.safetensors" in {path.name for path in (tmp_path / "run").iterdir()}
        run(tmp_path / "run", LOGGED, resume=True)
        run(tmp_path / "whole", LOGGED)
        parts, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole"))
        assert parts == whole


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hangup_saves_unless_it_is_ignored(tmp_path, ignored):
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    class Leaving(Silent):
        def step(self, step, examples):
            if step == 2:
                os.kill(os.getpid(), signal.SIGHUP)

    options = Options(epochs=1, batch=12, out=tmp_path / "run")
    try:
        if ignored:
            assert train(QUICK, SET, options, progress=Leaving()).step == 3
        else:
            with pytest.raises(Stopped) as stopped:
                train(QUICK, SET, options, progress=Leaving())
            assert stopped.value.signal_number == signal.SIGHUP
            assert load_run(tmp_path / "run").step == 2
        with stop_on_signals():
            pass
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, earlier)


@pytest.mark.parametrize(
    "command",
    [
        ["bench", "--rules", "backprop", "--epochs", "1"],
        ["study", "noprop-blocks"],
        ["train", "backprop"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_a_folder_that_is_being_written_is_left_alone_by_every_command(tmp_path, capsys, command):
    out = tmp_path / "out"
    out.mkdir()
    with only_writer(out), pytest.raises(SystemExit) as leaving:
        main([*command, "--out", str(out)])
    assert leaving.value.code == 2
    assert f"{out} is being written by this process since" in capsys.readouterr().err.replace("\n", " ")
    assert list(out.iterdir()) == []


def test_where_nothing_can_be_locked_the_notice_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *given: (_ for _ in ()).throw(OSError(errno.ENOSYS, "no")))
    with pytest.warns(RunNotice, match="cannot lock files"), only_writer(tmp_path):
        pass


def test_a_finished_run_without_state_and_log_is_told_as_it_is(tmp_path):
    train(QUICK, SET, Options(epochs=1, batch=12, out=tmp_path / "run"))
    (tmp_path / "run" / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is not there either") as caught:
        train(QUICK, SET, Options(epochs=1, batch=12, out=tmp_path / "run", resume=True))
    assert "replay" not in str(caught.value)  # there is nothing to replay


def test_weights_that_may_not_be_read_are_not_told_as_missing(tmp_path, monkeypatch):
    train(QUICK, SET, Options(epochs=1, batch=12, out=tmp_path / "run"))
    opened = os.open

    def refused(path, *rest, **more):
        if str(path).endswith("state.safetensors"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        load_run(tmp_path / "run")


def test_a_folder_whose_weights_could_not_be_read_again_is_refused_before_training(tmp_path):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(CheckpointError, match="not valid UTF-8"):
        train(QUICK, SET, Options(epochs=1, batch=12, out=out))
    assert not out.exists()


def test_a_finished_run_that_cannot_be_continued_keeps_its_model(tmp_path, monkeypatch):
    train(QUICK, SET, Options(epochs=1, batch=12, out=tmp_path / "run"))
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()}
    opened = os.open

    def refused(path, flags, *rest, **more):
        if str(path).endswith("metrics.jsonl") and flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(CheckpointError, match="cannot be written"):
        train(QUICK, SET, Options(epochs=2, batch=12, out=tmp_path / "run", resume=True))
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir()} == before
