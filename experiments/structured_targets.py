"""Does NoProp's walk pay where the answer is a structure or a distribution? Three tasks, several nets of the same cost.

    python -m experiments.structured_targets --rows runs/structured.jsonl [--kinds search run] [--most 10]

Tasks: `experiments.structured_tasks`. Each row is a net that has been trained, and those that stand in the file are
left out, so that a stopped comparison goes on. Every way gets the same search: four learning rates at seed 100, for
half the steps, of which the validation part takes one, by the best of the way's readings; then seeds 0 to 2 at that
rate. The test part is read for these alone. Which block is the best each net's validation part says.

    chain              NoProp in discrete time: five blocks, each trained alone to denoise the target
    blind              the same blocks, but z is noise at all levels: they never see a target
    blocks end to end  the same blocks and the same walk, trained through the walk on its last answer
    plain              one net with as many weights, trained end to end
    plain twice        the same for twice the steps: dense layers in one net take half the time of those in five
    joint              the same with one class for each string or pair
    energy             the same with 16 more inputs that are noise, trained by the energy score of two draws

A way that ends in "narrow" sees the pixels through 16 numbers a block. It has the rate that the way without took, and
"plain twice" that of "plain".
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from experiments.given import a_count
from experiments.kept_rows import Row, keep_row, kept_rows, row_key
from experiments.structured_nets import NOISE_INPUTS, STEPS, joint_targets, outputs_of, train_net
from experiments.structured_tasks import CLASSES, Part, StructuredTask, make_task, painted, recogniser
from sidestep.nets.noprop.stack import DenoisingStack
from sidestep.nets.noprop.stack_readings import ancestral_chain, ddim_chain
from sidestep.noise import Noise

__all__ = ["LEAST", "PRIMARY", "Reading", "chosen_rate", "readings", "scores", "total_variation", "wanted_rows"]

TASKS, RATES = ("strings", "in-painting", "overlay"), (4e-3, 8e-3, 16e-3, 32e-3)
SEARCH_SEED, SEEDS, DRAWS = 100, (0, 1, 2), 32
NARROW = " narrow"
TWICE = "plain twice"
_NARROW = [way + NARROW for way in ("chain", "blind", "plain")]
WAYS = {
    name: ["chain", "blind", "blocks end to end", "plain", TWICE, other, *_NARROW]
    for name, other in (("strings", "joint"), ("in-painting", "energy"), ("overlay", "joint"))
}
PRIMARY = {"strings": "string", "in-painting": "energy", "overlay": "distance"}
LEAST = ("energy", "distance", "squared error")  # scores of which less is better
KEY = ("task", "way", "rate", "seed", "kind", "steps")


class Reading(NamedTuple):
    """What a net answers: one answer for each example, and draws."""

    point: Tensor  # (n, places), int64, or (n, pixels)
    draws: Tensor  # (draws, n, ...), of the same


def _drawn(shares: Tensor, noise: Noise) -> Tensor:
    """Return draws of a class for each row of probabilities, (rows, classes) -> (draws, rows)."""
    ladder = shares.cumsum(dim=1)
    at = noise.uniform(len(shares) * DRAWS).view(len(shares), DRAWS)
    return torch.searchsorted(ladder, at, right=True).clamp(max=shares.shape[1] - 1).T


def _of_places(probabilities: Tensor, noise: Noise) -> Reading:
    """Return answers and draws by a probability for each place by itself, (n, places, classes)."""
    drawn = _drawn(probabilities.flatten(0, 1), noise).view(DRAWS, *probabilities.shape[:2])
    return Reading(probabilities.argmax(dim=2), drawn)


def _of_outputs(task: StructuredTask, outputs: Tensor, noise: Noise) -> Reading:
    """Return the reading of outputs (..., n, K): their mean answer where there are several."""
    found = task.space.objective.predictions(outputs)
    found = found.mean(dim=0) if found.ndim == 3 else found
    if task.name == "in-painting":
        return Reading(found, found[None])
    return _of_places(found.unflatten(1, (-1, CLASSES)), noise)


def _most_frequent(draws: Tensor) -> Tensor:
    """Return the string that is drawn most often, (draws, n, places) -> (n, places)."""
    numbers = torch.stack([joint_targets(draw) for draw in draws])
    return torch.stack(
        [numbers.mode(dim=0).values // CLASSES**place % CLASSES for place in range(draws.shape[2])], dim=1
    )


def _of_draws(task: StructuredTask, draws: Tensor) -> Reading:
    return Reading(draws.mean(dim=0) if task.name == "in-painting" else _most_frequent(draws), draws)


def _of_stack(
    task: StructuredTask, net: DenoisingStack, inputs: Tensor, noise: Noise, blind: bool
) -> dict[str, Reading]:
    """Return every reading of blocks: each one alone at z = 0, along the walk from z = 0, and the sampled walk."""
    features = net.image_features(inputs)
    zero = torch.zeros(len(inputs), task.outputs)
    alone = [net.block_logits(index, rows, zero) for index, rows in enumerate(features)]
    walk = ddim_chain(net, features).logits
    found = {f"block {index + 1} alone": _of_outputs(task, each, noise) for index, each in enumerate(alone)}
    found["mean of blocks alone"] = _of_outputs(task, torch.stack(alone), noise)
    if blind:
        return found
    found |= {f"walk to block {index + 1}": _of_outputs(task, each, noise) for index, each in enumerate(walk)}
    found["mean of blocks along the walk"] = _of_outputs(task, walk, noise)
    last = [ancestral_chain(net, features, noise.stream(f"draw {draw}")).logits[-1] for draw in range(DRAWS)]
    drawn = [each if task.name == "in-painting" else each.unflatten(1, (-1, CLASSES)).argmax(dim=2) for each in last]
    found["sampled walk"] = _of_draws(task, torch.stack(drawn))
    return found


@torch.no_grad()
def readings(way: str, task: StructuredTask, net: nn.Module, inputs: Tensor, noise: Noise) -> dict[str, Reading]:
    """Return all answers of a net; none of them sees a target."""
    way = way.removesuffix(NARROW)
    if isinstance(net, DenoisingStack):
        return _of_stack(task, net, inputs, noise, blind=way == "blind")
    if way == "joint":
        shares = net(inputs).softmax(dim=1)
        drawn = _drawn(shares, noise)
        places = range(task.outputs // CLASSES)
        numbers = torch.cat([shares.argmax(dim=1)[None], drawn])
        every = torch.stack([numbers // CLASSES**place % CLASSES for place in places], dim=2)
        return {"forward": Reading(every[0], every[1:])}
    if way == "energy":
        draws = [
            outputs_of(net, inputs, noise.sub(draw).normal(len(inputs) * NOISE_INPUTS).view(-1, NOISE_INPUTS))
            for draw in range(DRAWS)
        ]
        return {"forward": _of_draws(task, torch.stack(draws))}
    return {"forward": _of_outputs(task, net(inputs), noise)}


def total_variation(draws: Tensor, pairs: Tensor) -> Tensor:
    """Return the distance from draws (draws, n, 2) to both orders of pairs (n, 2), half of the time each, (n,).

    1/2 sum |p - q| over all pairs. A perfect sampler is not at 0: of 32 draws, not just 16 are in one order.
    """
    first = (draws == pairs).all(dim=2).float().mean(dim=0)
    second = (draws == pairs.flip(1)).all(dim=2).float().mean(dim=0)
    return ((first - 0.5).abs() + (second - 0.5).abs() + 1 - first - second) / 2


def scores(task: StructuredTask, part: Part, found: Reading, judge: nn.Module | None) -> dict[str, float]:
    """Return how good a reading is: shares, or for in-painting the squared error per pixel and the energy score."""
    point, draws, targets = found.point, found.draws, part.targets
    if task.name == "in-painting":
        assert judge is not None  # for the type checker
        far = (draws - targets).norm(dim=2).mean()
        apart = torch.cdist(draws.transpose(0, 1), draws.transpose(0, 1)).sum(dim=(1, 2))
        pairs = max(1, len(draws) * (len(draws) - 1))
        with torch.no_grad():
            named = judge(painted(part, draws[0])).argmax(dim=1)
        return {
            "squared error": float((point - targets).square().mean()),
            "energy": float(far - (apart / pairs).mean() / 2),
            "recognised": float((named == part.extra).float().mean()),
        }
    right = point == targets
    if task.name == "strings":
        hidden = right.gather(1, part.extra[:, None]).float().mean()
        return {
            "string": float(right.all(dim=1).float().mean()),
            "hidden digit": float(hidden),
            "string, of draws": float((draws == targets).all(dim=2).float().mean()),
        }
    either = (draws == targets).all(dim=2) | (draws == targets.flip(1)).all(dim=2)
    answered = right.all(dim=1) | (point == targets.flip(1)).all(dim=1)
    return {
        "both right": float(answered.float().mean()),
        "both right, of draws": float(either.float().mean()),
        "distance": float(total_variation(draws, targets).mean()),
    }


def judge_of(task: StructuredTask) -> nn.Module | None:
    """Return the net that judges painted digits, None for other tasks."""
    if task.name != "in-painting":
        return None
    return recogniser(painted(task.train, task.train.targets), task.train.extra)


def run(task: StructuredTask, judge: nn.Module | None, row: Row) -> Row:
    """Train the net of a row, and return the row with what it reaches; the test part is not read in a search."""
    way, started = row["way"], time.process_time()
    net = train_net(way.removesuffix(NARROW), task, way.endswith(NARROW), row["rate"], row["seed"], row["steps"])
    filled = row | {"seconds": round(time.process_time() - started, 1)}
    filled["weights"] = sum(value.numel() for value in net.parameters())
    parts = {"validation": task.validation} | ({"test": task.test} if row["kind"] == "run" else {})
    for name, part in parts.items():
        answers = readings(way, task, net, part.inputs, Noise(row["seed"]).stream(f"read {name}"))
        filled[name] = {
            reading: {key: round(value, 4) for key, value in scores(task, part, each, judge).items()}
            for reading, each in answers.items()
        }
    return filled


def best(task: str, found: dict[str, dict[str, float]]) -> float:
    """Return the primary score of a row's best reading, so that more is better."""
    sign = -1 if PRIMARY[task] in LEAST else 1
    return max(sign * each[PRIMARY[task]] for each in found.values())


