"""What a comparison keeps in its folder: what was asked, in bench.json, and one record per run, in bench.jsonl."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidestep import checkpoint
from sidestep.bench.paper_tables.reproduce import folder_for_tables
from sidestep.bench.process import FAILED
from sidestep.errors import InputError

__all__ = ["ComparisonFolder", "Key", "key_of"]

Key = tuple[str, str, int]  # entry, data, seed
_FILES = ("bench.json", "bench.jsonl", "bench.md", "bench.html")


def key_of(record: Mapping[str, Any]) -> Key:
    """Return which run a record is of."""
    return str(record["entry"]), str(record["data"]), int(record["seed"])


class ComparisonFolder:
    """The folder of a comparison: made if it was not there, refused if it holds another one.

    Args:
        path: where.
        asked: everything that the numbers depend on.
        overwrite: whether another comparison's results are removed.

    Raises:
        InputError: if it is the folder of a run, or holds runs of other settings.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], overwrite: bool = False) -> None:
        self.path = path
        self.asked_file, self.runs_file, self.page_file, self.html_file = (path / name for name in _FILES)
        folder_for_tables(path)
        if overwrite:
            for name in _FILES:
                (path / name).unlink(missing_ok=True)
        given = json.loads(json.dumps(asked))  # tuples become lists, as in the file
        if self.asked_file.exists():
            self._check_same(given)
        self.records = self._read()
        checkpoint.write_text(self.asked_file, json.dumps(given, indent=1) + "\n")

    def add(self, record: Mapping[str, Any]) -> None:
        """Keep the record of a run; an earlier one of the same run, which failed, gives way."""
        self.records = [other for other in self.records if key_of(other) != key_of(record)] + [dict(record)]
        lines = [json.dumps(each) for each in self.records]
        checkpoint.write_text(self.runs_file, "\n".join(lines) + "\n")

    def done(self, retry: bool = False) -> set[Key]:
        """Return the runs that need not be run again; with `retry`, those that failed, or whose count did, are not."""
        failed = {key_of(record) for record in self.records if FAILED in record or FAILED in record.get("counts", {})}
        return {key_of(record) for record in self.records} - (failed if retry else set())

    def _check_same(self, given: Mapping[str, Any]) -> None:
        try:
            earlier = json.loads(self.asked_file.read_text(encoding="utf-8"))
            different = _differences(earlier, given)
        except (OSError, ValueError, AttributeError, RecursionError):
            different = ["its bench.json cannot be read"]
        if different:
            raise InputError(
                f"{self.path} holds a comparison of other settings ({'; '.join(different)}), whose runs cannot stand "
                "beside these; give the same again, choose another --out, or remove its results with --overwrite"
            )

    def _read(self) -> list[dict[str, Any]]:
        """Return the records; a line that is not whole counts as not run."""
        found: dict[Key, dict[str, Any]] = {}
        for line in self.runs_file.read_bytes().splitlines() if self.runs_file.exists() else ():
            try:
                record = json.loads(line.decode())
                found[key_of(record)] = record
            except (ValueError, LookupError, TypeError, RecursionError):
                continue
        return list(found.values())


def _differences(earlier: Mapping[str, Any], given: Mapping[str, Any], name: str = "") -> list[str]:
    """Return what differs, deepest names first, in words."""
    found: list[str] = []
    for key in dict.fromkeys([*earlier, *given]):
        was, now = earlier.get(key, "absent"), given.get(key, "absent")
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found += _differences(was, now, f"{name}{key}: ")
        elif was != now:
            found.append(f"{name}{key}: was {_words(was)}, given {_words(now)}")
    return found


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return "there"
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
