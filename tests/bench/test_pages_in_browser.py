"""Pages of HTML in a real browser, where there is one: no error, no small text, nothing wider than the window."""

import re
from types import SimpleNamespace

import pytest
import torch

from sidestep.bench.chart import LINEAR, LOG, LOGIT, Line, chart
from sidestep.bench.comparison.entries import read_entries
from sidestep.bench.comparison.page import Report, write_report
from sidestep.bench.comparison.paired import paired
from sidestep.bench.comparison.paired_page import paired_page
from sidestep.bench.comparison.rounds import Budget, Comparison
from sidestep.bench.studies.blocks import AGREES, COMPARED, ORACLE
from sidestep.bench.studies.blocks_report import blocks_page
from sidestep.bench.studies.chain import CHAIN_READINGS, READINGS_BY_BLOCK
from tests.browser import CHROMIUM, Browser

ASKED = {
    "machine": {"device": "cpu", "processor": "a processor with a name", "threads": 1},
    "versions": {"sidestep": "0", "torch": "2"},
}


def run_of(entry, seed, accuracy):
    return {
        "entry": entry, "rule": entry, "data": "d", "seed": seed, "test_accuracy": accuracy, "judged_images": 100,
        "validation_accuracy": accuracy, "seconds_per_step": 0.01, "images_per_second": 5e3, "precision": "float32",
        "peak_memory_bytes": 2**22 * (seed + 1), "reached": {"0.8": {"seconds": 1.0, "steps": 9}, "0.9": None},
        "curve": [[10, 0.3, accuracy - 0.1], [20, 0.6, accuracy]], "seconds": 0.6,
        "counts": {"estimate_bytes": 2**20, "decided_bytes": 64, "parameters": 9, "allocated_bytes": 2**21,
                   "forward_equivalents": 3.0},
    }  # fmt: skip


def pages():
    race = Comparison(tuple(read_entries(["spsa", "local-loss", "backprop"])), ("d",), Budget(epochs=2), seeds=2)
    runs = [
        run_of(entry, seed, at + 0.02 * seed) for entry, at in (("spsa", 0.8), ("backprop", 0.95)) for seed in (0, 1)
    ]
    report, written = Report(race, runs, "backprop", "sidestep bench --rules 'spsa, local-loss'"), {}
    folder = SimpleNamespace(page_file="bench.md", html_file="bench.html")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sidestep.checkpoint.write_text", lambda path, text: written.update({path: text}))
        write_report(report, folder, ASKED)
    right = torch.arange(50) % 3 > 0
    differs = {"rule.learning_rate": (1e-3, None), "rule.hidden": ([512, 512], [64])}
    names = "runs/a-run-with-a-name-that-is-rather-long-and-has-no-spaces", "runs/b"
    compare = paired_page(names, "digits", paired(right, torch.arange(50) % 2 > 0), differs, ("local-loss", "spsa"))
    return {"bench": written["bench.html"], "compare": compare, "study": blocks_page(study())}


def study():
    """A record of a study of three blocks, two seeds."""
    changed = ["chain differs from block 1", "chain right, block 1 wrong", "chain wrong, block 1 right"]
    alone = [*CHAIN_READINGS, "backprop", *(f"chain minus {name}" for name in (*COMPARED, "backprop")), *changed]
    mean = dict.fromkeys(alone, 0.9) | {name: [0.7, 0.8, 0.9] for name in (*READINGS_BY_BLOCK, ORACLE, AGREES)}
    error = {name: [0.01] * 3 if isinstance(value, list) else 0.01 for name, value in mean.items()}
    return {
        "data": "digits", "blocks": 3, "seeds": [0, 1], "train_images": 1000, "batch": 128, "epochs": 2,
        "rule": {"name": "noprop-dt"}, "baseline": {"name": "backprop"}, "mean": mean, "standard_error": error,
        "parameters": {"noprop-dt": 10, "backprop": 9}, "test_images": 360,
        "seconds": {name: {"mean": 1.0, "standard_error": 0.1} for name in ("noprop-dt", "backprop")},
    }  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    found = Browser()
    yield found
    found.close()


@pytest.mark.parametrize("name", ["bench", "compare", "study"])
def test_a_page_is_whole_at_every_width_and_in_the_dark(name, browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(pages()[name], encoding="utf-8")
    grounds = set()
    for width in (400, 1280):
        for scheme in ("light", "dark"):
            browser.open(str(path), width, scheme=scheme)
            assert browser.problems() == []
            assert browser.run("document.querySelectorAll('svg[role=img]').length") >= 2
            grounds.add(browser.run("getComputedStyle(document.body).backgroundColor"))
        tops = browser.run(
            "[...document.querySelectorAll('figure')].map(f => Math.round(f.getBoundingClientRect().top))"
        )
        assert (len(set(tops)) == len(tops)) == (width == 400)  # one below another on a phone, side by side on a desk
    assert len(grounds) == 2


def test_the_browser_sees_what_is_wrong_with_a_page(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<p style='font-size: 9px'>small<div style='width: 600px'>wide<script>console.error('no')</script>")
    browser.open(str(path), 400)
    assert len(browser.problems()) == 3


def test_the_baseline_is_first_and_what_has_not_finished_is_said_in_the_box():
    html = pages()["bench"]
    rows = re.findall(r'<tr( class="baseline")?><td>([^<]*)</td>', html)
    assert [name for _, name in rows[:3]] == ["backprop", "spsa", "local-loss"]
    box = re.search(r'<div class="said">(.*?)</div>', html, re.S)[1]
    assert "Not finished: 2 of 6 runs." in box
    legends = re.findall(r'<div class="legend">(.*?)</div>', html)
    assert all(re.findall(r"</svg>([^<]*)</span>", legend) == ["backprop", "spsa"] for legend in legends)


@pytest.mark.parametrize("scales", [(LINEAR, LINEAR), (LOG, LOGIT), (LOG, LINEAR)])
def test_what_is_drawn_stays_within_a_chart(scales):
    for points in ([(1.0, 0.5)], [(1e-3, 0.02), (500.0, 0.999)], [(2.0, 0.5), (2.1, 0.51), (2.2, 0.5)]):
        drawn = chart([Line("<a>", points, -1), Line("b", points, 3, joined=False)], "x", "y", scales, "said")
        assert "<a>" not in drawn
        places = re.findall(r"translate\(([\d.-]+) ([\d.-]+)\)", drawn) + re.findall(
            r'text class="soft" x="([\d.-]+)" y="([\d.-]+)"', drawn
        )
        assert len(places) > len(points) + 2
        assert all(0 <= float(x) <= 340 and 0 <= float(y) <= 240 for x, y in places)
        assert len(re.findall(r'text-anchor="middle"', drawn)) >= 1
