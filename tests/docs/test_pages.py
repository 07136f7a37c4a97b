"""The scripts of the pages make the tables that they say, of made-up runs."""

import json
import sys

import numpy
import pytest

from experiments import alignment_page, noprop_recipe, rules_page, ternary_page
from experiments.rules_page import Entry
from sidestep.cli import listing


def made_up_run(folder, test, validation, seconds=None):
    folder.mkdir()
    result = {"test_accuracy": test, "train_accuracy": 0.99, "seconds": 3.0, "steps": 20, "parameters": 7}
    (folder / "result.json").write_text(json.dumps(result))
    lines = [
        {"step": step, "split": "validation", "name": "accuracy", "value": value, "seconds": 1.0}
        for step, value in ((10, 0.1), (20, validation))
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if seconds is not None:
        (folder / "processor.json").write_text(json.dumps(seconds))
    return folder


def test_the_lists_of_the_command_line_are_what_the_library_says():
    """If this fails: python -m sidestep.cli.listing, and commit the file."""
    made = json.loads(json.dumps(listing.listing()))
    for kind, entries in made.items():
        assert listing.listed(kind) == entries, "write the file anew: python -m sidestep.cli.listing"
        assert list(listing.listed(kind)) == list(entries), "write the file anew: python -m sidestep.cli.listing"


class TestRulesPage:
    def test_a_row_has_means_over_seeds_and_whether_the_target_was_met(self, tmp_path):
        folders = [made_up_run(tmp_path / "0", 0.97, 0.96, 50), made_up_run(tmp_path / "1", 0.99, 0.98, 70)]
        folders.append(tmp_path / "not there")
        words = ("backprop", "--label-smoothing", "0.1", "--epochs", "3", "--augment", "shift")
        # sqrt(0.98 * 0.02 / 10,000) = 0.0014
        assert rules_page.row(Entry("a rule", "8-8", words, 97.9), folders) == (
            "| a rule | 8-8 | 0.1 | yes | 3 | 2 | 98.00 (1.00; 0.14) | 97.00 | 99.00 | 60 | 97.9: met |"
        )
        assert rules_page.row(Entry("a rule", "8-8", words, 98.1), folders).endswith("98.1: missed |")
        assert rules_page.row(Entry("a rule", "8-8", words), folders[2:]) is None

    def test_one_seed_has_no_error_and_a_resumed_run_no_seconds(self, tmp_path):
        words = ("backprop", "--epochs", "3")
        line = rules_page.row(Entry("a rule", "8-8", words), [made_up_run(tmp_path / "0", 0.97, 0.96)])
        assert line == "| a rule | 8-8 | 0 | no | 3 | 1 | 97.00 (-; 0.17) | 96.00 | 99.00 | - |  |"

    @pytest.mark.parametrize("resumed", [False, True])
    def test_runs_have_the_setting_that_the_page_states(self, tmp_path, monkeypatch, resumed):
        asked = []
        monkeypatch.setattr(
            ternary_page.subprocess, "run", lambda command, check, env: asked.append((command, env["OMP_NUM_THREADS"]))
        )
        if resumed:
            (tmp_path / "config.toml").write_text("")
        rules_page.timed("spsa", 3, tmp_path)
        (command, threads), text = asked[0], " ".join(asked[0][0])
        assert threads == "1"
        assert "train spsa --pairs 1 --sides both" in text  # of version 0.1.0, whose number the page has
        assert "--epochs 12 --data mnist --decay cosine --precision float32 --validation 0.05 --seed 3" in text
        assert ("--resume" in command) == resumed
        assert (tmp_path / "processor.json").exists() != resumed


def aligned(cosine, noise=None):
    tensors = {f"stages.{i}.weight": {"cosine": cosine + 0.1 * i, "elements": 64 * 64} for i in range(2)}
    tensors["stages.0.bias"] = {"cosine": 0.7, "elements": 64}
    return {"tensors": tensors, "whole": {"cosine": cosine, "signal_to_noise": noise}}


class TestAlignmentPage:
    def test_the_table_has_a_row_for_every_rule_with_runs(self, tmp_path):
        for name, seed, test in (("backprop", 0, 0.9), ("backprop", 1, 0.92), ("NoProp-DT-3-blocks", 0, 0.95)):
            folder = tmp_path / f"digits-{name}-{seed}"
            folder.mkdir()
            record = {
                "start": aligned(0.1),
                "end": aligned(0.5 + 0.1 * seed, 2.0 if "DT" in name else None),
                "test": test,
            }
            (folder / "alignment.json").write_text(json.dumps(record))
        table, points = alignment_page.rules_table("digits", [0, 1, 2], tmp_path)
        assert table.splitlines()[2:] == [
            "| backprop | 2 | 91.00 ± 1.41 | 0.100 ± 0.000 "
            "| 0.550 ± 0.071 | 0.550 ± 0.071 | 0.650 ± 0.071 | no noise |",
            "| NoProp-DT, 3 blocks | 1 | 95.00 | 0.100 | 0.500 | - | - | 2.000 |",
        ]
        assert [(name, other) for name, *_, other in points] == [("backprop", False), ("NoProp-DT, 3 blocks", True)]
        assert points[0][1:4] == pytest.approx((0.1, 0.55, 91))

    def test_rank_correlation(self):
        assert alignment_page.rank_correlation([1, 2, 3], [10, 20, 900]) == pytest.approx(1)
        assert alignment_page.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
        assert alignment_page.ranks([5, 1, 5, 0]) == [2.5, 1, 2.5, 0]
        # ranks 0, 1, 2, 3 beside 1, 0, 3, 2: 1 - 6 * 4 / (4 * 15)
        assert alignment_page.rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)

    def test_theory_is_measured_once(self, tmp_path, monkeypatch):
        calls = []
        monkeypatch.setattr(
            alignment_page, "theory_table", lambda data, seeds: calls.append(seeds) or ("| table |", [[0.1, 0.2]])
        )
        for seeds in ([0], [0], [0, 1]):
            assert alignment_page.theory_beside(tmp_path, seeds) == ("| table |", [[0.1, 0.2]])
        assert calls == [[0], [0, 1]]


