"""Changes to the bytes of a file, as disks, editors, mail and malice make them; drawn by the given dice alone."""

import random  # noqa: TID251
import re
import struct
from collections.abc import Callable

__all__ = ["BINARY", "TEXT", "Change"]

Change = Callable[[bytes, random.Random], bytes]
_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_VALUE = re.compile(rb'(?<=[=:] )("[^"\n]*"|\[[^\]\n]*\]|-?[\d.]+(e-?\d+)?|true|false|null)')
_NUMBERS = (b"0", b"-1", b"1", b"2", b"1e999", b"nan", b"NaN", b"-Infinity", b"inf", b"1e-30", b"0.5", b"4294967296",
            b"9223372036854775808", b"1" * 30, b"9" * 5000, b"1.5", b"007", b"0x1f", b"1_000")  # fmt: skip
_VALUES = (b'"text"', b'""', b"[]", b"[[]]", b"{}", b"true", b"null", b"[1, \"a\"]", b'"\\u0000"', b'"\\ud800"', b"-7",
           b"3.25", b'["a", "a"]', b"{a = 1}", b'{"a": 1}', b"1979-05-27", b"[" * 3000, b'"' + b"x" * 70000 + b'"',
           b'"[/x]\x1b]0;t\x07"')  # fmt: skip


def flip_bits(data: bytes, dice: random.Random) -> bytes:
    """Turn over 1 to 8 bits anywhere."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 1, 2, 8])):
        changed[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def flip_head(data: bytes, dice: random.Random) -> bytes:
    """Give a byte among the first hundred another value."""
    at = dice.randrange(min(100, len(data)))
    return data[:at] + bytes([dice.choice([0, 1, 127, 128, 255, dice.randrange(256)])]) + data[at + 1 :]


def cut(data: bytes, dice: random.Random) -> bytes:
    """Leave out the end, or all."""
    return data[: dice.choice([0, 1, dice.randrange(len(data)), len(data) - 1])]


def insert(data: bytes, dice: random.Random) -> bytes:
    """Put some bytes in between, or behind."""
    at = dice.choice([dice.randrange(len(data) + 1), len(data)])
    return data[:at] + dice.choice([dice.randbytes(dice.randint(1, 40)), bytes(7), b"\n", b"\xef\xbb\xbf"]) + data[at:]


def remove(data: bytes, dice: random.Random) -> bytes:
    """Leave out some bytes."""
    at = dice.randrange(len(data))
    return data[:at] + data[at + dice.randint(1, 40) :]


def overwrite(data: bytes, dice: random.Random) -> bytes:
    """Write zeros, ones or anything over up to 40 bytes."""
    at, size = dice.randrange(len(data)), dice.randint(1, 40)
    return data[:at] + dice.choice([bytes(size), b"\xff" * size, dice.randbytes(size)]) + data[at + size :]


def swap(data: bytes, dice: random.Random) -> bytes:
    """Exchange two stretches of the same length."""
    size = dice.randint(1, max(1, min(64, len(data) // 3)))
    a, b = sorted(dice.randrange(max(1, len(data) - size)) for _ in range(2))
    b = max(b, a + size)
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def absurd_size(data: bytes, dice: random.Random) -> bytes:
    """Write a large number where a length may stand."""
    kind = dice.choice(["<I", ">I", "<Q", ">Q", "<H", ">H"])
    size = struct.calcsize(kind)
    top = (1 << 8 * size) - 1
    at = dice.randrange(min(200, max(1, len(data) - size)))
    value = dice.choice([0, 1, top, top >> 1, dice.randint(0, top), 1 << 8 * size - 4])
    return data[:at] + struct.pack(kind, value) + data[at + size :]


def number(data: bytes, dice: random.Random) -> bytes:
    """Put another number in place of one that is written in digits."""
    found = list(_NUMBER.finditer(data))
    if not found:
        return flip_bits(data, dice)
    place = dice.choice(found)
    return data[: place.start()] + dice.choice([*_NUMBERS, b"%d" % dice.randrange(300)]) + data[place.end() :]


def value(data: bytes, dice: random.Random) -> bytes:
    """Put a value of another type in place of one."""
    found = list(_VALUE.finditer(data))
    if not found:
        return flip_bits(data, dice)
    place = dice.choice(found)
    return data[: place.start()] + dice.choice(_VALUES) + data[place.end() :]


def drop_line(data: bytes, dice: random.Random) -> bytes:
    """Leave out a line."""
    lines = data.splitlines(keepends=True)
    del lines[dice.randrange(len(lines))]
    return b"".join(lines)


def repeat_line(data: bytes, dice: random.Random) -> bytes:
    """Write a line a second time, somewhere."""
    lines = data.splitlines(keepends=True)
    lines.insert(dice.randrange(len(lines) + 1), dice.choice(lines))
    return b"".join(lines)


def rename(data: bytes, dice: random.Random) -> bytes:
    """Misspell a word."""
    found = list(re.finditer(rb"[A-Za-z_]{3,}", data))
    place = dice.choice(found) if found else None
    return data[: place.start()] + b"x" + data[place.start() + 1 :] if place else flip_bits(data, dice)


BINARY: tuple[Change, ...] = (
    flip_bits, flip_bits, flip_head, cut, insert, remove, overwrite, swap, absurd_size, number, rename,
)  # fmt: skip
TEXT: tuple[Change, ...] = (
    flip_bits, cut, insert, remove, overwrite, swap, number, number, value, value, drop_line, repeat_line, rename,
)  # fmt: skip
