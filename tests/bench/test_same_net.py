"""Back-propagation on the net of another rule: the same layers, the true gradient, one run where nets are the same."""

import json

import pytest
import torch
from torch import nn

from sidestep import Options, data, train
from sidestep.bench.comparison import rounds as race_module
from sidestep.bench.comparison.entries import read_entries
from sidestep.bench.comparison.numbers import ratios
from sidestep.bench.comparison.one_run import Budget
from sidestep.bench.comparison.rounds import Comparison, race_order, settings
from sidestep.bench.comparison.same_net import with_baselines
from sidestep.bench.process import failure
from sidestep.cli import main
from sidestep.errors import InputError
from sidestep.nets.end_to_end import end_to_end_net
from sidestep.noise import Noise
from sidestep.rules import RULES, Backprop, Batch, Task
from sidestep.rules.shared.same_net import SameNet

TASK = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
SMALL = {"noprop-dt": {"blocks": 2}, "backprop": {"net": "mlp", "hidden": (8, 6)},
         "forward-gradient": {"hidden": (8, 6), "groups": 2}, "noprop-ct": {}, "noprop-fm": {},
         "neural-ode": {}, "blockwise": {}}  # fmt: skip


def made(name, **options):
    return RULES[name](**{**SMALL.get(name, {"hidden": (8, 6)}), **options})


def batch_of(count=8):
    return Batch(Noise(1).normal(count * 64).view(count, 1, 8, 8), torch.arange(count) % 4)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_s_net_trains_end_to_end(name):
    rule = SameNet(made(name))
    net, batch = rule.build(TASK, Noise(0), None, None), batch_of()
    optimizer, before = rule.optimizer(net), {n: p.detach().clone() for n, p in net.named_parameters()}
    losses = []
    for step in range(6):
        update = rule.estimate(net, batch, Noise(2).at(step))
        losses.append(float(update.losses["net: cross-entropy"]))
        rule.apply(net, update, optimizer)
    first = next(n for n, p in net.named_parameters() if p.dim() > 1 and n in update.gradients)
    assert not torch.equal(before[first], dict(net.named_parameters())[first])  # down to the first layer
    assert losses[-1] < losses[0]
    assert rule.predict(net, batch.inputs, Noise(3))["forward"].shape == (8, 4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("direct-feedback-alignment", {}), ("feedback-alignment", {}), ("feedback-alignment", {"net": "conv"}),
     ("feedback-alignment", {"feedback": "kolen-pollack"}), ("local-loss", {"label_smoothing": 0.0}), ("spsa", {}),
     ("local-loss", {"label_smoothing": 0.0, "similarity": 0.5, "net": "conv"}), ("evolution", {}),
     ("forward-gradient", {}), ("noise-step", {"label_smoothing": 0.0, "net": "conv"})],
)  # fmt: skip
def test_its_gradient_is_the_true_one_of_the_rule_s_own_net(name, options):
    own = made(name, **options)
    net = own.build(TASK, Noise(0), None, None)
    if name == "noise-step":  # ternary: there is a float twin to train, with its own latents
        twin = end_to_end_net(net, TASK.image_shape, Noise(0))
        assert {type(layer).__name__ for layer in twin.modules()} >= {"ParametrizedConv2d", "ParametrizedLinear"}
        return
    true = own.true_gradients(net, batch_of())
    same = SameNet(own)
    found = same.estimate(same.build(TASK, Noise(0), None, None), batch_of(), Noise(2)).gradients
    last = f"heads.{len(net.heads) - 1}." if hasattr(net, "heads") and len(net.heads) else "heads.0."
    true = {key.replace(".layer.", ".").replace(last, "heads.0."): value for key, value in true.items()}
    assert found.keys() == true.keys()
    for key, value in found.items():
        torch.testing.assert_close(value, true[key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["local-loss", "feedback-alignment", "spsa", "noise-step", "forward-gradient"])
def test_a_module_of_ones_own_is_the_same_net_too(name):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU())
    rule = SameNet(made(name))
    net = rule.build(TASK, Noise(0), None, module)
    sizes = [tuple(p.shape) for n, p in net.named_parameters() if p.dim() == 2]
    assert sizes == [(7, 64), (5, 7), (4, 5)]
    assert rule.estimate(net, batch_of(), Noise(2)).gradients.keys() == {n for n, _ in net.named_parameters()}


@pytest.mark.parametrize("given", ["sequential", "one part"])
def test_backprop_takes_a_module_for_its_hidden_layers(given):
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

        def forward(self, images):
            return self.norm(self.conv(images)).relu()

    module = Part if given == "one part" else nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 5))
    rule = Backprop(net="mlp")
    net = rule.build(TASK, Noise(0), None, module)
    update = rule.estimate(net, batch_of(), Noise(2))
    assert update.gradients.keys() == {n for n, _ in net.named_parameters()}
    with pytest.raises(InputError, match="module of your own do not go together"):
        Backprop(net="linear").build(TASK, Noise(0), None, module)


