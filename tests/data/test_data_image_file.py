"""One picture file: every kind of pixels to the same array, what is lost is known, and what could hurt is refused."""

import os
import socket
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from sidestep import data
from sidestep.data import DataNotice, PictureForm
from sidestep.data.images.image_file import MOST_PIXELS, read_header, read_picture
from sidestep.errors import DataError, InputError

RNG = np.random.default_rng(5)
GREY, COLOUR = PictureForm(1), PictureForm(3)
PIXELS = RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)
SIXTEEN = RNG.integers(0, 65536, (5, 4), dtype=np.uint16)


def png(pixels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits, of which Pillow writes the grey ones alone."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_keep_their_range(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "a.pgm":
        file.write_bytes(b"P5 4 5 65535\n" + SIXTEEN.astype(">u2").tobytes())
    else:
        Image.fromarray(SIXTEEN).save(file)
    assert read_header(file).deep
    exact = SIXTEEN / 65535
    assert np.allclose(read_picture(file, PictureForm(1, "float32")).array, exact, atol=1e-7)
    assert np.array_equal(read_picture(file, GREY).array, np.rint(SIXTEEN / 257).astype(np.uint8))
    assert np.array_equal(
        read_picture(file, COLOUR).array, np.rint(SIXTEEN / 257).astype(np.uint8)[..., None] * [1, 1, 1]
    )


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_without_a_white_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    for read in (read_header, lambda path: read_picture(path, GREY)):
        with pytest.raises(DataError, match=rf"pixels of 32 bits \(mode {mode}\)"):
            read(tmp_path / "a.tif")


def test_sixteen_bits_of_colour_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(RNG.integers(0, 65536, (4, 4, 3), dtype=np.uint16), 2))
    header = read_header(tmp_path / "a.png")
    assert (header.halved, header.deep, header.grey) == (True, False, False)


def alpha(image: Image.Image) -> Image.Image:
    image.putalpha(Image.fromarray(np.array([[0] * 4, [255] * 4, [128] * 4, [255] * 4, [255] * 4], np.uint8)))
    return image


@pytest.mark.parametrize(
    ("image", "name", "options"),
    [
        (alpha(Image.fromarray(PIXELS)), "a.png", {}),
        (alpha(Image.fromarray(PIXELS)), "a.webp", {"lossless": True, "exact": True}),
        (alpha(Image.fromarray(PIXELS[..., 0])), "a.png", {}),
        (Image.fromarray(PIXELS).quantize(16), "a.png", {"transparency": 3}),
        (Image.fromarray(PIXELS).quantize(16), "a.gif", {"transparency": 3}),
        (Image.fromarray(PIXELS), "a.png", {"transparency": tuple(PIXELS[2, 1].tolist())}),
        (Image.fromarray(PIXELS[..., 0]), "a.png", {"transparency": int(PIXELS[2, 1, 0])}),
        (Image.fromarray(PIXELS[..., 0] > 128), "a.png", {"transparency": 0}),
    ],
)
def test_transparency_is_laid_on_white(tmp_path: Path, image: Image.Image, name: str, options: dict) -> None:
    image.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as opened:
        clear = np.asarray(opened.convert("RGBA")).astype(float)
    share = clear[..., 3:] / 255
    wanted = clear[..., :3] * share + 255 * (1 - share)
    found = read_picture(tmp_path / name, COLOUR)
    assert found.transparent
    assert np.abs(found.array - wanted).max() <= 1
    assert (found.array[share[..., 0] == 0] == 255).all()


