"""scikit-learn's estimators: its own checks, every rule, tables of every kind, weights, files, grids and jobs."""

import json
import os
import pickle
import pickletools
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sidestep import rules
from sidestep.data.batches import BatchOrder
from sidestep.errors import CheckpointError, InputError
from sidestep.integrations.sklearn import SidestepClassifier, SidestepRegressor
from sidestep.integrations.table_net import Rows
from sidestep.rules import RULES

pandas = pytest.importorskip("pandas")

WINE = load_wine(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)
SMALL = rules.LocalLoss(hidden=(16,), learning_rate=0.02)
PROGRAM = """
import json, warnings
from sklearn.utils.estimator_checks import check_estimator
from sidestep import rules
from sidestep.integrations.sklearn import SidestepClassifier, SidestepRegressor
warnings.simplefilter("ignore")
settings = {settings}
found = [check_estimator(kind(**settings), on_fail=None, on_skip=None) for kind in {kinds}]
print(json.dumps([[each["check_name"], each["status"], repr(each["exception"])] for part in found for each in part]))
"""
QUICK = "dict(rule=rules.LocalLoss(hidden=(32,), learning_rate=0.02), epochs=10)"


def small(kind=SidestepClassifier, **settings):
    return kind(**{"rule": SMALL, "epochs": 5, **settings})


