"""`sidestep runs` and `sidestep compare`."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from sidestep.bench.comparison.paired import paired
from sidestep.bench.comparison.paired_page import paired_page
from sidestep.cli import main

TRAIN = ["train", "backprop", "--net", "linear"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("runs")
    main([*TRAIN, "--epochs", "2", "--out", str(made / "a")])
    main([*TRAIN, "--epochs", "2", "--lr", "0.02", "--out", str(made / "deeper" / "b")])
    return made


def out(capsys, *words):
    capsys.readouterr()
    main(list(words))
    return capsys.readouterr().out


def refused(capsys, *words):
    with pytest.raises(SystemExit) as leaving:
        main(list(words))
    assert leaving.value.code == 2
    return capsys.readouterr().err


def test_runs_are_listed_with_what_they_reached(folder, capsys):
    found = json.loads(out(capsys, "runs", str(folder), "--json"))["runs"]
    assert [each["run"] for each in found] == [str(folder / "a"), str(folder / "deeper" / "b")]
    for each in found:
        result = json.loads(Path(each["run"], "result.json").read_text())
        assert each["score"] == result["test_accuracy"]
        assert (each["rule"], each["data"], each["seed"], each["finished"]) == ("backprop", "digits", 0, True)
        assert each["bytes"] > 1000
    text = out(capsys, "runs", str(folder))
    assert "MiB" in text
    assert "yes" in text


def test_runs_that_are_not_finished_or_damaged_hide_no_others(folder, tmp_path, capsys):
    for name in ("unfinished", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "damaged" / "config.toml").write_text("rule = [")
    for file in ("config.toml", "state.safetensors"):
        (tmp_path / "unfinished" / file).write_bytes((folder / "a" / file).read_bytes())
    found = json.loads(out(capsys, "runs", str(tmp_path), "--json"))["runs"]
    assert [each["finished"] for each in found] == [False, False]
    assert "cannot be read" in found[0]["state"]
    assert found[1]["state"].startswith("no")
    assert "there is no folder" in refused(capsys, "runs", str(tmp_path / "absent"))


def test_compare_counts_the_same_images(folder, capsys):
    words = ["compare", str(folder / "a"), str(folder / "deeper" / "b")]
    found = json.loads(out(capsys, *words, "--json"))
    assert list(found["differs"]) == ["rule.learning_rate"]
    assert found["differs"]["rule.learning_rate"][1] == 0.02
    results = [json.loads((folder / name / "result.json").read_text()) for name in ("a", "deeper/b")]
    assert [found["first"] != found["second"], found["examples"] > 100] == [True, True]
    assert found["difference"] == pytest.approx(results[1]["test_accuracy"] - results[0]["test_accuracy"])
    assert found["low"] <= found["difference"] <= found["high"]
    assert "McNemar" in out(capsys, *words)
    same = json.loads(out(capsys, "compare", str(folder / "a"), str(folder / "a"), "--json"))
    assert (same["difference"], same["p_exact"], same["differs"]) == (0.0, 1.0, {})


def test_a_comparison_is_a_page_of_its_own(folder, tmp_path, capsys):
    page = tmp_path / "out.html"
    words = ["compare", str(folder / "a"), str(folder / "deeper" / "b")]
    found = json.loads(out(capsys, *words, "--html", str(page), "--json"))
    text = page.read_text()
    body = text.partition("</style>")[2]
    counts = dict(re.findall(r"<td>([^<]*)</td><td>([\d,]+)</td></tr>", body))
    assert sum(int(count.replace(",", "")) for count in counts.values()) == found["examples"]
    assert int(counts[f"only {folder / 'a'}"]) == found["only_first"]
    right = int(counts["both right"]) + found["only_second"]
    assert right / found["examples"] == pytest.approx(found["second"])
    assert f"{100 * found['difference']:+.2f}" in body
    assert "rule.learning_rate" in body
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(src|href)=|url\(|<script", text)  # one file that needs no other
    for svg in re.findall(r"<svg.*?</svg>", body):
        _, _, width, height = map(float, re.search(r'viewBox="([^"]*)"', svg)[1].split())
        for x, y in re.findall(r'<(?:text|circle)[^>]* c?x="([^"]*)" c?y="([^"]*)"', svg):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
        ElementTree.fromstring(svg)
    assert "exists already; choose another --html" in refused(capsys, *words, "--html", str(page))
    assert "must end in .html" in refused(capsys, *words, "--html", str(tmp_path / "a.txt"))


def test_names_of_runs_are_no_markup_on_the_page():
    found = paired(torch.tensor([True, False]), torch.tensor([True, True]))
    page = paired_page(("<b>a", 'b"&'), "<i>", found, {"x<y": ("<script>", None)}, ("backprop", "spsa"))
    for mark in ("<b>", "<i>", "<script>", 'b"&', "x<y"):
        assert mark not in page


def test_what_cannot_be_compared_is_refused(folder, tmp_path, capsys):
    a = str(folder / "a")
    assert "absent" in refused(capsys, "compare", a, str(tmp_path / "absent"))
    (tmp_path / "open").mkdir()
    for file in ("config.toml", "state.safetensors"):
        (tmp_path / "open" / file).write_bytes((folder / "a" / file).read_bytes())
    assert "has not finished" in refused(capsys, "compare", a, str(tmp_path / "open"))
    import numpy as np

    np.savez(tmp_path / "other.npz", x_train=np.arange(80 * 64).reshape(80, 8, 8) % 251, y_train=np.arange(80) % 10,
             x_test=np.arange(40 * 64).reshape(40, 8, 8) % 241, y_test=np.arange(40) % 10)  # fmt: skip
    main([*TRAIN, "--epochs", "1", "--data", str(tmp_path / "other.npz"), "--out", str(tmp_path / "other")])
    assert "other test images" in refused(capsys, "compare", a, str(tmp_path / "other"))


def test_the_paired_test_is_the_binomial_one():
    first = torch.tensor([True] * 50 + [True] * 3 + [False] * 12)
    second = torch.tensor([True] * 50 + [False] * 3 + [True] * 12)
    found = paired(first, second)
    tail = sum(math.comb(15, k) for k in range(4)) / 2**15
    assert found.p_exact == pytest.approx(2 * tail)
    assert found.p_mid == pytest.approx(2 * tail - math.comb(15, 3) / 2**15)
    assert found.difference == pytest.approx(9 / 65)
    spread = math.sqrt((15 / 65 - (9 / 65) ** 2) / 65)  # of a mean of values -1, 0, 1
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    assert paired(second, first).difference == -found.difference
