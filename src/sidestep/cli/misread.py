"""What a command says of words and options that it cannot take: a sentence each, with what was given and the fix."""

import re
from collections.abc import Iterator, Sequence

from sidestep.cli.described import Described
from sidestep.cli.help import ALIASES, HELP, HELP_ALL, long_names
from sidestep.cli.listing import listed
from sidestep.wording import meant

__all__ = ["sentences"]

_FRAME = re.compile(r"[─│╭╮╰╯]+|-{4,}|^[|+]|[|+]$", re.MULTILINE)  # with letters of ASCII, too
_CHOICE = re.compile(r"invalid choice '(?P<value>[^']*)' for argument '(?P<option>--[a-z-]+)'")
_VALUE = re.compile(r"Error parsing (?P<option>--[a-z-]+)")
_NO_VALUE = re.compile(r"Missing value for argument '(?P<option>--[a-z-]+)'")
_TOO_MANY = re.compile(r"Unrecognized [a-z ]*options: (?P<words>.*?)(?: For full helptext|$)")
_OPTION = re.compile(r"--?[A-Za-z]")
_COMMAS = re.compile(r"[^,\s]+(,[^,\s]+)+")
_IN_WORDS = {"INT": "a whole number", "FLOAT": "a number", "TEXT": "a word", "PATH": "a path"}
_EXAMPLES = {"INT": "1", "FLOAT": "0.1", "PATH": "runs/a"}


def sentences(box: str, program: str, known: Sequence[Described], arguments: Sequence[str]) -> list[str]:
    """Return what is wrong with a command's arguments, in sentences of ours.

    Args:
        box: what the parser of options said of them, in its frame.
        program: the command, as it is typed.
        known: the options and the words that the command takes.
        arguments: what was given.
    """
    said = " ".join(_FRAME.sub(" ", box).split())
    for form in (_CHOICE, _VALUE, _NO_VALUE):
        found = form.search(said)
        option = next((each for each in known if found and found["option"] in _names(each)), None)
        if found and option:
            return [_wrong_value(option, arguments)]
    missing = [each for each in known if each.text and "Missing from" in said and each.text in said]
    wrong = [*_unknown_options(program, known, arguments), *(_needed(program, each) for each in missing)]
    extra = _TOO_MANY.search(said)
    if not wrong and extra:
        wrong = [_extra_word(program, extra["words"].split(", ")[0], known, arguments)]
    return wrong or [said]  # the parser's own words, where they have a form that we do not know


def _names(option: Described) -> set[str]:
    """Return all that can be typed for an option; a switch has its contrary, too."""
    first = option.option.partition(", ")[0]
    if option.positional:
        return set()
    return {first} if option.values else {first, "--no-" + first.removeprefix("--")}


def _wrong_value(option: Described, arguments: Sequence[str]) -> str:
    """Say what an option takes, and what it got."""
    long, given = option.option.partition(", ")[0], list[str]()
    typed = long
    for place, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if long_names([name.replace("_", "-")])[0] == long:
            typed, given = name, [value] if equals else _until_option(arguments[place + 1 :])
    got = " ".join(given)
    needed = f"{typed} takes {_in_words(option.values)}, got {repr(got) if given else 'nothing'}"
    choices = re.findall(r"[^{},|]+", "".join(re.findall(r"{[^}]*}", option.values)))
    if near := meant(got, choices, quoted=False).strip():
        return f"{needed}: {near}"
    if _COMMAS.fullmatch(got) and option.values.endswith("..."):
        return f"{needed}: several stand with spaces between them: {typed} {got.replace(',', ' ')}"
    example = option.default or next((_EXAMPLES[kind] for kind in _EXAMPLES if kind in option.values), "")
    return f"{needed}: give, for example, {typed} {example}" if example and " " not in example else needed


def _until_option(words: Sequence[str]) -> list[str]:
    end = next((place for place, word in enumerate(words) if _OPTION.match(word)), len(words))
    return list(words[:end])


def _in_words(values: str) -> str:
    """Return what an option takes in words.

    >>> _in_words("FLOAT"), _in_words("{auto,none}|INT"), _in_words("INT ...")
    ('a number', 'auto, none or a whole number', 'whole numbers')
    """
    several = values.endswith(" ...")
    parts: list[str] = []
    for part in re.findall(r"{[^}]*}|[^|{}]+", values.removesuffix(" ...")):
        words = part[1:-1].split(",") if part.startswith("{") else [_IN_WORDS.get(part, part)]
        parts += [f"{word.removeprefix('a ')}s" if several and word in _IN_WORDS.values() else word for word in words]
    return " or ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _needed(program: str, option: Described) -> str:
    """Say what a command cannot do without."""
    name = f"{option.option} {option.values}".strip()
    text = option.text.rstrip(".")
    return f"{program} needs {name}: {text if text[1:2].isupper() else text[:1].lower() + text[1:]}"


def _unknown_options(program: str, known: Sequence[Described], arguments: Sequence[str]) -> Iterator[str]:
    """Say of each option that there is none, why not, or which other is near."""
    names = [*HELP, HELP_ALL, *ALIASES, *(name for each in known for name in sorted(_names(each)))]
    given = (word.partition("=")[0] for word in arguments if _OPTION.match(word))
    for option in dict.fromkeys(name for name in given if name.replace("_", "-") not in names):
        near = meant(option.lstrip("-"), [name.lstrip("-") for name in names], quoted=False).strip()
        near = near.replace("did you mean ", "did you mean --")
        yield f"{program} takes no {option}: {_why_not(program, option) or near or _listed(program)}"


def _why_not(program: str, option: str) -> str:
    """Return why a command does not take an option of training or of another rule; nothing for an unknown option."""
    from sidestep.cli.training_options import LEFT_OUT, OF_TRAINING  # here, since they need torch

    command = program.removeprefix("sidestep ")
    name = long_names([option])[0].removeprefix("--").removeprefix("no-").replace("-", "_")
    reasons = next((LEFT_OUT[each] for each in LEFT_OUT if f"{command} ".startswith(f"{each} ")), {})
    if name in reasons:
        return reasons[name]
    if command.startswith("tune ") and name == "epochs":
        return "a fine-tune is as long as --steps says"
    rules = [rule for rule, entry in listed("rules").items() if name in entry["defaults"]]
    if command.startswith("train "):
        return f"it is an option of {', '.join(rules)}" if rules else ""
    return "it is an option of sidestep train" if rules or name in OF_TRAINING else ""


def _extra_word(program: str, word: str, known: Sequence[Described], arguments: Sequence[str]) -> str:
    """Say that a word stands where no word can, and which option may be meant."""
    before = arguments[arguments.index(word) - 1] if word in arguments[1:] else ""
    if any(before in _names(each) and not each.values for each in known):
        return f"{before} is a switch, which takes no value, got {word!r}: leave {word!r} out"
    names = [name.removeprefix("--") for each in known for name in _names(each)]
    names += [alias.removeprefix("--") for alias in ALIASES]
    near = meant(word.partition("=")[0], names, quoted=False, cutoff=0.75).strip()
    fix = near.replace("did you mean ", "did you mean --") or f"leave it out; {_listed(program)}"
    return f"{program} has no place for {word!r}: {fix}"


def _listed(program: str) -> str:
    return f"`{program} {HELP_ALL}` lists its options"
