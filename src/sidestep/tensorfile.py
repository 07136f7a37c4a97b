"""The safetensors format, written a tensor at a time, so that nothing large is in memory twice."""

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sidestep.errors import InputError

__all__ = ["layout", "raw_bytes"]

# The format's names, from the last to the first in a file: the safetensors library sorts them so.
_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.uint16: "U16",
    torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32",
    torch.complex64: "C64", torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
_ORDER = {dtype: index for index, dtype in enumerate(_NAMES)}


def layout(
    kinds: Mapping[str, tuple[torch.dtype, Sequence[int]]], metadata: Mapping[str, str], align: int = 8
) -> tuple[bytes, dict[str, int]]:
    """Return the head of a safetensors file, and name -> offset in the file, in the order of the file.

    With the default alignment the file is the one that the safetensors library writes. The format allows no gaps: for a
    larger one, tensors of bytes called `padding.N` fill them.

    Args:
        kinds: the dtype and shape of each tensor.
        metadata: what else the head holds.
        align: bytes that each offset is a multiple of.

    Raises:
        InputError: for a dtype that the format does not have.
    """
    unknown = [f"{name} ({dtype})" for name, (dtype, _) in kinds.items() if dtype not in _NAMES]
    if unknown:
        raise InputError(f"safetensors has no dtype for {', '.join(unknown[:8])}; convert it, or leave it out")
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    places: dict[str, int] = {}
    end = 0
    for name in sorted(kinds, key=lambda name: (-_ORDER[kinds[name][0]], name)):
        dtype, shape = kinds[name]
        gap = -end % align if align > 8 else 0
        if gap:
            entries[f"padding.{len(places)}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
        begin, end = end + gap, end + gap + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        places[name] = begin
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % align)
    head = len(text).to_bytes(8, "little") + text
    return head, {name: len(head) + begin for name, begin in places.items()}


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's elements in row-major order as bytes; those of a contiguous CPU tensor are not copied."""
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data
