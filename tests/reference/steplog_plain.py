"""A step log read by plain Python, one symbol at a time, from docs/step-log.md alone."""

import json
import math
import struct
import zlib

ONE = 1 << 24
WIDTHS = {"float32": 4, "float64": 8, "int64": 8}  # of the buffers in the tests


class PlainAns:
    """Asymmetric numeral systems with a 64-bit state and 32-bit words, read from the last word on."""

    def __init__(self, data):
        self.words = list(struct.unpack(f"<{len(data) // 4}I", data))
        self.state = 0
        for _ in range(2):
            self._refill()

    def _refill(self):
        if self.words:
            self.state = self.state << 32 | self.words.pop()

    def get(self, table):
        quantile, left, symbol = self.state % ONE, 0, 0
        while quantile >= left + table[symbol]:
            left += table[symbol]
            symbol += 1
        self.state = (self.state >> 24) * table[symbol] + quantile - left
        if self.state < 1 << 32:
            self._refill()
        return symbol

    @property
    def empty(self):
        return not self.words and self.state == 0


class Bytes:
    """Bytes that are taken from the front."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        self.at += size
        return self.data[self.at - size : self.at]

    def unpack(self, form):
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def number(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def rest(self):
        return self.data[self.at :]


def shares(counts):
    """Frequencies of sum 2^24 in proportion to counts."""
    found = [1 + (ONE - len(counts)) * count // sum(counts) for count in counts]
    found[found.index(max(found))] += ONE - sum(found)
    return found


def read_log(data, buffers=None):
    """Return the header and, per step, {trits or reals, stream, ...}, {sets, members, ...} or [(position, move), ...].

    Puts the bytes of buffers into `buffers`.
    """
    source = Bytes(data)
    magic, version, length = source.unpack("8sII")
    assert (magic, version) == (b"\x8eSTEPLOG", 1)
    header = json.loads(source.take(length))
    crc = zlib.crc32(data[: source.at])
    assert source.unpack("I") == (crc,)
    weights = 0
    for _, _, shape in header["parameters"]:
        weights += math.prod(shape)
    steps = []
    while source.rest():
        begin = source.at
        magic, kind, first, count, statistics, payload = source.unpack("4sIIIII")
        assert (magic, first) == (b"STEP", len(steps))
        values = Bytes(source.take(statistics))
        while values.rest():
            name, dtype, shape = header["buffers"][values.number()]
            found = values.take(math.prod(shape) * WIDTHS[dtype])
            if buffers is not None:
                buffers[name] = found
        body = source.take(payload)
        crc = zlib.crc32(data[begin : source.at], crc)
        assert source.unpack("I") == (crc,)
        if kind == 3:
            steps += read_reals(Bytes(body), len(steps))
        elif kind == 4:
            steps += read_sets(Bytes(body), count, len(header["parameters"]))
        else:
            steps += read_trits(Bytes(body)) if kind == 1 else read_flips(Bytes(body), count, weights)
    return header, steps


def read_trits(source):
    runs = []
    for _ in range(source.number()):
        run = {"steps": source.number()}
        kind, run["stream"] = source.unpack("BI")
        run["kind"] = kind
        run["count"] = source.number()
        if kind < 2:
            (run["density"],) = source.unpack("d")
        else:
            run["shapes"] = [(source.number(), source.number()) for _ in range(source.number())]
        run["coding"], run["first"], run["plus"] = source.take(1)[0], source.number(), source.number()
        runs.append(run)
    ans, steps = PlainAns(source.rest()), []
    for run in runs:
        rows = read_run(ans, run)
        steps += [{**run, "trits": row} for row in rows]
    assert ans.empty
    return steps


def read_reals(source, first=0):
    runs = []
    for _ in range(source.number()):
        run = {"steps": source.number()}
        run["kind"], run["stream"] = source.unpack("BI")
        run["count"], each = source.number(), source.take(1)[0]
        if each == 2:
            decay, start = source.unpack("B")[0], source.unpack("d")[0]
            whole, rising = source.number(), source.number()
            rates = [start * factor(decay, first + step, whole, rising) for step in range(run["steps"])]
            runs.append((run, rates))
            first += run["steps"]
            continue
        first += run["steps"]
        rates = source.unpack("d" * (run["steps"] if each else 1))
        runs.append((run, rates if each else rates * run["steps"]))
    steps = []
    for run, rates in runs:
        for rate in rates:
            steps.append({**run, "rate": rate, "reals": list(source.unpack("f" * run["count"]))})
    assert not source.rest()
    return steps


def factor(decay, step, steps, rising):
    """To rounding: the package has it to the bit."""
    if step < rising:
        return (step + 1) / (rising + 1)
    done = (step - rising) / max(1, steps - rising)
    return (1.0, (1 + math.cos(math.pi * done)) / 2, 1 - done)[decay]


def read_run(ans, run):
    steps, count, first, plus = (run[name] for name in ("steps", "count", "first", "plus"))
    if run["coding"] == 0:
        table = shares([first, steps * count - first - plus, plus])
        return [[ans.get(table) - 1 for _ in range(count)] for _ in range(steps)]
    rows, left = [[0] * count for _ in range(steps)], [first] * steps
    for column in range(count):
        for step in range(steps):
            chance = min(max(left[step] * ONE // (count - column), 1), ONE - 1)
            rows[step][column] = ans.get([ONE - chance, chance])
            left[step] -= rows[step][column]
    if first:
        table = shares([steps * first - plus, plus])
        rows = [[trit and ans.get(table) * 2 - 1 for trit in row] for row in rows]
    return rows


def read_sets(source, steps, parameters):
    heads, found, expected = Bytes(zlib.decompress(source.take(source.number()))), [], 0
    for _ in range(steps):
        members, step = heads.number(), (expected + heads.number()) % (1 << 32)
        found.append({"members": members, "step": step, "counts": [heads.number() for _ in range(parameters)]})
        expected = step + 1
    assert not heads.rest()
    for step in found:
        step["sets"] = [list(source.take(count)) for count in step["counts"]]
    assert not source.rest()
    return found


def read_flips(source, steps, weights):
    counts = [source.number() for _ in range(steps)]
    ans = PlainAns(source.take(4 * source.number()))
    bits = int.from_bytes(source.rest(), "little")
    found = []
    for count in counts:
        low = max(0, (weights // count).bit_length() - 4) if count else 0
        quotients = read_quotients(ans, count, low, weights)
        position, places = -1, []
        for quotient in quotients:
            position += (quotient << low) + bits % (1 << low) + 1
            bits >>= low
            places.append(position)
        moves = [(bits >> index & 1) * 2 - 1 for index in range(count)]
        bits >>= count
        found.append(list(zip(places, moves, strict=True)))
    assert ans.empty
    assert bits == 0
    return found


def read_quotients(ans, count, low, weights):
    if not count:
        return []
    one = 1 << 48
    ratio = (weights - count) * one // weights
    for _ in range(low):
        ratio = ratio * ratio // one
    masses = [one]
    for _ in range(254):
        masses.append(masses[-1] * ratio // one)
    last = masses[-1] * ratio // one
    table = shares([*masses, last * one // (one - ratio)])
    found, going = [0] * count, list(range(count))
    while going:
        symbols = [ans.get(table) for _ in going]
        for index, symbol in zip(going, symbols, strict=True):
            found[index] += symbol
        going = [index for index, symbol in zip(going, symbols, strict=True) if symbol == 255]
    return found
