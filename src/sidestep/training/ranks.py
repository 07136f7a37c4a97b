"""What all ranks of a run agree on before its first step, and what rank 0 alone knows of where it stands."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from sidestep.errors import InputError
from sidestep.measure.processor import processor_name
from sidestep.nets.noprop.spread_blocks import SpreadBlocks
from sidestep.rules.protocol import Rule
from sidestep.steplog.header import digest_of
from sidestep.training.config import flat, without_none
from sidestep.training.folder import RunFolder
from sidestep.training.pieces import PIECE_BYTES, broadcast_tensors
from sidestep.training.state import State
from sidestep.training.unit_ranks import UnitRanks
from sidestep.world import World

__all__ = ["answers_of_all", "any_of", "bits_in_doubt", "check_same_everywhere", "share_kept", "share_state"]

_MAY_DIFFER = {"data.name", "data.data_dir", "train.device", "train.checkpoint_seconds", "versions.threads"}
_DOUBT = "versions.threads", "processor"


def check_same_everywhere(world: World, config: Mapping[str, Any], net: nn.Module, tell: Callable[[str], None]) -> None:
    """Raise InputError, on every rank, unless all ranks are about to train one net on the same data in the same way.

    Where processors or threads differ, so that the bits of one process cannot be promised, `tell` gets a sentence.
    """
    if world.size == 1:
        return
    own = {**flat(without_none(config)), "the untrained net": _untrained_digest(net), "processor": processor_name()}
    said = world.gather(json.dumps(own, sort_keys=True, default=str).encode())
    first = json.loads(said[0])
    for rank, message in enumerate(said):
        other = json.loads(message)
        keys = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
        wrong = [key for key in keys if key not in _MAY_DIFFER and key not in _DOUBT]
        if wrong:
            lines = "; ".join(f"{key}: {first.get(key, 'absent')} on rank 0, {other.get(key, 'absent')} on rank {rank}"
                              for key in wrong[:4])  # fmt: skip
            more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise InputError(
                f"the ranks were started otherwise ({lines}{more}): start all of them by the same command, with the "
                "same data and the same versions"
            )
    doubt = bits_in_doubt([json.loads(message) for message in said])
    if doubt:
        tell(doubt)


def _untrained_digest(net: nn.Module) -> str:
    """Return the digest of a net, of which this rank may have built all blocks and kept some."""
    if not (isinstance(net, SpreadBlocks) and net.drawn):
        return digest_of(net)
    shared = [value for name, value in net.named_parameters() if not name.startswith(("blocks.", "groups."))]
    return hashlib.blake2b(
        " ".join([digest_of(nn.ParameterList(shared)), *net.drawn]).encode(), digest_size=16
    ).hexdigest()


def bits_in_doubt(ranks: list[dict[str, Any]]) -> str | None:
    """Return a sentence where ranks compute on other processors, or with other numbers of threads."""
    for key, words in zip(_DOUBT, ("threads", "processors"), strict=True):
        values = sorted({str(each.get(key)) for each in ranks})
        if len(values) > 1:
            return (
                f"the ranks have other {words} ({', '.join(values)}): all of them stay at the same weights, but "
                "whether these are those of one process, to the bit, cannot be promised"
            )
    return None


def share_state(world: World, state: State, most: int = PIECE_BYTES) -> None:
    """Bring the states of all ranks to that of rank 0, which alone has read the folder, by messages of `most` bytes."""
    if world.size == 1:
        return
    steps = world.broadcast(state.step.to_bytes(8, "little"))
    if int.from_bytes(steps, "little") == 0:
        return
    tensors, record = state.tensors() if world.leads else ({}, {})
    found = broadcast_tensors(world, tensors, most)
    said = world.broadcast(json.dumps(record).encode())
    if not world.leads:
        state.restore(found, json.loads(said))


def share_kept(world: World, state: State, most: int = PIECE_BYTES) -> None:
    """Bring the weights that an observer of rank 0 has kept, if any, to all ranks, which end with the same net."""
    if world.size == 1:
        return
    found = broadcast_tensors(world, state.kept, most)
    if not world.leads:
        state.kept = {name: tensor.to(state.net_device) for name, tensor in found.items()}


def any_of(world: World, wanted: bool) -> bool:
    """Return whether any rank says yes."""
    return any(message == b"1" for message in world.gather(b"1" if wanted else b"0"))


def answers_of_all(world: World, ended: bool, failed: bool) -> tuple[bool, bool]:
    """Return whether observers of any rank have asked for the end, and whether any has failed."""
    said = world.gather(bytes([ended, failed]))
    return any(message[0] for message in said), any(message[1] for message in said)


def spread_units(parts: object, rule: Rule, state: State) -> None:
    """Leave each rank its own units, where a step is divided by them."""
    if isinstance(parts, UnitRanks):
        parts.spread(rule, state)


def share_start(parts: object, world: World, folder: RunFolder | None, state: State) -> None:
    """Bring all ranks to where rank 0, which alone has read the folder, stands."""
    if isinstance(parts, UnitRanks):
        parts.restore(state, lambda: folder.open_state() if folder else None)
    else:
        share_state(world, state)
