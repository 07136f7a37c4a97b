"""The presets by name: `PRESETS` is the one list of them."""

import difflib

from sidestep.errors import InputError
from sidestep.presets.noprop_paper import paper_presets
from sidestep.presets.noprop_recipes import improved_presets
from sidestep.presets.preset import Changes, PaperCell, Preset
from sidestep.presets.stages import staged_presets
from sidestep.presets.ternary import ternary_presets

__all__ = ["PRESETS", "Changes", "PaperCell", "Preset", "find_preset", "presets_for"]

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
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"no preset is called {name!r}: {hint}`sidestep presets` lists them")
    return PRESETS[name]
