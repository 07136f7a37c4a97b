"""An estimator's parameters and labels as plain JSON values, and back: no pickle is written or read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sidestep.errors import CheckpointError, InputError
from sidestep.rules import Rule, rule_from_record
from sidestep.rules.record import rule_record

__all__ = ["array_from", "array_record", "parameters_from", "parameters_record"]

_PLAIN = (bool, int, float, str, type(None))


def parameters_record(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as JSON has them; raises InputError for one that JSON cannot hold."""
    return {name: _packed(name, value) for name, value in parameters.items()}


def parameters_from(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of such a record; raises CheckpointError for anything else."""
    try:
        return {name: _unpacked(value) for name, value in record.items()}
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"the record of an estimator's parameters is damaged: {error}") from error


def array_record(labels: NDArray[Any]) -> dict[str, Any]:
    """Return an array of numbers or texts as JSON has it."""
    values = [_packed("the labels", value) for value in labels.tolist()]
    return {"dtype": "object" if labels.dtype == object else labels.dtype.str, "values": values}


def array_from(record: Mapping[str, Any]) -> NDArray[Any]:
    """Return the array of such a record; raises CheckpointError for anything else."""
    try:
        dtype = np.dtype(record["dtype"])
        if dtype.kind not in "uifbUTO":
            raise TypeError(f"labels of type {dtype}")
        found = np.empty(len(record["values"]), dtype=dtype)
        found[:] = [_unpacked(value) for value in record["values"]]
        return found
    except (TypeError, ValueError, LookupError) as error:
        raise CheckpointError(f"the record of an estimator's labels is damaged: {error}") from error


def _packed(name: str, value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Rule):
        return {"rule": rule_record(value)}
    if isinstance(value, Mapping):
        return {"pairs": [[_packed(name, key), _packed(name, item)] for key, item in value.items()]}
    raise InputError(
        f"{name} = {value!r:.80} cannot be kept without pickle; give plain numbers, texts, dictionaries or a rule"
    )


def _unpacked(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if "rule" in value:
        return rule_from_record(value["rule"])
    return {_unpacked(key): _unpacked(item) for key, item in value["pairs"]}
