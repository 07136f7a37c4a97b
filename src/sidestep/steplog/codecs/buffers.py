"""The values of buffers that updates wrote (`Update.statistics`), as they stood at the end of a block."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.steplog.format import MOST_STATISTICS, DamagedLogError, read_varint, varint
from sidestep.steplog.header import DTYPES, Header

__all__ = ["read_statistics", "statistics_to_bytes"]


def statistics_to_bytes(header: Header, values: Mapping[str, Tensor]) -> bytes:
    """Return the values as bytes: for each, its place in the header's table of buffers and its elements.

    Raises InputError for a name or shape that is not in that table, and beyond 2^24 bytes.
    """
    table = {name: (index, kind, shape) for index, (name, kind, shape) in enumerate(header.buffers)}
    parts = []
    for name, value in values.items():
        index, kind, shape = table.get(name, (-1, "", ()))
        if index < 0 or tuple(value.shape) != shape:
            raise InputError(f"an update writes {name} of shape {tuple(value.shape)}, which is no buffer of the net")
        plain = value.detach().to("cpu", DTYPES[kind]).contiguous()
        parts += [varint(index), plain.reshape(-1).view(torch.uint8).numpy().tobytes()]
    data = b"".join(parts)
    if len(data) > MOST_STATISTICS:
        raise InputError(f"the buffers that updates write have {len(data):,} bytes; a log takes {MOST_STATISTICS:,}")
    return data


def read_statistics(header: Header, data: bytes) -> dict[str, Tensor]:
    """Return what `statistics_to_bytes` took; raises DamagedLogError if it cannot have made these bytes."""
    found: dict[str, Tensor] = {}
    at = 0
    while at < len(data):
        index, at = read_varint(data, at)
        if index >= len(header.buffers):
            raise DamagedLogError(f"a block has a value of buffer {index}, and the net has {len(header.buffers)}")
        name, kind, shape = header.buffers[index]
        dtype = DTYPES[kind]
        size = math.prod(shape) * dtype.itemsize
        if at + size > len(data):
            raise DamagedLogError(f"the value of the buffer {name} is cut")
        raw = torch.frombuffer(bytearray(data[at : at + size]), dtype=torch.uint8) if size else torch.empty(0)
        found[name] = raw.to(torch.uint8).view(dtype).view(shape)
        at += size
    return found
