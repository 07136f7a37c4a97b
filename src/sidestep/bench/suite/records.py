"""What a suite keeps: a file of JSON lines for each net on each data set, one line a run, added as runs end.

A run is known again by the key of all that its result depends on. So a command that was stopped goes on, and what a
change of the suite has made untrue is run anew. A line that is not whole counts as not run.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidestep import checkpoint
from sidestep.bench.process import FAILED

__all__ = ["SuiteRecords", "lines_of"]

_ENVIRONMENT = "environment"


def lines_of(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a file of records, which need not be there."""
    for line in file.read_bytes().splitlines() if file.exists() else ():
        try:
            found = json.loads(line.decode())
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


class SuiteRecords:
    """The runs of one net on one data set, and where they were computed.

    Args:
        file: of JSON lines; made with the first record.
        environment: of this process; kept with its first record, to which its runs refer.
    """

    def __init__(self, file: Path, environment: Mapping[str, Any]) -> None:
        self.file, self._environment = file, dict(environment)
        lines = list(lines_of(file))
        self.environments = [line[_ENVIRONMENT] for line in lines if _ENVIRONMENT in line and "key" not in line]
        self.runs = {line["key"]: line for line in lines if isinstance(line.get("key"), str)}

    def get(self, key: str, retry: bool = False) -> Mapping[str, Any] | None:
        """Return the record of a run; with `retry`, none of one that failed."""
        found = self.runs.get(key)
        return None if found is None or (retry and FAILED in found) else found

    def add(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the record of a run, which gives way to none of the same key, and return it as it is kept."""
        if self._environment not in self.environments:
            self.environments.append(self._environment)
        kept = {**record, _ENVIRONMENT: self.environments.index(self._environment)}
        self.runs[record["key"]] = kept
        self.write(self.file)
        return kept

    def take(self, file: Path) -> None:
        """Take up the runs of another file that are not here, with where they were computed."""
        other = SuiteRecords(file, self._environment)
        for key, run in other.runs.items():
            if key in self.runs:
                continue
            environment = other.environments[run[_ENVIRONMENT]]
            if environment not in self.environments:
                self.environments.append(environment)
            self.runs[key] = {**run, _ENVIRONMENT: self.environments.index(environment)}

    def write(self, file: Path) -> None:
        """Write all that is here, in one move."""
        lines = [*({_ENVIRONMENT: each} for each in self.environments), *self.runs.values()]
        checkpoint.write_text(file, "\n".join(map(json.dumps, lines)) + "\n")
