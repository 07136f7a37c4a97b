"""Build the static site: `python docs/build.py site` makes HTML of the Markdown pages and adds the reference.

Pages keep their places (docs/architecture.md becomes docs/architecture.html; README.md becomes index.html),
so links between them only change their ending. pdoc makes the reference from the package's docstrings.
"""

import re
import shutil
import sys
from html import escape
from pathlib import Path

import pdoc
from markdown_it import MarkdownIt

import sidestep

ROOT = Path(__file__).resolve().parents[1]
TOP_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 17px/1.55 system-ui, sans-serif; color: #222 }}
body {{ max-width: 50rem; margin: 1rem auto 4rem; padding: 0 1rem }}
nav a {{ margin-right: 1rem }}
a {{ color: #0b5cad }}
code, pre {{ font: 14px/1.45 ui-monospace, monospace; background: #f4f4f2; border-radius: 4px }}
code {{ padding: 1px 3px }}
pre {{ padding: .7rem; overflow-x: auto }}
pre code {{ padding: 0 }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
td, th {{ border: 1px solid #ccc; padding: .25rem .6rem; text-align: left; vertical-align: top }}
img {{ max-width: 100% }}
</style>
<nav>{navigation}</nav>
{body}
</html>
"""


def address(page: Path) -> Path:
    """Where a Markdown page lies in the site, relative to the site's root."""
    inside = page.relative_to(ROOT)
    return Path("index.html") if str(inside) == "README.md" else inside.with_suffix(".html")


def title(text: str, page: Path) -> str:
    found = re.search(r"^# +(.+)$", text, re.M)
    return found.group(1).strip() if found else page.stem


def with_anchors(html: str) -> str:
    """Give every heading the anchor that Markdown links expect: lower case, spaces to dashes."""

    def heading(found: re.Match[str]) -> str:
        words = re.sub(r"<[^>]+>|[^\w\- ]", "", found[2]).lower().replace(" ", "-")
        return f'<h{found[1]} id="{words}">{found[2]}</h{found[1]}>'

    return re.sub(r"<h([1-6])>(.*?)</h\1>", heading, html)


def with_links(html: str, page: Path, site: Path) -> str:
    """Point links between pages at their HTML, and copy other files that a page shows or links to."""

    def link(found: re.Match[str]) -> str:
        file, hash_sign, anchor = found[2].partition("#")
        if not file or re.match(r"[a-z][a-z+.-]*:", file):
            return found[0]
        target = (page.parent / file).resolve()
        if not target.is_file():
            if target.is_dir():  # folders of the repository have no page of their own
                return f'{found[1]}="#"'
            raise SystemExit(f"{page.relative_to(ROOT)} links to {file}, which is not there")
        if target.suffix == ".md":
            place = address(target)
        else:
            place = target.relative_to(ROOT)
            (site / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, site / place)
        up = "../" * (len(address(page).parts) - 1)
        return f'{found[1]}="{up}{place.as_posix()}{hash_sign}{anchor}"'

    return re.sub(r'(href|src)="([^"]*)"', link, html)


def navigation(page: Path, pages: list[Path]) -> str:
    up = "../" * (len(address(page).parts) - 1)
    named = [(address(each), title(each.read_text(encoding="utf-8"), each)) for each in pages]
    named.append((Path("api/sidestep.html"), "Python interface"))
    return "\n".join(f'<a href="{up}{place.as_posix()}">{escape(name)}</a>' for place, name in named)


def build(site: Path) -> None:
    pages = [ROOT / name for name in TOP_PAGES] + sorted((ROOT / "docs").rglob("*.md"))
    markdown = MarkdownIt("commonmark").enable("table")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        body = with_links(with_anchors(markdown.render(text)), page, site)
        place = site / address(page)
        place.parent.mkdir(parents=True, exist_ok=True)
        filled = TEMPLATE.format(title=escape(title(text, page)), navigation=navigation(page, pages), body=body)
        place.write_text(filled, encoding="utf-8")
    for name in sidestep.__all__:  # pdoc sees what the package has imported, and it imports what is asked for
        getattr(sidestep, name)
    pdoc.render.configure(docformat="google", search=True)
    pdoc.pdoc("sidestep", output_directory=site / "api")
    print(f"{len(pages)} pages and the Python interface are in {site}: open {site / 'index.html'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/build.py FOLDER")
    build(Path(sys.argv[1]))
