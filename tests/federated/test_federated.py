"""Federated training by scalars: all parties have the same weights, and nobody's data but in a sum of derivatives."""

import copy

import pytest
import torch
from torch import nn

from sidestep import replay, rules
from sidestep.errors import CheckpointError, InputError, NonFiniteError
from sidestep.federated import Client, Server, split_by_label
from sidestep.noise import Noise

NOISE = Noise(3)
INPUTS = NOISE.stream("inputs").normal(40 * 6).view(40, 6)
TARGETS = NOISE.stream("targets").integers(3, 3).repeat(14)[:40]
PARTS = {name: torch.arange(place, 40, 4) for place, name in enumerate("abcd")}
SPSA = rules.SPSA(pairs=4, learning_rate=0.05)


def made(width=5, bias=True):
    with Noise(1).torch_seeded():
        return nn.Sequential(nn.Linear(6, width, bias=bias), nn.Tanh(), nn.Linear(width, 3))


def batch_of(name):
    return lambda step: (INPUTS[PARTS[name]], TARGETS[PARTS[name]])


def answered(clients, server, names):
    return {n: clients[n].answer(server.invitation(n), batch_of(n), len(PARTS[n])) for n in names}


def parties(rule=SPSA, make=made, **options):
    return Server(make(), rule, **options), {name: Client(make(), rule) for name in PARTS}


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def same(model, other):
    return torch.equal(weights(model), weights(other))


@pytest.mark.parametrize(
    "rule",
    [
        SPSA,
        rules.SPSA(pairs=3, learning_rate=0.01, sides="both", optimizer_kind="adam", distribution="gaussian"),
        rules.Evolution(per="group", noise_kind="full-rank", population=6, learning_rate=0.01),
        rules.ForwardGradient(kind="weights", tangents=4, learning_rate=0.05, optimizer_kind="sgd"),
    ],
    ids=lambda rule: f"{rule.name}-{rule.optimizer_kind}",
)
@pytest.mark.parametrize("local_steps", [1, 3])
def test_who_was_away_replays_to_the_same_bits(rule, local_steps):
    server, clients = parties(rule, local_steps=local_steps)
    before = weights(server.model)
    for asked in ("abc", "ab", "bd", "ac", "b"):
        server.close_round(answered(clients, server, asked))
    assert clients["d"].steps < server.steps == 5 * local_steps
    assert not torch.equal(weights(server.model), before)
    late = Client(made(), rule)  # has never been asked
    for name, client in {**clients, "late": late}.items():
        client.follow(server.invitation(name, estimate=False))
        assert same(client.model, server.model), name


def test_one_round_is_the_weighted_sum_of_what_each_would_do_alone():
    server, clients = parties()
    server.close_round(answered(clients, server, "ab"))
    alone = {}
    for name in "ab":
        own, client = parties()
        own.close_round(answered(client, own, name))
        alone[name] = weights(own.model) - weights(made())
    counts = {name: len(PARTS[name]) for name in "ab"}
    expected = sum(counts[name] * alone[name] for name in "ab") / sum(counts.values())
    torch.testing.assert_close(weights(server.model) - weights(made()), expected, atol=1e-6, rtol=1e-4)


