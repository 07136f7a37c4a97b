"""Units together, in turn, and one resident: the same numbers with less memory."""

import copy
import errno
import mmap
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sidestep import Options, data, load_run, train
from sidestep.data import DataSet, Split
from sidestep.errors import CheckpointError, InputError
from sidestep.measure import peak_allocation
from sidestep.noise import Noise
from sidestep.rules import RULES, Backprop, Blockwise, ForwardForward, Hebbian, LocalLoss, NoPropCT, NoPropDT, Task
from sidestep.rules.protocol import UnitByUnit
from sidestep.training import unit_files
from sidestep.training.loop import Loop
from sidestep.training.options import Compute
from sidestep.training.state import State
from sidestep.training.unit_files import UnitFiles
from sidestep.training.unit_modes import move_units, unsupported_reason

DIGITS = data.load("digits")
FIRST, OTHERS = (Split(DIGITS.train.images[a:b], DIGITS.train.labels[a:b]) for a, b in ((0, 96), (96, 112)))
FEW = DataSet("few", FIRST, OTHERS, DIGITS.class_names, DIGITS.mean, DIGITS.std)
CPU = torch.device("cpu")
MODES = ("together", "in-turn", "one-resident")
SEVERAL = {
    "noprop-dt": NoPropDT(blocks=3),
    "noprop-dt learned": NoPropDT(blocks=3, embedding="learned", dimension=6, unit_norm=True, readout="radial"),
    "noprop-dt nearest": NoPropDT(blocks=2, readout="nearest"),
    "blockwise": Blockwise(groups=2, depth=3, width=16),
    "local-loss": LocalLoss(hidden=(24, 16), similarity=0.5),
    "local-loss conv": LocalLoss(net="conv", hidden=(8, 8)),
    "forward-forward": ForwardForward(hidden=(24, 16)),
    "hebbian": Hebbian(hidden=(24, 16)),
}


