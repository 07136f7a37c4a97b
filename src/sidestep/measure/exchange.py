"""How many bytes an update takes on its way to another machine."""

from sidestep.update import Update

__all__ = ["update_bytes"]


def update_bytes(update: Update) -> int:
    """Return the bytes of an update as plain arrays, by its kind.

        Dense    every gradient, in its own dtype
        Seeded   one coefficient per probe, in its own dtype, or five to a byte where they are trits (int8); the
                 directions are made again from the seed and take nothing
        Flips    per flip four bytes of position (eight beyond 2^32 weights), and one bit of direction

    and the statistics (a batch norm's running mean) of each. No entropy coding, and no header; the losses, which are
    there for display, are left out.

    >>> import torch
    >>> from sidestep.update import Dense
    >>> update_bytes(Dense({"weight": torch.zeros(3, 2)}))
    24
    """
    return update.plain_bytes
