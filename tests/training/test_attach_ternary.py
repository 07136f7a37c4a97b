"""noise-step in a loop of the user's own: weight probes on any module of trits, local losses on chains of stages."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sidestep
from sidestep import Options, data, train
from sidestep.errors import CheckpointError, InputError
from sidestep.gradients.tangents.alignments import alignments
from sidestep.gradients.ternary_any import alignments_of_losses
from sidestep.nets.ternary.convert import ternarize
from sidestep.nets.ternary.layers import ternary_parameters, trit_count
from sidestep.noise import Noise
from sidestep.probes import SparseProbes
from sidestep.rules import NoiseStep
from sidestep.steplog import LogReader
from sidestep.training import load_run

INPUTS = Noise(1).normal(64 * 8).view(64, 8)
TARGETS = INPUTS[:, :3].argmax(dim=1)
PROBES = {"estimator": "weight-probes", "schedule": "constant", "probes": 24}
ANY = [
    NoiseStep(**PROBES),
    NoiseStep(**PROBES, update="accumulators", threshold=2),
    NoiseStep(**PROBES, codec="flips", flip_share=0.01),
    NoiseStep(**PROBES, update="bop", bop_rate=0.3),
]
LOCAL = [NoiseStep(flip_share=0.01), NoiseStep(flip_share=0.01, head_share=0.05), NoiseStep(update="bop", bop_rate=0.3)]
each_any = pytest.mark.parametrize("rule", ANY, ids=lambda rule: rule.choices[1])
each_local = pytest.mark.parametrize("rule", LOCAL, ids=["flips", "head share", "bop"])


class Branches(nn.Module):
    """A module that is no chain."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.out = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, rows):
        return self.out(F.layer_norm(self.left(rows).relu() + self.right(rows).tanh(), (12,)))


def branches():
    return ternarize(Branches(), Noise(0))


def chain():
    layers = [nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 12), nn.LayerNorm(12), nn.ReLU()]
    return ternarize(nn.Sequential(*layers, nn.Linear(12, 3)), Noise(0))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_numbers_along_probes_are_those_of_the_net_s_own_loss():
    model = branches()
    probes = SparseProbes(Noise(3), trit_count(model), 12, 0.1, True)
    before = state(model)
    found, loss, _ = alignments_of_losses(
        model, lambda: F.cross_entropy(model(INPUTS), TARGETS, reduction="none"), probes, Noise(0)
    )
    wanted, value = alignments(model, INPUTS, TARGETS, probes)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(loss, value)
    assert same(before, state(model))
    assert found.count_nonzero() > 6


@each_any
def test_a_loss_of_one_s_own_moves_trits_and_the_log_replays_into_a_fresh_model(rule, tmp_path):
    model = branches()
    fresh, before = copy.deepcopy(model), state(model)
    with sidestep.attach(model, rule, log=tmp_path / "log") as step:
        losses = [float(step(lambda: F.cross_entropy(model(INPUTS), TARGETS))) for _ in range(6)]
    assert losses[0] == pytest.approx(float(F.cross_entropy(fresh(INPUTS), TARGETS)), rel=1e-4)
    assert not same(before, state(model))
    assert set(torch.cat([p.flatten() for p in ternary_parameters(model).values()]).tolist()) <= {-1, 0, 1}
    sidestep.replay(tmp_path / "log", fresh)
    assert same(state(model), state(fresh))


