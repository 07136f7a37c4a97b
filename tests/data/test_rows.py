"""Memory-mapped files: what stays in them is trained on to the bits of the same arrays in memory."""

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sidestep import Options, data, train
from sidestep.cli import main
from sidestep.data import rows as module
from sidestep.data.images.pixel_scale import moments
from sidestep.data.rows import Rows, blocks, is_mapped
from sidestep.data.sameness import report_sameness
from sidestep.data.splits import Split
from sidestep.errors import DataError, InputError
from sidestep.rules import SPSA, Backprop, NoPropDT

N = 300
RANDOM = np.random.default_rng(3)
CLASSES = np.arange(N) % 3
ARRAYS = {
    "grey": RANDOM.integers(0, 256, (N, 5, 6), dtype=np.uint8),
    "channels last": RANDOM.integers(0, 256, (N, 5, 6, 3), dtype=np.uint8),
    "bytes in int64": RANDOM.integers(0, 256, (N, 3, 4, 5)),
    "floats": RANDOM.normal(size=(N, 3, 4, 5)),
    "half": RANDOM.normal(size=(N, 1, 4, 5)).astype(np.float16),
    "table": RANDOM.normal(5, 2, size=(N, 7)),
    "integers": RANDOM.integers(-50, 50, (N, 7), dtype=np.int16),
}


