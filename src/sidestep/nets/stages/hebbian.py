"""Hebbian layers: weights that follow the correlations of their inputs, without labels and without errors.

    oja      Delta W = y x^T - (y y^T) W                 rows span the first principal components (one row: the first)
    sanger   Delta W = y x^T - tril(y y^T) W             row i becomes the i-th principal component
    winner   Delta w_k = r_k (x - y_k w_k)               r = softmax(y / T)
    against  the same, with minus r_k for all units but the strongest

with y = W x; in a conv net, x are patches. Sources: Oja, "Simplified neuron model as
a principal component analyzer" (1982) and its subspace form (1989); Sanger, "Optimal unsupervised learning in a
single-layer linear feedforward neural network" (1989); Moraitis et al., "SoftHebb" (2022), for `winner`; Journé et al.,
"Hebbian deep learning without feedback" (2023), equations 1 and 2, for `against`.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import at_least_float32, full_precision
from sidestep.nets.shapes import Shape, image_sides
from sidestep.nets.stages.layerwise import check_hidden
from sidestep.nets.stages.patches import Patches
from sidestep.nets.ternary.nets import GridAverage
from sidestep.noise import Noise

__all__ = ["HebbianKind", "HebbianNet", "HebbianStage", "hebbian_change", "some_rows"]

HebbianKind = Literal["winner", "against", "oja", "sanger"]
_MOMENTUM = 0.02  # of running statistics: an average over some fifty batches
_PATCHES = 4096  # of a batch that a stage learns from at most: patches of one image are much alike
_GRID = 4  # rows and columns of averages that the read-out sees of a map, at most


def hebbian_change(kind: HebbianKind, layer: nn.Linear | nn.Conv2d, inputs: Tensor, temperature: float) -> Tensor:
    """Return Delta W, (units, inputs), averaged over the rows of `inputs`.

    Args:
        kind: which rule.
        layer: a linear layer, or a convolution, whose weight has a row for each unit.
        inputs: what the layer sees, (examples or patches, inputs).
        temperature: T of the soft winner-take-all.
    """
    weight = layer.weight.detach().flatten(1)  # (units, inputs)
    with torch.no_grad(), full_precision(inputs):
        inputs = at_least_float32(inputs)
        answers = inputs @ weight.T  # (rows, units)
        if kind in ("winner", "against"):
            response = _soft_winner(answers, temperature, kind == "against")
            pull = (response * answers).sum(dim=0)[:, None] * weight
        else:
            response = answers
            together = answers.T @ answers  # (units, units)
            pull = (together.tril() if kind == "sanger" else together) @ weight
        return (response.T @ inputs - pull) / len(inputs)


def _soft_winner(rows: Tensor, temperature: float, against: bool) -> Tensor:
    share = (rows / temperature).softmax(dim=1)
    return share * (2 * one_hot(rows.argmax(dim=1), rows.shape[1]) - 1) if against else share


def some_rows(rows: Tensor, noise: Noise) -> Tensor:
    """Return all rows, or a random choice where there are many, (up to 4096, inputs)."""
    if len(rows) <= _PATCHES:
        return rows
    return rows[noise.stream("patches").integers(_PATCHES, len(rows), device=rows.device)]


class HebbianStage(nn.Module):
    """Evened inputs, a layer that learns by correlation, and features made of its answers.

        u = W before(x)      MLP: relu(standard(u))      patches: relu(u - mean of u over units)      both: oja, sanger

    Inputs are standardised per example in an MLP; in a conv net they are patches, evened and whitened. Principal
    components have no sign, so for them features are relu(u) and relu(-u).

    Args:
        before: what is done to inputs; gives (batch, inputs), or (batch, places, inputs).
        layer: a linear layer without a bias.
        halves: whether features are relu(u) and relu(-u), for units whose sign means nothing.
        places: rows and columns of patches; None in an MLP.
    """

    def __init__(
        self, before: nn.Module, layer: nn.Linear, halves: bool, places: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.before, self.layer, self.halves, self.places = before, layer, halves, places
        norm = nn.BatchNorm1d(layer.out_features, momentum=_MOMENTUM, affine=False)
        self.after = norm if places is None else nn.Identity()

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the layer sees, and the features: (batch, units), or (batch, units, height, width)."""
        seen = self.before(inputs)
        answers = self.after(self.layer(seen))
        if self.halves:
            features = torch.cat([answers, -answers], dim=-1).relu()
        elif self.places:  # the triangle of Coates et al.: at a place, only units that answer above the mean speak
            features = answers.sub_(answers.mean(dim=-1, keepdim=True)).relu_()
        else:
            features = answers.relu()
        return seen, features.unflatten(1, self.places).movedim(-1, 1) if self.places else features


