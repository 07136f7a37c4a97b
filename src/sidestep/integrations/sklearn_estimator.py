"""What scikit-learn's estimators have in common: settings, columns, the net, and files without pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data
from typing_extensions import Self

from sidestep import checkpoint
from sidestep.checks import check_positive, check_whole
from sidestep.data.tables.encoding import Columns, Table
from sidestep.errors import CheckpointError, InputError
from sidestep.integrations.sklearn_data import rule_of, seed_of, table_of
from sidestep.integrations.sklearn_record import parameters_from, parameters_record
from sidestep.integrations.table_net import Rows, Stopping, TableNet
from sidestep.keywords import KnownKeywords
from sidestep.rules import Rule
from sidestep.version import __version__

__all__ = ["RULE", "Estimator"]

RULE = "local-loss"  # by default

FILE = "estimator.safetensors"
Array = NDArray[Any]


class Estimator(KnownKeywords, BaseEstimator):
    """What both estimators have in common: columns, the net, files.

    After `fit`: `columns_` (what the net gets of a table), `net_` (the PyTorch net), `rule_` (the rule object),
    `n_features_in_`, and of data frames `feature_names_in_`.
    """

    def __init__(  # long: scikit-learn has every setting as a keyword of its own
        self,
        rule: str | Rule = RULE,
        *,
        epochs: int = 40,
        batch_size: int | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        unknown: Literal["error", "missing"] = "error",
        random_state: int | None = 0,
        device: str = "cpu",
    ) -> None:
        self.rule = rule
        self.epochs = epochs
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.unknown = unknown
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = True
        # texts are taken as well, but the tag `string` asks that any Python object be
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_trained")

    @property
    def net_(self) -> Any:
        """The PyTorch net, as the rule builds it."""
        check_is_fitted(self)
        return self._trained.state.net

    @property
    def rule_(self) -> Rule:
        """The rule object that trained it."""
        check_is_fitted(self)
        return self._trained.rule

    @property
    def n_iter_(self) -> int:
        """How many passes over the rows were made, those of `partial_fit` included."""
        check_is_fitted(self)
        return self._trained.passes

    @property
    def validation_scores_(self) -> list[float]:
        """Of early stopping: the score of the held out rows after each pass; the net is that of the best."""
        check_is_fitted(self)
        return list(self._trained.scores)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the estimator, fitted or not, into a folder: one safetensors file with a JSON record and a digest.

        Raises:
            InputError: if the folder holds an estimator already and `overwrite` is False.
            CheckpointError: if it cannot be written.
        """
        path = Path(folder) / FILE
        if path.exists() and not overwrite:
            raise InputError(f"{folder} holds an estimator already; give overwrite=True, or another folder")
        tensors, record = self._packed()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"the folder {folder} cannot be made: {error.strerror}") from error
        checkpoint.save(path, tensors, {"kind": "estimator", "sidestep": __version__, **record})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Return the estimator that `save` wrote.

        Raises:
            CheckpointError: if there is none, or it is damaged; InputError: if it is of the other class.
        """
        tensors, record = checkpoint.load(Path(folder) / FILE)
        if record.get("kind") != "estimator":
            raise CheckpointError(f"{Path(folder) / FILE} holds no estimator")
        return cls._unpacked(tensors, record)

    def __getstate__(self) -> dict[str, Any]:
        tensors, record = self._packed()
        return {"tensors": safetensors.torch.save(tensors), "record": json.dumps(record)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        tensors = safetensors.torch.load(state["tensors"])
        self.__dict__.update(self._unpacked(tensors, json.loads(state["record"])).__dict__)

    def _packed(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return all that it is as tensors and plain values."""
        parameters = parameters_record(self.get_params(deep=False))
        record: dict[str, Any] = {"class": type(self).__name__, "parameters": parameters}
        if hasattr(self, "n_features_in_"):
            record["features"] = self.n_features_in_
        if hasattr(self, "feature_names_in_"):
            record["names"] = self.feature_names_in_.tolist()
        if not hasattr(self, "_trained"):
            return {}, record
        tensors, trained = self._trained.tensors()
        rule = parameters_record({"rule": self._trained.rule})["rule"]
        return tensors, {
            **record, "trained": trained, "rule": rule, "columns": self.columns_.record(), **self._own_record()
        }  # fmt: skip

    @classmethod
    def _unpacked(cls, tensors: Mapping[str, Any], record: Mapping[str, Any]) -> Self:
        if record.get("class") != cls.__name__:
            raise InputError(f"this is a {record.get('class')}, not a {cls.__name__}; load it as what it is")
        try:
            found = cls(**parameters_from(record["parameters"]))
            if "features" in record:
                found.n_features_in_ = int(record["features"])
            if "names" in record:
                found.feature_names_in_ = np.array(record["names"], dtype=object)
            if "trained" in record:
                found.columns_ = Columns.from_record(record["columns"])
                found._take_record(record)
                rule = parameters_from({"rule": record["rule"]})["rule"]
                found._trained = TableNet.of(rule, tensors, record["trained"])
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            raise CheckpointError(f"the estimator's record is damaged, or of another version: {error}") from error
        return found

    def _own_record(self) -> dict[str, Any]:
        raise NotImplementedError

    def _take_record(self, record: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _table(self, inputs: Any, reset: bool, y: Any = "no_validation") -> Table:
        """Return the columns of inputs whose number and names are checked against those fitted on."""
        table = table_of(inputs, self)
        validate_data(self, inputs, y, reset=reset, skip_check_array=True)
        return table

    def _rows(self, table: Table, targets: Array, outputs: int, weights: Array | None) -> Rows:
        """Return train rows as the net gets them."""
        return Rows(self.columns_.encoded(table, self.unknown), targets, outputs, weights)

    def _fit(self, rows: Rows) -> Self:
        """Train a new net for all epochs."""
        trained = self._untrained(rows)
        stopping = Stopping(self.validation_fraction, int(self.n_iter_no_change)) if self.early_stopping else None
        trained.train(rows, self.epochs, self.batch_size, decay=True, stopping=stopping)
        self._trained = trained
        return self

    def _fit_further(self, rows: Rows) -> Self:
        """Train the net that is there, or else a new one, for one pass over the rows."""
        self._check_settings()
        if self.early_stopping:
            raise InputError("partial_fit is one pass, and does not stop early: set early_stopping=False, or call fit")
        trained = self._trained if hasattr(self, "_trained") else self._untrained(rows)
        trained.train(rows, 1, self.batch_size)
        self._trained = trained
        return self

    def _untrained(self, rows: Rows) -> TableNet:
        self._check_settings()
        return TableNet.new(self._rule_object(), rows, seed_of(self.random_state), self.device, self.batch_size)

    def _rule_object(self) -> Rule:
        """Return the rule object that trains."""
        return rule_of(self.rule)

    def _check_settings(self) -> None:
        check_whole(1, 1_000_000, epochs=self.epochs)
        if self.batch_size is not None:
            check_whole(1, 1_000_000, batch_size=self.batch_size)
        if self.early_stopping:
            check_positive(0.5, validation_fraction=self.validation_fraction)
            check_whole(1, 1_000_000, n_iter_no_change=self.n_iter_no_change)
        if self.unknown not in ("error", "missing"):
            raise InputError(f"unknown must be error or missing, got {self.unknown!r}")

    def _answers(self, inputs: Any) -> Array:
        check_is_fitted(self)
        features = self.columns_.encoded(self._table(inputs, reset=False), self.unknown)
        return self._trained.predict(features)
