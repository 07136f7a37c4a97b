"""What people pass to the Python interface: NumPy's numbers and arrays, paths, torch's data sets, things that are no
options.
"""

import dataclasses
from pathlib import Path
from typing import Literal, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from sidestep import Options, align, data, load_run, train
from sidestep.errors import InputError
from sidestep.rules import RULES, Backprop
from sidestep.training.folder import RunFolder

QUICK = Backprop(net="mlp", hidden=(8,))
DIGITS = data.load("digits")
PAIRS = TensorDataset(DIGITS.test.images, DIGITS.test.labels)


@pytest.fixture(scope="module")
def run():
    return train(QUICK, DIGITS, Options(epochs=1))


def numbers(kind: type) -> list[tuple[str, type]]:
    hints = get_type_hints(kind)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(kind) if hints[field.name] in (int, float)]


@pytest.mark.parametrize("kind", [*RULES.values(), Options], ids=lambda kind: kind.__name__)
class TestNumbers:
    def test_numpy_s_and_torch_s_become_python_s(self, kind):
        default = kind()
        for name, wanted in numbers(kind):
            value = getattr(default, name)
            makers = [np.float64, torch.tensor, np.array] + ([np.int64, float] if wanted is int else [np.float32])
            for make in makers:
                found = getattr(kind(**{name: make(value)}), name)
                assert type(found) is wanted, (name, make)
                assert found == pytest.approx(value, rel=1e-6), (name, make)

    def test_words_and_fractions_of_whole_numbers_are_refused(self, kind):
        for name, wanted in numbers(kind):
            for wrong in ("3", None, True, [1], *([1.5, float("inf")] if wanted is int else [])):
                with pytest.raises(InputError, match=rf"{name} must "):
                    kind(**{name: wrong})

    def test_choices_are_one_of_their_words(self, kind):
        for name, hint in get_type_hints(kind).items():
            if get_origin(hint) is Literal:
                with pytest.raises(InputError, match=name):
                    kind(**{name: 3})


def test_lists_become_tuples_and_strings_paths(tmp_path):
    assert Backprop(net="mlp", hidden=np.array([8, 4])).hidden == (8, 4)
    assert type(Backprop(net="mlp", hidden=[np.int64(8)]).hidden[0]) is int
    with pytest.raises(InputError, match="hidden must be a list of numbers"):
        Backprop(net="mlp", hidden="84")
    assert Options(out="a").out == Path("a")
    assert Options(device=torch.device("cpu")).device == "cpu"
    with pytest.raises(InputError, match="resume must be True or False"):
        Options(resume="yes")


def test_they_are_written_to_the_run_as_numbers(tmp_path):
    rule = Backprop(net="mlp", hidden=np.array([8]), learning_rate=np.float32(1e-3))
    options = Options(epochs=np.int64(1), seed=np.int64(3), batch=64.0, out=str(tmp_path / "run"))
    trained = train(rule, DIGITS, options)
    saved = RunFolder(tmp_path / "run").config()
    assert (saved["train"]["epochs"], saved["train"]["seed"], saved["train"]["batch"]) == (1, 3, 64)
    assert saved["rule"]["learning_rate"] == float(np.float32(1e-3))
    again = load_run(tmp_path / "run")
    assert torch.equal(again.predict(DIGITS.test.images), trained.predict(DIGITS.test.images))


