"""What `rules`, `presets` and `data` list, as plain values in listing.json, so that a list needs no torch.

After a change of rules, presets or known data sets write the file anew: `python -m sidestep.cli.listing`. A test holds
it to what the library itself says.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

__all__ = ["LISTING", "listed", "listing"]

LISTING = Path(__file__).with_name("listing.json")
_OF_DATA = ("description", "licence", "train", "test", "channels", "class_names", "sizes", "download")


def listed(kind: str) -> dict[str, Any]:
    """Return the entries of a kind by name, as they are written: rules, presets, data, or modules, words on them."""
    found: dict[str, Any] = json.loads(LISTING.read_text(encoding="utf-8"))[kind]
    return found


def listing() -> dict[str, dict[str, Any]]:
    """Return what the library says of its rules, presets and known data sets."""
    # imported here: reading the file needs none of them
    from sidestep.data import names
    from sidestep.presets.catalogue import PRESETS
    from sidestep.rules import RULES
    from sidestep.rules.shared.variant import variant_of
    from sidestep.rules.support import support_of
    from sidestep.rules.takes import MODULES

    rules = {
        name: {
            "summary": kind.summary, "variant": variant_of(kind()), "readings": list(kind.readings),
            "defaults": {field.name: field.default for field in dataclasses.fields(kind)}, "takes": support_of(kind),
        }
        for name, kind in RULES.items()
    }  # fmt: skip
    return {
        "modules": MODULES,
        "rules": rules,
        "presets": {name: dataclasses.asdict(preset) for name, preset in PRESETS.items()},
        "data": {known.name: {key: getattr(known, key) for key in _OF_DATA} for known in names()},
    }


def _written() -> str:
    """Return the text of the file: one line for each entry, so that a change can be read."""
    kinds = []
    for kind, entries in listing().items():
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
        kinds.append(f"{json.dumps(kind)}: {{\n{lines}\n}}")
    return "{\n" + ",\n".join(kinds) + "\n}\n"


if __name__ == "__main__":
    LISTING.write_text(_written(), encoding="utf-8")
