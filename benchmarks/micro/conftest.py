"""One line for every engine: its time, the ratio to the plain reference, and the share of what the machine can do."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from benchmarks.machine import Ratio, Roof, seconds_of
from sidestep.measure import keep_freed_memory


@dataclass(frozen=True)
class Line:
    """What is printed at the end."""

    name: str
    seconds: float
    ratio: Ratio | None
    share: float


LINES: list[Line] = []


@pytest.fixture(scope="session")
def roof() -> Roof:
    """The machine's matrix rate in float32 and its bandwidth, before the first benchmark."""
    keep_freed_memory()
    return Roof.measure()


@pytest.fixture
def versus(benchmark, roof, request):
    """Time an engine by pytest-benchmark, and in pairs against the plain reference.

    `parts`: the reference does that share of the work, and its time is multiplied (1 / parts), for slow references.
    """

    def run(
        engine: Callable[[], object],
        plain: Callable[[], object] | None = None,
        flops: float = 0,
        moved: float = 0,
        parts: float = 1,
        rounds: int = 5,
    ) -> None:
        benchmark.pedantic(engine, rounds=rounds, iterations=1, warmup_rounds=1)
        pairs = [(seconds_of(plain) / parts, seconds_of(engine)) for _ in range(3)] if plain else []
        ratio = Ratio.of(*zip(*pairs, strict=True)) if pairs else None
        median = statistics.median(benchmark.stats.stats.data) if benchmark.stats else seconds_of(engine)
        share = roof.seconds(flops, moved) / median
        name = request.node.name.removeprefix("bench_").replace("_", " ")
        benchmark.extra_info.update(ratio=ratio.median if ratio else None, share_of_roof=share)
        LINES.append(Line(name, median, ratio, share))

    return run


def pytest_terminal_summary(terminalreporter, config):
    """Print the lines."""
    if not LINES:
        return
    write = terminalreporter.write_line
    write("")
    write(f"{'engine':44} {'ms':>9}  {'of the roof':>11}  ratio to the plain reference")
    for line in LINES:
        ratio = "none" if line.ratio is None else str(line.ratio)
        write(f"{line.name:44} {1000 * line.seconds:9.2f}  {line.share:11.1%}  {ratio}")
    write("the roof: the least time for the operations and the bytes, at the rates measured in this run")
