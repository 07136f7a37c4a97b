"""Charts as SVG for pages of HTML: lines and points over one or two stretched axes, light or dark, at any width."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidestep.wording import html_text

__all__ = ["LINEAR", "LOG", "LOGIT", "STYLE", "Line", "Scale", "chart"]

STYLE = """
:root { color-scheme: light dark; --ink: #1d2327; --soft: #59636b; --paper: #fff; --line: #d8dde2; --panel: #f3f5f7;
        --mark: #fff6e0; --first: #0072b2; --second: #b45f06;
        --c0: #0072b2; --c1: #d55e00; --c2: #00795a; --c3: #b04f8f; --c4: #9a6a00; --c5: #2f7fb0; --c6: #7a5195;
        --c7: #8c564b; --c8: #6b6b10 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a9b2ba; --paper: #15191c; --line: #3a4249;
        --panel: #20262b; --mark: #3a3116; --first: #56b4e9; --second: #f0a04b;
        --c0: #56b4e9; --c1: #f58a4b; --c2: #3cc79b; --c3: #e59ac6; --c4: #e6b04a; --c5: #9ad1f5; --c6: #b99ae0;
        --c7: #d3a095; --c8: #cfcf6a } }
figure { background: var(--panel); border-radius: 8px; padding: .8rem; margin: 1rem 0; box-sizing: border-box }
figcaption { font-weight: 600; margin-bottom: .4rem }
svg { display: block; width: 100%; height: auto; max-width: 34rem }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink) } svg .soft { fill: var(--soft) }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: 13px; line-height: 1.5 }
.legend span { display: inline-flex; align-items: center; gap: .3rem; min-width: 0; overflow-wrap: anywhere }
.legend svg { width: 16px; height: 12px; flex: none }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0 }
.charts > figure { flex: 1 1 21rem; min-width: 0; margin: 0 }
"""
_WIDTH, _HEIGHT = 340, 240  # units, of which one is a pixel on a screen of 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 332, 10, 196
_MARKS = ("M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0", "M-4,-4h8v8h-8z", "M0,-5l5,9h-10z", "M0,-5l5,5l-5,5l-5,-5z",
          "M0,5l5,-9h-10z", "M-5,-2h3v-3h4v3h3v4h-3v3h-4v-3h-3z")  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How an axis is stretched.

    to, back: value -> place, increasing, and its inverse.
    ticks: (least, most) -> values worth a tick.
    word: tick -> its text.
    """

    to: Callable[[float], float]
    back: Callable[[float], float]
    ticks: Callable[[float, float], list[float]]
    word: Callable[[float], str] = "{:g}".format


@dataclass(frozen=True)
class Line:
    """One course, or the points of one entry.

    label: in the legend, once for lines of the same look.
    points: (across, up).
    look: number of the entry, by which colour and mark are chosen; below 0 for baselines, drawn in ink.
    joined: whether a line is drawn; otherwise a mark at every point.
    """

    label: str
    points: Sequence[tuple[float, float]]
    look: int
    joined: bool = True


def _decades(low: float, high: float) -> list[float]:
    parts = (1, 2, 5) if high < 300 * low else (1,)
    return [part * 10.0**power for power in range(-12, 16) for part in parts if low <= part * 10.0**power <= high]


