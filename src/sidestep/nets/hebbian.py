"""Hebbian layers: weights that follow the correlations of their inputs, without labels and without errors.

    oja      Delta W = y x^T - (y y^T) W                 rows span the first principal components (one row: the first)
    sanger   Delta W = y x^T - tril(y y^T) W             row i becomes the i-th principal component
    winner   Delta w_k = r_k (x - y_k w_k)               r = softmax(y / T)
    against  the same, with minus r_k for all units but the strongest

with y = W x; of convolutions, x are the patches, and all places are averaged. Sources: Oja, "Simplified neuron model as
a principal component analyzer" (1982) and its subspace form (1989); Sanger, "Optimal unsupervised learning in a
single-layer linear feedforward neural network" (1989); Moraitis et al., "SoftHebb" (2022), for `winner`; Journé et al.,
"Hebbian deep learning without feedback" (2023), equations 1 and 2, for `against`.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, max_pool2d, one_hot

from sidestep.nets.layerwise import check_hidden
from sidestep.nets.precision import at_least_float32, full_precision
from sidestep.noise import Noise

__all__ = ["HebbianKind", "HebbianNet", "HebbianStage", "for_readout", "hebbian_change"]

HebbianKind = Literal["winner", "against", "oja", "sanger"]
_MOMENTUM = 0.02  # of running statistics: an average over some fifty batches


def hebbian_change(kind: HebbianKind, layer: nn.Linear | nn.Conv2d, inputs: Tensor, temperature: float) -> Tensor:
    """Return Delta W, of the weight's shape, averaged over examples and places.

    Args:
        kind: which rule.
        layer: a linear layer or convolution without a bias.
        inputs: what the layer sees, (batch, ...).
        temperature: T of the soft winner-take-all.
    """
    weight = layer.weight.detach().requires_grad_()
    with torch.enable_grad(), full_precision(inputs):
        outputs = torch.func.functional_call(layer, {"weight": weight}, (at_least_float32(inputs),))
        rows = outputs.detach().movedim(1, -1).flatten(0, -2)  # (examples x places, units)
        wins = kind in ("winner", "against")
        response = _soft_winner(rows, temperature, kind == "against") if wins else rows
        shaped = response.view(outputs.movedim(1, -1).shape).movedim(-1, 1)
        drawn = torch.autograd.grad((outputs * shaped).sum(), weight)[0] / len(rows)  # the mean of response x^T
        flat = weight.detach().flatten(1)
        if wins:
            pull = (response * rows).mean(dim=0)[:, None] * flat
        else:
            together = rows.T @ rows / len(rows)  # (units, units)
            pull = (together.tril() if kind == "sanger" else together) @ flat
    return drawn - pull.view_as(weight)


def for_readout(features: Tensor) -> Tensor:
    """Return what the read-out gets of a stage's features: as rows, of maps the averages of 2 x 2 regions."""
    parts = adaptive_avg_pool2d(features, min(2, *features.shape[2:])) if features.ndim > 2 else features
    return parts.flatten(1)


def _soft_winner(rows: Tensor, temperature: float, against: bool) -> Tensor:
    share = (rows / temperature).softmax(dim=1)
    return share * (2 * one_hot(rows.argmax(dim=1), rows.shape[1]) - 1) if against else share


class HebbianStage(nn.Module):
    """Standardised inputs, a layer that learns by correlation, and features made of its answers.

        u = W standard(x)          winner: relu(standard(u))          oja, sanger: both halves of standard(u)

    Inputs are standardised per example in an MLP and per channel in a conv net, answers per unit over the batch.

    Args:
        layer: a linear layer or convolution without a bias.
        halves: whether features are relu(u) and relu(-u), for units whose sign means nothing.
        pooled: whether features of a conv net are pooled.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, halves: bool, pooled: bool = False) -> None:
        super().__init__()
        inputs, outputs = layer.weight.shape[1], layer.weight.shape[0]
        self.layer, self.halves, self.pooled = layer, halves, pooled
        self.before: nn.Module
        self.after: nn.Module
        if isinstance(layer, nn.Linear):
            self.before = nn.LayerNorm(inputs, elementwise_affine=False)
            self.after = nn.BatchNorm1d(outputs, momentum=_MOMENTUM, affine=False)
        else:
            self.before = nn.BatchNorm2d(inputs, momentum=_MOMENTUM, affine=False)
            self.after = nn.BatchNorm2d(outputs, momentum=_MOMENTUM, affine=False)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the layer sees, and the features."""
        seen = self.before(inputs.flatten(1) if isinstance(self.layer, nn.Linear) else inputs)
        answers = self.after(self.layer(seen))
        features = torch.cat([answers, -answers], dim=1).relu() if self.halves else answers.relu()
        return seen, max_pool2d(features, 2) if self.pooled else features


class HebbianNet(nn.Module):
    """Hebbian stages, and a linear read-out of all their features; images -> logits (batch, classes).

    Args:
        net: `mlp`, or `conv`: 5 x 5 and then 3 x 3 convolutions, pooled while a map has 4 rows or more.
        image_shape: (channels, height, width).
        hidden: units or channels of the stages.
        classes: number of classes.
        kind: the rule, which says what features are.
        noise: where the initial weights come from: normal, rows of length about 1.
    """

    def __init__(  # long: what such a net is made of
        self,
        net: str,
        image_shape: tuple[int, int, int],
        hidden: tuple[int, ...],
        classes: int,
        kind: HebbianKind,
        noise: Noise,
    ) -> None:
        super().__init__()
        check_hidden(hidden)
        halves = kind in ("oja", "sanger")
        size = min(image_shape[1:])
        inputs = torch.Size(image_shape).numel() if net == "mlp" else image_shape[0]
        self.stages, features = nn.ModuleList(), 0
        for index, outputs in enumerate(hidden):
            layer: nn.Linear | nn.Conv2d
            if net == "mlp":
                layer, pooled, places = nn.Linear(inputs, outputs, bias=False), False, 1
            else:
                side = 5 if index == 0 else 3
                layer, pooled = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False), size >= 4
                size = size // 2 if pooled else size
                places = min(2, size) ** 2
            weight = layer.weight
            drawn = noise.sub(index).normal(weight.numel()).view_as(weight) / weight[0].numel() ** 0.5
            layer.weight = nn.Parameter(drawn)
            self.stages.append(HebbianStage(layer, halves, pooled))
            inputs = outputs * (1 + halves)
            features += inputs * places
        self.readout = nn.Linear(features, classes)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)

    def seen(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what each stage's layer sees, and all features that the read-out gets, (batch, features)."""
        inputs, found = [], []
        for stage in self.stages:
            seen, images = stage(images)
            inputs.append(seen)
            found.append(for_readout(images))
        return inputs, torch.cat(found, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits; no derivative passes from the read-out to the stages."""
        with torch.no_grad():
            features = self.seen(images)[1]
        return at_least_float32(self.readout(features))
