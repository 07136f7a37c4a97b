"""A language model of trits beside the same net with float weights, at equal processor time.

    python experiments/ternary_text.py TEXT [--steps 425] [--hidden 512 512 512] [--seeds 0 1 2] [--only NAME ...]
    python experiments/ternary_text.py TEXT --steps 210 --seeds 0 --only ternary --set flip_share=0.005

Three ways: `ternary` (noise-step of the preset `noise-step-text`, through `train`), `float` (the same net with float
weights, AdamW, end to end) and `ste` (ternary weights with float latents and scales, AdamW, end to end). Rows of 64
characters, 16 a step, a cosine to zero. Steps of the first two take about as long as each other, those of the third
somewhat longer; the processor seconds of training stand in the result. All that is chosen is chosen on validation; the
test part is read once a run, at its end.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sidestep import data, train
from sidestep.data import DataSet, Split, batch_indices
from sidestep.data.objective import NEXT_TOKENS
from sidestep.nets.ternary.causal import ternary_causal_net
from sidestep.nets.ternary.straight_through import float_twin
from sidestep.noise import Noise
from sidestep.presets.catalogue import find_preset
from sidestep.rules import NoiseStep
from sidestep.training import Options
from sidestep.training.options import Compute

BATCH = 16
RATES = {"float": 1.5e-3, "ste": 3e-3}  # of AdamW: the best of the trials on validation


class Clock:
    """Processor seconds from the beginning of a run to its last step."""

    def on_begin(self, event: Any) -> None:
        """Start."""
        self.started = self.ended = time.process_time()

    def on_step(self, event: Any) -> None:
        """Look."""
        self.ended = time.process_time()

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.started


def ternary(text: DataSet, rule: NoiseStep, seed: int, steps: int) -> dict[str, Any]:
    """Train the net of trits; return bits a character and what they took."""
    clock = Clock()
    result = train(rule, text, Options(steps=steps, batch=BATCH, seed=seed, decay="cosine"), observers=[clock]).result
    return {
        "validation": result["validation_bits_per_token"], "test": result["test_bits_per_token"], "steps": steps,
        "seconds": round(clock.seconds, 1), "weights": result["parameters"],
    }  # fmt: skip


def by_adam(text: DataSet, net: nn.Module, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Train a float twin end to end."""
    weights, started = sum(parameter.numel() for parameter in net.parameters()), time.process_time()
    adam_steps(net, text, rate, seed, steps)
    took = time.process_time() - started
    return {
        "validation": bits(net, text.validation), "test": bits(net, text.test), "steps": steps,
        "seconds": round(took, 1), "weights": weights,
    }  # fmt: skip


def adam_steps(net: nn.Module, text: DataSet, rate: float, seed: int, steps: int) -> None:
    """AdamW with a cosine to zero, on the batches that a run of that seed has."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-3)
    compute, order = Compute.find("cpu", "auto"), Noise(seed).stream("order")
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        rows = batch_indices(order, step, len(text.train), BATCH)
        with compute.autocast():
            loss = NEXT_TOKENS.mean(net(text.train.images[rows]), text.train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def bits(net: nn.Module, split: Split) -> float:
    """Return bits a character."""
    found = [
        NEXT_TOKENS.each(net(split.images[start : start + 200]), split.labels[start : start + 200])
        for start in range(0, len(split), 200)
    ]
    return float(torch.cat(found).double().mean()) / math.log(2)


def main() -> None:
    """Run what was asked for, and print one JSON object a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=425)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 512, 512])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=["ternary", "float", "ste"])
    parser.add_argument("--rate", type=float, help="learning rate of AdamW")
    parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE, options of noise-step")
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = data.from_text(given.text.read_text(encoding="utf-8"), name=given.text.stem)
    options = dict(find_preset("noise-step-text").options) | {"hidden": tuple(given.hidden)}
    for name, _, value in (word.partition("=") for word in given.set):
        options[name] = type(getattr(NoiseStep(), name) or 0.0)(value)
    for seed in given.seeds:
        for way in given.only:
            if way == "ternary":
                found = ternary(text, NoiseStep(**options), seed, given.steps)
            else:
                rate = given.rate or RATES[way]
                plain = ternary_causal_net(text.image_shape[0], text.classes, tuple(given.hidden), False)
                net = float_twin(plain, Noise(seed).stream("layers"), way == "ste")
                found = by_adam(text, net, rate, seed, given.steps) | {"rate": rate}
            print(json.dumps({"way": way, "seed": seed, **found, "set": given.set}), flush=True)


if __name__ == "__main__":
    main()
