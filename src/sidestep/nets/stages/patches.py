"""Patches of images as rows: brought to one brightness and contrast, and whitened.

    p' = (p - mean(p)) / sqrt(var(p) + 0.02)          each patch by itself
    p'' = (C + 0.1)^(-1/2) (p' - m)                   m and C: mean and covariance of p' over training images

Whitening takes off what all neighbouring pixels have in common, so that edges and colours are left to be learned.
Source: Coates, Ng and Lee, "An analysis of single-layer networks in unsupervised feature learning" (2011), section 3.
"""

import torch
from torch import Tensor, nn

from sidestep.nets.precision import full_precision

__all__ = ["Patches"]

_CONTRAST, _RIDGE = 0.02, 0.1


class Patches(nn.Module):
    """All patches of a side and stride, without padding; (batch, channels, height, width) -> (batch, places, d).

    d is side x side x channels. Until `fit` has seen images, whitening is the identity.

    Args:
        channels: of the images.
        side: rows and columns of a patch.
        stride: from one patch to the next.
        whitened: whether there is whitening at all.

    >>> Patches(3, 6, 2, whitened=True)(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 196, 108])
    """

    def __init__(self, channels: int, side: int, stride: int, whitened: bool) -> None:
        super().__init__()
        self.side, self.stride, self.whitened = side, stride, whitened
        self.size = channels * side**2
        if whitened:
            self.register_buffer("mean", torch.zeros(self.size))
            self.register_buffer("matrix", torch.eye(self.size))

    def places(self, height: int, width: int) -> tuple[int, int]:
        """Return the number of patches below and beside each other."""
        return (height - self.side) // self.stride + 1, (width - self.side) // self.stride + 1

    def forward(self, images: Tensor) -> Tensor:
        """Return the patches, from left to right and then down."""
        rows = self._even(images)
        if not self.whitened:
            return rows
        with full_precision(rows):  # rounding would grow with the inverse square root of small variances
            return (rows - self.mean) @ self.matrix  # type: ignore[operator]

    def fit(self, images: Tensor) -> None:
        """Take mean and whitening from all patches of these images."""
        if not self.whitened:
            return
        rows = self._even(images).flatten(0, 1).double()
        mean = rows.mean(dim=0)
        centred = rows - mean
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(rows))
        matrix = (axes * (variances.clamp(min=0) + _RIDGE).rsqrt()) @ axes.T
        with torch.no_grad():
            self.get_buffer("mean").copy_(mean)
            self.get_buffer("matrix").copy_(matrix)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"side={self.side}, stride={self.stride}, whitened={self.whitened}"

    def _even(self, images: Tensor) -> Tensor:
        """Return the patches at one brightness and contrast, (batch, places, d)."""
        side, stride = self.side, self.stride
        cut = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
        cut = cut.permute(0, 2, 3, 1).unfold(1, side, stride).unfold(2, side, stride)  # channels and patch come last
        rows = cut.permute(0, 1, 2, 4, 5, 3).reshape(len(images), -1, self.size)
        variance, mean = torch.var_mean(rows, dim=2, correction=0, keepdim=True)
        return (rows - mean) * (variance + _CONTRAST).rsqrt()
