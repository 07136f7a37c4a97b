"""Tables scaled by column; several labels and real values as targets, rule by rule."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from sidestep import data, train
from sidestep.cli import main
from sidestep.errors import DataError, InputError
from sidestep.noise import Noise
from sidestep.rules import RULES
from sidestep.training import Options, load_run

CLASSES_ALONE = {"forward-forward"}
OPTIONS = {"backprop": {"net": "mlp", "hidden": (32,)}, "noprop-dt": {"blocks": 2}}


def table(rows: int = 240) -> np.ndarray:
    """Six columns in units that differ by up to 10^6, as tables have them."""
    drawn = Noise(3).normal(rows * 6).view(rows, 6).double().numpy()
    return drawn * np.array([1e-3, 1.0, 50.0, 1000.0, 1.0, 1.0]) + np.array([0, 5, -100, 1e4, 0, 0])


def hidden_values(x: np.ndarray) -> np.ndarray:
    """A linear function of the scaled columns."""
    scaled = (x - x.mean(0)) / x.std(0)
    return 150 + 70 * (scaled[:, 0] + 0.5 * scaled[:, 3] - scaled[:, 5])


def made(kind: str) -> data.DataSet:
    x = table()
    value = hidden_values(x)
    targets = {
        "classes": (value > 150).astype(int),
        "labels": np.stack([value > 150, x[:, 1] > 5, x[:, 2] > -100], axis=1).astype(int),
        "values": value,
    }[kind]
    return data.from_arrays(x[:180], targets[:180], x[180:], targets[180:], targets=kind, name=f"table of {kind}")


class TestLoading:
    """What becomes a table, and what is refused in words."""

    def test_every_column_has_mean_0_and_variance_1(self):
        found = made("classes")
        assert found.train.images.shape == (162, 6)
        scaled = data.standardise(found.train.images, found.mean, found.std)
        torch.testing.assert_close(scaled.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
        torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(6), atol=1e-3, rtol=0)

    def test_the_table_is_a_copy(self):
        x = table(20)
        found = data.from_arrays(x, np.arange(20) % 2)
        before = found.train.images.clone()
        x[:] = 7
        assert torch.equal(found.train.images, before)

    def test_missing_numbers_are_refused_with_their_columns(self):
        x = table(20)
        x[3, 1] = x[7, 4] = math.nan
        with pytest.raises(DataError, match=r"2 of 120 numbers are NaN or infinite .* in columns 1, 4; fill them"):
            data.from_arrays(x, np.arange(20) % 2)

    def test_names_are_no_numbers(self):
        with pytest.raises(DataError, match="must hold numbers"):
            data.from_arrays(np.array([["a", "b"], ["c", "d"]]), [0, 1])

    @pytest.mark.parametrize(
        ("targets", "kind", "said"),
        [
            ([0.5, 1.0, math.nan, 2.0], "values", "NaN or infinite"),
            ([[0, 1], [1, 1], [2, 0], [0, 0]], "labels", "labels are 0 or 1 in a column for each, got 2"),
            ([1.0, 2.0, 3.0], "values", "one row for each of 4 inputs, got 3"),
            (["a", "b", "c", "d"], "values", "need numbers"),
            ([1.5, 2.5, 3.5, 4.5], "classes", "no whole number"),
        ],
    )
    def test_targets_of_another_kind_are_refused(self, targets, kind, said):
        with pytest.raises(DataError, match=said):
            data.from_arrays(table(4), targets, targets=kind, validation=0)

    def test_a_spread_that_float32_cannot_hold_is_refused(self):
        x = table(60)
        times = x.copy()
        times[:, 1] += 1.7e9  # seconds since 1970, where float32 has steps of 128
        with pytest.raises(DataError, match=r"column 1 lies around 1.7e\+09 and varies by 0.9\d* only.*subtract"):
            data.from_arrays(times, np.arange(60) % 2)
        with pytest.raises(DataError, match=r"train values: column 0 lies around 1e\+09"):
            data.from_arrays(x, hidden_values(x) + 1e9, targets="values")
        far = data.from_arrays(x, hidden_values(x) + 1e5, targets="values", validation=0)  # held well enough
        torch.testing.assert_close(
            far.train.labels[:, 0] - 1e5, torch.tensor(hidden_values(x)).float(), atol=0.01, rtol=0
        )

    def test_values_that_do_not_vary_are_refused(self):
        with pytest.raises(DataError, match="every train value of column 0 is 5"):
            data.from_arrays(table(20), np.full(20, 5.0), targets="values")

    def test_an_unknown_kind_is_refused(self):
        with pytest.raises(InputError, match="classes, labels or values, got 'numbers'"):
            data.from_arrays(table(4), [1, 2, 3, 4], targets="numbers")

    def test_columns_of_test_must_agree(self):
        with pytest.raises(DataError, match=r"test rows have shape \(5,\), those of train \(6,\)"):
            data.from_arrays(table(20), np.arange(20) % 2, table(20)[:, :5], np.arange(20) % 2)


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
@pytest.mark.parametrize("name", list(RULES))
def test_a_rule_trains_on_a_table_or_says_that_it_does_not(name, kind):
    rule = RULES[name](**OPTIONS.get(name, {}))
    if kind != "classes" and name in CLASSES_ALONE:
        with pytest.raises(InputError, match=f"takes targets that are classes, but the data have {kind}"):
            train(rule, made(kind), Options(epochs=0))
        return
    run = train(rule, made(kind), Options(epochs=1, batch=32))
    assert run.result["steps"] == 5
    found = run.predict(table()[:7].astype("float32"))
    assert found.shape == (7, {"classes": 2, "labels": 3, "values": 1}[kind])
    assert bool(found.isfinite().all())
    if kind == "values":
        assert run.result["score"] == "R2"
        first = next(iter(run.result["qualities"].values()))
        assert (first["R2"], "accuracy" in first) == (run.result["test_score"], False)
        assert "test_accuracy" not in run.result


class TestValues:
    """Real values: learned in units of their deviation, predicted in their own."""

    def test_a_linear_function_is_found(self, tmp_path):
        rule = RULES["backprop"](net="mlp", hidden=(32,), learning_rate=0.01)
        run = train(rule, made("values"), Options(epochs=40, batch=32, out=str(tmp_path / "run")))
        assert run.result["test_score"] > 0.95
        x = table()
        predicted = run.predict(x[180:].astype("float32"))[:, 0].numpy()
        wanted = hidden_values(x)[180:]
        assert 1 - ((predicted - wanted) ** 2).mean() / wanted.var() > 0.95  # in the values' own units
        again = load_run(tmp_path / "run")
        assert torch.equal(again.predict(x[180:].astype("float32")), run.predict(x[180:].astype("float32")))
        assert again.evaluate(made("values").test) == run.evaluate(made("values").test)

    def test_forward_only_estimates_agree_with_the_gradient(self):
        """The derivative by outputs, in closed form and in forward mode, is autograd's, for every kind of target."""
        from sidestep.data.objective import CLASSES, LABELS, values_objective

        outputs = Noise(1).normal(12).view(4, 3).double().requires_grad_()
        values = Noise(2).normal(12).view(4, 3).double()
        for objective, targets in (
            (CLASSES, torch.tensor([0, 2, 1, 1])),
            (LABELS, (values > 0).long()),
            (values_objective((1.0, 2.0, 3.0), (1.0, 2.0, 4.0)), values),
        ):
            (wanted,) = torch.autograd.grad(objective.each(outputs, targets).sum(), outputs)
            for known in (objective, dataclasses.replace(objective, cotangent=None)):
                found, loss = known.derivative(outputs.detach(), targets)
                torch.testing.assert_close(found, wanted, check_dtype=False, atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(loss, objective.mean(outputs.detach(), targets))


class TestCommandLine:
    """A table in an .npz file: trained on, judged, and loaded again as it was."""

    def write(self, path):
        x = table()
        y = hidden_values(x)
        np.savez(path, x_train=x[:180], y_train=y[:180], x_test=x[180:], y_test=y[180:])

    def command(self, capsys, *words):
        try:
            main(list(words))
            status = 0
        except SystemExit as leaving:
            status = leaving.code
        return status, capsys.readouterr()

    def test_values_are_trained_on_and_judged_by_r2(self, tmp_path, capsys):
        file, run = tmp_path / "mine.npz", tmp_path / "run"
        self.write(file)
        words = ["train", "backprop", "--net", "mlp", "--data", str(file), "--targets", "values", "--lr", "0.01"]
        status, said = self.command(capsys, *words, "--epochs", "20", "--out", str(run))
        assert status == 0
        assert "test, by  R2" in said.out
        status, said = self.command(capsys, "eval", str(run), "--json")
        assert status == 0
        found = json.loads(said.out.splitlines()[-1])
        assert found["R2"] > 0.9
        assert found["nll"] is None
        status, said = self.command(capsys, "eval", str(run))
        assert "R2" in said.out
        assert "ECE" not in said.out
        status, said = self.command(capsys, "predict", str(run), str(file))
        assert status == 2
        assert "shows the classes of images" in said.err.replace("\n", " ")
        status, said = self.command(capsys, "train", "backprop", "--resume", "--out", str(run), "--epochs", "21")
        assert status == 0, said.err

    def test_values_that_are_taken_for_classes_are_refused_with_the_remedy(self, tmp_path, capsys):
        self.write(tmp_path / "mine.npz")
        status, said = self.command(capsys, "train", "backprop", "--net", "mlp", "--data", str(tmp_path / "mine.npz"))
        assert status == 2
        assert "targets='values'" in said.err.replace("\n", " ")
        status, said = self.command(capsys, "train", "backprop", "--targets", "values")
        assert status == 2
        assert "the targets of digits are classes" in said.err
