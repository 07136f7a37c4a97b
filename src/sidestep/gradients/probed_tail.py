"""Directional derivatives through the tail of a stage (a norm over an example's features, ReLU, one linear head).

    zhat = (z - mean) / sd        logits = A relu(zhat) + b
    dlogits along u = (A D u - mean(u) A D 1 - mean(zhat u) A D zhat) / sd       D = [zhat > 0]
    alpha           = sum_c (d loss / d logit_c) dlogits_c

in that order: a tangent of the logits first, from it the change of the loss. Directions that share no unit go together:
the tangents of one logit along all K of them are K sums over parts of one product of n numbers, so that K directions
cost n x m, whatever K. With K = n, a complete set, the numbers are those of the reverse product, added up in another
order. No transpose of A is used, unless its rows are asked for as guides.

On units that are off, D u = 0, and the derivative is `-(alpha_1 + zhat alpha_zhat) / (n sd)`, alpha_1 and alpha_zhat
being derivatives along the vectors 1 and zhat after the norm: exact, so random directions are spent on active units.
Sources: Ren et al., "Scaling forward gradient with local losses" (2022); Fournier et al., "Can forward gradient match
backpropagation?" (2023) for guesses as directions.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Guide", "ProbedTail", "group_sums", "spread"]

Guide = Literal["none", "feedback", "head"]

_CHUNK = 1 << 18  # numbers of a temporary: it stays in the processor's cache


@dataclass(frozen=True)
class ProbedTail:
    """A tail at a batch of its inputs.

    normed: zhat, (batch, n).
    scale: 1 / sd, (batch, 1).
    matrix: A, (m, n), as the head applies it.
    cotangent: derivative of each example's loss by its logits, (batch, m).
    """

    normed: Tensor
    scale: Tensor
    matrix: Tensor
    cotangent: Tensor

    def gradient(
        self, signs: Tensor | None, groups: int, guide: Guide = "none", feedback: Tensor | None = None
    ) -> Tensor:
        """Return an unbiased estimate of d loss / d z for each example, (batch, n); exact with `groups` = n.

        Args:
            signs: fair signs, (batch, n); None for a complete set, where they cancel.
            groups: K; direction k is on the active units i with i % K = k.
            guide: none, or directions before the random ones, which then measure what is left: `feedback`, one per
                example, cotangent x feedback; `head`, the rows of the head, 1 and zhat, all on active units.
            feedback: fixed random numbers, (m, n).
        """
        found = torch.empty_like(self.normed)
        rows = max(1, _CHUNK // self.normed.shape[1])
        for first in range(0, len(found), rows):
            part = slice(first, first + rows)
            tail = ProbedTail(self.normed[part], self.scale[part], self.matrix, self.cotangent[part])
            found[part] = tail._gradient(None if signs is None else signs[part], groups, guide, feedback)
        return found

    def _gradient(self, signs: Tensor | None, groups: int, guide: Guide, feedback: Tensor | None) -> Tensor:
        active = (self.normed > 0).to(self.normed.dtype)
        values = active if signs is None else active * signs
        after_norm = self._after_norm(active)
        alpha = self._along_groups(values, groups, after_norm)
        guided = None
        if guide != "none":
            guided = self._guided(self._guides(active, feedback), after_norm)
            alpha = alpha - group_sums(values * guided, groups)
        found = spread(alpha, self.normed.shape[1]).mul_(values)
        if guided is not None:
            found += guided
        shift, stretch = after_norm
        off = torch.addcmul(shift, self.normed, stretch).mul_(-self.scale / self.normed.shape[1])
        return found.addcmul_(off, 1 - active)  # `found` is 0 there

    def _after_norm(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of the loss along 1 and along zhat after the norm, (batch, 1) each."""
        tangents = (active @ self.matrix.T, (active * self.normed) @ self.matrix.T)
        first, second = ((tangent * self.cotangent).sum(dim=1, keepdim=True) for tangent in tangents)
        return first, second

    def _along_groups(self, values: Tensor, groups: int, after_norm: tuple[Tensor, Tensor]) -> Tensor:
        """Return alpha (batch, K) along `values` on each group; they are 0 on units that are off."""
        shift, stretch = (each / values.shape[1] for each in after_norm)
        alpha = -shift * group_sums(values, groups) - stretch * group_sums(values * self.normed, groups)
        product = torch.empty_like(values)
        for number, row in enumerate(self.matrix):  # one logit's tangents along all directions at a time
            tangents = group_sums(torch.mul(values, row, out=product), groups)
            alpha.addcmul_(tangents, self.cotangent[:, number, None])
        return alpha.mul_(self.scale)

    def _guides(self, active: Tensor, feedback: Tensor | None) -> Tensor:
        """Guided directions on active units, (batch, guides, n)."""
        if feedback is not None:
            return ((self.cotangent @ feedback) * active)[:, None]
        ones = torch.ones_like(self.normed)
        rows = self.matrix.expand(len(active), *self.matrix.shape)
        return torch.cat([rows, torch.stack([ones, self.normed], dim=1)], dim=1) * active[:, None]

    def _guided(self, guides: Tensor, after_norm: tuple[Tensor, Tensor]) -> Tensor:
        """Return the derivative's projection on the guides' span, (batch, n), from one alpha along each."""
        shift, stretch = (each / self.normed.shape[1] for each in after_norm)
        tangents = guides @ self.matrix.T  # (batch, guides, m)
        alpha = (tangents * self.cotangent[:, None]).sum(dim=2)
        alpha -= shift * guides.sum(dim=2) + stretch * (guides * self.normed[:, None]).sum(dim=2)
        gram = (guides @ guides.transpose(1, 2)).double()
        inverse = torch.linalg.pinv(gram, rtol=1e-9, hermitian=True)
        coefs = (inverse @ (alpha * self.scale).double()[:, :, None]).to(guides.dtype)
        return (coefs * guides).sum(dim=1)


def group_sums(values: Tensor, groups: int) -> Tensor:
    """Return the sums over the places i with i % groups = k, (batch, groups), of values (batch, n)."""
    batch, places = values.shape
    if groups == places:
        return values
    if rest := -places % groups:
        values = torch.nn.functional.pad(values, (0, rest))
    return values.view(batch, -1, groups).sum(dim=1)


def spread(sums: Tensor, places: int) -> Tensor:
    """Return column i % groups at place i, (batch, places), of (batch, groups); a copy."""
    return sums.repeat(1, -(-places // sums.shape[1]))[:, :places]
