"""How many signs change with bfloat16: trits of weight probes, and flips of local gradients, at equal batch and noise.

    python -m experiments.bfloat16_signs [--data mnist] [--batches 10] [--seeds 0 1 2]

A ternary MLP of 256 and 256 units, drawn and after an epoch of flips. For each of some batches one estimate is made in
float32 and one with products in bfloat16 (torch's autocast, what `precision = auto` takes where the processor has it).
"""

import argparse
import json

import torch

from experiments.given import a_count, a_seed
from sidestep import data, train
from sidestep.data import batch_indices
from sidestep.noise import Noise
from sidestep.rules import Batch, NoiseStep, Task
from sidestep.training import Options
from sidestep.update import Flips, Seeded

RULES = {
    "trits of 128 weight probes": NoiseStep(estimator="weight-probes", hidden=(256, 256)),
    "flips of local losses": NoiseStep(hidden=(256, 256), norm="layer"),
    "flips of local probes": NoiseStep(hidden=(256, 256), estimator="local-probes", directions=64),
}


def changed(rule: NoiseStep, net: torch.nn.Module, batch: Batch, noise: Noise) -> tuple[int, int, int]:
    """Return how many signs differ, how many trits became 0 or not (or flips are others), and how many there are."""
    found = []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            update = rule.estimate(net, batch, noise)
        found.append(rule.decide(net, update, rule.optimizer(net)))
    first, second = found
    if isinstance(first, Seeded) and isinstance(second, Seeded):
        differ = first.coefs != second.coefs
        return int((first.coefs * second.coefs < 0).sum()), int(differ.sum()), len(differ)
    assert isinstance(first, Flips)
    assert isinstance(second, Flips)
    moves = [dict(zip(each.positions.tolist(), each.moves.tolist(), strict=True)) for each in found]
    opposite = sum(move != moves[1].get(place, move) for place, move in moves[0].items())
    return opposite, len(moves[0].keys() - moves[1].keys()), len(moves[0])


def net_of(rule: NoiseStep, split: data.DataSet, epochs: int, seed: int) -> torch.nn.Module:
    """Return the rule's net as drawn, or with the weights of a run by local losses."""
    net = rule.build(Task.of(split), Noise(seed), None, None)
    if epochs:
        plain = NoiseStep(hidden=rule.hidden, norm="layer")
        weights = train(plain, split, Options(epochs=epochs, batch=500, seed=seed)).net.state_dict()
        if len(net.heads) == 1:  # the last one
            weights["heads.0.weight"] = weights[f"heads.{len(rule.hidden) - 1}.weight"]
        net.load_state_dict({name: weights[name] for name in net.state_dict()})
    return net


def main() -> None:
    """Print one JSON object for each rule and net: sums over batches and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--batches", type=a_count, default=10)
    parser.add_argument("--seeds", type=a_seed, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    split = data.load(given.data)
    task = Task.of(split)
    for name, rule in RULES.items():
        for epochs in (0, 1):
            sums = [0, 0, 0]
            for seed in given.seeds:
                net = net_of(rule, split, epochs, seed)
                for step in range(given.batches):
                    rows = batch_indices(Noise(seed).stream("order"), step, len(split.train), 500)
                    batch = Batch(task.prepare(split.train.images[rows]), split.train.labels[rows], task.objective)
                    counted = changed(rule, net, batch, Noise(seed).stream("estimate").at(step))
                    sums = [total + each for total, each in zip(sums, counted, strict=True)]
            found = {"what": name, "epochs": epochs, "opposite": sums[0], "other": sums[1], "of": sums[2]}
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
