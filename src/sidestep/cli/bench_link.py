"""`sidestep bench --link 1Mbit,50ms`: what a step of several ranks takes over a thin link, beside an all_reduce."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sidestep.bench.comparison.entries import BASELINE_KIND, Entry
from sidestep.bench.comparison.rounds import Comparison, check_race
from sidestep.bench.comparison.same_net import with_baselines
from sidestep.bench.link.network import check_possible
from sidestep.bench.link.rate import Link, parse_link
from sidestep.bench.link.step_times import measure_link, measure_steps
from sidestep.bench.process import FAILED
from sidestep.cli.options import all_words
from sidestep.cli.output import fail, show, show_json, show_line, show_table
from sidestep.errors import InputError
from sidestep.training import Stopped
from sidestep.training.stopping import StopRequest, stop_on_signals

__all__ = ["LinkRun", "read_link"]

_MOST_RANKS, _SECONDS = 16, 10.0
_NOT_HERE = {"epochs", "forward_passes", "to", "every", "retry", "overwrite", "out", "seeds"}
_COLUMNS = ("entry", "ranks", "seconds a step", "of which computing", "bytes sent a step and rank", "times sooner")
_ABOUT = (
    "Seconds: the median step of the slowest rank, one thread each. Bytes: of its device, with the headers of IP and "
    "TCP. Times sooner: than a step of back-propagation on the same net, whose float32 gradients all ranks sum up, as "
    "in data-parallel training.",
    "All ranks compute on this machine: with more ranks than idle cores, computing takes longer than on machines of "
    "their own.",
)


@dataclass(frozen=True)
class LinkRun:
    """What is measured over which link."""

    race: Comparison
    link: Link
    ranks: tuple[int, ...]
    seconds: float
    steps: int | None
    json: bool

    def __call__(self, command: str) -> None:
        """Measure, and print a table for each data set."""
        check_possible()
        check_race(self.race)
        rows: list[dict[str, Any]] = []
        with stop_on_signals() as stop:
            try:
                found = measure_link(self.link, stop)
                if FAILED in found:
                    raise InputError(found[FAILED]["why"])
                rows += self._rows(stop)
            except Stopped as error:
                fail("stopped, and nothing is kept: run it again", 128 + error.signal_number)
        if self.json:
            link = {"bits": self.link.bits, "round_trip": self.link.round_trip, "measured": found}
            show_json({"command": command, "link": link, "rows": rows})
            return
        measured = f"measured here: {found['bits'] / 1e6:.3g} Mbit/s, {1000 * found['round_trip']:.0f} ms"
        for data in self.race.data:
            title = f"{data}, batch {rows[0]['batch']}, {self.link} round trip ({measured})"
            show_table(title, _COLUMNS, [_cells(row) for row in rows if row["data"] == data])
            for row in rows:
                if FAILED in row and row["data"] == data:
                    show(f"{row['entry']}, {row['ranks']} ranks: {_why(row)}")
            show("")
        show(*_ABOUT)

    def _rows(self, stop: StopRequest) -> Iterator[dict[str, Any]]:
        race, of = with_baselines(self.race)
        there = {entry.label: entry for entry in (*race.entries, *race.baselines)}
        for data in race.data:
            for ranks in self.ranks:
                reduced: dict[str, dict[str, Any]] = {}
                for entry in race.entries:
                    base = there[of[entry.label]]
                    if base.label not in reduced:
                        reduced[base.label] = self._row(_reduced(base), data, ranks, stop)
                        yield reduced[base.label]
                    row = self._row(entry, data, ranks, stop)
                    if row.get("seconds") and reduced[base.label].get("seconds"):
                        row["times_sooner"] = reduced[base.label]["seconds"] / row["seconds"]
                    yield row

    def _row(self, entry: Entry, data: str, ranks: int, stop: StopRequest) -> dict[str, Any]:
        plan = self.race.plan(entry, data, self.race.seed)
        found = measure_steps(self.link, plan, ranks, self.seconds, self.steps, stop)
        row = {"entry": entry.label, "data": data, "ranks": ranks, "batch": entry.training(self.race.common).batch}
        said = _why(found) if FAILED in found else f"{found['seconds']:.3f} s a step"
        show_line(f"{entry.label} on {data}, {ranks} ranks: {said}")
        return {**row, **found}


def read_link(run: Any, race: Comparison, defaults: Any) -> LinkRun:
    """Return what the options ask for.

    Args:
        run: the options of `sidestep bench`.
        race: the entries and data that they name.
        defaults: the same options where nothing is given.

    Raises:
        InputError: for a link, or numbers of ranks, that there are not, or options that mean nothing here.
    """
    link = parse_link(run.link)
    for name in sorted(_NOT_HERE):
        if getattr(run, name) != getattr(defaults, name):
            raise InputError(
                f"--link times a few steps of every entry, and keeps nothing: leave --{name.replace('_', '-')} out; "
                "--steps and --seconds say how many"
            )
    if run.device not in ("auto", "cpu"):
        raise InputError(f"--link times steps on the processor, so that ranks need no GPU each: leave --device out, "
                         f"got {run.device}")  # fmt: skip
    ranks = tuple(dict.fromkeys(_number(word) for text in all_words(run.ranks) or ("2",) for word in text.split(",")))
    return LinkRun(
        dataclasses.replace(race, device="cpu", seeds=1), link, ranks, run.seconds or _SECONDS, run.steps, run.json
    )


def _number(word: str) -> int:
    if not word.isdecimal() or not 2 <= int(word) <= _MOST_RANKS:
        raise InputError(f"--ranks takes numbers from 2 to {_MOST_RANKS}, with commas between them, got {word!r}")
    return int(word)


def _reduced(base: Entry) -> Entry:
    label = base.label if base.same_net else f"{BASELINE_KIND} on the net of {base.label}"
    return dataclasses.replace(base, label=f"{label}, by all_reduce", same_net=True)


def _cells(row: dict[str, Any]) -> list[str]:
    if FAILED in row:
        return [row["entry"], str(row["ranks"]), "failed", "", "", ""]
    ratio = f"{row['times_sooner']:.1f}" if "times_sooner" in row else ""
    computing = f"{row['compute_seconds']:.3f}"
    return [row["entry"], str(row["ranks"]), f"{row['seconds']:.3f}", computing, f"{row['bytes']:,.0f}", ratio]


def _why(row: dict[str, Any]) -> str:
    """Return why it failed: of what Sidestep has refused without the kind of the error."""
    kind, why = row[FAILED]["kind"], row[FAILED]["why"]
    return str(why).removeprefix("InputError: ") if kind == "refused" else str(why)