def race_of(*words, data="digits", **other):
    return Comparison(tuple(read_entries(words)), (data,), Budget(epochs=1), **{"seeds": 1, **other})


def test_units_that_take_turns_are_the_entries_own_and_their_baselines_have_one():
    race, _ = with_baselines(race_of("local-loss:hidden=8,6", common={"units": "in-turn"}))
    assert race.entries[0].training(race.common).units == "in-turn"
    assert race.baselines[0].training(race.common).units == "together"


def test_nets_that_are_the_same_have_one_baseline_and_plain_backprop_is_its_own():
    words = ["feedback-alignment:hidden=8,6", "direct-feedback-alignment:hidden=8,6", "spsa:hidden=8",
             "local-loss:hidden=8,6", "backprop:net=mlp,norm=batch,hidden=8,6,label_smoothing=0.1",
             "spsa:hidden=8,eps=0.01",
             "backprop:net=mlp,norm=batch,hidden=8,6,label_smoothing=0.1,deep_supervision=0.3"]  # fmt: skip
    race, of = with_baselines(race_of(*words))
    fa, spsa = (f"back-propagation on the net of {word}" for word in (words[0], words[2]))
    assert [entry.label for entry in race.baselines] == [fa, spsa]
    assert of == {words[0]: fa, words[1]: fa, fa: fa, words[2]: spsa, words[5]: spsa, spsa: spsa,
                  words[3]: words[4], words[4]: words[4], words[6]: words[4]}  # fmt: skip
    assert len(list(race_order(race))) == len(words) + 2
    assert settings(race) == settings(race_of(*words))  # so that --baseline can change


@pytest.mark.parametrize(
    "other", ["hidden=8,7", "hidden=8,6,norm=none", "hidden=8,6,learning_rate=0.1", "hidden=8,6,label_smoothing=0.1",
              "hidden=8,6,batch=32", "net=conv,hidden=8,6"]
)  # fmt: skip
def test_what_differs_in_net_or_options_has_another_baseline(other):
    race, of = with_baselines(race_of("feedback-alignment:hidden=8,6", f"direct-feedback-alignment:{other}"))
    assert len(race.baselines) == len(set(of.values())) == 2


def test_ratios_are_to_each_entry_s_own_baseline():
    def run(entry, value):
        return {"entry": entry, "data": "d", "seed": 0, "seconds_per_step": value, "reached": {}}

    records = [run("a", 6.0), run("of a", 2.0), run("b", 6.0), run("of b", 4.0)]
    of = {"a": "of a", "of a": "of a", "b": "of b"}
    found = [ratios(records, "d", label, of, "seconds_per_step") for label in ("a", "of a", "b", "of b")]
    assert [each and each.median for each in found] == [3.0, 1.0, 1.5, None]


def test_the_command_compares_with_the_same_net_by_default(monkeypatch, tmp_path, capsys):
    def in_here(work, given, told, stop, threads=None):
        try:
            return work(given, told)
        except Exception as error:
            return {"failed": failure(error)}

    monkeypatch.setattr(race_module, "run_in_process", in_here)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef stages():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU())\n"
    )
    main(["bench", "--rules", "local-loss,direct-feedback-alignment", "--module", "mine.py:stages", "--seeds", "1",
          "--epochs", "1", "--out", "b", "--json"])  # fmt: skip
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    local = "back-propagation on the net of local-loss"
    assert found["baselines"]["local-loss"] == local
    sizes = {run["entry"]: run["counts"]["parameters"] for run in found["runs"]}
    assert sizes[local] == 64 * 12 + 12 + 12 * 9 + 9 + 9 * 10 + 10
    page, html = (tmp_path / "b" / name for name in ("bench.md", "bench.html"))
    assert "x is the ratio to back-propagation on the same net" in page.read_text()
    assert "| baseline |" in page.read_text()
    assert html.read_text().count('<tr class="baseline">') >= 2


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("targets", ["labels", "values"])
def test_the_net_of_every_rule_learns_labels_and_values_end_to_end_where_the_rule_does(name, targets):
    rule = made(name)
    rows = Noise(0).normal(96 * 6).view(96, 6)
    wanted = {"labels": (rows[:, :3] > 0).float(), "values": rows[:, :2].sin()}[targets]
    few = data.from_arrays(rows.numpy(), wanted.numpy(), targets=targets, validation=0)
    if targets not in rule.takes.targets:
        with pytest.raises(InputError, match="takes targets that are"):
            train(SameNet(rule), few, Options(steps=1))
        return
    fallen = EveryLoss()
    train(SameNet(rule), few, Options(steps=30, batch=96, precision="float32"), observers=[fallen])
    assert fallen.losses[-1] < 0.99 * fallen.losses[0]


class EveryLoss:
    """An observer that keeps the losses."""

    def __init__(self):
        self.losses = []

    def on_step(self, event):
        (loss,) = event.losses.values()
        self.losses.append(loss)
