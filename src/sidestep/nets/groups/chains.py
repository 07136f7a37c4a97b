"""Small chains of residual blocks: a stem, blocks `h + f(h)`, and a norm at the end.

    mlp      h + W_2 gelu(W_1 LN(h))
    resnet   h + C_2 relu(GN(C_1 relu(GN(h))))                               3 x 3 convolutions
    vit      h + A(LN(h)), then h + W_2 gelu(W_1 LN(h))                      A: self-attention between patches
    gpt      the same on rows of tokens, each place seeing itself and those before it

Sources: He et al. 2016 (pre-activation); Dosovitskiy et al. 2021 (ViT); Radford et al. 2019 (GPT-2).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.shapes import Shape, image_sides

__all__ = ["CHAINS", "AttentionBlock", "ConvBlock", "DenseBlock", "PatchStem", "TokenStem", "residual_chain"]

CHAINS: tuple[str, ...] = ("mlp", "vit", "resnet", "gpt")
_HEAD_WIDTH = 32


class DenseBlock(nn.Module):
    """`h + W_2 gelu(W_1 LN(h))` on the last dimension, twice as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the sum, of the shape given."""
        return hidden + self.inner(hidden)


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions with norms before them, added to the map that they are given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = math.gcd(width, 8)
        self.inner = nn.Sequential(
            nn.GroupNorm(groups, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(groups, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the sum, of the shape given."""
        return hidden + self.inner(hidden)


class AttentionBlock(nn.Module):
    """Self-attention and then two dense layers, each added to what it is given: (batch, places, width) of both.

    Args:
        width: of a place's features.
        causal: whether a place sees only itself and those before it.
    """

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = max(1, width // _HEAD_WIDTH), causal
        if width % self.heads:
            raise InputError(f"width {width} does not divide into {self.heads} heads; take a multiple of {_HEAD_WIDTH}")
        self.norm, self.mixed = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out, self.dense = nn.Linear(width, width), DenseBlock(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the sum, of the shape given."""
        parts = self.mixed(self.norm(hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=self.causal)
        added: Tensor = self.dense(hidden + self.out(seen.transpose(1, 2).flatten(2)))
        return added


class PatchStem(nn.Module):
    """Square patches by a linear layer, with learned places: images -> (batch, patches, width)."""

    def __init__(self, image_shape: Shape, patch: int, width: int) -> None:
        super().__init__()
        channels, height, columns = image_sides(image_shape)
        if height % patch or columns % patch:
            raise InputError(
                f"images of {height} x {columns} do not divide into patches of {patch} x {patch}; take a patch that "
                "divides both sides"
            )
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.places = nn.Parameter(0.02 * nn.init.normal_(torch.empty(height // patch * columns // patch, width)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the patches."""
        return self.patches(images).flatten(2).transpose(1, 2) + self.places


class TokenStem(nn.Module):
    """Embeddings of tokens and of their places: ids (batch, length) -> (batch, length, width)."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the features of the places."""
        places: Tensor = self.places.weight[: ids.shape[1]]
        return self.words(ids.long()) + places


def residual_chain(kind: str, shape: Shape, depth: int, width: int, patch: int, vocabulary: int) -> nn.Sequential:
    """Return a stem, `depth` residual blocks and a norm, of a kind in `CHAINS`.

    Args:
        kind: mlp, vit, resnet or gpt.
        shape: of one input.
        depth: L.
        width: of the features, or channels.
        patch: side of a vit's patches.
        vocabulary: how many tokens a gpt knows.

    Raises:
        InputError: for another kind, or inputs that it does not take.

    >>> residual_chain("vit", (3, 8, 8), 2, 32, 4, 0)(torch.zeros(5, 3, 8, 8)).shape
    torch.Size([5, 4, 32])
    """
    if kind == "mlp":
        dense = [DenseBlock(width) for _ in range(depth)]
        return nn.Sequential(
            nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), width)), *dense, nn.LayerNorm(width)
        )
    if kind == "resnet":
        stem = nn.Conv2d(image_sides(shape)[0], width, 3, padding=1)
        last = nn.GroupNorm(math.gcd(width, 8), width)
        return nn.Sequential(stem, *(ConvBlock(width) for _ in range(depth)), last)
    if kind == "vit":
        places: nn.Module = PatchStem(shape, patch, width)
    elif kind == "gpt":
        places = TokenStem(vocabulary, shape[0], width)
    else:
        raise InputError(f"net must be one of {', '.join(CHAINS)}, got {kind!r}")
    blocks = [AttentionBlock(width, causal=kind == "gpt") for _ in range(depth)]
    return nn.Sequential(places, *blocks, nn.LayerNorm(width))
