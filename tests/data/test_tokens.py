"""Rows of token ids: what follows what, padding that does not count, and ids that no vocabulary has."""

import pickle

import numpy as np
import pytest
import torch

from sidestep import data
from sidestep.data.objective import IGNORED
from sidestep.data.task import Task
from sidestep.errors import DataError, InputError

ROWS = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 2, 0], [2, 3, 0, 0]]


class TestTokens:
    def test_the_target_is_the_token_that_follows(self):
        found = data.from_tokens(ROWS, vocabulary=4, validation=0).train
        assert found.images.tolist() == [row[:-1] for row in ROWS]
        assert found.labels.tolist() == [row[1:] for row in ROWS]

    def test_padding_does_not_count(self):
        found = data.from_tokens(ROWS, vocabulary=4, padding=0, validation=0).train
        assert found.labels[3].tolist() == [3, IGNORED, IGNORED]
        given = data.from_tokens(ROWS, [[1, 2, 3, IGNORED]] * 4, vocabulary=4, validation=0).train
        assert given.labels[0].tolist() == [1, 2, 3, IGNORED]

    def test_a_class_for_each_row(self):
        found = data.from_tokens(ROWS, [0, 1, 0, 1], vocabulary=4, targets="classes", validation=0)
        task = Task.of(found)
        assert (task.inputs, task.targets, task.shape, task.classes) == ("tokens", "classes", (4,), 2)
        assert torch.equal(task.prepare(found.train.images), found.train.images)  # ids are not scaled

    def test_a_set_can_be_pickled(self):
        found = data.from_tokens(ROWS, None, ROWS, vocabulary=4, validation=0)
        again = pickle.loads(pickle.dumps(found))
        assert torch.equal(again.test.labels, found.test.labels)

    @pytest.mark.parametrize(
        ("rows", "named", "error", "said"),
        [
            ([[0, 1], [2, 9]], {}, DataError, "must be 0 to 3, for a vocabulary of 4, got 9 in row 1 at place 1"),
            ([[0, 1], [2, -1]], {}, DataError, "got -1 in row 1"),
            ([[0.5, 1.0]], {}, DataError, "integers of shape"),
            ([0, 1, 2], {}, DataError, "integers of shape"),
            ([[1]], {}, DataError, "two tokens or more"),
            (ROWS, {"targets": "classes"}, InputError, "targets that are classes have to be given"),
            (ROWS, {"targets": "words"}, InputError, "tokens, classes, labels or values"),
            (ROWS, {"validation": 0.9}, InputError, "from 0 to 0.5"),
            (ROWS, {"validation": "0.1"}, InputError, "from 0 to 0.5"),
            (ROWS, {"y_train": np.zeros((4, 2), int)}, DataError, "one target for each token"),
        ],
    )
    def test_bad_rows_are_refused(self, rows, named, error, said):
        with pytest.raises(error, match=said):
            data.from_tokens(rows, **{"vocabulary": 4, "validation": 0, **named})


class TestText:
    def test_windows_follow_each_other_and_parts_do_not_meet(self):
        text = "".join(chr(97 + index % 26) for index in range(1000))
        found = data.from_text(text, length=10, validation=0.2, test=0.1)
        ids = [sorted(set(text)).index(sign) for sign in text]
        assert found.train.images.flatten().tolist() == ids[:690]  # of 700, one token follows the last window
        assert found.train.labels.flatten().tolist() == ids[1:691]
        assert found.validation.images.flatten().tolist() == ids[700:890]
        assert found.test.images.flatten().tolist() == ids[900:990]

    def test_a_text_too_short_is_refused(self):
        with pytest.raises(DataError, match="no window of 64"):
            data.from_text("short")


@pytest.mark.parametrize("shares", [{"validation": -0.1}, {"validation": 0.7, "test": 0.7}, {"test": "a tenth"}])
def test_shares_of_a_text_that_would_put_its_test_part_into_train_are_refused(shares):
    with pytest.raises(InputError, match=r"shares of the text from 0 to 0\.5"):
        data.from_text("to be or not to be, that is the question", length=4, **shares)
