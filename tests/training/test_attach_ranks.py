"""A rule in a loop of the user's own over several ranks: the bits of one process that gives all parts of a batch."""

import hashlib

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sidestep
from sidestep import rules
from sidestep.errors import InputError, SidestepError
from sidestep.nets import ternarize
from sidestep.noise import Noise
from tests.reference.ranks import on_ranks

ROWS, PARTS = 48, 3


def plain():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def ternary():
    net = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Linear(8, 3, bias=False)
    )
    return ternarize(net, Noise(0))


def ternary_stages():
    def stage(width):
        layer = ternarize(nn.Linear(width, 8, bias=False), Noise(width))
        return nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), layer)

    return nn.Sequential(stage(6), stage(8), ternarize(nn.Linear(8, 3, bias=False), Noise(3)))


PROBED = rules.NoiseStep(estimator="weight-probes", schedule="constant", probes=12)
CASES = {  # rule, model, how it is called, what is divided, whether it has a log
    "spsa": (rules.SPSA(pairs=6, learning_rate=1e-2), plain, "function", "batch", True),
    "spsa, its own step size": (rules.SPSA(pairs=2), plain, "rows", "batch", True),
    "spsa, pairs": (rules.SPSA(pairs=6, sides="both", learning_rate=1e-2), plain, "function", "probes", True),
    "evolution": (rules.Evolution(noise_kind="full-rank", per="group", population=6), plain, "function", "batch", True),
    "forward gradient": (rules.ForwardGradient(kind="weights", tangents=2), plain, "rows", "batch", True),
    "forward gradient, tangents": (rules.ForwardGradient(kind="weights", tangents=3), plain, "rows", "probes", True),
    "noise-step": (PROBED, ternary, "function", "batch", True),
    "noise-step, probes": (PROBED, ternary, "rows", "probes", True),
    "noise-step, flips": (rules.NoiseStep(), ternary_stages, "rows", "batch", False),
    "back-propagation": (rules.Backprop(), plain, "function", "batch", False),
    "local losses": (rules.LocalLoss(), plain, "rows", "batch", False),
    "direct feedback": (rules.DirectFeedbackAlignment(), plain, "rows", "batch", False),
}


def made(build):
    with Noise(5).torch_seeded():
        return build()


def batches():
    with Noise(6).torch_seeded():
        inputs, targets = torch.randn(4, ROWS, 6), torch.randint(0, 3, (4, ROWS))
    return zip(inputs, targets, strict=True)


def arguments(step, model, how, split, inputs, targets):
    rows = step.rows(ROWS)
    if how == "rows":
        return inputs[rows], targets[rows]
    cut = rows.split(ROWS // PARTS) if split == "batch" else [rows]
    return [lambda part=part: cross_entropy(model(inputs[part]), targets[part]) for part in cut]


def trained(world, folder, cases=CASES):
    """Take two steps, save, go on with another model from there, and take two more."""
    torch.set_num_threads(1)
    found = {}
    for name, (rule, build, how, split, logged) in cases.items():
        log = f"{folder}/{name}.steplog" if logged else None
        losses, given = [], {"seed": 3, "split": split, "shares": PARTS}
        model = made(build)
        with sidestep.attach(model, rule, log=log, **given) as step:
            for number, (inputs, targets) in enumerate(batches()):
                if number == 2:
                    step.save(f"{folder}/{name}", {"epoch": 7})
                    model = made(build)
                    step.close()
                    step = sidestep.attach(model, rule, resume=f"{folder}/{name}", log=log, **given)
                losses.append(float(step(*arguments(step, model, how, split, inputs, targets))))
            step.close()
        bits = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        found[name] = hashlib.sha256(bits).hexdigest(), losses
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = {size: tmp_path_factory.mktemp(f"attached-{size}") for size in (1, 2, 3)}
    return {size: (folder, on_ranks(size, trained, str(folder), seconds=120)) for size, folder in folders.items()}


@pytest.mark.parametrize("name", CASES)
def test_one_two_and_three_ranks_train_to_the_same_bits(name, runs):
    (_, (first,)), *others = runs.values()
    assert len(set(first[name][1])) == 4
    for _, ranks in others:
        for each in ranks:
            assert each[name] == first[name]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[4]])
