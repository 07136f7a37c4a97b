"""The safetensors format, held to what the safetensors library writes and reads."""

import pytest
import safetensors.torch
import torch

from sidestep import checkpoint
from sidestep.errors import InputError
from sidestep.tensorfile import layout, raw_bytes

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.int32, torch.float32]
DTYPES += [torch.float64, torch.int64]
TENSORS = {f"{index}.größe": torch.arange(index + 1).to(dtype) for index, dtype in enumerate(DTYPES)}
TENSORS |= {"scalar": torch.tensor(3.0), "none": torch.zeros(0, 4), "a": torch.ones(2, 3).T, "b": torch.ones(2)}


def written(tensors, metadata, align=8):
    head, places = layout({name: (t.dtype, t.shape) for name, t in tensors.items()}, metadata, align)
    data = bytearray(head)
    for name, place in places.items():
        data += bytes(place - len(data)) + raw_bytes(tensors[name])
    return bytes(data), places


def test_the_bytes_are_those_that_the_library_writes():
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    assert written(TENSORS, {"of": "ours"})[0] == safetensors.torch.save(contiguous, {"of": "ours"})
    assert written(TENSORS, {})[0] == safetensors.torch.save(contiguous)


def test_aligned_files_are_read_by_the_library():
    data, places = written(TENSORS, {}, align=64)
    found = safetensors.torch.load(data)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert all(place % 64 == 0 for place in places.values())


def test_a_dtype_that_the_format_lacks_is_named():
    with pytest.raises(InputError, match=r"no dtype for x \(torch\.quint8\)"):
        layout({"x": (torch.quint8, (2,))}, {})


def test_an_opened_checkpoint_reads_a_tensor_when_it_is_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    tensors = {f"net/{index}": torch.full((50,), float(index)) for index in range(6)}
    checkpoint.save(path, tensors, {"step": 3})
    monkeypatch.setattr(checkpoint, "_MAPPED", 300)  # bytes: it is mapped anew after every second tensor
    found, record = checkpoint.opened(path)
    assert record == {"step": 3}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert "net/9" not in found
    with pytest.raises(KeyError):
        found["net/9"]
