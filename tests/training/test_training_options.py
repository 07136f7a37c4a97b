"""Learning-rate decay, warmup and averaged weights: what they do to each step, and to a run that is stopped."""

import math
import os
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep import Options, checkpoint, data, load_run, train
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules import Backprop, NoPropDT, Task
from sidestep.training import Stopped
from sidestep.training.folder import RunFolder
from sidestep.training.loop import Loop
from sidestep.training.observers import Observers
from sidestep.training.options import Compute
from sidestep.training.progress import Silent
from sidestep.training.state import AVERAGE, State
from sidestep.training.stopping import StopRequest

QUICK = Backprop(net="mlp", hidden=(16,))


def started(rule=QUICK, **options):
    """A loop and a state at step 0, in float32 on the CPU, without a folder."""
    digits = data.load("digits")
    task = Task(digits.image_shape, digits.class_names, digits.mean, digits.std)
    net = rule.build(task, Noise(0).stream("build"), digits.train, None)
    made = Options(**{"epochs": 1, "batch": 128, **options})
    return Loop(rule, digits, made, Compute.find("cpu", "float32"), None), State(net, rule.optimizer(net))


def weights(net):
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class TestRates:
    @pytest.mark.parametrize(
        ("options", "wanted"),
        [
            ({}, [1.0] * 8),
            ({"decay": "linear"}, [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
            ({"decay": "cosine"}, [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
            ({"warmup": 0.25}, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
            ({"decay": "linear", "warmup": 0.5}, [0.2, 0.4, 0.6, 0.8, 1, 0.75, 0.5, 0.25]),
            ({"decay": "cosine", "warmup": 0.5}, [0.2, 0.4, 0.6, 0.8, 1, (1 + math.sqrt(0.5)) / 2, 0.5, 0.1464466]),
        ],
        ids=str,
    )
    def test_by_hand(self, options, wanted):
        made = Options(**options)
        assert [made.rate_factor(step, 8) for step in range(8)] == pytest.approx(wanted)

    @given(
        st.sampled_from(["none", "cosine", "linear"]), st.floats(0, 1, exclude_max=True), st.integers(1, 500), st.data()
    )
    @settings(max_examples=60)
    def test_a_rate_is_never_zero_nor_above_the_rule_s_own(self, decay, warmup, steps, drawn):
        step = drawn.draw(st.integers(0, steps - 1))
        assert 0 < Options(decay=decay, warmup=warmup).rate_factor(step, steps) <= 1

    def test_each_step_is_taken_at_its_rate(self):
        loop, state = started(decay="cosine", warmup=0.3)
        assert loop.total_steps == 10
        found = []
        for _ in range(loop.total_steps):
            loop.take_step(state)
            found.append([group["lr"] for group in state.optimizer.param_groups])
        wanted = [QUICK.learning_rate * loop.options.rate_factor(step, 10) for step in range(10)]
        assert found == [pytest.approx([rate]) for rate in wanted]
        assert found[0][0] < found[2][0] > found[9][0]

    def test_without_decay_or_warmup_the_weights_are_those_of_the_rule_alone(self):
        loop, state = started()
        twin, optimizer = weights(state.net), QUICK.optimizer(net := started()[1].net)
        assert same(twin, weights(net))
        for step in range(3):
            update = QUICK.estimate(net, loop.batch(step), loop.noise.stream("estimate").at(step))
            QUICK.apply(net, QUICK.decide(net, update, optimizer), optimizer)
            loop.take_step(state)
        assert same(weights(state.net), weights(net))

    def test_every_unit_s_group_has_the_rate(self):
        loop, state = started(NoPropDT(blocks=2), decay="linear", batch=256)
        assert loop.total_steps == 5
        for _ in range(2):
            loop.take_step(state)
        assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx([1e-3 * 4 / 5] * 3)


class TestAverage:
    def test_it_is_the_moving_average_of_the_weights_by_hand(self):
        loop, state = started(average=0.5)
        wanted = {}
        for step in range(8):
            loop.take_step(state)
            decay = min(0.5, (1 + step) / (10 + step))
            for name, value in weights(state.net).items():
                before = wanted.get(name, value.double())  # it starts at the weights after the first step
                wanted[name] = decay * before + (1 - decay) * value.double()
        assert state.average.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(state.average[name].double(), value, rtol=1e-5, atol=1e-7)
            assert (state.average[name] - state.net.get_parameter(name)).abs().max() > 1e-5

    def test_its_decay_grows_up_to_what_was_asked_for(self):
        _, state = started(average=0.999)
        name = "layers.0.weight"
        for step, decay in ((0, 0.1), (5, 0.4), (40, 0.82), (10_000, 0.999)):
            state.step = step
            state.average = {key: torch.zeros_like(value) for key, value in weights(state.net).items()}
            state.move_average(0.999)
            kept = 1 - (state.average[name] / state.net.get_parameter(name).detach()).mean().item()
            assert kept == pytest.approx(decay, rel=1e-3)

    def test_none_is_kept_unless_asked_for(self):
        loop, state = started()
        loop.take_step(state)
        before = weights(state.net)
        assert state.average == {}
        with state.averaged() as net:
            assert same(weights(net), before)

    def test_training_goes_on_from_the_weights_themselves(self):
        plain, averaged = started()[1], started(average=0.9)[1]
        loops = started()[0], started(average=0.9)[0]
        for loop, state in zip(loops, (plain, averaged), strict=True):
            loop.run(state, 0, Observers(), StopRequest())
        assert same(weights(plain.net), weights(averaged.net))  # bit for bit, after an evaluation too
        assert not same(averaged.average, weights(averaged.net))

    def test_the_net_is_put_back_after_an_error_too(self):
        loop, state = started(average=0.9)
        for _ in range(3):
            loop.take_step(state)
        before, average = weights(state.net), {name: value.clone() for name, value in state.average.items()}

        def fail():
            with state.averaged() as net:
                assert same(weights(net), average)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert same(weights(state.net), before)
        assert same(state.average, average)

    def test_what_is_evaluated_during_training_is_the_average(self):
        seen = []

        class Watched(Backprop):
            def predict(self, net, *given, **named):
                seen.append(weights(net))
                return super().predict(net, *given, **named)

        loop, state = started(Watched(net="mlp", hidden=(16,)), average=0.9)
        loop.run(state, 0, Observers(), StopRequest())
        assert seen
        assert all(same(found, state.average) for found in seen)
        assert not same(seen[0], weights(state.net))

    def test_a_run_comes_back_with_its_average(self, tmp_path):
        run = train(QUICK, "digits", Options(epochs=2, average=0.9, out=tmp_path / "run"))
        tensors, _ = RunFolder(tmp_path / "run").load_state()
        saved, _ = checkpoint.load(tmp_path / "run/model.safetensors")
        average = {name.removeprefix(AVERAGE): t for name, t in tensors.items() if name.startswith(AVERAGE)}
        raw = {name.removeprefix("net/"): t for name, t in tensors.items() if name.startswith("net/")}
        assert same(average, saved)
        assert not same(raw, saved)
        assert same(weights(run.net), saved)
        again = load_run(tmp_path / "run")
        assert same(weights(again.net), saved)
        digits = data.load("digits")
        images = digits.test.images[:50]
        assert torch.equal(run.predict(images), again.predict(images))
        assert again.evaluate(digits.test)["forward"] == run.result["test_accuracy"]
        (tmp_path / "run/state.safetensors").unlink()
        assert same(weights(load_run(tmp_path / "run").net), saved)


class Interrupting(Silent):
    """Ctrl-C after a step."""

    def __init__(self, at):
        self.at = at

    def step(self, step, examples):
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (NoPropDT(blocks=1, embedding="learned"), {"decay": "linear", "average": 0.95}),
        (QUICK, {"average": 0.9}),
        (QUICK, {"decay": "cosine", "warmup": 0.2}),
    ],
    ids=["linear decay, average", "average", "cosine decay, warmup"],
)
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path, rule, options):
    options = {**options, "epochs": 2, "batch": 256}
    whole = train(rule, "digits", Options(**options, out=tmp_path / "whole"))
    with pytest.raises(Stopped, match="after step 7"):
        train(rule, "digits", Options(**options, out=tmp_path / "parts"), progress=Interrupting(7))
    if "average" in options:  # a run under way is looked at by its average as well
        tensors, _ = RunFolder(tmp_path / "parts").load_state()
        found = weights(load_run(tmp_path / "parts").net)
        assert same(found, {name: tensors[AVERAGE + name] for name in found})
    parts = train(rule, "digits", Options(**options, out=tmp_path / "parts", resume=True))
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "parts/model.safetensors").read_bytes()
    assert whole.result["readings"] == parts.result["readings"]


def test_resuming_with_another_decay_or_average_is_refused(tmp_path):
    train(QUICK, "digits", Options(epochs=1, average=0.9, out=tmp_path / "run"))
    for other in ({"average": 0.5}, {"average": 0.9, "decay": "cosine"}, {"average": 0.9, "warmup": 0.1}):
        with pytest.raises(InputError, match="started otherwise"):
            train(QUICK, "digits", Options(epochs=2, out=tmp_path / "run", resume=True, **other))
    longer = train(QUICK, "digits", Options(epochs=2, average=0.9, out=tmp_path / "run", resume=True))
    whole = train(QUICK, "digits", Options(epochs=2, average=0.9))
    assert same(weights(longer.net), weights(whole.net))  # it went on from the weights, not from their average


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": "step"}, "decay must be none, cosine or linear, got 'step'"),
        ({"warmup": 1.0}, r"warmup must lie in \[0, 1\).*got 1.0"),
        ({"warmup": -0.1}, r"warmup must lie in \[0, 1\)"),
        ({"warmup": math.nan}, r"warmup must lie in \[0, 1\)"),
        ({"average": 1.0}, r"average must lie in \[0, 1\), for instance 0.999.*got 1.0"),
        ({"average": -0.5}, r"average must lie in \[0, 1\)"),
        ({"average": math.nan}, r"average must lie in \[0, 1\)"),
    ],
)
def test_bad_values_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        Options(**options)
