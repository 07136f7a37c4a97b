"""How many bytes an update takes on its way to another machine."""

from torch import Tensor

from sidestep.ternary import packed_bytes
from sidestep.update import Dense, Seeded, Update

__all__ = ["update_bytes"]

_SHORT_PLACES = 1 << 32  # from this many weights on a position takes eight bytes


def update_bytes(update: Update) -> int:
    """Return the bytes of an update as plain arrays, by its kind.

        Dense    every gradient, in its own dtype
        Seeded   one coefficient per probe, in its own dtype, or five to a byte where they are trits (int8); the
                 directions are made again from the seed and take nothing
        Flips    per flip four bytes of position (eight beyond 2^32 weights), and one bit of direction

    and the statistics (a batch norm's running mean) of each. No entropy coding, and no header; the losses, which are
    there for display, are left out.

    >>> import torch
    >>> update_bytes(Dense({"weight": torch.zeros(3, 2)}))
    24
    """
    statistics = sum(map(_bytes, update.statistics.values()))
    if isinstance(update, Dense):
        return statistics + sum(map(_bytes, update.gradients.values()))
    if isinstance(update, Seeded):
        trits = update.coefs.element_size() == 1
        return statistics + (packed_bytes(update.coefs.numel()) if trits else _bytes(update.coefs))
    flips = update.positions.numel()
    far = flips > 0 and int(update.positions[-1]) >= _SHORT_PLACES
    return statistics + flips * (8 if far else 4) + -(-flips // 8)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
