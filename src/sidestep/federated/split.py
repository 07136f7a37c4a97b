"""A cut of one labelled set among clients, each with its own mix of classes."""

import torch
from scipy.special import gammaincinv
from torch import Tensor

from sidestep.errors import InputError
from sidestep.noise import Noise

__all__ = ["split_by_label"]

_TRIES = 1000


def split_by_label(labels: Tensor, clients: int, alpha: float, noise: Noise, least: int = 1) -> list[Tensor]:
    """Return, for each client, the places of its examples: every example has one client.

        p_c ~ Dirichlet(alpha, ..., alpha) over the clients, for each class c; client k has a share p_ck of class c

    Small values of alpha give a client few classes (0.1: one or two), large ones the mix of the whole set. Source: Hsu,
    Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual classification" (2019).

    Args:
        labels: (examples,), whole numbers.
        clients: how many.
        alpha: above 0.
        noise: where the shares and the order of examples come from.
        least: the fewest examples of a client; shares are drawn again until all have so many.

    Raises:
        InputError: for labels of another form, or if a thousand draws leave a client with fewer.

    >>> parts = split_by_label(torch.arange(1000) % 10, 20, 0.5, Noise(0))
    >>> len(parts), sorted(torch.cat(parts).tolist()) == list(range(1000))
    (20, True)
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise InputError(f"labels must be whole numbers of shape (examples,), got {tuple(labels.shape)} {labels.dtype}")
    if not (isinstance(clients, int) and clients >= 1 and 0 < alpha < float("inf") and least >= 0):
        raise InputError(f"a cut needs 1 client or more and an alpha above 0, got {clients}, {alpha} and least {least}")
    classes = labels.unique().tolist()
    order = noise.stream("order").permutation(len(labels))
    for attempt in range(_TRIES):
        words = noise.stream("shares").sub(attempt).words(len(classes) * clients)
        drawn = torch.from_numpy(gammaincinv(alpha, ((words.double() + 0.5) / 2**32).numpy()))  # gamma variables
        drawn = drawn.view(len(classes), clients)
        parts: list[list[Tensor]] = [[] for _ in range(clients)]
        for label, shares in zip(classes, drawn, strict=True):
            places = order[labels[order] == label]
            ends = (shares.cumsum(0) / shares.sum() * len(places)).round().long().tolist()
            ends[-1] = len(places)
            for client, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
                parts[client].append(places[begin:end])
        found = [torch.cat(each) for each in parts]
        if min(len(each) for each in found) >= least:
            return found
    raise InputError(
        f"{_TRIES:,} draws of Dirichlet({alpha}) left one of {clients} clients with fewer than {least} of "
        f"{len(labels):,} examples: take a larger alpha, fewer clients or a smaller least"
    )
