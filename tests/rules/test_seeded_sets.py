"""Seeded sets of moves: which one a step chooses, what it does to the momentum, and what a log keeps of it."""

import zlib
from types import SimpleNamespace

import pytest
import torch

from sidestep import train
from sidestep.errors import InputError, NonFiniteError
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.nets.ternary.nets import ternary_mlp
from sidestep.noise import Noise
from sidestep.rules import NoiseStep
from sidestep.rules.shared.flips import TernaryOptimizer, choose_sets
from sidestep.seeded_sets import CHOICES, ChosenSets, best_sets, moves_of_sets
from sidestep.steplog.codecs import sets
from sidestep.steplog.codecs.sets import SetsCodec
from sidestep.steplog.format import DamagedLogError, varint
from sidestep.steplog.replay import rebuild
from sidestep.training import Options


def one_set(number, members=3, size=50, parameter=0, step=2):
    """The moves of one set, place -> move."""
    counts = (0,) * parameter + (1,)
    sets = ChosenSets(members, step, counts, torch.tensor([number], dtype=torch.uint8))
    places, moves = moves_of_sets(sets, [7] * parameter + [size])
    return dict(zip((places - 7 * parameter).tolist(), moves.tolist(), strict=True))


def gain_of(moves, gains):
    return sum(float(gains[place, (move + 1) // 2]) for place, move in moves.items())


def test_the_best_of_all_sets_is_chosen():
    gains = Noise(1).normal(2 * 5000).view(5000, 2)  # so many places that hardly a set has one of them twice
    chosen = int(best_sets(gains, 1, 3, 0, 2))
    scores = [gain_of(one_set(number, size=5000), gains) for number in range(CHOICES)]
    assert scores[chosen] == pytest.approx(max(scores), rel=1e-5)
    assert max(scores) > sorted(scores)[-2]


def test_choices_made_in_pieces_are_those_made_at_once(monkeypatch):
    gains = Noise(2).normal(2 * 300).view(300, 2)
    whole = best_sets(gains, 9, 4, 1, 0)
    sets = ChosenSets(4, 0, (0, 9), whole)
    moved = moves_of_sets(sets, [7, 300])
    monkeypatch.setattr("sidestep.seeded_sets._AT_ONCE", 2 * CHOICES * 4)
    assert torch.equal(best_sets(gains, 9, 4, 1, 0), whole)
    assert all(torch.equal(one, other) for one, other in zip(moves_of_sets(sets, [7, 300]), moved, strict=True))
    assert len(whole.unique()) > 1


def test_steps_and_parameters_draw_sets_of_their_own():
    found = [one_set(5), one_set(5, step=3), one_set(5, parameter=1), one_set(6)]
    assert all(one != other for index, one in enumerate(found) for other in found[:index])
    assert one_set(5) == one_set(5)


def test_places_and_moves_are_fair():
    places, moves = moves_of_sets(ChosenSets(8, 0, (4000,), torch.zeros(4000, dtype=torch.uint8)), [1 << 30])
    assert len(places) > 31_990
    assert abs(int(moves.sum())) < 900  # five standard deviations
    assert abs(float((places < 1 << 29).float().mean()) - 0.5) < 0.014


def test_a_place_in_several_sets_moves_as_the_first_says():
    numbers = torch.arange(40, dtype=torch.uint8)
    places, moves = moves_of_sets(ChosenSets(2, 0, (40,), numbers), [10])
    first: dict[int, int] = {}
    for choice in range(40):
        counts = ChosenSets(2, 0, (choice + 1,), numbers[: choice + 1])
        for place, move in zip(*(part.tolist() for part in moves_of_sets(counts, [10])), strict=True):
            first.setdefault(place, move)
    assert dict(zip(places.tolist(), moves.tolist(), strict=True)) == first
    assert len(places) == len(first) <= 10


class TestChoosing:
    def made(self, share=0.05):
        net = ternary_mlp((1, 8, 8), (20,), 4, False, True)
        net.draw(Noise(0))
        return net, TernaryOptimizer([(list(ternary_parameters(net).values()), share)])

    def gradients(self, net, seed):
        return {
            name: Noise(seed).stream(name).normal(p.numel()).view(p.shape)
            for name, p in ternary_parameters(net).items()
        }

    def test_moves_go_the_way_of_the_momentum_and_clear_it_where_they_did(self):
        net, optimizer = self.made()
        gradients = self.gradients(net, 3)
        found = choose_sets(net, gradients, optimizer, 0.9, "layer", 4)
        flat = torch.cat([g.view(-1) / g.square().mean().sqrt() for g in gradients.values()])
        wanted = -flat[found.positions] * found.moves > 0
        weights = torch.cat([p.view(-1) for p in ternary_parameters(net).values()])[found.positions]
        possible = weights + found.moves
        assert float((wanted | (possible.abs() > 1)).float().mean()) > 0.7  # a random set has two thirds
        momentum = torch.cat([optimizer.state[p]["momentum"].view(-1) for p in ternary_parameters(net).values()])
        assert not momentum[found.positions[wanted]].any()
        kept = torch.ones(len(flat), dtype=torch.bool)
        kept[found.positions[wanted]] = False
        assert torch.allclose(momentum[kept], -flat[kept])

    def test_as_many_weights_are_drawn_as_the_share_says_and_the_rest_is_owed(self):
        net, optimizer = self.made(share=0.01)
        counts = [
            sum(choose_sets(net, self.gradients(net, s), optimizer, 0.9, "layer", 4).sets.counts) for s in range(9)
        ]
        weights = sum(p.numel() for p in ternary_parameters(net).values())
        assert sum(counts) == pytest.approx(9 * 0.01 * weights / 4, abs=2)

    def test_each_step_draws_anew(self):
        net, optimizer = self.made()
        steps = [choose_sets(net, self.gradients(net, 3), optimizer, 0.0, "layer", 4).sets.step for _ in range(3)]
        assert steps == [0, 1, 2]

    def test_a_gradient_that_is_not_finite_is_named(self):
        net, optimizer = self.made()
        gradients = self.gradients(net, 3)
        name = next(iter(gradients))
        gradients[name][0, 0] = float("inf")
        with pytest.raises(NonFiniteError, match=f"gradient of {name} is not finite"):
            choose_sets(net, gradients, optimizer, 0.9, "layer", 4)


def test_trits_are_no_sets():
    with pytest.raises(InputError, match="codec trits does not go with update sets"):
        NoiseStep(codec="trits", update="sets")


def test_a_smaller_log_of_sets_replays_and_is_ahead_of_single_flips(tmp_path):
    found = {}
    for update, share in (("sets", 0.004), ("flips", 0.0008)):
        rule = NoiseStep(hidden=(64, 64), update=update, set_size=6, flip_share=share, head_share=4 * share)
        options = Options(epochs=10, batch=100, decay="cosine", out=tmp_path / update)
        run = train(rule, "digits", options)
        log = tmp_path / update / "steps.steplog"
        again, weights = (torch.cat([p.view(-1) for p in net.parameters()]) for net in (rebuild(log).net, run.net))
        assert torch.equal(again, weights)
        found[update] = run.result["test_accuracy"], log.stat().st_size
    assert found["sets"][1] < found["flips"][1]
    assert found["sets"][0] > found["flips"][0]
    assert found["sets"][0] > 0.8


def test_a_block_of_few_bytes_cannot_ask_for_sets_or_moves_beyond_what_is_written(monkeypatch):
    def block(members, steps):
        heads = zlib.compress(b"".join(map(varint, (members, 0, 1) * steps)), 9)
        return varint(len(heads)) + heads + bytes(steps)

    header = SimpleNamespace(parameters=["w"], shapes=[("w", (1 << 16,))])
    assert len(SetsCodec().decode(block(256, 2), 2, 0, header)) == 2
    with pytest.raises(DamagedLogError, match="257 moves each"):
        SetsCodec().decode(block(257, 1), 1, 0, header)
    monkeypatch.setattr(sets, "MOST_FLIPS", 300)
    with pytest.raises(DamagedLogError, match="more than 300 moves"):
        SetsCodec().decode(block(256, 2), 2, 0, header)
