"""The ternary stages of a user's own module, where they are, with ternary heads of the rule's own.

model = stage_1 ... stage_n, output            head_l for l < n: the rule's own, ternary; head_n = output
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.stages.around import shapes_along
from sidestep.nets.ternary.layers import TernaryLayer, TernaryLinear, ternary_parameters
from sidestep.nets.ternary.nets import GridAverage, TernaryNet, ternary_stages_of
from sidestep.nets.trained import check_own_weights
from sidestep.noise import Noise

__all__ = ["TernaryAround", "ternary_around"]


class TernaryAround(TernaryNet):
    """A net of another module's ternary parts. Their modes are the user's, which `train()` of this net leaves."""

    def train(self, mode: bool = True) -> "TernaryAround":
        """Return itself."""
        return self


def ternary_around(model: nn.Module, example: Tensor, bias: bool, noise: Noise) -> TernaryAround:
    """Return a net of the model's own ternary stages, and its own output as the last head.

    Args:
        model: an nn.Sequential of ternary layers; a stage begins with every part that has one. The last is the output.
        example: inputs, (batch, ...), from which the sizes of heads follow.
        bias: whether heads have a ternary bias.
        noise: where the heads' initial trits come from.

    Raises:
        InputError: for a module with float weights, without two stages before its output, or with several ternary
            layers in a stage.
    """
    ternary_parameters(model)
    parts = ternary_stages_of(model)
    if len(parts) < 3:
        raise InputError(
            f"local losses train an nn.Sequential with two ternary stages or more before its output, got "
            f"{type(model).__name__} with {len(parts)} parts that have ternary layers; write the model so, or take "
            "estimator = weight-probes"
        )
    check_own_weights(parts)
    for number, part in enumerate(parts, start=1):
        layers = [layer for layer in part.modules() if isinstance(layer, TernaryLayer)]
        if len(layers) > 1:
            raise InputError(
                f"part {number} of the module has {len(layers)} ternary layers, and a local loss trains one: put the "
                "layers into one nn.Sequential without parts of their own, or take estimator = weight-probes"
            )
    shapes, output = shapes_along(parts, example, noise)
    if len(output) != 1:
        raise InputError(
            f"the model gives outputs of shape {tuple(output)} for an example, and ternary heads give one row: "
            "(batch, width); take estimator = weight-probes"
        )
    heads = [_head(shape, output[0], bias) for shape in shapes[:-1]]
    for index, head in enumerate(heads):
        for layer in head.modules():
            if isinstance(layer, TernaryLayer):
                layer.draw(noise.stream("heads").sub(index))
        head.to(example.device)
    return TernaryAround(parts[:-1], [*heads, parts[-1]])


def _head(features: Sequence[int], width: int, bias: bool) -> nn.Module:
    """A ternary layer on all features, or on averages on a grid of up to 4 x 4 places."""
    if len(features) == 3:
        grid = (min(4, features[1]), min(4, features[2]))
        size = features[0] * grid[0] * grid[1]
        return nn.Sequential(GridAverage(grid), nn.Flatten(), TernaryLinear(size, width, bias))
    return nn.Sequential(nn.Flatten(), TernaryLinear(torch.Size(features).numel(), width, bias))