def test_examples_weigh_and_equal_weights_do_not():
    moved = {}
    for kind in ("examples", "equal"):
        server, clients = parties(weights=kind)
        invitations = {name: server.invitation(name) for name in "ab"}
        many = clients["a"].answer(invitations["a"], batch_of("a"), 3_000_000)
        few = clients["b"].answer(invitations["b"], batch_of("b"), 1)
        server.close_round({"a": many, "b": few})
        moved[kind] = weights(server.model)
    only_a, clients = parties()
    only_a.close_round(answered(clients, only_a, "a"))
    torch.testing.assert_close(moved["examples"], weights(only_a.model), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(moved["equal"], weights(only_a.model), atol=1e-4)


def test_local_steps_by_plain_sgd_are_the_mean_of_the_clients_models():
    rule = rules.SPSA(pairs=4, learning_rate=0.05)
    server, clients = parties(rule, local_steps=4, weights="equal")
    server.close_round(answered(clients, server, "abc"))
    models = []
    for name in "abc":
        own, alone = parties(rule)
        for _ in range(4):
            own.close_round(answered(alone, own, name))
        models.append(weights(own.model))
    torch.testing.assert_close(weights(server.model), torch.stack(models).mean(0), atol=1e-5, rtol=1e-4)


def test_a_client_has_its_weights_and_moments_back_after_local_steps():
    rule = rules.SPSA(pairs=3, learning_rate=0.01, optimizer_kind="adam")
    server, clients = parties(rule, local_steps=3)
    server.close_round(answered(clients, server, "ab"))
    clients["a"].follow(server.invitation("a", estimate=False))
    before = clients["a"].state()
    kept = {name: value.clone() for name, value in before[0].items()}
    answered(clients, server, "a")
    after = clients["a"].state()
    assert after[1] == before[1]
    assert kept.keys() == after[0].keys()
    assert all(torch.equal(kept[name], after[0][name]) for name in kept)


def test_a_client_goes_on_from_its_state():
    server, clients = parties(rules.SPSA(pairs=3, learning_rate=0.01, optimizer_kind="adam"))
    for _ in range(3):
        server.close_round(answered(clients, server, "ab"))
    tensors, record = clients["a"].state()
    back = Client(made(), rules.SPSA(pairs=3, learning_rate=0.01, optimizer_kind="adam"))
    back.restore({name: value.clone() for name, value in tensors.items()}, record)
    invitation = server.invitation("a")
    assert back.answer(invitation, batch_of("a"), 10) == clients["a"].answer(invitation, batch_of("a"), 10)
    assert same(back.model, server.model)


def test_a_straggler_is_dropped_and_its_late_answer_is_refused_by_name():
    server, clients = parties()
    answers = answered(clients, server, "ab")
    late = answers.pop("b")
    first = server.close_round(answers)
    assert (first.taken, first.missing) == (("a",), ("b",))
    before = weights(server.model)
    second = server.close_round({"b": late})
    assert second.loss is None
    assert "client b answers for step 0" in second.refused["b"]
    assert torch.equal(weights(server.model), before)


def test_damaged_and_foreign_answers_are_named_and_the_others_count():
    server, clients = parties()
    answers = answered(clients, server, "abcd")
    answers["b"] = answers["b"][:-1] + bytes([answers["b"][-1] ^ 1])
    other = Client(made(), SPSA, seed=9)
    foreign = Server(made(), SPSA, seed=9)
    answers["c"] = other.answer(foreign.invitation("c"), batch_of("c"), 10)
    answers["d"] = b"hello"
    found = server.close_round(answers)
    assert found.taken == ("a",)
    assert "damaged" in found.refused["b"]
    assert "another seed" in found.refused["c"]
    assert all(f"client {name}" in said for name, said in found.refused.items())


def test_too_few_answers_change_nothing():
    server, clients = parties(fewest=2)
    before = weights(server.model)
    found = server.close_round(answered(clients, server, "a"))
    assert found.loss is None
    assert server.steps == 0
    assert torch.equal(weights(server.model), before)
    server.close_round(answered(clients, server, "ab"))
    assert server.steps == 1


def test_what_one_client_can_move_is_bounded():
    def huge(step):
        return (lambda: 1e6 * nn.functional.cross_entropy(client.model(INPUTS), TARGETS),)

    client = Client(made(), SPSA)
    for clip, bound in ((None, 1e3), (0.5, 0.5)):
        server = Server(made(), SPSA, clip=clip)
        client = Client(made(), SPSA)
        server.close_round({"a": client.answer(server.invitation("a"), huge, 10)})
        moved = float((weights(server.model) - weights(made())).abs().max())
        assert (moved <= SPSA.learning_rate * bound + 1e-6) == (clip is not None)


def test_a_client_bounds_its_own_scalars():
    server, _ = parties()
    client = Client(made(), SPSA, clip=1e-3)
    server.close_round({"a": client.answer(server.invitation("a"), batch_of("a"), 10)})
    moved = float((weights(server.model) - weights(made())).abs().max())
    assert 0 < moved <= SPSA.learning_rate * 1e-3 + 1e-6


def test_bytes_do_not_depend_on_the_model():
    sizes = set()
    for width in (2, 200):
        server = Server(made(width), SPSA)
        client = Client(made(width), SPSA)
        found = server.close_round({"a": client.answer(server.invitation("a"), batch_of("a"), 10)})
        sizes.add((found.down_bytes, found.up_bytes))
    assert len(sizes) == 1
    assert sizes.pop()[1] == 4 * SPSA.pairs + 38  # and what is around them


def test_the_sums_are_a_step_log(tmp_path):
    server, clients = parties(local_steps=2, log=tmp_path / "sums.steplog")
    for _ in range(3):
        server.close_round(answered(clients, server, "abc"))
    server.close()
    model = made()
    assert replay(tmp_path / "sums.steplog", model).step == 6
    assert same(model, server.model)
    with pytest.raises(InputError, match=r"sums\.steplog is there already: remove it, or choose another name$"):
        parties(log=tmp_path / "sums.steplog")


def test_the_learning_rate_is_the_servers():
    server, clients = parties()
    server.optimizer.param_groups[0]["lr"] = 0.0
    before = weights(server.model)
    server.close_round(answered(clients, server, "ab"))
    assert torch.equal(weights(server.model), before)
    clients["a"].follow(server.invitation("a", estimate=False))
    assert torch.equal(weights(clients["a"].model), before)


def test_who_is_asked_is_drawn_for_every_round_from_the_seed():
    drawn = []
    for _ in range(2):
        server, clients = parties()
        drawn.append([])
        for _ in range(6):
            drawn[-1].append(server.sample(["d", "c", "b", "a"], 2))
            server.close_round(answered(clients, server, "a"))
    assert drawn[0] == drawn[1]
    assert len({tuple(each) for each in drawn[0]}) > 1
    with pytest.raises(InputError, match="from 1 to 2 of 2"):
        server.sample(["a", "b"], 3)


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (rules.Backprop(), "no step of any model by scalars"),
        (rules.NoiseStep(), "no step of any model by scalars"),
        (rules.ForwardGradient(), "weights"),
    ],
)
def test_rules_without_scalars_are_refused(rule, why):
    with pytest.raises(InputError, match=why):
        Server(made(), rule)


