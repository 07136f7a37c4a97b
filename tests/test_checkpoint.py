"""Checkpoints come back to the bit; no damage goes unnoticed, and no kill or full disk does harm."""

import copy
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sidestep import checkpoint
from sidestep.errors import CheckpointError, InputError

BASE = torch.arange(120, dtype=torch.float32).reshape(2, 3, 4, 5) / 7
TENSORS = {
    "weight": BASE,
    "zero-dimensional": torch.tensor(3.25),
    "bfloat16": BASE.to(torch.bfloat16),
    "half": BASE.to(torch.float16),
    "double": BASE.double() / 3,
    "int64": torch.tensor([-(2**63), 2**63 - 1, 0]),
    "uint8": torch.arange(256).to(torch.uint8),
    "int8": torch.tensor([-1, 0, 1], dtype=torch.int8),
    "bool": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
    "transposed": BASE[0, 0].T,
    "channels last": BASE.to(memory_format=torch.channels_last),
    "slice": BASE[1, 1, 1:3, ::2],
    "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
    "needs gradient": nn.Parameter(torch.ones(2)),
}
RECORD = {"step": 12, "name": "run é", "rates": [0.1, 1e-300], "nested": {"b": 1, "a": None, "ok": True}}


def bits(tensor: Tensor) -> list[int]:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def test_tensors_and_record_come_back(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, TENSORS, RECORD)
    tensors, record = checkpoint.load(path)
    assert record == RECORD
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(tensors[name]) == bits(tensor)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    safetensors.torch.load_file(path)  # any other tool can read it too
    checkpoint.save(tmp_path / "again", TENSORS, RECORD)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_aliases_views_and_overlaps_come_back_as_separate_tensors(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    aliases = {"a": shared, "b": shared, "c": shared[2:], "d": shared.view(2, 3), "e": shared.expand(2, 6)}
    checkpoint.save(tmp_path / "s", aliases, {})
    tensors, _ = checkpoint.load(tmp_path / "s")
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in aliases.items()
    }
    tensors["a"].add_(1)
    assert tensors["b"].tolist() == shared.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_record_that_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plain JSON \(no tensors"):
        checkpoint.save(tmp_path / "s", {}, {"tensor": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    checkpoint.save(path, {"a": torch.arange(5.0), "b": torch.tensor([1, 2]), "c": torch.arange(5.0)}, {"step": 3})
    return path


def damaged(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=path.name) as caught:
        checkpoint.load(path)
    return str(caught.value)


def test_every_truncation_is_found(small: Path) -> None:
    whole = small.read_bytes()
    for length in range(len(whole)):
        assert "--overwrite" in damaged(small, whole[:length])
    assert "--overwrite" in damaged(small, whole + b"\0")


def test_every_flipped_bit_is_found(small: Path) -> None:
    whole = small.read_bytes()
    generator = random.Random(5)
    for _ in range(500):
        flipped = bytearray(whole)
        flipped[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        damaged(small, bytes(flipped))
    small.write_bytes(whole)
    assert checkpoint.load(small)[1] == {"step": 3}


def with_header(data: bytes, change: Callable[[dict], None]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def swap_names(header: dict) -> None:
    header["a"], header["c"] = header["c"], header["a"]


def change_dtype(header: dict) -> None:
    header["a"]["dtype"] = "I32"


def change_shape(header: dict) -> None:
    header["b"]["shape"] = [1, 2]


def change_record(header: dict) -> None:
    header["__metadata__"]["sidestep"] = header["__metadata__"]["sidestep"].replace('"step": 3', '"step": 4')


def test_consistent_changes_are_found_by_the_digest(small: Path) -> None:
    whole = small.read_bytes()
    changes = [change_dtype, change_shape, change_record]
    for change in changes:
        assert "does not match its digest" in damaged(small, with_header(whole, change))
    checkpoint.save(small, {"a": torch.zeros(5), "c": torch.ones(5)}, {})
    assert "does not match its digest" in damaged(small, with_header(small.read_bytes(), swap_names))


def test_files_that_are_something_else(small: Path) -> None:
    whole = small.read_bytes()
    assert "cut short, damaged or not" in damaged(small, b"")
    assert "cut short, damaged or not" in damaged(small, b"PK\x03\x04" + b"x" * 200)
    assert "cut short, damaged or not" in damaged(small, b"\xff" * 7 + b"\x7f" + whole[8:])
    assert "without the record" in damaged(small, safetensors.torch.save({"a": torch.zeros(2)}))
    for text in ("{}", "[]", "7", "no json", '{"format": 1}', '{"format": "x", "digest": "", "record": {}}'):
        other = safetensors.torch.save({"a": torch.zeros(2)}, metadata={"sidestep": text})
        assert "without the record" in damaged(small, other)
    newer = whole.replace(rb"\"format\": 1", rb"\"format\": 2")
    assert "upgrade sidestep" in damaged(small, newer)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*gone"):
        checkpoint.load(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="is a folder and no file"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match="nothing was written"):
        checkpoint.write_text(tmp_path / "no folder" / "file", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*folder"):
        checkpoint.write_text(tmp_path / "folder", "text")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_text_is_utf8_and_keeps_usual_permissions(tmp_path: Path) -> None:
    checkpoint.write_text(tmp_path / "atomic", "é\n")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "atomic").read_bytes() == b"\xc3\xa9\n"
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (
            OSError(errno.ENOSPC, "no space"),
            CheckpointError,
            "disk is full: .*old needs 5 bytes .* untouched",
        ),
        (
            OSError(errno.EIO, "bad disk"),
            CheckpointError,
            "cannot write .*old: bad disk; the earlier file is unt",
        ),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_a_failed_write_leaves_the_earlier_file_and_no_temporary(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    error: BaseException,
    expected: type[BaseException],
    message: str,
) -> None:
    path = tmp_path / "old"
    path.write_text("old")

    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(expected, match=message):
        checkpoint.write_text(path, "newer")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["old"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a tmpfs needs root on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_nothing(tiny_disk: Path) -> None:
    path = tiny_disk / "state.safetensors"
    checkpoint.save(path, {"a": torch.arange(100_000.0)}, {"step": 1})
    with pytest.raises(CheckpointError, match=r"disk is full: .*state\.safetensors needs 8\d{5} bytes") as caught:
        checkpoint.save(path, {"a": torch.arange(200_000.0)}, {"step": 2})
    assert "earlier file is untouched" in str(caught.value)
    tensors, record = checkpoint.load(path)
    assert record == {"step": 1}
    assert torch.equal(tensors["a"], torch.arange(100_000.0))
    assert [file.name for file in tiny_disk.iterdir()] == [path.name]
    with pytest.raises(CheckpointError, match="nothing was written"):
        checkpoint.write_bytes(tiny_disk / "other", bytes(900_000))


KILLED = """
import sys, torch
from sidestep import checkpoint
for step in range(10**9):
    checkpoint.save(sys.argv[1], {"a": torch.full((200_000,), float(step))}, {"step": step})
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_kills_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    environment = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
    for attempt in range(8):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], env=environment)
        while not path.exists():
            time.sleep(0.01)
            assert process.poll() is None
        time.sleep(0.003 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        tensors, record = checkpoint.load(path)
        assert tensors["a"].eq(record["step"]).all()
        path.unlink()
        assert all(left.name.startswith(checkpoint.TEMPORARY_PREFIX) for left in tmp_path.iterdir())


def network() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 2, bias=False))
    return net.to(memory_format=torch.channels_last)


def advance(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        net(images).square().mean().backward()
        optimizer.step()


def groups(net: nn.Module) -> list[dict]:
    parameters = list(net.parameters())
    return [{"params": parameters[:2], "lr": 0.02}, {"params": parameters[2:], "weight_decay": 0.3}]


OPTIMIZERS: dict[str, Callable[[list[dict]], torch.optim.Optimizer]] = {
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, betas=(0.8, 0.95)),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "adamw fused": lambda params: torch.optim.AdamW(params, lr=0.01, fused=True),
    "adamw amsgrad": lambda params: torch.optim.AdamW(params, lr=0.01, amsgrad=True, foreach=True),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01),
    "sgd momentum": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, nesterov=True),
    "sgd fused": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3])
def test_optimizer_state_continues_to_the_same_bits(tmp_path: Path, name: str, before: int) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](groups(net))
    advance(net, optimizer, range(before))
    optimizer.param_groups[1]["lr"] = 0.005  # as a schedule does
    weights = copy.deepcopy(net.state_dict())
    tensors, record = checkpoint.optimizer_tensors(optimizer)
    checkpoint.save(tmp_path / "s", tensors, {"optimizer": record})
    advance(net, optimizer, range(before, before + 4))

    tensors, loaded = checkpoint.load(tmp_path / "s")
    other = network()
    other.load_state_dict(weights)
    resumed = OPTIMIZERS[name](groups(other))
    advance(other, resumed, range(50, 52))  # whatever state there is must be replaced
    other.load_state_dict(weights)
    checkpoint.restore_optimizer(resumed, tensors, loaded["optimizer"])
    assert resumed.state_dict()["param_groups"][1]["lr"] == 0.005
    kept = {key: bits(tensor) for key, tensor in tensors.items()}
    advance(other, resumed, range(before, before + 4))
    for key, tensor in net.state_dict().items():
        assert bits(other.state_dict()[key]) == bits(tensor)
    assert optimizer.state_dict()["param_groups"] == resumed.state_dict()["param_groups"]
    assert kept == {key: bits(tensor) for key, tensor in tensors.items()}  # the loaded tensors are not reused


def _with(record: dict[str, Any], **values: Any) -> dict[str, Any]:
    first, *rest = record["groups"]
    return {**record, "groups": [{**first, **values}, *rest]}


def test_optimizer_of_other_parameters_or_class_is_refused() -> None:
    net = network()
    optimizer = OPTIMIZERS["adam"](groups(net))
    advance(net, optimizer, range(1))
    tensors, record = checkpoint.optimizer_tensors(optimizer)
    wider = nn.Linear(3, 3)
    one_group = [{"params": list(network().parameters())}]
    refusals = [
        (OPTIMIZERS["sgd"](groups(net)), tensors, record, "holds the state of Adam, this run uses SGD"),
        (OPTIMIZERS["adam"]([{"params": wider.parameters()}]), tensors, record, "5 parameters, "),
        (OPTIMIZERS["adam"](one_group), tensors, record, "same network and parameter groups"),
        (optimizer, {}, record, r"lacks the optimizer's tensors \['0\.step'"),
        (optimizer, tensors, {"class": "Adam"}, r"record lacks \['groups'"),
        (optimizer, tensors, _with(record, lr="fast"), "optimizer's lr is 'fast' in the checkpoint"),
        (optimizer, tensors, _with(record, betas=[0.9]), r"optimizer's betas is \[0\.9\]"),
        (optimizer, tensors, _with(record, params=record["groups"][0]["params"][::-1]), "optimizer's params is"),
    ]
    for given, given_tensors, given_record, message in refusals:
        before = copy.deepcopy(given.state_dict()["param_groups"])
        with pytest.raises(CheckpointError, match=message):
            checkpoint.restore_optimizer(given, given_tensors, given_record)
        assert given.state_dict()["param_groups"] == before
