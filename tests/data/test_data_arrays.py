"""What people pass as arrays and write into `.npz` files: taken as it is meant, or refused in words that do not lead
to wrong data; and what of it is told.
"""

import copy
import io
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sidestep import data, machine
from sidestep.data import npz_file
from sidestep.data.labels import check_class_names
from sidestep.errors import DataError

RNG = np.random.default_rng(4)
PIXELS = RNG.integers(0, 256, (60, 6, 5), dtype=np.uint8)
LABELS = np.arange(60) % 3


def write(path: Path, **arrays: object) -> Path:
    np.savez(path, **{"x_train": PIXELS, "y_train": LABELS, **arrays})
    return path


def silent_load(path: Path) -> data.DataSet:
    with warnings.catch_warnings():
        warnings.simplefilter("error", data.DataNotice)
        return data.load(path)


KEYS = {"test": ("x_test", "y_test"), "validation": ("x_val", "y_val")}


class TestKeys:
    @pytest.mark.parametrize(
        ("images", "labels"),
        [
            ("x_val", "y_val"),
            ("x_valid", "y_valid"),
            ("X_validation", "Y_validation"),
            ("valid_images", "valid_labels"),
            ("validation-images", "validation-labels"),
            ("valX", "valY"),
        ],
    )
    def test_a_validation_split_by_any_of_its_names_is_used(self, tmp_path: Path, images: str, labels: str) -> None:
        found = silent_load(write(tmp_path / "mine.npz", **{images: PIXELS[:17], labels: LABELS[:17]}))
        assert (len(found.train), len(found.validation), found.has_test) == (60, 17, False)
        assert torch.equal(found.validation.images[:, 0], torch.from_numpy(PIXELS[:17]))
        assert found.validation.labels.tolist() == LABELS[:17].tolist()

    @pytest.mark.parametrize(("images", "labels"), [("X_test", "Y_test"), ("testX", "testY"), ("test_data", "y_test")])
    def test_so_is_a_test_split(self, tmp_path: Path, images: str, labels: str) -> None:
        found = silent_load(write(tmp_path / "mine.npz", **{images: PIXELS[:12], labels: LABELS[:12]}))
        assert found.test.labels.tolist() == LABELS[:12].tolist()

    def test_other_arrays_are_told_and_not_used(self, tmp_path: Path) -> None:
        path = write(tmp_path / "mine.npz", x_vaildation=PIXELS[:3], mask=PIXELS)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("readme.txt", "hello")
        with pytest.warns(data.DataNotice, match="not used: mask, readme.txt, x_vaildation; used are x_train, y_train"):
            found = data.load(path)
        assert len(found.validation) == 6

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            ({"x_val": PIXELS, "y_val": LABELS, "x_valid": PIXELS}, "x_val and x_valid are both validation images"),
            ({"X_train": PIXELS}, "x_train and X_train are both train images"),
            ({"y_val": LABELS}, "y_val stands alone: needs"),
            ({"test_images": PIXELS}, "test_images stands alone: needs"),
            ({"class_names": ["a", "b", "c"], "classNames": ["a", "b", "c"]}, "are both class names"),
        ],
    )
    def test_two_keys_for_one_thing_and_half_a_split_are_refused(
        self, tmp_path: Path, extra: dict[str, object], message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            data.load(write(tmp_path / "mine.npz", **extra))


class TestUnits:
    CHANGES = pytest.mark.parametrize(
        "change",
        [lambda x: x * 255, lambda x: x * 2 - 1, lambda x: (x - x.mean()) / x.std(), lambda x: x + 5, lambda x: x / 16],
        ids=["255", "-1 to 1", "standardised", "shifted", "sixteenth"],
    )

    @CHANGES
    @pytest.mark.parametrize("split", ["test", "validation"])
    def test_a_split_in_other_units_is_told_when_it_is_loaded(self, tmp_path: Path, change, split: str) -> None:
        dark = (PIXELS / 255.0) ** 3  # mean .25, standard deviation .28
        other = dict(zip(KEYS[split], (change(dark)[:30], LABELS[:30]), strict=True))
        with pytest.warns(data.DataNotice, match=f"the {split} pixels have a mean of .*are they in other units"):
            data.load(write(tmp_path / "mine.npz", x_train=dark, **other))

    def test_the_same_units_are_not(self, tmp_path: Path) -> None:
        for images in (PIXELS, PIXELS / 255.0):
            arrays = {"x_test": images[:30], "y_test": LABELS[:30], "x_val": images[30:], "y_val": LABELS[30:]}
            silent_load(write(tmp_path / "mine.npz", x_train=images, **arrays))

    def test_bytes_of_another_range_are_told_too(self) -> None:
        with pytest.warns(data.DataNotice, match="of train 12.* in other units"):
            data.from_arrays(PIXELS, LABELS, PIXELS // 16, LABELS)

    @pytest.mark.parametrize("split", ["test", "validation"])
    def test_another_dtype_or_nan_is_refused_when_it_is_loaded(self, tmp_path: Path, split: str) -> None:
        floats = PIXELS / 255.0
        keys = KEYS[split]
        with pytest.raises(DataError, match=f"{split} images are torch.float32, those of train torch.uint8"):
            data.load(write(tmp_path / "mine.npz", **dict(zip(keys, (floats, LABELS), strict=True))))
        holed = floats.copy()
        holed[3, 2, 1] = np.nan
        with pytest.raises(DataError, match=rf"{split} images: 1 of 1800 pixels are NaN.*\(3, 2, 1\)"):
            data.load(write(tmp_path / "mine.npz", x_train=floats, **dict(zip(keys, (holed, LABELS), strict=True))))


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "message", "not_said"),
        [
            (np.eye(3)[LABELS], r"one-hot rows become labels with .argmax\(1\)", "several"),
            (np.eye(3, dtype=bool)[LABELS], r"argmax\(1\)", "several"),
            (
                np.array([[1, 1, 0], [0, 0, 1]])[LABELS % 2],
                "several labels per image: row 0 has 2.*targets='labels'",
                "argmax",
            ),
            (np.array([[1, 0, 0], [0, 0, 0]])[LABELS % 2], "several labels per image.*row 1 has 0", "argmax"),
            (np.array([[0.7, 0.3, 0]])[LABELS * 0], "probabilities .soft labels. are not supported", "argmax"),
            (RNG.normal(size=(60, 4)), "regression", "argmax"),
            (RNG.integers(0, 9, (60, 4)), "regression", "argmax"),
            (LABELS[None], r"ravel\(\) makes", "argmax"),
            (LABELS.reshape(60, 1, 1), "several labels", "argmax"),
            (LABELS.astype(float), r"convert them with .astype\('int64'\)", "regression"),
            (LABELS + 0.5, "0.5 at index 0.*no whole number.*regression.*mean nothing", "convert"),
            (np.where(LABELS, 1.0, np.nan), "nan at index 0", "convert"),
            (np.arange(60) * 3.0, "60 different values for 60 images.*regression", "astype"),
            (np.arange(60) * 3, "60 different values for 60 images.*regression", "unique"),
            (LABELS * 5, "without any 1; number them alike in all splits.*searchsorted", "regression"),
            (np.array(["cat", "dog", "owl"])[LABELS], "number them alike in all splits.*searchsorted", "astype"),
            (np.array([b"cat", b"dog", b"owl"])[LABELS], "number them alike", "astype"),
            (np.array(["cat", "dog", "owl"], dtype=object)[LABELS], "number them alike", "astype"),
            (LABELS.astype(object), r"of integers.*astype\('int64'\)", "unique"),
            (np.array([None] * 60), "of NoneType.*one integer for each image", "unique"),
            (LABELS.astype("datetime64[s]"), "one integer for each image", "astype"),
            (LABELS - 1, "got -1 at index 0; number the classes from 0", "unique"),
        ],
    )
    def test_what_is_no_class_of_one_image_is_named(self, labels: np.ndarray, message: str, not_said: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            data.from_arrays(PIXELS, labels)
        assert not_said not in str(caught.value)

    def test_nearly_as_many_classes_as_images_are_told(self) -> None:
        with pytest.warns(data.DataNotice, match="30 classes for 60 train images.*regression"):
            data.from_arrays(PIXELS, np.arange(60) % 30, validation=0)

    def test_the_hint_for_names_numbers_all_splits_alike(self) -> None:
        """The classes of a test split that lacks one must not move up."""
        train, test = np.array(["cat", "dog", "owl"])[LABELS], np.array(["owl", "cat"] * 5)
        names, y_train = np.unique(train, return_inverse=True)
        found = data.from_arrays(PIXELS, y_train, PIXELS[:10], np.searchsorted(names, test), class_names=names)
        assert [found.class_names[label] for label in found.test.labels.tolist()] == test.tolist()


class TestClassNames:
    @pytest.mark.parametrize(
        ("given", "names"),
        [
            (np.array(["[red]", "[/dog]", "c"]), ("[red]", "[/dog]", "c")),
            (np.array([b"cat", b"dog", "œuf".encode()]), ("cat", "dog", "œuf")),
            (np.array(["кошка", "犬", "chien d'été"]), ("кошка", "犬", "chien d'été")),
            (np.array([10, 20, 30]), ("10", "20", "30")),
            (np.array([["a", "b", "c"]]), ("a", "b", "c")),
            (np.array(["a", "b", "c", "d"]), ("a", "b", "c", "d")),
        ],
    )
    def test_they_are_taken_as_they_are(self, tmp_path: Path, given: np.ndarray, names: tuple[str, ...]) -> None:
        assert silent_load(write(tmp_path / "mine.npz", class_names=given)).class_names == names
        if given.ndim == 1:
            assert data.from_arrays(PIXELS, LABELS, class_names=list(given)).class_names == names

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (["cat", "dog", "cat"], "classes 0 and 2 have the same name, 'cat'"),
            (["\u00e9", "e\u0301", "c"], "classes 0 and 1 have the same name"),
            (["cat", "", "dog"], "class 1 has no name"),
            (["cat", " \t", "dog"], "class 1 has no name"),
            (["cat", "dog"], "labels must be 0 to 1, for 2 classes; label 2"),
            ([1.5, 2.5, 3.5], "class_names must be text"),
            ([b"\xff\xfe", b"b", b"c"], "bytes in UTF-8"),
        ],
    )
    def test_names_that_do_not_tell_classes_apart_are_refused(
        self, tmp_path: Path, given: list[object], message: str
    ) -> None:
        with pytest.raises(DataError, match=message):
            data.load(write(tmp_path / "mine.npz", class_names=np.array(given)))
        with pytest.raises(DataError, match=message):
            data.from_arrays(PIXELS, LABELS, class_names=given)

    @pytest.mark.parametrize("given", ["cat", {0: "cat", 1: "dog", 2: "owl"}, {"cat", "dog", "owl"}, 3])
    def test_what_has_no_order_is_no_list_of_names(self, given: object) -> None:
        with pytest.raises(DataError, match="must be a list of names"):
            data.from_arrays(PIXELS, LABELS, class_names=given)

    def test_what_cannot_be_written_down_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"class 1.*is not valid text"):
            check_class_names(("a", "b\udcff"), "mine")