class TestImages:
    def test_any_form_of_the_same_images_gives_the_same_answer(self, run):
        images = DIGITS.test.images[:20]
        grey, wanted = images[:, 0].numpy(), run.predict(images)
        for form in (
            images.numpy(), list(images), grey, grey.astype(np.int64), grey.tolist(), grey[..., None],
            np.asfortranarray(grey), grey.astype(">i2"), images.to_sparse(), images.transpose(2, 3).mT,
        ):  # fmt: skip
            assert torch.equal(run.predict(form), wanted), type(form)
        assert run.predict(images[:0].numpy()).shape == (0, 10)

    def test_float64_images_are_those_of_float32(self):
        found = data.from_arrays(DIGITS.train.images / 255, DIGITS.train.labels)
        trained = train(QUICK, found, Options(epochs=1))
        images = DIGITS.test.images / 255
        assert torch.equal(trained.predict(images.numpy().astype(np.float64)), trained.predict(images))

    def test_channels_may_come_last(self):
        colour = np.random.default_rng(0).integers(0, 256, (40, 3, 6, 5), dtype=np.uint8)
        trained = train(QUICK, data.from_arrays(colour, np.arange(40) % 2), Options(epochs=1))
        last = colour.transpose(0, 2, 3, 1)
        assert torch.equal(trained.predict(last), trained.predict(torch.from_numpy(colour)))
        with pytest.raises(InputError, match=r"give one image as images\[None\]"):
            trained.predict(colour[0])

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (DIGITS, r"got DataSet; give data.test.images"),
            (DIGITS.test, r"got Split; give split.images"),
            (PAIRS, "got TensorDataset"),
            ("x.npy", "need an array, got str"),
            (None, "got NoneType"),
            (DIGITS.test.images / 255, "the images are float32, but the net was trained on uint8"),
            (DIGITS.test.images.numpy() * 1.0, "the images are float32"),
            (DIGITS.test.images[0, 0], r"images\[None\]"),
            (DIGITS.test.images[:, :, 1:], r"shape \(1, 7, 8\), but the net was trained on \(1, 8, 8\)"),
            (DIGITS.test.images.long() * 2, "0 to 255"),
        ],
        ids=lambda given: type(given).__name__,
    )
    def test_others_are_refused(self, run, images, message):
        with pytest.raises(InputError, match=message):
            run.predict(images)

    def test_pixels_that_are_no_numbers_are_refused(self):
        trained = train(QUICK, data.from_arrays(DIGITS.test.images / 255, DIGITS.test.labels), Options(epochs=1))
        with pytest.raises(InputError, match="NaN"):
            trained.predict(np.full((2, 8, 8), np.nan))


class TestEvaluation:
    @pytest.mark.parametrize(
        ("split", "message"),
        [
            (DIGITS, "takes one split, got a data set; give data.test"),
            ((DIGITS.test.images, DIGITS.test.labels), "got tuple"),
            (data.Split(DIGITS.test.images / 255, DIGITS.test.labels), "the images are float32"),
            (data.Split(DIGITS.test.images, DIGITS.test.labels + 5), "labels must be 0 to 9"),
            (data.Split(DIGITS.test.images[..., 1:], DIGITS.test.labels), "trained on"),
            (data.Split(DIGITS.test.images[:0], DIGITS.test.labels[:0]), "no images"),
        ],
        ids=["set", "tuple", "units", "labels", "shape", "none"],
    )
    def test_it_takes_a_split_of_what_was_trained_on(self, run, split, message):
        with pytest.raises(InputError, match=message):
            run.evaluate(split)


class TestData:
    def test_paths_are_taken(self, tmp_path):
        np.savez(tmp_path / "a.npz", x_train=DIGITS.train.images[:, 0].numpy(), y_train=DIGITS.train.labels.numpy())
        found = train(QUICK, tmp_path / "a.npz", Options(epochs=1, out=tmp_path / "run"))
        assert found.result["data"] == "a"
        assert align(QUICK, tmp_path / "a.npz", estimates=1).data == "a"

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (PAIRS, r"got TensorDataset; make a data set of it with data.from_arrays\(\*dataset.tensors\)"),
            (DIGITS.train, r"got Split; .*from_arrays\(split.images, split.labels\)"),
            ((DIGITS.test.images, DIGITS.test.labels), r"got tuple; .*from_arrays\(images, labels\)"),
            (DIGITS.test.images, "got Tensor"),
            (None, "got NoneType"),
        ],
        ids=lambda given: type(given).__name__,
    )
    def test_other_forms_are_refused_with_what_to_do(self, given, message):
        for use in (train, align):
            with pytest.raises(InputError, match=message):
                use(QUICK, given)

    def test_only_train_takes_loaders(self):
        with pytest.raises(InputError, match=r"got DataLoader; .*only train takes loaders"):
            align(QUICK, DataLoader(PAIRS))

    def test_so_are_other_forms_of_options(self):
        for use in (train, align):
            with pytest.raises(InputError, match=r"got dict; give Options\(\*\*options\)"):
                use(QUICK, DIGITS, {"epochs": 1})
            with pytest.raises(InputError, match="got int; give for instance"):
                use(QUICK, DIGITS, 3)

    def test_load_takes_a_name_or_a_path(self):
        with pytest.raises(InputError, match=r"got ndarray; arrays become a data set with from_arrays"):
            data.load(np.zeros(3))
        with pytest.raises(InputError, match="validation must be a fraction"):
            data.load("digits", validation="0.1")
        assert len(data.load("digits", validation=np.float32(0.25)).validation) == 359