def searched(way: str) -> str:
    """Return the way whose search a way's rate comes from."""
    return "plain" if way == TWICE else way.removesuffix(NARROW)


def chosen_rate(rows: list[Row], task: str, way: str, steps: int) -> float | None:
    """Return the rate that validation takes of a search, or None before its three smaller rates have been tried."""
    wanted = (task, way, "search", steps // 2)
    mine = [row for row in rows if (row["task"], row["way"], row["kind"], row["steps"]) == wanted]
    if not {row["rate"] for row in mine} >= set(RATES[:3]):
        return None
    scored = {row["rate"]: best(task, row["validation"]) for row in mine if row["rate"] in RATES}
    return max(scored, key=lambda rate: scored[rate])


def wanted_rows(rows: list[Row], kinds: list[str], steps: int) -> list[Row]:
    """Return the rows that are still missing, as far as searches have ended."""
    found: list[Row] = []
    for task in TASKS:
        for way in WAYS[task]:
            common: dict[str, Any] = {"task": task, "way": way, "steps": steps}
            if "search" in kinds and way == searched(way):
                found += [
                    common | {"kind": "search", "rate": rate, "seed": SEARCH_SEED, "steps": steps // 2}
                    for rate in RATES
                ]
            rate = chosen_rate(rows, task, searched(way), steps)
            if "run" in kinds and rate is not None:
                found += [common | {"kind": "run", "rate": rate, "seed": seed} for seed in SEEDS]
    done = {row_key(row, KEY) for row in rows}
    return [row for row in found if row_key(row, KEY) not in done]


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", default=["search", "run"], choices=["search", "run"])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--steps", type=a_count, default=STEPS)
    parser.add_argument("--most", type=a_count, default=1000, help="rows to run before it stops")
    given = parser.parse_args()
    torch.set_num_threads(1)
    made: dict[str, tuple[StructuredTask, nn.Module | None]] = {}
    for _ in range(given.most):
        missing = wanted_rows(kept_rows(given.rows), given.kinds, given.steps)
        row = next((row for row in missing if row["task"] in given.tasks), None)
        if row is None:
            break
        name = row["task"]
        if name not in made:
            task = make_task(name)
            made[name] = task, judge_of(task)
        keep_row(given.rows, run(*made[name], row))


if __name__ == "__main__":
    main()
