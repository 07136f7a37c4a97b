"""Units over ranks: each rank trains some of a net's units alone, and those that all share beside the others.

Nothing passes between units, so ranks exchange only their losses, and that somebody asked for a stop. A rank holds the
weights, gradients and optimiser memory of its own units alone. For a checkpoint every unit comes to rank 0, which puts
it into a file until it writes those of the run; predictions pass from rank to rank, block after block, at the end, too.
Without a folder every rank gets the whole net then.
"""

import json
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from sidestep.checkpoint import optimizer_tensors
from sidestep.data.share import Share
from sidestep.errors import InputError, RankError
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, Rule
from sidestep.training.evaluation_progress import Count
from sidestep.training.gathered import NET, OPTIMIZER, Gathered, places_of
from sidestep.training.options import Compute
from sidestep.training.pieces import broadcast_each, tensors_of
from sidestep.training.state import KEPT, State
from sidestep.training.stopping import StopRequest
from sidestep.update import Dense, Update
from sidestep.world import World

__all__ = ["UnitRanks", "hold_all", "put_weights"]

Found: TypeAlias = tuple[Mapping[str, Tensor], dict[str, Any]]

_SIGNAL = struct.Struct("<B")


class UnitRanks:
    """Trains this rank's units; `count` of them are divided, the first ones of the rule's units.

    folder: where rank 0 writes checkpoints, if there are any; the same on all ranks.
    """

    def __init__(self, world: World, count: int, folder: Path | None = None) -> None:
        self.world, self.count, self.folder = world, count, folder
        self.share = Share("units", world.rank, world.size)
        self.collected_at = -1  # the step
        self.signal = 0  # the largest of a stop request that any rank had got before the last exchange
        self._names: list[list[str]] = []  # of the losses of each rank
        self._prefixes: dict[str, int] = {}  # whose the parameters and buffers are, by what their names begin with

    def estimate(  # long: what an estimate depends on
        self, rule: Rule, net: nn.Module, batch: Batch, noise: Noise, compute: Compute, stop: StopRequest
    ) -> Update:
        """Return the update of this rank's units and of those that all share, with the losses of all ranks."""
        own = Batch(batch.inputs, batch.targets, batch.objective, self.share)
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

    def spread(self, rule: Rule, state: State) -> None:
        """Let go of the units of other ranks: from now on only the shapes of their weights are here."""
        self._prefixes = {_common(names): index % self.world.size for index, names in self._units(rule, state.net)}
        names = [*state.net.state_dict()]
        state.elsewhere = frozenset(name for name in names if self._owner(name) not in (-1, self.world.rank))
        for name, parameter in state.net.named_parameters():
            if name in state.elsewhere:
                parameter.data = parameter.new_zeros(()).expand(parameter.shape)
        if not isinstance(state.net, _Spreads):
            raise InputError(f"the net of {rule.name} cannot be spread over ranks: give --split batch")
        state.net.hold(self.share.units(self.count))

    def restore(self, state: State, opened: Callable[[], Found | None]) -> None:
        """Bring every rank's units to where rank 0, which has restored its own, finds them in its checkpoint."""
        if int.from_bytes(self.world.broadcast(state.step.to_bytes(8, "little")), "little") == 0:
            return
        tensors, record = (opened() if self.world.leads else None) or ({}, {})
        record = json.loads(self.world.broadcast(json.dumps(record).encode()))
        places, found = places_of(state.net, state.optimizer), dict[str, Tensor]()
        for name, tensor in broadcast_each(self.world, tensors):
            what, _, rest = name.partition("/")
            of = places[int(rest.split(".")[0])] if what == "optimizer" else rest
            if what == "sum" or of not in state.elsewhere:
                found[name] = tensor
        if not self.world.leads:
            state.restore(found, record)

    def collect(self, state: State, kept: bool = False) -> None:
        """Bring what a checkpoint needs of every unit to rank 0, into a file there; or what an observer has just kept.

        Nothing, where there is no folder, or where it has been done after this step.
        """
        if kept and not self._keep_alike(state):
            return
        if self.folder is None or (self.collected_at == state.step and not kept):
            return
        self.collected_at = state.step
        if self.world.leads and not (kept and state.gathered):
            state.gathered = Gathered(self.folder)
        values: dict[str, Any] = {}
        own = {f"{KEPT}{name}": value for name, value in state.kept.items() if self._owner(name) == self.world.rank}
        if not kept:
            whole = state.net.state_dict()
            own |= {f"{NET}{name}": value for name, value in whole.items() if self._owner(name) == self.world.rank}
            moments, values = self._moments(state)
            own |= moments
        for source in range(1, self.world.size):
            for name, tensor in tensors_of(self.world, source, own):
                if self.world.leads and state.gathered:
                    state.gathered.put(name, tensor)
        for said in self.world.gather(b"" if self.world.leads else json.dumps(values).encode())[1:]:
            if state.gathered:
                state.gathered.values |= json.loads(said)

    def collected(self, state: State) -> bool:
        """Whether all that a checkpoint needs is on rank 0: after every epoch, and where all ranks have stopped."""
        return self.collected_at == state.step

    def _keep_alike(self, state: State) -> bool:
        """Keep the weights on all ranks where an observer of rank 0 has; return whether it has just now."""
        kept = self.world.broadcast(b"1" if state.kept_step == state.step else b"0") == b"1"
        if kept and state.kept_step != state.step:
            state.keep()
        return kept

    def settle(self, state: State, stop: StopRequest) -> None:
        """End the training: each rank is left with its weights, those that were kept, if any; all or none stop here."""
        self.collect(state)  # of a run that goes on after its last step
        stop.signal_number = self._heard(stop)
        if self.world.broadcast(b"0" if state.kept_step is None else b"1") == b"0":
            state.forget()  # as an observer of rank 0 has, which the others were not told
        state.optimizer.state.clear()
        with torch.no_grad():
            own = state.net.state_dict()
            for name, value in state.kept.items():
                own[name].copy_(value)
        state.kept = {}

    def whole(self, state: State) -> None:
        """Make the net whole on every rank, tensor by tensor."""
        own = state.net.state_dict()
        for source in range(self.world.size):
            mine = {name: value for name, value in own.items() if self._owner(name) == self.world.rank == source}
            sent = dict(tensors_of(self.world, source, mine))
            passed = broadcast_each(self.world, sent)
            put_weights(state.net, ((name, value) for name, value in passed if name in state.elsewhere))
        state.elsewhere = frozenset()
        hold_all(state.net, self.count)

    @contextmanager
    def predicting(self, net: nn.Module) -> Iterator[None]:
        """Predict with the blocks where they are, on all ranks together, batch after batch."""

        def passed(index: int, logits: Tensor | None) -> Tensor:
            said = self.world.gather(b"" if logits is None else save({"logits": logits.cpu().contiguous()}))
            return logits if logits is not None else load(said[index % self.world.size])["logits"].to(device)

        device = next(net.parameters()).device
        with net.spread(passed) if isinstance(net, _Spreads) else nullcontext():
            yield

    @contextmanager
    def counting(self, net: nn.Module, count: Count, asked: StopRequest, agreed: StopRequest) -> Iterator[None]:
        """Predict together from where rank 0 stands in a split, and agree after each batch on whether to stop.

        Args:
            net: of which each rank has its own blocks.
            count: of each rank; changed to that of rank 0.
            asked: what this rank has heard.
            agreed: set to what any rank had heard before the exchange.
        """
        own = [count.right, count.images, count.sums]
        count.right, count.images, count.sums = json.loads(self.world.broadcast(json.dumps(own).encode()))
        counted = count.after_batch

        def after_batch() -> None:
            agreed.signal_number = self._heard(asked)
            counted()

        count.after_batch = after_batch
        with self.predicting(net):
            yield

    def _heard(self, stop: StopRequest) -> int:
        """Return the largest signal that any rank has got."""
        return max(_SIGNAL.unpack(said)[0] for said in self.world.gather(_SIGNAL.pack(stop.signal_number)))

    def _moments(self, state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what the optimiser keeps of this rank's units, by its names in a checkpoint: tensors, and the rest."""
        tensors, record = optimizer_tensors(state.optimizer)
        places = places_of(state.net, state.optimizer)
        own = lambda entry: self._owner(places[int(entry.split(".")[0])]) == self.world.rank  # noqa: E731
        moments = {f"{OPTIMIZER}{entry}": value for entry, value in tensors.items() if own(entry)}
        return moments, {entry: value for entry, value in record["values"].items() if own(entry)}

    def _units(self, rule: Rule, net: nn.Module) -> Iterator[tuple[int, list[str]]]:
        return enumerate(list(rule.units(net).values())[: self.count])

    def _owner(self, name: str) -> int:
        """Return whose a parameter or buffer is, by its name; what all ranks share is nobody's, -1."""
        return next((rank for prefix, rank in self._prefixes.items() if name.startswith(prefix)), -1)


def put_weights(net: nn.Module, found: Iterable[tuple[str, Tensor]]) -> None:
    """Give parameters and buffers that were elsewhere these values, which parameters keep as they are."""
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())
    for name, value in found:
        if name in parameters:
            value = value.to(parameters[name].device)
            parameters[name].data = net.laid_out(name, value) if isinstance(net, _Spreads) else value
        else:
            buffers[name].copy_(value)


def hold_all(net: nn.Module, count: int) -> None:
    """Note that all units of a net that was spread are here."""
    if isinstance(net, _Spreads):
        net.hold(range(count))


@runtime_checkable
class _Spreads(Protocol):
    """A net whose units may be on other ranks."""

    def hold(self, own: Collection[int]) -> None:
        """Note which units are here."""
        ...

    def laid_out(self, name: str, value: Tensor) -> Tensor:
        """Return the value of a parameter that was elsewhere as such a one lies in memory."""
        ...

    def spread(self, passed: Callable[[int, Tensor | None], Tensor]) -> AbstractContextManager[None]:
        """Predict with all units, of which `passed` gives what those elsewhere do."""
        ...


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
