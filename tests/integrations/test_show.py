"""`sidestep show` over HTTP, and in a browser where there is one."""

import http.client
import io
import json
import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep.cli import main
from sidestep.errors import InputError
from sidestep.integrations.show import Shown
from sidestep.integrations.show_server import MOST_BYTES, show_server
from sidestep.rules import SPSA, LocalLoss, NeuralODE, NoiseStep, NoPropCT, NoPropDT, NoPropFM
from sidestep.steplog import rebuild
from sidestep.training import Options, load_run, train
from tests.browser import CHROMIUM, Browser

RULES = {
    "stack": NoPropDT(blocks=3),
    "heads": LocalLoss(hidden=(16, 16)),
    "log": SPSA(hidden=(8,), pairs=4),
    "diffusion": NoPropCT(steps=3),
    "flow": NoPropFM(steps=3),
    "velocity": NoPropFM(steps=40, prediction="velocity", loss="paper"),
    "ode": NeuralODE(steps=3),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("shown")
    for name, rule in RULES.items():
        train(rule, "digits", Options(steps=4, batch=32, out=root / name, precision="float32"))
    return root


def picture(side=8, kind="L"):
    pixels = np.arange(side * side, dtype=np.uint8).reshape(side, side) * (255 // (side * side - 1))
    data = io.BytesIO()
    Image.fromarray(pixels).convert(kind).save(data, "PNG")
    return data.getvalue(), torch.from_numpy(pixels)[None, None]


@contextmanager
def served(folder):
    with show_server(Shown(folder), 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def asked(port, method="GET", path="/", body=None, **headers):
    given = {"Content-Type": "application/octet-stream"} if method == "POST" else {}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, given)
        reply = connection.getresponse()
        return reply.status, reply.read().decode(), dict(reply.getheaders())
    finally:
        connection.close()


def test_the_page_is_whole_and_fetches_nothing_from_elsewhere(folders):
    with served(folders / "stack") as port:
        status, text, headers = asked(port)
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not [word for word in ("http:", "https:", "@import", "url(", " src=") if word in text]
    assert text.count("<script nonce=") == text.count("</script>") - 1 == 1
    assert str(folders / "stack") in text


@pytest.mark.parametrize(
    ("name", "parts"), [("stack", 3), ("heads", 2), ("diffusion", 3), ("flow", 3), ("velocity", 25), ("ode", 3)]
)
def test_every_part_answers_and_the_last_answer_is_the_prediction(name, parts, folders):
    data, pixels = picture()
    with served(folders / name) as port:
        status, text, _ = asked(port, "POST", "/answer", data)
    found = json.loads(text)
    assert status == 200
    assert len(found["stages"]) == parts
    wanted = load_run(folders / name).predict(pixels, raw=True)[0]
    torch.testing.assert_close(torch.tensor(found["stages"][-1]["read"]), wanted, atol=1e-4, rtol=0)
    assert all(abs(sum(stage[kind]) - 1) < 1e-3 for stage in found["stages"] for kind in ("own", "read"))
    assert found["stages"][0]["own"] != found["stages"][-1]["own"]


def test_a_step_of_the_log_is_answered_by_the_net_of_that_step(folders):
    data, pixels = picture()
    run = load_run(folders / "log")
    with served(folders / "log") as port:
        answers = {}
        for step in (0, 2, 4):
            status, text, _ = asked(port, "POST", f"/answer?step={step}", data)
            found = json.loads(text)
            assert (status, found["step"]) == (200, step)
            answers[step] = found["stages"][0]["read"]
            net = rebuild(folders / "log" / "steps.steplog", to_step=step).net.eval()
            wanted = net(run.task.prepare(pixels)).softmax(1)[0]
            torch.testing.assert_close(torch.tensor(answers[step]), wanted, atol=1e-4, rtol=0)
        assert answers[0] != answers[2] != answers[4]
        last = json.loads(asked(port, "POST", "/answer", data)[1])["stages"][0]["read"]
        assert last == pytest.approx(answers[4], abs=1e-4)
        for step, words in (("5", "steps from 0 to 4"), ("-1", "whole number"), ("x", "whole number")):
            status, text, _ = asked(port, "POST", f"/answer?step={step}", data)
            assert status == 400
            assert words in json.loads(text)["error"]


def test_pictures_of_any_size_and_colour_are_made_to_fit_and_others_are_refused(folders):
    with served(folders / "heads") as port:
        for data in (picture(16, "RGB")[0], picture(16, "RGBA")[0], picture(12)[0]):
            assert asked(port, "POST", "/answer", data)[0] == 200
        for data in (b"no picture", picture()[0][:40]):
            status, text, _ = asked(port, "POST", "/answer", data)
            assert status == 400
            assert "the picture" in json.loads(text)["error"]
            assert "/tmp" not in json.loads(text)["error"]
        assert asked(port, "POST", "/answer", picture()[0])[0] == 200  # and goes on


def test_requests_of_other_sites_and_too_large_ones_are_refused(folders):
    data, _ = picture()
    with served(folders / "heads") as port:
        own = f"127.0.0.1:{port}"
        refused = {
            403: [{"Host": "evil.example"}, {"Host": f"evil.example:{port}"}, {"Host": own, "Origin": "http://evil.example"},
                  {"Host": own, "Origin": "null"}],
            415: [{"Content_Type": "text/plain"}],
            413: [{"Content_Length": str(MOST_BYTES + 1)}, {"Content_Length": "0"}],
            411: [{"Content_Length": "-1"}, {"Content_Length": "many"}],
        }  # fmt: skip
        for status, cases in refused.items():
            for headers in cases:
                found, text, _ = asked(port, "POST", "/answer", data, **headers)
                assert found == status, headers
                assert json.loads(text)["error"]
        assert asked(port, "GET", "/", Host="evil.example")[0] == 403
        assert asked(port, "GET", "/etc/passwd")[0] == asked(port, "POST", "/other", data)[0] == 404
        assert (
            asked(port, "POST", "/answer", data, Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200
        )


def test_it_listens_on_this_machine_alone_and_a_port_in_use_is_a_sentence(folders, capsys):
    with show_server(Shown(folders / "heads"), 0) as server:
        assert server.server_address[0] == "127.0.0.1"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["show", str(folders / "heads"), "--port", str(port)])
    assert ended.value.code == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(InputError, match="--port must be"):
        show_server(Shown(folders / "heads"), 70000)


def test_a_run_on_other_inputs_is_refused(tmp_path):
    rows = torch.randn(64, 3).numpy()
    from sidestep import data

    table = data.from_arrays(rows, (rows[:, 0] > 0).astype("int64"))
    train(LocalLoss(hidden=(8,)), table, Options(steps=1, out=tmp_path / "rows"))
    with pytest.raises(InputError, match="draws pictures and shows classes"):
        Shown(tmp_path / "rows")
    ids = torch.arange(400).view(50, 8).numpy() % 5
    train(NoiseStep(hidden=(8,)), data.from_tokens(ids, vocabulary=5), Options(steps=1, out=tmp_path / "text"))
    with pytest.raises(InputError, match="use sidestep generate"):
        Shown(tmp_path / "text")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_drawing_is_answered_in_the_browser_and_the_slider_moves_the_net(folders):
    browser = Browser()
    try:
        with served(folders / "log") as port:
            for width, scheme in ((400, "dark"), (1280, "light")):
                browser.open(f"http://127.0.0.1:{port}/", width, scheme=scheme)
                left, top = browser.run(
                    "(r => [r.left, r.top])(document.getElementById('canvas').getBoundingClientRect())"
                )
                for kind, x, y in (("mousePressed", 90, 60), ("mouseMoved", 150, 200), ("mouseReleased", 150, 200)):
                    place = {"x": left + x, "y": top + y}
                    browser.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **place)
                browser.wait("document.querySelectorAll('#stages tr.now').length == 1")
                assert browser.run("document.querySelectorAll('.bar').length") == 10
                before = browser.run("document.getElementById('bars').textContent")
                browser.run("(s => { s.value = 0; for (const k of ['input', 'change']) s.dispatchEvent(new Event(k)) })"
                            "(document.getElementById('step'))")  # fmt: skip
                browser.wait(f"document.getElementById('bars').textContent != {json.dumps(before)}")
                assert browser.run("document.getElementById('at').textContent") == "0"
                assert browser.problems() == []
    finally:
        browser.close()
