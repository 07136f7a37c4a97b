"""Pages of HTML in one file each: a table, and a heading with what stands below it."""

from collections.abc import Collection, Sequence

from sidestep.bench.chart import STYLE
from sidestep.bench.report import Table
from sidestep.wording import html_text

__all__ = ["figures", "page", "table_html"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 86rem;
       margin: 2rem auto 4rem; padding: 0 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.7rem; line-height: 1.25; margin-bottom: .3rem }
h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line) }
pre { background: var(--panel); border-radius: 6px; padding: .7rem 1rem; white-space: pre-wrap;
      font: 14px/1.45 monospace }
.said { border-left: 4px solid var(--first); background: var(--panel); padding: .5rem 1rem; margin: 1rem 0 }
.said p { margin: .35rem 0 } .wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
th { text-align: right; vertical-align: bottom; border-bottom: 2px solid var(--soft); background: var(--panel) }
th, td { padding: .28rem .5rem; white-space: nowrap }
td small { display: block; font-size: 12px; color: var(--soft) }
td { border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left; font-weight: 600; white-space: normal }
td:first-child { min-width: 9rem; overflow-wrap: anywhere }
tr.baseline td { background: var(--mark) } td.words { text-align: left; white-space: normal; min-width: 9rem }
ul { padding-left: 1.2rem } li { margin: .3rem 0 } .small, .soft { color: var(--soft); font-size: 14px }
"""


def page(title: str, heading: str, parts: Sequence[str], style: str = _STYLE) -> str:
    """Return a whole page, light or dark as the reader has it.

    Args:
        title: of the window, plain text.
        heading: plain text.
        parts: below it, HTML.
        style: beside that of charts.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html_text(title)}</title>\n<style>{STYLE}{style}</style>\n"
        f"<h1>{html_text(heading)}</h1>\n" + "\n".join(parts) + "\n</html>\n"
    )


def figures(drawn: Sequence[tuple[str, str]]) -> str:
    """Return charts side by side, where there is room: (caption, chart as HTML) each."""
    each = (f"<figure><figcaption>{html_text(said)}</figcaption>{chart}</figure>" for said, chart in drawn)
    return f"<div class='charts'>{''.join(each)}</div>"


def table_html(table: Table, baselines: Collection[str] = (), words: Collection[str] = ()) -> str:
    """Return a table; rows of `baselines` stand first and are marked, columns of `words` are broken into lines."""
    head = "".join(f"<th>{html_text(column)}</th>" for column in table.columns)
    lines = []
    for row in sorted(table.rows, key=lambda row: row[0] not in baselines):
        kinds = [' class="words"' if table.columns[i] in words else "" for i in range(len(row))]
        cells = "".join(f"<td{kind}>{_cell(word)}</td>" for kind, word in zip(kinds, row, strict=True))
        lines.append(f'<tr class="baseline">{cells}</tr>' if row[0] in baselines else f"<tr>{cells}</tr>")
    title = f"<p><b>{html_text(table.title)}</b></p>" if table.title else ""
    return (
        f'{title}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _cell(word: str) -> str:
    """Return a cell's words; what stands in brackets behind a number goes below it."""
    number, bracket, spread = word.partition(" (")
    if bracket and number.replace(".", "").replace(",", "").isdigit():
        return f"{html_text(number)}<small>{html_text(spread.removesuffix(')'))}</small>"
    return html_text(word)
