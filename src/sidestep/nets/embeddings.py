"""Class embeddings u_y: the targets that denoising blocks learn to recover."""

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.noise import Noise

__all__ = ["embedding_distances", "one_hot_embedding", "orthogonal_embedding", "prototype_embedding"]


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
