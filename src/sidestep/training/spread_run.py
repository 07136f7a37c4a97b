"""A run whose net is spread over ranks when it ends: whole again where somebody asks for it, from the run's folder."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.training.folder import RunFolder
from sidestep.training.loop import Loop
from sidestep.training.state import State
from sidestep.training.trained import Run
from sidestep.training.unit_ranks import UnitRanks, hold_all, put_weights

__all__ = ["ended_run"]


def ended_run(loop: Loop, state: State) -> Run:
    """Return the run that `train` gives, without its result.

    Of units over ranks, each rank goes on holding its own alone: `run.net` reads the others from the model's file when
    it is first looked at. Raises InputError then, where that file cannot be seen, as on another machine than rank 0's,
    or where another run has taken its place.
    """
    place = loop.folder.path if loop.folder else None
    kind = _Spread if isinstance(loop.parts, UnitRanks) and state.elsewhere and loop.options.out else Run
    run = kind(loop.rule, state.net, loop.task, loop.compute, loop.options.seed, state.step, {}, place)
    if isinstance(run, _Spread) and isinstance(loop.parts, UnitRanks):
        run.elsewhere, run.count, run.written_to = (
            state.elsewhere,
            loop.parts.count,
            Path(str(loop.options.out)).absolute(),
        )
    run.table = loop.data.table
    return run


class _Spread(Run):
    __repr__, __eq__ = object.__repr__, object.__eq__  # the fields' own would look at the net, and so read a file
    elsewhere: frozenset[str] = frozenset()  # names of what other ranks hold
    count = 0  # units
    written_to = Path()

    @property
    def net(self) -> nn.Module:
        """The whole net."""
        if self.elsewhere:
            folder = RunFolder(self.written_to)
            found, own = folder.open_model(), self._net.state_dict()
            if found is None or not self._wrote(found[0], own):
                raise InputError(
                    f"each process holds some blocks of this net alone, and {folder.model_file}, from which the others "
                    "are read, is not here, or is another run's: predict on the machine of rank 0, or load that run"
                )
            put_weights(self._net, ((n, found[0][n].to(own[n].device, copy=True)) for n in sorted(self.elsewhere)))
            hold_all(self._net, self.count)
            self.elsewhere = frozenset()
        return self._net

    @net.setter
    def net(self, value: nn.Module) -> None:
        self._net = value

    def _wrote(self, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
        """Whether a model is of this run: it has the weights that are here, bit for bit."""
        here = own.keys() - self.elsewhere
        return tensors.keys() == own.keys() and all(
            torch.equal(tensors[name].to(own[name]), own[name]) for name in here
        )
