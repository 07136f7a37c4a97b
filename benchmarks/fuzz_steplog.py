"""Read a great many damaged step logs: each is refused, or used up to the damage; none crashes, lingers or lies.

    python -m benchmarks.fuzz_steplog [--count 100000] [--seed 0] [--forged 10000]

A small log with blocks of every kind and coding is changed in one of many ways and read. The steps that come out
must be the first steps of the true log, bit for bit, within a second and 100 MB. `--forged` further logs have their
checksums put right after the change: what they say cannot be known to be wrong, but they must be read within the
same limits. Prints how many of each change were refused, used in part and used whole.
"""

import argparse
import collections
import random  # noqa: TID251
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from sidestep.errors import SidestepError
from sidestep.gradients.directions import Directions
from sidestep.probes import DenseProbes
from sidestep.steplog import LogReader
from sidestep.steplog.codecs.seeded import work_of
from sidestep.update import Seeded
from tests.reference.steplog_sample import write_sample

SECONDS, MEGABYTES = 1.0, 100.0
CHEAP = 1 << 20  # operations of a step: up to MOST_WORK is within the limits, but takes minutes
Parts = list[bytes]  # the header and each block
Change = Callable[[Parts, random.Random], bytes]


def parts_of(path: Path) -> Parts:
    """Cut a log into its header and its blocks."""
    data, reader = path.read_bytes(), LogReader(path)
    ends = [len(reader.header.to_bytes()), *(block.end for block in reader.blocks())]
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def flip_bits(parts: Parts, dice: random.Random) -> bytes:
    """Turn over 1 to 8 bits anywhere."""
    data = bytearray(b"".join(parts))
    for _ in range(dice.choice([1, 1, 1, 2, 3, 8])):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


def cut(parts: Parts, dice: random.Random) -> bytes:
    """Leave out the end."""
    data = b"".join(parts)
    return data[: dice.randrange(len(data))]


def insert(parts: Parts, dice: random.Random) -> bytes:
    """Put some bytes in between, or behind."""
    data = b"".join(parts)
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.randbytes(dice.randint(1, 40)) + data[at:]


def remove(parts: Parts, dice: random.Random) -> bytes:
    """Leave out some bytes."""
    data = b"".join(parts)
    at = dice.randrange(len(data))
    return data[:at] + data[at + dice.randint(1, 40) :]


def overwrite(parts: Parts, dice: random.Random) -> bytes:
    """Write zeros, ones or anything over up to 40 bytes."""
    data = b"".join(parts)
    at, size = dice.randrange(len(data)), dice.randint(1, 40)
    return data[:at] + dice.choice([bytes(size), b"\xff" * size, dice.randbytes(size)]) + data[at + size :]


def swap(parts: Parts, dice: random.Random) -> bytes:
    """Exchange two blocks."""
    blocks = parts[1:]
    a, b = dice.sample(range(len(blocks)), 2)
    blocks[a], blocks[b] = blocks[b], blocks[a]
    return b"".join([parts[0], *blocks])


def repeat(parts: Parts, dice: random.Random) -> bytes:
    """Write a block a second time, somewhere."""
    blocks = parts[1:]
    blocks.insert(dice.randrange(len(blocks) + 1), dice.choice(parts[1:]))
    return b"".join([parts[0], *blocks])


def drop(parts: Parts, dice: random.Random) -> bytes:
    """Leave out a block."""
    blocks = parts[1:]
    del blocks[dice.randrange(len(blocks))]
    return b"".join([parts[0], *blocks])


def absurd_frame(parts: Parts, dice: random.Random) -> bytes:
    """Give the header another version or length."""
    values = [0, 1, 2, 0x7FFFFFFF, 0xFFFFFFFF, dice.getrandbits(32), dice.getrandbits(12)]
    at = dice.choice([8, 12])
    return parts[0][:at] + struct.pack("<I", dice.choice(values)) + parts[0][at + 4 :] + b"".join(parts[1:])


def absurd_head(parts: Parts, dice: random.Random) -> bytes:
    """Give a block another kind, first step, number of steps, or length."""
    index = dice.randrange(1, len(parts))
    data = bytearray(parts[index])
    field, at = dice.choice([("I", 4), ("I", 8), ("I", 12), ("I", 16), ("I", 20)])
    top = (1 << 8 * struct.calcsize(field)) - 1
    values = [0, 1, top, top >> 1, dice.randint(0, top), dice.randint(0, min(top, 5000))]
    struct.pack_into("<" + field, data, at, dice.choice(values))
    return b"".join([*parts[:index], bytes(data), *parts[index + 1 :]])


CHANGES: tuple[Change, ...] = (
    flip_bits, cut, insert, remove, overwrite, swap, repeat, drop, absurd_frame, absurd_head,
)  # fmt: skip


