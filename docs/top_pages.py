"""A hook of MkDocs: README, CONTRIBUTING and CHANGELOG, which lie above docs/, become pages of the site, too."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
TOP_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
AS_TEXT = {"LICENSE": "licence.md", "CITATION.cff": "citation.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from above docs/, with their links turned to the site's places."""
    for name, place in TOP_PAGES.items():
        text = with_links((ROOT / name).read_text(encoding="utf-8"), r"(?:\./)?")
        files.append(File.generated(config, place, content=text.replace("](docs/", "](")))
    for name, place in AS_TEXT.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=f"# {name}\n\n```text\n{text}```\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that leave docs/ for a top page to that page in the site."""
    return with_links(markdown, r"(?:\.\./)+", "../" * page.file.src_uri.count("/"))


def with_links(text: str, before: str, up: str = "") -> str:
    """Return text with links to the files above docs/ leading to their pages."""
    for name, place in {**TOP_PAGES, **AS_TEXT}.items():
        text = re.sub(rf"\]\({before}{re.escape(name)}(?=[)#])", f"]({up}{place}", text)
    return text