def test_the_log_that_rank_0_writes_gives_the_weights(name, runs):
    for folder, ranks in runs.values():  # where its blocks end depends on the clock, what they say does not
        model = made(CASES[name][1])
        sidestep.replay(folder / f"{name}.steplog", model)
        bits = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
        assert hashlib.sha256(bits).hexdigest() == ranks[0][name][0]


def test_parts_of_a_batch_make_its_gradient():
    """Three parts in one process, against the whole batch at once."""
    found = []
    for shares in (None, 3):
        model = made(lambda: nn.Linear(6, 3))
        step = sidestep.attach(model, rules.Backprop(), shares=shares)
        inputs, targets = next(batches())
        step.estimate(inputs, targets).to_grad()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    assert torch.allclose(*found, atol=1e-6)


def otherwise(world, what):
    model = made(plain)
    if what == "weights" and world.rank:
        model[0].weight.data += 1
    rule = rules.SPSA(pairs=4, learning_rate=1e-2 * (1 + (what == "rule" and world.rank)))
    step = sidestep.attach(model, rule, shares=3 if what == "fewer" else None)
    inputs, targets = next(batches())
    if what == "fails" and world.rank:
        raise_ = lambda: (_ for _ in ()).throw(ValueError("the sensor is unplugged"))  # noqa: E731
        try:
            step(raise_)
        except ValueError as error:
            return str(error)
    scale = float("nan") if what == "number" and world.rank == 1 else 1.0
    step(lambda: scale * cross_entropy(model(inputs), targets))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("weights", "the untrained net: .* on rank 0, .* on rank 1"),
        ("rule", "rule.learning_rate: 0.01 on rank 0, 0.02 on rank 1"),
        ("number", "a coefficient of the estimate is nan"),
    ],
)
def test_ranks_that_differ_are_told_on_all(what, words):
    for error in on_ranks(2, otherwise, what):
        assert isinstance(error, SidestepError)
        with pytest.raises(type(error), match=words):
            raise error


def test_an_error_in_one_ranks_function_is_said_by_the_others():
    first, second = on_ranks(2, otherwise, "fails")
    assert "rank 1 has stopped: the sensor is unplugged" in str(first)
    assert second == "the sensor is unplugged"


def test_more_ranks_than_parts_and_other_wrong_divisions_are_refused():
    for error in on_ranks(4, otherwise, "fewer"):
        assert "there are 4 ranks, and a step has 3 parts" in str(error)
    model = nn.Linear(2, 1)
    with pytest.raises(InputError, match="which cannot be divided into 3 equal parts"):
        sidestep.attach(model, rules.SPSA(pairs=4, learning_rate=1e-2), split="probes", shares=3)
    with pytest.raises(InputError, match="split = probes is not for backprop"):
        sidestep.attach(model, rules.Backprop(), split="probes")
    with pytest.raises(InputError, match="is one piece"):
        sidestep.attach(model, rules.Evolution(noise_kind="full-rank", per="group", fitness="ranks"), shares=2)
    with pytest.raises(InputError, match="shares must be a whole number from 1"):
        sidestep.attach(model, rules.SPSA(), shares=0)
    step = sidestep.attach(model, rules.SPSA(), objective="values", shares=2)
    with pytest.raises(InputError, match="3 examples cannot be divided into so many equal ones"):
        step(torch.ones(3, 2), torch.ones(3, 1))
    with pytest.raises(InputError, match="call step with 2 functions, got 3"):
        step(*[lambda: model(torch.ones(3, 2)).mean()] * 3)
