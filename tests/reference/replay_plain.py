"""A ternary net rebuilt from its log by plain Python, one number at a time, from docs/step-log.md alone."""

import hashlib
import math
from fractions import Fraction

from tests.reference.philox import words
from tests.reference.steplog_plain import read_log

MASK = 0xFFFFFFFF


class PlainPoint:
    """A point of noise: (seed, stream, substream, step)."""

    def __init__(self, seed, stream=0, substream=0, step=0):
        self.seed, self.stream, self.substream, self.step = seed, stream, substream, step

    def below(self, *names, substream=None):
        stream = self.stream
        for name in names:
            digest = hashlib.blake2s(stream.to_bytes(4, "little") + name.encode(), digest_size=4).digest()
            stream = int.from_bytes(digest, "little")
        return PlainPoint(self.seed, stream, self.substream if substream is None else substream, self.step)

    def word(self, index):
        return words(self.seed, self.stream, self.substream, self.step, 1, index)[0]

    def sign(self, index):
        return 2 * (self.word(index // 32) >> index % 32 & 1) - 1


def start_weights(header):
    """All weights before the first step, of the rule noise-step."""
    point, found, layers = PlainPoint(header["seed"]), [], []
    for name, _, shape in header["parameters"]:
        layer, kind = name.rsplit(".", 1)
        if layer not in layers:
            layers.append(layer)
        own = point.below("build", "trits", kind, substream=layers.index(layer))
        found += [(own.word(index) * 3 >> 32) - 1 for index in range(math.prod(shape))]
    return found


def binomial(trials, density):
    """The least number of successes and the words at which it grows by one."""
    share = Fraction(density)
    if share == 1:
        return trials, []
    yes, no = share.numerator, share.denominator - share.numerator
    mode = min(trials, math.floor((trials + 1) * share))
    masses, value = [1 << 96], 1 << 96
    for n in range(mode, 0, -1):
        value = value * n * no // ((trials - n + 1) * yes)
        if value < 1 << 48:
            break
        masses.insert(0, value)
    least, value = mode - len(masses) + 1, 1 << 96
    for n in range(mode, trials):
        value = value * (trials - n) * yes // ((n + 1) * no)
        if value < 1 << 48:
            break
        masses.append(value)
    return least, [(sum(masses[: index + 1]) << 32) // sum(masses) for index in range(len(masses) - 1)]


def permuted(index, lap, size, point):
    """Where permutation `lap` of 0 .. size - 1 puts `index`."""
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    keys = [point.word(8 * lap + turn) for turn in range(8)]
    while True:
        left, right = index // columns, index % columns
        for turn in range(0, 8, 2):
            left = (left + scattered(right, keys[turn], rows)) % rows
            right = (right + scattered(left, keys[turn + 1], columns)) % columns
        index = left * columns + right
        if index < size:
            return index


def scattered(value, key, size):
    value = ((value ^ key) * 0x9E3779B1) & MASK
    value = (((value ^ value >> 15) + key) * 0x85EBCA77) & MASK
    value = ((value ^ value >> 13) * 0xC2B2AE3D) & MASK
    return (value ^ value >> 16) * size >> 32


def sparse_sum(step, point, weights):
    """The sum of trit times probe, position -> value."""
    count, density = step["count"], step["density"]
    exclusive, each = step["kind"] == 1, max(1, round(density * weights))
    least, thresholds = (each, []) if exclusive else binomial(weights, density)
    total, element = {}, 0
    for probe in range(count):
        size = least
        if thresholds:
            size += sum(limit <= point.below("non-zeros").word(probe) for limit in thresholds)
        for own in range(size):
            whole = weights - weights % each
            lap, index = (element // whole, element % whole) if exclusive else (probe, own)
            if step["trits"][probe]:
                place = permuted(index, lap, weights, point.below("places"))
                total[place] = total.get(place, 0) + step["trits"][probe] * point.below("sign").sign(element)
            element += 1
    return total


def rank_one_sum(step, point):
    total, begin = {}, 0
    for layer, (rows, columns) in enumerate(step["shapes"]):
        left, right = (point.below("rank one", side, substream=layer) for side in ("rows", "columns"))
        for probe, trit in enumerate(step["trits"]):
            a = [left.sign(probe * rows + row) for row in range(rows)] if trit else []
            b = [right.sign(probe * columns + column) for column in range(columns)] if trit else []
            for row, column in ((row, column) for row in range(len(a)) for column in range(len(b))):
                place = begin + row * columns + column
                total[place] = total.get(place, 0) + trit * a[row] * b[column]
        begin += rows * columns
    return total


def moves_of_sets(step, parameters):
    """The moves of the chosen sets, position -> move; of a position that is in several the first one's."""
    found, begin = {}, 0
    for index, ((_, _, shape), numbers) in enumerate(zip(parameters, step["sets"], strict=True)):
        size, members = math.prod(shape), step["members"]
        point = PlainPoint(0, 0, index, step["step"]).below("sets")
        for choice, number in enumerate(numbers):
            for member in range(members):
                drawn = point.word(256 * (choice * members + member) + number) * 2 * size >> 32
                found.setdefault(begin + (drawn >> 1), 2 * (drawn & 1) - 1)
        begin += size
    return found


def default_threshold(step):
    return round(10 * math.sqrt(step["count"] / 2)) if step["kind"] == 2 else 3


def reached(total, evidence, threshold):
    """Add to the evidence, and return and clear what reaches the threshold."""
    most = next(most for most in (127, 32767, 2**31 - 1) if threshold <= most)
    for place, value in total.items():
        evidence[place] = max(-most, min(most, evidence.get(place, 0) + value))
    return {place: evidence.pop(place) for place in total if abs(evidence[place]) >= threshold}


def rebuilt(data):
    """All weights after the last step of a log of noise-step."""
    header, steps = read_log(data)
    weights, rule, evidence = start_weights(header), header["rule"], {}
    accumulators = rule["update"] == "accumulators" or (rule["update"], rule["estimator"]) == ("auto", "rank-one")
    for number, step in enumerate(steps):
        if isinstance(step, list):
            changes = dict(step)
        elif "sets" in step:
            changes = moves_of_sets(step, header["parameters"])
        else:
            point = PlainPoint(header["seed"], step["stream"], 0, number)
            total = rank_one_sum(step, point) if step["kind"] == 2 else sparse_sum(step, point, len(weights))
            if accumulators:
                total = reached(total, evidence, rule["threshold"] or default_threshold(step))
            changes = {place: -max(-1, min(1, value)) for place, value in total.items()}
        for place, change in changes.items():
            weights[place] = max(-1, min(1, weights[place] + change))
    return weights
