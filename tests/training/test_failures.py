"""Errors of the user's own loader, loss or model in the middle of a run: what was trained is there, and goes on."""

import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from sidestep import Options, data, load_run, train
from sidestep.cli.rescue import explained
from sidestep.data.feed import BatchError
from sidestep.errors import InputError
from sidestep.rules import SPSA, Backprop, Evolution, ForwardGradient, LocalLoss
from sidestep.training import StepError
from sidestep.training.failures import with_position

X = np.random.default_rng(5).normal(size=(60, 6)).astype(np.float32)
Y = np.arange(60) % 3
BATCHES = [(X[start : start + 10], Y[start : start + 10]) for start in range(0, 60, 10)]
QUICK = Backprop(net="mlp", hidden=(8,))
WHERE = {"device": "cpu", "precision": "float32"}


class BoomError(Exception):
    """An error that no library raises."""


class Failing:
    """Batches in one order, one of which cannot be read the first time."""

    def __init__(self, at=None):
        self.at, self.place = at, 0

    def __len__(self):
        return len(BATCHES)

    def begin(self):
        return 0

    def __iter__(self):
        self.place = self.begin()
        while self.place < len(BATCHES):
            self.place += 1
            if self.place == self.at:
                raise OSError("the disk is gone")
            yield BATCHES[self.place - 1]


class Stateful(Failing):
    """The same, in an order that only its state tells."""

    def begin(self):
        return self.place % len(BATCHES)

    def __iter__(self):
        for x, y in super().__iter__():
            self.shift = getattr(self, "shift", 0.0) + 0.1
            yield x + self.shift, y

    def state_dict(self):
        return {"place": self.place, "shift": float(getattr(self, "shift", 0.0))}

    def load_state_dict(self, state):
        self.place, self.shift = state["place"], state["shift"]


class Broken:
    """What counts its calls, and raises an error at one of them."""

    def __init__(self, at=None):
        self.at, self.calls = at, 0

    def count(self):
        self.calls += 1
        if self.calls == self.at:
            raise BoomError("in the middle")

    def loss(self, outputs, targets):
        self.count()
        return nn.functional.cross_entropy(outputs, targets, reduction="none")


class Normed(nn.Module):
    """A model whose batch norm has written its running statistics when the error comes."""

    def __init__(self, broken):
        super().__init__()
        self.broken = broken
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)

    def forward(self, inputs):
        found = self.norm(self.first(inputs))
        if self.training:
            self.broken.count()
        return self.last(found)


def files(folder):
    return (folder / "model.safetensors").read_bytes()


def in_order(loader):
    return loader if isinstance(loader, Stateful) else data.from_loader(loader, same_order=True)


@pytest.mark.parametrize("kind", [Failing, Stateful])
def test_a_batch_that_cannot_be_read_leaves_the_steps_before_it_to_go_on_from(kind, tmp_path):
    options = {"steps": 10, "decay": "cosine", **WHERE}
    train(QUICK, in_order(kind()), Options(**options, out=tmp_path / "whole"))
    broken = kind()
    watch = [At(8, lambda: setattr(broken, "at", 3))]
    said = r": batch 9 could not be read: OSError: the disk is gone; after step 8, the checkpoint of step 8 in "
    with pytest.raises(BatchError, match=said) as error:
        train(QUICK, in_order(broken), Options(**options, out=tmp_path / "parts"), observers=watch)
    assert isinstance(error.value.__cause__, OSError)
    assert load_run(tmp_path / "parts").step == 8
    train(QUICK, in_order(kind()), Options(**options, out=tmp_path / "parts", resume=True))
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


class At:
    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step(self, event):
        if event.step == self.step:
            self.action()


