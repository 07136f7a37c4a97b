"""The site's pages: each lies in the navigation or is listed as left out; the public names are those promised."""

import re
from pathlib import Path

import sidestep

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# What docs/top_pages.py makes of files above docs/.
MADE = {"index.md", "contributing.md", "changelog.md", "licence.md", "citation.md"}


def settings() -> str:
    return (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def left_out(page: str) -> bool:
    block = re.search(r"^not_in_nav: \|\n((?:  .+\n)+)", settings(), re.M)[1]
    return any(Path(page).match(pattern) for pattern in block.split())


def in_navigation() -> list[str]:
    return re.findall(r": ([\w/.-]+\.md)$", settings().split("\nnav:\n")[1], re.M)


def test_every_page_is_in_the_navigation_or_left_out_on_purpose():
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | MADE
    listed = in_navigation()
    assert len(listed) == len(set(listed))
    assert set(listed) <= pages
    assert {page for page in pages - set(listed) if not left_out(page)} == set()
    assert not any(left_out(page) for page in listed)


def test_pages_made_of_files_above_the_folder_are_those_that_the_hook_names():
    hook = (DOCS / "top_pages.py").read_text(encoding="utf-8")
    pairs = dict(re.findall(r'"([\w.]+)": "([\w.]+\.md)"', hook))
    assert set(pairs.values()) == MADE
    assert all((ROOT / name).is_file() for name in pairs)


def test_the_promise_lists_exactly_the_public_names():
    page = (DOCS / "public-interface.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page, re.M)
    assert len(listed) == len(set(listed))
    assert set(listed) == set(sidestep.__all__)


def test_the_reference_names_what_is_there():
    for name in re.findall(r"^::: sidestep\.(\S+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.M):
        place = sidestep
        for part in name.split("."):
            place = getattr(place, part)
        assert place.__doc__, name
    assert "::: sidestep.train\n" in (DOCS / "reference.md").read_text(encoding="utf-8")


def test_the_build_stops_at_warnings():
    """MkDocs counts warnings for --strict where it logs them, so --quiet lets a broken link through."""
    build = re.search(r"^\t.*/mkdocs (build.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)[1].split()
    assert "--strict" in build
    assert not {"--quiet", "-q"} & set(build)
