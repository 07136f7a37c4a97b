"""The baselines of a comparison: for every entry back-propagation on the net that the entry's rule builds.

Entries whose end-to-end nets, options of training and shared hyper-parameters are the same have one baseline, which is
run once. An entry that is plain back-propagation on that net already is the baseline itself, and nothing is added.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sidestep.bench.comparison.entries import BASELINE_KIND, Entry
from sidestep.bench.comparison.rounds import Comparison
from sidestep.data import DataSet
from sidestep.rules.protocol import Task
from sidestep.rules.shared.same_net import SameNet
from sidestep.rules.untrained import untrained

__all__ = ["with_baselines"]


@dataclass(frozen=True)
class _Found:
    """An entry that stands as baseline, and what makes another one's the same."""

    entry: Entry
    key: tuple[object, ...]


def with_baselines(race: Comparison) -> tuple[Comparison, dict[str, str]]:
    """Return the comparison with the baselines that it lacks, and entry -> its baseline, by their labels.

    Raises:
        InputError: for a net that has no end-to-end form.
    """
    sets = [race.load(name) for name in race.data]
    keys = {entry.label: _key(entry, sets, race) for entry in race.entries}
    found = [_Found(entry, keys[entry.label]) for entry in race.entries if getattr(entry.make(), "end_to_end", False)]
    of: dict[str, str] = {}
    made: list[Entry] = []
    for entry in race.entries:
        there = next((each for each in found if each.key == keys[entry.label]), None)
        if there is None:
            train = {**entry.train, "units": "together"}  # it has one unit
            label = f"{BASELINE_KIND} on the net of {entry.label}"
            there = _Found(replace(entry, label=label, train=train, same_net=True), keys[entry.label])
            found.append(there)
            made.append(there.entry)
            of[label] = label
        of[entry.label] = there.entry.label
    return replace(race, baselines=tuple(made)), of


def _key(entry: Entry, sets: Sequence[DataSet], race: Comparison) -> tuple[object, ...]:
    """What a baseline's training follows from, but for the seed: layers and shapes, hyper-parameters, options."""
    rule = SameNet(entry.make())
    options = replace(entry.training(race.common, seed=race.seed), units="together")
    nets = []
    for data in sets:
        net = untrained(rule, Task.of(data), race.seed, data.train, race.module)
        sizes = tuple((name, tuple(parameter.shape)) for name, parameter in net.named_parameters())
        nets.append((str(net), sizes))
    return (*nets, tuple(rule.shared.items()), options)