def test_weight_probes_learn():
    model = branches()
    step = sidestep.attach(model, NoiseStep(**PROBES, codec="flips", density=0.3, flip_share=0.01))
    losses = [float(step(INPUTS, TARGETS)) for _ in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@each_local
def test_a_chain_of_ternary_stages_learns_in_place_and_replays_without_its_heads(rule, tmp_path):
    model = chain()
    fresh, own = copy.deepcopy(model), [id(p) for p in model.parameters()]
    model.eval()
    with sidestep.attach(model, rule, log=tmp_path / "log") as step:
        losses = [float(step(INPUTS, TARGETS)) for _ in range(40)]
    assert [id(p) for p in model.parameters()] == own
    assert not model.training
    if rule.update != "bop":
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    heads = [p for name, p in step.net.named_parameters() if name.startswith("heads.0.")]
    assert heads
    assert sum(p.numel() for p in ternary_parameters(step.net).values()) > trit_count(model)
    sidestep.replay(tmp_path / "log", fresh)
    assert same(state(model), state(fresh))
    moved = [update for _, update in LogReader(tmp_path / "log").records()]
    assert max(int(update.positions.max()) for update in moved if len(update.positions)) < trit_count(model)


@pytest.mark.parametrize(("rule", "make"), [(ANY[1], branches), (LOCAL[0], chain)], ids=["any", "chain"])
def test_a_saved_loop_goes_on_to_the_same_bits(rule, make, tmp_path):
    whole = make()
    step = sidestep.attach(whole, rule)
    for _ in range(8):
        step(INPUTS, TARGETS)
    half, rest = make(), make()
    with sidestep.attach(half, rule, log=tmp_path / "log") as step:
        for _ in range(4):
            step(INPUTS, TARGETS)
        step.save(tmp_path / "saved")
        step(INPUTS, TARGETS)
    with sidestep.attach(rest, rule, resume=tmp_path / "saved", log=tmp_path / "log") as step:
        for _ in range(4):
            step(INPUTS, TARGETS)
    assert same(state(whole), state(rest))
    fresh = make()
    sidestep.replay(tmp_path / "log", fresh)
    assert same(state(whole), state(fresh))


def test_a_stage_of_token_ids_is_trained_as_any_other():
    tokens = torch.arange(64).view(16, 4) % 5
    layers = [nn.Embedding(5, 12), nn.Flatten(), nn.LayerNorm(48), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 3)]
    model = ternarize(nn.Sequential(*layers), Noise(0))
    before = state(model)
    step = sidestep.attach(model, NoiseStep(flip_share=0.05))
    for _ in range(3):
        step(tokens, tokens.sum(dim=1) % 3)
    assert not torch.equal(before["0.weight"], state(model)["0.weight"])


def test_a_whole_model_of_trits_trains_in_a_run_that_is_read_again(tmp_path):
    few = data.from_arrays(INPUTS.numpy(), TARGETS.numpy(), validation=0)
    run = train(ANY[0], few, Options(steps=4, batch=32, out=tmp_path / "run"), model=branches)
    assert len(list(LogReader(tmp_path / "run" / "steps.steplog").records())) == 4
    again = load_run(tmp_path / "run", model=branches)
    assert torch.equal(run.predict(INPUTS), again.predict(INPUTS))
    with pytest.raises(InputError, match="optimizer is for rules that step along gradients"):
        train(ANY[0], few, Options(steps=4), model=branches, optimizer=torch.optim.SGD)


@pytest.mark.parametrize(
    ("rule", "model", "said"),
    [
        (NoiseStep(estimator="weight-probes"), branches, "schedule = two-stage keeps the density"),
        (ANY[0], Branches, "only trits are allowed, but .* make the net with sidestep.nets.ternarize"),
        (LOCAL[0], branches, "two ternary stages or more before its output"),
        (NoiseStep(estimator="rank-one"), chain, "trains by local losses, got estimator = rank-one"),
        (NoiseStep(codec="trits"), chain, "logs flips, got codec = trits"),
        (LOCAL[0], lambda: nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)]), "only trits are allowed"),
    ],
)
def test_what_cannot_be_attached_is_refused_in_a_sentence(rule, model, said):
    with pytest.raises(InputError, match=said):
        sidestep.attach(model(), rule, example=INPUTS)


def test_float_weights_are_refused_before_the_first_batch():
    with pytest.raises(InputError, match=r"only trits are allowed, but weight .* make the net with .*ternarize"):
        sidestep.attach(nn.Linear(8, 3), LOCAL[0])


def test_gradients_optimisers_and_logs_of_others_are_refused(tmp_path):
    model = branches()
    with pytest.raises(InputError, match="optimizer is for rules that step along gradients"):
        sidestep.attach(model, ANY[0], optimizer=torch.optim.SGD)
    step = sidestep.attach(model, ANY[0])
    with pytest.raises(InputError, match="to_grad is for rules that step along gradients"):
        step.estimate(INPUTS, TARGETS).to_grad()
    with sidestep.attach(model, ANY[0], log=tmp_path / "log") as step:
        step(INPUTS, TARGETS)
    with pytest.raises(CheckpointError, match="not those that the log starts from"):
        sidestep.replay(tmp_path / "log", model)
