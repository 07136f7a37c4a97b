"""scikit-learn's estimators for any rule that takes tables: `SidestepClassifier` and `SidestepRegressor`.

>>> from sklearn.datasets import load_wine
>>> table, kinds = load_wine(return_X_y=True)
>>> SidestepClassifier("local-loss", epochs=20).fit(table, kinds).score(table, kinds) > 0.95
True
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from typing_extensions import Self

from sidestep.data.tables.encoding import Column, Columns, Table
from sidestep.errors import InputError
from sidestep.integrations.sklearn_data import class_targets, row_weights, taken, value_targets
from sidestep.integrations.sklearn_estimator import RULE, Estimator
from sidestep.integrations.sklearn_record import array_from, array_record
from sidestep.rules import Rule

__all__ = ["SidestepClassifier", "SidestepRegressor"]

Array = NDArray[Any]
_HIDDEN = (64, 64)  # of a regressor: chosen on folds of other seeds, and on a generated table
# of a classifier: among 17 settings, on 13 tables that the documentation's comparison does not have
_CLASSES = {
    "norm": "none", "hidden": (128, 128), "learning_rate": 5e-3, "weight_decay": 1.0, "label_smoothing": 0.0
}  # fmt: skip


class SidestepClassifier(ClassifierMixin, Estimator):
    """A scikit-learn classifier that trains a net by a rule.

    Columns of numbers are scaled, texts and category columns become columns of 0 and 1, and gaps are taken (a number's
    is the mean, with a column that marks it where train rows had gaps). Labels can be of any kind. A fit is a function
    of the rows, whatever their order, and of `random_state`.

    Args:
        rule: a rule's name (`sidestep rules` shows which take tables), or a rule with its hyper-parameters. The default
            rule, by its name, gets two layers of 128 without a norm, and a learning rate and weight decay that suit a
            few hundred rows; an object is taken as it is.
        epochs: passes over the rows of a fit; the learning rate falls to 0 over them, as half a cosine.
        batch_size: rows a step; None: an eighth of the rows, from 16 to 128.
        early_stopping: whether to hold rows out, and to end, with the weights of the best pass, after
            `n_iter_no_change` passes in a row without a better score on them.
        validation_fraction: the share of the rows that is held out then, of each class; equal rows stay together.
        n_iter_no_change: passes without a better score.
        class_weight: label -> how much each of its rows counts, or "balanced".
        unknown: what to do with a category that training did not see: raise an error, or take it for a gap.
        random_state: the seed, a whole number; None stands for 0.
        device: where to train: cpu, cuda, auto and so on.

    After `fit`: `classes_`, `columns_` (what the net gets of a table), `net_` (the PyTorch net), `rule_`,
    `n_features_in_`, and of data frames `feature_names_in_`; `n_iter_` (passes that were made) and, of early stopping,
    `validation_scores_`.
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
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        unknown: Literal["error", "missing"] = "error",
        random_state: int | None = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            rule,
            epochs=epochs,
            batch_size=batch_size,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            unknown=unknown,
            random_state=random_state,
            device=device,
        )
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new net on rows and their labels.

        Args:
            X: (n, columns): a data frame, an array or lists.
            y: (n,): labels of any kind.
            sample_weight: (n,): how much each row counts. Whole numbers repeat rows, by any rule; others multiply the
                rows' losses, by rules that have one for each example.

        Raises:
            ValueError: for what cannot be trained on; most are InputErrors that say how to mend it.
        """
        table, y = self._given(X, y, reset=True)
        table, y, weights = self._counted(table, y, sample_weight)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError("a classifier needs two classes or more, but every label is of one class")
        self.columns_ = Columns.of(table)
        return self._fit(self._rows(table, codes, len(self.classes_), weights))

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train by one pass over these rows, in full batches, on from where the net is; the first call makes a net.

        Columns, scales and classes are those of the first call, or of `fit`.

        Args:
            X: (n, columns).
            y: (n,).
            classes: all labels that will occur, for the first call; None: those of y.
            sample_weight: as for `fit`.
        """
        first = not self.__sklearn_is_fitted__()
        table, y = self._given(X, y, reset=first)
        table, y, weights = self._counted(table, y, sample_weight)
        if first:
            self.classes_ = np.unique(y if classes is None else np.asarray(classes))
            if len(self.classes_) < 2:
                raise InputError("a classifier needs two classes or more; name them all by partial_fit(..., classes=)")
            self.columns_ = Columns.of(table)
        strange = ~np.isin(y, self.classes_)
        if strange.any():
            raise InputError(
                f"the label {y[strange].tolist()[0]!r} is none of the classes {self.classes_.tolist()}; name all "
                "labels that will occur by classes= in the first call of partial_fit"
            )
        codes = np.searchsorted(self.classes_, y)
        return self._fit_further(self._rows(table, codes, len(self.classes_), weights))

    def predict_proba(self, X: Any) -> Array:
        """Return class probabilities (n, classes), in the order of `classes_`; they are not calibrated."""
        return self._answers(X)

    def predict(self, X: Any) -> Array:
        """Return the most probable label of each row, (n,)."""
        answers = self._answers(X).argmax(axis=1)
        return self.classes_[answers]

    def _given(self, inputs: Any, y: Any, reset: bool) -> tuple[Table, Array]:
        table = self._table(inputs, reset, y)
        return table, class_targets(y, len(next(iter(table.values()))))

    def _counted(self, table: Table, y: Array, sample_weight: Any) -> tuple[Table, Array, Array | None]:
        """Return the rows that count, and how much."""
        rows, weights = taken(row_weights(sample_weight, self.class_weight, y), len(y))
        return {name: values[rows] for name, values in table.items()}, y[rows], weights

    def _rule_object(self) -> Rule:
        rule = super()._rule_object()
        return dataclasses.replace(rule, **_CLASSES) if self.rule == RULE else rule

    def _own_record(self) -> dict[str, Any]:
        return {"classes": array_record(self.classes_)}

    def _take_record(self, record: Mapping[str, Any]) -> None:
        self.classes_ = array_from(record["classes"])


