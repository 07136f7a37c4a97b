"""What is compared: `RULE:option=value,option=value`, read into a rule's options and those of its training."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sidestep.errors import InputError
from sidestep.presets.catalogue import PRESETS
from sidestep.rules import RULES, Rule
from sidestep.rules.shared.same_net import SameNet
from sidestep.training import Options
from sidestep.wording import suggestion

__all__ = ["BASELINE_KIND", "NOT_OF_ONE", "Entry", "find_baseline", "read_entries", "with_learning_rate"]

# of no single entry: what all have alike, and what only a run that leaves a folder does
NOT_OF_ONE = frozenset(
    {"epochs", "steps", "seed", "device", "checkpoint_seconds", "out", "resume", "overwrite", "align", "patience"}
)
BASELINE_KIND = "back-propagation"  # of entries that are made, to stand beside others
_NUMBER = re.compile(r"[-+.\d][-+.\deE_]*")


@dataclass(frozen=True)
class Entry:
    """A rule with its options, as it takes part in a comparison."""

    label: str  # what was typed
    rule: str  # its name in `sidestep.rules.RULES`
    options: Mapping[str, Any] = field(default_factory=dict)  # of the rule's fields; the others keep their defaults
    train: Mapping[str, Any] = field(default_factory=dict)  # of the fields of `sidestep.training.Options`
    data: str | None = None  # the data set that its preset is for
    same_net: bool = False  # back-propagation on the net of this rule, and not the rule

    def make(self) -> Rule:
        """Return the rule."""
        rule = RULES[self.rule](**self.options)
        return SameNet(rule) if self.same_net else rule

    @property
    def kind(self) -> str:
        """What the entry trains by, in a word."""
        return BASELINE_KIND if self.same_net else self.rule

    def training(self, common: Mapping[str, Any], **own: Any) -> Options:
        """Return the options of a run: the entry's own go before those that are common to all."""
        return Options(**{**common, **self.train, **own})


def read_entries(words: Sequence[str], common: Mapping[str, Any] | None = None) -> list[Entry]:
    """Return the entries that are meant by `RULE`, `RULE:option=value,option=value`, a preset's name, or `all`.

    Words are cut at commas and spaces; what holds no name of its own (`option=value`, or a number) belongs to the entry
    before: `backprop,evolution:hidden=128,64,population=32,spsa` are three. An option is one of the rule's (`sidestep
    train RULE --help`), or one of training that can differ between entries, such as `batch` or `decay`. A preset gives
    its rule's options and its training's, without the epochs.

    Args:
        words: one or several of them.
        common: training options that all are given, which go before a preset's.

    Raises:
        InputError: for an unknown rule or option, a value that it cannot take, or what is listed twice.

    >>> [entry.label for entry in read_entries(["hebbian,evolution:hidden=128,64,population=32", "spsa"])]
    ['hebbian', 'evolution:hidden=128,64,population=32', 'spsa']
    """
    found: list[Entry] = []
    given = common or {}
    for text in _cut(words):
        for name in RULES if text == "all" else [text]:
            entry = _read(name, given)
            for other in found:
                if (entry.make(), entry.training(given)) == (other.make(), other.training(given)):
                    raise InputError(f"{entry.label} and {other.label} are the same: every entry may be listed once")
            found.append(entry)
    if not found:
        raise InputError(f"there is nothing to compare; give --rules all, or some of: {', '.join(RULES)}")
    return found


def with_learning_rate(entries: Sequence[Entry], rate: float) -> list[Entry]:
    """Return the entries with a learning rate, where they give none of their own.

    Raises:
        InputError: for an entry whose rule has no learning rate, or for one that it cannot take.
    """
    found = []
    for entry in entries:
        if "learning_rate" not in {each.name for each in dataclasses.fields(RULES[entry.rule])}:
            raise InputError(f"{entry.label} has no learning rate: leave it out of --rules, or leave --lr out")
        found.append(dataclasses.replace(entry, options={"learning_rate": rate, **entry.options}))
        found[-1].make()
    return found


