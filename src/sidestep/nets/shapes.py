"""The shape of one input of a net: an image, a row of features, a row of tokens."""

from sidestep.errors import InputError

__all__ = ["Shape", "image_sides"]

Shape = tuple[int, ...]  # (channels, height, width), or (features,), or (length,)


def image_sides(shape: Shape) -> tuple[int, int, int]:
    """Return channels, height and width of an image; raises InputError for the shape of anything else.

    >>> image_sides((1, 8, 8))
    (1, 8, 8)
    """
    if len(shape) != 3:
        raise InputError(
            f"this net takes images, (channels, height, width), but one input has shape {shape}; take a net of dense "
            "layers (net = mlp, where the rule has a choice), or give a module of your own"
        )
    channels, height, width = shape
    return channels, height, width
