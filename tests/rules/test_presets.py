"""Presets: the paper's cells are all there, with its settings, and `sidestep train --preset` takes them."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch

from sidestep import Options, data, load_run, train
from sidestep.cli import main
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.presets.catalogue import ANY_TEXT, PRESETS, Changes, PaperCell, Preset, find_preset, presets_for
from sidestep.rules import RULES, Backprop, Batch, Task

SETS = ("mnist", "cifar10", "cifar100")
# Tables 1 and 3 of arXiv 2503.24322: test accuracy in %, and its standard error where there is one.
PAPER = {
    "backprop one-hot": (99.46, 79.92, 45.85),
    "backprop learned": (99.43, 79.3, 46.57),
    "backprop prototype": (99.44, 79.58, 47.8),
    "noprop-dt one-hot": ((99.47, 0.05), (79.25, 0.28), (45.93, 0.46)),
    "noprop-dt learned": ((99.49, 0.04), (79.12, 0.37), (45.19, 0.22)),
    "noprop-dt prototype": ((99.54, 0.04), (80.54, 0.2), (46.06, 0.25)),
    "neural-ode one-hot": (98.62, 66.78, 25.03),
    "noprop-ct one-hot": (97.84, 73.35, 33.66),
    "noprop-ct learned": (97.7, 71.77, 33.99),
    "noprop-ct prototype": (97.17, 66.54, 21.31),
    "noprop-fm one-hot": (99.21, 73.14, 6.38),
    "noprop-fm learned": (99.29, 73.5, 31.14),
    "noprop-fm prototype": (98.52, 75.18, 37.57),
}
EPOCHS = {
    "backprop": (100, 150, 150),
    "noprop-dt": (100, 150, 150),
    "neural-ode": (2, 4, 4),
    "noprop-ct": (100, 500, 1000),
    "noprop-fm": (100, 500, 1000),
}
MEMORY = {
    "backprop": (0.87, 1.17, 1.73),
    "noprop-dt": (0.49, 0.64, 1.23),
    "neural-ode": (2.32, 6.23, 6.45),
    "noprop-ct": (1.05, 0.45, 0.50),
    "noprop-fm": (1.06, 0.44, 0.49),
}
CELLS = [(line, index) for line in PAPER for index in range(3)]
every_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())


@pytest.mark.parametrize(("line", "index"), CELLS)
def test_every_cell_of_the_paper_has_a_preset_with_its_settings(line, index):
    rule, embedding = line.split()
    preset = find_preset(f"{rule}-{SETS[index]}-{embedding}")
    cell = PAPER[line][index]
    assert preset.paper == PaperCell(*cell if isinstance(cell, tuple) else (cell,))
    assert (preset.rule, preset.data, preset.validation) == (rule, SETS[index], 0.0)
    assert preset.table == "noprop-table1"
    assert preset.row == f"{rule.removeprefix('noprop-')}-{embedding}"
    made, options = RULES[rule](**preset.options), Options(**preset.train)
    assert (options.epochs, options.batch, options.augment, options.decay) == (EPOCHS[rule][index], 128, "none", "none")
    assert (options.warmup, options.average) == (0.0, 0.0)
    assert (made.learning_rate, made.weight_decay, made.embedding) == (1e-3, 1e-3, embedding)
    assert made.dimension == (20 if embedding == "learned" else None)
    assert preset.memory_gb == (MEMORY[rule][index] if embedding == "one-hot" else None)


def test_no_other_preset_is_a_row_of_the_table():
    rows = [preset for preset in PRESETS.values() if preset.table == "noprop-table1"]
    assert len(rows) == len(CELLS) == len({(preset.row, preset.data) for preset in rows})
    assert all(preset.paper is None for preset in PRESETS.values() if preset.table is None)


def test_each_method_s_own_settings_are_the_paper_s():
    def rule_of(name):
        return RULES[find_preset(name).rule](**find_preset(name).options)

    dt = rule_of("noprop-dt-cifar10-prototype")
    assert (dt.blocks, dt.eta, dt.loss, dt.levels) == (10, 0.1, "paper", "cosine")
    ct = rule_of("noprop-ct-mnist-learned")
    assert (ct.loss, ct.schedule, ct.times, ct.optimizer_kind) == ("paper", "learned", "uniform", "adam")
    assert (ct.eta, ct.steps) == (1.0, 1000)
    fm = rule_of("noprop-fm-mnist-one-hot")
    assert (fm.prediction, fm.loss, fm.readout, fm.times) == ("velocity", "paper", "nearest", "uniform")
    assert (fm.optimizer_kind, fm.steps, fm.sigma) == ("adam", 1000, 0.0)
    assert (rule_of("backprop-cifar100-one-hot").blocks, rule_of("backprop-cifar100-one-hot").net) == (
        10,
        "chained-blocks",
    )
    assert (rule_of("neural-ode-mnist-one-hot").steps, rule_of("neural-ode-mnist-one-hot").gradient) == (
        1000,
        "adjoint",
    )


@functools.cache
def made(rule, options):
    """Return the rule with options given as JSON; several presets share one, and a readable schedule takes a while."""
    return RULES[rule](**{k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(options).items()})


@every_preset
@pytest.mark.parametrize("budget", ["full", "cpu", "tiny"])
def test_options_are_valid_at_every_budget(preset, budget):
    small = preset.for_budget(budget)
    rule = made(small.rule, json.dumps(dict(small.options), sort_keys=True))
    assert preset.reading in rule.readings
    epochs = Options(**small.train).epochs
    assert epochs <= preset.train["epochs"]
    assert preset.image_size is None or preset.data == "bloodmnist"
    assert preset.data in {ANY_TEXT, *(known.name for known in data.names())}
    if budget == "cpu":
        assert epochs <= 10
    assert json.dumps(dataclasses.asdict(small))  # plain values only


def test_a_budget_changes_what_it_names_and_nothing_else():
    preset = find_preset("noprop-ct-cifar100-prototype")
    small = preset.for_budget("cpu")
    assert small.options == {**preset.options, "steps": 20}
    assert small.train == {**preset.train, "epochs": 10}
    assert preset.for_budget("full") is preset
    with pytest.raises(InputError, match="budgets full, tiny, cpu; got 'huge'"):
        preset.for_budget("huge")


def test_our_own_recipes():
    for name in ("mnist", "cifar10", "cifar100", "bloodmnist"):
        for key in ("dt", "ct", "fm"):
            preset = find_preset(f"noprop-best-{name}-{key}")
            assert preset.options["loss"] == "cross-entropy"
            assert (preset.train["decay"], preset.train["warmup"], preset.train["average"]) == ("cosine", 0.1, 0.99)
            assert preset.options.get("draws_per_image") == (None if key == "dt" else 4)
            path = {"cifar10": "resnet-9", "cifar100": "resnet-9"}.get(name, "auto")
            rate = 1e-3 if name == "bloodmnist" else 2e-3
            assert (preset.options["path"], preset.for_budget("cpu").options["learning_rate"]) == (path, rate)
            assert preset.for_budget("cpu").train["batch"] == (32 if name == "bloodmnist" else 128)
            normed = key != "dt" and name != "bloodmnist"
            assert preset.for_budget("cpu").options.get("norm") == ("batch" if normed else None)
            assert ("norm" in preset.options) == (normed and name == "mnist")  # a ResNet-9 has its own
            RULES[preset.rule](**preset.for_budget("cpu").options)
        assert find_preset(f"backprop-best-{name}").train == find_preset(f"noprop-best-{name}-dt").train
    colour = find_preset("noprop-best-cifar100-ct")
    assert (colour.train["epochs"], colour.train["batch"], colour.train["augment"]) == (60, 512, "flip-crop")
    assert (colour.options["label_smoothing"], colour.options["learning_rate"]) == (0.1, 4e-3)
    blood = find_preset("noprop-dt-bloodmnist")
    assert (blood.options["blocks"], blood.train["epochs"], blood.image_size, blood.paper) == (5, 100, 128, None)
    assert "98.42" in blood.summary


@pytest.mark.parametrize(
    "name",
    [
        "backprop-mnist-prototype",
        "noprop-dt-mnist-learned",
        "noprop-ct-cifar10-prototype",
        "noprop-fm-cifar100-learned",
        "neural-ode-mnist-one-hot",
        "noprop-best-cifar10-ct",
        "noprop-ct-bloodmnist",
    ],
)
def test_nets_are_built_for_the_shape_of_their_data(name):
    preset = find_preset(name)
    known = next(known for known in data.names() if known.name == preset.data)
    shape = known.image_shape(preset.image_size or known.sizes[0])
    task = Task(shape, known.class_names, (0.0,) * shape[0], (1.0,) * shape[0])
    noise, classes = Noise(0), len(known.class_names)
    labels = torch.arange(2 * classes) % classes
    images = noise.normal(len(labels) * shape[0] * shape[1] * shape[2]).view(-1, *shape)
    net = RULES[preset.rule](**preset.options).build(task, noise, data.Split(images, labels), None)
    assert net.embedding.shape[0] == classes


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"did you mean noprop-dt-mnist-one-hot\? `sidestep presets` lists them"):
        find_preset("noprop-dt-mnist-onehot")
    assert presets_for("imagenet") == []


class TestEmbeddingsOfTheBaseline:
    @pytest.mark.parametrize(("kind", "dimension"), [("learned", 20), ("prototype", 64), ("orthogonal", 10)])
    def test_it_trains_in_a_chain_of_any_embedding_and_comes_back(self, kind, dimension, tmp_path):
        test = data.load("digits").test
        few = data.from_arrays(test.images[:256], test.labels[:256], test.images[256:], test.labels[256:])
        rule = Backprop(blocks=1, embedding=kind)
        run = train(rule, few, Options(epochs=1, batch=64, out=tmp_path / "run"))
        assert run.net.embedding.shape == (10, dimension)
        again, images = load_run(tmp_path / "run"), few.test.images[:20]
        assert torch.equal(run.predict(images), again.predict(images))
        assert bool(rule.diagnostics(run.net)) == (kind != "orthogonal")

    def test_only_a_learned_embedding_gets_a_gradient(self):
        task = Task((1, 8, 8), tuple("abcd"), (0.0,), (1.0,))
        labels = torch.arange(8) % 4
        batch = Batch(Noise(0).normal(8 * 64).view(8, 1, 8, 8), labels)
        for kind in ("one-hot", "orthogonal", "learned"):
            rule = Backprop(blocks=2, embedding=kind)
            net = rule.build(task, Noise(0), None, None)
            found = rule.estimate(net, batch, Noise(0)).gradients
            assert ("embedding" in found) == (kind == "learned")
            assert set(found) == set(rule.units(net)["net"])

    def test_an_embedding_needs_the_chain(self):
        with pytest.raises(InputError, match="net = chained-blocks"):
            Backprop(net="mlp", embedding="learned")


SMALL = Preset(
    name="small-digits",
    data="digits",
    rule="backprop",
    options={"net": "mlp", "hidden": (16,), "learning_rate": 0.01},
    train={"epochs": 2, "batch": 256},
    summary="a test's",
    reading="forward",
    validation=0.2,
    budgets={"tiny": Changes({"epochs": 1})},
)


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def with_a_small_preset(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("SIDESTEP_DATA", raising=False)
        monkeypatch.setitem(PRESETS, SMALL.name, SMALL)

    def run(self, capsys, *arguments):
        status = 0
        try:
            main(arguments)
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, " ".join(captured.err.split())

    def test_a_preset_gives_rule_data_and_defaults(self, capsys):
        status, out, error = self.run(capsys, "train", "--preset", SMALL.name, "--json")
        assert status == 0, error
        result = json.loads(out.splitlines()[-1])
        assert (result["rule"], result["data"], result["epochs"]) == ("backprop", "digits", 2.0)
        assert result["run"] == "runs/small-digits-0"
        config = Path("runs/small-digits-0/config.toml").read_text()
        for line in ('preset = "small-digits"', "validation = 0.2", "batch = 256", "learning_rate = 0.01"):
            assert line in config

    def test_a_budget_of_the_preset_gives_other_values(self, capsys, monkeypatch):
        tiny = dataclasses.replace(SMALL, budgets={"tiny": Changes({"epochs": 1}, {"learning_rate": 0.03})})
        monkeypatch.setitem(PRESETS, SMALL.name, tiny)
        words = ["train", "--preset", SMALL.name, "--out", "a", "--budget"]
        status, _, error = self.run(capsys, *words, "tiny")
        assert status == 0, error
        config = Path("a/config.toml").read_text()
        assert all(line in config for line in ("epochs = 1", "learning_rate = 0.03", 'budget = "tiny"'))
        status, _, error = self.run(capsys, *words, "cpu")  # never the full values in its place
        assert (status, "small-digits has the budgets full, tiny; got 'cpu'" in error) == (2, True), error

    def test_options_given_beside_it_go_first(self, capsys):
        words = [
            "train",
            "backprop",
            f"--preset={SMALL.name}",
            "--epochs",
            "1",
            "--learning-rate",
            "0.02",
            "--seed",
            "4",
        ]
        assert self.run(capsys, *words)[0] == 0
        config = Path("runs/small-digits-4/config.toml").read_text()
        assert "learning_rate = 0.02" in config
        assert "epochs = 1" in config
        assert "batch = 256" in config

    def test_resuming_needs_no_preset_and_gives_the_same_bits(self, capsys):
        self.run(capsys, "train", "--preset", SMALL.name, "--epochs", "1", "--out", "a")
        status, _, error = self.run(capsys, "train", "backprop", "--resume", "--out", "a", "--epochs", "2")
        assert status == 0, error
        self.run(capsys, "train", "--preset", SMALL.name, "--out", "b")
        assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()
        assert 'preset = "small-digits"' in Path("a/config.toml").read_text()
        status, _, error = self.run(capsys, "train", "--preset", SMALL.name, "--resume", "--out", "a")
        assert status == 0, error

    def test_a_preset_does_not_change_a_run_that_was_started_without(self, capsys):
        self.run(capsys, "train", "backprop", "--net", "mlp", "--epochs", "1", "--out", "a")
        status, _, error = self.run(capsys, "train", "--preset", SMALL.name, "--resume", "--out", "a")
        assert status == 2
        assert "data.preset: was absent, given small-digits" in error

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                ["--preset", "noprop-dt-cifar10-prototype", "--data", "mnist"],
                "preset noprop-dt-cifar10-prototype is for cifar10, not mnist; for noprop-dt on mnist there are: "
                "noprop-dt-mnist-one-hot",
            ),
            (
                ["backprop", "--preset", "noprop-dt-mnist-one-hot"],
                "for the rule noprop-dt, not backprop; for backprop on mnist there are: backprop-mnist-one-hot",
            ),
            (
                ["--preset", SMALL.name, "--data", "own.npz"],
                "there is none for backprop on own.npz: leave --preset out",
            ),
            (["--preset", "small-digit"], "did you mean small-digits?"),
            (["backprop", "--preset", "x"], "`sidestep presets` lists them"),
            (["--epochs", "3"], "or --preset NAME before --epochs"),
            (["bakprop", "--preset", SMALL.name], "did you mean backprop?"),
        ],
    )
    def test_wrong_presets_end_in_one_clear_line(self, capsys, words, message):
        status, _, error = self.run(capsys, "train", *words)
        assert (status, message in error, "Traceback" in error) == (2, True, False), error
        assert not Path("runs").exists()

    def test_help_shows_the_preset_s_values(self, capsys):
        _, out, _ = self.run(capsys, "train", "--preset", SMALL.name, "--help")
        assert "(default: 0.01)" in " ".join(out.replace("│", " ").split())

    def test_presets_are_listed(self, capsys):
        status, out, _ = self.run(capsys, "presets")
        assert status == 0
        assert all(name in out for name in PRESETS.keys() - {SMALL.name})
        status, out, _ = self.run(capsys, "presets", "--data", "cifar10")
        assert "79.25 ± 0.28" in out
        assert "mnist-one-hot" not in out
        _, out, _ = self.run(capsys, "presets", "--data", "mnist", "--json")
        found = json.loads(out.splitlines()[-1])
        assert found["noprop-dt-mnist-one-hot"]["paper"] == {"mean": 99.47, "error": 0.05}
        assert found["noprop-dt-mnist-one-hot"]["budgets"]["cpu"]["train"] == {"epochs": 5}
        _, _, error = self.run(capsys, "presets", "--data", "xyzzy")
        assert "there is no preset for the data set 'xyzzy': there are some for mnist" in error
        status, _, error = self.run(capsys, "presets", "--data", "cifar")
        assert (status, "did you mean cifar10?" in error or "did you mean cifar100?" in error) == (2, True)


class TestAPresetForATextOfYours:
    def test_a_text_has_to_be_given(self, capsys):
        for words, said in ([], "is for a text of yours: give"), (["--data", "digits"], "of yours, not digits: give"):
            with pytest.raises(SystemExit):
                main(["train", "--preset", "noise-step-text", *words])
            assert said in " ".join(capsys.readouterr().err.split())

    def test_it_trains_on_one(self, tmp_path):
        text = tmp_path / "my.txt"
        text.write_text("to be or not to be, that is the question. " * 40)
        words = ["--hidden", "16", "16", "--steps", "2", "--out", str(tmp_path / "run")]
        main(["train", "--preset", "noise-step-text", "--data", str(text), *words])
        kept = json.loads((tmp_path / "run" / "result.json").read_text())
        assert (kept["rule"], kept["score"]) == ("noise-step", "token accuracy")
