"""What `sidestep predict` writes: CSV, NDJSON (an object a line) or NumPy arrays."""

import io
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sidestep.files import write_parts
from sidestep.wording import csv_text

__all__ = ["SUFFIXES", "Answers", "write_answers"]

SUFFIXES = (".csv", ".ndjson", ".jsonl", ".npz")
_MANY = {"probability": "probabilities", "score": "scores"}


@dataclass(frozen=True)
class Answers:
    """Predictions with the name of what each is for.

    found: probabilities or scores (n, classes), or values (n, 1).
    outputs: names of the classes, or of the value.
    kind: probability, score or value.
    names: of the inputs, (n,).
    first: the number of the first input, of a part of all.
    """

    found: Tensor
    outputs: tuple[str, ...]
    kind: str
    names: Sequence[str]
    first: int = 0

    def parts(self, found: Iterable[Tensor]) -> Iterator["Answers"]:
        """Yield the answers of all `names`, a block of what was found at a time; of nothing one part without any."""
        first = self.first
        if not len(self.names):
            yield self
        for block in found:
            yield replace(self, found=block, names=self.names[first : first + len(block)], first=first)
            first += len(block)

    def rows(self, most: int) -> list[list[str]]:
        """Return the first answers as they are printed: name, class if there are classes, probability or value."""
        form = {"probability": ".1%", "score": ".3f", "value": ".6g"}[self.kind]
        few = replace(self, found=self.found[:most], names=self.names[:most])
        classes = [] if self.kind == "value" else [[self.outputs[label] for label in few.labels]]
        return [list(row) for row in zip(few.names, *classes, (f"{best:{form}}" for best in few.best), strict=True)]

    @property
    def labels(self) -> list[int]:
        """The numbers of the classes; of values nothing."""
        return [] if self.kind == "value" else self.found.argmax(dim=1).tolist()

    @property
    def best(self) -> list[float]:
        """The probability or score of each answer, or the value."""
        return (self.found[:, 0] if self.kind == "value" else self.found.amax(dim=1)).tolist()

    def text(self, suffix: str) -> str:
        """Return the lines of a file with that suffix; those of the first part begin with what heads a table."""
        if suffix == ".csv":
            return csv_text(self._rows())
        return "".join(json.dumps(each) + "\n" for each in self._records())

    def _rows(self) -> list[list[object]]:
        best = [f"{value:.6f}" if self.kind != "value" else f"{value:.9g}" for value in self.best]
        classes = [] if self.kind == "value" else [[self.outputs[label] for label in self.labels]]
        rows = enumerate(zip(*classes, best, self.names, strict=True), self.first)
        heads = ["value"] if self.kind == "value" else ["class", self.kind]
        return [*([] if self.first else [["index", *heads, "file"]]), *([i, *row] for i, row in rows)]

    def _records(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        labels = self.labels
        for index, (name, best) in enumerate(zip(self.names, self.best, strict=True)):
            each: dict[str, object] = {"index": self.first + index, "file": name}
            if self.kind == "value":
                each["value"] = best
            else:
                shares = dict(zip(self.outputs, self.found[index].tolist(), strict=True))
                each |= {"class": self.outputs[labels[index]], self.kind: best, _MANY[self.kind]: shares}
            found.append(each)
        return found

    def npz(self) -> bytes:
        """Return the bytes of a `.npz` file."""
        buffer, found, files = io.BytesIO(), self.found.numpy(), np.array(self.names)
        if self.kind == "value":
            np.savez(buffer, values=found[:, 0], files=files)
        else:
            labels, names = np.array(self.labels), np.array(self.outputs)
            arrays: dict[str, Any] = {_MANY[self.kind]: found}
            np.savez(buffer, labels=labels, class_names=names, files=files, **arrays)
        return buffer.getvalue()


def write_answers(out: Path, parts: Iterable[Answers]) -> Answers:
    """Write the parts of all predictions one after another, in the form that the suffix says; return the last one."""
    last: deque[Answers] = deque(maxlen=1)

    def content() -> Iterator[bytes]:
        for part in parts:
            last.append(part)
            yield part.npz() if out.suffix == ".npz" else part.text(out.suffix).encode()

    write_parts(out, content())
    return last.pop()