class SidestepRegressor(RegressorMixin, Estimator):
    """A scikit-learn regressor that trains a net by a rule, on one column of values or several.

    Columns are taken as by `SidestepClassifier`; targets are scaled to deviation 1, and predictions scaled back.

    Args:
        rule: a rule's name, or a rule with its hyper-parameters. By name, a rule whose layers have a norm over the
            batch gets two layers of 64 without a norm, which fit values in small tables better; an object is taken
            as it is.
        epochs: passes over the rows of a fit; the learning rate falls to 0 over them, as half a cosine.
        batch_size: rows a step; None: an eighth of the rows, from 16 to 128.
        early_stopping: whether to hold rows out, and to end, with the weights of the best pass, after
            `n_iter_no_change` passes in a row without a better score on them.
        validation_fraction: the share of the rows that is held out then; equal rows stay together.
        n_iter_no_change: passes without a better score.
        unknown: what to do with a category that training did not see: raise an error, or take it for a gap.
        random_state: the seed, a whole number; None stands for 0.
        device: where to train: cpu, cuda, auto and so on.

    After `fit`: `columns_`, `net_`, `rule_`, `n_features_in_`, and of data frames `feature_names_in_`; `n_iter_`
    (passes that were made) and, of early stopping, `validation_scores_`.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new net on rows and their values.

        Args:
            X: (n, columns): a data frame, an array or lists.
            y: (n,) or (n, values): numbers.
            sample_weight: (n,): how much each row counts, as for the classifier.

        Raises:
            ValueError: for what cannot be trained on; most are InputErrors that say how to mend it.
        """
        table, values, weights = self._given(X, y, True, sample_weight)
        self._scale(table, values)
        return self._fit(self._rows(table, self._scaled(values), values.shape[1], weights))

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train by one pass over these rows, in full batches, on from where the net is; the first call makes a net.

        Columns and scales are those of the first call, or of `fit`.
        """
        first = not self.__sklearn_is_fitted__()
        table, values, weights = self._given(X, y, first, sample_weight)
        if first:
            self._scale(table, values)
        if values.shape[1] != len(self._targets):
            raise InputError(f"y has {values.shape[1]} columns, but the net was trained on {len(self._targets)}")
        return self._fit_further(self._rows(table, self._scaled(values), values.shape[1], weights))

    def predict(self, X: Any) -> Array:
        """Return the values of each row, in their own units, (n,) or (n, values) as in training."""
        answers = self._answers(X)  # first of all: it says so where nothing is fitted
        mean, std = (np.array([getattr(column, name) for column in self._targets]) for name in ("mean", "std"))
        answers = mean + std * answers
        return answers[:, 0] if self._flat else answers

    def _given(self, inputs: Any, y: Any, reset: bool, sample_weight: Any) -> tuple[Table, Array, Array | None]:
        table = self._table(inputs, reset, y)
        values, flat = value_targets(y, len(next(iter(table.values()))))
        if reset:
            self._flat = flat
        rows, weights = taken(row_weights(sample_weight, None, values), len(values))
        return {name: column[rows] for name, column in table.items()}, values[rows], weights

    def _scale(self, table: Table, values: Array) -> None:
        self.columns_ = Columns.of(table)
        self._targets = tuple(Column.of(f"y{place}", column) for place, column in enumerate(values.T))
        if len(values) > 1 and (values == values[0]).all():
            raise InputError(f"every target is {values[0, 0]:g}, so that there is nothing to be learnt")
        if len(values) < 2:
            raise InputError("a regressor needs two rows or more, got 1 sample")

    def _scaled(self, values: Array) -> Array:
        return np.concatenate([each.encoded(values[:, i], "error") for i, each in enumerate(self._targets)], axis=1)

    def _rule_object(self) -> Rule:
        rule = super()._rule_object()
        if (
            isinstance(self.rule, str) and getattr(rule, "norm", None) == "batch"
        ):  # it hides how large a row's values are
            return dataclasses.replace(rule, norm="none", hidden=_HIDDEN)
        return rule

    def _own_record(self) -> dict[str, Any]:
        return {"targets": Columns(self._targets).record(), "flat": self._flat}

    def _take_record(self, record: Mapping[str, Any]) -> None:
        self._targets, self._flat = Columns.from_record(record["targets"]).columns, bool(record["flat"])