def test_a_first_batch_that_cannot_be_read_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(BatchError, match=r"^loader: batch 1 could not be read: OSError: the disk is gone$"):
        train(QUICK, Failing(at=1), Options(steps=3, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_loader_that_cannot_be_brought_back_keeps_the_checkpoint_that_can_go_on(tmp_path):
    loader = Stateful()

    class Forgetful:
        """Fails, and reads nothing again."""

        def __init__(self):
            self.state_dict, self.load_state_dict = loader.state_dict, loader.load_state_dict

        def __len__(self):
            return 6

        def __iter__(self):
            if loader.at:
                raise OSError("still gone")
            return iter(loader)

    with pytest.raises(BatchError, match=r"batch 9 .*; after step 8, the checkpoint of step 6 in "):
        train(QUICK, Forgetful(), Options(steps=10, out=tmp_path / "run", **WHERE),
              observers=[At(8, lambda: setattr(loader, "at", 3))])  # fmt: skip
    assert load_run(tmp_path / "run").step == 6


@pytest.mark.parametrize(
    "rule",
    [QUICK, SPSA(hidden=(8,), pairs=2), ForwardGradient(hidden=(16,)), Evolution(hidden=(8,), population=4),
     LocalLoss(hidden=(8,))],
    ids=lambda rule: rule.name,
)  # fmt: skip
def test_a_loss_that_raises_an_error_is_named_and_the_run_goes_on_to_the_same_bits(rule, tmp_path):
    arrays = data.from_arrays(X, Y, validation=0)
    options = {"steps": 8, "batch": 10, **WHERE}
    counting = Broken()
    train(rule, arrays, Options(**options, out=tmp_path / "whole"), objective=counting.loss)
    broken = Broken(at=counting.calls // 2)
    said = r"^a step failed in count \(.*test_failures\.py, line \d+\): BoomError: in the middle; after step \d+, the "
    with pytest.raises(StepError, match=said) as error:
        train(rule, arrays, Options(**options, out=tmp_path / "parts"), objective=broken.loss)
    assert isinstance(error.value.__cause__, BoomError)
    assert 0 < load_run(tmp_path / "parts", objective=broken.loss).step < 8
    train(rule, arrays, Options(**options, out=tmp_path / "parts", resume=True), objective=broken.loss)
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


@pytest.mark.parametrize(
    "rule", [Backprop(), SPSA(pairs=2), ForwardGradient(kind="weights")], ids=lambda rule: rule.name
)
def test_statistics_that_a_failing_pass_has_written_are_put_back(rule, tmp_path):
    options = {"steps": 6, **WHERE}
    counting = Broken()
    train(rule, Stateful(), Options(**options, out=tmp_path / "whole"), model=Normed(counting))
    broken = Broken(at=counting.calls // 2)
    with pytest.raises(StepError, match=r"in count .*; after step (\d+), the checkpoint of step \1 "):
        train(rule, Stateful(), Options(**options, out=tmp_path / "parts"), model=Normed(broken))
    train(rule, Stateful(), Options(**options, out=tmp_path / "parts", resume=True), model=Normed(broken))
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_an_error_while_a_step_is_written_keeps_the_checkpoint_before(tmp_path):
    class Schedule(torch.optim.lr_scheduler.StepLR):
        def get_lr(self):
            if self.last_epoch == 5:
                raise BoomError("in the middle")
            return super().get_lr()

    with pytest.raises(StepError, match=r"after step 4, the checkpoint of step 3 in "):
        train(QUICK, data.from_arrays(X, Y, validation=0), Options(epochs=3, batch=20, out=tmp_path / "run", **WHERE),
              scheduler=lambda optimizer: Schedule(optimizer, 100))  # fmt: skip
    assert load_run(tmp_path / "run").step == 3


def test_a_loss_that_takes_another_shape_later_says_where_the_run_stands(tmp_path):
    calls = Broken()

    def loss(outputs, targets):
        calls.count()
        found = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return found if calls.calls < 4 else found.mean()

    with pytest.raises(InputError, match=r"must give one number per example.*; after step \d+, the checkpoint of step"):
        train(QUICK, data.from_arrays(X, Y, validation=0), Options(steps=8, batch=10, out=tmp_path / "run", **WHERE),
              objective=loss)  # fmt: skip
    assert load_run(tmp_path / "run", objective=loss).step > 0


def test_without_a_folder_nothing_is_said_to_be_kept():
    with pytest.raises(StepError, match=r"after step \d, there is no checkpoint, since the run has no folder$"):
        train(QUICK, data.from_arrays(X, Y, validation=0), Options(steps=8, batch=10), objective=Broken(4).loss)


def raised(error, function=None):
    try:
        if function:
            function()
        raise error
    except Exception as found:
        return found


def test_an_error_without_code_of_the_user_s_stays_what_it_is():
    mine = raised(BoomError("x"))
    assert type(with_position(mine, 3, "all is kept")) is StepError
    error = BoomError("x")  # never raised here: none of the user's code is on its way
    assert with_position(error, 3, "all is kept") is error
    memory = with_position(raised(MemoryError("no room")), 3, "all is kept")
    assert type(memory) is MemoryError  # who catches it, to go on with less, still can
    if sys.version_info >= (3, 11):
        assert memory.__notes__ == ["after step 3, all is kept"]
        assert explained(memory)[0].endswith("a smaller --batch; after step 3, all is kept")


def test_the_command_line_names_the_place_in_one_line(tmp_path, capsys, monkeypatch):
    from sidestep.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    calls = 0\n\n    def __init__(self):\n"
        "        super().__init__()\n        self.layer = torch.nn.Linear(64, 8)\n\n    def forward(self, images):\n"
        "        Net.calls += self.training\n        if Net.calls > 30:\n            raise ValueError('enough')\n"
        "        return self.layer(images.flatten(1))\n"
    )
    words = ["train", "backprop", "--net", "mlp", "--module", "mine.py:Net", "--steps", "60", "--out", "run"]
    with pytest.raises(SystemExit) as leaving:
        main([*words, "--device", "cpu"])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert leaving.value.code == 2
    assert "a step failed in forward" in said
    assert "mine.py, line 14): ValueError: enough; after step" in said
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])["step"] > 0


@pytest.mark.parametrize("rule", [SPSA(), Backprop()])
def test_a_layer_of_a_whole_model_that_does_not_fit_is_told_with_the_shape_of_the_inputs(rule):
    images = data.from_arrays(np.random.default_rng(0).random((40, 8, 8), dtype=np.float32), np.arange(40) % 2)
    said = r"does not fit .*cannot be multiplied.* given images of shape \(batch, 1, 8, 8\): begin .*nn\.Flatten\(\)"
    with pytest.raises(InputError, match=said) as found:
        train(rule, images, Options(epochs=1), model=nn.Sequential(nn.Linear(64, 2)))
    assert isinstance(found.value.__cause__, RuntimeError)
    deeper = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Linear(31, 2))
    with pytest.raises(InputError, match=r"does not fit .*: change its layers, or the inputs"):
        train(rule, images, Options(epochs=1), model=deeper)
    with pytest.raises(InputError, match=r"4D input.* given rows of shape \(batch, 6\)"):
        train(rule, data.from_arrays(X, Y), Options(epochs=1), model=nn.Sequential(nn.BatchNorm2d(6)))
    text = data.from_text("abcdefgh" * 40, length=8)
    with pytest.raises(InputError, match=r"index out of range.* given token ids of shape \(batch, 8\)"):
        train(rule, text, Options(epochs=1), model=nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8)))


def test_a_loss_or_a_dtype_that_is_wrong_is_not_put_down_to_the_shape():
    rows, model = data.from_arrays(X, Y), nn.Linear(6, 3)
    with pytest.raises(RuntimeError, match="weight tensor should be defined"):
        train(Backprop(), rows, Options(epochs=1), model=model,
              objective=nn.CrossEntropyLoss(reduction="none", weight=torch.ones(4)))  # fmt: skip
    with pytest.raises(RuntimeError, match="same dtype"):
        train(Backprop(), rows, Options(epochs=1), model=nn.Linear(6, 3).double())