def mapped(folder: Path, array, mode="r"):
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, array)
    return np.load(path, mmap_mode=mode)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that these small arrays have several blocks, and several turns of pages."""
    monkeypatch.setattr(module, "_BLOCK", 256)
    monkeypatch.setattr(module, "_PAGE", 64)
    monkeypatch.setattr(module, "_PAGES", 2)


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("targets", ["classes", "values"])
def test_training_has_the_bits_of_the_same_data_in_memory(kind, targets, tmp_path):
    array = ARRAYS[kind]
    wanted = CLASSES if targets == "classes" else RANDOM.normal(size=(N, 2))
    given = [array, mapped(tmp_path, array)]
    assert is_mapped(given[1])
    sets = [data.from_arrays(x, wanted, x[:40], wanted[:40], targets=targets, validation=0.2) for x in given]
    assert isinstance(sets[1].train.images, Rows)
    assert isinstance(sets[1].test.images, Rows)
    assert sets[0].mean == sets[1].mean
    assert sets[0].std == sets[1].std
    runs = [train(Backprop(net="mlp", hidden=(4,)), each, Options(steps=9, batch=32)) for each in sets]
    first, second = (run.net.state_dict() for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    kept = [{k: v for k, v in run.result.items() if k not in ("seconds", "peak_memory_bytes")} for run in runs]
    assert kept[0] == kept[1]


def test_a_run_goes_on_with_either(tmp_path):
    array = ARRAYS["floats"]
    for number, (first, second) in enumerate([(array, mapped(tmp_path, array)), (mapped(tmp_path, array), array)]):
        weights = []
        for more in (first, second):
            folder = tmp_path / f"run{number}{len(weights)}"
            train(Backprop(net="linear"), data.from_arrays(first, CLASSES), Options(steps=3, out=folder))
            found = train(
                Backprop(net="linear"), data.from_arrays(more, CLASSES), Options(steps=6, out=folder, resume=True)
            )
            weights.append(found.net.state_dict())
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("own", [False, True])
def test_tokens_stay_in_their_file(own, padding, tmp_path):
    ids = RANDOM.integers(0, 9, (N, 8), dtype=np.uint16)
    wanted = np.where(ids > 6, -100, ids.astype(np.int32)) if own else None
    sets = [
        data.from_tokens(x, y, vocabulary=9, padding=padding)
        for x, y in ((ids, wanted), (mapped(tmp_path, ids), None if wanted is None else mapped(tmp_path, wanted)))
    ]
    assert isinstance(sets[1].train.images, Rows)
    assert isinstance(sets[1].train.labels, Rows)
    for one, other in zip((sets[0].train, sets[0].validation), (sets[1].train, sets[1].validation), strict=True):
        assert torch.equal(one.images, other.images[:])
        assert torch.equal(one.labels, other.labels[:])
    nets = []
    for each in sets:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9))
        nets.append(train(SPSA(), each, Options(steps=4), model=model).net.state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_predictions_stay_in_batches(tmp_path):
    array = ARRAYS["channels last"]
    run = train(Backprop(net="linear"), data.from_arrays(array, CLASSES), Options(steps=3))
    assert torch.equal(run.predict(array), run.predict(mapped(tmp_path, array)))


class TestWhichAreMapped:
    def test_what_can_be_written_to_is_copied(self, tmp_path):
        array = ARRAYS["table"]
        for mode in ("r+", "c"):
            assert isinstance(data.from_arrays(mapped(tmp_path, array, mode), CLASSES).train.images, torch.Tensor)

    def test_a_part_of_a_map_is_one(self, tmp_path):
        whole = mapped(tmp_path, ARRAYS["table"])
        found = data.from_arrays(whole[10:200:2, 1:4], CLASSES[10:200:2], validation=0)
        assert torch.equal(found.train.images[:], torch.from_numpy(ARRAYS["table"][10:200:2, 1:4]).float())

    def test_a_read_only_view_of_one_that_is_written_to_is_none(self, tmp_path):
        view = mapped(tmp_path, ARRAYS["table"], "r+")[:]
        view.flags.writeable = False
        assert not is_mapped(view)


class TestRows:
    rows = Rows(np.arange(40.0).reshape(20, 2), lambda part, where: torch.from_numpy(part.copy()), "numbers")
    tensor = torch.arange(40.0, dtype=torch.float64).view(20, 2)

    @pytest.mark.parametrize(
        "chosen", [slice(3, 9), slice(0, 0), torch.tensor([4, 0, 19, 4]), torch.tensor([], dtype=torch.int64)]
    )
    def test_they_are_the_rows_of_the_tensor(self, chosen):
        assert torch.equal(self.rows[chosen], self.tensor[chosen])
        part = self.rows.part(chosen)
        assert torch.equal(part[:], self.tensor[chosen])
        assert part.shape == self.tensor[chosen].shape
        assert torch.equal(part.part(slice(1, 3))[:], self.tensor[chosen][1:3])

    def test_blocks_are_all_rows(self, monkeypatch):
        monkeypatch.setattr(module, "_BLOCK", 6)
        assert [len(block) for block in blocks(self.rows)] == [3] * 6 + [2]
        assert torch.equal(torch.cat(list(blocks(self.rows))), self.tensor)

    def test_a_set_can_be_pickled(self, tmp_path):
        found = data.from_arrays(mapped(tmp_path, ARRAYS["table"]), CLASSES)
        again = pickle.loads(pickle.dumps(found))
        assert torch.equal(found.train.images[:], again.train.images[:])

    def test_pages_are_let_go_of(self, tmp_path, monkeypatch):
        released = []
        monkeypatch.setattr(module, "_release", released.append)
        mapped_rows = Rows(mapped(tmp_path, ARRAYS["table"]), lambda part, where: torch.from_numpy(part.copy()), "x")
        released.clear()
        _ = mapped_rows[torch.tensor([0, 100, 200, 50, 51])]  # each of 56 bytes, and so on a page of its own, or nearly
        assert len(released) >= 3


class TestWhatIsWrong:
    def test_pixels_that_are_no_numbers_are_named_with_their_rows(self, tmp_path):
        array = ARRAYS["floats"].copy()
        array[123] = np.nan
        with pytest.raises(
            DataError, match=r"train images, rows 120 to 123: 60 of 240 pixels are NaN.* \(3, 0, 0, 0\)"
        ):
            data.from_arrays(mapped(tmp_path, array), CLASSES)

    def test_columns_that_are_no_numbers(self, tmp_path):
        array = ARRAYS["table"].copy()
        array[200, 3] = np.inf
        with pytest.raises(DataError, match="in column 3"):
            data.from_arrays(mapped(tmp_path, array), CLASSES)

    def test_columns_that_float32_cannot_hold_are_told_as_in_memory(self, tmp_path):
        array = ARRAYS["table"].copy()
        array[:, 2] += 1e10
        said = []
        for given in (array, mapped(tmp_path, array)):
            with pytest.raises(DataError, match="column 2 lies around") as error:
                data.from_arrays(given, CLASSES)
            said.append(str(error.value))
        assert said[0] == said[1]

    def test_tokens_beyond_the_vocabulary(self, tmp_path):
        ids = np.zeros((N, 8), dtype=np.uint16)
        ids[77, 5] = 9
        with pytest.raises(DataError, match=r"rows 72 to 107: token ids must be 0 to 8.*got 9 in row 5 at place 5"):
            data.from_tokens(mapped(tmp_path, ids), vocabulary=9)

    def test_a_rule_that_looks_at_all_images_at_once_says_so(self, tmp_path):
        found = data.from_arrays(mapped(tmp_path, ARRAYS["grey"]), CLASSES)
        with pytest.raises(InputError, match="embedding = prototype looks at all training inputs at once"):
            train(NoPropDT(blocks=1, embedding="prototype"), found, Options(steps=1))

    @pytest.mark.parametrize("case", ["alike", "class alike", "blank", "nothing"])
    def test_images_that_say_nothing_are_told_as_in_memory(self, case, tmp_path):
        array = ARRAYS["grey"].copy()
        if case == "alike":
            array[:] = array[0]
        elif case == "class alike":
            array[CLASSES == 1] = array[0]
        elif case == "blank":
            array[CLASSES == 2] = np.arange(100, dtype=np.uint8)[:, None, None]
        said = []
        for given in (array, mapped(tmp_path, array)):
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                data.from_arrays(given, CLASSES)
            said.append(sorted(str(warning.message) for warning in told))
        assert said[0] == said[1]
        assert bool(said[0]) == (case != "nothing")


def test_moments_of_many_blocks_are_those_of_all():
    tensor = torch.from_numpy(ARRAYS["floats"]).float()
    found = moments(tensor)
    assert found.mean == pytest.approx(tensor.double().mean(dim=(0, 2, 3)).tolist())
    assert found.variance == pytest.approx(tensor.double().var(dim=(0, 2, 3), correction=0).tolist())


def test_sameness_needs_no_walk_of_a_class(tmp_path):
    """One walk through the file, whatever the number of classes."""
    found = data.from_arrays(mapped(tmp_path, ARRAYS["grey"]), CLASSES, validation=0).train
    read = []

    class Counting(Rows):
        def __getitem__(self, chosen):
            read.append(chosen)
            return super().__getitem__(chosen)

    found.images.__class__ = Counting
    report_sameness("x", Split(found.images, found.labels), ("a", "b", "c"))
    assert len(read) == 1 + len(list(blocks(found.images)))


class TestFolders:
    @staticmethod
    def written(folder, **arrays):
        folder.mkdir()
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        return folder

    def test_they_are_the_sets_of_a_npz_with_the_same_arrays(self, tmp_path):
        arrays = {"x_train": ARRAYS["grey"], "y_train": CLASSES, "x_test": ARRAYS["grey"][:40], "y_test": CLASSES[:40],
                  "class_names": np.array(["a", "b", "c"])}  # fmt: skip
        np.savez(tmp_path / "set.npz", **arrays)
        one, other = data.load(tmp_path / "set.npz"), data.load(self.written(tmp_path / "set", **arrays))
        assert isinstance(other.train.images, Rows)
        for first, second in ((one.train, other.train), (one.validation, other.validation), (one.test, other.test)):
            assert torch.equal(first.images, second.images[:])
            assert torch.equal(first.labels, second.labels)
        assert (one.class_names, one.mean, one.std) == (other.class_names, other.mean, other.std)

    def test_the_command_line_trains_on_one_and_goes_on(self, tmp_path, capsys):
        folder = self.written(tmp_path / "set", x_train=ARRAYS["table"], y_train=CLASSES)
        place = ["--out", str(tmp_path / "run"), "--json"]
        main(["train", "backprop", "--net", "mlp", "--data", str(folder), "--steps", "3", *place])
        main(["train", "backprop", "--steps", "5", "--resume", *place])
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 5

    def test_one_without_a_pair_says_what_is_needed(self, tmp_path):
        with pytest.raises(DataError, match="needs x_train and y_train"):
            data.load(self.written(tmp_path / "set", x_train=ARRAYS["grey"]))

    def test_damaged_files_and_objects_are_refused(self, tmp_path):
        folder = self.written(tmp_path / "set", x_train=ARRAYS["grey"], y_train=CLASSES)
        whole = (folder / "x_train.npy").read_bytes()
        (folder / "x_train.npy").write_bytes(whole[:-5])
        with pytest.raises(DataError, match="damaged or cut short"):
            data.load(folder)
        np.save(folder / "x_train.npy", np.array([{}] * N, dtype=object))
        with pytest.raises(DataError, match="Python objects, which can run code"):
            data.load(folder)
