"""A loop of the user's own whose learning rate follows a schedule: what a log keeps of it, and going on within it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sidestep
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules import SPSA
from sidestep.schedule import rate_factor
from sidestep.steplog import LogReader

INPUTS = Noise(1).normal(64 * 8).view(64, 8)
TARGETS = INPUTS[:, :3].argmax(dim=1)
PAIR = SPSA(pairs=1, sides="both", learning_rate=1e-2)
STEPS = 600


def made():
    with Noise(0).torch_seeded():
        return nn.Linear(8, 3)


def taken(model, step, count):
    for _ in range(count):
        step(lambda: F.cross_entropy(model(INPUTS), TARGETS))
    return model


@pytest.mark.parametrize("decay", ["cosine", "linear"])
@pytest.mark.parametrize("rule", [PAIR, SPSA(pairs=2)], ids=["given", "found"])
def test_a_log_holds_the_schedule_and_replays_to_the_same_bits(rule, decay, tmp_path):
    model, path = made(), tmp_path / "a.steplog"
    with sidestep.attach(model, rule, log=path, steps=STEPS, decay=decay, warmup=0.1) as step:
        taken(model, step, STEPS)
    reader, fresh = LogReader(path), made()
    numbers = 4 * STEPS * rule.pairs
    assert path.stat().st_size - len(reader.header.to_bytes()) - numbers < 100  # the blocks' own bytes
    sidestep.replay(path, fresh)
    assert torch.equal(fresh.weight, model.weight)
    base = rule.learning_rate or 1.0
    rates = [update.rate for _, update in reader.records(STEPS)]
    assert rates == [base * rate_factor(decay, step, STEPS, STEPS // 10) for step in range(STEPS)]


def test_a_loop_goes_on_within_its_schedule(tmp_path):
    options = {"steps": 20, "decay": "linear", "warmup": 0.2}
    whole = made()
    taken(whole, sidestep.attach(whole, PAIR, **options), 20)
    first = made()
    step = sidestep.attach(first, PAIR, **options)
    taken(first, step, 9)
    step.save(tmp_path / "at")
    second = made()
    taken(second, sidestep.attach(second, PAIR, resume=tmp_path / "at", **options), 11)
    assert torch.equal(second.weight, whole.weight)


def test_a_schedule_without_an_end_or_past_it_is_refused():
    with pytest.raises(InputError, match="its end: give attach"):
        sidestep.attach(made(), PAIR, decay="cosine")
    with pytest.raises(InputError, match="decay must be one of"):
        sidestep.attach(made(), PAIR, steps=3, decay="sine")
    with pytest.raises(InputError, match="steps must be a whole number from 1"):
        sidestep.attach(made(), PAIR, steps=0)
    model = made()
    step = sidestep.attach(model, PAIR, steps=2)
    with pytest.raises(InputError, match="all are taken"):
        taken(model, step, 3)
