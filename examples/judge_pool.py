"""A search whose judge runs in other processes: nets are asked for here, played there, and their scores told here.

    python examples/judge_pool.py FOLDER [--rounds 40] [--workers 2]

It can be killed at any time: the same command goes on from the last round that was whole, to the same weights. A score
is told with the number of its net, so the order in which the processes end has no part in it.
The judge here balances a pole, which has no derivative: thrust is to the left or to the right, and the score is how
many steps the pole stands.
"""

import argparse
import math
import multiprocessing
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from torch import Tensor, nn

import sidestep
from sidestep.noise import Noise
from sidestep.rules import Evolution

RULE = Evolution(
    noise_kind="full-rank",
    per="group",
    population=16,
    eps=0.3,
    fitness="ranks",
    optimizer_kind="adam",
    learning_rate=0.1,
)
LENGTH, GAMES = 200, 3
FAILED = -1.0  # the score of a net whose game broke down: below all others


def make_net() -> nn.Module:
    """Return the player: where the cart is and how fast, the pole's angle and how fast -> thrust."""
    with Noise(0).torch_seeded():
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def play(weights: dict[str, Tensor], step: int) -> float:
    """Return the mean number of steps that the pole stands, in games that all nets of a step have in common."""
    net = make_net()
    net.load_state_dict(weights)
    stood = 0
    for start in Noise(1).at(step).normal(4 * GAMES).view(GAMES, 4) * 0.05:
        place, speed, angle, turn = start.tolist()
        for _ in range(LENGTH):
            with torch.no_grad():
                force = 10.0 if net(torch.tensor([place, speed, angle, turn])).item() > 0 else -10.0
            pull = (force + 0.05 * turn * turn * math.sin(angle)) / 1.1
            swing = (9.8 * math.sin(angle) - math.cos(angle) * pull) / (
                0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1)
            )
            push = pull - 0.05 * swing * math.cos(angle) / 1.1
            place, speed, angle, turn = (
                place + 0.02 * speed,
                speed + 0.02 * push,
                angle + 0.02 * turn,
                turn + 0.02 * swing,
            )
            if abs(place) > 2.4 or abs(angle) > 0.21:
                break
            stood += 1
    return stood / GAMES


def search(folder: Path, rounds: int, pool: Executor, judge=play) -> nn.Module:
    """Return the trained net; what is in the folder of an earlier search is gone on with."""
    net = make_net()
    searching = sidestep.ask_tell(net, RULE, seed=0)
    if (folder / "state.safetensors").exists():
        searching.step.load(folder)
    while searching.step.steps < rounds:
        trials = [searching.ask() for _ in range(RULE.population)]
        waiting = {pool.submit(judge, trial.net.state_dict(), trial.step): trial for trial in trials}
        scores = []
        for done in as_completed(waiting):
            error = done.exception()
            if error is not None:
                print(f"net {waiting[done].number} of round {waiting[done].step} broke its judge: {error!r:.200}")
            scores.append(FAILED if error is not None else done.result())
            searching.tell(waiting[done], scores[-1])
        searching.step.save(folder)  # a round is whole, or not there
        print(f"round {searching.step.steps}: mean {sum(scores) / len(scores):.1f}, best {max(scores):.1f}", flush=True)
    return net


def main() -> None:
    """Search in a pool of processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    with ProcessPoolExecutor(given.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        net = search(given.folder, given.rounds, pool)
    print(f"the trained net stands {play(net.state_dict(), given.rounds):.0f} steps of {LENGTH}")


if __name__ == "__main__":
    main()
