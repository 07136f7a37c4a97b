"""Class embeddings u_y: the targets that denoising blocks learn to recover."""

import math

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.nets.precision import full_precision
from sidestep.nets.shapes import Shape
from sidestep.noise import Noise

__all__ = [
    "EMBEDDINGS",
    "class_embedding",
    "embedding_distances",
    "expected_embedding",
    "one_hot_embedding",
    "orthogonal_embedding",
    "prototype_embedding",
    "unit_rows",
]

EMBEDDINGS: tuple[str, ...] = ("one-hot", "orthogonal", "learned", "prototype")
LEARNED_DIMENSION = 20  # the paper's d


def embedding_dimension(kind: str, classes: int, pixels: int, dimension: int | None) -> int:
    """Return d for an embedding of that kind: what was asked for, or what follows from the data.

    Raises:
        InputError: for another kind, or a dimension that the kind cannot have.
    """
    if kind not in EMBEDDINGS:
        raise InputError(f"embedding must be {', '.join(EMBEDDINGS)}, got {kind!r}")
    fixed = {"one-hot": (classes, "one element a class"), "prototype": (pixels, "one element a pixel and channel")}
    if kind in fixed:
        size, reason = fixed[kind]
        if dimension not in (None, size):
            raise InputError(
                f"a {kind} embedding has {reason}, here {size}, so dimension cannot be {dimension}; leave dimension "
                "out, or take embedding = learned, which can have any"
            )
        return size
    if kind == "orthogonal" and dimension is not None and dimension < classes:
        raise InputError(
            f"{classes} classes cannot be orthogonal in {dimension} dimensions; give dimension {classes} or more, or "
            "take embedding = learned, which starts as orthogonal as it can be"
        )
    return dimension if dimension is not None else (classes if kind == "orthogonal" else LEARNED_DIMENSION)


def class_embedding(  # long: an embedding depends on the data, too
    kind: str,
    classes: int,
    image_shape: Shape,
    dimension: int | None,
    noise: Noise,
    images: Tensor | None,
    labels: Tensor | None,
) -> Tensor:
    """Return the class embeddings of that kind, float32 of shape (classes, dimension).

    Args:
        kind: one-hot; orthogonal: fixed random orthonormal rows; learned: the same where d allows it, to be trained;
            prototype: each class's most central image, to be trained.
        classes: m.
        image_shape: (channels, height, width).
        dimension: d, or None for what the kind and the data give.
        noise: where random directions come from.
        images: standardised training images for prototypes; None where weights are about to be loaded.
        labels: their labels.

    Raises:
        InputError: for another kind, a dimension it cannot have, or labels beyond the classes.
    """
    if labels is not None and len(labels) and int(labels.max()) >= classes:
        raise InputError(
            f"the images have labels up to {int(labels.max())}, but the embedding has rows for {classes} classes "
            f"(0 to {classes - 1}); give as many class names as there are classes"
        )
    size = embedding_dimension(kind, classes, math.prod(image_shape), dimension)
    if kind == "one-hot":
        return one_hot_embedding(classes)
    if kind in ("orthogonal", "learned"):
        return orthogonal_embedding(classes, size, noise)
    if images is None or labels is None:
        return torch.zeros(classes, size)
    return prototype_embedding(images, labels, classes)


def expected_embedding(logits: Tensor, rows: Tensor) -> Tensor:
    """Return `uhat = softmax(logits) W`: (batch, classes) and (classes, dimension) -> (batch, dimension)."""
    with full_precision(logits):
        return logits.softmax(dim=1) @ rows


def unit_rows(rows: Tensor) -> Tensor:
    """Return the rows scaled to Euclidean norm 1, of the shape given.

    >>> unit_rows(torch.tensor([[3.0, 4.0]])).tolist()
    [[0.6000..., 0.8000...]]
    """
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def one_hot_embedding(classes: int) -> Tensor:
    """Return the identity, float32 of shape (classes, classes): class y is the y-th unit vector."""
    return torch.eye(classes)


def orthogonal_embedding(classes: int, dimension: int, noise: Noise) -> Tensor:
    """Return random unit vectors, orthogonal to one another where the dimension allows it.

    Args:
        classes: m, the number of rows.
        dimension: d, the length of each row; with d < m the rows cannot all be orthogonal, then the columns are,
            scaled so that the mean squared norm of a row is 1.
        noise: where the random directions come from.

    Returns:
        float32 tensor of shape (classes, dimension).
    """
    if dimension < 1:
        raise InputError(f"the embedding dimension must be at least 1, got {dimension}")
    gaussian = noise.normal(classes * dimension).double().reshape(classes, dimension)
    tall = gaussian if classes >= dimension else gaussian.T
    basis, triangle = torch.linalg.qr(tall)
    basis = basis * triangle.diagonal().sign()
    rows = basis if classes >= dimension else basis.T
    return (rows * (classes / dimension) ** 0.5 if classes > dimension else rows).float()


def prototype_embedding(images: Tensor, labels: Tensor, classes: int, most: int = 2000) -> Tensor:
    """Return for each class its most central image: the one with the smallest median distance to its class.

    Args:
        images: standardised images, float of shape (n, channels, height, width).
        labels: int64 of shape (n,), with every class present.
        classes: the number of classes, m.
        most: candidates considered per class, the first ones, since the cost grows with their square.

    Returns:
        float32 tensor of shape (classes, channels * height * width).

    Raises:
        InputError: if a class has no image.
    """
    rows = []
    for label in range(classes):
        members = images[labels == label][:most].flatten(1).float()
        if not len(members):
            raise InputError(f"class {label} has no training image, so it has no prototype; use another embedding")
        distances = torch.cdist(members, members)
        middle = min(len(members), (len(members) - 1) // 2 + 2)  # the median of the others: the 0 to itself comes first
        median = distances.kthvalue(middle, dim=1).values  # (members,)
        rows.append(members[median.argmin()])
    return torch.stack(rows)


def embedding_distances(embedding: Tensor) -> dict[str, float]:
    """Return the smallest norm and the smallest pairwise distance of the rows: both fall to 0 in a collapse.

    >>> {name: round(value, 3) for name, value in embedding_distances(torch.eye(3)).items()}
    {'smallest embedding norm': 1.0, 'smallest embedding distance': 1.414}
    """
    rows = embedding.detach().cpu().double()
    distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    distance.fill_diagonal_(float("inf"))
    return {
        "smallest embedding norm": float(rows.norm(dim=1).min()),
        "smallest embedding distance": float(distance.min()),
    }
