"""A page on two runs and the same test images: one file of HTML, its charts drawn as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

from sidestep.bench.comparison.paired import Paired
from sidestep.bench.html import page
from sidestep.version import __version__
from sidestep.wording import counted, html_text

__all__ = ["paired_page"]

_WIDTH = 340  # of a chart, in units of which one is a pixel at least, on a screen of 400
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
       margin: 1.5rem auto 3rem; padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25; margin-bottom: .3rem } h2 { font-size: 1.1rem; margin: 0 0 .5rem }
.panel { background: var(--panel); border-radius: 8px; padding: .8rem; box-sizing: border-box; margin: 1rem 0 }
table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td { text-align: left; padding: .3rem .5rem .3rem 0;
       border-bottom: 1px solid var(--line); vertical-align: top }
.soft { color: var(--soft); font-size: 14px }
"""


def paired_page(
    names: tuple[str, str], data: str, found: Paired, differs: Mapping[str, tuple[Any, Any]], rules: tuple[str, str]
) -> str:
    """Return the page: both accuracies, their difference with its interval, the test, and what was set otherwise.

    Args:
        names: of the two runs.
        data: name of the data set, whose test images were answered.
        found: the comparison.
        differs: entry of the configuration -> its values in both.
        rules: of the two runs.
    """
    title = f"{names[0]} and {names[1]}: {data}, test, {counted(found.examples, 'image')}"
    seen = "includes" if found.low <= 0 <= found.high else "leaves out"
    said = (
        f"{names[0]} ({rules[0]}) has {found.first:.2%} right, {names[1]} ({rules[1]}) {found.second:.2%}. The 95% "
        f"interval of {names[1]} less {names[0]}, {100 * found.low:+.2f} to {100 * found.high:+.2f} points, {seen} 0."
    )
    tests = (
        f"McNemar's test: p = {found.p_exact:.3g} (exact), {found.p_mid:.3g} (mid-p). This is about these two runs "
        "alone: other seeds may say otherwise."
    )
    charts = (
        f"<figure><h2>Accuracy</h2>{_accuracies(names, found)}</figure>"
        f"<figure><h2>{html_text(names[1])} less {html_text(names[0])}, in points</h2>{_difference(found)}</figure>"
        f"<figure><h2>Answers on the same images</h2>{_answers(names, found)}</figure>"
    )
    parts = [
        f"<p>{html_text(said)}</p>",
        f"<div class='charts'>{charts}</div>",
        f"<p class='soft'>{html_text(tests)}</p>",
        f"<div class='panel'><h2>What differs in their configurations</h2>{_settings(names, differs)}</div>",
        "<p class='soft'>The interval is the middle 95% of differences over images drawn again with replacement "
        f"(paired bootstrap). sidestep {html_text(__version__)}</p>",
    ]
    return page(title, title, parts, _STYLE)


def _accuracies(names: Sequence[str], found: Paired) -> str:
    """Two bars from 0 to 100%, each below its run's name."""
    parts = []
    rows = zip(names, (found.first, found.second), ("first", "second"), strict=True)
    for place, (name, share, colour) in enumerate(rows):
        top, whole = 48 * place, _WIDTH - 70
        bar = f'x="0" y="{top + 20}" height="16" rx="3"'
        parts.append(
            f'<text x="0" y="{top + 14}">{html_text(_short(name))}</text>'
            f'<rect {bar} width="{whole}" fill="var(--line)"/>'
            f'<rect {bar} width="{whole * share:.1f}" fill="var(--{colour})"/>'
            f'<text x="{_WIDTH}" y="{top + 33}" text-anchor="end">{share:.2%}</text>'
        )
    said = f"{names[0]} has {found.first:.2%} right, {names[1]} {found.second:.2%}"
    return _svg("".join(parts), 92, said)


def _difference(found: Paired) -> str:
    """The interval of the difference as a line, beside a line at no difference."""
    reach = 1.15 * max(abs(found.low), abs(found.high), 1e-4)

    def at(value: float) -> float:
        return _WIDTH / 2 + (_WIDTH / 2 - 8) * value / reach

    low, high, middle = at(found.low), at(found.high), at(found.difference)
    anchor = "start" if middle < 60 else "end" if middle > _WIDTH - 60 else "middle"
    drawn = (
        f'<line x1="{_WIDTH / 2}" x2="{_WIDTH / 2}" y1="8" y2="66" stroke="var(--soft)" stroke-dasharray="4 3"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="44" y2="44" stroke="var(--second)" stroke-width="4"/>'
        f'<circle cx="{middle:.1f}" cy="44" r="7" fill="var(--second)"/>'
        f'<text x="{middle:.1f}" y="28" text-anchor="{anchor}">{100 * found.difference:+.2f}</text>'
        f'<text class="soft" x="0" y="86">{-100 * reach:+.2f}</text>'
        f'<text class="soft" x="{_WIDTH / 2}" y="86" text-anchor="middle">0</text>'
        f'<text class="soft" x="{_WIDTH}" y="86" text-anchor="end">{100 * reach:+.2f}</text>'
    )
    said = f"difference {100 * found.difference:+.2f} points, from {100 * found.low:+.2f} to {100 * found.high:+.2f}"
    return _svg(drawn, 92, said)


def _answers(names: Sequence[str], found: Paired) -> str:
    both = round(found.first * found.examples) - found.only_first
    neither = found.examples - both - found.only_first - found.only_second
    rows = [("both right", both), (f"only {names[0]}", found.only_first), (f"only {names[1]}", found.only_second),
            ("both wrong", neither)]  # fmt: skip
    return (
        "<table>"
        + "".join(f"<tr><td>{html_text(name)}</td><td>{count:,}</td></tr>" for name, count in rows)
        + "</table>"
    )


def _settings(names: Sequence[str], differs: Mapping[str, tuple[Any, Any]]) -> str:
    if not differs:
        return "<p>They are the same.</p>"
    head = "".join(f"<th>{html_text(word)}</th>" for word in ("", *names))
    lines = [[name, *("-" if value is None else str(value) for value in pair)] for name, pair in differs.items()]
    rows = "".join(f"<tr>{''.join(f'<td>{html_text(word)}</td>' for word in line)}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _svg(drawn: str, height: int, said: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{html_text(said)}">{drawn}</svg>'


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"...{name[-37:]}"
