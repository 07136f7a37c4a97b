"""Reading a step log: block by block, each checked before it is used; damage ends the reading, not what came before."""

import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from sidestep.errors import CheckpointError
from sidestep.steplog.codecs import CODECS, Counts, Logged
from sidestep.steplog.codecs.buffers import read_statistics
from sidestep.steplog.format import (
    ATTACHED,
    CRC,
    FLIPS,
    FORMAT,
    FRAME,
    MAGIC,
    MOST_HEADER,
    MOST_PAYLOAD,
    MOST_STATISTICS,
    MOST_STEPS,
    NOISE,
    SETS,
    BlockHead,
    CutLogError,
    DamagedLogError,
)
from sidestep.steplog.header import Header

__all__ = ["Block", "LogReader", "Scan", "place_of"]


@dataclass(frozen=True)
class Block:
    """One block whose CRC was right; its payload is not decoded yet."""

    head: BlockHead
    statistics: dict[str, Tensor]  # buffers at its end, if updates in it wrote any
    payload: bytes
    end: int  # where the next block begins in the file
    crc: int


@dataclass(frozen=True)
class Scan:
    """What a whole log holds, up to the first damage."""

    steps: int
    size: int  # bytes up to the end of the last good block
    file_size: int
    crc: int
    blocks: int
    steps_of: dict[int, int]  # kind of blocks -> their steps
    damage: str | None
    cut: bool  # the damage is that the file ends within a block: what a kill leaves

    @property
    def flips(self) -> int:
        """In how many steps single weights were flipped."""
        return self.steps_of.get(FLIPS, 0) + self.steps_of.get(SETS, 0)