class TestForms:
    GREY = torch.from_numpy(PIXELS)

    @pytest.mark.parametrize(
        "given",
        [
            GREY,
            list(GREY),
            tuple(GREY.float().requires_grad_()),
            GREY.float().requires_grad_(),
            GREY.to_sparse(),
            GREY.bfloat16(),
            list(PIXELS),
            PIXELS.tolist(),
            PIXELS.astype(">i4"),
            PIXELS.astype(">f8"),
            np.asfortranarray(PIXELS),
            PIXELS[::-1][::-1],
            np.ma.masked_array(PIXELS),
        ],
        ids=lambda given: f"{type(given).__name__} {getattr(given, 'dtype', '')}",
    )
    def test_array_likes_are_taken(self, given: object) -> None:
        found = data.from_arrays(given, list(torch.from_numpy(LABELS)), validation=0)
        exact = getattr(given, "dtype", None) is not torch.bfloat16  # which has 8 bits for the digits
        assert torch.allclose(found.train.images[:, 0].float(), self.GREY.float(), atol=0 if exact else 1)
        assert found.train.labels.tolist() == LABELS.tolist()

    def test_a_memory_map_is_copied(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", PIXELS)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
        found = data.from_arrays(mapped, LABELS, mapped, LABELS, validation=0)
        mapped[:] = 0
        assert torch.equal(found.train.images[:, 0], self.GREY)
        assert torch.equal(found.test.images[:, 0], self.GREY)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (torch.utils.data.TensorDataset(GREY, torch.from_numpy(LABELS)), r"TensorDataset.*\*dataset.tensors"),
            (None, "need an array, got NoneType"),
            ((pixel for pixel in PIXELS), "need an array, got generator"),
            (GREY.to("meta"), "cannot be a numpy array"),
            ([GREY[0], GREY[1, :3]], "shapes differ"),
            (np.ma.masked_equal(PIXELS, PIXELS[0, 0, 0]), "masked"),
            (np.array([*PIXELS, None], dtype=object), "numpy.stack"),
            (PIXELS > 100, r"astype\('uint8'\) \* 255"),
        ],
        ids=lambda given: type(given).__name__,
    )
    def test_what_is_no_array_is_refused(self, given: object, message: str) -> None:
        with pytest.raises(DataError, match=message):
            data.from_arrays(given, LABELS)