class HebbianNet(nn.Module):
    """Hebbian stages, and a linear read-out of all their features; images -> logits (batch, classes).

    The read-out of a conv net sees averages of features over a grid of up to 4 x 4 places, standardised.

    Args:
        net: `mlp`, or `conv`: patches of 6 x 6 of the image, or of 5 x 5 below 16 x 16; 3 x 3 of pooled features.
        image_shape: (channels, height, width).
        hidden: units or channels of the stages.
        classes: number of classes.
        kind: the rule, which says what features are.
        noise: where the initial weights come from: normal, rows of length about 1.
    """

    def __init__(  # long: what such a net is made of
        self,
        net: str,
        image_shape: Shape,
        hidden: tuple[int, ...],
        classes: int,
        kind: HebbianKind,
        noise: Noise,
    ) -> None:
        super().__init__()
        check_hidden(hidden)
        halves = kind in ("oja", "sanger")
        self.stages, self.summaries, features = nn.ModuleList(), nn.ModuleList(), 0
        shape = image_shape if net == "mlp" else image_sides(image_shape)
        for index, outputs in enumerate(hidden):
            places = None
            if net == "mlp":
                inputs = torch.Size(shape).numel()
                before = nn.Sequential(nn.Flatten(), nn.LayerNorm(inputs, elementwise_affine=False))
            else:
                before, inputs, places = _before_patches(image_sides(shape), first=index == 0, whitened=not halves)
            layer = nn.Linear(inputs, outputs, bias=False)
            drawn = noise.sub(index).normal(layer.weight.numel()).view_as(layer.weight) / inputs**0.5
            layer.weight = nn.Parameter(drawn)
            self.stages.append(HebbianStage(before, layer, halves, places))
            shape = (outputs * (1 + halves), *(places or (1, 1)))
            summary, size = _summary(shape) if places else (nn.Identity(), shape[0])
            self.summaries.append(summary)
            features += size
        self.readout = nn.Linear(features, classes)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def fit(self, images: Tensor) -> None:
        """Take the whitening of the first stage's patches from standardised images; in an MLP there is none."""
        before = self.stages[0].before[-1]  # type: ignore[index]
        if isinstance(before, Patches):
            before.fit(images)

    def stage_pass(self, index: int, images: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Return what a stage's layer sees, as rows, its features, and what the read-out gets of them.

        Besides, the new value of each buffer that changed, by name; the net is left as it was.
        """
        stage, summary = self.stages[index], self.summaries[index]
        own = (kept_statistics(stage, f"stages.{index}."), kept_statistics(summary, f"summaries.{index}."))
        with own[0] as of_stage, own[1] as of_summary, torch.no_grad():
            seen, features = stage(images)
            summed = summary(features)
            return seen.flatten(0, -2), features, summed, {**of_stage(), **of_summary()}

    def seen(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what each stage's layer sees, as rows, and all features that the read-out gets, (batch, features)."""
        inputs, found = [], []
        for stage, summary in zip(self.stages, self.summaries, strict=True):
            seen, images = stage(images)
            inputs.append(seen.flatten(0, -2))
            found.append(summary(images))
        return inputs, torch.cat(found, dim=1)

    def joined(self, images: Tensor) -> Tensor:
        """Return all features that the read-out gets, (batch, features), differentiable by the stages' weights."""
        return self.seen(images)[1]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits; no derivative passes from the read-out to the stages."""
        with torch.no_grad():
            features = self.seen(images)[1]
        return at_least_float32(self.readout(features))


def _before_patches(
    shape: tuple[int, int, int], first: bool, whitened: bool
) -> tuple[nn.Sequential, int, tuple[int, int]]:
    """What cuts an image, or a stage's features, into patches; their size, and how many there are."""
    (channels, *size), layers = shape, list[nn.Module]()
    if first:
        side, stride = (6, 2) if min(size) >= 16 else (5, 1)
    else:
        side, stride = 3, 1
        if min(size) >= 4:
            layers.append(nn.MaxPool2d(2))
            size = [length // 2 for length in size]
        layers.append(nn.BatchNorm2d(channels, momentum=_MOMENTUM, affine=False))
    patches = Patches(channels, min(side, *size), stride, whitened and first)
    return nn.Sequential(*layers, patches), patches.size, patches.places(*size)


def _summary(shape: tuple[int, int, int]) -> tuple[nn.Module, int]:
    """Standardised averages over a grid, and how many they are."""
    grid = (min(_GRID, shape[1]), min(_GRID, shape[2]))
    size = shape[0] * grid[0] * grid[1]
    norm = nn.BatchNorm1d(size, momentum=_MOMENTUM, affine=False)
    return nn.Sequential(GridAverage(grid), nn.Flatten(), norm), size
