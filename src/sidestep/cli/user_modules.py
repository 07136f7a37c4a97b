"""A module of the user's as a comparison takes it: the name of its file, which every process reads for itself."""

from dataclasses import dataclass

from torch import nn

from sidestep.cli.options import module_from

__all__ = ["ModuleOfFile"]


@dataclass(frozen=True)
class ModuleOfFile:
    """Makes what FILE.py:NAME makes; unlike a function of that file it can be passed to another process."""

    reference: str

    def __post_init__(self) -> None:
        module_from(self.reference)

    def __call__(self) -> nn.Module:
        """Return a new module."""
        return module_from(self.reference)()

    def __str__(self) -> str:
        """Return what was typed."""
        return self.reference
