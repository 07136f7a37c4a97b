"""What is refused, and what is kept, at the edges of options, schedules and earlier results."""

import json

import pytest
import torch

from sidestep import Options, align, load_run, train
from sidestep.cli import main
from sidestep.errors import InputError, NonFiniteError
from sidestep.nets.noprop.blocks import ImageLatentPath
from sidestep.nets.noprop.image_paths import ConvPath, PooledPath, path_maker
from sidestep.noise import Noise
from sidestep.rules import Backprop, NoPropCT, NoPropDT, NoPropFM

QUICK = NoPropCT(steps=2, draws=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(QUICK, "digits", Options(epochs=1, batch=256, out=tmp_path_factory.mktemp("edges") / "run"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"steps": 2.5}, "whole number"),
        ({"steps": "many"}, "whole number"),
        ({"draws": True}, "whole number"),
        ({"solver": "rk9"}, "solver must be one of"),
        ({"start": "ones"}, "start must be one of zero, noise, got 'ones'"),
        ({"grid": 3}, "grid must be one of uniform, cosine, got 3"),
        ({"steps": 0}, "between 1 and 1000"),
        ({"blocks": 3}, "no setting 'blocks'"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(run, setting, message):
    with pytest.raises(InputError, match=message):
        load_run(run.folder, inference=setting)


def test_a_whole_float_is_a_whole_number(run):
    assert load_run(run.folder, inference={"steps": 4.0}).rule.steps == 4


def test_other_settings_change_the_prediction_and_are_recorded(run, capsys):
    main(["eval", str(run.folder), "--set", "steps=7", "--reading", "ddim", "--json"])
    assert json.loads(capsys.readouterr().out)["settings"] == ["steps=7"]
    images = Noise(3).integers(40 * 64, 256).view(40, 1, 8, 8).to(torch.uint8)
    plain, changed = load_run(run.folder), load_run(run.folder, inference={"start": "noise", "grid": "cosine"})
    assert (changed.rule.start, changed.rule.grid, plain.rule.start) == ("noise", "cosine", "zero")
    assert not torch.equal(plain.predict(images, "ddim"), changed.predict(images, "ddim"))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("noprop-ct", r"rule must be a rule object, for instance rules.NoPropCT\(\), got 'noprop-ct'"),
        (NoPropFM, r"for instance rules.NoPropFM\(\)"),
        ("nothing", r"rule must be a rule object, for instance rules\.\w+\(\), got 'nothing'"),
        (None, "rule must be a rule object"),
        (Options(), "rule must be a rule object"),
    ],
)
def test_what_is_no_rule_object_is_refused(rule, message):
    for use in (train, align):
        with pytest.raises(InputError, match=message):
            use(rule, "digits")


def test_settings_given_one_by_one_all_apply(run, capsys):
    def found(*words):
        main(["eval", str(run.folder), *words, "--json"])
        return {**json.loads(capsys.readouterr().out), "seconds": 0}

    apart = found("--set", "steps=7", "--set", "start=noise", "--reading", "ddim", "--reading", "ancestral")
    assert apart["settings"] == ["steps=7", "start=noise"]
    assert list(apart["readings"]) == ["ddim", "ancestral"]
    assert apart == found("--set", "steps=7", "start=noise", "--reading", "ddim", "ancestral")


@pytest.mark.parametrize("words", [["--set", "steps=7", "--set", "steps=9"], ["--set", "steps=7", "steps=9"]])
@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_setting_that_is_given_twice_is_refused(run, capsys, command, words):
    with pytest.raises(SystemExit) as leaving:
        main([command, str(run.folder), *["images.npz"][: command == "predict"], *words])
    assert leaving.value.code == 2
    assert "--set gives steps twice, steps=7 and steps=9; give it once" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("extra", [{"decay": "cosine"}, {"warmup": 0.5}])
def test_a_run_whose_rate_falls_is_not_resumed_to_more_epochs(tmp_path, extra):
    """The rate at a step depends on the number of steps, so it would not be the run of that many epochs."""
    train(QUICK, "digits", Options(epochs=1, batch=256, out=tmp_path / "a", **extra))
    with pytest.raises(InputError, match=r"train\.epochs.*learning rate depends on --epochs"):
        train(QUICK, "digits", Options(epochs=2, batch=256, out=tmp_path / "a", resume=True, **extra))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoPropCT(largest_alpha_bar=0.99999999), "largest_alpha_bar"),
        (lambda: NoPropCT(smallest_alpha_bar=1e-40), "smallest_alpha_bar"),
        (lambda: NoPropCT(smallest_alpha_bar=0.9, largest_alpha_bar=0.1), "rises from one alpha_bar to a larger one"),
        (lambda: NoPropDT(label_smoothing=0.1), "needs loss = cross-entropy"),
        (lambda: NoPropFM(loss="unweighted", label_smoothing=0.1), "needs loss = cross-entropy"),
        (lambda: Backprop(net="mlp", path="resnet-9"), "net = chained-blocks"),
        (lambda: Backprop(net="mlp", dimension=5), "net = chained-blocks"),
    ],
)
def test_options_without_a_use_or_a_meaning_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_probabilities_that_are_no_numbers_are_no_accuracy(run):
    broken = load_run(run.folder)
    with torch.no_grad():
        broken.net.embedding.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        broken.predict(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))


def test_the_automatic_path_fits_long_thin_images_and_image_shaped_labels():
    assert isinstance(path_maker("auto", (1, 20, 400), norm=True)(), ConvPath)
    assert isinstance(path_maker("auto", (3, 128, 128), norm=True)(), PooledPath)
    assert isinstance(ImageLatentPath((3, 128, 128)).path, PooledPath)


def test_a_budget_needs_a_preset_and_changes_its_values(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["train", "noprop-ct", "--budget", "cpu"])
    assert "give --preset NAME" in capsys.readouterr().err.replace("\n", " ")


def test_a_study_does_not_train_on_a_run_that_has_ended(tmp_path, capsys):
    study = ["study", "noprop-blocks", "--blocks", "1", "--batch", "512", "--seeds", "1", "--out", str(tmp_path / "s")]
    main([*study, "--epochs", "1"])
    before = (tmp_path / "s/noprop-dt-0/model.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        main([*study, "--epochs", "2", "--overwrite"])
    assert "choose another --out" in capsys.readouterr().err.replace("\n", " ")
    assert (tmp_path / "s/noprop-dt-0/model.safetensors").read_bytes() == before
