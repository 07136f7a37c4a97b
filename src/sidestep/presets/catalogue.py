"""The presets by name: `PRESETS` is the one list of them."""

from sidestep.errors import InputError
from sidestep.presets.noprop_paper import paper_presets
from sidestep.presets.noprop_recipes import improved_presets
from sidestep.presets.preset import ANY_TEXT, Changes, PaperCell, Preset
from sidestep.presets.stages import staged_presets
from sidestep.presets.ternary import ternary_presets
from sidestep.wording import suggestion

__all__ = [
    "ANY_TEXT",
    "PRESETS",
    "Changes",
    "PaperCell",
    "Preset",
    "check_fits",
    "find_preset",
    "other_presets",
    "presets_for",
]

PRESETS: dict[str, Preset] = {
    preset.name: preset for preset in (*paper_presets(), *improved_presets(), *ternary_presets(), *staged_presets())
}


def presets_for(data: str) -> list[Preset]:
    """Return the presets for a data set, by its name; there may be none.

    >>> [preset.name for preset in presets_for("bloodmnist")][:2]
    ['noprop-dt-bloodmnist', 'noprop-ct-bloodmnist']
    """
    return [preset for preset in PRESETS.values() if preset.data == data]


def find_preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        InputError: if there is none.
    """
    if name not in PRESETS:
        said = suggestion(name, PRESETS, "`sidestep presets` lists them")
        raise InputError(f"no preset is called {name!r}: {said}")
    return PRESETS[name]


def check_fits(preset: Preset, rule: str, data: str) -> None:
    """Raise InputError if a preset is for other data than these, with what there is for the rule on them.

    >>> check_fits(find_preset("noise-step-text"), "noise-step", "my.txt")
    """
    if preset.data == ANY_TEXT:
        if not data.endswith(".txt"):
            given = f", not {data}" if data != ANY_TEXT else ""
            raise InputError(f"preset {preset.name} is for a text of yours{given}: give --data FILE.txt")
    elif data != preset.data:
        raise InputError(f"preset {preset.name} is for {preset.data}, not {data}; {other_presets(data, rule)}")


def other_presets(data: str, rule: str) -> str:
    """Return a sentence on which presets there are for a rule on a data set."""
    found = [preset.name for preset in presets_for(data) if preset.rule == rule]
    if not found:
        return f"there is none for {rule} on {data}: leave --preset out and give the options"
    return f"for {rule} on {data} there are: {', '.join(found)}"
