"""What `sidestep predict` writes: CSV, NDJSON (an object a line) or NumPy arrays."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sidestep import checkpoint
from sidestep.wording import csv_text

__all__ = ["SUFFIXES", "Answers"]

SUFFIXES = (".csv", ".ndjson", ".jsonl", ".npz")
_MANY = {"probability": "probabilities", "score": "scores"}


@dataclass(frozen=True)
class Answers:
    """Predictions with the name of what each is for.

    found: probabilities or scores (n, classes), or values (n, 1).
    outputs: names of the classes, or of the value.
    kind: probability, score or value.
    names: of the inputs, (n,).
    """

    found: Tensor
    outputs: tuple[str, ...]
    kind: str
    names: tuple[str, ...]

    @property
    def labels(self) -> list[int]:
        """The numbers of the classes; of values nothing."""
        return [] if self.kind == "value" else self.found.argmax(dim=1).tolist()

    @property
    def best(self) -> list[float]:
        """The probability or score of each answer, or the value."""
        return (self.found[:, 0] if self.kind == "value" else self.found.amax(dim=1)).tolist()

    def write(self, out: Path) -> None:
        """Write all predictions, in the form that the suffix says."""
        if out.suffix == ".npz":
            checkpoint.write_bytes(out, self._npz())
        elif out.suffix == ".csv":
            checkpoint.write_text(out, csv_text(self._rows()))
        else:
            checkpoint.write_text(out, "".join(json.dumps(each) + "\n" for each in self._records()))

    def _rows(self) -> list[list[object]]:
        best = [f"{value:.6f}" if self.kind != "value" else f"{value:.9g}" for value in self.best]
        if self.kind == "value":
            return [
                ["index", "value", "file"],
                *([i, *row] for i, row in enumerate(zip(best, self.names, strict=True))),
            ]
        classes = [self.outputs[label] for label in self.labels]
        rows = enumerate(zip(classes, best, self.names, strict=True))
        return [["index", "class", self.kind, "file"], *([i, *row] for i, row in rows)]

    def _records(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        labels = self.labels
        for index, (name, best) in enumerate(zip(self.names, self.best, strict=True)):
            each: dict[str, object] = {"index": index, "file": name}
            if self.kind == "value":
                each["value"] = best
            else:
                shares = dict(zip(self.outputs, self.found[index].tolist(), strict=True))
                each |= {"class": self.outputs[labels[index]], self.kind: best, _MANY[self.kind]: shares}
            found.append(each)
        return found

    def _npz(self) -> bytes:
        buffer, found, files = io.BytesIO(), self.found.numpy(), np.array(self.names)
        if self.kind == "value":
            np.savez(buffer, values=found[:, 0], files=files)
        else:
            labels, names = np.array(self.labels), np.array(self.outputs)
            arrays: dict[str, Any] = {_MANY[self.kind]: found}
            np.savez(buffer, labels=labels, class_names=names, files=files, **arrays)
        return buffer.getvalue()
