"""Training from a loader: what it gives is trained on in its order, and where it can be taken up again, it is."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sidestep import Options, data, load_run, train
from sidestep.data import batch_indices
from sidestep.data.feed import BatchError
from sidestep.errors import DataError, InputError
from sidestep.noise import Noise
from sidestep.rules import SPSA, Backprop
from sidestep.training import Stopped

QUICK = Backprop(net="mlp", hidden=(8,))
X = np.random.default_rng(5).normal(size=(60, 1, 4, 4)).astype(np.float32)
Y = np.arange(60) % 3
BATCHES = [(X[start : start + 10], Y[start : start + 10]) for start in range(0, 60, 10)]


def loader(**options):
    return DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=10, **options)


def weights(run):
    return run.net.state_dict()


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class Once:
    """An iterable without a length, a pass of which is told."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


class Stateful:
    """A loader that shuffles by a generator of its own, and whose position can be saved, as torchdata's."""

    def __init__(self, batches, seed=0):
        self.batches, self.generator, self.place, self.order = batches, np.random.default_rng(seed), 0, None

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        if self.order is None or self.place == len(self.batches):
            self.order, self.place = self.generator.permutation(len(self.batches)), 0
        while self.place < len(self.batches):
            self.place += 1
            yield self.batches[self.order[self.place - 1]]

    def state_dict(self):
        state = self.generator.bit_generator.state
        return {
            "order": self.order,
            "place": self.place,
            "generator": json.dumps(state),
            "one": (1, b"x", torch.ones(2)),
        }

    def load_state_dict(self, state):
        assert state["one"][1] == b"x"
        assert torch.equal(state["one"][2], torch.ones(2))
        self.order, self.place = state["order"], state["place"]
        self.generator.bit_generator.state = json.loads(state["generator"])


class Interrupting:
    def __init__(self, at):
        self.at = at

    def on_step(self, event):
        if event.step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


class TestWhatIsTrainedOn:
    def test_the_batches_that_a_run_on_arrays_draws_give_its_weights(self):
        arrays = data.from_arrays(X, Y, validation=0)
        rows = [batch_indices(Noise(0).stream("order"), step, 60, 10).numpy() for step in range(12)]
        given = ((X[index], Y[index]) for index in rows)
        fed = data.from_loader(given, mean=arrays.mean, std=arrays.std)
        one, other = (train(QUICK, each, Options(batch=10, steps=12, decay="linear")) for each in (arrays, fed))
        assert same(weights(one), weights(other))

    @pytest.mark.parametrize(
        "given", [BATCHES, tuple(BATCHES), Once(BATCHES), loader()], ids=lambda each: type(each).__name__
    )
    def test_passes_follow_each_other(self, given):
        found = train(QUICK, given, steps=14)
        twice = (batch for _ in range(3) for batch in BATCHES)
        assert same(weights(found), weights(train(QUICK, twice, steps=14)))

    def test_epochs_are_passes(self):
        told = []

        class Told:
            def on_epoch(self, event):
                told.append((event.epoch, event.step))

        found = train(QUICK, loader(), Options(epochs=2), observers=[Told()])
        assert told == [(1, 6), (2, 12)]
        assert found.result["epochs"] == 2

    def test_validation_and_test_are_judged(self):
        fed = data.from_loader(loader(shuffle=True), validation=(X[:30], Y[:30]), test=loader(), epoch=4)
        found = train(QUICK, fed, Options(epochs=40), readings=[])
        assert found.result["steps"] == 160
        assert found.result["train_accuracy"] is None
        assert found.evaluate(fed.test) == pytest.approx({"forward": found.result["test_accuracy"]})

    def test_tables_values_tokens_and_mappings(self):
        table = X.reshape(60, 16)
        values = [(table[start : start + 20], table[start : start + 20, :2].sum(1)) for start in range(0, 60, 20)]
        assert train(QUICK, data.from_loader(values, targets="values"), steps=3).task.targets == "values"
        ids = np.random.default_rng(0).integers(0, 7, (30, 5))
        tokens = data.from_loader([(ids[:, :-1], ids[:, 1:])], targets="tokens", vocabulary=7)
        model = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7))
        assert train(SPSA(), tokens, steps=2, model=model).result["steps"] == 2
        named = [{"pixels": table[:20], "label": Y[:20], "other": Y[:20]}]
        assert train(QUICK, data.from_loader(named, keys=("pixels", "label")), steps=2).task.inputs == "features"

    def test_names_come_from_the_data_set(self):
        given = loader()
        given.dataset.classes = ["a", "b", "c"]
        assert data.from_loader(given).class_names == ("a", "b", "c")
        few = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y.clip(1))), batch_size=1)
        assert data.from_loader(few).classes == 3  # not only those of the first batch


