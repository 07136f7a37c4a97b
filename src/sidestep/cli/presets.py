"""`sidestep presets`: the recipes that `sidestep train --preset NAME` takes."""

import dataclasses

from sidestep.cli.output import show, show_json, show_table
from sidestep.cli.parse import parsed
from sidestep.errors import InputError
from sidestep.presets.catalogue import PRESETS, PaperCell, presets_for
from sidestep.wording import suggestion

__all__ = ["presets_command"]


def presets_command(arguments: list[str]) -> None:
    """Parse the options and list the presets."""
    parsed(_presets, "sidestep presets", arguments)


def _presets(*, data: str | None = None, json: bool = False) -> None:
    """List the presets.

    Args:
        data: Only those for this data set.
        json: Print one JSON object, with the values of every preset.
    """
    found = list(PRESETS.values()) if data is None else presets_for(data)
    if not found:
        sets = list(dict.fromkeys(preset.data for preset in PRESETS.values()))
        said = suggestion(str(data), sets, f"there are some for {', '.join(sets)}")
        raise InputError(f"there is no preset for the data set {data!r}: {said}")
    if json:
        show_json({preset.name: dataclasses.asdict(preset) for preset in found})
        return
    rows = [[preset.name, preset.data, preset.rule, _reported(preset.paper), preset.summary] for preset in found]
    show_table("", ["preset", "data", "rule", "the paper's %", "what it is"], rows)
    show("", "`sidestep train --preset NAME` trains by one; options given beside it go first.")


def _reported(cell: PaperCell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.mean:.2f}" + ("" if cell.error is None else f" ± {cell.error:.2f}")
