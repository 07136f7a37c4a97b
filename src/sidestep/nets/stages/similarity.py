"""The similarity loss: features of one class are to look alike, and those of different classes not.

    |C(A(P h)) - C(Y)|^2 / n^2

C is the matrix of the cosines between the examples of a batch, after their mean is taken off; P a learned projection; A
the standard deviation over places; Y the one-hot labels (Nøkland and Eidnes 2019, section 2).
"""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from sidestep.nets.precision import at_least_float32, full_precision
from sidestep.noise import Noise

__all__ = ["add_projections", "projection_for", "similarity_loss"]


def projection_for(shape: tuple[int, ...]) -> nn.Module:
    """Return what features of this shape, without the batch, pass before they are compared."""
    width = shape[0]
    return nn.Conv2d(width, width, 3, padding=1, bias=False) if len(shape) == 3 else nn.Linear(width, width, bias=False)


def add_projections(net: nn.Module, shapes: Iterable[tuple[int, ...]], noise: Noise) -> nn.ModuleList:
    """Give a net a projection for each of its stages, whose features have these shapes; return them."""
    with noise.stream("projections").torch_seeded():
        net.projections = projections = nn.ModuleList(map(projection_for, shapes))
    return projections


def similarity_loss(projection: nn.Module, outputs: Tensor, classes: int, labels: Tensor) -> Tensor:
    """Return the mean squared difference between the cosines of projected features and those of labels, ()."""
    if outputs.ndim == 3:  # rows of features, of which the paper has none
        outputs = at_least_float32(outputs).std(dim=2)
    features = at_least_float32(projection(outputs))
    if features.ndim == 4:  # the deviation over places says how strongly a channel responds
        features = features.flatten(2)
        features = features.std(dim=2) if features.shape[2] > 1 else features.flatten(1)
    with full_precision(features):
        found, wanted = (_cosines(rows) for rows in (features, one_hot(labels, classes).to(features.dtype)))
        return (found - wanted).square().mean()


def _cosines(rows: Tensor) -> Tensor:
    centred = normalize(rows - rows.mean(dim=1, keepdim=True), dim=1)
    return centred @ centred.T  # (batch, batch)
