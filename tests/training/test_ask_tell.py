"""Scores in place of losses: ask and tell, hard thresholds, and evolution along seeded noise of any rank."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import sidestep
from sidestep import Options, data, train
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.notices import RunNotice
from sidestep.probes import DenseProbes
from sidestep.rules import SPSA, Backprop, Evolution, LocalLoss
from sidestep.steplog import rebuild
from sidestep.update import Seeded

SEARCH = Evolution(noise_kind="full-rank", per="group", population=8, learning_rate=0.03)
RULES = {
    "evolution": SEARCH,
    "ranks": replace(SEARCH, fitness="ranks"),
    "rank-1": replace(SEARCH, noise_kind="rank-1"),
    "sparse": replace(SEARCH, noise_kind="sparse"),
    "spsa": SPSA(pairs=8, eps=0.05, learning_rate=0.1),
    "spsa both": SPSA(pairs=4, sides="both", eps=0.05, learning_rate=0.1),
    "spsa spread": SPSA(pairs=8, spread=True, eps=0.05, learning_rate=0.03),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
ROWS = Noise(1).normal(64 * 6).view(64, 6)
TARGETS = (ROWS[:, 0] * ROWS[:, 1] > 0).long()


class Spikes(nn.Module):
    """Two layers whose units fire or do not: the derivative is 0 wherever there is one."""

    def __init__(self):
        super().__init__()
        with Noise(0).torch_seeded():
            self.one, self.two = nn.Linear(6, 32), nn.Linear(32, 2)

    def forward(self, rows):
        return self.two((self.one(rows) > 0).float())


def shares_right(outputs, targets):
    """Errors in place of a smooth loss: to be made small."""
    return (outputs.argmax(dim=1) != targets).float()


def score(net):
    with torch.no_grad():
        return -float(nn.functional.cross_entropy(net(ROWS), TARGETS))


def searched(rule, rounds, log=None):
    net = Spikes()
    with sidestep.ask_tell(net, rule, seed=2, log=log) as search:
        while search.step.steps < rounds:
            trial = search.ask()
            search.tell(trial, score(trial.net))
    return net


@each_rule
def test_ask_and_tell_take_the_steps_of_a_loop_to_the_last_digits(rule):
    net = Spikes()
    step = sidestep.attach(net, rule, seed=2)
    for _ in range(3):
        step(lambda: nn.functional.cross_entropy(net(ROWS), TARGETS))
    for one, other in zip(searched(rule, 3).parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@each_rule
def test_it_learns_through_thresholds_and_replays(rule, tmp_path):
    before = score(Spikes())
    net = searched(rule, 25, tmp_path / "a.steplog")
    assert score(net) > before + 0.02
    sidestep.replay(tmp_path / "a.steplog", fresh := Spikes())
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), fresh.parameters(), strict=True))


def test_the_scores_may_come_in_any_order():
    nets = []
    for order in (1, -1):
        net = Spikes()
        search = sidestep.ask_tell(net, SEARCH)
        trials = [search.ask() for _ in range(8)]
        for trial in trials[::order]:
            search.tell(trial, score(trial.net))
        nets.append(net)
    assert all(torch.equal(one, other) for one, other in zip(*(net.parameters() for net in nets), strict=True))


def test_a_search_goes_on_from_what_was_saved_to_the_same_bits(tmp_path):
    def trained(search, rounds):
        while search.step.steps < rounds:
            trial = search.ask()
            search.tell(trial, score(trial.net))
        return search

    first = trained(sidestep.ask_tell(Spikes(), SEARCH, seed=2), 2)
    first.step.save(tmp_path)
    wanted = trained(first, 4).step.model.state_dict()
    again = sidestep.ask_tell(Spikes(), SEARCH, seed=2)
    stale = again.ask()  # of the step before the load
    again.step.load(tmp_path)
    with pytest.raises(InputError, match="number 0 of step 0"):
        again.tell(stale, 1.0)
    assert again.ask().number == 0
    again = sidestep.ask_tell(Spikes(), SEARCH, seed=2)
    again.step.load(tmp_path)
    found = trained(again, 4).step.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("given", ["high", None, torch.ones(2)])
def test_a_score_that_is_no_number_is_refused_in_a_sentence(given):
    search = sidestep.ask_tell(Spikes(), SEARCH)
    trial = search.ask()
    with pytest.raises(InputError, match=r"score of net 0 of step 0 is a .* that is no one number"):
        search.tell(trial, given)
    search.tell(trial, 1.0)


def test_a_score_that_sees_no_weight_is_said_once_and_changes_nothing():
    net = Spikes()
    search, before = sidestep.ask_tell(net, SEARCH), copy.deepcopy(net.state_dict())
    for _ in range(7):
        search.tell(search.ask(), 3.0)
    with pytest.warns(RunNotice, match="all 8 nets of step 0 have the same score, 3,"):
        search.tell(search.ask(), 3.0)
    for _ in range(8):  # a second warning would be an error
        search.tell(search.ask(), 3.0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_ranks_make_every_increasing_score_the_same():
    nets = []
    for change in (lambda value: value, lambda value: 1000 * value**3 - 5):
        net, rule = Spikes(), RULES["ranks"]
        search = sidestep.ask_tell(net, rule)
        for _ in range(16):
            trial = search.ask()
            search.tell(trial, change(score(trial.net)))
        nets.append(net)
    assert all(torch.equal(one, other) for one, other in zip(*(net.parameters() for net in nets), strict=True))


def test_a_net_is_the_user_s_own_and_frozen_weights_stay():
    net = Spikes()
    net.one.weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    search = sidestep.ask_tell(net, SEARCH)
    trial = search.ask()
    assert torch.equal(trial.net.one.weight, before["one.weight"])
    assert not torch.equal(trial.net.two.weight, before["two.weight"])
    trial.net.two.weight.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_false_scores_are_refused_and_the_search_goes_on():
    net = Spikes()
    search, twin = sidestep.ask_tell(net, SEARCH), sidestep.ask_tell(Spikes(), SEARCH)
    trials = [search.ask() for _ in range(8)]
    with pytest.raises(InputError, match=r"all 8 nets of step 0 were asked for.*0, 1, 2, 3, 4, \.\.\. have no score"):
        search.ask()
    with pytest.raises(InputError, match="the score of net 2 of step 0 is nan"):
        search.tell(trials[2], float("nan"))
    search.tell(trials[2], 1.0)
    with pytest.raises(InputError, match="net 2 of step 0 has a score already, 1"):
        search.tell(trials[2], 2.0)
    with pytest.raises(InputError, match="step 0 has asked for 0"):
        twin.tell(trials[0], 1.0)
    for trial in trials[:2] + trials[3:]:
        search.tell(trial, score(trial.net))
    assert search.step.steps == 1
    with pytest.raises(InputError, match="the net is number 3 of step 0, and step 1 has asked for 0"):
        search.tell(trials[3], 1.0)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (SPSA(), "give a learning_rate"),
        (Backprop(), "backprop sees more of a net than its score"),
        (Evolution(), "which needs per = group"),
        (replace(RULES["rank-1"], distribution="gaussian"), "made of fair signs"),
    ],
)
def test_rules_that_cannot_are_refused(rule, words):
    with pytest.raises(InputError, match=words):
        sidestep.ask_tell(Spikes(), rule)


def test_a_chain_of_stages_is_refused():
    with pytest.raises(InputError, match="local-loss"):
        sidestep.ask_tell(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2)), LocalLoss())


@pytest.mark.parametrize("rule", [SPSA(eps=0.1, pairs=32), replace(SEARCH, population=32, eps=0.1)], ids=["spsa", "es"])
def test_errors_are_counted_down_through_thresholds(rule):
    """Neither the net nor what it is judged by has a derivative."""
    net = Spikes()
    step = sidestep.attach(net, rule, objective=shares_right)
    losses = [float(step(ROWS, TARGETS)) for _ in range(40)]
    assert min(losses[-10:]) < losses[0] - 0.08


@pytest.mark.parametrize("kind", ["full-rank", "sparse"])
def test_evolution_s_own_nets_leave_a_log_that_replays_to_the_bit(kind, tmp_path):
    rule = Evolution(noise_kind=kind, per="group", group=64, population=4, hidden=(8,))
    run = train(rule, data.load("digits"), Options(steps=4, batch=128, out=tmp_path / "run"))
    again = rebuild(tmp_path / "run" / "steps.steplog").net.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in run.net.state_dict().items())


@pytest.mark.parametrize(("kind", "drawn"), [("rank-1", "rank-one"), ("sparse", "sparse"), ("full-rank", "rademacher")])
def test_evolution_exchanges_one_number_per_pair(kind, drawn):
    net = Spikes()
    step = sidestep.attach(net, replace(SEARCH, noise_kind=kind))
    update = step.estimate(lambda: nn.functional.cross_entropy(net(ROWS), TARGETS)).update
    assert isinstance(update, Seeded)
    assert isinstance(update.probes, DenseProbes)
    assert (update.coefs.shape, update.probes.distribution) == ((4,), drawn)
