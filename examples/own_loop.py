"""A rule in a loop of your own: train digits by back-propagation, then fit its first layer to fog by SPSA.

    python examples/own_loop.py

What comes behind the first layer is frozen meanwhile. Every step is in a log, a few bytes each, which leads from the
weights before to those after without any data.
"""

import copy
import tempfile
from pathlib import Path

import torch
from torch import nn

import sidestep
from sidestep import rules
from sidestep.data import load
from sidestep.noise import Noise


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of the images that the model is right about."""
    model.eval()
    with torch.no_grad():
        found = float((model(images).argmax(dim=1) == labels).float().mean())
    model.train()
    return found


def main() -> None:
    """Train, fit, replay, and print what came out."""
    noise = Noise(0)
    data = load("digits")
    pixels, labels = data.train.images.flatten(1).float() / 255, data.train.labels
    foggy = 0.3 * pixels + 0.3
    with noise.torch_seeded():
        model = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    step = sidestep.attach(model, rules.Backprop(learning_rate=3e-3))
    for epoch in range(10):
        for rows in noise.at(epoch).permutation(len(pixels)).split(128):
            step(pixels[rows], labels[rows])
    print(f"by back-propagation: {accuracy(model, pixels, labels):.1%} of the digits", end=", ")
    print(f"{accuracy(model, foggy, labels):.1%} of them in fog")

    for parameter in model[3:].parameters():
        parameter.requires_grad_(False)
    before, log = copy.deepcopy(model), Path(tempfile.mkdtemp()) / "fog.steplog"
    rule = rules.SPSA()
    with sidestep.attach(model, rule, objective="classes", log=log) as step:
        for epoch in range(10, 30):
            for rows in noise.at(epoch).permutation(len(pixels)).split(256):
                step(foggy[rows], labels[rows])
    print(f"after {step.steps} steps by forward passes alone: {accuracy(model, foggy, labels):.1%} in fog")

    sidestep.replay(log, before)
    same = all(torch.equal(one, other) for one, other in zip(model.parameters(), before.parameters(), strict=True))
    print(f"{log.stat().st_size:,} bytes of log lead to the same weights: {same}")


if __name__ == "__main__":
    main()
