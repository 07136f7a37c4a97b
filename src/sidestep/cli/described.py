"""What a command's options are, as the help shows them: names, values, texts and defaults, read from their one place.

An option is a field of a dataclass, with its text in the docstring below it, or an argument of a function, with its
text under `Args:`. A field without a text of its own has that of the field of the same name in `texts`.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

__all__ = ["Described", "described", "field_texts"]

_ENTRY = re.compile(r"^ {4}(\w+): ", re.MULTILINE)
_DEFAULT = re.compile(r"\s*\bDefault: (?P<words>[^.]*(?:\.\d[^.]*)*)\.(?=\s|$)")
_WORDS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Described:
    """An option, or a word without one, as the help shows it."""

    name: str  # of the field
    option: str  # what is typed: --learning-rate, or RUN for a word without an option
    values: str  # what stands for its value, empty for a switch
    text: str
    default: str  # empty where there is nothing to say
    positional: bool = False


def described(kind: Callable[..., Any], texts: Mapping[str, str], given: Any = None) -> list[Described]:
    """Return the options of a dataclass or a function in their order; `given` holds other defaults."""
    hints = get_type_hints(kind, include_extras=True)
    if isinstance(kind, type):
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        own = {**texts, **field_texts(kind)}
    else:
        defaults = {name: each.default for name, each in inspect.signature(kind).parameters.items()}
        own = {**texts, **_argument_texts(kind)}
    return [
        _described(name, hints[name], getattr(given, name, value), own.get(name, ""))
        for name, value in defaults.items()
    ]


def _described(name: str, hint: Any, value: Any, text: str) -> Described:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    kind = get_args(hint)[0] if marks else hint
    said = _DEFAULT.search(text)
    if said:
        text = text[: said.start()] + text[said.end() :]
    values = _values(kind)
    if tyro.conf.Positional in marks:
        return Described(name, name.upper() + (" ..." if values.endswith("...") else ""), "", text, "", True)
    renamed = next((mark.name for mark in marks if getattr(mark, "name", None)), None)
    option = "--" + (renamed or name).replace("_", "-")
    if value is True:
        option += ", --no-" + option.removeprefix("--")
    return Described(name, option, values, text, said["words"] if said else _default(value))


def _values(kind: Any) -> str:
    """Return what stands for the value of an option, without the None that no one types."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is bool:
        return ""
    if origin is Annotated:
        return _values(parts[0])
    if origin in (Union, UnionType):
        found = [_values(part) for part in parts if part is not NoneType]
        return "|".join(dict.fromkeys(filter(None, found)))
    if origin is Literal:
        return "{" + ",".join(map(str, parts)) + "}"
    if origin is tuple:
        inner = _values(parts[0])
        return inner if inner.endswith("...") else f"{inner} ..."
    return _WORDS.get(kind, "TEXT")


def _default(value: Any) -> str:
    """Return a default as it would be typed; nothing for none, and for a switch."""
    if value is True:
        return "yes"
    if value is None or value is False or value in ("", ()) or value is inspect.Parameter.empty:
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def field_texts(kind: type[Any]) -> dict[str, str]:
    """Return the docstrings that stand below the fields of a dataclass, and below those of its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # built in, or made at run time
            continue
        body = ast.parse(source).body[0]
        if not isinstance(body, ast.ClassDef):
            continue
        for field, below in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def _argument_texts(what: Callable[..., Any]) -> dict[str, str]:
    """Return name -> text of the `Args:` of a function's docstring."""
    args = inspect.cleandoc(what.__doc__ or "").partition("\nArgs:\n")[2]
    pieces = _ENTRY.split(args)
    return {name: " ".join(text.split()) for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}
