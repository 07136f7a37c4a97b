"""What scikit-learn's estimators are given, X, y and weights, as a table, targets and weights of our own."""

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array, column_or_1d, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import assert_all_finite, check_consistent_length

from sidestep.data.tables.encoding import Table
from sidestep.data.tables.frames import is_frame, table_of_array, table_of_frame
from sidestep.errors import InputError
from sidestep.rules import RULES, Rule
from sidestep.wording import suggestion

__all__ = ["class_targets", "row_weights", "rule_of", "seed_of", "table_of", "taken", "value_targets"]

Array = NDArray[Any]
_MOST_REPEATED = 16  # times the rows: whole weights up to this mean repeat rows, larger ones multiply losses


def rule_of(rule: Any) -> Rule:
    """Return the rule object: the one given, or one of that name with its defaults."""
    if isinstance(rule, str):
        if rule not in RULES:
            said = suggestion(rule, RULES, f"there are: {', '.join(RULES)}")
            raise InputError(f"there is no rule {rule!r}: {said}")
        return RULES[rule]()
    if not isinstance(rule, Rule):
        raise InputError(f"rule must be a rule's name, or a rule such as rules.LocalLoss(hidden=(64,)), got {rule!r}")
    return rule


def seed_of(random_state: Any) -> int:
    """Return the seed: the whole number given, or 0 for None."""
    if random_state is None:
        return 0
    if isinstance(random_state, Integral) and not isinstance(random_state, bool) and int(random_state) >= 0:
        return int(random_state)
    raise InputError(f"random_state must be a whole number from 0, the seed, got {random_state!r}; None stands for 0")


def table_of(inputs: Any, owner: Any) -> Table:
    """Return the columns of a data frame, an array (also a sparse one) or lists of rows.

    Raises:
        ValueError: for no rows, no columns, another number of dimensions, or complex numbers (scikit-learn's words).
        InputError: for cells that are neither numbers nor texts.
    """
    if is_frame(inputs) and 0 not in inputs.shape:
        return table_of_frame(inputs)
    array = check_array(
        inputs, dtype=None, accept_sparse=True, ensure_all_finite=False, estimator=owner, input_name="X"
    )
    array = array.toarray() if hasattr(array, "toarray") else array  # nets take all columns of a row
    return table_of_array(array, getattr(owner, "feature_names_in_", None))


def class_targets(y: Any, rows: int) -> Array:
    """Return class labels (n,), whatever their kind; raises ValueError for numbers that are no classes."""
    y = column_or_1d(y, warn=True)
    _check_length(y, rows)
    if y.dtype.kind == "f" or y.dtype == object:
        assert_all_finite(y, input_name="y")
    check_classification_targets(y)
    return y


def value_targets(y: Any, rows: int) -> tuple[Array, bool]:
    """Return values (n, columns) in float64, and whether they came as (n,); raises ValueError for what is none."""
    y = np.asarray(y) if hasattr(y, "__array__") else y
    array = check_array(y, dtype=None, ensure_2d=False, ensure_all_finite=False, input_name="y")
    if array.dtype.kind not in "uifb":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the targets of a regressor are numbers, got {array.ravel().tolist()[0]!r}; for names of classes take "
                "SidestepClassifier"
            ) from error
    array = np.array(array, dtype=np.float64)
    assert_all_finite(array, input_name="y")
    if array.ndim == 2 and array.shape[1] == 1:
        array = column_or_1d(array, warn=True)
    _check_length(array, rows)
    return array.reshape(len(array), -1), array.ndim == 1


def row_weights(sample_weight: Any, class_weight: Any, y: Array) -> Array | None:
    """Return how much each row counts, (n,), not negative; None: all alike."""
    count = len(y)
    if sample_weight is None and class_weight is None:
        return None
    weights: Array = np.ones(count)
    if sample_weight is not None:
        weights = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
        if weights.shape != (count,):
            raise InputError(f"sample_weight must have one number for each of {count} rows, got shape {weights.shape}")
        if (weights < 0).any():
            raise InputError(f"sample_weight must not be negative, got {weights.min():g}; leave such rows out")
    if class_weight is not None:
        weights = weights * compute_sample_weight(class_weight, y)
    if not weights.any():
        raise InputError("every weight is zero, so that no row counts: sample weights need one that is above 0")
    return weights


def taken(weights: Array | None, count: int) -> tuple[Array, Array | None]:
    """Return which rows are trained on, whole weights as often as they say, and the weights that are left, mean 1."""
    if weights is None:
        return np.arange(count), None
    if len(np.unique(weights[weights > 0])) == 1:  # how large they are makes no difference
        weights = (weights > 0).astype(np.float64)
    whole = bool((weights == np.round(weights)).all()) and float(weights.sum()) <= _MOST_REPEATED * count
    if whole:
        return np.repeat(np.arange(count), weights.astype(np.int64)), None
    rows = np.flatnonzero(weights)
    return rows, weights[rows] / weights[rows].mean()


def _check_length(y: Array, rows: int) -> None:
    check_consistent_length(np.empty(rows), y)
