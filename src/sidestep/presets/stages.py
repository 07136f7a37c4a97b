"""Presets of rules that train a net in stages, and the baseline with the same net and augmentation."""

from collections.abc import Iterator, Mapping
from typing import Any

from sidestep.presets.preset import Changes, Preset

__all__ = ["staged_presets"]

_CONV = {"net": "conv", "hidden": (64, 128, 256), "label_smoothing": 0.1, "learning_rate": 3e-3}
_TRAIN = {"batch": 128, "decay": "cosine", "warmup": 0.1, "augment": "flip-crop"}
_PATCHES = {"net": "conv", "hidden": (400,), "stage_steps": 350}
_EVOLUTION = {"control": "responses", "norm": False, "population": 2, "eps": 1e-3}


def staged_presets() -> Iterator[Preset]:
    """Yield the presets."""
    yield _preset(
        "local-loss-cifar10", "local-loss", _CONV, {**_TRAIN, "epochs": 6},
        "a small conv net, each stage by back-propagation from a head of its own",
    )  # fmt: skip
    yield _preset(  # an epoch takes half as long again as with local losses
        "backprop-conv-cifar10", "backprop", _CONV, {**_TRAIN, "epochs": 4},
        "back-propagation on the stages of local-loss-cifar10 without biases and norms' scales, in about the same time",
    )  # fmt: skip
    yield _preset(
        "hebbian-cifar10", "hebbian", _PATCHES, {"batch": 128, "decay": "cosine", "augment": "flip", "epochs": 6},
        "soft winner-take-all on whitened patches, and a linear read-out",
        reading="readout",
    )  # fmt: skip
    yield _preset(
        "evolution-mnist", "evolution", _EVOLUTION, {"batch": 512, "decay": "cosine", "epochs": 20},
        "rank-1 noise on the weights of an MLP for each image, one pair, with a control variate; forward passes alone",
        data="mnist",
    )  # fmt: skip


def _preset(  # long: a preset's own fields
    name: str,
    rule: str,
    options: Mapping[str, Any],
    train: Mapping[str, Any],
    summary: str,
    reading: str = "forward",
    data: str = "cifar10",
) -> Preset:
    budgets = {"tiny": Changes({"epochs": 2}), "cpu": Changes({"epochs": min(10, train["epochs"])})}
    return Preset(name, data, rule, options, train, summary, reading, budgets=budgets)
