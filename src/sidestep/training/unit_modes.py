"""How the units of a net take their steps: all together, one after another, or with one at a time in memory."""

from pathlib import Path

import torch

from sidestep.errors import InputError
from sidestep.measure import keep_freed_memory, return_freed_memory
from sidestep.rules import RULES
from sidestep.rules.protocol import Rule, UnitByUnit
from sidestep.training.state import State
from sidestep.training.unit_files import UnitFiles

__all__ = ["check_units", "move_units", "unsupported_reason"]


def unsupported_reason(rule: Rule, units: str, device: torch.device) -> str | None:
    """Return why a rule's units cannot run so on a device, or None if they can."""
    if units != "together" and not isinstance(rule, UnitByUnit):
        able = [name for name, kind in RULES.items() if issubclass(kind, UnitByUnit)]
        return (
            f"units = {units} needs a rule with several units that can take their steps one after another, which "
            f"{rule.name} does not have; use units = together, or one of: {', '.join(able)}"
        )
    if units == "one-resident" and device.type != "cpu":
        return (
            f"units = one-resident keeps units in files that only a CPU reads, got device {device}; use device = cpu, "
            "or units = in-turn"
        )
    return None


def check_units(rule: Rule, units: str, device: torch.device) -> None:
    """Check that a rule's units can run so, and tell the C library what to do with freed memory.

    All together, it is kept, which saves time. Otherwise the process is to stay small, and it goes back to the system.

    Raises:
        InputError: if they cannot.
    """
    reason = unsupported_reason(rule, units, device)
    if reason:
        raise InputError(reason)
    if units == "together":
        keep_freed_memory()
    else:
        return_freed_memory()


def move_units(state: State, rule: Rule, units: str, folder: Path | None) -> None:
    """Put the units into files, with one-resident, before the first step.

    Args:
        state: of the net.
        rule: its rule.
        units: how its units run.
        folder: of the run, or None for temporary files.
    """
    if units == "one-resident":
        state.keep_in_files(UnitFiles(folder, rule.units(state.net)))
