"""Units over ranks: each rank trains some of a net's units alone, and those that all share beside the others.

Nothing passes between units, so ranks exchange only their losses, and that somebody asked for a stop. Where the whole
net is needed, at the end of an epoch and of the run, every unit comes from the rank that trains it: its weights and
buffers for all, what the optimiser keeps of it for rank 0, which writes the one checkpoint.
"""

import json
import struct
from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from sidestep.data.share import Share
from sidestep.errors import InputError, RankError
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Rule
from sidestep.training.options import Compute
from sidestep.training.state import State
from sidestep.training.stopping import StopRequest
from sidestep.update import Dense, Update
from sidestep.world import World

__all__ = ["UnitRanks"]

_SIGNAL = struct.Struct("<B")


class UnitRanks:
    """Trains this rank's units; `count` of them are divided, the first ones of the rule's units."""

    def __init__(self, world: World, count: int) -> None:
        self.world, self.count = world, count
        self.signal = 0  # the largest of a stop request that any rank had got before the last exchange
        self._names: list[list[str]] = []  # of the losses of each rank

    def estimate(  # long: what an estimate depends on
        self, rule: Rule, net: nn.Module, batch: Batch, noise: Noise, compute: Compute, stop: StopRequest
    ) -> Update:
        """Return the update of this rank's units and of those that all share, with the losses of all ranks."""
        own = Batch(batch.inputs, batch.targets, batch.objective, Share("units", self.world.rank, self.world.size))
        with compute.autocast():
            update = rule.estimate(net, own, noise)
        if not isinstance(update, Dense):
            raise InputError(f"units over ranks have gradients of their own, and {rule.name} gives another update")
        names, losses = list(update.losses), [float(loss) for loss in update.losses.values()]
        if not self._names:
            self._names = [json.loads(said) for said in self.world.gather(json.dumps(names).encode())]
        message = _SIGNAL.pack(stop.signal_number) + np.array(losses, "<f4").tobytes()
        found: dict[str, Tensor] = {}
        signals = []
        for rank, (said, own_names) in enumerate(zip(self.world.gather(message), self._names, strict=True)):
            if len(said) != _SIGNAL.size + 4 * len(own_names):
                raise RankError(f"rank {rank} sent {len(said)} bytes that are not the losses of its units")
            values = np.frombuffer(said, "<f4", offset=_SIGNAL.size).tolist()
            found |= dict(zip(own_names, map(torch.tensor, values), strict=True))
            signals.append(_SIGNAL.unpack_from(said)[0])
        self.signal = max(signals)
        return Dense(update.gradients, update.statistics, found, update.combination)

    def collect(self, rule: Rule, state: State) -> None:
        """Bring every unit's weights and buffers to all ranks, and what its optimiser keeps of it to rank 0."""
        owner = self._owner(rule, state.net)
        own = {name: value for name, value in state.net.state_dict().items() if owner(name) == self.world.rank}
        tensors = {f"net/{name}": value for name, value in own.items()}
        for name, parameter in state.net.named_parameters():
            if owner(name) == self.world.rank and not self.world.leads:
                kept = state.optimizer.state.get(parameter, {})
                tensors |= {f"optimizer/{key}/{name}": value for key, value in kept.items()}
        sent = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        parameters, whole = dict(state.net.named_parameters()), state.net.state_dict()
        for rank, said in enumerate(self.world.gather(save(sent))):
            if rank == self.world.rank:
                continue
            for entry, value in load(said).items():
                what, _, name = entry.partition("/")
                if what == "net" and owner(name) == rank:
                    whole[name].copy_(value)
                elif what == "optimizer" and self.world.leads:
                    key, _, name = name.partition("/")
                    place = value.device if value.ndim == 0 else parameters[name].device
                    state.optimizer.state[parameters[name]][key] = value.to(place)

    def _owner(self, rule: Rule, net: nn.Module) -> Callable[[str], int]:
        """Return what says whose a parameter or buffer is, by its name; what all ranks share is nobody's, -1."""
        prefixes = {}
        for index, names in enumerate(list(rule.units(net).values())[: self.count]):
            prefixes[_common(names)] = index % self.world.size

        def owner(name: str) -> int:
            return next((rank for prefix, rank in prefixes.items() if name.startswith(prefix)), -1)

        return owner


def _common(names: list[str]) -> str:
    """Return what the names of one unit begin with, up to its number: blocks.3."""
    parts = [name.split(".") for name in names]
    found = []
    for words in zip(*parts, strict=False):
        if len(set(words)) > 1:
            break
        found.append(words[0])
        if words[0].isdecimal():
            break
    return ".".join(found) + "."
