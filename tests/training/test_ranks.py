"""Training by several ranks: the bits of one process, whoever takes which parts of a step; errors reach all."""

import dataclasses
import functools
import hashlib
import json
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sidestep import checkpoint, data, rules
from sidestep.data.share import Share
from sidestep.errors import InputError, NonFiniteError, RankError, SidestepError
from sidestep.noise import Noise
from sidestep.probes import DenseProbes
from sidestep.rules.protocol import Batch, Task
from sidestep.rules.shared.any_module import STEP_SIZE, as_dense
from sidestep.rules.shared.whole_model import on_whole_model
from sidestep.training import STOP, Options, Stopped, loop, train
from sidestep.training.evaluation_progress import EvaluationProgress
from sidestep.training.exchange import PartSum
from sidestep.training.numbers import pack_losses, pack_whole, unpack_losses, unpack_whole
from sidestep.training.options import Compute
from sidestep.training.parts import Parts, with_parts
from sidestep.training.pieces import broadcast_tensors, tensors_of
from sidestep.training.ranks import check_same_everywhere, share_kept, share_state
from sidestep.training.state import State
from sidestep.training.stopping import StopRequest
from sidestep.training.unit_ranks import UnitRanks
from sidestep.update import Dense, Seeded
from sidestep.world import Alone, distributed, frames, world_here
from tests.reference.ranks import bytes_of, on_ranks

SMALL, PROBES = {"hidden": (16,)}, {"estimator": "weight-probes"}
CASES = {  # rule, and what of a step is divided into how many parts
    "spsa, pairs": (rules.SPSA(pairs=8, learning_rate=1e-3, **SMALL), "probes", 4),
    "spsa, pairs of both sides": (rules.SPSA(pairs=4, sides="both", learning_rate=1e-3, **SMALL), "probes", 4),
    "spsa, batch": (rules.SPSA(pairs=2, **SMALL), "batch", 3),
    "weight probes, probes": (rules.NoiseStep(estimator="weight-probes", probes=48, **SMALL), "probes", 4),
    "weight probes, trits": (rules.NoiseStep(**PROBES, trit_threshold="tracked", probes=48, **SMALL), "probes", 4),
    "weight probes, batch": (rules.NoiseStep(estimator="weight-probes", probes=32, **SMALL), "batch", 3),
    "weight probes, deep": (rules.NoiseStep(estimator="weight-probes", probes=12, hidden=(16,) * 4), "probes", 3),
    "rank-one": (rules.NoiseStep(estimator="rank-one", tangents=2, **SMALL), "batch", 3),
    "rank-one, trits": (
        rules.NoiseStep(estimator="rank-one", tangents=2, trit_threshold="tracked", **SMALL),
        "batch",
        3,
    ),
    "trits of local losses": (rules.NoiseStep(codec="trits", probes=32, **SMALL), "batch", 3),
    "flips of local losses": (rules.NoiseStep(**SMALL), "batch", 3),
    "flips of activity probes": (rules.NoiseStep(estimator="activity-probes", **SMALL), "batch", 3),
    "forward gradient, tangents": (rules.ForwardGradient(kind="weights", tangents=4, **SMALL), "probes", 4),
    "forward gradient, batch": (rules.ForwardGradient(**SMALL), "batch", 3),
    "evolution, batch": (rules.Evolution(**SMALL), "batch", 3),
    "back-propagation": (rules.Backprop(net="mlp", norm="batch", **SMALL), "batch", 3),
    "local losses": (rules.LocalLoss(**SMALL), "batch", 3),
    "noprop": (rules.NoPropDT(blocks=2), "batch", 3),
    "noprop, units": (rules.NoPropDT(blocks=3), "units", None),
    "blockwise, units": (rules.Blockwise(groups=3, depth=3, width=16), "units", None),
}


@functools.cache
def digits():
    whole = data.load("digits")
    few = slice(0, 160)
    names = list(whole.class_names)
    return data.from_arrays(whole.train.images[few], whole.train.labels[few], validation=0.1, class_names=names)


FOUR = {  # one of each way to divide, in four parts or more
    "weight probes, probes": CASES["weight probes, probes"],
    "weight probes, trits": CASES["weight probes, trits"],
    "flips of local losses": (rules.NoiseStep(**SMALL), "batch", 4),
    "noprop, units": (rules.NoPropDT(blocks=5), "units", None),
}


