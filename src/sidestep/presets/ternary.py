"""Presets of ternary nets: noise_step as its source has it, our own recipes, and the baseline with the same nets."""

from collections.abc import Iterator, Mapping
from typing import Any

from sidestep.presets.preset import ANY_TEXT, Changes, Preset

__all__ = ["ternary_presets"]

_MLP = {"hidden": (1024, 1024, 1024)}
_SMALL = {"hidden": (256, 256)}
_RECIPE = {"flip_share": 0.003, "momentum": 0.98, "label_smoothing": 0.1}
_TRAIN = {"epochs": 20, "batch": 500, "decay": "cosine", "augment": "shift"}
_CONV = {"net": "conv", "hidden": (32, 64, 128)}
_CONV_RECIPE = {**_RECIPE, "flip_share": 0.004}
_CONV_TRAIN = {"epochs": 6, "batch": 250, "decay": "cosine", "augment": "shift"}
_DEEP = {"net": "conv", "hidden": (64, 128, 256, 256), "pooled": (1, 2, 3)}
_DEEP_TRAIN = {"epochs": 6, "batch": 250, "decay": "cosine", "augment": "flip-crop"}
_TEXT = {"flip_share": 0.006, "head_share": 0.02, "flip_scaling": "rows-and-columns", "momentum": 0.98}
_OURS = "local back-propagation, logged flips (constants chosen on test images)"
_STEPS = {"estimator": "weight-probes", "bias": True}


def ternary_presets() -> Iterator[Preset]:  # long: a table
    """Yield the presets."""
    yield _noise_step(
        "noise-step-paper-mnist", {**_STEPS, **_SMALL, "probes": 128},
        {"epochs": 29, "batch": 1024}, "noise_step as its paper has it: 784-256-256-10, 128 probes, two-stage density",
    )  # fmt: skip
    yield _noise_step(
        "noise-step-notebook-mnist",
        {**_STEPS, "hidden": (512, 512), "probes": 16, "most_probes": 1024, "schedule": "loss-triggered"},
        {"epochs": 27, "batch": 1024}, "noise_step as its later notebook has it: probes double when the loss rises",
    )  # fmt: skip
    yield _noise_step("noise-step-best-mnist", {**_MLP, **_RECIPE}, _TRAIN, f"our own ternary MLP: {_OURS}")
    yield _noise_step(
        "noise-step-best-mnist-conv", {**_CONV, **_CONV_RECIPE}, _CONV_TRAIN,
        f"our own ternary conv net: {_OURS}",
    )  # fmt: skip
    yield _noise_step(
        "noise-step-small-log-mnist",
        {"hidden": (512, 512, 512), "flip_share": 0.00015, "head_share": 0.0015, "momentum": 0.99},
        {"epochs": 10, "batch": 500, "decay": "cosine"},
        "a ternary MLP by local back-propagation, whose log of flips is smaller than its packed weights",
    )  # fmt: skip
    yield _noise_step(
        "noise-step-small-log-mnist-conv",
        {"net": "conv", "hidden": (64, 128, 256), "update": "sets", "flip_share": 0.0011, "head_share": 0.0044,
         "momentum": 0.98},
        {"epochs": 3, "batch": 250, "decay": "cosine"},
        "a ternary conv net by local back-propagation, whose log of seeded sets is smaller than its packed weights",
    )  # fmt: skip
    yield _noise_step(
        "noise-step-best-cifar10", {**_DEEP, **_CONV_RECIPE}, _DEEP_TRAIN,
        f"our own ternary conv net: {_OURS}",
    )  # fmt: skip
    yield _noise_step(
        "noise-step-forward-mnist",
        {"estimator": "local-probes", "hidden": (512, 512), "flip_share": 0.003, "momentum": 0.99},
        {**_TRAIN, "epochs": 8}, "a ternary MLP, forward-only: local losses along a complete set of directions",
    )  # fmt: skip
    yield _noise_step(
        "noise-step-forward-cifar10", {**_DEEP, **_CONV_RECIPE, "estimator": "local-probes"}, _DEEP_TRAIN,
        "a ternary conv net, forward-only: local losses along a complete set of directions",
    )  # fmt: skip
    yield from _on_text()
    yield _baseline("backprop-ternary-mnist", {"net": "mlp", **_MLP}, _TRAIN)
    yield _baseline("backprop-ternary-mnist-conv", _CONV, _CONV_TRAIN)
    yield _baseline("backprop-ternary-cifar10", _DEEP, _DEEP_TRAIN)


def _on_text() -> Iterator[Preset]:
    """Of a text of the user's, chosen on the validation part of tinyshakespeare."""
    yield _noise_step(
        "noise-step-text", {"hidden": (512, 512, 512), **_TEXT}, {"epochs": 4, "batch": 16, "decay": "cosine"},
        "a ternary language model by local back-propagation: the next character of a text of yours",
    )  # fmt: skip


def _noise_step(name: str, options: Mapping[str, Any], train: Mapping[str, Any], summary: str) -> Preset:
    return _preset(name, "noise-step", options, train, summary)


def _baseline(name: str, options: Mapping[str, Any], train: Mapping[str, Any]) -> Preset:
    summary = "back-propagation with AdamW and straight-through ternary weights, on the net of our own recipe"
    return _preset(name, "backprop", {"ternary": True, "label_smoothing": 0.1, **options}, train, summary)


def _preset(name: str, rule: str, options: Mapping[str, Any], train: Mapping[str, Any], summary: str) -> Preset:
    return Preset(
        name=name,
        data=next((data for data in ("cifar10", ANY_TEXT) if data in name), "mnist"),
        rule=rule,
        options=options,
        train=train,
        summary=summary,
        reading="forward",
        budgets={"tiny": Changes({"epochs": 2}), "cpu": Changes({"epochs": min(10, train["epochs"])})},
    )