def _round_steps(low: float, high: float) -> list[float]:
    raw = max(high - low, 1e-9) / 5
    step = next(part * 10 ** math.floor(math.log10(raw)) for part in (1, 2, 5, 10)
                if part * 10 ** math.floor(math.log10(raw)) >= raw)  # fmt: skip
    return [step * place for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
LINEAR = Scale(float, float, _round_steps)
LOG = Scale(math.log, math.exp, _decades)
LOGIT = Scale(
    lambda share: math.log(share / (1 - share)),
    lambda place: 1 / (1 + math.exp(-place)),
    lambda low, high: [tick for tick in _SHARES if low <= tick <= high],
    lambda share: f"{100 * share:g}",
)


def chart(lines: Sequence[Line], across: str, up: str, scales: tuple[Scale, Scale], said: str) -> str:
    """Return a chart and its legend as HTML.

    Args:
        lines: what is drawn, the first below the others.
        across, up: what the axes are, with their units.
        scales: of both axes.
        said: the chart in words, for those who do not see it.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return "<p class='soft'>No finished run to draw.</p>"
    x, y = (_Axis(scale, [point[place] for point in points], place == 0) for place, scale in enumerate(scales))
    drawn = [*_ticks(x, y), *(_line(line, x, y) for line in lines)]
    drawn += [
        f'<text class="soft" x="{_RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">{html_text(across)}</text>',
        f'<text class="soft" x="{_LEFT + 4}" y="{_TOP + 10}">{html_text(up)}</text>',
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html_text(said)}">{"".join(drawn)}</svg>'
        f'<div class="legend">{_legend(lines)}</div>'
    )


class _Axis:
    """Values to places on one side of the chart, with some room at both ends."""

    def __init__(self, scale: Scale, values: Sequence[float], is_across: bool) -> None:
        self.scale, self.is_across = scale, is_across
        least, most = min(map(scale.to, values)), max(map(scale.to, values))
        room = 0.06 * (most - least) or 0.5
        self.least, self.most = least - room, most + (room if is_across else 2.5 * room)  # the axis' name stands there

    def at(self, value: float) -> float:
        """Return the place in units of the chart."""
        part = (self.scale.to(value) - self.least) / (self.most - self.least)
        return _LEFT + part * (_RIGHT - _LEFT) if self.is_across else _BOTTOM - part * (_BOTTOM - _TOP)

    def ticks(self, apart: float) -> list[float]:
        """Return ticks within the axis, so far apart that their words are."""
        low, high = self.scale.back(self.least), self.scale.back(self.most)
        kept: list[float] = []
        for tick in self.scale.ticks(low, high):
            if not kept or abs(self.at(tick) - self.at(kept[-1])) >= apart:
                kept.append(tick)
        return kept or [(low + high) / 2]


def _ticks(x: _Axis, y: _Axis) -> list[str]:
    found = [f'<path d="M{_LEFT},{_TOP}V{_BOTTOM}H{_RIGHT}" fill="none" stroke="var(--soft)"/>']
    for tick in x.ticks(44):
        at, word = x.at(tick), x.scale.word(tick)
        inside = min(at, _WIDTH - 4 * len(word))  # so that the last one's word is whole
        found.append(f'<path d="M{at:.1f},{_TOP}V{_BOTTOM}" stroke="var(--line)"/>')
        found.append(f'<text class="soft" x="{inside:.1f}" y="{_BOTTOM + 17}" text-anchor="middle">{word}</text>')
    for tick in y.ticks(18):
        at = y.at(tick)
        found.append(f'<path d="M{_LEFT},{at:.1f}H{_RIGHT}" stroke="var(--line)"/>')
        found.append(
            f'<text class="soft" x="{_LEFT - 5}" y="{at + 4.5:.1f}" text-anchor="end">{y.scale.word(tick)}</text>'
        )
    return found


def _line(line: Line, x: _Axis, y: _Axis) -> str:
    colour, places = _colour(line.look), [(x.at(across), y.at(up)) for across, up in line.points]
    if not places:
        return ""
    width = 3 if line.look < 0 else 2
    path = "M" + "L".join(f"{across:.1f},{up:.1f}" for across, up in places)
    drawn = f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>' if line.joined else ""
    for across, up in places[-1:] if line.joined else places:
        drawn += f'<path d="{_mark(line.look)}" transform="translate({across:.1f} {up:.1f})" fill="{colour}"/>'
    return drawn


def _legend(lines: Sequence[Line]) -> str:
    seen = {line.label: line.look for line in lines}
    return "".join(
        f'<span><svg viewBox="-8 -6 16 12" aria-hidden="true"><path d="{_mark(look)}" fill="{_colour(look)}"/></svg>'
        f"{html_text(label)}</span>"
        for label, look in seen.items()
    )


def _colour(look: int) -> str:
    return "var(--ink)" if look < 0 else f"var(--c{look % 9})"


def _mark(look: int) -> str:
    return _MARKS[look % len(_MARKS)]