@pytest.fixture(autouse=True)
def one_thread():
    """With several, units that run at once have one each, and sums are added in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def started(rule, units, **options):
    task = Task(DIGITS.image_shape, DIGITS.class_names, DIGITS.mean, DIGITS.std)
    net = rule.build(task, Noise(0).stream("build"), DIGITS.train, None)
    state = State(net, rule.optimizer(net))
    move_units(state, rule, units, None)
    given = Options(**{"batch": 32, "units": units, "decay": "cosine", **options})
    return Loop(rule, DIGITS, given, Compute.find("cpu", "float32"), None), state


def after_steps(rule, units, steps=3):
    loop, state = started(rule, units, average=0.9)
    for _ in range(steps):
        loop.take_step(state)
    tensors, record = state.tensors()
    return {name: tensor.clone() for name, tensor in tensors.items()}, record


@pytest.mark.parametrize("rule", SEVERAL.values(), ids=SEVERAL.keys())
def test_all_ways_give_the_same_bits(rule):
    """Weights, running statistics, moments, averages and losses, after steps with dropout and a falling rate."""
    whole, record = after_steps(rule, "together")
    for units in MODES[1:]:
        found, other = after_steps(rule, units)
        assert found.keys() == whole.keys()
        assert [name for name in whole if not torch.equal(whole[name], found[name])] == []
        for one in (record, other):
            one["optimizer"]["tensors"].sort()
        assert other == record


def test_the_matrix_has_every_rule_with_several_units_that_can():
    able = {name for name, kind in RULES.items() if issubclass(kind, UnitByUnit)}
    assert able == {rule.name for rule in SEVERAL.values()}


@pytest.mark.parametrize("units", MODES)
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(units, tmp_path):
    rule = NoPropDT(blocks=2, embedding="learned", dimension=6)
    given = {"batch": 32, "average": 0.9}
    whole = train(rule, FEW, Options(epochs=2, out=tmp_path / "whole", **given))
    train(rule, FEW, Options(epochs=1, units=units, out=tmp_path / "part", **given))
    later = "in-turn" if units == "one-resident" else "one-resident"  # the way may change
    for way, epochs in ((units, 2), (later, 2)):
        train(rule, FEW, Options(epochs=epochs, units=way, resume=True, out=tmp_path / "part", **given))
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "part")]
    assert files[0] == files[1]
    assert not (tmp_path / "part/units").exists()
    images = DIGITS.test.images[:20]
    assert torch.equal(load_run(tmp_path / "part").predict(images), whole.predict(images))


def test_resuming_in_files_half_way_goes_on_with_the_same_bits(tmp_path):
    """From a checkpoint that holds moments and averages, into files."""
    rule = NoPropDT(blocks=2)
    for name, units in (("one", "together"), ("two", "one-resident")):
        given = {"batch": 32, "average": 0.9, "out": tmp_path / name}
        train(rule, FEW, Options(epochs=1, **given))
        train(rule, FEW, Options(epochs=2, units=units, resume=True, **given))
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def peak_of_a_step(blocks, units):
    loop, state = started(NoPropDT(blocks=blocks), units)
    loop.take_step(state)
    with peak_allocation() as peak:
        loop.take_step(state)
    return peak.bytes


@pytest.mark.parametrize("units", MODES[1:])
def test_memory_of_a_step_does_not_grow_with_the_blocks(units):
    few, many = (peak_of_a_step(blocks, units) for blocks in (2, 5))
    assert (many - few) / 3 < 0.01 * few
    assert peak_of_a_step(5, "together") > 1.3 * many  # holds the gradients of all blocks


@pytest.mark.parametrize("rule", [LocalLoss(hidden=(64,) * 6, norm="none"), Hebbian(hidden=(64,) * 6)], ids=str)
def test_stages_hold_one_gradient_at_a_time(rule):
    def peak(units):
        loop, state = started(rule, units, batch=8)
        loop.take_step(state)
        with peak_allocation() as found:
            loop.take_step(state)
        return found.bytes

    gradients = sum(4 * p.numel() for n, p in started(rule, "together")[1].net.named_parameters() if "stages" in n)
    assert peak("in-turn") < peak("together") - gradients / 2


def test_a_net_can_be_pickled_and_copied_after_its_units_were_in_files(tmp_path):
    run = train(NoPropDT(blocks=2), FEW, Options(epochs=1, batch=32, units="one-resident"))
    torch.save(run.net, tmp_path / "net.pt")
    kept, images = run.net.state_dict(), DIGITS.test.images[:10]
    for other in (torch.load(tmp_path / "net.pt", weights_only=False), copy.deepcopy(run.net)):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in other.state_dict().items())
        assert torch.equal(replace(run, net=other).predict(images), run.predict(images))


@pytest.mark.parametrize("other", [{"resume": True}, {"overwrite": True}], ids=str)
def test_files_of_a_killed_run_are_gone_whatever_comes_after(other, tmp_path):
    given = {"batch": 32, "out": tmp_path / "run"}
    train(NoPropDT(blocks=2), FEW, Options(epochs=1, units="one-resident", **given))
    (tmp_path / "run/units").mkdir()
    (tmp_path / "run/units/block-1-0.safetensors").write_bytes(b"of a killed run")
    train(NoPropDT(blocks=2), FEW, Options(epochs=2, **given, **other))
    assert not (tmp_path / "run/units").exists()


def test_a_loop_does_not_train_all_units_where_single_ones_were_asked_for():
    loop, state = started(Backprop(net="mlp", hidden=(8,)), "in-turn")
    with pytest.raises(InputError, match="units = in-turn needs"):
        loop.take_step(state)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_units_that_do_not_train_are_not_in_memory(tmp_path):
    loop, state = started(NoPropDT(blocks=2), "one-resident", average=0.9)
    folder = str(state.files._folder)

    def resident():
        found, inside = [], False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            words = line.split()
            if "-" in words[0] and len(words) > 4:
                inside = folder in line
            elif inside and words[0] == "Rss:":
                found.append(int(words[1]))
        return found

    loop.take_step(state)
    assert len(resident()) == 9  # weights, averages and moments, of two blocks and the read-out
    assert sum(resident()) == 0
    state.net.block(0).fuse(torch.ones(64, 512))
    assert sum(resident()) > 0
    with torch.no_grad():  # an evaluation lets go as it passes
        state.net.block(1).fuse(torch.ones(64, 512))
        state.net.block(0).fuse(torch.ones(64, 512))
    assert sum(resident()) == 0
    state.files.close()
    assert not Path(folder).exists()
    loop.take_step(state)  # what was in the files is still usable


def test_the_files_are_safetensors_and_only_ours_are_removed(tmp_path):
    (tmp_path / "units").mkdir()
    (tmp_path / "units/block-1-0.safetensors").write_bytes(b"of a killed run")
    (tmp_path / "units/notes.txt").write_text("mine")
    files = UnitFiles(tmp_path, {"block 1": ["a", "b", "c"]})
    assert not (tmp_path / "units/block-1-0.safetensors").exists()
    lasting = torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    given = {"a": torch.tensor([1, 2, 3], dtype=torch.int8), "b": lasting, "c": torch.arange(6.0)[::2]}
    views = files.moved("block 1", given)
    for name, view in views.items():
        assert torch.equal(view, given[name])
        assert view.data_ptr() % 64 == 0
    assert views["b"].stride() == lasting.stride()
    views["b"].add_(1)
    files.release()
    assert torch.equal(views["b"], lasting + 1)
    stored = safetensors.torch.load_file(tmp_path / "units/block-1-0.safetensors")
    assert torch.equal(stored["b"], (lasting + 1).permute(0, 2, 3, 1).flatten())
    assert files.moved("block 1", views) == {}
    files.close()
    assert [path.name for path in (tmp_path / "units").iterdir()] == ["notes.txt"]


class TestRefusals:
    def test_another_word(self):
        with pytest.raises(InputError, match="units must be together, in-turn or one-resident, got 'blocks'"):
            Options(units="blocks")

    @pytest.mark.parametrize("rule", [Backprop(net="mlp", hidden=(8,)), NoPropCT()], ids=["backprop", "noprop-ct"])
    @pytest.mark.parametrize("units", MODES[1:])
    def test_a_rule_that_cannot(self, rule, units, tmp_path):
        with pytest.raises(InputError, match=rf"units = {units} needs .* which {rule.name} does not have.*noprop-dt"):
            train(rule, DIGITS, Options(units=units, out=tmp_path / "run"))
        assert not (tmp_path / "run").exists()

    def test_a_gpu(self):
        assert "only a CPU reads" in unsupported_reason(NoPropDT(), "one-resident", torch.device("cuda"))
        assert unsupported_reason(NoPropDT(), "in-turn", torch.device("cuda")) is None
        assert unsupported_reason(NoPropDT(), "one-resident", CPU) is None

    def test_a_system_that_cannot_release_pages(self, monkeypatch):
        monkeypatch.delattr(mmap, "MADV_DONTNEED")
        with pytest.raises(InputError, match="use units = in-turn"):
            train(NoPropDT(blocks=2), DIGITS, Options(units="one-resident", epochs=0))

    def test_a_full_disk(self, monkeypatch):
        def full(tensor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(unit_files, "raw_bytes", full)
        with pytest.raises(CheckpointError, match=r"the disk is full \(\d+ bytes are free\)"):
            train(NoPropDT(blocks=2), DIGITS, Options(units="one-resident", epochs=0))
