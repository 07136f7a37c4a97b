"""Rules that train stages, in a loop of the user's own: its module and weights, and heads of the rule's beside them."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sidestep
from sidestep.data.objective import Objective
from sidestep.errors import InputError, NonFiniteError
from sidestep.nets.stages.goodness import wrong_labels
from sidestep.noise import Noise
from sidestep.notices import RunNotice
from sidestep.rules import (
    RULES as EVERY,
)
from sidestep.rules import (
    SPSA,
    Backprop,
    DirectFeedbackAlignment,
    FeedbackAlignment,
    ForwardForward,
    Hebbian,
    LocalLoss,
    NoPropDT,
)

CHAINS = [
    LocalLoss(learning_rate=1e-2),
    LocalLoss(learning_rate=1e-2, similarity=0.5),
    DirectFeedbackAlignment(learning_rate=1e-2),
    FeedbackAlignment(learning_rate=1e-2),
    FeedbackAlignment(learning_rate=1e-2, feedback="kolen-pollack"),
    ForwardForward(learning_rate=1e-2, label="head"),
    Hebbian(learning_rate=1e-2),
]
each_chain = pytest.mark.parametrize("rule", CHAINS, ids=lambda rule: f"{rule.name}-{CHAINS.index(rule)}")

INPUTS = Noise(1).normal(64 * 8).view(64, 8)
TARGETS = INPUTS[:, :3].argmax(dim=1)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, rows):
        return rows + self.inner(rows).relu()


def make(seed=0):
    with Noise(seed).torch_seeded():
        return nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), Residual(16), nn.ReLU(), nn.Linear(16, 3)
        )


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@each_chain
def test_the_user_s_own_module_learns_in_place(rule):
    model = make()
    parts, names = list(model.modules()), list(model.state_dict())
    parameters = list(model.parameters())
    step = sidestep.attach(model, rule)
    losses = torch.stack([step(INPUTS, TARGETS) for _ in range(60)])
    assert [id(part) for part in model.modules()] == [id(part) for part in parts]
    assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    model.eval()
    assert losses[-10:].mean() < 0.6 * losses[:5].mean()
    assert F.cross_entropy(model(INPUTS), TARGETS) < 0.6 * losses[0]
    assert int(model[1].num_batches_tracked) == 60


@each_chain
def test_modes_and_frozen_weights_are_the_user_s(rule):
    model = make()
    model[1].eval()
    model[4].inner.bias.requires_grad_(False)
    step = sidestep.attach(model, rule)
    step(INPUTS, TARGETS)
    with_masks = step.estimate(INPUTS, TARGETS).loss
    model[3].eval()
    before = state(model)
    again = step.estimate(INPUTS, TARGETS).update
    assert not torch.equal(step.estimate(INPUTS, TARGETS).loss, with_masks)  # without dropout, as the model says
    assert not model[1].training
    assert not model[3].training
    assert model[4].training
    assert int(model[1].num_batches_tracked) == 0
    assert same(before, state(model))
    third = step.estimate(INPUTS, TARGETS).update
    assert all(torch.equal(value, third.gradients[name]) for name, value in again.gradients.items())
    start = make()
    assert torch.equal(model[4].inner.bias, start[4].inner.bias)
    assert not torch.equal(model[4].inner.weight, start[4].inner.weight)
    assert not torch.equal(model[0].weight, start[0].weight)


def test_local_losses_are_those_of_each_stage_alone():
    model = make().eval()
    step = sidestep.attach(model, LocalLoss(label_smoothing=0.0), example=INPUTS)
    update = step.estimate(INPUTS, TARGETS).update
    net = step.net
    first = model[:4](INPUTS)
    loss = F.cross_entropy(net.heads[0](first), TARGETS)
    expected = torch.autograd.grad(loss, [model[0].weight, net.heads[0][1].weight])
    assert torch.allclose(update.gradients["stages.0.0.weight"], expected[0])
    assert torch.allclose(update.gradients["heads.0.1.weight"], expected[1])
    loss = F.cross_entropy(model[4:](first.detach()), TARGETS)
    expected = torch.autograd.grad(loss, [model[4].inner.weight, model[6].weight])
    assert torch.allclose(update.gradients["stages.1.0.inner.weight"], expected[0])
    assert torch.allclose(update.gradients["heads.1.0.weight"], expected[1])


@each_chain
def test_a_saved_loop_goes_on_to_the_same_bits(rule, tmp_path):
    model, stopped, second = make(), make(), make(5)
    whole = sidestep.attach(model, rule, seed=3)
    for _ in range(5):
        whole(INPUTS, TARGETS)
    step = sidestep.attach(stopped, rule, seed=3)
    for _ in range(2):
        step(INPUTS, TARGETS)
    step.save(tmp_path)
    step = sidestep.attach(second, rule, seed=3, resume=tmp_path)
    for _ in range(3):
        step(INPUTS, TARGETS)
    assert step.steps == 5
    assert same(state(model), state(second))
    assert same(state(whole.net), state(step.net))


def test_the_loss_that_a_step_returns_is_that_of_the_outputs():
    model = make().eval()
    found = sidestep.attach(model, LocalLoss(similarity=0.5, label_smoothing=0.0)).estimate(INPUTS, TARGETS)
    assert len(found.update.losses) == 4
    assert torch.allclose(found.loss, F.cross_entropy(model(INPUTS), TARGETS))


def test_a_scheduler_takes_an_example_first():
    model = make()
    with pytest.raises(InputError, match=r"take a step before, or give attach\(\.\.\., example=inputs\)"):
        _ = sidestep.attach(model, CHAINS[0]).optimizer
    step = sidestep.attach(model, CHAINS[0], example=INPUTS)
    scheduler = torch.optim.lr_scheduler.StepLR(step.optimizer, 1, 0.5)
    step(INPUTS, TARGETS)
    scheduler.step()
    assert {group["lr"] for group in step.optimizer.param_groups} == {5e-3}


def squared(outputs, targets):
    return (outputs - targets).square().mean(dim=1)


@pytest.mark.parametrize(
    "rule", [*CHAINS[:1], *CHAINS[2:5], CHAINS[6], SPSA(learning_rate=3e-3), Backprop(learning_rate=1e-2)]
)
def test_a_loss_of_the_user_s_is_made_small(rule):
    targets = INPUTS[:, :3] * 0.5
    model = make()
    step = sidestep.attach(model, rule, objective=squared)
    losses = torch.stack([step(INPUTS, targets) for _ in range(80)])
    assert losses[-20:].mean() < 0.8 * losses[:5].mean()
    by_name = sidestep.attach(make(), rule, objective="values")
    assert torch.allclose(by_name(INPUTS, targets), losses[0], rtol=1e-3)


def test_inputs_and_targets_are_the_closure_s_step():
    for rule in (SPSA(), Backprop()):
        first, second = make(), make()
        by_pair, by_closure = sidestep.attach(first, rule), sidestep.attach(second, rule)
        for _ in range(2):
            by_pair(INPUTS, TARGETS)
            by_closure(lambda second=second: F.cross_entropy(second(INPUTS), TARGETS))
        assert same(state(first), state(second))

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = make()

        def forward(self, left, right):
            return self.inner(torch.cat([left, right], dim=1))

    named = Named()
    step = sidestep.attach(named, Backprop())
    step({"left": INPUTS[:, :4], "right": INPUTS[:, 4:]}, TARGETS)
    other = make()
    sidestep.attach(other, Backprop())(INPUTS, TARGETS)
    assert same(state(named.inner), state(other))


def test_forward_forward_takes_the_gradient_of_each_stage_s_own_goodness():
    rule = ForwardForward(label="head", negatives="uniform", sharpness=2.0)
    model = nn.Sequential(*[part for part in make() if not isinstance(part, nn.Dropout | nn.BatchNorm1d)])
    found = sidestep.attach(model, rule).estimate(INPUTS, TARGETS).update
    wrong = wrong_labels(TARGETS, torch.zeros(64, 3), Noise(0).stream("estimate").at(0).stream("negatives"))
    assert not (wrong == TARGETS).any()
    first = F.relu(model[0](INPUTS))
    second = F.relu(model[2](first.detach()))
    for stage, (outputs, layer) in enumerate(((first, model[0]), (second, model[2].inner))):
        owner = torch.arange(16) * 3 // 16  # of each feature: its class
        goodness = torch.stack([outputs[:, owner == k].square().mean(dim=1) for k in range(3)], dim=1)
        rows = torch.arange(64)
        loss = F.softplus(2.0 * (goodness[rows, wrong] - goodness[rows, TARGETS])).mean()
        (wanted,) = torch.autograd.grad(loss, layer.weight)
        name = f"stages.{stage}.0.weight" if stage == 0 else f"stages.{stage}.0.inner.weight"
        torch.testing.assert_close(found.gradients[name], wanted)
    own = F.cross_entropy(model[-1](second.detach()), TARGETS)
    (wanted,) = torch.autograd.grad(own, model[-1].weight)
    torch.testing.assert_close(found.gradients["heads.0.0.weight"], wanted)
    with pytest.raises(InputError, match="learns classes"):
        sidestep.attach(model, rule, objective="values")(INPUTS, INPUTS[:, :3])


def test_hebbian_stages_follow_what_their_layer_sees_and_a_convolution_its_patches():
    with Noise(0).torch_seeded():
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5), nn.Linear(5, 3)
        )
        pictures = torch.randn(6, 2, 6, 6)
    step = sidestep.attach(model, Hebbian(kind="oja"))
    found = step.estimate(pictures, torch.arange(6) % 3).update.gradients
    padded, weight = F.pad(pictures, (1, 1, 1, 1)), model[0].weight.detach().flatten(1)
    patches = [padded[n, :, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3].flatten()
               for n in range(6) for y in range(3) for x in range(3)]  # fmt: skip
    rows = torch.stack(patches)
    answers = rows @ weight.T
    wanted = (answers.T @ rows - (answers.T @ answers) @ weight) / len(rows)  # Oja's subspace rule
    torch.testing.assert_close(found["stages.0.0.weight"], -wanted.view_as(model[0].weight))
    assert len(found) == 4


@pytest.mark.parametrize(
    ("rule", "model", "words"),
    [
        (ForwardForward(), make, r"ForwardForward\(label='head'\)"),
        (ForwardForward(label="head"), lambda: nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 9), nn.Linear(9, 3)),
         "a feature for every class, 3, but stage 1 gives"),
        (Hebbian(), lambda: nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)),
                                          nn.Linear(8, 3)), "one nn.Linear or nn.Conv2d in each stage"),
        (Hebbian(), lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)), "two stages or more"),
    ],
)  # fmt: skip
def test_stages_that_forward_forward_and_hebbian_learning_cannot_train_are_refused(rule, model, words):
    with pytest.raises(InputError, match=words):
        sidestep.attach(model(), rule, example=INPUTS)


def test_rows_of_tokens_get_a_head_for_each_place():
    with Noise(0).torch_seeded():
        model = nn.Sequential(nn.Embedding(11, 8), Residual(8), Residual(8), nn.Linear(8, 11))
    tokens = Noise(2).integers(32 * 6, 11).view(32, 6)
    following = (tokens * 3 + 1) % 11
    step = sidestep.attach(model, LocalLoss(learning_rate=1e-2), objective="tokens")
    losses = torch.stack([step(tokens, following) for _ in range(60)])
    assert losses[-1] < 0.3 * losses[0]
    assert step.net.heads[0].weight.shape == (11, 8)
    for rule in (LocalLoss(), SPSA(), Backprop()):
        with pytest.raises(InputError, match=r"input or a target is out of range \(index out of range in self\)"):
            sidestep.attach(model, rule, objective="tokens")(tokens + 11, following)


def test_maps_get_heads_on_averages():
    with Noise(0).torch_seeded():
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 64, 3),
        )
    pictures = Noise(3).normal(16 * 64).view(16, 1, 8, 8)
    for rule in CHAINS:
        twin = copy.deepcopy(model)
        losses = [float(sidestep.attach(twin, rule)(pictures, TARGETS[:16])) for _ in range(5)]
        assert losses[-1] < losses[0]


def test_what_a_chain_cannot_be_is_refused_in_a_sentence():
    model = make()
    tied = nn.Sequential(nn.Linear(8, 8), Residual(8), Residual(8), nn.Linear(8, 3))
    tied[2].inner.weight = tied[1].inner.weight
    pictures = nn.Sequential(nn.Linear(8, 8), Residual(8), nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 1, 1))
    recurrent = nn.Sequential(nn.LSTM(8, 8), Residual(8), nn.Linear(8, 3))
    for net, rule, words in (
        (Residual(8), LocalLoss(), "nn.Sequential with two stages or more.*got Residual"),
        (
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)),
            LocalLoss(),
            "got Sequential with 2 parts with weights; split it",
        ),
        (
            nn.Sequential(Residual(8)),
            LocalLoss(),
            "with 1 part with weights; split it, .*takes any module",
        ),
        (tied, LocalLoss(), "stages 2 and 3 of the module share the parameter"),
        (pictures, LocalLoss(), r"outputs of shape \(1, 2, 2\)"),
        (pictures, DirectFeedbackAlignment(), r"\(batch, width\) to be carried back, got \(batch, 1, 2, 2\)"),
        (recurrent, LocalLoss(), "gives a tuple, not one tensor"),
        (nn.Sequential(nn.Embedding(3, 8), Residual(8), nn.Linear(8, 3)), FeedbackAlignment(), "has no feedback"),
    ):
        example = TARGETS.view(64, 1) if isinstance(next(net.children()), nn.Embedding) else INPUTS
        with pytest.raises(InputError, match=words):
            sidestep.attach(net, rule)(example, TARGETS)
    for rule in (NoPropDT(),):
        with pytest.raises(InputError, match=f"{rule.name} cannot be attached to a model: its blocks see"):
            sidestep.attach(model, rule)
    for rule in ("spsa", SPSA):
        with pytest.raises(InputError, match=r"rule must be a rule object, for instance rules.SPSA\(\), got"):
            sidestep.attach(model, rule)
    with pytest.raises(InputError, match="whole gradients"):
        sidestep.attach(model, LocalLoss(), log="a.steplog")
    assert set(EVERY) >= {rule.name for rule in CHAINS}


def test_bad_batches_are_refused_in_a_sentence_and_nothing_moves():
    for rule in (CHAINS[0], CHAINS[2], SPSA(), Backprop()):
        model = make()
        step = sidestep.attach(model, rule)
        before = state(model)
        chain = isinstance(rule, LocalLoss | DirectFeedbackAlignment)
        for batch, words in (
            ((), "stages give|got nothing"),
            ((INPUTS,), "stages give|targets are missing"),
            ((INPUTS, None), "targets are missing|targets for|got Tensor, NoneType"),
            ((INPUTS, TARGETS[:5]), r"64 examples, and targets of shape \(5,\)"),
            ((INPUTS, TARGETS + 1), "out of range .*Target 3 is out of bounds"),
            ((INPUTS[:0], TARGETS[:0]), r"the batch is empty: its inputs have the shape \(0, 8\)"),
            (
                (INPUTS[:, :5], TARGETS),
                r"on this batch \(mat1 .*\): the inputs are \(64, 5\) of float32, the targets \(64,",
            ),
            (
                (INPUTS.double(), TARGETS),
                r"inputs are \(64, 8\) of float64, .* in the type of .*, mostly inputs.float\(\)",
            ),
            ((INPUTS, TARGETS.view(64, 1)), r"the targets \(64, 1\) of int64; .*targets.squeeze\(1\)"),
            ((INPUTS, TARGETS.int()), r"the targets \(64,\) of int32; .*targets.long\(\)"),
            ((INPUTS, F.one_hot(TARGETS, 3)), r"the targets \(64, 3\) of int64; .*targets.argmax\(1\)"),
            ((INPUTS.numpy(), TARGETS), r"torch.as_tensor\("),
            ((INPUTS, TARGETS.tolist()), r"targets of type list; .*torch.as_tensor\(|targets of type list"),
            ((INPUTS[0], TARGETS[0]), r"one number beside .*inputs\[None\]|one tensor, \(batch, ...\), got shape"),
        ):
            with pytest.raises(InputError, match=words):
                step(*batch)
        if chain:
            with pytest.raises(InputError, match=r"call step\(inputs, targets\)"):
                step(lambda model=model: model(INPUTS).sum())
            with pytest.raises(InputError, match="one tensor"):
                sidestep.attach(model, rule)({"x": INPUTS}, TARGETS)
        with pytest.raises(NonFiniteError, match=r"at step 0.*; 512 of the 512 numbers of the inputs are .* nan"):
            step(INPUTS * float("nan"), TARGETS)
        assert same(before, state(model))
        assert step.steps == 0


def test_a_bad_first_batch_is_refused_in_a_sentence():
    for rule in (LocalLoss(), DirectFeedbackAlignment(), SPSA(), Backprop()):
        for batch, words in (
            ((INPUTS[:0], TARGETS[:0]), r"the batch is empty: its inputs have the shape \(0, 8\)"),
            ((INPUTS[:, :5], TARGETS), r"on this batch \(mat1 .*\): the inputs are \(64, 5\) of float32"),
        ):
            with pytest.raises(InputError, match=words):
                sidestep.attach(make(), rule)(*batch)
    with pytest.raises(InputError, match="the batch is empty"):
        sidestep.attach(make(), LocalLoss(), example=INPUTS[:0])


def test_a_loss_that_comes_from_another_model_is_told():
    for rule, words in (
        (Backprop(), "gradients of the first step are all zero"),
        (SPSA(), "same along all directions"),
    ):
        model, other = make(), make()
        step = sidestep.attach(model, rule)
        with pytest.warns(RunNotice, match=words):
            step(lambda other=other: F.cross_entropy(other(INPUTS), TARGETS))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sidestep.attach(model, rule)(lambda model=model: F.cross_entropy(model(INPUTS), TARGETS))


def test_pictures_that_no_convolution_takes_and_named_inputs_are_told_by_their_shapes():
    convolution = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    with pytest.raises(InputError, match=r"unbatched.*the inputs are \(64, 8\) of float32"):
        sidestep.attach(convolution, SPSA())(INPUTS, TARGETS)

    class Named(nn.Linear):
        def forward(self, rows):
            return super().forward(rows)

    with pytest.raises(
        InputError, match=r"the inputs are \{rows: \(64, 8\) of float32\}, the targets \(64,\) of int64"
    ):
        sidestep.attach(Named(5, 3), SPSA())({"rows": INPUTS}, TARGETS)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a fault of my own"),
        IndexError("list index out of range"),
        IndexError("index 5 is out of bounds for dimension 1 with size 3"),
        IndexError("index 5 is out of bounds for axis 0 with size 3"),
    ],
)
def test_an_error_of_the_models_own_code_passes_as_it_is(error):
    class Broken(nn.Linear):
        broken = True

        def forward(self, rows):
            if self.broken:
                raise error
            return super().forward(rows)

    model = nn.Sequential(nn.Linear(8, 8), Residual(8), Broken(8, 3))
    for rule in (LocalLoss(), SPSA()):
        for works_at_first in (False, True):
            model[2].broken = False
            step = sidestep.attach(model, rule, **({"example": INPUTS} if works_at_first else {}))
            model[2].broken = True
            with pytest.raises(type(error)) as raised:
                step(INPUTS, TARGETS)
            assert raised.value is error


def test_a_model_that_gives_one_number_is_told_how_its_loss_is_taken():
    class Whole(nn.Linear):
        def forward(self, rows):
            return super().forward(rows).mean()

    with pytest.raises(
        InputError, match=r"one number for the whole batch, and the targets are \(64,\).*step\(lambda: model"
    ):
        sidestep.attach(Whole(8, 3), SPSA())(INPUTS, TARGETS)
    near = Objective("distance to a number", lambda output, target: (output - target).square())
    assert math.isfinite(sidestep.attach(Whole(8, 3), SPSA(), objective=near)(INPUTS, 0.5))


def test_a_loss_that_is_not_one_number_per_example_is_refused():
    for rule in (CHAINS[0], SPSA(), Backprop()):
        for loss, words in (
            (F.cross_entropy, r"'cross_entropy' must give one number per example, shape \(64,\), got shape \(\)"),
            (lambda outputs, targets: 1.0, "got float"),
            (Objective("mine", lambda outputs, targets: outputs), r"'mine' must .*got shape \(64, 3\)"),
        ):
            with pytest.raises(InputError, match=words):
                sidestep.attach(make(), rule, objective=loss)(INPUTS, TARGETS)
    with pytest.raises(InputError, match=r"objective must be a function.*got 'nothing'"):
        sidestep.attach(make(), SPSA(), objective="nothing")
    pair = nn.LSTM(8, 3)
    with pytest.raises(InputError, match="the model gives a tuple"):
        sidestep.attach(pair, Backprop())(INPUTS, TARGETS)