def forge(parts: Parts, dice: random.Random) -> bytes:
    """Change a few bytes of a header's frame or of a block, and put all checksums right."""
    index = dice.choice([0, *range(1, len(parts)), *range(1, len(parts))])
    data = bytearray(parts[index][:-4])
    first = 12 if index == 0 else 4
    for _ in range(dice.choice([1, 1, 2, 5])):
        at = dice.randrange(first, len(data))
        data[at] = dice.choice([0, 1, 127, 128, 255, data[at] ^ 1 << dice.randrange(8), dice.getrandbits(8)])
    if index and dice.random() < 0.3:  # other counts need another length
        at = dice.randrange(24, len(data))
        data[at:at] = dice.choice([bytes(1), b"\xff" * 4, dice.randbytes(9)])
        struct.pack_into("<I", data, 20, len(data) - 24 - struct.unpack_from("<I", data, 16)[0] & 0xFFFFFFFF)
    changed, crc = [*parts[:index], bytes(data) + b"0000", *parts[index + 1 :]], 0
    for place, part in enumerate(changed):
        crc = zlib.crc32(part[:-4], crc)
        changed[place] = part[:-4] + struct.pack("<I", crc)
    return b"".join(changed)


def facts(step: int, update: object) -> tuple[object, ...]:
    """What must be equal in two updates, in plain values."""
    statistics = {name: value.numpy().tobytes() for name, value in update.statistics.items()}
    if isinstance(update, Seeded):
        return step, update.coefs.tolist(), update.probes, statistics, update.rate
    return step, update.positions.tolist(), update.moves.tolist(), statistics


def apply(update: Seeded) -> None:
    """Do what applying an update costs."""
    probes = update.probes
    if not isinstance(probes, DenseProbes):
        probes.weighted_sum(update.coefs)
        return
    directions, like = Directions(probes.noise, probes.distribution), torch.zeros(1)
    for name, shape in probes.parameters:
        for index in range(probes.count):
            directions.draw(name, shape, index, like)


def read(path: Path) -> tuple[object, list[tuple[object, ...]], str | None]:
    """Return header, steps and damage of a log."""
    reader = LogReader(path)
    found = list(reader.records())
    for _, update in found[:: max(1, len(found) // 3)]:  # what is read must be cheap to apply, too
        if isinstance(update, Seeded) and work_of(update.probes) < CHEAP:
            apply(update)
    return reader.header, [facts(step, update) for step, update in found], reader.damage


def fuzz(count: int, seed: int, folder: Path, changes: Sequence[Change] = CHANGES) -> dict[str, collections.Counter]:
    """Read `count` changed logs; return, by change, how many were refused, used in part, whole, or failed somehow."""
    path, dice = folder / "log", random.Random(seed)
    write_sample(path)
    parts = parts_of(path)
    header, steps, _ = read(path)
    found = {change.__name__: collections.Counter() for change in changes}
    for index in range(count):
        change = changes[index % len(changes)]
        path.write_bytes(data := change(parts, dice))
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        try:
            seen = read(path)
            if change is forge:
                outcome = "read"
            elif seen[0] != header or seen[1] != steps[: len(seen[1])]:
                outcome = "FAILED: wrong steps"
            elif seen[2] is None and data != b"".join(parts[: 1 + sum(block_ends(parts, data))]):
                outcome = "FAILED: damage not found"
            else:
                outcome = "used whole" if len(seen[1]) == len(steps) else "used in part"
        except SidestepError:
            outcome = "refused"
        except Exception as error:
            outcome = f"FAILED: {type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        if seconds > SECONDS or grown > MEGABYTES:
            outcome = f"FAILED: {seconds:.2f} s, {grown:.0f} MB more"
        slowest["seconds"], slowest["MB"] = max(slowest["seconds"], seconds), max(slowest["MB"], grown)
        found[change.__name__][outcome] += 1
        if outcome.startswith("FAILED") and outcome not in kept:
            kept[outcome] = data
    return found


slowest = {"seconds": 0.0, "MB": 0.0}
kept: dict[str, bytes] = {}  # an example of every failure


def block_ends(parts: Parts, data: bytes) -> list[bool]:
    """Whether each block of the true log stands in `data` where it belongs."""
    at, found = len(parts[0]), []
    for part in parts[1:]:
        found.append(data[at : at + len(part)] == part and all(found))
        at += len(part)
    return found


def main() -> None:
    """Fuzz and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--forged", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started, failures = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        found = fuzz(given.count, given.seed, Path(folder))
        found |= fuzz(given.forged, given.seed, Path(folder), [forge])
    for name, outcomes in found.items():
        print(f"{name:14}", ", ".join(f"{outcome} {times:,}" for outcome, times in sorted(outcomes.items())))
        failures += sum(times for outcome, times in outcomes.items() if outcome.startswith("FAILED"))
    print(f"{given.count:,} damaged and {given.forged:,} forged logs in {time.perf_counter() - started:.0f} s; "
          f"slowest {slowest['seconds']:.3f} s, most memory {slowest['MB']:.1f} MB; {failures} failures")  # fmt: skip
    for outcome, data in kept.items():
        print(outcome, data.hex())
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
