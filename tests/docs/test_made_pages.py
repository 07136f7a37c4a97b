"""What stands in docs is what the records beside it give: made again, no file of docs is another."""

import importlib
import shutil
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["matched_pages", "blockwise_page", "structured_page"])
def test_pages_made_again_are_the_same(name, tmp_path, monkeypatch):
    shutil.copytree(DOCS, tmp_path / "docs")
    before = {file: file.read_bytes() for file in (tmp_path / "docs").rglob("*") if file.is_file()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    importlib.import_module(f"experiments.{name}").main()
    after = {file: file.read_bytes() for file in (tmp_path / "docs").rglob("*") if file.is_file()}
    changed = [str(file.relative_to(tmp_path)) for file in after if after[file] != before.get(file)]
    assert (changed, before.keys() - after.keys()) == ([], set())
