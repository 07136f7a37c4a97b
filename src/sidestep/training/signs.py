"""The largest entries of a gradient as signs, and what they leave out, kept for later steps: a small message.

Of each part p of a step, parameter by parameter:

    e_p <- e_p + g_p / rms(g_p)                    what was not yet exchanged
    S_p  = the largest share of |e_p|              a = mean of |e_p| in S_p
    sent:  a sgn(e_p) in S_p, 0 elsewhere          e_p <- e_p - what was sent

and g = sum_p sent_p / P, in the order of the parts, on every rank. Nothing is lost for good, only delayed (error
feedback: Seide et al. 2014; Stich et al. 2018, "Sparsified SGD with memory"). The residual e_p belongs to a part and
stays with the rank that takes it. With a window of w steps it is 0 again at every step that w divides; with one of 1
there is none, and the message of a part follows from its gradient alone, whoever makes it.

A message has, for each part, its scales, and places and signs as a step log has flips: gaps, entropy-coded.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sidestep.errors import NonFiniteError, RankError, SidestepError
from sidestep.steplog.codecs.flips import decode_flips, encode_flips
from sidestep.steplog.format import read_varint, varint
from sidestep.update import Flips

__all__ = ["WITHOUT", "Signs"]

WITHOUT = (
    "the checkpoint does not say what the parts of a step had not yet exchanged: the run goes on without it, and to "
    "other bits than if it had not been stopped"
)

_TINY = torch.finfo(torch.float32).tiny


class Signs:
    """Makes messages of gradients and gradients of messages.

    share: of the entries of each parameter that are sent, at least one.
    window: steps after which what was left out is forgotten; None for never.
    """

    def __init__(self, share: float, window: int | None = None) -> None:
        self.share, self.window = share, window
        self._left: dict[int, dict[str, Tensor]] = {}  # e, by part and parameter

    def begin(self, step: int) -> None:
        """Begin a step: forget what waits, if it is time to."""
        if self.window and step % self.window == 0:
            self._left.clear()

    def waiting(self) -> dict[str, Tensor]:
        """Return what was not yet exchanged, by PART/PARAMETER, in the parameters' flat order."""
        return {f"{part}/{name}": rest for part, left in self._left.items() for name, rest in left.items()}

    def put_back(self, part: int, name: str, rest: Tensor) -> None:
        """Take over a copy of one entry of what `waiting` returned earlier."""
        self._left.setdefault(part, {})[name] = rest.clone()

    def packed(self, part: int, gradients: dict[str, Tensor]) -> bytes:
        """Return the message of one part's gradients, and keep what it leaves out.

        Raises:
            NonFiniteError: naming the parameter, for a gradient with infinities or NaNs.
        """
        left, scales, places, moves, start = self._left.setdefault(part, {}), [], [], [], 0
        for name, gradient in gradients.items():
            if name not in left:
                left[name] = torch.zeros(gradient.numel(), device=gradient.device)
            rest = left[name] = left[name].to(gradient.device)
            rest += _normalised(name, gradient.detach().float().reshape(-1))
            count = max(1, round(self.share * rest.numel()))
            inside = rest.abs().topk(count).indices.sort().values
            scale, signs = rest[inside].abs().mean(), torch.where(rest[inside] < 0, -1, 1)
            rest[inside] -= scale * signs
            scales.append(float(scale))
            places.append(inside.cpu() + start)
            moves.append(signs.to("cpu", torch.int8))
            start += rest.numel()
        if self.window == 1:
            del self._left[part]
        coded = encode_flips([Flips(torch.cat(places), torch.cat(moves))], start)
        return np.array(scales, "<f4").tobytes() + varint(len(coded)) + coded

    def combined(self, ranks: Sequence[bytes], parts: int, like: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean over all parts, of which rank r of R has sent r, r + R, ..., shaped as gradients are.

        Raises:
            RankError: naming the rank, for a message that `packed` did not make.
        """
        sizes = [gradient.numel() for gradient in like.values()]
        ends, total, at = np.cumsum(sizes), np.zeros(sum(sizes)), [0] * len(ranks)
        for part in range(parts):  # in this order, so the sum is rounded alike whoever took them
            rank = part % len(ranks)
            scales, flips, at[rank] = _read(ranks[rank], at[rank], sizes, rank)
            positions = flips.positions.numpy()
            total[positions] += flips.moves.numpy() * scales[np.searchsorted(ends, positions, side="right")]
        for rank, message in enumerate(ranks):
            if at[rank] != len(message):
                raise RankError(f"rank {rank} sent {len(message) - at[rank]} bytes more than its gradients")
        pieces = torch.from_numpy(total / parts).split(sizes)
        return {name: piece.view(like[name].shape).to(like[name]) for name, piece in zip(like, pieces, strict=True)}


def _normalised(name: str, gradient: Tensor) -> Tensor:
    """Return g / rms(g), computed without squares that overflow; 0 stays 0."""
    largest = gradient.abs().max().clamp_min(_TINY)
    unit = gradient / largest
    if not bool(largest.isfinite()):  # true for a NaN, too
        raise NonFiniteError(
            f"the gradient of {name} is not finite, and its largest entries cannot be exchanged; try --precision "
            "float32, or look for extreme pixel values"
        )
    return unit / unit.square().mean().sqrt().clamp_min(_TINY)


def _read(message: bytes, at: int, sizes: list[int], rank: int) -> tuple[np.ndarray, Flips, int]:
    """Return the scales, the places with their signs, and where the next part begins."""
    try:
        scales = np.frombuffer(message, "<f4", len(sizes), at).astype(np.float64)
        length, at = read_varint(message, at + 4 * len(sizes))
        (flips,) = decode_flips(message[at : at + length], 1, sum(sizes))
    except (SidestepError, ValueError, IndexError) as error:
        raise RankError(f"rank {rank} sent what are no signs of a gradient ({error})") from error
    return scales, flips, at + length
