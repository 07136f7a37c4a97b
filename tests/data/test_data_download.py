"""Downloads against a small server here: mirrors, cut and changed files, retries, the cache, and the bar."""

import hashlib
import io
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests
from test_data_sets import idx

from sidestep.data.download import Remote, fetch, find_local
from sidestep.data.images.catalogue import KNOWN
from sidestep.data.loading import known_source
from sidestep.data.source import assemble
from sidestep.errors import DataError

CONTENT = np.random.default_rng(2).bytes(100_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves `files`; the first `cut` answers stop half way (with or without the whole length announced)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"/file.bin": CONTENT}
        self.cut = 0
        self.announce = True
        self.hold = threading.Event()  # answers stop half way until this is set
        self.hold.set()
        self.half = threading.Event()  # half of an answer is out
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                content = outer.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                if outer.announce:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                outer.cut, cut = outer.cut - 1, outer.cut > 0
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                outer.half.set()
                outer.hold.wait(20)
                if not cut:
                    self.wfile.write(content[len(content) // 2 :])

            def log_message(self, *words: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.hold.set()
    running.http.shutdown()
    running.http.server_close()


def remote(*urls: str, md5: str = MD5) -> Remote:
    return Remote("file.bin", md5, urls)


def test_a_file_is_fetched_once(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level = pooch.get_logger().level
    path = fetch(remote(server.url + "/file.bin"), tmp_path / "new" / "cache", progress=True)
    assert path.read_bytes() == CONTENT
    fetch(remote(server.url + "/file.bin"), tmp_path / "new" / "cache")
    assert len(server.asked) == 1
    assert capfd.readouterr() == ("", "")  # the bar is for terminals; pooch's own words are for nobody
    assert pooch.get_logger().level == level


@pytest.mark.parametrize("announce", [True, False])
def test_a_cut_download_is_fetched_again(server: Server, tmp_path: Path, announce: bool) -> None:
    server.cut, server.announce = 1, announce
    assert fetch(remote(server.url + "/file.bin"), tmp_path, pause=0).read_bytes() == CONTENT
    assert len(server.asked) == 2


@pytest.mark.parametrize("announce", [True, False])
def test_nothing_is_left_of_a_download_that_fails(server: Server, tmp_path: Path, announce: bool) -> None:
    server.cut, server.announce = 99, announce
    with pytest.raises(DataError, match=r"cannot download file\.bin(.|\n)*data_dir.*(.|\n)*digits"):
        fetch(remote(server.url + "/file.bin"), tmp_path, pause=0)
    assert list(tmp_path.iterdir()) == []


FETCH = """
import sys
from pathlib import Path
from sidestep.data.download import Remote, fetch
fetch(Remote("file.bin", sys.argv[1], (sys.argv[2],)), Path(sys.argv[3]), pause=0)
"""


def test_a_killed_download_leaves_nothing_once_the_next_has_begun(server: Server, tmp_path: Path) -> None:
    server.hold.clear()
    for _ in range(2):  # what they leave does not pile up
        server.half.clear()
        killed = subprocess.Popen([sys.executable, "-c", FETCH, MD5, server.url + "/file.bin", str(tmp_path)])
        assert server.half.wait(60)
        killed.kill()
        killed.wait()
        assert not (tmp_path / "file.bin").exists()
        assert len(list(tmp_path.iterdir())) == 1
    server.hold.set()
    assert fetch(remote(server.url + "/file.bin"), tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_what_another_process_is_downloading_is_not_touched(server: Server, tmp_path: Path) -> None:
    server.hold.clear()
    other = subprocess.Popen([sys.executable, "-c", FETCH, MD5, server.url + "/file.bin", str(tmp_path)])
    assert server.half.wait(60)
    (its_own,) = tmp_path.iterdir()
    with pytest.raises(DataError, match="cannot download"):
        fetch(remote(server.url + "/absent"), tmp_path, pause=0)
    assert list(tmp_path.iterdir()) == [its_own]
    server.hold.set()
    assert other.wait(60) == 0
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(list(tmp_path.iterdir())) == 1


def test_sha256_counts_where_it_is_known(server: Server, tmp_path: Path) -> None:
    right, wrong = hashlib.sha256(CONTENT).hexdigest(), "0" * 64
    url = (server.url + "/file.bin",)
    with pytest.raises(DataError, match="another sha256"):
        fetch(Remote("file.bin", MD5, url, wrong), tmp_path, pause=0)
    path = fetch(Remote("file.bin", "0" * 32, url, right), tmp_path)
    assert find_local(Remote("file.bin", "0" * 32, url, right), [tmp_path]) == path
    with pytest.raises(DataError, match="need sha256 0000"):
        find_local(Remote("file.bin", MD5, url, wrong), [tmp_path])


def test_a_cut_file_in_the_cache_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(CONTENT[:50_000])
    assert fetch(remote(server.url + "/file.bin"), tmp_path).read_bytes() == CONTENT


def test_a_changed_file_is_refused_and_the_old_one_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"older")
    with pytest.raises(DataError, match="not the original file"):
        fetch(remote(server.url + "/file.bin", md5="0" * 32), tmp_path, pause=0)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older"]


def test_mirrors_are_tried_in_order(server: Server, tmp_path: Path) -> None:
    server.files["/changed"] = b"an error page"
    urls = (
        "http://127.0.0.1:9/file.bin",
        *(f"{server.url}/{name}" for name in ("absent", "changed", "file.bin")),
    )
    assert fetch(remote(*urls), tmp_path, pause=0).read_bytes() == CONTENT
    assert server.asked == ["/absent", "/changed", "/file.bin"]
    with pytest.raises(DataError) as caught:
        fetch(remote(*urls[:3]), tmp_path / "other", pause=0, rounds=1)
    assert "\n" not in str(caught.value)
    tried = str(caught.value).partition(". Fetch it by other means")[0].split("; nor from ")
    for attempt, said in zip(tried, ("127.0.0.1:9", "404", "not the original"), strict=True):
        assert said in attempt


def test_a_folder_that_cannot_be_written_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot store file\.bin in .*file"):
        fetch(remote(server.url + "/file.bin"), tmp_path / "file" / "cache")


def test_the_bar_is_drawn_on_a_terminal(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fetch(remote(server.url + "/file.bin"), tmp_path, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "file.bin" in err
    assert "100.0/100.0 kB" in err


def test_local_files(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    folders = (tmp_path, tmp_path / "mnist")
    assert find_local(remote(), folders) is None
    (tmp_path / "mnist" / "file.bin").write_bytes(CONTENT)
    assert find_local(remote(), folders) == tmp_path / "mnist" / "file.bin"
    (tmp_path / "file.bin").write_bytes(b"of another set")
    another = hashlib.md5(b"of another set").hexdigest()
    assert find_local(remote(), folders, {another}) == tmp_path / "mnist" / "file.bin"
    (tmp_path / "file.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=r"file\.bin is not the whole original file \(99999 bytes"):
        find_local(remote(), folders)


def test_a_known_set_from_the_network(server: Server, tmp_path: Path) -> None:
    """All four files are fetched before training, so the test split cannot fail for want of a network."""
    grey, labels = np.random.default_rng(3).integers(0, 256, (30, 28, 28)), np.arange(30) % 10
    contents = [idx(grey), idx(labels), idx(grey[:5]), idx(labels[:5])]
    files = []
    for old, content in zip(KNOWN["mnist"].files[28], contents, strict=True):
        server.files[f"/mnist/{old.file}"] = content
        files.append(Remote(old.file, hashlib.md5(content).hexdigest(), (f"{server.url}/mnist/{old.file}",)))
    known = replace(KNOWN["mnist"], files={28: tuple(files)})
    mnist = assemble(known_source(known, cache=tmp_path))
    assert (len(mnist.train), len(mnist.validation)) == (27, 3)
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == sorted(file.file for file in files)
    server.files.clear()
    assert len(mnist.test) == 5
    assert len(assemble(known_source(known, cache=tmp_path)).train) == 27
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("there", "followed"), [("http://other.example/file.bin", False), ("ftp://other.example/f", False), ("/b", True)]
)
def test_a_redirection_from_https_to_anything_else_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, followed: bool
) -> None:
    asked = []

    def send(self: object, request: requests.PreparedRequest, **_: object) -> requests.Response:
        answer = requests.Response()
        asked.append(str(request.url))
        answer.url, answer.request, answer.raw = str(request.url), request, io.BytesIO(CONTENT)
        answer.status_code = 302 if len(asked) == 1 else 200
        answer.headers["location"] = there
        return answer

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    remote = Remote("file.bin", MD5, ("https://one.example/file.bin",))
    if followed:
        assert fetch(remote, tmp_path, rounds=1).read_bytes() == CONTENT
        assert asked == ["https://one.example/file.bin", "https://one.example/b"]
    else:
        with pytest.raises(DataError, match=f"leads on to {there}, which is not https"):
            fetch(remote, tmp_path, rounds=1)
        assert asked == ["https://one.example/file.bin"]