def train_four(world, folder):
    return train_all(world, folder, FOUR, 64)


def train_all(world, folder, cases=CASES, batch=48):
    torch.set_num_threads(1)
    for name, (rule, split, shares) in cases.items():
        options = Options(
            batch=batch, epochs=2, out=f"{folder}/{name}", split=split, shares=shares, precision="float32"
        )
        train(rule, digits(), options, readings=[])
    return "done"


def left(folder, name):
    """What a run leaves, without the seconds that it took."""
    found = bytes_of(folder / name, "model.safetensors", "metrics.jsonl")
    log = folder / name / "steps.steplog"
    lines = [json.loads(line) for line in found["metrics.jsonl"].splitlines()]
    for line in lines:
        del line["seconds"]
    return found["model.safetensors"], lines, log.read_bytes() if log.exists() else b""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folders = {size: tmp_path_factory.mktemp(f"ranks-{size}") for size in (1, 2, 3)}
    for size, folder in folders.items():
        assert on_ranks(size, train_all, str(folder), seconds=120) == ["done"] * size
        assert len(list(folder.iterdir())) == len(CASES)
    return folders


@pytest.mark.parametrize("name", CASES)
def test_one_two_and_three_ranks_leave_the_same_bits(name, runs):
    one, two, three = (left(folder, name) for folder in runs.values())
    assert one[1]
    assert one == two
    assert one == three
    logged = "flips" in name or "spsa" in name or "probes" in name or "trits" in name or "rank" in name
    assert bool(one[2]) == logged


def test_four_ranks_leave_the_bits_of_one_process(tmp_path):
    assert on_ranks(4, train_four, str(tmp_path / "four"), seconds=120) == ["done"] * 4
    assert on_ranks(1, train_four, str(tmp_path / "one"), seconds=120) == ["done"]
    for name in FOUR:
        one, four = left(tmp_path / "one", name), left(tmp_path / "four", name)
        assert one[1]
        assert hashlib.sha256(one[0]).hexdigest() == hashlib.sha256(four[0]).hexdigest(), name
        assert one[1:] == four[1:], name


@given(st.lists(st.integers(-(2**62), 2**62), max_size=40))
def test_whole_numbers_come_back_from_as_few_bits_as_they_need(numbers):
    packed = pack_whole(np.array(numbers, np.int64))
    assert unpack_whole(packed, len(numbers), 0).tolist() == numbers
    bits = max((2 * n if n >= 0 else -2 * n - 1 for n in numbers), default=0).bit_length()
    assert len(packed) == 1 + -(-len(numbers) * bits // 8)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 2.3, 1 / 32, float("nan")]), st.floats(width=32), st.just(1.5)),
        min_size=1,
        max_size=5,
    )
)
def test_losses_come_back_from_the_bytes_that_differ(rows):
    losses = np.array(rows, np.float32)
    data = pack_losses(losses)
    found, end = unpack_losses(data + b"rest", *losses.shape, 0)
    assert found.tobytes() == losses.tobytes()
    assert end == len(data)
    for cut in range(len(data)):
        with pytest.raises(RankError, match="no losses of"):
            unpack_losses(data[:cut], *losses.shape, 0)


@pytest.mark.parametrize("data", [b"", b"\x41", b"\x04\0", b"\x04" + b"\0" * 9])
def test_bytes_that_are_no_coefficients_are_refused(data):
    with pytest.raises(RankError, match="rank 3 sent"):
        unpack_whole(data, 16, 3)


