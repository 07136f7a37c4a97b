"""The stages of a user's own module, where they are: what layer-wise rules train in place.

    model = stage_1 ... stage_n, output            head_l for l < n: the rule's own; head_n = output

The stages and the output are the module's own parts, with their weights, and so trained in place.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.stages.layerwise import LayerwiseNet, stages_of
from sidestep.nets.ternary.nets import GridAverage
from sidestep.nets.trained import check_own_weights
from sidestep.noise import Noise
from sidestep.wording import counted

__all__ = ["Around", "layerwise_around", "shapes_along", "twin_of"]


class Around(LayerwiseNet):
    """A net of another module's parts. Their modes are the user's, which `train()` of this net leaves."""

    def modes_of(self, model: nn.Module, twin: nn.Module) -> None:
        """Let the layers of a twin, which this net is of, have the modes that those of the model have."""
        self.followed = list(zip(model.modules(), twin.modules(), strict=True))

    def train(self, mode: bool = True) -> "Around":
        """Return itself; where its layers are copies, with the modes of the originals."""
        for own, copied in getattr(self, "followed", ()):
            copied.training = own.training
        return self


def layerwise_around(model: nn.Module, example: Tensor, local: bool, noise: Noise) -> Around:
    """Return a net of the model's own stages, and its own output as the last head.

    Args:
        model: an nn.Sequential; a stage begins with every part that has weights and is no norm. The last is the output.
        example: inputs, (batch, ...), from which the sizes of heads follow.
        local: whether every stage but the last gets a head of the rule's own.
        noise: where the heads' initial weights come from.

    Raises:
        InputError: for a module that is none, or has fewer than two stages before its output.
    """
    parts = stages_of(model)
    if len(parts) < 3:
        raise InputError(
            f"this rule trains an nn.Sequential with two stages or more before its output, got {type(model).__name__} "
            f"with {counted(len(parts), 'part')} with weights; split it, nn.Sequential(stage, stage, ..., output), "
            "where a stage may be a module of any kind, or attach a rule that takes any module (`sidestep rules`)"
        )
    if local:
        check_own_weights(parts)
    heads = [parts[-1]]
    if local:
        shapes, output = shapes_along(parts, example, noise)
        with noise.stream("heads").torch_seeded():
            heads = [_head(shape, output) for shape in shapes[:-1]] + heads
        for head in heads[:-1]:
            head.to(device=example.device, dtype=_dtype(model))
    return Around(parts[:-1], heads)


def shapes_along(parts: Sequence[nn.Module], example: Tensor, noise: Noise) -> tuple[list[torch.Size], torch.Size]:
    """Return the shapes, of one example, of what all parts but the last give, and of what the last gives."""
    shapes, found = [], example
    with torch.no_grad(), noise.stream("trial").torch_seeded(example.device):
        for part in parts:
            with kept_statistics(part):
                found = part(found)
            if not isinstance(found, Tensor):
                raise InputError(
                    f"a stage ({type(part[0] if isinstance(part, nn.Sequential) else part).__name__}, ...) gives a "
                    f"{type(found).__name__}, not one tensor; wrap the layer in a module that returns what the next "
                    "one needs"
                )
            shapes.append(found.shape[1:])
    return shapes[:-1], shapes[-1]


def twin_of(model: nn.Module) -> nn.Module:
    """Return a copy of a module's layers that has the module's own parameters and buffers, the same objects."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _head(features: torch.Size, output: torch.Size) -> nn.Module:
    """A linear layer to the output's width: at every place of a row, on a grid of averages of a map, or on all."""
    if len(output) == len(features) == 2 and output[0] == features[0]:  # rows of tokens: one answer for each place
        return nn.Linear(features[1], output[1])
    if len(output) != 1:
        raise InputError(
            f"a stage gives features of shape {tuple(features)} and the model outputs of shape {tuple(output)}, and no "
            "linear head fits between; the outputs must be (batch, width), or (batch, places, width) where the "
            "stages keep the places"
        )
    if len(features) == 3:
        grid = (min(4, features[1]), min(4, features[2]))
        return nn.Sequential(GridAverage(grid), nn.Flatten(), nn.Linear(features[0] * grid[0] * grid[1], output[0]))
    return nn.Sequential(nn.Flatten(), nn.Linear(features.numel(), output[0]))


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
