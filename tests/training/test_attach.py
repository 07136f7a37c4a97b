"""A rule inside a loop of the user's own: any module, its own loss, and what has to stay as it is."""

import struct
import warnings
import zlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sidestep
from sidestep.errors import CheckpointError, InputError, NonFiniteError
from sidestep.gradients.any_module import derivatives_along, losses_at_pairs
from sidestep.gradients.directions import Directions
from sidestep.gradients.pairs import paired_logits
from sidestep.nets.stages.staged import staged_mlp
from sidestep.nets.trained import parameters_of
from sidestep.noise import Noise
from sidestep.notices import RunNotice
from sidestep.probes import DenseProbes, SparseProbes
from sidestep.rules import SPSA, Backprop, Evolution, ForwardGradient
from sidestep.steplog import LogReader, LogWriter, rebuild
from sidestep.update import Dense, Flips, Seeded

RULES = [
    SPSA(pairs=1, sides="both", optimizer_kind="sgd", learning_rate=3e-3),
    Evolution(noise_kind="full-rank", per="group", population=4, learning_rate=1e-2),
    ForwardGradient(kind="weights", learning_rate=1e-2),
    Backprop(learning_rate=1e-2),
]
RULES.append(SPSA())  # a step size that finds itself
LOGGED = [*RULES[:3], RULES[4]]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
each_logged = pytest.mark.parametrize("rule", LOGGED, ids=lambda rule: rule.name)

INPUTS = Noise(1).normal(64 * 8).view(64, 8)
TARGETS = INPUTS[:, :3].argmax(dim=1)


def make(seed=0, dropout=0.2):
    with Noise(seed).torch_seeded():
        return nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.Linear(16, 3)
        )


def loss_of(model, inputs=INPUTS, targets=TARGETS):
    return lambda: F.cross_entropy(model(inputs), targets)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("rule", [SPSA(), *RULES[:2]], ids=lambda rule: rule.name)