class LogReader:
    """A step log that was opened: its header, and its blocks as often as they are asked for.

    Raises:
        CheckpointError: if there is no such file, if it is no step log, of a newer format, of another kind of noise,
            or if its header is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):
                raise CheckpointError(f"{path} is no file, hence no step log")
            self._size = facts.st_size
            with path.open("rb") as file:
                self.header = self._read_header(file)
                self._begin = file.tell()
        except FileNotFoundError as error:
            raise CheckpointError(
                f"there is no step log {path}: runs of rules that log their steps have one"
            ) from error
        except OSError as error:
            raise CheckpointError(f"cannot read the step log {path}: {error.strerror}") from error
        self.damage: str | None = None  # set when blocks() or records() met some
        self._cut = False

    def _read_header(self, file: BinaryIO) -> Header:
        frame = file.read(FRAME.size)
        if len(frame) < FRAME.size or FRAME.unpack(frame)[0] != MAGIC:
            raise CheckpointError(f"{self.path} ({self._size} bytes) is not a step log, or its first bytes are damaged")
        _, version, length = FRAME.unpack(frame)
        if not version:
            raise CheckpointError(f"{self.path} has step-log format 0, which there never was: its beginning is damaged")
        if version > FORMAT:
            raise CheckpointError(
                f"{self.path} has step-log format {version}, this Sidestep reads up to {FORMAT}: upgrade sidestep"
            )
        left = self._size - FRAME.size - CRC.size
        if length > min(MOST_HEADER, left):
            raise CheckpointError(
                f"{self.path} says that its header has {length:,} bytes; {max(0, left):,} are there, and "
                f"{MOST_HEADER:,} are allowed: it is cut or damaged, use a copy"
            )
        text, crc = file.read(length), file.read(CRC.size)
        self._crc = zlib.crc32(frame + text)
        if crc != CRC.pack(self._crc):
            raise CheckpointError(f"the header of {self.path} is damaged, so nothing can be replayed: use a copy")
        header = Header.parse(text)
        if header.attached != (version == ATTACHED):
            raise DamagedLogError(f"the header of {self.path} is of another format than it says: use a copy")
        if header.noise != NOISE:
            raise CheckpointError(
                f"{self.path} was made with the noise {header.noise!r}, this Sidestep draws {NOISE!r}: its probes "
                "cannot be made again; use the version that wrote it"
            )
        return header

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks up to the end or to the first damage, which `damage` then describes."""
        self.damage, self._cut = None, False
        step, crc = 0, self._crc
        with self.path.open("rb") as file:
            file.seek(self._begin)
            while True:
                at = file.tell()
                try:
                    block = self._read_block(file, step, crc)
                except DamagedLogError as damage:
                    self.damage = f"{damage} (byte {at:,} of {self._size:,}, after {step:,} steps)"
                    self._cut = isinstance(damage, CutLogError) and not self._goes_on(file, at, step)
                    return
                if block is None:
                    return
                step, crc = step + block.head.steps, block.crc
                yield block

    def _read_block(self, file: BinaryIO, step: int, crc: int) -> Block | None:
        data = file.read(BlockHead.STRUCT.size)
        if not data:
            return None
        if len(data) < BlockHead.STRUCT.size:
            raise CutLogError("the last block is cut")
        head = BlockHead.parse(data, step, self._size - file.tell())
        statistics, payload, stored = file.read(head.statistics), file.read(head.payload), file.read(CRC.size)
        found = zlib.crc32(payload, zlib.crc32(statistics, zlib.crc32(data, crc)))
        if stored != CRC.pack(found):
            raise DamagedLogError(
                "a block does not match its checksum: bytes changed, or blocks are missing or out of order"
            )
        if head.kind not in CODECS:
            raise DamagedLogError(f"a block holds records of kind {head.kind}, which this Sidestep does not know")
        return Block(head, read_statistics(self.header, statistics), payload, file.tell(), found)

    def records(self, last: int | None = None) -> Iterator[tuple[int, Logged]]:
        """Yield every step and its update, up to step `last` - 1, the end, or the first damage.

        A block's statistics come with its last step. Blocks behind step `last` are not looked at.
        """
        self.damage = None
        for block in self.blocks() if last != 0 else ():
            try:
                updates = self._decode(block)
            except DamagedLogError as damage:
                self.damage = f"{damage} (in the block that ends at byte {block.end:,})"
                return
            for step, update in enumerate(updates, block.head.first):
                if last is not None and step >= last:
                    return
                yield step, update
            if last is not None and block.head.first + block.head.steps >= last:
                return

    def counts(self) -> tuple[int, Counts]:
        """Return how many steps the log holds, up to the first damage, and what their updates come to."""
        self.damage, steps, total = None, 0, Counts()
        for block in self.blocks():
            head = block.head
            try:
                total += CODECS[head.kind].counts_of(block.payload, head.steps, head.first, self.header)
            except DamagedLogError as damage:
                self.damage = f"{damage} (in the block that ends at byte {block.end:,})"
                break
            steps = head.first + head.steps
        return steps, total

    def buffers_around(self, step: int) -> tuple[int, int]:
        """Return the nearest steps, up to `step` and from it on, of which the log has the buffers.

        Both are `step` if it has those. They stand at the ends of blocks; a block whose steps wrote none leaves them
        as they were.
        """
        for block in self.blocks():
            first, end = block.head.first, block.head.first + block.head.steps
            if step < end:
                return (first, end) if block.statistics and first < step else (step, step)
        return step, step

    def _goes_on(self, file: BinaryIO, at: int, step: int) -> bool:
        """Whether a later block begins behind a block that seems cut: then its length was changed, and nothing cut."""
        file.seek(at + 1)
        if self._size - at > MOST_PAYLOAD + MOST_STATISTICS + (1 << 10):
            return True
        rest, size = file.read(), BlockHead.STRUCT.size
        place = rest.find(BlockHead.MAGIC)
        while place >= 0 and place + size <= len(rest):
            _, kind, first, steps, *lengths = BlockHead.STRUCT.unpack_from(rest, place)
            placed = step < first <= step + MOST_STEPS and 1 <= steps <= MOST_STEPS
            if placed and kind in CODECS and sum(lengths) <= MOST_PAYLOAD + MOST_STATISTICS:
                return True
            place = rest.find(BlockHead.MAGIC, place + 1)
        return False

    def _decode(self, block: Block) -> Sequence[Logged]:
        head = block.head
        found: Sequence[Logged] = CODECS[head.kind].decode(block.payload, head.steps, head.first, self.header)
        found[-1].statistics.update(block.statistics)
        return found

    def scan(self, last: int | None = None) -> Scan:
        """Check every block, or those below step `last`, without decoding it, and return what the log holds."""
        steps, size, crc, self.damage, self._cut = 0, self._begin, self._crc, None, False
        blocks = 0
        steps_of: dict[int, int] = {}
        for block in self.blocks() if last != 0 else ():
            kind = block.head.kind
            blocks += 1
            steps_of[kind] = steps_of.get(kind, 0) + block.head.steps
            steps, size, crc = steps + block.head.steps, block.end, block.crc
            if last is not None and steps >= last:
                break
        return Scan(steps, size, self._size, crc, blocks, steps_of, self.damage, self._cut)


def place_of(path: Path, record: Mapping[str, Any], state: str, instead: str) -> tuple[Header, int, int, int]:
    """Return a log's header, and the size, CRC and step up to which a saved state counts on it.

    Args:
        path: of the log.
        record: of the state, with what `LogWriter.commit` said.
        state: what it is called, for errors, which end in what to do `instead`.

    Raises:
        CheckpointError: if the log is damaged before that place, or is another one.
    """
    step, size, crc = int(record["step"]), int(record["steplog_bytes"]), int(record["steplog_crc"])
    reader = LogReader(path)
    scan = reader.scan(last=step)
    if (scan.steps, scan.size, scan.crc) != (step, size, crc):
        raise CheckpointError(
            f"the {state} of step {step} counts on {size:,} bytes of {path}, which are not as they were "
            f"({scan.damage or f'{scan.steps:,} steps end at byte {scan.size:,}'}); bring the file back, or {instead}"
        )
    return reader.header, size, crc, step
