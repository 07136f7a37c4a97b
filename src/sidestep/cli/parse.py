"""The options of a command, read by tyro; what it says of wrong ones repeats them, so it goes through our doors."""

import contextlib
import functools
import inspect
import io
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from sidestep.cli.help import HELP, HELP_ALL, Groups, long_names
from sidestep.cli.output import complain, complain_in_lines, show
from sidestep.wording import suggestion

__all__ = ["parsed", "parsed_groups"]

_CHOICE = re.compile(r"invalid choice '([^']*)' for argument '(--[a-z-]+)'\. Expected one of \(([^)]*)\)")
_COMMAS = re.compile(r"Error parsing (--[a-z-]+): [^\[]*\['([^', ]+(?:,[^', ]+)+)'\]")


def parsed(what: Callable[..., Any], program: str, arguments: Sequence[str], about: str | None = None) -> Any:
    """Call a function, or make a dataclass, with the options in `arguments`; exit with status 2 if they are wrong.

    Where `arguments` ask for help, print it and exit with status 0.
    """
    _help({"options": (what, None)}, program, arguments, about or what.__doc__ or "")

    @functools.wraps(what, updated=())
    def keep(*values: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(what, *values, **named)

    found = _read(what if isinstance(what, type) else keep, program, arguments)
    return found if isinstance(what, type) else found()


def parsed_groups(groups: Groups, program: str, arguments: Sequence[str], about: str) -> tuple[Any, ...]:
    """Return one dataclass for each of the groups that the help shows, with the options in `arguments`."""
    _help(groups, program, arguments, about)

    def collect(*given: Any, **named: Any) -> tuple[Any, ...]:
        return (*given, *named.values())

    return _read(_with_signature(collect, groups), program, arguments)


def _with_signature(collect: Callable[..., Any], groups: Groups) -> Callable[..., Any]:
    # without names of groups: where there are any, the parser frames a rule's own errors in words of its own
    plain = tyro.conf.arg(name="")
    parameters = [
        inspect.Parameter(
            title,
            inspect.Parameter.KEYWORD_ONLY,
            default=kind() if given is None else given,
            annotation=Annotated[kind, plain],
        )
        for title, (kind, given) in groups.items()
    ]
    collect.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    collect.__annotations__ = {each.name: each.annotation for each in parameters}
    return collect


def _help(groups: Groups, program: str, arguments: Sequence[str], about: str) -> None:
    asked = set(arguments) & {*HELP, HELP_ALL}
    if asked:
        from sidestep.cli.help_page import help_page  # here, since it reads options that need torch

        show(*help_page(program, groups, about, whole=HELP_ALL in asked))
        raise SystemExit(0)


def _read(what: Callable[..., Any], program: str, arguments: Sequence[str]) -> Any:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # not while the command itself runs
            return tyro.cli(what, prog=program, args=long_names(arguments), config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit:
        complain_in_lines(said.getvalue())
        _say_what_may_be_meant(" ".join(said.getvalue().replace("│", " ").split()))
        _say_why_not(program, arguments)
        raise


def _say_what_may_be_meant(said: str) -> None:
    """Say which value is near to one that there is not, and that several numbers stand with spaces between them."""
    for given, option, known in _CHOICE.findall(said):
        hint = suggestion(given, re.findall(r"'([^']*)'", known), "")
        if hint:
            complain(f"{option} {given}: {hint.strip()}")
    for option, given in _COMMAS.findall(said):
        complain(f"numbers of one option stand with spaces between them: {option} {given.replace(',', ' ')}")


def _say_why_not(program: str, arguments: Sequence[str]) -> None:
    """Say why a command does not take an option of training that was given; the parser has said that it does not."""
    from sidestep.cli.training_options import LEFT_OUT  # here, since it needs torch

    command = program.removeprefix("sidestep ")
    reasons = next((LEFT_OUT[name] for name in LEFT_OUT if f"{command} ".startswith(f"{name} ")), {})
    for option in {word.partition("=")[0] for word in long_names(arguments)}:
        reason = reasons.get(option.removeprefix("--").replace("-", "_"))
        if reason and option.startswith("--"):
            complain(f"sidestep {command} takes no {option}: {reason}")