class TestCopies:
    @pytest.mark.parametrize("kind", ["digits", "npz", "arrays"])
    def test_data_sets_are_pickled_and_copied_with_their_test_split(self, tmp_path: Path, kind: str) -> None:
        path = write(tmp_path / "mine.npz", x_test=PIXELS[:9], y_test=LABELS[:9])
        makers = {
            "digits": lambda: data.load("digits"),
            "npz": lambda: data.load(path),
            "arrays": lambda: data.from_arrays(PIXELS, LABELS, PIXELS[:9], LABELS[:9]),
        }
        found = makers[kind]()
        stored, moved = pickle.dumps(found), pickle.dumps(found.to("cpu"))
        for again in (pickle.loads(stored), copy.deepcopy(found), pickle.loads(moved)):
            assert torch.equal(again.train.images, found.train.images)
            assert torch.equal(again.test.images, found.test.images)
            assert (again.mean, again.class_names) == (found.mean, found.class_names)


def member(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def described(shape: str, kind: str = "|u1") -> bytes:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()


class TestFilesFromAnybody:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "cannot be read"),
            (b"hello, no array", "cannot be read"),
            (member(b"{'descr': '|u1', 'shape': (60,"), "cannot be read"),
            (member(b"{" * 200 + b"\n"), "cannot be read"),
            (member(b"(" * 9000 + b"\n"), "cannot be read"),
            (member(b"{'descr': '\xe9'}\n"), "cannot be read"),
            (member(described("(60, 6, 5)"), b"short"), "says .*1,800 bytes, but has 5"),
            (member(described("(10**9,)")), "cannot be read"),
            (member(described("(1000000000000000000,)")), "bytes, but has 0"),
            (member(described("(-1, 6, 5)")), "no array of numbers"),
            (member(described("(1000000000000,)", "|V0")), "no array of numbers"),
            (member(described("(2,)", "|O"), b"xx"), "Python objects"),
            (b"\x93NUMPY\x03\x00" + bytes(8), "of a form that is not read"),
            (b"\x93NUMPY\x09\x09" + bytes(8), "cannot be read|not read here"),
        ],
    )
    @pytest.mark.parametrize("key", ["x_train", "y_test"])
    def test_a_member_that_is_no_array_is_named(self, tmp_path: Path, key: str, content: bytes, message: str) -> None:
        path = tmp_path / "mine.npz"
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS, "y_test": LABELS}.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                archive.writestr(f"{name}.npy", content if name == key else buffer.getvalue())
        with pytest.raises(DataError, match=f"(?s)mine.npz: {key}.*({message})"):
            data.load(path)

    def test_an_array_larger_than_the_free_memory_is_refused_before_it_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "bomb.npz"
        np.savez_compressed(path, x_train=np.zeros((60, 300, 300), np.uint8), y_train=LABELS)
        assert path.stat().st_size < 10_000
        monkeypatch.setattr(npz_file, "free_memory", lambda: 5_000_000)
        monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **k: pytest.fail("it was read"))
        with pytest.raises(DataError, match=r"x_train needs 0.0 GB of memory, and 0.0 GB are free"):
            data.load(path)

    def test_free_memory_is_that_of_the_system_or_of_the_container(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(machine, "CGROUP", tmp_path)
        assert machine.free_memory() is None
        (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4 kB\n")
        assert machine.free_memory() == 4096
        (tmp_path / "memory.max").write_text("max\n")
        (tmp_path / "memory.current").write_text("1000\n")
        assert machine.free_memory() == 4096
        (tmp_path / "memory.max").write_text("3000\n")
        assert machine.free_memory() == 2000

    def test_members_of_one_name_or_of_no_array(self, tmp_path: Path) -> None:
        path = write(tmp_path / "mine.npz")
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            archive.writestr("x_train.npy", b"another")
        with pytest.raises(DataError, match="two arrays called 'x_train'"):
            data.load(path)
        with zipfile.ZipFile(tmp_path / "none.npz", "w"):
            pass
        with pytest.raises(DataError, match="found none"):
            data.load(tmp_path / "none.npz")
        with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
            archive.writestr("x_train", "1 2 3")
        with pytest.raises(DataError, match="found x_train"):
            data.load(tmp_path / "text.npz")

    def test_images_to_predict_are_found_by_their_key_in_capitals_too(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "mine.npz", X_test=PIXELS[:7], other=LABELS)
        assert torch.equal(data.read_images(tmp_path / "mine.npz", (1, 6, 5))[:, 0], torch.from_numpy(PIXELS[:7]))

    def test_an_encrypted_or_strangely_packed_member_is_one_sentence(self, tmp_path: Path) -> None:
        path = write(tmp_path / "mine.npz")
        raw = bytearray(path.read_bytes())
        for flag_or_method, value in ((6, 1), (8, 99)):  # in the local header; two further on in the directory
            changed = bytearray(raw)
            changed[flag_or_method] = value
            changed[raw.index(b"PK\x01\x02") + flag_or_method + 2] = value
            path.write_bytes(changed)
            with pytest.raises(DataError, match="x_train cannot be read"):
                data.load(path)

    def test_places_that_are_no_file(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", PIXELS)
        (tmp_path / "folder.npz").mkdir()
        for path in ("x.npy", "folder.npz", "n" * 300 + ".npz", "a" * 300 + "/b.npz", "nul\0.npz", "\udcff.npz"):
            with pytest.raises(DataError):
                data.load(tmp_path / path)


class TestNamesAndLabelsThatDoNotBeginAtOneNumber:
    def test_labels_from_1_with_a_name_for_each_class(self) -> None:
        for labels in (LABELS + 1, (LABELS + 1)[:, None]):
            with pytest.raises(DataError, match=r"labels are 1 to 3, for 3 classes.*subtract 1 from them"):
                data.from_arrays(PIXELS, labels, class_names=["a", "b", "c"])

    def test_a_first_class_without_images_is_told_and_another_is_not(self) -> None:
        with pytest.warns(data.DataNotice, match=r"labels begin at 1, so that no image shows a, and label 1 .* for b:"):
            assert data.from_arrays(PIXELS, LABELS + 1, class_names=["a", "b", "c", "d"]).classes == 4
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data.from_arrays(PIXELS, LABELS, class_names=["a", "b", "c", "d"])

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (np.array("abc"), "must be a list of names, one for each class, got 'abc'"),
            (np.array([], dtype=str), "must name two classes or more, got 0"),
            (["only"], "must name two classes or more, got 1"),
        ],
    )
    def test_too_few_names(self, names: object, message: str) -> None:
        with pytest.raises(DataError, match=f"class_names {message}"):
            data.from_arrays(PIXELS, LABELS, class_names=names)  # type: ignore[arg-type]

    def test_labels_that_are_missing_are_not_called_regression(self) -> None:
        with pytest.raises(DataError, match=r"nan at index 3.*leave out images without a label") as caught:
            data.from_arrays(PIXELS, np.where(np.arange(len(LABELS)) == 3, np.nan, LABELS))
        assert "regression" not in str(caught.value)