def test_shares_of_probes_and_examples():
    assert [list(Share("probes", i, 3).probes(6)) for i in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert list(Share("batch", 1, 3).probes(6)) == list(range(6))
    assert list(Share("batch", 1, 3).examples(6)) == [2, 3]
    assert Share("batch", 1, 3).whole(2) == 6
    with pytest.raises(InputError, match="7 probes cannot be divided into 3 equal parts"):
        Share("probes", 0, 3).probes(7)


def one(coefs, taken=None, loss=1.0):
    probes = DenseProbes(Noise(0), (("weight", (2,)),), len(coefs))
    taken = None if taken is None else torch.tensor(taken)
    return Seeded(torch.tensor(coefs), probes, losses={"net: loss": torch.tensor(loss)}, taken=taken)


def summed(*updates):
    total = PartSum()
    for update in updates:
        total.add(update)
    return total.exchanged(Alone(), len(updates), 0)[0]


def test_the_sum_of_parts_does_not_depend_on_their_order():
    parts = [one([1e-3 / 3, 40.0]), one([5e-4 / 7, -40.0 + 2**-20]), one([-1e-3 / 3, 1e-9])]
    found = summed(*parts)
    assert torch.equal(found.coefs, summed(*reversed(parts)).coefs)
    exact = [sum(float(part.coefs[i]) for part in parts) for i in (0, 1)]
    assert found.coefs.tolist() == pytest.approx(exact, abs=2**-40)


def test_parts_that_took_probes_stand_side_by_side():
    found = summed(one([0.1, 0.0], [True, False]), one([0.0, 0.3], [False, True], loss=2.0))
    assert found.coefs.tolist() == torch.tensor([0.1, 0.3]).tolist()
    assert float(found.losses["net: loss"]) == 1.5
    assert found.taken is None
    with pytest.raises(InputError, match="have taken the same probe"):
        summed(one([0.1, 0.0], [True, False]), one([0.2, 0.0], [True, False]))
    with pytest.raises(RankError, match="nobody has taken probe 1 of 2"):
        summed(one([0.1, 0.0], [True, False]))


@pytest.mark.parametrize("bad", [1e6, float("inf"), float("nan")])
def test_a_coefficient_beyond_exact_sums_is_refused(bad):
    with pytest.raises(NonFiniteError, match="a coefficient of the estimate is"):
        summed(one([bad, 0.0]))


def test_gradients_are_means():
    parts = [
        Dense({"w": torch.tensor([value])}, {"n": torch.tensor(3)}, {"l": torch.tensor(value)}) for value in (1.0, 4.0)
    ]
    found = summed(*parts)
    assert found.gradients["w"].tolist() == [2.5]
    assert found.statistics["n"].item() == 3
    assert found.statistics["n"].dtype == torch.int64


class Of(Alone):
    """A world of several ranks that nothing is sent in."""

    def __init__(self, size):
        self.size = size


WEIGHTS = rules.NoiseStep(estimator="weight-probes", probes=128)
NOPROP = rules.NoPropDT(blocks=3)


@pytest.mark.parametrize(
    ("rule", "asked", "ranks", "batch", "split", "shares"),
    [
        (WEIGHTS, {}, 2, 128, "batch", 4),
        (WEIGHTS, {}, 6, 128, "batch", 8),
        (WEIGHTS, {"split": "probes"}, 3, 128, "probes", 4),
        (WEIGHTS, {"split": "probes"}, 60, 128, "probes", 64),
        (WEIGHTS, {"shares": 2}, 1, 128, "batch", 2),
        (rules.SPSA(pairs=6, learning_rate=1e-3), {}, 2, 128, "probes", 6),
        (rules.SPSA(pairs=2, learning_rate=1e-3), {}, 2, 128, "probes", 2),
        (rules.SPSA(), {}, 2, 128, "batch", 4),
        (rules.LocalLoss(), {}, 3, 96, "batch", 4),
        (rules.LocalLoss(), {}, 2, 48, "batch", 3),
        (rules.NoPropDT(), {}, 2, 48, "units", None),
        (rules.NoPropDT(embedding="learned", dimension=6), {}, 2, 64, "batch", 4),
    ],
)
def test_how_a_step_is_divided_where_nobody_says(rule, asked, ranks, batch, split, shares):
    found = with_parts(Options(**asked), rule, Of(ranks), batch)
    assert (found.split, found.shares) == (split, shares)


def test_one_process_divides_nothing_unless_it_is_asked():
    options = Options()
    assert with_parts(options, WEIGHTS, Of(1), 128) is options


@pytest.mark.parametrize(
    ("rule", "asked", "ranks", "batch", "words"),
    [
        (rules.LocalLoss(), {}, 9, 128, "there are 9 ranks, and a step of 128 examples has at most 8 equal parts"),
        (rules.LocalLoss(), {"shares": 16}, 2, 128, "needs 16 examples"),
        (rules.LocalLoss(), {"shares": 3}, 2, 128, "cannot be divided into 3 equal parts"),
        (rules.LocalLoss(), {"split": "probes"}, 2, 128, "give --split batch"),
        (rules.LocalLoss(), {"shares": 2}, 3, 128, "there are 3 ranks, and a step has 2 parts"),
        (rules.SPSA(pairs=2, learning_rate=1e-3), {}, 3, 128, "a step of 2 probes has at most 2 equal parts"),
        (rules.Evolution(per="group", group=32), {"shares": 8}, 2, 128, "multiple of group = 32"),
        (rules.Evolution(fitness="ranks"), {}, 2, 128, "is one piece: train it in one process"),
        (rules.NoPropDT(blocks=2), {}, 3, 128, "3 ranks, and noprop-dt has 2 units to spread"),
        (rules.NoPropDT(), {"average": 0.9}, 2, 128, "average = 0.9 needs the whole net at every step"),
        (rules.LocalLoss(), {"units": "in-turn"}, 2, 128, "leave units or split out"),
    ],
)
def test_a_step_that_cannot_be_divided_so_is_refused(rule, asked, ranks, batch, words):
    with pytest.raises(InputError, match=words):
        with_parts(Options(**asked), rule, Of(ranks), batch)


ESTIMATED = {  # whose parts have the directions of the whole step in common
    **{
        name: CASES[name]
        for name in CASES
        if name.startswith(("spsa", "weight", "rank", "trits", "flips of local")) and not name.endswith(", trits")
    },
    "tangents": CASES["forward gradient, tangents"],
    "back-propagation without a batch norm": (rules.Backprop(net="mlp", norm="layer", **SMALL), "batch", 3),
    "a whole model, spsa": (rules.SPSA(pairs=2), "batch", 3),
    "a whole model, forward gradient": (rules.ForwardGradient(kind="weights"), "batch", 3),
    "a whole model, back-propagation": (rules.Backprop(), "batch", 3),
}


def sized(update):
    """Without the step size that each part of a batch finds for itself."""
    return dataclasses.replace(update, losses={n: v for n, v in update.losses.items() if n != STEP_SIZE})


def numbers(net, update):
    dense = as_dense(net, update)
    return torch.cat([gradient.flatten().float() for gradient in dense.gradients.values()])


@pytest.mark.parametrize("name", ESTIMATED)
def test_the_parts_make_the_estimate_of_the_whole_step(name):
    rule, split, shares = ESTIMATED[name]
    task, model = Task.of(digits()), None
    if name.startswith("a whole model"):
        rule, model = on_whole_model(rule), lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    net = rule.build(task, Noise(0), digits().train, model)
    batch = Batch(task.prepare(digits().train.images[:48]), digits().train.labels[:48], task.objective)
    whole = numbers(net, sized(rule.estimate(net, batch, Noise(1))))
    parts = Parts(Alone(), split, shares)
    found = parts.estimate(rule, net, batch, Noise(1), Compute.find("cpu", "float32"), StopRequest())
    found = numbers(net, sized(found))
    assert float((found - whole).norm() / whole.norm()) < (0.05 if "spsa" in name else 1e-4)  # a difference of losses


def short(folder, rule=WEIGHTS, **changed):
    """Train for 6 steps, with a checkpoint after each."""
    given = {"batch": 48, "steps": 6, "split": "batch", "shares": 3, "checkpoint_seconds": 1e-9, "precision": "float32"}
    torch.set_num_threads(1)
    return train(rule, digits(), Options(**{**given, "out": folder, **changed}), readings=[])


def at_step(step, rank, act):
    """Do something before a rank estimates its parts of a step, which are counted from 1."""
    calls = []

    def acting(plain):
        def estimate(self, *arguments):
            calls.append(1)
            if (len(calls), self.world.rank) == (step, rank):
                act(*arguments)
            return plain(self, *arguments)

        return estimate

    for kind in (Parts, UnitRanks):
        kind.estimate = acting(kind.estimate)


def refuse(*_):
    raise InputError("the data of this rank are gone")


def stopped_on_rank_1(world, folder):
    at_step(3, 1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        short(folder)
    except Stopped as error:
        return error.step, error.signal_number


def failed_on_rank_1(world, folder):
    at_step(3, 1, refuse)
    short(folder)


def killed_on_rank_1(world, folder):
    at_step(3, 1, lambda *_: os._exit(9))
    short(folder)


def without_numbers(world, folder):
    at_step(3, 1, lambda rule, net, *others: net.readout.weight.data.fill_(float("nan")))
    short(folder, rules.SPSA(pairs=3, learning_rate=1e-3, **SMALL), split="probes")


class Ends:
    """Ends the training before its first step, or after its first epoch, whose weights it keeps, two epochs later."""

    def __init__(self, at_once):
        self.at_once = at_once

    def on_begin(self, event):
        return STOP if self.at_once else None

    def on_epoch(self, event):
        if event.epoch == 1:
            event.keep()
        return STOP if event.epoch == 3 else None


def ended_by_an_observer(world, folder, at_once):
    given = {"batch": 48, "epochs": 5, "split": "batch", "shares": 3, "precision": "float32"}
    torch.set_num_threads(1)
    made = train(WEIGHTS, digits(), Options(**given), observers=[Ends(at_once)], readings=[])
    return made.step, {name: value.tolist() for name, value in made.net.state_dict().items()}


class Fails:
    """Raises an error after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, event):
        if event.step == self.step:
            raise ValueError("the disk of the logger is full")


def failed_observer(world, folder, step, split):
    steps = []

    def counting(plain):
        def estimate(self, *arguments):
            steps.append(1)
            return plain(self, *arguments)

        return estimate

    for kind in (Parts, UnitRanks):
        kind.estimate = counting(kind.estimate)
    rule, shares = (NOPROP, None) if split == "units" else (WEIGHTS, 3)
    given = {"batch": 48, "epochs": 3, "split": split, "shares": shares, "precision": "float32", "out": folder}
    torch.set_num_threads(1)
    try:
        train(rule, digits(), Options(**given), observers=[Fails(step)], readings=[])
    except SidestepError as error:
        return type(error).__name__, str(error), len(steps)


def resumed(world, folder):
    short(folder, resume=True)
    return "done"


def started_otherwise(world, folder):
    short(folder, seed=world.rank)


def in_a_folder_that_is_taken(world, folder):
    short(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    short(str(folder / "run"))
    return left(folder, "run")


def test_a_stop_request_to_one_rank_stops_all_after_one_step_and_loses_nothing(tmp_path, whole):
    assert on_ranks(2, stopped_on_rank_1, str(tmp_path / "run")) == [(3, signal.SIGTERM)] * 2
    assert on_ranks(3, resumed, str(tmp_path / "run")) == ["done"] * 3
    assert left(tmp_path, "run") == whole


@pytest.mark.parametrize(("at_once", "steps"), [(True, 0), (False, 9)])
def test_an_observer_ends_all_ranks_with_the_weights_that_it_kept(at_once, steps, tmp_path):
    (first, own), (second, other) = on_ranks(2, ended_by_an_observer, str(tmp_path / "run"), at_once)
    assert first == second == steps
    assert own == other


@pytest.mark.parametrize("split", ["batch", "units"])
@pytest.mark.parametrize("step", [2, 3])  # within an epoch, and at its end
def test_an_observer_that_fails_ends_all_ranks_after_the_same_step_which_is_saved(step, split, tmp_path):
    first, second = on_ranks(2, failed_observer, str(tmp_path / "run"), step, split)
    assert first[::2] == ("ObserverError", step)
    assert second[::2] == ("RankError", step)
    assert "rank 0 has stopped: Fails.on_step failed: ValueError: the disk of the logger is full" in second[1]
    assert checkpoint.load(tmp_path / "run" / "state.safetensors")[1]["step"] == step


def test_a_killed_rank_is_missed_and_a_restart_leads_to_the_same_bits(tmp_path, whole):
    first, second = on_ranks(2, killed_on_rank_1, str(tmp_path / "run"))
    assert second is None
    assert isinstance(first, RankError)
    assert "has lost another rank" in str(first)
    assert on_ranks(2, resumed, str(tmp_path / "run"), generation=1) == ["done"] * 2
    assert left(tmp_path, "run") == whole


def test_an_error_of_one_rank_is_said_by_all(tmp_path):
    first, second = on_ranks(2, failed_on_rank_1, str(tmp_path / "run"))
    assert isinstance(second, InputError)
    assert isinstance(first, RankError)
    assert "rank 1 has stopped: the data of this rank are gone" in str(first)
    assert (tmp_path / "run" / "state.safetensors").exists()


def test_a_loss_without_a_number_stops_all_ranks_alike(tmp_path):
    for error in on_ranks(2, without_numbers, str(tmp_path / "run")):
        assert isinstance(error, NonFiniteError)
        assert "the loss is nan at step 2, unit net" in str(error)


class Beside(Of):
    """A world of two ranks, of which the other says what this one does, but for one entry."""

    def __init__(self, entry, value):
        super().__init__(2)
        self.entry, self.value = entry, value

    def gather(self, message):
        return [message, json.dumps({**json.loads(message), self.entry: self.value}).encode()]


CONFIG = {
    "rule": {"name": "spsa", "pairs": 4},
    "data": {"name": "digits", "pixels": "a1"},
    "train": {"seed": 0, "shares": 4},
    "versions": {"sidestep": "1", "torch": "2", "threads": 1},
}


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("versions.sidestep", "0.9"),
        ("versions.torch", "2.12"),
        ("data.pixels", "b2"),
        ("rule.pairs", 8),
        ("train.shares", 2),
        ("the untrained net", "another"),
    ],
)
def test_what_ranks_have_to_have_alike_is_named(entry, value):
    said = []
    with pytest.raises(InputError, match=rf"{entry}: .* on rank 0, {value} on rank 1.*start all of them by the same"):
        check_same_everywhere(Beside(entry, value), CONFIG, torch.nn.Linear(2, 1), said.append)
    assert not said


@pytest.mark.parametrize(("entry", "value"), [("versions.threads", 8), ("processor", "another")])
def test_other_threads_and_processors_are_told_and_not_refused(entry, value):
    said = []
    check_same_everywhere(Beside(entry, value), CONFIG, torch.nn.Linear(2, 1), said.append)
    assert "cannot be promised" in said[0]


def test_ranks_that_were_started_otherwise_are_refused_on_all(tmp_path):
    for error in on_ranks(2, started_otherwise, str(tmp_path / "run")):
        assert isinstance(error, InputError)
        assert "train.seed: 0 on rank 0, 1 on rank 1" in str(error)
    assert not (tmp_path / "run").exists()


def test_what_the_first_rank_cannot_do_is_said_by_the_others_too(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("dear")
    first, second = on_ranks(2, in_a_folder_that_is_taken, str(tmp_path / "run"))
    assert isinstance(first, InputError)
    assert isinstance(second, RankError)
    assert "rank 0 has stopped:" in str(second)
    assert "is not empty and not a run's folder" in str(second)


def bytes_a_step(world, split):
    """The bytes of a rank's messages in each of ten steps, from the counts of a longer and a shorter run."""
    found = []
    for steps in (2, 12):
        before = world_here().sent_bytes + world_here().summed_bytes
        options = Options(batch=64, steps=steps, split=split, shares=2, precision="float32")
        train(rules.NoiseStep(estimator="weight-probes", probes=128, hidden=(256, 256)), "digits", options, readings=[])
        found.append(world_here().sent_bytes + world_here().summed_bytes - before)
    return (found[1] - found[0]) / 10


def test_what_128_probes_take_a_step_and_rank():
    head = 8 + 2 * 4  # of the frame with its digest, and a part's two losses
    for sent in on_ranks(
        2, bytes_a_step, "probes"
    ):  # the numbers, since all know who takes which; and 0.4 of the start
        assert sent == pytest.approx(head + 64 * 4, abs=0.5)
    for sent in on_ranks(2, bytes_a_step, "batch"):
        assert head + 1 + 128 * 30 / 8 < sent < head + 1 + 128 * 40 / 8  # as many bits each as the largest one needs


def blocks_stopped(world, folder):
    at_step(5, 1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        short(folder, NOPROP, split="units", shares=None)
    except Stopped as error:
        return error.step


def blocks_resumed(world, folder):
    short(folder, NOPROP, split="units", shares=None, resume=True)
    return "done"


def test_blocks_on_two_ranks_stop_within_an_epoch_and_go_on_with_three(tmp_path):
    short(str(tmp_path / "one"), NOPROP, split="units", shares=None)
    assert on_ranks(2, blocks_stopped, str(tmp_path / "many")) == [5, 5]
    assert on_ranks(3, blocks_resumed, str(tmp_path / "many")) == ["done"] * 3
    assert left(tmp_path, "many") == left(tmp_path, "one")


def evaluation_stopped(world, folder):
    """Send rank 1 a signal while the second split is evaluated."""
    plain, splits = EvaluationProgress.of, []

    def of(*args, **given):
        splits.append(args[1])
        if len(splits) == 2 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args, **given)

    EvaluationProgress.of = of
    try:
        short(folder, NOPROP, split="units", shares=None)
    except Stopped as error:
        return str(error), error.signal_number


def evaluated(world, folder):
    given = {"split": "units", "shares": None}
    resumed = short(folder, NOPROP, **given, resume=True).result
    return {name: value for name, value in resumed.items() if name not in ("seconds", "peak_memory_bytes", "run")}


def test_ranks_that_evaluate_together_stop_after_one_batch_and_go_on_with_another_number(tmp_path):
    first, second = on_ranks(2, evaluation_stopped, str(tmp_path / "many"))
    assert first == second
    assert first[1] == signal.SIGTERM
    assert "images of the evaluation on the" in first[0]
    found = on_ranks(3, evaluated, str(tmp_path / "many"))
    short(str(tmp_path / "one"), NOPROP, split="units", shares=None)
    assert found == on_ranks(1, evaluated, str(tmp_path / "one")) * 3
    assert left(tmp_path, "many") == left(tmp_path, "one")


TENSORS = {
    "none": torch.empty(0),
    "one": torch.tensor(3, dtype=torch.int64),
    "many": torch.arange(1000.0).view(10, 100).T,  # not contiguous
    "short": torch.arange(7, dtype=torch.int8),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "yes": torch.tensor([True, False]),
}


def passed(world, most):
    own = {name: value + 0 if value.dtype != torch.bool else value for name, value in TENSORS.items()}
    spread = broadcast_tensors(world, own if world.leads else {}, most)
    taken = [dict(tensors_of(world, source, own if world.rank == source else {}, most)) for source in range(world.size)]
    return plain(spread), [plain(each) for each in taken]


def plain(tensors):
    return {name: (str(value.dtype), value.tolist()) for name, value in tensors.items()}


@pytest.mark.parametrize("most", [64, 4013, 1 << 20])
def test_tensors_pass_in_pieces_of_any_length(most):
    whole = plain(TENSORS)
    for rank, (spread, taken) in enumerate(on_ranks(3, passed, most)):
        assert spread == whole
        assert taken == [whole if rank in (0, source) else {} for source in range(3)]


def larger_than_a_message(world):
    """Share a state of 130 kB where a message may have 20 kB."""
    frames.MOST_BYTES = distributed.MOST_BYTES = 20_000
    rule = rules.Backprop(net="mlp", hidden=(128,))
    net = rule.build(Task.of(digits()), Noise(world.rank), digits().train, None)
    state = State(net, rule.optimizer(net), step=3 if world.leads else 0)
    if world.leads:
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        state.optimizer.step()
        state.keep()
    share_state(world, state, most=10_000)
    share_kept(world, state, most=10_000)
    return state.step, plain(state.tensors()[0])


def test_a_state_larger_than_a_message_reaches_all_ranks():
    first, second = on_ranks(2, larger_than_a_message)
    assert first == second
    assert first[0] == 3
    assert any(name.startswith("kept/") for name in first[1])
    assert any(name.startswith("optimizer/") for name in first[1])


def held(net, optimizer):
    """Bytes of weights, and of what an optimiser keeps of them, that are in memory here."""
    weights = sum(parameter.untyped_storage().nbytes() for parameter in net.parameters())
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return weights, sum(value.untyped_storage().nbytes() for value in moments)


def blocks_held(world, folder):
    found, made_by = [], []

    def looking(plain):
        def take(attached, update, record):
            plain(attached, update, record)
            gradients = sum(value.nbytes for value in update.gradients.values())
            found.append((*held(attached.net, attached.optimizer), gradients))
            made_by[:] = [attached.optimizer]

        return take

    loop.take_update = looking(loop.take_update)
    made = short(folder, rules.NoPropDT(blocks=4), split="units", shares=None, checkpoint_seconds=60)
    spread = held(made.net if world.size == 1 else made._net, made_by[0])
    return found, spread, held(made.net, made_by[0])[0], predicted(made)


def predicted(made):
    return made.predict(digits().validation.images[:20]).tolist()


def test_each_rank_holds_its_own_blocks_alone_until_somebody_looks_at_the_net(tmp_path):
    ((one, ended, whole, answers),) = on_ranks(1, blocks_held, str(tmp_path / "one"))
    assert ended[0] == whole
    for found, at_the_end, looked_at, answers_there in on_ranks(2, blocks_held, str(tmp_path / "two")):
        assert len(found) == len(one) == 6
        assert 0.45 * whole < at_the_end[0] < 0.55 * whole
        assert at_the_end[1] == 0  # nothing of the optimiser
        assert looked_at == whole
        assert answers_there == answers
        for here, everything in zip(found, one, strict=True):
            for own, all_ in zip(here, everything, strict=True):
                assert 0.45 * all_ < own < 0.55 * all_
    tensors, record = checkpoint.load(tmp_path / "one" / "state.safetensors")
    other, its_record = checkpoint.load(tmp_path / "two" / "state.safetensors")
    assert tensors.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in tensors.items())
    assert record["optimizer"] == its_record["optimizer"]


def other_run_in_the_folder(world, folder):
    short(folder, NOPROP, split="units", shares=None)
    first = short(folder, NOPROP, split="units", shares=None, resume=True)
    given = {"split": "units", "shares": None, "overwrite": True, "seed": 1}
    short(folder, NOPROP, **given)
    world.gather(b"")
    try:
        first.predict(digits().validation.images[:2])
    except InputError as error:
        return str(error)


def test_blocks_of_another_run_in_the_same_folder_are_not_taken_for_those_of_this_one(tmp_path):
    for said in on_ranks(2, other_run_in_the_folder, str(tmp_path / "run")):
        assert "is another run's" in said


class Forgets:
    def __init__(self, keeps):
        self.keeps = keeps

    def on_begin(self, event):
        if not self.keeps:
            event.forget()

    def on_epoch(self, event):
        if self.keeps and event.epoch == 1:
            event.keep()


def blocks_forgotten(world, folder):
    torch.set_num_threads(1)
    for epochs in (1, 3):
        options = Options(batch=48, epochs=epochs, split="units", precision="float32", out=folder, resume=epochs > 1)
        made = train(NOPROP, digits(), options, readings=[], observers=[Forgets(epochs == 1)])
    return [float(value.double().sum()) for value in made.net.state_dict().values()], made.result.get("kept_step")


def test_what_an_observer_of_the_first_rank_forgets_is_forgotten_by_all(tmp_path):
    (one,) = on_ranks(1, blocks_forgotten, str(tmp_path / "one"))
    assert one[1] is None
    assert on_ranks(2, blocks_forgotten, str(tmp_path / "two")) == [one, one]


def blocks_with_patience(world, folder):
    given = {"batch": 48, "epochs": 8, "split": "units", "patience": 1, "precision": "float32", "out": folder}
    torch.set_num_threads(1)
    made = train(rules.NoPropDT(blocks=3, learning_rate=0.03), digits(), Options(**given), readings=[])
    tensors = made.net.state_dict().values()
    return made.step, made.result["kept_step"], hashlib.sha256(b"".join(v.numpy().tobytes() for v in tensors)).digest()


def test_blocks_that_an_early_stop_has_kept_are_put_together(tmp_path):
    ((steps, kept, bits),) = on_ranks(1, blocks_with_patience, str(tmp_path / "one"))
    assert kept < steps < 8 * 3
    for found in on_ranks(2, blocks_with_patience, str(tmp_path / "two")):
        assert found == (steps, kept, bits)
    kept_there = checkpoint.load(tmp_path / "two" / "state.safetensors")[0]
    kept_here = checkpoint.load(tmp_path / "one" / "state.safetensors")[0]
    assert all(torch.equal(value, kept_there[name]) for name, value in kept_here.items())


def test_a_block_that_is_elsewhere_predicts_nothing_alone():
    net = NOPROP.build(Task.of(digits()), Noise(0), digits().train, None)
    images = Task.of(digits()).prepare(digits().validation.images[:4])
    whole = NOPROP.predict(net, images, Noise(1))
    net.hold([0, 2])
    with pytest.raises(InputError, match="block 2 is trained by another process"):
        NOPROP.predict(net, images, Noise(1))
    features = net.block(1).features(images)
    latents = []

    def passed(index, logits):
        assert (logits is None) == (index == 1)
        return logits if index != 1 else net.block(1).logits(features, latents.pop())

    plain = net.block_logits

    def seen(index, rows, latent):
        latents.append(latent) if index == 1 else None
        return plain(index, rows, latent)

    net.block_logits = seen
    with net.spread(passed):
        together = NOPROP.predict(net, images, Noise(1))
    assert all(torch.equal(value, together[name]) for name, value in whole.items())
