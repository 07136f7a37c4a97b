"""The options of a command, read by tyro; what is wrong with them is said in sentences of ours."""

import contextlib
import functools
import inspect
import io
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from sidestep.cli.help import HELP, HELP_ALL, Groups, long_names
from sidestep.cli.misread import sentences
from sidestep.cli.output import complain, show

__all__ = ["parsed", "parsed_groups"]


def parsed(what: Callable[..., Any], program: str, arguments: Sequence[str], about: str | None = None) -> Any:
    """Call a function, or make a dataclass, with the options in `arguments`; exit with status 2 if they are wrong.

    Where `arguments` ask for help, print it and exit with status 0.
    """
    groups: Groups = {"options": (what, None)}
    _help(groups, program, arguments, about or what.__doc__ or "")

    @functools.wraps(what, updated=())
    def keep(*values: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(what, *values, **named)

    found = _read(what if isinstance(what, type) else keep, groups, program, arguments)
    return found if isinstance(what, type) else found()


def parsed_groups(groups: Groups, program: str, arguments: Sequence[str], about: str) -> tuple[Any, ...]:
    """Return one dataclass for each of the groups that the help shows, with the options in `arguments`."""
    _help(groups, program, arguments, about)

    def collect(*given: Any, **named: Any) -> tuple[Any, ...]:
        return (*given, *named.values())

    return _read(_with_signature(collect, groups), groups, program, arguments)


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


def _read(what: Callable[..., Any], groups: Groups, program: str, arguments: Sequence[str]) -> Any:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):  # not while the command itself runs
            return tyro.cli(what, prog=program, args=long_names(arguments), config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit:
        from sidestep.cli.help_page import options_of  # here, since it reads options that need torch

        known = [option for _, _, option in options_of(groups)]
        for wrong in sentences(said.getvalue(), program, known, arguments):
            complain(wrong)
        raise
