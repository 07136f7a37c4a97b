"""Which times own the gradient of a continuous-time net, under each denoising loss?

All losses are looked at on one net, with one batch of images and one draw of noise, so that only the loss differs. The
labels are given, as in training: nothing here is a prediction.
"""

import torch
from torch import Tensor

from sidestep.errors import InputError
from sidestep.nets.noprop.denoiser import Denoiser
from sidestep.nets.noprop.losses import LOSSES, denoising_loss
from sidestep.nets.noprop.time_schedules import Schedule

__all__ = [
    "accuracy_at_times",
    "bin_centres",
    "effective_share",
    "nearest_accuracy_at_times",
    "noised_labels",
    "squared_gradients",
]


def bin_centres(bins: int) -> Tensor:
    """Return the centres of equal intervals of [0, 1], float32 of shape (bins,).

    >>> bin_centres(4).tolist()
    [0.125, 0.375, 0.625, 0.875]
    """
    if not 2 <= bins <= 1000:
        raise InputError(f"bins must lie between 2 and 1000, got {bins}; 32 show the shape well")
    return (torch.arange(bins) + 0.5) / bins


def noised_labels(net: Denoiser, schedule: Schedule, labels: Tensor, normal: Tensor, time: Tensor) -> Tensor:
    """Return `z_t = sqrt(abar(t)) u_y + sqrt(1 - abar(t)) eps`, (batch, dimension), at one time of shape (1,)."""
    level = schedule.levels(time)
    return level.signal.sqrt() * net.label_embedding(labels) + level.noise.sqrt() * normal


def squared_gradients(  # long: a gradient depends on all of these
    net: Denoiser,
    schedule: Schedule,
    images: Tensor,
    labels: Tensor,
    normal: Tensor,
    times: Tensor,
    eta: float,
    largest: float,
) -> dict[str, Tensor]:
    """Return loss name -> squared norm of the block's gradient of the batch's mean loss at each time, float64 (times,).

    At one time the weight `w = eta/2 SNR'(t)` is one number for the whole batch, so the gradients of `paper` and
    `clipped` are those of `unweighted` times w, and times min(w, largest).

    Args:
        net: the net, in evaluation mode; its weights stay as they are.
        schedule: the net's.
        images: (batch, channels, height, width), standardised.
        labels: (batch,).
        normal: the noise in z, (batch, dimension), the same at every time.
        times: (times,), on the device of the images.
        eta: the weight of the denoising loss.
        largest: the most that a clipped weight can be.
    """
    parameters = [parameter for parameter in net.block.parameters() if parameter.requires_grad]
    with torch.no_grad():
        weights = eta / 2 * schedule.snr_slope(times).double()
        latents = [noised_labels(net, schedule, labels, normal, time) for time in times.split(1)]
        rows = net.embedding.detach()
    found: dict[str, list[float]] = {"unweighted": [], "cross-entropy": []}
    prepared = net.block.prepare(images)  # once: it does not depend on time
    for time, latent in zip(times.split(1), latents, strict=True):
        logits = net.block.outputs(prepared, latent, time)
        for name, norms in found.items():
            loss = denoising_loss(name, logits, rows, labels, times.new_ones(()), largest).mean()
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norms.append(sum(float(g.double().square().sum()) for g in gradients if g is not None))
    plain = torch.tensor(found["unweighted"], dtype=torch.float64)
    weights = weights.cpu()
    squares = {
        "paper": plain * weights**2,
        "clipped": plain * weights.clamp(max=largest) ** 2,
        "unweighted": plain,
        "cross-entropy": torch.tensor(found["cross-entropy"], dtype=torch.float64),
    }
    return {name: squares[name] for name in LOSSES}


def effective_share(squares: Tensor, owned: float = 0.9) -> float:
    """Return the smallest share of the times that owns 90 % of the sum of squares, in (0, 1].

    >>> effective_share(torch.tensor([1.0, 97.0, 1.0, 1.0])), effective_share(torch.ones(10))
    (0.25, 0.9)
    """
    rising = squares.double().sort(descending=True).values.cumsum(dim=0)
    enough = rising >= owned * rising[-1] * (1 - 1e-9)
    return (int(enough.long().argmax()) + 1) / len(squares)


def accuracy_at_times(
    net: Denoiser, schedule: Schedule, images: Tensor, labels: Tensor, normal: Tensor, times: Tensor
) -> list[float]:
    """Return how often the block's largest output is the label at each time, given the true label's z_t."""
    with torch.no_grad():
        prepared, shares = net.block.prepare(images), []
        for time in times.split(1):
            logits = net.block.outputs(prepared, noised_labels(net, schedule, labels, normal, time), time)
            shares.append(float((logits.argmax(dim=1) == labels).double().mean()))
    return shares


def nearest_accuracy_at_times(
    net: Denoiser, schedule: Schedule, labels: Tensor, normal: Tensor, times: Tensor
) -> list[float]:
    """Return how often the class embedding nearest to the true label's `z_t / sqrt(abar(t))` is the label's own.

    No image is looked at: it is how much of the task z_t has solved already.
    """
    with torch.no_grad():
        shares = []
        for time in times.split(1):
            latent = noised_labels(net, schedule, labels, normal, time) / schedule.alpha_bar(time).sqrt()
            shares.append(float((torch.cdist(latent, net.embedding).argmin(dim=1) == labels).double().mean()))
    return shares