def checks(kinds, settings):
    """Run all of scikit-learn's checks, those for other array libraries too, which a variable switches on."""
    environment = {**os.environ, "SCIPY_ARRAY_API": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program = [sys.executable, "-c", PROGRAM.format(kinds=kinds, settings=settings)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_all_of_scikit_learns_checks_pass():
    found = checks("(SidestepClassifier, SidestepRegressor)", QUICK)
    print(f"{len(found)} checks")
    assert len(found) > 100
    assert [each for each in found if each[1] != "passed"] == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SidestepClassifier", "SidestepRegressor"])
def test_all_of_scikit_learns_checks_pass_with_the_defaults(kind):
    found = checks(f"({kind},)", "{}")
    assert [each for each in found if each[1] != "passed"] == []


@pytest.mark.parametrize("name", list(RULES))
def test_every_rule_classifies_a_table_or_says_why_not(name):
    table, kinds = WINE
    estimator = SidestepClassifier(name, epochs=1).fit(table, kinds)
    answers = estimator.predict_proba(table)
    assert answers.shape == (178, 3)
    assert np.allclose(answers.sum(axis=1), 1, atol=1e-6)
    again = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(again.predict_proba(table), answers)


@pytest.mark.parametrize("name", list(RULES))
def test_every_rule_of_values_predicts_them_or_says_why_not(name):
    table, values = DIABETES[0][:60], DIABETES[1][:60]
    estimator = SidestepRegressor(name, epochs=1)
    if "values" not in RULES[name].takes.targets:
        with pytest.raises(InputError, match=f"{name} takes targets that are classes"):
            estimator.fit(table, values)
    else:
        assert np.isfinite(estimator.fit(table, values).predict(table)).all()


@pytest.mark.parametrize("name", list(RULES))
def test_broken_weights_count_where_a_rule_has_losses_of_examples(name):
    table, kinds = WINE
    heavy = np.where(kinds == 0, 100.25, 0.01)
    table, kinds, heavy = table[::3], kinds[::3], heavy[::3]
    estimator = SidestepClassifier(name, epochs=4)
    if "own" not in RULES[name].takes.targets:
        with pytest.raises(InputError, match="no loss for each example"):
            estimator.fit(table, kinds, sample_weight=heavy)
    else:
        before = estimator.fit(table, kinds).predict_proba(table)[:, 0].mean()
        after = estimator.fit(table, kinds, sample_weight=heavy).predict_proba(table)[:, 0].mean()
        assert after > before


def mixed(count=120):
    """A table of which one column decides, a text with gaps."""
    places = np.arange(count)
    colours = np.array(["red", "green", None], dtype=object)[places % 3]
    sizes = np.where(places % 7 == 0, np.nan, places % 11)
    shapes = pandas.Categorical(np.array([10, 20])[places % 2])
    frame = pandas.DataFrame({"colour": colours, "size": sizes, "shape": shapes, "heavy": places % 5 == 0})
    return frame, np.array(["stop", "go", "none"], dtype=object)[places % 3]


def test_frames_of_texts_categories_gaps_and_labels_that_are_texts():
    frame, answers = mixed()
    estimator = small(epochs=10).fit(frame, answers)
    assert estimator.score(frame, answers) == 1.0
    assert estimator.feature_names_in_.tolist() == ["colour", "size", "shape", "heavy"]
    kinds = [(each.kind, each.gaps) for each in estimator.columns_.columns]
    assert kinds == [("category", True), ("number", True), ("category", False), ("number", False)]
    assert estimator.columns_.columns[2].categories == ("10", "20")  # of a category type: no numbers
    array = frame.astype({"shape": "str"}).to_numpy(dtype=object)
    plain = small(epochs=10).fit(array, answers)
    assert np.array_equal(plain.predict_proba(array), estimator.predict_proba(frame))


def test_a_new_category_is_refused_or_taken_for_a_gap():
    frame, answers = mixed()
    strange = frame.head(3).assign(colour=["red", "grean", "blue"])
    with pytest.raises(InputError, match=r"column 'colour' has the category 'grean'.* did you mean 'green'\?"):
        small().fit(frame, answers).predict(strange)
    lenient = small(unknown="missing").fit(frame, answers)
    gaps = frame.head(3).assign(colour=["red", None, None])
    assert np.array_equal(lenient.predict_proba(strange), lenient.predict_proba(gaps))


def test_columns_are_scaled_whatever_their_units():
    table, kinds = WINE
    moved = table * 1e6 + 1e9
    near = small().fit(table, kinds).predict_proba(table), small().fit(moved, kinds).predict_proba(moved)
    assert np.allclose(*near, atol=0.02)  # the last digit of float32 differs, and training spreads it
    values = DIABETES[1]
    first = small(SidestepRegressor).fit(DIABETES[0], values).predict(DIABETES[0])
    second = small(SidestepRegressor).fit(DIABETES[0], 1e9 + 1e-3 * values).predict(DIABETES[0])
    assert np.abs(first - (second - 1e9) * 1e3).mean() < 0.1 * values.std()


def test_whole_weights_repeat_rows_and_the_order_of_rows_makes_no_difference():
    table, kinds = WINE
    weights = np.arange(len(kinds)) % 3
    weighted = small().fit(table, kinds, sample_weight=weights)
    rows = np.repeat(np.arange(len(kinds)), weights)[::-1]
    assert np.array_equal(weighted.predict_proba(table), small().fit(table[rows], kinds[rows]).predict_proba(table))
    light = small().fit(table, kinds, sample_weight=np.full(len(kinds), 0.5))
    assert np.array_equal(light.predict_proba(table), small().fit(table, kinds).predict_proba(table))


def test_class_weights_move_the_answers():
    table, kinds = WINE
    first = small(class_weight={0: 50.0, 1: 0.5, 2: 0.5}).fit(table, kinds)
    assert (first.predict(table) == 0).mean() > (small().fit(table, kinds).predict(table) == 0).mean()
    small(class_weight="balanced").fit(table, kinds)


def test_partial_fit_goes_on_where_a_pickled_or_saved_estimator_stood(tmp_path):
    table, kinds = WINE
    estimator = small().partial_fit(table[:60], kinds[:60], classes=[0, 1, 2])  # kinds[:60] are two of the three
    before = estimator.predict_proba(table)
    estimator.save(tmp_path / "model")
    copies = [pickle.loads(pickle.dumps(estimator)), SidestepClassifier.load(tmp_path / "model")]
    estimator.partial_fit(table, kinds)
    assert not np.array_equal(estimator.predict_proba(table), before)
    for copy in copies:
        assert np.array_equal(copy.predict_proba(table), before)
        assert np.array_equal(copy.partial_fit(table, kinds).predict_proba(table), estimator.predict_proba(table))
    with pytest.raises(InputError, match="the label 7 is none of the classes"):
        estimator.partial_fit(table, np.where(kinds == 2, 7, kinds))


@pytest.mark.parametrize("kind", [SidestepClassifier, SidestepRegressor])
def test_early_stopping_ends_with_the_net_of_the_best_pass(kind, tmp_path):
    table, targets = WINE if kind is SidestepClassifier else DIABETES
    early = {"early_stopping": True, "validation_fraction": 0.3, "epochs": 60}
    stopped = small(kind, **early, n_iter_no_change=4).fit(table, targets)
    scores = stopped.validation_scores_
    best = int(np.argmax(scores))  # the first of them
    assert stopped.n_iter_ == len(scores) == best + 5 < 60
    whole = small(kind, **early, n_iter_no_change=60).fit(table, targets)
    assert (whole.n_iter_, whole.validation_scores_[: best + 5]) == (60, scores)
    order = np.arange(len(targets))[::-1]
    assert np.array_equal(small(kind, **early, n_iter_no_change=4).fit(table[order], targets[order]).predict(table),
                          stopped.predict(table))  # fmt: skip
    stopped.save(tmp_path)
    loaded = kind.load(tmp_path)
    assert (loaded.n_iter_, loaded.validation_scores_) == (stopped.n_iter_, scores)
    assert np.array_equal(loaded.predict(table), stopped.predict(table))
    with pytest.raises(InputError, match="partial_fit is one pass"):
        stopped.partial_fit(table, targets)
    plain = small(kind).fit(table, targets)
    assert (plain.n_iter_, plain.validation_scores_, plain.partial_fit(table, targets).n_iter_) == (5, [], 6)


def test_the_score_of_early_stopping_is_that_of_the_held_out_rows():
    rows = Rows(np.repeat(np.arange(40.0), 2)[:, None], np.repeat([0, 1, 2], (40, 38, 2)), 3, np.full(80, 1.0))
    kept, held = rows.parted(0.25, seed=0)
    assert np.unique(held.targets, return_counts=True)[1].tolist() == [10, 10]  # the third class is one row, twice
    assert set(kept.features[:, 0]) | set(held.features[:, 0]) == set(range(40))
    assert not set(kept.features[:, 0]) & set(held.features[:, 0])
    assert len(kept.weights) + len(held.weights) == 80
    other, _ = rows.parted(0.25, seed=1)
    assert not np.array_equal(other.features, kept.features)
    table, kinds = WINE
    one = small(early_stopping=True, epochs=1).fit(table, kinds)
    hidden = one.columns_.encoded({str(i): column for i, column in enumerate(table.T)})
    _, held = Rows(hidden, kinds, 3).in_order().parted(0.1, seed=0)
    right = one._trained.predict(held.features).argmax(axis=1) == held.targets
    assert one.validation_scores_ == pytest.approx([right.mean()])


def test_weights_count_in_the_score_of_early_stopping():
    table, kinds = WINE
    settings = {"early_stopping": True, "validation_fraction": 0.3, "epochs": 3}
    light = small(class_weight={0: 1.0, 1: 1e-6, 2: 1e-6}, **settings).fit(table, kinds)
    assert light.score(table, kinds) < 0.8
    assert 0.9 < light.validation_scores_[-1] <= 1.00001  # of the rows that count, those of class 0


def test_partial_fit_takes_every_row_once_after_calls_of_other_sizes(monkeypatch):
    seen = []

    def spied(order, step, rows=BatchOrder.rows):
        found = rows(order, step)
        seen.extend(found.tolist())
        return found

    monkeypatch.setattr(BatchOrder, "rows", spied)
    table, kinds = WINE
    estimator = small(batch_size=16)
    for count in (96, 48, 64):  # 6, 3 and 4 steps: the last begins at step 9
        seen.clear()
        estimator.partial_fit(table[:count], kinds[:count], classes=[0, 1, 2])
        assert sorted(seen) == list(range(count)), count


def test_pickles_hold_tensors_and_json_alone():
    frame, answers = mixed()
    estimator = small(class_weight={"go": 2.0}).fit(frame, answers)
    state = estimator.__getstate__()
    assert {name: type(value) for name, value in state.items()} == {"tensors": bytes, "record": str}
    named = {text for code, text, _ in pickletools.genops(pickle.dumps(estimator, protocol=2)) if code.name == "GLOBAL"}
    assert {each.split()[0] for each in named} <= {"sidestep.integrations.sklearn", "copyreg", "__builtin__", "_codecs"}
    assert pickle.loads(pickle.dumps(clone(estimator))).get_params() == estimator.get_params()


def test_files_are_checked_and_not_overwritten(tmp_path):
    frame, answers = mixed()
    estimator = small().fit(frame, answers)
    estimator.save(tmp_path)
    with pytest.raises(InputError, match="holds an estimator already"):
        estimator.save(tmp_path)
    estimator.save(tmp_path, overwrite=True)
    loaded = SidestepClassifier.load(tmp_path)
    assert loaded.get_params() == estimator.get_params()
    assert loaded.predict(frame).tolist() == estimator.predict(frame).tolist()
    with pytest.raises(InputError, match="not a SidestepRegressor"):
        SidestepRegressor.load(tmp_path)
    file = tmp_path / "estimator.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError):
        SidestepClassifier.load(tmp_path)
    with pytest.raises(CheckpointError):
        SidestepClassifier.load(tmp_path / "nowhere")


def test_a_grid_over_rules_in_a_pipeline():
    table, kinds = WINE
    names = np.array(["Barolo", "Grignolino", "Barbera"])[kinds]
    frame = pandas.DataFrame(table)
    pipeline = make_pipeline(StandardScaler(), SidestepClassifier(epochs=3))
    grid = {"sidestepclassifier__rule": ["local-loss", rules.Backprop(net="mlp", hidden=(16,))]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(frame.rename(columns=str), names)
    assert search.best_score_ > 0.8


@pytest.mark.slow
def test_cross_validation_in_two_processes():
    table, kinds = WINE
    apart = cross_val_score(small(), table, kinds, cv=3, n_jobs=2)
    assert np.array_equal(apart, cross_val_score(small(), table, kinds, cv=3))


def test_regressors_give_one_column_or_several():
    table, values = DIABETES
    both = np.stack([values, -2 * values + 3], axis=1)
    estimator = small(SidestepRegressor, epochs=20).fit(table, both)
    assert estimator.predict(table).shape == (442, 2)
    assert estimator.score(table, both) > 0.3
    assert small(SidestepRegressor).fit(table, values).predict(table).shape == (442,)


@pytest.mark.parametrize(
    ("estimator", "table", "targets", "said"),
    [
        (SidestepClassifier("local-los"), *WINE, "there is no rule 'local-los'"),
        (SidestepClassifier(3), *WINE, "rule must be a rule's name"),
        (SidestepClassifier(random_state=1.5), *WINE, "random_state must be a whole number"),
        (SidestepClassifier(unknown="ignore"), *WINE, "unknown must be error or missing"),
        (SidestepClassifier(early_stopping=True, validation_fraction=0.9), *WINE, "validation_fraction must be above"),
        (SidestepClassifier(early_stopping=True, n_iter_no_change=1.5), *WINE, "n_iter_no_change must be a whole"),
        (SidestepClassifier(epochs=1.5), *WINE, "epochs must be a whole number, got 1.5"),
        (SidestepClassifier(early_stopping=True, n_iter_no_change=0), *WINE, "n_iter_no_change must lie between"),
        (SidestepClassifier(early_stopping=True), WINE[0][[0, 90]], WINE[1][[0, 90]], "needs two different rows"),
        (SidestepClassifier(epochs=0), *WINE, "epochs must lie between"),
        (SidestepClassifier(), WINE[0], np.zeros(178, int), "every label is of one class"),
        (SidestepClassifier(), WINE[0], np.linspace(0, 1, 178), "Unknown label type: continuous"),
        (SidestepRegressor(), WINE[0], np.full(178, 2.5), "every target is 2.5"),
        (SidestepRegressor(), WINE[0], np.full(178, "a"), "got 'a'; .*take SidestepClassifier"),
        (SidestepClassifier(), np.full((178, 2), np.inf), WINE[1], "column '0' holds infinity"),
        (SidestepClassifier(), np.array([[1], ["a"]] * 89, object), WINE[1], "mixes numbers with texts"),
        (SidestepClassifier(), np.full((178, 1), "2020-01-01", "M8[D]"), WINE[1], "holds times"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input_gets_one_sentence(estimator, table, targets, said):
    with pytest.raises(ValueError, match=said) as caught:
        estimator.fit(table, targets)
    assert "\n" not in str(caught.value) or "label type" in said
    with pytest.raises(NotFittedError):
        clone(estimator).predict(WINE[0])


def test_columns_that_changed_are_refused():
    frame, answers = mixed()
    estimator = small().fit(frame, answers)
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(frame.rename(columns={"size": "length"}))
    with pytest.raises(InputError, match="'size' held numbers in training, but holds texts now"):
        estimator.predict(frame.assign(size="large"))
    with pytest.raises(InputError, match="'colour' held categories in training, but holds numbers now"):
        estimator.predict(frame.assign(colour=1.0))


def test_rows_to_predict_may_be_alike_but_for_the_last_digit():
    table, kinds = WINE
    estimator = small().fit(table, kinds)
    alike = np.repeat(table[:1], 9, axis=0)
    alike[1:, 3] = np.nextafter(alike[1:, 3], 0)
    assert set(estimator.predict(alike)) == set(estimator.predict(table[:1]))


def test_a_regressor_by_name_fits_values_of_a_small_table_as_well_as_a_straight_line_does():
    scores = {"net": [], "line": []}
    for train, test in KFold(5, shuffle=True, random_state=7).split(DIABETES[0]):
        rows = [(each[train], each[test]) for each in DIABETES]
        scores["net"].append(SidestepRegressor().fit(rows[0][0], rows[1][0]).score(rows[0][1], rows[1][1]))
        scores["line"].append(Ridge(1e-3).fit(rows[0][0], rows[1][0]).score(rows[0][1], rows[1][1]))
    assert np.mean(scores["net"]) > np.mean(scores["line"]) - 0.04
    given = SidestepRegressor(rules.LocalLoss(hidden=(8,)), epochs=1).fit(*DIABETES)
    assert (given.rule_.hidden, given.rule_.norm) == ((8,), "batch")  # an object is taken as it is