class TestResuming:
    @pytest.mark.parametrize(
        "make", [loader, lambda: list(BATCHES), lambda: Stateful(BATCHES)], ids=["loader", "list", "state"]
    )
    @pytest.mark.parametrize("at", [4, 6, 9])
    def test_to_the_same_bits(self, make, at, tmp_path):
        options = {"steps": 14, "decay": "cosine"}
        train(QUICK, make(), Options(**options, out=tmp_path / "whole"))
        with pytest.raises(Stopped):
            train(QUICK, make(), Options(**options, out=tmp_path / "parts"), observers=[Interrupting(at)])
        train(QUICK, make(), Options(**options, out=tmp_path / "parts", resume=True))
        files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
        assert files[0] == files[1]

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda: loader(shuffle=True), "nothing says that it gives the same batches in the same order again"),
            (lambda: Once(BATCHES), "nothing says"),
            (lambda: iter(BATCHES), "can be gone through only once"),
        ],
        ids=["shuffled", "iterable", "once"],
    )
    def test_a_position_that_cannot_be_restored_is_told(self, make, why, tmp_path):
        train(QUICK, make(), Options(steps=3, out=tmp_path / "run"))
        before = (tmp_path / "run/state.safetensors").read_bytes()
        with pytest.raises(InputError, match=why):
            train(QUICK, make(), Options(steps=5, out=tmp_path / "run", resume=True))
        assert (tmp_path / "run/state.safetensors").read_bytes() == before
        assert load_run(tmp_path / "run").step == 3

    def test_who_says_that_the_order_is_the_same_can_resume(self, tmp_path):
        whole = train(QUICK, Once(BATCHES), steps=9)
        for steps, resume in ((4, False), (9, True)):
            fed = data.from_loader(Once(BATCHES), same_order=True)
            found = train(QUICK, fed, Options(steps=steps, out=tmp_path / "run", resume=resume))
        assert same(weights(whole), weights(found))

    def test_other_batches_are_refused_where_they_are_known(self, tmp_path):
        train(QUICK, loader(), Options(steps=3, out=tmp_path / "run"))
        with pytest.raises(InputError, match=r"data.pixels: was"):
            train(QUICK, [(x + 1, y) for x, y in BATCHES], Options(steps=5, out=tmp_path / "run", resume=True))

    def test_a_second_run_begins_at_the_first_batch(self):
        fed = data.from_loader(loader())
        assert same(weights(train(QUICK, fed, steps=4)), weights(train(QUICK, fed, steps=4)))

    def test_an_iterator_that_was_used_is_refused_before_anything_is_removed(self, tmp_path):
        fed = data.from_loader(iter(BATCHES))
        train(QUICK, fed, Options(steps=4, out=tmp_path / "run"))
        with pytest.raises(InputError, match="only once, and has given 4 batches"):
            train(QUICK, fed, Options(steps=2, out=tmp_path / "run", overwrite=True))
        assert load_run(tmp_path / "run").step == 4

    def test_a_state_that_needs_a_pickle_is_refused(self, tmp_path):
        given = Stateful(BATCHES)
        given.state_dict = lambda: {"object": object()}
        with pytest.raises(InputError, match="holds a object, which cannot be kept without a pickle"):
            train(QUICK, given, Options(steps=3, out=tmp_path / "run"))


def changed(at, inputs=None, targets=None):
    found = list(BATCHES)
    x, y = found[at]
    found[at] = (x if inputs is None else inputs(x), y if targets is None else targets(y))
    return found


