"""Fields of a dataclass as their annotations have them: NumPy's numbers become Python's, and words are no numbers."""

from dataclasses import fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sidestep.errors import InputError
from sidestep.wording import suggestion

__all__ = ["RARE", "check_choice", "settle_fields"]

RARE = frozenset({  # hyper-parameters, of whichever rule, that few runs change
    "accumulate", "activation_checkpointing", "bias", "bop_rate", "bop_threshold", "columns", "cosine_offset",
    "deep_supervision", "density", "dimension", "directions", "draws", "draws_per_image", "exclusive", "flip_scaling",
    "grid", "group", "groups", "guide", "head_share", "largest_alpha_bar", "largest_weight", "memory", "method",
    "momentum", "most_probes", "optimizer_kind", "per", "pooled", "readout", "sharpness", "similarity",
    "smallest_alpha_bar", "solver", "start", "tangents", "threshold", "times", "tolerance", "trit_threshold",
    "unit_norm", "update",
})  # fmt: skip


def settle_fields(options: Any) -> None:
    """Give each field of a dataclass, frozen or not, a value of its annotated type, or raise InputError.

    What is no other value is taken: numbers and arrays of one number of NumPy or torch, 3.0 for a whole number, a list
    for a tuple, a string for a path. Words, and True for a number, are refused.
    """
    kinds = get_type_hints(type(options))
    for field in fields(options):
        value = getattr(options, field.name)
        settled = _settled(field.name, value, kinds[field.name])
        if settled is not value:
            object.__setattr__(options, field.name, settled)


def _settled(name: str, value: Any, kind: Any) -> Any:
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None:
        if NoneType not in kinds:
            raise InputError(f"{name} must not be None; leave it out for its default")
        return None
    kind = next((each for each in kinds if each is not NoneType), kind)
    if get_origin(kind) is tuple:
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            raise InputError(f"{name} must be a list of numbers, got {value!r:.80}")
        return tuple(_settled(name, each, get_args(kind)[0]) for each in value)
    if kind is Path:
        if not isinstance(value, str | Path):
            raise InputError(f"{name} must be a path, got {value!r:.80}")
        return Path(value)
    if not isinstance(value, str | bytes) and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a number of NumPy's, or a tensor or an array of one
    return _plain(name, value, kind)


def _plain(name: str, value: Any, kind: Any) -> Any:
    if kind is bool and not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {value!r:.80}")
    if kind is str and not isinstance(value, str):
        raise InputError(f"{name} must be a word, got {value!r:.80}")
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"{name} must be a {'whole ' * (kind is int)}number, got {value!r:.80}")
        if kind is int and not isinstance(value, Integral) and not float(value).is_integer():
            raise InputError(f"{name} must be a whole number, got {value}")
        return kind(value)
    return value


def check_choice(rule: Any) -> None:
    """Give every field of a rule a value of its type (see `settle_fields`), or raise InputError; one annotated as a
    Literal must hold one of its values.
    """
    settle_fields(rule)
    kinds = get_type_hints(type(rule))
    for field in fields(rule):
        if get_origin(kinds[field.name]) is Literal and getattr(rule, field.name) not in get_args(kinds[field.name]):
            allowed, given = list(map(str, get_args(kinds[field.name]))), getattr(rule, field.name)
            near = suggestion(str(given), allowed, "").strip()
            hint = f"; {near}" if near else ""
            raise InputError(f"{field.name} must be one of {', '.join(allowed)}, got {given!r}{hint}")
