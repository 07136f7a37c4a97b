"""Tasks with structured answers, how they are scored, and what a perfect block can tell from z."""

import itertools

import pytest
import torch

from experiments.blockwise_images import frechet_distance
from experiments.structured_nets import energy_loss, joint_targets, make_net
from experiments.structured_page import taken_reading
from experiments.structured_targets import Reading, _drawn, chosen_rate, scores, total_variation, wanted_rows
from experiments.structured_tasks import CLASSES, SIDE, Part, StructuredTask, _overlay, _strings, place_space
from sidestep.nets.noprop.samplers import ddim_step
from sidestep.nets.noprop.schedules import cosine_alpha_bar
from sidestep.noise import Noise

IMAGES = torch.ones(40, SIDE, SIDE) * (1 + torch.arange(40) % CLASSES)[:, None, None]  # a digit d is d + 1 everywhere
LABELS = torch.arange(40) % CLASSES
SPACE = place_space(3)


def test_a_string_hides_one_digit_which_follows_from_the_others():
    part = _strings(IMAGES, LABELS, 200, Noise(0))
    assert (part.targets[:, 2] == (part.targets[:, 0] + part.targets[:, 1]) % CLASSES).all()
    shown = part.inputs.view(200, SIDE, 3, SIDE)[:, 0, :, 0].round().long() - 1  # -1 where nothing is shown
    hidden = torch.arange(3) == part.extra[:, None]
    assert (shown[hidden] == -1).all()
    assert (shown[~hidden] == part.targets[~hidden]).all()
    assert set(part.extra.tolist()) == {0, 1, 2}
    assert len(part.targets[:, :2].unique(dim=0)) > 70


def test_an_overlay_has_two_different_digits_in_either_order():
    part = _overlay(IMAGES, LABELS, 300, Noise(0))
    first, second = part.targets.T
    assert (first != second).all()
    assert (part.inputs[:, 0] == torch.maximum(first, second) + 1).all()
    assert 0.4 < (first > second).float().mean() < 0.6


def test_places_are_embedded_and_answered_side_by_side():
    targets, outputs = torch.tensor([[3, 0, 9]]), Noise(1).normal(30)[None]
    found = SPACE.embed(targets, torch.eye(30))
    assert found.nonzero()[:, 1].tolist() == [3, 10, 29]
    answer = SPACE.objective.predictions(outputs)
    torch.testing.assert_close(answer.view(3, 10).sum(dim=1), torch.ones(3))
    wanted = -(answer.view(3, 10)[range(3), targets[0]].log().mean())
    torch.testing.assert_close(SPACE.objective.losses(outputs, targets)[0], wanted)


def test_draws_follow_the_probabilities():
    shares = torch.tensor([[0.0, 0.25, 0.75]]).repeat(400, 1)
    drawn = _drawn(shares, Noise(0))
    assert drawn.shape == (32, 400)
    assert torch.bincount(drawn.flatten(), minlength=3).div(12_800).tolist() == pytest.approx([0, 0.25, 0.75], abs=0.02)


def test_the_distance_is_0_for_both_orders_and_above_half_for_independent_places():
    pairs = torch.tensor([[1, 7]])
    both = torch.stack([pairs, pairs.flip(1)] * 4)
    assert total_variation(both, pairs).item() == 0
    assert total_variation(both[::2], pairs).item() == pytest.approx(0.5)
    apart = torch.cat([both, torch.tensor([[[1, 1]], [[7, 7]]] * 4)])  # each place right by itself
    assert total_variation(apart, pairs).item() == pytest.approx(0.5)


def test_the_energy_score_is_least_for_the_distribution_itself():
    truth = Noise(2).normal(6000).view(-1, 1).repeat(1, 2)
    first, second = (Noise(seed).normal(6000).view(-1, 1).repeat(1, 2) for seed in (3, 4))
    found = {scale: energy_loss(scale * first, scale * second, truth).item() for scale in (0.0, 0.5, 1.0, 2.0)}
    assert min(found, key=lambda scale: found[scale]) == 1.0


def test_strings_are_scored_as_a_whole_and_at_the_hidden_place():
    targets = torch.tensor([[1, 2, 3], [4, 5, 9]])
    part = Part(torch.zeros(2, 1), targets, torch.tensor([2, 0]))
    task = StructuredTask("strings", part, part, part, SPACE, 30)
    point = torch.tensor([[1, 2, 4], [4, 5, 9]])
    assert scores(task, part, Reading(point, targets[None]), None) == {
        "string": 0.5, "hidden digit": 0.5, "string, of draws": 1.0
    }  # fmt: skip
    assert joint_targets(targets).tolist() == [321, 954]


def test_all_nets_of_a_task_cost_the_same():
    part = Part(torch.zeros(2, 196), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2))
    task = StructuredTask("overlay", part, part, part, place_space(2), 20)
    for narrow in (False, True):
        sizes = [
            sum(value.numel() for value in make_net(way, task, narrow, Noise(0)).parameters())
            for way in ("chain", "plain", "joint")
        ]
        assert max(sizes) / min(sizes) < 1.03


def test_a_rate_is_taken_by_validation_and_nothing_runs_before():
    made = {"task": "strings", "way": "plain", "kind": "search", "seed": 100, "steps": 5}
    rows = [made | {"rate": rate, "validation": {"forward": {"string": rate}}} for rate in (4e-3, 8e-3)]
    assert chosen_rate(rows, "strings", "plain", 10) is None
    assert not wanted_rows(rows, ["run"], 10)
    rows.append(made | {"rate": 16e-3, "validation": {"forward": {"string": 0.0}}})
    assert chosen_rate(rows, "strings", "plain", 10) == 8e-3
    ran = wanted_rows(rows, ["run"], 10)
    assert {row["way"] for row in ran} == {"plain", "plain twice", "plain narrow"}
    row = {"task": "overlay", "validation": {f"block {k} alone": {"distance": abs(k - 3)} for k in range(1, 6)}}
    assert taken_reading(row, "best block alone") == "block 3 alone"


def test_frechet_distance_knows_means_and_covariances():
    one = Noise(5).normal(4000).view(-1, 2)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(one, one + 2) == pytest.approx(8, rel=1e-6)
    spread = one.double().T.cov().trace()
    assert frechet_distance(one, 3 * one - 2 * one.mean(dim=0)) == pytest.approx(4 * spread.item(), rel=1e-4)


def test_perfect_blocks_of_one_target_end_where_the_first_begins():
    """p(y | x, z) ~ p(y | x) exp(sqrt(abar) z_y / (1 - abar)): the walk from z = 0 keeps the order of the classes."""
    known, levels = Noise(6).normal(60).view(6, 10), cosine_alpha_bar(5)
    latent = torch.zeros(6, 10, dtype=torch.float64)
    for before, after in itertools.pairwise(levels):
        outputs = known + before.sqrt() / (1 - before) * latent
        latent = ddim_step(latent, outputs.softmax(dim=1), before, after)
        assert (outputs.argsort(dim=1) == known.argsort(dim=1)).all()


def test_a_perfect_block_of_coupled_places_reads_one_place_off_another():
    """Two places that are always alike: z of the first alone says what the second is."""
    joint, abar = torch.eye(3) / 3, torch.tensor(0.5)
    latent = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    evidence = (abar.sqrt() / (1 - abar) * latent).exp()
    posterior = joint * evidence[0][:, None] * evidence[1][None]
    second = posterior.sum(dim=0) / posterior.sum()
    assert second.argmax() == 0
    assert second[0] > 0.5
