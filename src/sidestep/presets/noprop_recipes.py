"""Presets beyond the paper's tables: BloodMNIST by the paper's settings, and the recipes that we would take ourselves.

The recipes train on a cross-entropy in place of the squared error with its uneven weights, let the learning rate fall,
and evaluate averaged weights; the baseline gets all of that too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sidestep.presets.noprop_paper import paper_settings
from sidestep.presets.preset import Changes, Preset

__all__ = ["improved_presets"]

_SIMPLE, _COLOUR = ("mnist", "bloodmnist"), ("cifar10", "cifar100")
_SIZES = {"bloodmnist": 128}
_MEASURED = ("noprop-best-mnist-dt",)
_SCHEDULE = {"decay": "cosine", "warmup": 0.1, "average": 0.99}
_TIMED = {
    "loss": "cross-entropy", "times": "stratified", "draws_per_image": 4, "optimizer_kind": "adamw",
}  # fmt: skip
_NORM: Mapping[str, Any] = {"norm": "batch"}  # of the paper's path; a ResNet-9 has batch norm after every convolution
_RECIPES: dict[str, tuple[str, str, str, Mapping[str, Any]]] = {  # key -> rule, its title, reading, options
    "dt": ("noprop-dt", "NoProp-DT", "ddim", {"blocks": 4, "levels": "readable", "loss": "cross-entropy"}),
    "ct": ("noprop-ct", "NoProp-CT", "ddim", {"schedule": "linear", **_TIMED}),
    "fm": ("noprop-fm", "NoProp-FM", "euler", {"prediction": "label", **_TIMED}),
    "backprop": ("backprop", "back-propagation", "forward", {"blocks": 4}),
}


def improved_presets() -> Iterator[Preset]:
    """Yield the presets for BloodMNIST, then the recipes: each rule on each data set."""
    yield _blood("dt", {"blocks": 5}, 100, "98.42 %")
    yield _blood("ct", {}, 1000, "75.5 %")
    for data in (*_SIMPLE, *_COLOUR):
        for key in _RECIPES:
            yield _recipe(key, data)


def _blood(row: str, options: Mapping[str, Any], epochs: int, other: str) -> Preset:
    rule, title = _RECIPES[row][:2]
    steps: dict[str, Mapping[str, Any]] = {"tiny": {"steps": 5}, "cpu": {"steps": 100}} if row == "ct" else {}
    return Preset(
        name=f"{rule}-bloodmnist",
        data="bloodmnist",
        rule=rule,
        options={**paper_settings(row), "embedding": "one-hot", **options},
        train={"epochs": epochs, "batch": 128},
        summary=f"{title} on BloodMNIST at 128 x 128; not in the paper (another implementation: {other}, T = 1000)",
        reading="ancestral",
        image_size=_SIZES["bloodmnist"],
        sampled=True,
        budgets={name: Changes({"epochs": n}, steps.get(name, {})) for name, n in (("tiny", 2), ("cpu", 3))},
    )


def _recipe(key: str, data: str) -> Preset:
    rule, title, reading, options = _RECIPES[key]
    name = f"backprop-best-{data}" if key == "backprop" else f"noprop-best-{data}-{key}"
    norm = _NORM if key in ("ct", "fm") and data != "bloodmnist" else {}  # there it hardly pays
    path, train, budgets = _for_colour(norm) if data in _COLOUR else _for_simple(norm)
    if data == "bloodmnist":  # so few images that steps count for more than the size of a batch
        path, train = {**path, "learning_rate": 1e-3}, {**train, "batch": 32}
    return Preset(
        name=name,
        data=data,
        rule=rule,
        options={**options, **path},
        train={**_SCHEDULE, **train},
        summary=f"{title}, our recipe for {data}{'' if name in _MEASURED else ', not measured at its full budget yet'}",
        reading=reading,
        image_size=_SIZES.get(data),
        budgets=budgets,
    )


def _for_simple(own: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Changes]]:
    """Return options, `own` among them, training options and budgets for sets on which the paper's path is enough."""
    options = {"path": "auto", "label_smoothing": 0.0, "learning_rate": 2e-3, **own}
    train = {"epochs": 10, "batch": 128, "augment": "none"}
    return options, train, {"tiny": Changes({"epochs": 2}), "cpu": Changes()}


def _for_colour(own: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Changes]]:
    """Return the same for photographs: a ResNet-9 with augmentation, or on a CPU the paper's small path, and `own`."""
    options = {"path": "resnet-9", "label_smoothing": 0.1, "learning_rate": 4e-3}
    train = {"epochs": 60, "batch": 512, "augment": "flip-crop"}
    smaller = {"path": "figure-6", "label_smoothing": 0.0, "learning_rate": 2e-3, **own}
    cpu = Changes({"epochs": 10, "batch": 128, "augment": "none"}, smaller)
    tiny = Changes({"epochs": 2, "batch": 128, "augment": "none"}, smaller)
    return options, train, {"tiny": tiny, "cpu": cpu}
