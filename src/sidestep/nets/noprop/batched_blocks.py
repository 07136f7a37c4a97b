"""All blocks of a stack in one pass: weights side by side, grouped convolutions, batched dense layers.

What T blocks compute one by one, with the same weights, latents and dropout masks, to rounding: feature maps have shape
(batch, T * channels, height, width), rows (T, batch, features). A batch norm over T * features is T batch norms.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d

from sidestep.nets.dropout import Dropout, map_masks
from sidestep.nets.noprop.blocks import Block, ImageLatentPath, LatentPath
from sidestep.nets.noprop.image_paths import ConvPath, PooledPath, Residual, ResidualPath
from sidestep.nets.precision import at_least_float32

__all__ = ["BlocksTogether", "MaskSource", "can_go_together", "drawn_masks"]

MaskSource: TypeAlias = Callable[[Sequence[int], float, torch.dtype], Tensor]
"""From one block's shape (batch, channels, height, width), a rate and a dtype to masks of all blocks side by side."""

_CHANNELWISE = (nn.MaxPool2d, nn.ReLU, nn.Identity, nn.Flatten, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_LAYERS = (nn.Sequential, nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, Dropout, *_CHANNELWISE)
_PARTS = (Block, LatentPath, ImageLatentPath, ConvPath, PooledPath, ResidualPath, Residual)


def can_go_together(blocks: Sequence[nn.Module]) -> bool:
    """Whether blocks are made of known layers alone, and alike: a module of a user's may compute anything."""
    shapes = [[(name, value.shape) for name, value in block.state_dict().items()] for block in blocks]
    modules = [module for block in blocks for module in block.modules()]
    drawn = [module for module in modules if isinstance(module, Dropout) and module.from_torch]
    return all(one == shapes[0] for one in shapes) and not drawn and all(type(m) in _LAYERS + _PARTS for m in modules)


def drawn_masks(generators: Sequence[torch.Generator]) -> MaskSource:
    """Return a source that draws each block's masks from its own generator, as `Dropout` does."""

    def draw(shape: Sequence[int], rate: float, dtype: torch.dtype) -> Tensor:
        return map_masks(shape, rate, generators, dtype)

    return draw


class BlocksTogether:
    """T blocks for one training pass, with copies of their weights and statistics; the blocks stay as they are.

    Args:
        blocks: T blocks for which `can_go_together` holds, in training mode.
        weights: name within a block -> all blocks' parameters of that name, stacked; of convolutions channels last.
        statistics: name within a block -> all blocks' buffers of that name, stacked; `logits` writes them.
    """

    def __init__(self, blocks: Sequence[Block], weights: dict[str, Tensor], statistics: dict[str, Tensor]) -> None:
        self.blocks, self.count, self.weights, self.statistics = blocks, len(blocks), weights, statistics

    @classmethod
    def copied(cls, blocks: Sequence[Block]) -> "BlocksTogether":
        """Copy the blocks' weights, to be differentiated by, and their statistics."""
        parameters = [dict(block.named_parameters()) for block in blocks]
        buffers = [dict(block.named_buffers()) for block in blocks]
        with torch.no_grad():
            weights = {
                name: torch.stack([_channels_last_order(one[name]) for one in parameters]) for name in parameters[0]
            }
            statistics = {name: torch.stack([one[name] for one in buffers]) for name in buffers[0]}
        return cls(blocks, {name: weight.requires_grad_() for name, weight in weights.items()}, statistics)

    def logits(self, images: Tensor, latents: Tensor, masks: MaskSource) -> Tensor:
        """Return all blocks' class logits, (T, batch, classes); `statistics` then hold the new values.

        Args:
            images: (batch, channels, height, width), the same for all blocks.
            latents: each block's own z, (T, batch, dimension).
            masks: where dropout masks come from.
        """
        block, run = self.blocks[0], _Pass(self.count, self.weights, self.statistics, masks)
        features = at_least_float32(run.image(block.image, "image", images))
        latent = at_least_float32(run.latent(block.latent, "latent", latents))
        return at_least_float32(run.rows(block.fuse, "fuse", torch.cat([features, latent], dim=2)))

    def by_block(self, stacked: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return `blocks.i.name` -> block i's part of every stacked gradient or statistic, as views."""
        return {
            f"blocks.{index}.{name}": part.permute(0, 3, 1, 2) if part.dim() == 4 else part
            for name, whole in stacked.items()
            for index, part in enumerate(whole.unbind())
        }


class _Pass:
    """One pass over the modules of the first block, with everyone's weights in the place of its own."""

    def __init__(
        self, count: int, weights: dict[str, Tensor], statistics: dict[str, Tensor], masks: MaskSource
    ) -> None:
        self.count, self.weights, self.statistics, self.masks = count, weights, statistics, masks

    def image(self, path: nn.Module, name: str, images: Tensor) -> Tensor:
        """An image path: maps -> rows."""
        if isinstance(path, ResidualPath):
            return at_least_float32(self._as_rows(self.maps(path.layers, f"{name}.layers", images)))
        assert isinstance(path, ConvPath | PooledPath)  # can_go_together has looked
        maps = self.maps(path.convolutions, f"{name}.convolutions", images)
        rows = self.rows(path.dense, f"{name}.dense", self._as_rows(maps))
        return self.rows(path.norm, f"{name}.norm", at_least_float32(rows))

    def latent(self, path: nn.Module, name: str, latents: Tensor) -> Tensor:
        """A latent path: rows -> rows."""
        if isinstance(path, ImageLatentPath):
            images = latents.transpose(0, 1).unflatten(2, path.image_shape).flatten(1, 2)
            return self.image(path.path, f"{name}.path", images)
        assert isinstance(path, LatentPath)
        hidden = self.rows(path.first, f"{name}.first", latents)
        return hidden + self.rows(path.residual, f"{name}.residual", hidden)

    def maps(self, module: nn.Module, name: str, values: Tensor) -> Tensor:
        """A layer on feature maps, (batch, T * channels, height, width), or on images that all blocks share."""
        if isinstance(module, nn.Sequential):
            for key, layer in module.named_children():
                values = self.maps(layer, f"{name}.{key}", values)
            return values
        if isinstance(module, Residual):
            return values + self.maps(module.inner, f"{name}.inner", values)
        if isinstance(module, nn.Conv2d):
            weight = self.weights[f"{name}.weight"].flatten(0, 1).permute(0, 3, 1, 2)
            bias = None if module.bias is None else self.weights[f"{name}.bias"].flatten()
            groups = 1 if values.shape[1] == module.in_channels else self.count
            return conv2d(values, weight, bias, module.stride, module.padding, module.dilation, groups)
        if isinstance(module, nn.BatchNorm2d):
            return self._norm(module, name, values)
        if isinstance(module, Dropout):
            return self._dropout(module, values)
        return module(values)  # one channel at a time, whosever it is

    def rows(self, module: nn.Module, name: str, values: Tensor) -> Tensor:
        """A layer on rows, (T, batch, features)."""
        if isinstance(module, nn.Sequential):
            for key, layer in module.named_children():
                values = self.rows(layer, f"{name}.{key}", values)
            return values
        if isinstance(module, nn.Linear):
            bias, weight = self.weights[f"{name}.bias"], self.weights[f"{name}.weight"]
            return torch.baddbmm(bias.unsqueeze(1), values, weight.transpose(1, 2))
        if isinstance(module, nn.BatchNorm1d):
            side_by_side = values.transpose(0, 1).flatten(1)  # (batch, T * features)
            return self._norm(module, name, side_by_side).unflatten(1, (self.count, -1)).transpose(0, 1)
        return module(values)

    def _norm(self, module: nn.BatchNorm1d | nn.BatchNorm2d, name: str, values: Tensor) -> Tensor:
        mean, variance = (self.statistics[f"{name}.running_{kind}"].view(-1) for kind in ("mean", "var"))
        weight, bias = self.weights[f"{name}.weight"].flatten(), self.weights[f"{name}.bias"].flatten()
        self.statistics[f"{name}.num_batches_tracked"] += 1
        assert module.momentum is not None  # the norms of these blocks are torch's own defaults
        return batch_norm(values, mean, variance, weight, bias, True, module.momentum, module.eps)

    def _dropout(self, module: Dropout, values: Tensor) -> Tensor:
        batch, channels, height, width = values.shape
        if module.rate == 0:
            return module(values)
        return module.masked(
            values, self.masks((batch, channels // self.count, height, width), module.rate, values.dtype)
        )

    def _as_rows(self, maps: Tensor) -> Tensor:
        return maps.unflatten(1, (self.count, -1)).flatten(2).transpose(0, 1)


def _channels_last_order(weight: Tensor) -> Tensor:
    return weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight
