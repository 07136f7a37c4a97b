"""A rank builds its own units alone, with the bits that they have in one process."""

import pytest
import torch

from sidestep import data, rules
from sidestep.nets.groups.group import Group
from sidestep.nets.noprop.blocks import Block
from sidestep.training.begin import begin
from sidestep.training.options import Options
from sidestep.training.ranks import _untrained_digest
from sidestep.training.unit_ranks import UnitRanks
from sidestep.world import Alone

RULES = {"noprop-dt": rules.NoPropDT(blocks=6), "blockwise": rules.Blockwise(groups=6, depth=6, width=16)}


class Of(Alone):
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def built(rule, rank=0, ranks=1, **given):
    parts = UnitRanks(Of(rank, ranks), 6) if ranks > 1 else None
    return begin(rule, data.load("digits"), Options(batch=64, steps=1, **given), parts=parts)[0].net


def weights(module):
    """Numbers of which a value is in memory."""
    return sum(each.untyped_storage().nbytes() // each.element_size() for each in module.parameters())


@pytest.mark.parametrize("name", RULES)
def test_a_rank_begins_with_its_own_units_and_their_bits(name):
    rule = RULES[name]
    whole = built(rule)
    nets = [built(rule, rank, 3) for rank in range(3)]
    units = {unit: names for unit, names in rule.units(whole).items() if unit.split()[-1].isdecimal()}
    assert len(units) == 6
    everything = dict(whole.named_parameters())
    own = sum(everything[name].numel() for names in units.values() for name in names)
    for rank, net in enumerate(nets):
        assert net.state_dict().keys() == whole.state_dict().keys()
        assert weights(net) < weights(whole) - 0.6 * own
        here = dict(net.named_parameters())
        for index, names in enumerate(units.values()):
            for name in names:
                assert here[name].shape == everything[name].shape
                assert (index % 3 != rank) or torch.equal(here[name], everything[name])
    assert len({_untrained_digest(net) for net in nets}) == 1
    assert _untrained_digest(built(rule, 0, 3, seed=1)) != _untrained_digest(nets[0])


@pytest.mark.parametrize("name", RULES)
def test_while_a_net_is_built_no_two_units_of_others_are_in_memory(name, monkeypatch):
    made, most, kind = [], [], Group if name == "blockwise" else Block
    plain = kind.__init__

    def counted(unit, *args, **given):
        plain(unit, *args, **given)
        made.append(unit)
        most.append(sum(map(weights, made)) / weights(unit))

    monkeypatch.setattr(kind, "__init__", counted)
    net = built(RULES[name], 2, 6)
    assert len(made) == 6
    assert max(most) < 2.1  # its own, and the one just drawn
    assert 1 <= sum(map(weights, made)) / weights(made[2]) < 1.1
    assert len(net.drawn) == 6