def find_baseline(entries: Sequence[Entry], name: str) -> Entry:
    """Return the entry that the others are compared with: of that label, or the first plain one of that rule.

    Raises:
        InputError: if there is none, or several that differ in their options.
    """
    exact = [entry for entry in entries if entry.label == name]
    of_rule = [entry for entry in entries if entry.rule == name]
    if exact or len(of_rule) == 1:
        return (exact or of_rule)[0]
    labels = ", ".join(entry.label for entry in entries)
    if of_rule:
        raise InputError(f"--baseline {name} could be several; give one of: {labels}")
    raise InputError(
        f"the baseline {name} is not among the rules ({labels}): add it to --rules, or name one of them by --baseline"
    )


def _cut(words: Sequence[str]) -> list[str]:
    """Cut at commas and spaces, and join what belongs to the entry before."""
    found: list[str] = []
    for piece in (piece for word in words for piece in re.split(r"[,\s]+", word)):
        if not piece:
            continue
        name = piece.partition("=")[0]
        belongs = ("=" in piece and ":" not in name) or _NUMBER.fullmatch(piece)
        if not belongs:
            found.append(piece)
        elif not found:
            raise InputError(f"{piece!r} stands before any rule; the form is RULE:option=value,option=value")
        else:
            found[-1] += ("," if ":" in found[-1] else ":") + piece
    return found


def _read(text: str, common: Mapping[str, Any]) -> Entry:
    name, _, rest = text.partition(":")
    if name in PRESETS:
        preset = PRESETS[name]
        rule, data = preset.rule, preset.data
        options = dict(preset.options)
        train = {key: value for key, value in preset.train.items() if key not in NOT_OF_ONE and key not in common}
    elif name in RULES:
        rule, data, options, train = name, None, {}, {}
    else:
        listing = f"there are: all, {', '.join(RULES)}, and `sidestep presets`"
        raise InputError(f"unknown rule {name!r}: {suggestion(name, [*RULES, *PRESETS], listing)}")
    kinds = {key: kind for key, kind in get_type_hints(Options).items() if key not in NOT_OF_ONE}
    own = get_type_hints(RULES[rule])
    own = {each.name: own[each.name] for each in dataclasses.fields(RULES[rule])}
    for option, value in _pairs(rest, text):
        if option in own:
            options[option] = _value(own[option], value, f"{option} of {rule}")
        elif option in kinds:
            train[option] = _value(kinds[option], value, option)
        else:
            names = [*own, *kinds]
            listing = f"it has: {', '.join(names)}"
            raise InputError(f"{rule} has no option {option!r}: {suggestion(option, names, listing)}")
    entry = Entry(text, rule, options, train, data)
    try:
        entry.make()
        entry.training(common)
    except InputError as error:
        raise InputError(f"{text}: {error}") from error
    return entry


def _pairs(rest: str, text: str) -> list[tuple[str, str]]:
    """Read `a=1,b=2,3` into [("a", "1"), ("b", "2,3")]; dashes in names are taken for underscores."""
    found: list[tuple[str, str]] = []
    for piece in filter(None, rest.split(",")):
        name, sign, value = piece.partition("=")
        if sign:
            found.append((name.strip().removeprefix("--").replace("-", "_"), value.strip()))
        elif found:
            found[-1] = found[-1][0], f"{found[-1][1]},{piece}"
        else:
            raise InputError(f"{text}: {piece!r} is no option; the form is RULE:option=value,option=value")
    return found


def _value(kind: Any, text: str, name: str) -> Any:
    """Return what a text stands for: a bool, a number, one of several words, numbers with commas, or none of these."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if text.lower() == "none" and NoneType in parts:
            return None
        return _value(next(part for part in parts if part is not NoneType), text, name)
    if origin is Literal:
        if text in parts:
            return text
        raise InputError(f"{name} must be one of {', '.join(map(str, parts))}, got {text!r}")
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise InputError(f"{name} must be true or false, got {text!r}")
    if origin is tuple:
        return tuple(_value(parts[0], part, name) for part in filter(None, text.split(",")))
    if kind is str:
        return text
    try:
        return kind(text)
    except (TypeError, ValueError) as error:
        word = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} must be {word}, got {text!r}") from error
