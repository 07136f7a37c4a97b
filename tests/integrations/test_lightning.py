"""Lightning's Trainer with a rule's step: the same bits after a resume, frozen weights alone, logs and counts."""

import os

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sidestep.errors import CheckpointError, InputError
from sidestep.integrations.lightning import SidestepCallback
from sidestep.rules import SPSA, Backprop, Evolution, ForwardGradient, LocalLoss

L = pytest.importorskip("lightning")
callbacks = pytest.importorskip("lightning.pytorch.callbacks")
pytestmark = pytest.mark.filterwarnings("ignore:.*(workers|logging interval|GPU|logger|Checkpoint directory|pytree).*")


@pytest.fixture
def no_group_left():
    """Take away the process group and the variables of the environment that a test's DDP strategy leaves."""
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


class Classifier(L.LightningModule):
    """A module that knows nothing of rules."""

    def __init__(self, dropout=0.0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2))
        self.passes = 0

    def training_step(self, batch, batch_idx):
        rows, labels = batch
        loss = cross_entropy(self.net(rows), labels)
        self.passes += 1
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        rows, labels = batch
        self.log("accuracy", (self.net(rows).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        raise AssertionError("the optimiser is the rule's")


def loader(count=48, size=8, times=1):
    rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(0)).repeat(times, 1)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows, (rows[:, 0] > 0).long()), size)


def trainer(folder, rule=None, more=(), seed=3, scheduler=None, **named):
    given = {
        "max_epochs": 2, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "accelerator": "cpu", "default_root_dir": folder, "num_sanity_val_steps": 0,
    }  # fmt: skip
    own = SidestepCallback(rule or SPSA(learning_rate=1e-2), seed=seed, scheduler=scheduler)
    return L.Trainer(**{**given, **named}, callbacks=[own, *more])


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "rule",
    [
        SPSA(),
        SPSA(pairs=4, learning_rate=1e-2, sides="both"),
        Evolution(noise_kind="full-rank", per="group", population=8),
        ForwardGradient(kind="weights"),
        Backprop(),
    ],
)
def test_every_rule_for_any_module_steps_through_the_trainer(rule, tmp_path):
    model = Classifier()
    before = weights(model)
    made = trainer(tmp_path, rule)
    made.fit(model, loader(), loader(16))
    assert made.global_step == 12  # each batch is one step, however many passes it takes
    assert not same(before, weights(model))
    assert all(torch.isfinite(value).all() for value in weights(model).values())
    assert {"train_loss_step", "train_loss_epoch", "accuracy"} <= made.callback_metrics.keys()


def test_back_propagation_through_it_is_the_loop_by_hand(tmp_path):
    model, by_hand = Classifier(), Classifier()
    trainer(tmp_path, Backprop(learning_rate=1e-2, weight_decay=0.1)).fit(model, loader())
    optimizer = torch.optim.AdamW(by_hand.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(2):
        for rows, labels in loader():
            optimizer.zero_grad()
            cross_entropy(by_hand.net(rows), labels).backward()
            optimizer.step()
    for name, value in weights(by_hand).items():
        torch.testing.assert_close(weights(model)[name], value)


def test_spsa_learns_and_the_first_pass_of_a_step_is_what_is_logged(tmp_path):
    logged = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            logged.append((float(trainer.callback_metrics["train_loss_step"]), float(outputs["loss"])))

    model = Classifier()
    made = trainer(tmp_path, SPSA(pairs=8), [Watch()], max_epochs=15)
    made.fit(model, loader(), loader())
    assert model.passes > 2 * len(logged)
    assert all(one == pytest.approx(other, rel=0.2) for one, other in logged)
    assert logged[-1][1] < 0.8 * logged[0][1]
    # The mean over an epoch counts one value a batch, so it is of the order of single ones.
    assert float(made.callback_metrics["train_loss_epoch"]) == pytest.approx(sum(x for x, _ in logged[-6:]) / 6)


@pytest.mark.parametrize("rule", [SPSA(), SPSA(learning_rate=1e-2, optimizer_kind="adam"), Backprop()])
def test_a_resumed_run_has_the_bits_of_one_that_was_never_stopped(rule, tmp_path):
    def scheduler(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)

    batches = loader(8, times=6)  # alike: which batch follows a stop within an epoch is Lightning's business
    whole = Classifier(dropout=0.2)
    keep = callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer(tmp_path, rule, [keep], scheduler=scheduler, enable_checkpointing=True).fit(whole, batches)
    for stop in (4, 6, 9):  # within an epoch, at its end, and in the second
        again = Classifier(dropout=0.2, seed=9)
        made = trainer(tmp_path, rule, scheduler=scheduler)
        made.fit(again, batches, ckpt_path=tmp_path / f"step={stop}.ckpt")
        assert made.global_step == 12
        assert again.passes * 12 == whole.passes * (12 - stop)
        assert same(weights(again), weights(whole)), stop


def test_a_model_checkpoint_is_read_back_without_sidestep(tmp_path):
    keep = callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1)
    model = Classifier()
    trainer(tmp_path, more=[keep], enable_checkpointing=True).fit(model, loader())
    steps = sorted(int(path.stem.rsplit("=", 1)[1]) for path in tmp_path.glob("*.ckpt"))
    assert steps == [3, 6, 9, 12]
    again = Classifier.load_from_checkpoint(keep.last_model_path or keep.best_model_path, weights_only=True)
    assert set(weights(again)) == set(weights(model))


