"""A trained net as a file for other programs: the same answers, any batch size, nothing written on an error."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from sidestep import Options, data, train
from sidestep.cli import main
from sidestep.data import batches
from sidestep.errors import InputError
from sidestep.integrations.export import Predictor, export
from sidestep.rules import RULES, LocalLoss, NeuralODE, NoiseStep, NoPropDT
from sidestep.training import load_run

SMALL = {
    "noprop-dt": {"blocks": 2}, "noprop-ct": {"steps": 3}, "noprop-fm": {"steps": 3}, "backprop": {"net": "mlp"},
    "evolution": {"noise_kind": "full-rank", "per": "group", "group": 16},
}  # fmt: skip


def trained(rule, **options):
    return train(rule, "digits", Options(steps=2, **options))


@pytest.mark.parametrize("name", [name for name in RULES if name != "neural-ode"])
def test_every_rule_s_default_reading_is_written_with_the_same_answers(name, tmp_path):
    done = export(trained(RULES[name](**SMALL.get(name, {}))), tmp_path / "net.pt2", check=True)
    assert done.difference < 1e-4
    assert (done.dtype, done.shape, done.reading) == ("uint8", (1, 8, 8), RULES[name].readings[0])


@pytest.mark.parametrize("rule", [NoPropDT(blocks=2), NoiseStep(hidden=(32,)), LocalLoss(net="conv", hidden=(8, 8))])
def test_onnx_gives_the_same_answers(rule, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = trained(rule)
    assert export(run, tmp_path / "net.onnx", check=True).difference < 1e-4
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"))
    images = data.load("digits").test.images[:50]
    (answers,) = session.run(["answers"], {"inputs": images.numpy()})
    assert np.allclose(answers, run.predict(images), atol=1e-2)  # which may have computed in bfloat16


def test_a_run_s_temperature_and_its_packed_weights_are_inside(tmp_path):
    train(NoiseStep(hidden=(64,)), "digits", Options(epochs=3, out=tmp_path / "run"))
    run = load_run(tmp_path / "run")
    assert run.temperature() not in (None, 1.0)
    images = data.load("digits").test.images[:20]
    with torch.no_grad():
        answers = Predictor(run).eval()(images)
    torch.testing.assert_close(answers, run.predict(images), rtol=0, atol=1e-2)
    assert (answers - run.predict(images, raw=True)).abs().max() > 0.02
    assert export(run, tmp_path / "net.pt2", check=True).difference < 1e-4


def test_a_run_that_has_predicted_nothing_yet_is_written(tmp_path):
    train(LocalLoss(hidden=(16,)), "digits", Options(steps=2, out=tmp_path / "run"))
    batches._scale_and_shift.cache_clear()  # as in a process that has just begun
    run = load_run(tmp_path / "run")
    assert export(run, tmp_path / "net.pt2", check=True).difference < 1e-4
    run.predict(data.load("digits").test.images[:2])


def test_tables_of_values_are_written_in_their_own_units(tmp_path):
    rows = np.linspace(0, 1, 120, dtype="float32").reshape(60, 2) * [1, 300]
    arrays = data.from_arrays(rows.astype("float32"), 1000 + rows[:, 0], targets="values", validation=0.2)
    run = train(LocalLoss(hidden=(16,), label_smoothing=0.0), arrays, Options(epochs=5))
    done = export(run, tmp_path / "net.pt2", check=True)
    assert (done.dtype, done.shape) == ("float32", (2,))
    assert done.difference < 0.01
    assert 900 < float(torch.export.load(tmp_path / "net.pt2").module()(torch.tensor(rows[:1]).float())) < 1100


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    run = trained(NoPropDT(blocks=2))
    for reading, kind in (("ancestral", NoPropDT(blocks=2)), (None, NeuralODE(steps=2))):
        with pytest.raises(InputError, match="cannot be written as one graph"):
            export(trained(kind), tmp_path / "net.pt2", reading)
    with pytest.raises(InputError, match=r"\.onnx or \.pt2"):
        export(run, tmp_path / "net.bin")
    with pytest.raises(InputError, match="no folder"):
        export(run, tmp_path / "no" / "net.pt2")
    with pytest.raises(InputError, match="opset must be 18 or more, got 9"):
        export(run, tmp_path / "net.onnx", opset=9)
    with pytest.raises(InputError, match="no reading 'dim'"):
        export(run, tmp_path / "net.pt2", "dim")
    assert not list(tmp_path.iterdir())
    (tmp_path / "net.pt2").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        export(run, tmp_path / "net.pt2")
    assert (tmp_path / "net.pt2").read_text() == "mine"


def test_writing_leaves_the_run_as_it_was(tmp_path):
    run = trained(NoPropDT(blocks=2))
    before = {name: value.clone() for name, value in run.net.state_dict().items()}
    export(run, tmp_path / "net.pt2")
    assert all(torch.equal(value, before[name]) for name, value in run.net.state_dict().items())
    assert isinstance(run.net, nn.Module)


def test_the_command_says_what_the_file_takes_and_how_far_it_is_off(tmp_path, capfd):
    train(LocalLoss(hidden=(16,)), "digits", Options(epochs=1, out=tmp_path / "run"))
    main(["export", str(tmp_path / "run"), str(tmp_path / "net.pt2"), "--check"])
    said = capfd.readouterr()
    assert "takes uint8 (n, 1, 8, 8), gives (n, 10), by forward" in " ".join(said.out.split())
    assert "largest difference" in said.out
    assert said.err == ""
    main(["export", str(tmp_path / "run"), str(tmp_path / "net.pt2"), "--overwrite", "--json"])
    assert json.loads(capfd.readouterr().out)["difference"] is None
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "run"), str(tmp_path / "net.pt2")])
    assert "--overwrite" in capfd.readouterr().err
