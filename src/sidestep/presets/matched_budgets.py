"""How long the runs of the matched suite are: a budget for each data set, and results of others to set beside them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ANCHORS", "BUDGETS", "Anchor", "SuiteBudget", "suite_budget"]


@dataclass(frozen=True)
class SuiteBudget:
    """How long a trial of the search and a run of a seed are."""

    search_images: int | None  # the first of the training split; None for all
    search_epochs: int
    images: int | None
    epochs: int
    train: Mapping[str, Any]  # of the fields of `sidestep.training.Options`
    test_images: int | None = None


_DRAWN, _PHOTOGRAPHS = {"augment": "shift"}, {"augment": "flip-crop"}
BUDGETS: Mapping[str, Mapping[str, SuiteBudget]] = {
    "tiny": {"": SuiteBudget(256, 1, 256, 1, {}, 100)},
    "quick": {
        "": SuiteBudget(None, 1, None, 3, {}),
        "mnist": SuiteBudget(12_000, 1, None, 1, _DRAWN),
        "mnist mlp": SuiteBudget(12_000, 1, None, 3, _DRAWN),
        "mnist blocks": SuiteBudget(3_000, 1, 12_000, 1, _DRAWN),
        "fashion-mnist": SuiteBudget(12_000, 1, None, 1, _DRAWN),
        "cifar10": SuiteBudget(6_000, 1, None, 1, _PHOTOGRAPHS),
        "cifar100": SuiteBudget(6_000, 1, None, 1, _PHOTOGRAPHS),
    },
    "cpu": {
        "": SuiteBudget(None, 2, None, 10, {}),
        "mnist": SuiteBudget(12_000, 1, None, 3, _DRAWN),
        "mnist conv": SuiteBudget(12_000, 1, None, 2, _DRAWN),
        "mnist blocks": SuiteBudget(6_000, 1, 20_000, 1, _DRAWN),
        "fashion-mnist": SuiteBudget(12_000, 1, None, 3, _DRAWN),
        "cifar10": SuiteBudget(6_000, 1, None, 2, _PHOTOGRAPHS),
        "cifar100": SuiteBudget(6_000, 1, None, 2, _PHOTOGRAPHS),
    },
    "full": {
        "": SuiteBudget(None, 10, None, 100, {}),
        "mnist": SuiteBudget(None, 10, None, 60, _DRAWN),
        "fashion-mnist": SuiteBudget(None, 10, None, 60, _DRAWN),
        "cifar10": SuiteBudget(None, 10, None, 100, _PHOTOGRAPHS),
        "cifar100": SuiteBudget(None, 10, None, 100, _PHOTOGRAPHS),
    },
}


def suite_budget(budget: str, data: str, kind: str) -> SuiteBudget:
    """Return the lengths of a budget for a data set and a kind of net; a set without its own has those of any other.

    >>> suite_budget("quick", "mnist", "mlp").search_images, suite_budget("quick", "mnist", "blocks").search_images
    (12000, 3000)
    """
    found = BUDGETS[budget]
    return found.get(f"{data} {kind}") or found.get(data) or found[""]


@dataclass(frozen=True)
class Anchor:
    """A published result, which no run of ours is: other nets, other lengths."""

    data: str
    words: str
    accuracy: float  # in %
    source: str


_PHOTOS = "cifar10"
ANCHORS: tuple[Anchor, ...] = (
    Anchor(_PHOTOS, "local losses, predsim, a large VGG with cutout", 96.40, "Nøkland, Eidnes 2019, arXiv 1901.06656"),
    Anchor(_PHOTOS, "equilibrium propagation, Hopfield-Resnet13", 93.92, "Elayedam, Srinivasan 2025, arXiv 2509.26003"),
    Anchor(
        _PHOTOS,
        "forward-forward, a deep variant (DTG-FF); deep-supervised back-propagation on its net is 2.4 above it",
        91.8,
        "Chen 2026, arXiv 2606.06539",
    ),
    Anchor(_PHOTOS, "SoftHebb, conv stages", 80.3, "Journé et al. 2023, arXiv 2209.11883"),
    Anchor(_PHOTOS, "local greedy forward gradient of activities", 69.32, "Ren et al. 2022, arXiv 2210.03310"),
    Anchor("mnist", "local losses, predsim, a large VGG with cutout", 99.74, "Nøkland, Eidnes 2019, arXiv 1901.06656"),
    Anchor("mnist", "SoftHebb, conv stages", 99.4, "Journé et al. 2023, arXiv 2209.11883"),
    Anchor("mnist", "local greedy forward gradient of activities", 97.45, "Ren et al. 2022, arXiv 2210.03310"),
)