@pytest.mark.parametrize("rule", [rules.SPSA(pairs=4), rules.SPSA(pairs=4, learning_rate=1e-2, spread=True)])
@pytest.mark.parametrize("side", [Server, Client])
def test_a_step_size_of_one_client_is_refused_before_anything_is_sent(side, rule):
    with pytest.raises(InputError, match="by the losses of each client alone: give it a learning_rate, and no spread"):
        side(made(), rule)


def test_a_step_size_that_a_rule_does_not_announce_is_refused_when_it_comes():
    class Quiet(rules.SPSA):
        finds_step_size = False

    server, clients = parties(Quiet(pairs=4))
    with pytest.raises(InputError, match="by the losses of each client alone"):
        answered(clients, server, "a")


def test_running_statistics_are_refused():
    def make():
        return nn.Sequential(made(), nn.BatchNorm1d(3))

    server, clients = parties(make=make)
    with pytest.raises(InputError, match=r"running_mean.*layer or group norm"):
        answered(clients, server, "a")


def test_a_loss_that_is_no_number_stays_at_home():
    server, clients = parties()
    with pytest.raises(NonFiniteError, match="step 0"):
        clients["a"].answer(server.invitation("a"), lambda step: (INPUTS * float("nan"), TARGETS), 10)


def test_a_client_of_another_start_is_told():
    server = Server(made(), SPSA)
    other = copy.deepcopy(server.model)
    with torch.no_grad():
        other[0].bias[0] += 1
    with pytest.raises(InputError, match="other first weights"):
        Client(other, SPSA).follow(server.invitation("a"))


def test_a_client_that_has_lost_its_state_is_sent_all_again():
    server, clients = parties()
    for _ in range(2):
        server.close_round(answered(clients, server, "a"))
    with pytest.raises(InputError, match=r"Server\.forget"):
        Client(made(), SPSA).follow(server.invitation("a"))
    server.forget("a")
    new = Client(made(), SPSA)
    new.follow(server.invitation("a", estimate=False))
    assert same(new.model, server.model)


@pytest.mark.parametrize("wrong", [{"local_steps": 0}, {"fewest": 1.5}, {"weights": "all"}, {"clip": 0.0}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Server(made(), SPSA, **wrong)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 100.0])
def test_a_cut_by_label_gives_every_example_one_client(alpha):
    labels = NOISE.stream("labels").integers(3000, 10)
    parts = split_by_label(labels, 20, alpha, NOISE, least=5)
    assert sorted(torch.cat(parts).tolist()) == list(range(3000))
    assert min(map(len, parts)) >= 5
    again = split_by_label(labels, 20, alpha, NOISE, least=5)
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


def test_small_alpha_gives_a_client_few_classes():
    labels = NOISE.stream("labels").integers(3000, 10)

    def largest(alpha):
        parts = split_by_label(labels, 20, alpha, NOISE)
        return sum(float(labels[part].bincount(minlength=10).max()) / len(part) for part in parts) / 20

    assert largest(0.1) > 0.5 > largest(0.5) > 0.25 > largest(100.0)


def test_a_batch_may_be_a_function_of_the_loss():
    server, clients = parties()
    model = clients["a"].model

    def loss():
        return nn.functional.cross_entropy(model(INPUTS[PARTS["a"]]), TARGETS[PARTS["a"]])

    invitation = server.invitation("a")
    found = clients["a"].answer(invitation, lambda step: loss, 10)
    assert found == clients["b"].answer(invitation, batch_of("a"), 10)
    with pytest.raises(InputError, match="inputs and targets, or a function of the loss, got NoneType"):
        clients["a"].answer(invitation, lambda step: None, 10)


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"steps": "3"}, {"steps": None}, {"optimizer": None}])
def test_a_state_with_another_record_is_refused(wrong):
    _, clients = parties()
    tensors, record = clients["a"].state()
    with pytest.raises(CheckpointError, match="no record of its steps"):
        clients["a"].restore(tensors, {**record, **wrong})
