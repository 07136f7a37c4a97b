"""One group of residual blocks as a denoiser: it reads the target off its input and a noisy version of that target.

    h_0 = stem(x) + V c_in z + E(l)        h_k = h_(k-1) + f_k(h_(k-1))        outputs = H pool(tail(h_K))
    z = sqrt(abar) u_y + sqrt(1 - abar) eps,  abar = sigmoid(l),  c_in = 1 / sqrt(abar s^2 + 1 - abar)

With z divided by sqrt(abar), c_in z is the c_in of Karras et al. (2022, table 1) for noise `sigma^2 = exp(-l)`: it
gives the input of V a variance of one at every level; s^2 is the mean square of u_y. E: a linear layer of sines and
cosines of l. V and E may begin at 0, as what conditions a block does in Peebles and Xie (2023, section 3.2): then a
group begins as a residual net of its input alone.
"""

import torch
from torch import Tensor, nn

from sidestep.errors import InputError
from sidestep.nets.groups.cut import Parts
from sidestep.nets.precision import at_least_float32

__all__ = ["Group", "level_features", "pooled"]

_WAVES = 8


def level_features(level: Tensor) -> Tensor:
    """Return sines and cosines of l at frequencies from 1/16 to 8, (n,) -> (n, 16): ranges of l are a few units wide.

    >>> level_features(torch.zeros(1)).sum().item()
    8.0
    """
    frequency = 2.0 ** torch.arange(-4, _WAVES - 4, device=level.device, dtype=level.dtype)
    angle = level[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def pooled(hidden: Tensor, places: bool) -> Tensor:
    """Return the mean over places or pixels, (batch, width); where each place has a target, all of them."""
    if places or hidden.ndim == 2:
        return hidden
    return hidden.flatten(2).mean(dim=2) if hidden.ndim == 4 else hidden.mean(dim=1)


class Group(nn.Module):
    """A stem, some residual blocks and a head of its own; (inputs, z, l) -> outputs.

    Args:
        parts: the stem, the group's blocks, and what stands behind them.
        example: inputs, (batch, ...), from which the widths follow.
        dimension: d, the length of z.
        outputs: K, the number of outputs, for each place where `places` is true.
        square: s^2, the mean square of an element of u_y.
        places: whether there is a target at each place of a row.
    """

    def __init__(  # long: what a group is made of
        self, parts: Parts, example: Tensor, dimension: int, outputs: int, square: float, places: bool
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.tail = parts.stem, nn.ModuleList(parts.blocks), parts.tail
        self.square, self.places = square, places
        self.eval()
        with torch.no_grad():
            hidden = self.stem(example)
            features = pooled(self.run(hidden), places)
        self.train()
        if hidden.ndim not in (2, 3, 4) or (places and features.shape[:-1] != example.shape):
            raise InputError(
                f"the stem of the chain gives {tuple(hidden.shape)} for inputs {tuple(example.shape)}; it must give "
                "(batch, width), (batch, places, width) or (batch, channels, height, width), and with a target at "
                "each place keep the places"
            )
        width = hidden.shape[1] if hidden.ndim == 4 else hidden.shape[-1]
        self.latent, self.level = nn.Linear(dimension, width, bias=False), nn.Linear(2 * _WAVES, width)
        self.head = nn.Linear(features.shape[-1], outputs)

    def begin_with_inputs(self) -> "Group":
        """Set V and E to 0, and return the group: noise as strong as the input's features need not be unlearned."""
        for weight in (self.latent.weight, self.level.weight, self.level.bias):
            nn.init.zeros_(weight)
        return self

    def features(self, inputs: Tensor) -> Tensor:
        """Return what the stem makes of inputs, which does not depend on z."""
        found: Tensor = self.stem(inputs)
        return found

    def run(self, hidden: Tensor) -> Tensor:
        """Return what the blocks, and what stands behind them, make of features."""
        for block in self.blocks:
            hidden = block(hidden)
        found: Tensor = self.tail(hidden)
        return found

    def outputs(self, features: Tensor, latent: Tensor, level: Tensor) -> Tensor:
        """Return what is read off features and z, (batch, ..., K).

        Args:
            features: of the inputs, by `features`.
            latent: z, (batch, d), or with a target at each place (batch, places, d).
            level: l, (batch,), or (1,) for all.
        """
        share = torch.sigmoid(level)
        scale = (share * self.square + 1 - share).rsqrt().view(-1, *[1] * (latent.ndim - 1))
        seen = self.latent((scale * latent).to(self.latent.weight.dtype))
        when = self.level(level_features(level).to(self.level.weight.dtype))
        added = seen + when.view(when.shape[0], *[1] * (seen.ndim - 2), -1)
        if added.ndim < features.ndim:  # one target for all places
            added = added[:, None] if features.ndim == 3 else added[:, :, None, None]
        return at_least_float32(self.head(pooled(self.run(features + added), self.places)))
