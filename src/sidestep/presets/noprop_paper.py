"""Presets for every cell of NoProp's table of accuracies, with the settings of the paper.

Li, Teh, Pascanu, "NoProp: Training Neural Networks without (Full) Back-propagation or (Full) Forward-propagation",
arXiv 2503.24322: the accuracies of its Tables 1 and 3, its hyper-parameters and its GPU memory. What the paper leaves
open keeps the rules' defaults. All training images are trained on, as there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidestep.presets.preset import Changes, PaperCell, Preset

__all__ = ["TABLE", "paper_presets", "paper_settings"]

TABLE = "noprop-table1"
_DATA = ("mnist", "cifar10", "cifar100")
_TITLES = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_COMMON = {"path": "auto", "learning_rate": 1e-3, "weight_decay": 1e-3}
_BLOCKS = {"blocks": 10, **_COMMON}
_TIMED = {
    "loss": "paper", "times": "uniform", "draws_per_image": 1, "steps": 1000, **_COMMON, "optimizer_kind": "adam",
}  # fmt: skip
_TRAIN = {"batch": 128, "augment": "none", "decay": "none", "warmup": 0.0, "average": 0.0}


@dataclass(frozen=True)
class _Method:
    """One group of rows: the same rule with several class embeddings, on three data sets."""

    row: str
    rule: str
    title: str
    reading: str
    sampled: bool
    epochs: tuple[int, int, int]  # one per data set
    cpu_epochs: int
    memory: tuple[float, float, float]  # GB, one per data set
    options: Mapping[str, Any]
    means: Mapping[str, tuple[float, float, float]]  # embedding -> % per data set
    errors: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


_METHODS = (
    _Method(
        "backprop", "backprop", "back-propagation", "forward", sampled=False,
        epochs=(100, 150, 150), cpu_epochs=5, memory=(0.87, 1.17, 1.73),
        options={"net": "chained-blocks", **_BLOCKS},
        means={"one-hot": (99.46, 79.92, 45.85), "learned": (99.43, 79.3, 46.57), "prototype": (99.44, 79.58, 47.8)},
    ),
    _Method(
        "dt", "noprop-dt", "NoProp-DT", "ancestral", sampled=True,
        epochs=(100, 150, 150), cpu_epochs=5, memory=(0.49, 0.64, 1.23),
        options={"loss": "paper", "levels": "cosine", "eta": 0.1, "readout": "softmax", "unit_norm": False, **_BLOCKS},
        means={"one-hot": (99.47, 79.25, 45.93), "learned": (99.49, 79.12, 45.19), "prototype": (99.54, 80.54, 46.06)},
        errors={"one-hot": (0.05, 0.28, 0.46), "learned": (0.04, 0.37, 0.22), "prototype": (0.04, 0.2, 0.25)},
    ),
    _Method(
        "neural-ode", "neural-ode", "neural ODE by the adjoint method", "from noise", sampled=True,
        epochs=(2, 4, 4), cpu_epochs=1, memory=(2.32, 6.23, 6.45),
        options={"gradient": "adjoint", "readout": "softmax", "steps": 1000, **_COMMON},
        means={"one-hot": (98.62, 66.78, 25.03)},
    ),
    _Method(
        "ct", "noprop-ct", "NoProp-CT", "ancestral", sampled=True,
        epochs=(100, 500, 1000), cpu_epochs=10, memory=(1.05, 0.45, 0.50),
        options={"schedule": "learned", "eta": 1.0, "readout": "softmax", "unit_norm": False, **_TIMED},
        means={"one-hot": (97.84, 73.35, 33.66), "learned": (97.7, 71.77, 33.99), "prototype": (97.17, 66.54, 21.31)},
    ),
    _Method(
        "fm", "noprop-fm", "NoProp-FM", "euler from noise", sampled=True,
        epochs=(100, 500, 1000), cpu_epochs=10, memory=(1.06, 0.44, 0.49),
        options={"prediction": "velocity", "sigma": 0.0, "readout": "nearest", "unit_norm": False, **_TIMED},
        means={"one-hot": (99.21, 73.14, 6.38), "learned": (99.29, 73.5, 31.14), "prototype": (98.52, 75.18, 37.57)},
    ),
)  # fmt: skip


def paper_presets() -> Iterator[Preset]:
    """Yield a preset for every cell: method by embedding by data set."""
    for method in _METHODS:
        for embedding in method.means:
            for index, data in enumerate(_DATA):
                yield _cell(method, embedding, index, data)


def paper_settings(row: str) -> dict[str, Any]:
    """Return the rule's options that the paper has in a group of rows, such as `dt`."""
    return dict(next(method.options for method in _METHODS if method.row == row))


def _cell(method: _Method, embedding: str, index: int, data: str) -> Preset:
    error = method.errors[embedding][index] if embedding in method.errors else None
    paper = PaperCell(method.means[embedding][index], error)
    return Preset(
        name=f"{method.rule}-{data}-{embedding}",
        data=data,
        rule=method.rule,
        options={**method.options, **_embedding_options(embedding)},
        train={"epochs": method.epochs[index], **_TRAIN},
        summary=f"{method.title}, {embedding} labels, on {_TITLES[data]}, as in the NoProp paper",
        reading=method.reading,
        validation=0.0,
        table=TABLE,
        row=f"{method.row}-{embedding}",
        paper=paper,
        memory_gb=method.memory[index] if embedding == "one-hot" else None,
        sampled=method.sampled,
        budgets=_budgets(method, embedding),
    )


def _embedding_options(embedding: str) -> dict[str, Any]:
    return {"embedding": embedding, **({"dimension": 20} if embedding == "learned" else {})}


def _budgets(method: _Method, embedding: str) -> dict[str, Changes]:
    """Return what is changed to fit a row into hours on a CPU (`cpu`), or into a minute (`tiny`)."""
    if "steps" not in method.options:
        return {"tiny": Changes({"epochs": 2}), "cpu": Changes({"epochs": method.cpu_epochs})}
    # an image-shaped z takes its convolutional path at every step, and a neural ODE takes the steps in training too
    slow = embedding == "prototype" or method.row == "neural-ode"
    cpu = Changes({"epochs": method.cpu_epochs}, {"steps": 20 if slow else 100})
    return {"tiny": Changes({"epochs": 2}, {"steps": 5}), "cpu": cpu}
