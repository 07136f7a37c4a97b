"""A keyword that there is not: the error names the one that was meant, or whose it is, and hides no other error."""

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pytest
from torch import nn

from sidestep import CsvLog, EarlyStop, Options, TensorBoard, align, ask_tell, attach, data, load_run, replay, train
from sidestep.errors import InputError
from sidestep.keywords import KeywordError, known_keywords
from sidestep.rules import RULES, SPSA, Backprop, NoPropDT

ROWS = np.zeros((20, 3), np.float32)
DOORS = [train, align, attach, ask_tell, load_run, replay, data.load, data.from_arrays, data.from_loader,
         data.from_tokens, data.from_text, Options, EarlyStop, CsvLog, TensorBoard, *RULES.values()]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (lambda: Options(epoch=3), r"^Options takes no epoch: did you mean epochs\?$"),
        (lambda: Options(batch_size=3), r"did you mean batch\?$"),
        (lambda: Options(probes=8), r"Options takes no probes; .* does?: \w+\(probes=8\)$"),
        (lambda: SPSA(lr=0.1), r"^SPSA takes no lr: did you mean learning_rate\?$"),
        (lambda: SPSA(epochs=2), r"^SPSA takes no epochs; Options (does|and others do): Options\(epochs=2\)$"),
        (lambda: NoPropDT(blokcs=2), r"did you mean blocks\?$"),
        (lambda: dataclasses.replace(Options(), epoc=3), r"did you mean epochs\?$"),
        (lambda: train(SPSA(), "digits", epochs=3), r"^train takes no epochs; Options does: Options\(epochs=3\)$"),
        (lambda: train(SPSA(), "digits", epoch=3), r"Options\(epochs=3\)$"),
        (lambda: train(Backprop(), lr=0.1), r"^train takes no lr; Backprop does: Backprop\(learning_rate=0.1\)$"),
        (lambda: train(rules=SPSA()), r"did you mean rule\?$"),
        (lambda: train(SPSA(), batch=np.zeros(100)), r"Options\(batch=\.\.\.\)$"),
        (lambda: attach(nn.Linear(2, 2), SPSA(), sed=0), r"^attach takes no sed: did you mean seed\?$"),
        (lambda: data.from_arrays(ROWS, target=ROWS), r"did you mean targets\? \(y_train is missing, too\)$"),
        (lambda: data.from_arrays(ROWS, label=ROWS), r"^from_arrays takes no label: did you mean y_train\?$"),
        (lambda: data.load("digits", sise=3), r"did you mean size\?$"),
        (lambda: EarlyStop(patience=2, kep="best"), r"did you mean keep\?$"),
        (lambda: Options(zzzzz=1), r"^Options takes no zzzzz; it takes epochs, steps, "),
    ],
)
def test_the_name_that_was_meant_is_in_the_error(typed, said):
    with pytest.raises(KeywordError, match=said) as found:
        typed()
    assert isinstance(found.value, TypeError)  # as Python raises it
    assert isinstance(found.value, InputError)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_every_door_names_what_is_near_to_each_of_its_keywords(door):
    for name in list(inspect.signature(door).parameters)[1:]:
        with pytest.raises(KeywordError, match=rf"takes no {name}x.*\b{name}\b"):
            door(object(), **{f"{name}x": 1})


def test_an_estimator_names_them_too():
    estimators = pytest.importorskip("sidestep.integrations.sklearn")
    with pytest.raises(KeywordError, match=r"^SidestepClassifier takes no epoch: did you mean epochs\?$"):
        estimators.SidestepClassifier(epoch=3)
    with pytest.raises(KeywordError, match=r"learning_rate=0.1"):
        estimators.SidestepRegressor("spsa", learning_rate=0.1)
    assert "epochs" in estimators.SidestepClassifier().get_params()


def test_a_type_error_of_what_a_function_does_is_not_touched():
    @known_keywords()
    def broken(height=1):
        raise TypeError("of its own")

    with pytest.raises(TypeError, match=r"^of its own$") as found:
        broken(height=2)
    assert type(found.value) is TypeError
    with pytest.raises(TypeError, match="missing 1 required") as found:
        train()
    assert type(found.value) is TypeError


def test_signatures_copies_and_pickles_are_as_they_were():
    assert list(inspect.signature(SPSA).parameters) == [field.name for field in dataclasses.fields(SPSA)]
    assert list(inspect.signature(Options).parameters) == [field.name for field in dataclasses.fields(Options)]
    assert list(inspect.signature(train).parameters)[:3] == ["rule", "data", "options"]
    for made in (Options(epochs=3), SPSA(pairs=8)):
        assert copy.deepcopy(made) == made == pickle.loads(pickle.dumps(made))
