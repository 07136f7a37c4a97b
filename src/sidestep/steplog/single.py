"""The decided update of one step as bytes, coded as the log codes a block of that step alone."""

from sidestep.errors import InputError
from sidestep.steplog.codecs import CODECS, Logged, codec_of
from sidestep.steplog.codecs.buffers import read_statistics, statistics_to_bytes
from sidestep.steplog.format import CRC, BlockHead, DamagedLogError
from sidestep.steplog.header import Header
from sidestep.update import Update

__all__ = ["update_from_bytes", "update_to_bytes"]


def update_to_bytes(update: Update, header: Header, step: int) -> bytes:
    """Return a block's head, the buffers that the update writes, and its payload; the CRC is left out."""
    codec, statistics = codec_of(update), statistics_to_bytes(header, update.statistics)
    payload = codec.encode([codec.kept(update)], header)
    return BlockHead(codec.kind, step, 1, len(statistics), len(payload)).to_bytes() + statistics + payload


def update_from_bytes(data: bytes, header: Header, step: int) -> Logged:
    """Return what `update_to_bytes` made, to the bit; raises DamagedLogError for anything else."""
    size = BlockHead.STRUCT.size
    if len(data) < size:
        raise DamagedLogError(f"a step has {len(data)} bytes, and its head alone {size}")
    head = BlockHead.parse(data[:size], step, len(data) - size + CRC.size)
    if head.steps != 1 or head.kind not in CODECS or len(data) != size + head.statistics + head.payload:
        raise DamagedLogError("a step is none that the log could hold")
    end = size + head.statistics
    try:
        (found,) = CODECS[head.kind].decode(data[end:], 1, step, header)
    except InputError as error:
        raise DamagedLogError(str(error)) from error
    found.statistics.update(read_statistics(header, data[size:end]))
    update: Logged = found
    return update