def test_an_opaque_picture_is_left_as_it_is(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    image.putalpha(255)
    image.save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png", COLOUR)
    assert (found.transparent, found.array.tolist()) == (False, PIXELS.tolist())


@pytest.mark.parametrize(("mode", "name"), [("1", "a.png"), ("P", "a.png"), ("CMYK", "a.tif"), ("YCbCr", "a.tif")])
def test_modes_become_what_they_look_like(tmp_path: Path, mode: str, name: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    image.save(tmp_path / name)
    colour = np.asarray(image.convert("RGB"))
    assert np.array_equal(read_picture(tmp_path / name, COLOUR).array, colour)
    grey = np.asarray(image.convert("RGB").convert("L")).astype(int)
    assert np.abs(read_picture(tmp_path / name, GREY).array - grey).max() <= (2 if mode == "YCbCr" else 0)
    assert read_header(tmp_path / name).grey == (mode == "1")


def test_floats_are_bytes_over_255_and_stretched_alike(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    for size in (None, (3, 2)):
        whole = read_picture(tmp_path / "a.png", PictureForm(3, size=size)).array
        floats = read_picture(tmp_path / "a.png", PictureForm(3, "float32", size)).array
        assert (floats.dtype, floats.shape) == (np.float32, whole.shape)
        assert np.array_equal(floats, whole.astype(np.float32) / 255)


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_pages_are_counted_and_told(tmp_path: Path, ending: str) -> None:
    pages = [Image.new("RGB", (4, 5), colour) for colour in ("red", "green", "blue")]
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            Image.fromarray(RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)).save(tmp_path / kind / f"{number}.png")
    pages[0].save(tmp_path / "a" / f"many.{ending}", save_all=True, append_images=pages[1:])
    assert read_header(tmp_path / "a" / f"many.{ending}").pages == 3
    with pytest.warns(DataNotice, match=rf"1 file with several pages .*many\.{ending} has 3.*2 pages left out"):
        data.load(tmp_path)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def postscript(path: Path) -> None:
    Image.fromarray(PIXELS).save(path, format="EPS")


def bomb(path: Path) -> None:
    Image.new("1", (MOST_PIXELS // 1000 + 1, 1000)).save(path)


def larger_bomb(path: Path) -> None:  # more than Pillow itself warns of
    Image.new("1", (20_000, 5_000)).save(path)


def cut(path: Path) -> None:
    Image.fromarray(RNG.integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(path)
    os.truncate(path, 5000)


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pipe, "not a regular file"),
        (device, "not a regular file"),
        (listener, "not a regular file"),
        (postscript, "not an image in a format"),
        (bomb, "more than the 50,000,000"),
        (larger_bomb, "more than 50,000,000 pixels"),
        (cut, "not an image that can be read .*truncated"),
        (nowhere, "No such file"),
        (Path.mkdir, "a folder among the images"),
    ],
)
def test_what_could_hurt_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], message: str
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("another program was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    make(Path("cat.png"))

    def read() -> None:
        read_header(Path("cat.png"))
        read_picture(Path("cat.png"), COLOUR)

    with pytest.raises(DataError, match=rf"^cat\.png: .*{message}"):
        read()


def test_a_set_that_memory_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        for number in range(3):
            Image.fromarray(RNG.integers(0, 256, (100, 100, 3), dtype=np.uint8)).save(tmp_path / kind / f"{number}.png")
    monkeypatch.setattr("sidestep.data.images.folder.free_memory", lambda: 2 * 6 * 100 * 100 * 3)
    data.load(tmp_path)
    monkeypatch.setattr("sidestep.data.images.folder.free_memory", lambda: 2 * 6 * 100 * 100 * 3 - 1)
    with pytest.raises(DataError, match="6 images of 100 x 100 pixels take"):
        data.load(tmp_path)
    data.load(tmp_path, size=10)


@pytest.mark.parametrize("kind", [b"P6", b"P3"])
@pytest.mark.parametrize(("white", "told"), [(255, False), (15, False), (1023, True), (65535, True)])
def test_colours_of_more_than_8_bits_in_a_ppm_are_told(tmp_path: Path, kind: bytes, white: int, told: bool) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(3):
            values = [white * (number + 1) // 4] * 12
            wide = np.array(values, ">u2" if white > 255 else "u1").tobytes()
            body = wide if kind == b"P6" else " ".join(map(str, values)).encode()
            (tmp_path / label / f"{number}.ppm").write_bytes(kind + b" 2 2 %d\n" % white + body)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = data.load(tmp_path)
    assert found.image_shape == (3, 2, 2)
    assert any("16 bits for each colour (or some more than 8)" in str(each.message) for each in caught) is told


def test_a_link_that_leads_to_itself_is_named_as_a_file(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(3):
            Image.new("L", (2, 2), number).save(tmp_path / label / f"{number}.png")
    (tmp_path / "a/x.png").symlink_to("x.png")
    with pytest.raises(DataError, match=r"a/x\.png: not an image that can be read \(Too many levels"):
        data.load(tmp_path)


@pytest.mark.parametrize("size", [8.5, (8, 8), "8", True])
def test_a_size_is_one_whole_number(tmp_path: Path, size: object) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
    with pytest.raises(InputError, match="size must be one whole number of pixels"):
        data.load(tmp_path, size=size)  # type: ignore[arg-type]


def test_files_to_predict_whose_names_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    for name, message in (("x" * 300, "cannot be read"), ("loop.png", "cannot be read"), ("gone.png", "no such file")):
        with pytest.raises(DataError, match=message):
            data.read_images(tmp_path / name, (1, 4, 4))
