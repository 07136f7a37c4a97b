"""The example whose judge runs elsewhere: it goes on after a kill to the same weights, and outlives a broken judge."""

import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

EXAMPLE = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples" / "judge_pool.py"))


def score(weights, step):
    return float(weights["0.weight"].sum())


def searched(folder, rounds, judge=score):
    with ThreadPoolExecutor(1) as pool:
        return EXAMPLE["search"](folder, rounds, pool, judge).state_dict()


def test_a_search_that_is_killed_goes_on_to_the_same_weights(tmp_path):
    wanted = searched(tmp_path / "whole", 4)
    rounds = 0

    class Killed(BaseException):
        pass

    class Pool(ThreadPoolExecutor):
        def submit(self, *arguments):
            nonlocal rounds
            rounds += 1
            if rounds == 40:  # in the middle of the third round
                raise Killed
            return super().submit(*arguments)

    with pytest.raises(Killed), Pool(1) as pool:
        EXAMPLE["search"](tmp_path / "cut", 4, pool, score)
    found = searched(tmp_path / "cut", 4)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert not torch.equal(wanted["0.weight"], EXAMPLE["make_net"]().state_dict()["0.weight"])


def test_a_judge_that_breaks_down_is_told_of_and_the_search_goes_on(tmp_path, capsys):
    start = score(EXAMPLE["make_net"]().state_dict(), 0)

    def judge(weights, step):
        if score(weights, step) > start:
            raise ValueError("the pole is gone")
        return 100.0

    found = searched(tmp_path, 2, judge)
    assert "of round 0 broke its judge: ValueError('the pole is gone')" in capsys.readouterr().out
    assert score(found, 0) < start - 0.1


def test_the_game_is_the_same_for_all_nets_of_a_step_and_another_in_the_next():
    net = EXAMPLE["make_net"]().state_dict()
    scores = [EXAMPLE["play"](net, step) for step in (0, 0, 1, 2, 3)]
    assert scores[0] == scores[1]
    assert len(set(scores)) > 1
