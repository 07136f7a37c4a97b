"""Paths for rows of token ids: what a denoising block sees of a row, in place of an image."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sidestep.nets.check_module import made_by, name_of
from sidestep.nets.dropout import Dropout
from sidestep.nets.precision import at_least_float32
from sidestep.nets.user_modules import ImagePath

__all__ = ["OnTokens", "TokenPath", "on_tokens"]

_FEATURES = 256


class TokenPath(nn.Module):
    """The mean of a row's embeddings, and a dense layer; (batch, length) token ids -> (batch, 256).

    It ends as the path of Figure 6 does: with `norm` in batch norm, without in ReLU. The places of tokens say nothing.
    """

    def __init__(self, vocabulary: int, features: int = _FEATURES, norm: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, features)
        self.hidden = nn.Sequential(nn.Identity(), Dropout(0.2, rectify=True))
        self.dense = nn.Linear(features, features)
        self.norm: nn.Module = nn.BatchNorm1d(features) if norm else nn.ReLU()

    def forward(self, ids: Tensor) -> Tensor:
        """Return the features of the rows."""
        mean = self.words(ids.long()).mean(dim=1)
        return self.norm(at_least_float32(self.dense(self.hidden(mean))))


class OnTokens(nn.Module):
    """A path of the user's, which gets token ids as whole numbers, also where zeros are tried out on it."""

    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        self.path = path

    def forward(self, ids: Tensor) -> Tensor:
        """Return what the path gives."""
        found: Tensor = self.path(ids.to(torch.int64))
        return found


def on_tokens(given: ImagePath) -> ImagePath:
    """Return a path of the user's, a module or what makes one, for token ids."""
    if isinstance(given, nn.Module):
        return OnTokens(given)
    name = name_of(given)
    maker: Callable[[], nn.Module] = lambda: OnTokens(made_by(given, name))  # noqa: E731
    return maker