def read_by(readings):
    return {"readings": readings}


class TestNoPropRecipe:
    def test_a_row_shows_the_walk_the_sampled_walk_and_one_look(self, tmp_path):
        folders = [tmp_path / "0", tmp_path / "1", tmp_path / "not there"]
        for folder, ddim in zip(folders, (0.90, 0.92), strict=False):
            folder.mkdir()
            readings = {"mean": 0.1, "first step": 0.7, "ancestral": 0.8, "ddim": ddim}
            (folder / "result.json").write_text(json.dumps(read_by(readings)))
        variant = noprop_recipe.VARIANTS["ct-uniform"]
        assert noprop_recipe.row(variant, folders) == (
            "| independent times | 2 | 91.00 (1.00) | 80.00 (0.00) | 70.00 (0.00) |"
        )
        assert noprop_recipe.row(variant, folders[:1]) == "| independent times | 1 | 90.00 | 80.00 | 70.00 |"
        assert noprop_recipe.row(variant, folders[2:]) is None
        blind = noprop_recipe.VARIANTS["ct-blind"]
        assert noprop_recipe.row(blind, folders[:1]) == f"| {blind.title} | 1 | - | - | 70.00 |"

    def test_backprop_has_one_reading(self, tmp_path):
        (tmp_path / "result.json").write_text(json.dumps(read_by({"forward": 0.5})))
        assert noprop_recipe.row(noprop_recipe.VARIANTS["backprop-paper"], [tmp_path]).endswith("| 50.00 | - | - |")

    def test_a_variant_differs_from_its_recipe_by_its_changes_only(self, tmp_path):
        def options(name):
            words = noprop_recipe.command(name, tmp_path / "part.npz", 4, 1, tmp_path / "run")[5:]
            return dict(zip(words[::2], words[1::2], strict=True))

        for name, variant in noprop_recipe.VARIANTS.items():
            base = options({"noprop-ct": "ct", "noprop-fm": "fm", "noprop-dt": "dt"}.get(variant.rule, "backprop"))
            changed = {key: value for key, value in options(name).items() if base.get(key) != value}
            assert changed == {key: value for key, value in variant.changes.items() if base.get(key) != value}
            assert bool(changed) != (variant.title.startswith("**"))

    def test_the_part_leaves_the_test_images_alone(self, tmp_path, monkeypatch):
        monkeypatch.setattr(noprop_recipe, "HELD_OUT", 100)
        noprop_recipe.write_part(tmp_path / "part.npz", "digits", 256)
        whole = noprop_recipe.data.load("digits", validation=0.0).train.images.numpy()
        with numpy.load(tmp_path / "part.npz") as part:
            assert (part["x_train"] == whole[:256]).all()
            assert (part["x_test"] == whole[256:356]).all()
            assert len(part["y_test"]) == 100

    def test_too_many_images_are_refused(self, tmp_path):
        with pytest.raises(SystemExit, match=r"digits has 1437 training images; --images \+ 5000"):
            noprop_recipe.write_part(tmp_path / "part.npz", "digits", 256)

    def test_it_trains_what_is_missing_and_draws_the_table(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(noprop_recipe, "HELD_OUT", 64)
        asked = ["noprop_recipe", "--runs", str(tmp_path), "--data", "digits", "--images", "128", "--epochs", "1"]
        monkeypatch.setattr(sys, "argv", [*asked, "--seeds", "0", "--only", "ct"])
        noprop_recipe.main()
        first = capsys.readouterr()
        assert "ct, seed 0" in first.err
        assert first.out.splitlines()[2].startswith("| **CT, the recipe** | 1 | ")
        noprop_recipe.main()
        second = capsys.readouterr()
        assert second.out == first.out
        assert not second.err
