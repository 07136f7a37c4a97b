"""Which ways to train fit into a budget of memory, and how fast they are: predicted, and then measured."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from sidestep.bench.memory.step_cost import Cost, Work, in_fresh_process, step_cost
from sidestep.bench.report import Table
from sidestep.errors import InputError
from sidestep.measure import free_memory_bytes
from sidestep.training import Compute
from sidestep.training.unit_modes import unsupported_reason

__all__ = [
    "Line",
    "Row",
    "Way",
    "fit_memory",
    "fit_record",
    "fit_table",
    "parse_bytes",
    "readable_bytes",
    "small_batches",
    "verdict",
]

_UNITS = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SAME = 1.05  # of two times that differ by less, the one that takes less memory is the better


@dataclass(frozen=True)
class Way:
    """A way to train: a rule, how its units run, and whether it is what was asked for or stands beside it."""

    label: str
    work: Work
    own: bool = True
    micro: int = 1  # batches that a batch is cut into
    like: str | None = None  # label of the way that it is predicted from, as that with a smaller batch
    unsupported_reason: str | None = None  # it is not there


class Line(NamedTuple):
    """Bytes and seconds of a step as straight lines over the batch: `fixed + slope x batch`."""

    bytes: tuple[float, float]
    seconds: tuple[float, float]
    gradients: int = 0  # bytes of those of all weights

    @classmethod
    def through(cls, small: int, first: Cost, large: int, second: Cost) -> "Line":
        """Return the lines through what two batch sizes cost."""

        def line(low: float, high: float) -> tuple[float, float]:
            slope = max(0.0, (high - low) / (large - small))  # more images never take less
            return high - slope * large, slope

        lines = line(first.bytes, second.bytes), line(first.seconds, second.seconds)
        return cls(*lines, max(first.gradients, second.gradients))

    def at(self, batch: int, micro: int = 1) -> Cost:
        """Return what a batch costs that is cut into `micro` batches, which take their turns.

        Cut, the sum of the gradients stands beside those of the micro-batch under way.

        >>> Line((100.0, 2.0), (0.5, 0.01), 20).at(64, micro=4)
        Cost(bytes=152, seconds=2.64, gradients=20)
        """
        memory = self.bytes[0] + self.bytes[1] * batch / micro + (self.gradients if micro > 1 else 0)
        return Cost(round(memory), micro * self.seconds[0] + self.seconds[1] * batch, self.gradients)


@dataclass(frozen=True)
class Row:
    """What is known of a way."""

    label: str
    own: bool
    predicted: Cost | None = None
    measured: Cost | None = None
    why: str | None = None  # it cannot run, or was not measured

    @property
    def error(self) -> float | None:
        """The relative error of the predicted memory."""
        if self.predicted is None or self.measured is None or not self.measured.bytes:
            return None
        return self.predicted.bytes / self.measured.bytes - 1

    def fits(self, budget: int) -> bool:
        """Whether the measured memory is within the budget."""
        return _fits(self.measured, budget)


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as 512MiB, 2GB or 1.5 GiB stands for.

    Raises:
        InputError: for another form, or nothing.

    >>> parse_bytes("512MiB"), parse_bytes("2GB"), parse_bytes("1.5 gib")
    (536870912, 2000000000, 1610612736)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?i?b)\s*", text.lower())
    size = round(float(found[1]) * _UNITS.get(found[2], 0)) if found and len(text) < 40 else 0
    if size < 1:
        raise InputError(f"a budget is a number above 0 with a unit, such as 512MiB, 2GB or 1.5GiB, got {text!r}")
    return size


def readable_bytes(size: float) -> str:
    """Return bytes as MiB, or as GiB from 10 of these on.

    >>> readable_bytes(3 << 20), readable_bytes(12.3 * 2**30)
    ('3 MiB', '12.3 GiB')
    """
    return f"{size / 2**20:,.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:,.1f} GiB"


def small_batches(batch: int) -> tuple[int, int]:
    """Return the two batch sizes that a prediction is made from: an eighth and a quarter.

    Raises:
        InputError: for a batch that has no two such.
    """
    if batch < 16:
        raise InputError(
            f"batch must be 16 or more, so that an eighth and a quarter can be measured first, got {batch}"
        )
    return batch // 8, batch // 4


def fit_memory(ways: Sequence[Way], budget: int, report: Callable[[str], None], steps: int = 2) -> list[Row]:
    """Return what each way costs, predicted and measured, each measurement in a process of its own.

    Of ways that differ in `micro` alone, those that are predicted to fit are measured until one does, or else the last.

    Args:
        ways: what could be done.
        budget: bytes.
        report: called with a line before each measurement.
        steps: of a measurement, after a first one.
    """
    rows: list[Row] = []
    lines: dict[str, Line] = {}
    for way in ways:
        work = way.work
        reason = way.unsupported_reason or unsupported_reason(
            work.rule, work.units, Compute.find(work.device, work.precision).device
        )
        if reason:
            rows.append(Row(way.label, way.own, why=reason))
            continue
        if way.like is None:
            found = _predicted(way, report)
            if isinstance(found, str):
                rows.append(Row(way.label, way.own, why=found))
                continue
            lines[way.label] = found
        line = lines.get(way.like or way.label)
        if line is None:
            rows.append(Row(way.label, way.own, why=f"not measured: {way.like} could not be"))
            continue
        rows.append(Row(way.label, way.own, line.at(work.batch, way.micro)))
    for group in _groups(ways, rows):
        fitting = [at for at in group if _fits(rows[at].predicted, budget)]
        for at in fitting or group[-1:]:
            rows[at] = _measured(ways[at], rows[at], report, steps)
            if rows[at].fits(budget):
                break
    return rows


def _predicted(way: Way, report: Callable[[str], None]) -> Line | str:
    small, large = small_batches(way.work.batch)
    costs = []
    for batch in (small, large):
        report(f"{way.label}: batch {batch}")
        cost, failed = in_fresh_process(step_cost, replace(way.work, batch=batch), 1)
        if cost is None:
            return f"failed with a batch of {batch}: {failed}"
        costs.append(cost)
    return Line.through(small, costs[0], large, costs[1])


def _groups(ways: Sequence[Way], rows: Sequence[Row]) -> list[list[int]]:
    """Return the places of the ways that have a prediction: those that are cut from the same one together."""
    groups: dict[str, list[int]] = {}
    for at, (way, row) in enumerate(zip(ways, rows, strict=True)):
        if row.predicted is not None:
            groups.setdefault(way.label if way.like is None else f"{way.like}, cut", []).append(at)
    return list(groups.values())


def _fits(cost: Cost | None, budget: int) -> bool:
    return cost is not None and cost.bytes <= budget


def _measured(way: Way, row: Row, report: Callable[[str], None], steps: int) -> Row:
    free = free_memory_bytes(way.work.device)
    # of the other modes predictions are rougher, and a quarter of the batch did fit
    together = way.work.units == "together"
    if together and row.predicted and free is not None and row.predicted.bytes > free:
        return replace(row, why=f"not measured: only {readable_bytes(free)} are free")
    report(f"{way.label}: batch {way.work.batch}")
    cost, failed = in_fresh_process(step_cost, way.work, steps)
    return replace(row, measured=cost, why=failed)


class _Done(NamedTuple):
    """A way that was measured."""

    label: str
    own: bool
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.label} ({readable_bytes(self.bytes)}, {self.seconds:.3g} s a step)"


def verdict(rows: Sequence[Row], budget: int) -> str:
    """Return in a sentence what fits, and what is the better choice."""
    done = [_Done(row.label, row.own, row.measured.bytes, row.measured.seconds) for row in rows if row.measured]
    if not done:
        return "Nothing could be measured."
    fitting = [way for way in done if way.bytes <= budget]
    if not fitting:
        return f"Nothing fits into {readable_bytes(budget)}. The least that would: {min(done, key=_bytes)}."
    best = _best(fitting)
    others = [way for way in fitting if way.own != best.own]
    if not others:
        least = min((way for way in done if way.own != best.own), key=_bytes, default=None)
        if least is None:
            other = "back-propagation" if best.own else "the rule itself"
            return f"{best} is the best that fits. There is nothing to compare it with: {other} was not measured."
        kind = "the rule's own ways" if not best.own else "those of back-propagation"
        return f"{best} is the better choice: of {kind} none fits, the least is {least}."
    rest = _best(others)
    pace = rest.seconds / best.seconds
    said = f"a step is {pace:.2f} times as fast" if pace > _SAME else "a step is about as fast"
    less = "less" if best.bytes < rest.bytes else "more"
    return f"{best} is the better choice: it fits, {said} as that of {rest}, and it takes {less} memory."


def _best(done: Sequence[_Done]) -> _Done:
    """The fastest; of those that are about as fast, the one that takes the least memory."""
    quickest = min(way.seconds for way in done)
    return min((way for way in done if way.seconds <= _SAME * quickest), key=_bytes)


def _bytes(way: _Done) -> int:
    return way.bytes


def fit_table(rows: Sequence[Row], budget: int) -> Table:
    """Return the table of all ways, and what is wrong with those that have no numbers."""
    columns = ["", "fits", "memory", "predicted", "error", "s a step", "predicted"]
    lines = []
    for row in rows:
        memory, expected = row.measured, row.predicted
        lines.append(
            [
                row.label,
                "-" if memory is None else "yes" if row.fits(budget) else "no",
                "-" if memory is None else readable_bytes(memory.bytes),
                "-" if expected is None else readable_bytes(expected.bytes),
                "-" if row.error is None else f"{row.error:+.1%}",
                "-" if memory is None else f"{memory.seconds:.3g}",
                "-" if expected is None else f"{expected.seconds:.3g}",
            ]
        )
    return Table(f"budget: {readable_bytes(budget)}", columns, lines)


def fit_record(rows: Sequence[Row], budget: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that was found as plain values."""
    found = [{**asdict(row), "error": row.error, "fits": row.fits(budget)} for row in rows]
    for row in found:
        for key in ("predicted", "measured"):
            row[key] = row[key] and row[key]._asdict()
    return {**asked, "budget": budget, "ways": found, "verdict": verdict(rows, budget)}