class TestBadLoaders:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (changed(2, lambda x: x[:, :, :3]), "float32 1 x 3 x 4 for each example, but the first one had float"),
            (changed(2, lambda x: x.astype(np.float64)), "batch 3 has inputs of float64"),
            (changed(2, None, lambda y: y.astype(np.float32)), "batch 3 has targets of float32"),
            (changed(2, None, lambda y: y[:4]), "batch 3 has 4 targets, 10 inputs"),
            (changed(2, lambda x: x[:0], lambda y: y[:0]), "batch 3 has 0 targets"),
            (changed(2, None, lambda y: y + 3), "batch 3 has the class 5, but there are 3, 0 to 2"),
            (changed(2, lambda x: x * np.nan), "batch 3: inputs: 160 of 160 pixels are NaN"),
            ([*BATCHES[:2], X[:10]], "batch 3 is a ndarray, but must be"),
            ([*BATCHES[:2], (*BATCHES[2], 1)], "batch 3 is a tuple of 3"),
            ([*BATCHES[:2], {"x": X, "y": Y}], r"batch 3 is a dict.*keys=\(INPUTS, TARGETS\)"),
            (iter(BATCHES[:2]), "has given 2 batches and has no more"),
        ],
    )  # fmt: skip
    def test_a_bad_batch_ends_the_training_and_what_was_trained_is_saved(self, given, message, tmp_path):
        with pytest.raises(BatchError, match=message) as error:
            train(QUICK, given, Options(steps=5, out=tmp_path / "run"))
        assert "the checkpoint of step 2" in str(error.value)
        assert "\n" not in str(error.value)
        assert load_run(tmp_path / "run").step == 2
        assert not (tmp_path / "run/result.json").exists()

    @pytest.mark.parametrize(
        "given", [[], DataLoader(TensorDataset(torch.zeros(0, 1, 4, 4), torch.zeros(0))), iter([])]
    )
    def test_nothing(self, given, tmp_path):
        with pytest.raises(DataError, match="yields no batch"):
            train(QUICK, given, Options(steps=5, out=tmp_path / "run"))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("targets", "wanted", "message"),
        [
            ("classes", Y + 0.5, "batch 1: targets"),
            ("labels", Y[:, None], "batch 1: targets: labels are 0 or 1"),
            ("values", Y.astype(str), "batch 1: targets: need numbers"),
            ("values", Y * np.nan, "batch 1: targets: some are NaN"),
        ],
    )
    def test_targets_that_the_objective_does_not_take(self, targets, wanted, message):
        with pytest.raises(DataError, match=message):
            data.from_loader([(X, wanted)], targets=targets)

    def test_keys_that_change(self):
        one = {"x": X[:10].reshape(10, 16), "z": Y[:10]}
        with pytest.raises(DataError, match="batch 2 has targets, x, but the first one had targets, x, z"):
            train(QUICK, [(one, Y[:10]), ({"x": one["x"]}, Y[:10])], steps=3, model=Mapped())
        with pytest.raises(DataError, match="batch 2 has no 'label'; its keys are x"):
            train(QUICK, data.from_loader([{"x": X, "label": Y}, {"x": X}], keys=("x", "label")), steps=3)

    def test_a_last_batch_that_cannot_be_divided(self):
        short = [*BATCHES[:2], (X[:7], Y[:7])]
        with pytest.raises(BatchError, match=r"batch 3 has 7 examples, which must be a multiple of .*drop_last=True"):
            train(Backprop(net="mlp", hidden=(4,), accumulate=5), short, steps=5)

    def test_a_last_batch_of_one_beside_batch_norm(self, tmp_path):
        short = [*BATCHES[:2], (X[:1], Y[:1])]
        rule = Backprop(net="mlp", hidden=(4,), norm="batch")
        with pytest.raises(
            BatchError, match=r"batch 3: .* batch norm, .* drop_last=True; after step 2, the checkpoint"
        ):
            train(rule, short, Options(steps=5, out=tmp_path / "run"))
        assert load_run(tmp_path / "run").step == 2
        assert train(QUICK, short, steps=5).result["steps"] == 5

    def test_no_length_and_no_steps(self):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter([(x, int(y)) for x, y in zip(X, Y, strict=True)])

        with pytest.raises(InputError, match="does not say how many batches a pass has"):
            train(QUICK, DataLoader(Stream(), batch_size=10))
        assert train(QUICK, DataLoader(Stream(), batch_size=10), steps=8).result["steps"] == 8

    @pytest.mark.parametrize("given", [(X, Y), X, TensorDataset(torch.from_numpy(X)), {"x": X}])
    def test_what_is_no_loader_is_refused_as_before(self, given):
        with pytest.raises(InputError, match="data must be a data set, the name of one"):
            train(QUICK, given)
        with pytest.raises(InputError, match="from_loader takes a DataLoader"):
            data.from_loader(given)


class Mapped(torch.nn.Module):
    """A model of a mapping."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 3)

    def forward(self, x, z=None):
        return self.layer(x)
