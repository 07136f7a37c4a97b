"""Files that are whole or absent, plain, and sealed: what a folder from anybody may hold, and what is refused."""

import errno
import json
import os
from pathlib import Path

import pytest

from sidestep import files
from sidestep.errors import CheckpointError

posix = pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")


def traps(folder: Path) -> dict[str, Path]:
    """Everything that may stand in the place of a file, by what it is."""
    (folder / "elsewhere").write_text("mine")
    found = {name: folder / name for name in ("link", "dangling", "folder", "pipe")}
    found["link"].symlink_to(folder / "elsewhere")
    found["dangling"].symlink_to(folder / "nowhere")
    found["folder"].mkdir()
    os.mkfifo(found["pipe"])
    return found


@posix
@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_nothing_but_a_plain_file_is_opened(tmp_path, kind):
    path = traps(tmp_path)[kind]
    words = {"link": "is a link", "dangling": "is a link", "folder": "is a folder", "pipe": "is a pipe"}[kind]
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT):
        with pytest.raises(CheckpointError, match=words):
            files.open_plain(path, flags)
    with pytest.raises(CheckpointError, match=words):
        files.check_plain(path)
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


@posix
def test_a_file_with_another_name_is_read_but_not_changed_in_place(tmp_path):
    (tmp_path / "one").write_text("mine")
    os.link(tmp_path / "one", tmp_path / "two")
    assert files.read_plain(tmp_path / "two") == b"mine"
    with pytest.raises(CheckpointError, match="2 names"):
        files.open_plain(tmp_path / "two", os.O_RDWR, alone=True)
    files.write_text(tmp_path / "two", "new")  # takes the name alone
    assert (tmp_path / "one").read_text() == "mine"


@posix
def test_a_link_that_waits_under_the_temporary_name_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / f"{files.TEMPORARY_PREFIX}file.{os.getpid()}").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    files.write_text(tmp_path / "file", "new")
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert (tmp_path / "file").read_text() == "new"
    assert not (tmp_path / "file").is_symlink()


def test_a_sealed_record_comes_back_and_every_change_of_it_is_found(tmp_path):
    path, record = tmp_path / "result.json", {"accuracy": 0.5, "by": {"a": [1, 2.5, None]}, "name": "ü"}
    files.write_json(path, record, indent=2)
    assert files.read_json(path) == record
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text)))  # laid out otherwise: says the same
    assert files.read_json(path) == record
    silent = 0
    for place in range(len(text)):
        for sign in '0z" }':
            path.write_text(text[:place] + sign + text[place + 1 :])
            try:
                silent += files.read_json(path) != record
            except CheckpointError:
                continue
    assert not silent
    for damage in ("", "[]", "3", text[:-5], "[" * 100_000):
        path.write_text(damage)
        with pytest.raises(CheckpointError, match="damaged"):
            files.read_json(path)


@posix
@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_a_folder_that_is_not_flushed_is_said_unless_the_system_cannot(tmp_path, monkeypatch, number, raised):
    real = os.fsync

    def fail_for_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}") or os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    if raised:
        with pytest.raises(CheckpointError, match="could not be flushed to the disk"):
            files.write_text(tmp_path / "file", "new")
    else:
        files.write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


@posix
def test_the_parent_of_every_new_folder_is_flushed(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files, "sync_folder", flushed.append)
    files.make_folder(tmp_path / "a/b/c")
    assert sorted(flushed) == [tmp_path, tmp_path / "a", tmp_path / "a/b"]
    files.make_folder(tmp_path / "a/b/c")
    assert len(flushed) == 3