def test_a_checkpoint_of_another_rule_or_of_no_rule_is_refused(tmp_path):
    file = tmp_path / "some.ckpt"
    made = trainer(tmp_path)
    made.fit(Classifier(), loader())
    made.save_checkpoint(file)
    with pytest.raises(CheckpointError, match="another rule"):
        trainer(tmp_path, SPSA(learning_rate=2e-2)).fit(Classifier(), loader(), ckpt_path=file)
    with pytest.raises(CheckpointError, match="another seed"):
        trainer(tmp_path, seed=4).fit(Classifier(), loader(), ckpt_path=file)

    class Plain(Classifier):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    plain = L.Trainer(max_epochs=1, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    plain.fit(Plain(), loader())
    plain.save_checkpoint(file)
    with pytest.raises(CheckpointError, match="without SidestepCallback"):
        trainer(tmp_path).fit(Classifier(), loader(), ckpt_path=file)


def test_frozen_weights_stay_and_the_module_is_its_own_afterwards(tmp_path):
    model = Classifier()
    model.net[0].requires_grad_(False)
    before = weights(model)
    trainer(tmp_path).fit(model, loader())
    for name, value in weights(model).items():
        assert torch.equal(value, before[name]) == name.startswith("net.0"), name
    assert model.automatic_optimization
    assert not {"training_step", "backward", "configure_optimizers", "log"} & model.__dict__.keys()


def test_the_module_is_its_own_again_after_an_error(tmp_path):
    class Breaks(Classifier):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError

    model = Breaks()
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path).fit(model, loader())
    assert model.automatic_optimization
    assert not {"training_step", "backward", "configure_optimizers", "log"} & model.__dict__.keys()


def test_a_schedule_is_stepped_once_a_batch(tmp_path):
    rates = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *given):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer(
        tmp_path, SPSA(learning_rate=1e-2), [Watch()], scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 6)
    ).fit(Classifier(), loader())
    assert rates == pytest.approx([1e-2] * 5 + [1e-3] * 6 + [1e-4])


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches = 2"),
        ({"gradient_clip_val": 0.5}, "gradient_clip_val = 0.5"),
        ({"precision": "bf16-mixed"}, "precision = bf16-mixed"),
        ({"strategy": "ddp", "devices": 1}, "DDPStrategy"),
    ],
)
@pytest.mark.usefixtures("no_group_left")
def test_what_a_rule_cannot_honour_is_refused_by_name(named, words, tmp_path):
    with pytest.raises(InputError, match=words):
        trainer(tmp_path, **named).fit(Classifier(), loader())


@pytest.mark.parametrize(
    "other",
    [
        lambda: callbacks.StochasticWeightAveraging(swa_lrs=1e-2),
        lambda: callbacks.GradientAccumulationScheduler({0: 2}),
        lambda: callbacks.BackboneFinetuning(),
    ],
)
def test_callbacks_that_step_or_freeze_themselves_are_refused(other, tmp_path):
    made = other()
    with pytest.raises(InputError, match="cannot be honoured"):
        trainer(tmp_path, more=[made]).fit(Classifier(), loader())


def test_modules_that_a_rule_cannot_step_are_refused(tmp_path):
    class Own(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    class Nothing(Classifier):
        def training_step(self, batch, batch_idx):
            return None

    class Iterates(Classifier):
        def training_step(self, dataloader_iter):
            return next(dataloader_iter)

    for model, words in ((Own(), "steps its own"), (Nothing(), "return the loss"), (Iterates(), "dataloader_iter")):
        with pytest.raises(InputError, match=words):
            trainer(tmp_path).fit(model, loader())
    with pytest.raises(InputError, match=r"local-loss needs more .* sidestep\.attach"):
        SidestepCallback(LocalLoss())