def test_a_function_that_does_not_call_the_model_is_told_of_once(rule):
    model = make(dropout=0)
    before, step = state(model), sidestep.attach(model, rule)
    with pytest.warns(RunNotice, match="does not come from the model that was attached"):
        step(lambda: torch.tensor(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(lambda: torch.tensor(1.0))
        sidestep.attach(model, rule)(loss_of(model))
    with pytest.warns(RunNotice, match="are all zero"):
        sidestep.attach(model, Backprop())(lambda: 0 * loss_of(model)())
    step = sidestep.attach(model, rule)
    for call in (step.estimate, step):
        with pytest.warns(RunNotice, match="estimate is zero") as told:
            call(lambda: torch.tensor(1.0))
        assert [each.filename for each in told] == [__file__]
    assert not same(before, state(model))


def trained(rule, steps, model=None, **options):
    model = model or make()
    step = sidestep.attach(model, rule, **options)
    for _ in range(steps):
        step(loss_of(model))
    return model, step


@each_rule
def test_a_loop_learns_and_returns_the_losses(rule):
    model = make()
    step = sidestep.attach(model, rule)
    losses = torch.stack([step(loss_of(model)) for _ in range(120)])
    assert losses.shape == (120,)
    assert not losses.requires_grad
    assert step.steps == 120
    assert losses[-20:].mean() < 0.8 * losses[:20].mean()


@each_rule
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(rule):
    first, again, other = (state(trained(rule, 3, seed=seed)[0]) for seed in (5, 5, 6))
    assert same(first, again)
    assert not same(first, other)


@each_rule
def test_an_estimate_leaves_everything_as_it_was(rule):
    model = make()
    model[1].eval()  # a layer's mode is the user's
    before, drawn = state(model), torch.get_rng_state()
    step = sidestep.attach(model, rule)
    step.estimate(loss_of(model))
    assert same(before, state(model))
    assert torch.equal(drawn, torch.get_rng_state())
    assert [layer.training for layer in model] == [True, False, True, True, True, True]
    assert all(isinstance(parameter, nn.Parameter) and parameter.grad is None for parameter in model.parameters())


@each_rule
def test_frozen_weights_stay_and_tied_ones_move_once(rule):
    model = make(dropout=0.0)
    model[0].weight.requires_grad_(False)
    tied = nn.Linear(16, 16)
    tied.weight = model[4].weight
    frozen = model[0].weight.clone()
    together = nn.ModuleList([model, tied])
    step = sidestep.attach(together, rule)

    def loss():
        return F.cross_entropy(model[5](tied(model[4](model[:4](INPUTS)))), TARGETS)

    start = model[4].weight.clone()
    update = step.estimate(loss).update
    names = update.gradients if isinstance(update, Dense) else [name for name, _ in update.probes.parameters]
    assert "0.4.weight" in names
    assert "1.weight" not in names
    assert "0.0.weight" not in names
    step(loss)
    assert torch.equal(model[0].weight, frozen)
    assert tied.weight is model[4].weight
    assert not torch.equal(start, tied.weight)


def test_a_tied_weight_is_shifted_in_all_its_places():
    """Two layers with one weight w on one input: the loss 2 w has the derivative 2, not 1."""
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    second.weight = first.weight
    net, one = nn.ModuleList([first, second]), torch.ones(1, 1)
    for rule in (
        SPSA(eps=0.01, learning_rate=1.0),
        Evolution(noise_kind="full-rank", per="group"),
        ForwardGradient(kind="weights"),
    ):
        found = sidestep.attach(net, rule).estimate(lambda: (first(one) + second(one)).mean())
        found.to_grad()
        assert first.weight.grad.item() == pytest.approx(2.0, rel=1e-4)
        first.weight.grad = None


@each_rule
def test_running_statistics_are_those_of_one_batch_a_step(rule):
    model, step = trained(rule, 3)
    assert int(model[1].num_batches_tracked) == 3
    frozen_loss = nn.BatchNorm1d(8)
    step = sidestep.attach(frozen_loss, rule)
    step(lambda: frozen_loss(INPUTS).square().mean())
    expected = 0.1 * INPUTS.mean(dim=0)
    assert torch.allclose(frozen_loss.running_mean, expected, atol=1e-6)


def test_both_sides_of_a_pair_draw_the_same_masks():
    """With all weights at one place, the loss depends on the masks alone: a pair of other masks would differ."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1))
    directions = Directions(Noise(0).stream("directions"))
    ones = torch.ones(16, 8)

    def loss():
        return (nn.functional.dropout(ones, 0.5) * 3).mean() + 0 * model[1].weight.sum()

    both, _ = losses_at_pairs(model, loss, directions, 4, 1e-3, Noise(0).stream("module"))
    assert torch.equal(both[0], both[1])
    assert len(both[0].unique()) > 1  # and each pair others


def test_the_losses_of_pairs_are_those_of_the_rule_s_own_net_bit_for_bit():
    with Noise(0).torch_seeded():
        net = staged_mlp((1, 2, 4), (16, 8), 3, norm=True)
    directions, inputs = Directions(Noise(3).stream("directions").at(7)), INPUTS.view(64, 1, 2, 4)
    found, _ = losses_at_pairs(net, lambda: F.cross_entropy(net(inputs), TARGETS), directions, 2, 1e-3, Noise(0))
    with torch.no_grad():
        for index in range(2):
            sides = paired_logits(net, inputs, directions, index, 1e-3)
            expected = torch.stack([F.cross_entropy(side, TARGETS) for side in sides])
            assert torch.equal(found[:, index], expected)


def test_derivatives_along_directions_are_those_of_the_gradient():
    model = make(dropout=0.5).double()
    inputs, noise = INPUTS.double(), Noise(2).stream("module")
    directions = Directions(Noise(4))
    found, loss, _ = derivatives_along(model, loss_of(model, inputs), directions, range(3), noise)
    with noise.torch_seeded():
        expected_loss = F.cross_entropy(model(inputs), TARGETS)
    gradients = torch.autograd.grad(expected_loss, list(model.parameters()))
    assert torch.allclose(loss, expected_loss)
    for index in range(3):
        pairs = zip(model.named_parameters(), gradients, strict=True)
        along = sum((directions.draw(n, p.shape, index, p) * g).sum() for (n, p), g in pairs)
        assert torch.allclose(found[index], along)


def test_losses_per_example_are_averaged():
    model = make(dropout=0.0)
    for rule in RULES:
        step = sidestep.attach(model, rule)
        one = step.estimate(loss_of(model)).loss
        each = step.estimate(lambda: F.cross_entropy(model(INPUTS), TARGETS, reduction="none")).loss
        assert torch.allclose(one, each)


def test_backprop_takes_the_steps_of_a_hand_written_loop():
    rule = Backprop(learning_rate=1e-2, weight_decay=1e-3)
    model, by_hand = make(dropout=0.0), make(dropout=0.0)
    step = sidestep.attach(model, rule)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=1e-3, fused=True)
    for _ in range(5):
        step(loss_of(model))
        optimizer.zero_grad()
        loss_of(by_hand)().backward()
        optimizer.step()
    assert same(state(model), state(by_hand))


@each_logged
def test_a_log_replays_to_the_same_bits_and_refuses_other_models(rule, tmp_path):
    log = tmp_path / "a.steplog"
    model, step = trained(rule, 6, log=log)
    step.close()
    fresh = make()
    found = sidestep.replay(log, fresh)
    assert found.step == 6
    assert same(state(model), state(fresh))
    part = make()
    sidestep.replay(log, part, to_step=4)
    shorter, _ = trained(rule, 4)
    assert all(torch.equal(a, b) for a, b in zip(part.parameters(), shorter.parameters(), strict=True))
    other, before = make(1), state(make(1))
    with pytest.raises(CheckpointError, match="weights are not those"):
        sidestep.replay(log, other)
    assert same(before, state(other))
    frozen = make()
    frozen[0].bias.requires_grad_(False)
    for wrong in (nn.Linear(8, 3), frozen):
        with pytest.raises(CheckpointError, match="another net"):
            sidestep.replay(log, wrong)
    with pytest.raises(InputError, match="holds 6 steps; got to_step=7"):
        sidestep.replay(log, make(), to_step=7)


def test_a_log_in_a_folder_that_is_not_there_makes_it_before_the_first_step_or_says_why_not(tmp_path):
    trained(LOGGED[0], 1, log=tmp_path / "runs" / "a" / "a.steplog")[1].close()
    assert len(list(LogReader(tmp_path / "runs" / "a" / "a.steplog").records())) == 1
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"the folder of the step log, .*file, cannot be made"):
        sidestep.attach(make(), LOGGED[0], log=tmp_path / "file" / "a.steplog")


def test_a_log_of_a_loop_has_a_format_that_older_readers_refuse_and_is_refused_by_what_builds_nets(tmp_path):
    log = tmp_path / "a.steplog"
    trained(LOGGED[0], 2, log=log)[1].close()
    assert struct.unpack_from("<I", log.read_bytes(), 8) == (2,)
    with pytest.raises(InputError, match=r"loop of its own .*sidestep\.replay\(LOG, model\)"):
        rebuild(log)
    run = sidestep.train(SPSA(hidden=(4,)), "digits", sidestep.Options(epochs=1, out=tmp_path / "run"))
    assert struct.unpack_from("<I", (run.folder / "steps.steplog").read_bytes(), 8) == (1,)
    with pytest.raises(InputError, match="log of a run"):
        sidestep.replay(run.folder / "steps.steplog", make())


def test_a_damaged_log_is_refused_before_the_model_is_touched(tmp_path):
    log = tmp_path / "a.steplog"
    step = sidestep.attach(make(), LOGGED[0], log=log)
    for _ in range(2):
        step(loss_of(step.model))
        step.save(tmp_path / "saved")  # ends a block
    step.close()
    data = bytearray(log.read_bytes())
    data[-9] ^= 1
    log.write_bytes(data)
    fresh = make()
    before = state(fresh)
    with pytest.raises(CheckpointError, match=r"1 steps before its damage.*to_step=1"):
        sidestep.replay(log, fresh)
    assert same(before, state(fresh))
    assert sidestep.replay(log, fresh, to_step=1).step == 1


@each_rule
def test_a_saved_loop_goes_on_to_the_same_bits(rule, tmp_path):
    logs = [tmp_path / name if rule in LOGGED else None for name in ("whole.steplog", "parts.steplog")]
    model = make()
    whole = sidestep.attach(model, rule, log=logs[0])
    scheduler = torch.optim.lr_scheduler.StepLR(whole.optimizer, 2, 0.5)
    for _ in range(6):
        whole(loss_of(model))
        scheduler.step()
    whole.close()
    first = make()
    parts = sidestep.attach(first, rule, log=logs[1])
    scheduler = torch.optim.lr_scheduler.StepLR(parts.optimizer, 2, 0.5)
    for index in range(5):
        if index == 3:
            parts.save(tmp_path / "saved", {"scheduler": scheduler.state_dict()})
        parts(loss_of(first))
        scheduler.step()
    parts.close()
    second = make(9)
    step = sidestep.attach(second, rule)
    scheduler = torch.optim.lr_scheduler.StepLR(step.optimizer, 2, 0.5)
    scheduler.load_state_dict(step.load(tmp_path / "saved", log=logs[1])["scheduler"])
    for _ in range(3):
        step(loss_of(second))
        scheduler.step()
    step.close()
    assert step.steps == 6
    assert same(state(model), state(second))
    if rule in LOGGED:
        fresh = make()
        sidestep.replay(logs[1], fresh)
        assert same(state(model), state(fresh))


def test_what_does_not_fit_a_saved_loop_is_refused(tmp_path):
    model, step = trained(RULES[0], 1)
    step.save(tmp_path)
    before = state(model)
    with pytest.raises(CheckpointError, match=r"another rule: learning_rate is 0\.003 there, 0\.1 here"):
        sidestep.attach(model, SPSA(learning_rate=0.1), resume=tmp_path)
    with pytest.raises(CheckpointError, match=r"of another rule: spsa there, backprop here; attach with what"):
        sidestep.attach(model, Backprop(), resume=tmp_path)
    with pytest.raises(CheckpointError, match="another seed"):
        sidestep.attach(model, RULES[0], seed=1, resume=tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        sidestep.attach(nn.Linear(2, 2), RULES[0], resume=tmp_path)
    with pytest.raises(CheckpointError, match="without a step log"):
        sidestep.attach(model, RULES[0], resume=tmp_path, log=tmp_path / "x.steplog")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        sidestep.attach(model, RULES[0], resume=tmp_path / "nothing")
    assert same(before, state(model))


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_schedulers_of_torch_set_the_rate_of_the_log_too(schedule, tmp_path):
    log, model = tmp_path / "a.steplog", make()
    step = sidestep.attach(model, SPSA(pairs=1, learning_rate=1e-2), log=log)
    make_scheduler = {
        "step": lambda: torch.optim.lr_scheduler.StepLR(step.optimizer, 1, 0.5),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(step.optimizer, 3),
    }[schedule]
    scheduler, sizes = make_scheduler(), []
    for _ in range(3):
        coefs = step.estimate(loss_of(model)).update.coefs
        before = model[0].weight.detach().clone()
        step(loss_of(model))
        sizes.append(float((model[0].weight.detach() - before).abs().mean() / coefs.abs()[0]))
        scheduler.step()
    expected = {"step": [1e-2, 5e-3, 2.5e-3], "cosine": [1e-2, 7.5e-3, 2.5e-3]}[schedule]
    assert sizes == pytest.approx(expected, rel=1e-2)
    step.close()
    fresh = make()
    sidestep.replay(log, fresh)
    assert same(state(model), state(fresh))


@each_rule
def test_gradients_go_into_grad_for_clipping_and_other_optimisers(rule):
    model, twin = make(), make()
    by_call = sidestep.attach(twin, rule)
    step = sidestep.attach(model, rule)
    estimate = step.estimate(loss_of(model))
    loss = estimate.to_grad()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    step.optimizer.step()
    step.optimizer.zero_grad()
    assert torch.equal(loss, by_call(loss_of(twin)))
    assert norm > 0
    assert same(state(model), state(twin))
    assert step.steps == 1
    estimates = [step.estimate(loss_of(model)) for _ in range(2)]
    for estimate in estimates:
        estimate.to_grad()  # as backward() does, they add up
    gradient = model[0].weight.grad.clone()
    step.optimizer.zero_grad()
    estimates[0].to_grad()
    assert torch.allclose(gradient, 2 * model[0].weight.grad)


def test_an_optimiser_by_factory_takes_the_steps():
    model, twin = make(dropout=0.0), make(dropout=0.0)
    step = sidestep.attach(model, Backprop(), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    step(loss_of(model))
    gradients = torch.autograd.grad(loss_of(twin)(), list(twin.parameters()))
    for parameter, start, gradient in zip(model.parameters(), twin.parameters(), gradients, strict=True):
        assert torch.allclose(parameter, start - 0.1 * gradient)
    with pytest.raises(InputError, match="own optimiser alone"):
        sidestep.attach(model, SPSA(), optimizer=torch.optim.SGD, log="a.steplog")


def test_an_optimiser_that_a_replay_would_not_make_is_not_logged(tmp_path):
    model = make()
    step = sidestep.attach(model, SPSA(), log=tmp_path / "a.steplog")
    step(loss_of(model))
    before = state(model)
    step.optimizer.param_groups[0]["momentum"] = 0.5
    with pytest.raises(InputError, match=r"at step 1 the optimiser has other options.*cycle_momentum=False"):
        step(loss_of(model))
    assert same(before, state(model))


def test_bad_losses_and_models_are_refused_in_a_sentence_and_nothing_moves():
    model = make()
    before = state(model)
    spsa, backprop = sidestep.attach(model, RULES[0]), sidestep.attach(model, RULES[3])
    for losses, words in (
        (lambda: 1.0, "must be a tensor.*got float"),
        (lambda: None, "must be a tensor.*got NoneType"),
        (lambda: model(INPUTS).detach(), r"one number.*shape \(64, 3\)"),
        (lambda: TARGETS.sum(), "got int64"),
        (lambda: torch.zeros(0), r"shape \(0,\)"),
        (3, "takes a function.*got int"),
    ):
        for step in (spsa, backprop):
            with pytest.raises(InputError, match=words):
                step(losses)
    with pytest.raises(InputError, match=r"no derivative.*detach\(\)"):
        backprop(lambda: loss_of(model)().detach())
    for step in (spsa, backprop):
        with pytest.raises(NonFiniteError, match="loss is nan at step 0"):
            step(lambda: loss_of(model)() * float("nan"))
    assert same(before, state(model))
    assert spsa.steps == 0


def test_a_model_that_changes_between_calls_is_refused_by_name():
    def change(action):
        model = make()
        step = sidestep.attach(model, RULES[0])
        step(loss_of(model))
        action(model)
        return step, model

    def replace(model):
        model[0].weight = nn.Parameter(model[0].weight.clone())

    for action, words in (
        (replace, "0.weight is another one"),
        (lambda model: model[0].bias.requires_grad_(False), "0.bias was frozen"),
        (lambda model: model.append(nn.Linear(3, 3)), "had 8 parameters, and has 10"),
    ):
        step, model = change(action)
        with pytest.raises(InputError, match=words):
            step(lambda: F.cross_entropy(model(INPUTS), TARGETS))  # noqa: B023


def test_what_cannot_be_attached_is_refused_in_a_sentence(tmp_path):
    model = make()
    for wrong, rule, words in (
        (lambda x: x, SPSA(), "nn.Module, got function"),
        (model, Evolution(), "needs per = group"),
        (model, ForwardGradient(), "kind='weights'"),
        (model, SPSA(objective="accuracy"), "objective = accuracy of spsa has no use"),
        (model, Backprop(label_smoothing=0.1), "label_smoothing = 0.1"),
        (model, SPSA(eps=1e-12), "eps = 1e-12 is too small"),
        (nn.ReLU(), SPSA(), "nothing is left to train"),
        (nn.LazyLinear(3), SPSA(), "no shape yet"),
    ):
        with pytest.raises(InputError, match=words):
            sidestep.attach(wrong, rule)
    with pytest.raises(InputError, match="cannot be logged"):
        trained(RULES[3], 1, log=tmp_path / "dense.steplog")
    assert not (tmp_path / "dense.steplog").exists()
    (tmp_path / "there.steplog").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        sidestep.attach(model, SPSA(), log=tmp_path / "there.steplog")


def test_an_update_is_one_number_per_direction():
    model = make()
    update = sidestep.attach(model, SPSA(pairs=3)).estimate(loss_of(model)).update
    assert isinstance(update, Seeded)
    assert isinstance(update.probes, DenseProbes)
    assert update.coefs.shape == (3,)


class TestLogsThatNobodyWrote:
    """With every checksum right, so that only what the steps say can be wrong."""

    def log(self, path):
        _, step = trained(SPSA(learning_rate=3e-3), 3, log=path)
        step.close()
        return LogReader(path).header

    def refused(self, path, words):
        model = make()
        before = state(model)
        with pytest.raises(CheckpointError, match=words):
            sidestep.replay(path, model)
        assert same(state(model), before)

    @pytest.mark.parametrize("kind", ["trits", "flips"])
    def test_steps_of_ternary_weights(self, tmp_path, kind):
        header = self.log(tmp_path / "log")
        noise = Noise(header.seed)
        trits = Seeded(torch.ones(4), SparseProbes(noise, header.weights, 4, 0.1))
        flips = Flips(torch.tensor([1]), torch.tensor([1], dtype=torch.int8))
        forged = LogWriter.create(tmp_path / "forged", header)
        forged.append(trits if kind == "trits" else flips)
        forged.commit()
        self.refused(tmp_path / "forged", "step 0 .* of ternary weights")

    def test_a_block_that_cannot_be_decoded(self, tmp_path):
        header = self.log(tmp_path / "log")
        data, begin = (tmp_path / "log").read_bytes(), len(header.to_bytes())
        body = bytearray(data[begin:-4])
        statistics = struct.unpack_from("<I", body, 16)[0]
        body[24 + statistics] = 9  # runs of steps
        crc = zlib.crc32(body, struct.unpack("<I", data[begin - 4 : begin])[0])
        (tmp_path / "log").write_bytes(data[:begin] + body + struct.pack("<I", crc))
        self.refused(tmp_path / "log", "up to step 0 only: .* 9 runs")


def test_parameters_are_found_as_torch_finds_them():
    tied = make()
    tied.append(tied[0])
    tied[5].weight = tied[4].weight
    tied.register_parameter("own", nn.Parameter(torch.zeros(1)))
    tied.register_parameter("none", None)
    for net in (make(), tied, nn.LSTM(3, 4), nn.TransformerEncoderLayer(8, 2), nn.ModuleDict({"a": tied, "b": tied})):
        found, expected = parameters_of(net), dict(net.named_parameters())
        assert list(found) == list(expected)
        assert all(found[name] is parameter for name, parameter in expected.items())


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="ask and tell go through one process, and a launcher has started 2"):
        sidestep.training.ask_tell(nn.Linear(2, 1), sidestep.rules.SPSA(learning_rate=0.1))
    with pytest.raises(InputError, match="RANK, MASTER_ADDR, MASTER_PORT is not set"):
        sidestep.attach(nn.Linear(2, 1), sidestep.rules.SPSA())
