"""NoProp-CT and NoProp-FM as one would first write them: float64, one example at a time, features joined by `cat`.

Nothing here is imported from the package. Times and noise are given, so the package's losses and gradients can be held
to these; only the derivative SNR'(t) is left to autograd, which differentiates `exp(-gamma(t))` as it stands.
"""

import math

import torch
from torch import nn


class PlainTimedBlock(nn.Module):
    """Figure 6 of the paper, continuous time: image, z and t each become 256 features; no batch norm, no dropout."""

    def __init__(self, channels, size, classes, dimension):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.image = nn.Linear(128 * (size // 4) ** 2, 256)
        self.latent = nn.Linear(dimension, 256)
        self.time = nn.Linear(64, 256)
        self.first = nn.Linear(768, 256)
        self.second = nn.Linear(256, 128)
        self.third = nn.Linear(128, classes)
        self.double()

    def forward(self, image, latent, time):
        from_image = self.image(self.convolutions(image[None]).flatten()).relu()
        from_latent = self.latent(latent).relu()
        from_time = self.time(plain_positional_embedding(time)).relu()
        hidden = self.first(torch.cat([from_image, from_latent, from_time])).relu()
        return self.third(self.second(hidden).relu())


def plain_positional_embedding(time, size=64):
    """sin and cos of 1000 t / 10000^(k / 32) for k = 0 .. 31."""
    angles = [1000 * time / 10_000 ** (k / (size // 2)) for k in range(size // 2)]
    return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)


class PlainLinearGamma:
    """gamma(t) on a straight line between its ends; alpha_bar = sigmoid(-gamma) is `low` at 0 and `high` at 1."""

    def __init__(self, low, high):
        self.first, self.last = math.log((1 - low) / low), math.log((1 - high) / high)

    def __call__(self, time):
        return (1 - time) * self.first + time * self.last


class PlainCosineGamma:
    """alpha_bar = low + (high - low) sin^2(pi t / 2), and gamma = -log(alpha_bar / (1 - alpha_bar))."""

    def __init__(self, low, high):
        self.low, self.high = low, high

    def __call__(self, time):
        level = self.low + (self.high - self.low) * torch.sin(math.pi * time / 2) ** 2
        return -torch.log(level / (1 - level))


class PlainLearnedGamma:
    """gamma = g0 + (g1 - g0)(1 - gbar), gbar = (gt(t) - gt(0)) / (gt(1) - gt(0)), gt two layers, positive weights."""

    def __init__(self, g0, log_span, inner, bias, outer):
        given = (g0, log_span, inner, bias, outer)
        self.parameters = [tensor.detach().double().clone().requires_grad_() for tensor in given]

    def network(self, time):
        _, _, inner, bias, outer = self.parameters
        total = 0
        for k in range(len(inner)):
            weight, scale = torch.log(1 + torch.exp(inner[k])), torch.log(1 + torch.exp(outer[k]))
            total = total + scale / (1 + torch.exp(-(weight * time + bias[k])))
        return total

    def __call__(self, time):
        g0 = self.parameters[0]
        g1 = g0 + torch.exp(self.parameters[1])
        start, end = self.network(torch.zeros(())), self.network(torch.ones(()))
        gbar = (self.network(time) - start) / (end - start)
        return g0 + (g1 - g0) * (1 - gbar)


def plain_alpha_bar(gamma, time):
    return torch.sigmoid(-gamma(torch.tensor(time, dtype=torch.float64)))


def plain_snr_slope(gamma, time):
    """SNR'(t) of SNR = exp(-gamma(t)), with a graph, so that a learned schedule has gradients through it too."""
    at = torch.tensor(time, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(torch.exp(-gamma(at)), at, create_graph=True)[0]


def plain_denoising_loss(kind, logits, embedding, label, weight, largest, smoothing):
    probabilities = torch.exp(logits) / torch.exp(logits).sum()
    if kind == "cross-entropy":
        wanted = [smoothing / len(logits) + (1 - smoothing) * (k == label) for k in range(len(logits))]
        return -sum(wanted[k] * torch.log(probabilities[k]) for k in range(len(logits)))
    estimate = sum(probabilities[k] * embedding[k] for k in range(len(logits)))
    squared = ((estimate - embedding[label]) ** 2).sum()
    if kind == "paper":
        return weight * squared
    if kind == "clipped":
        return min(weight, torch.tensor(largest, dtype=torch.float64)) * squared
    return squared


def plain_readout_loss(kind, parameters, embedding, latent, label):
    """-log p(y | z): linear with softmax, or by distance after a softmax among the embeddings, or by distance."""
    if kind == "softmax":
        weight, bias = parameters
        logits = weight @ latent + bias
    elif kind == "radial":
        weight, bias, log_sigma = parameters  # in any order: the bias is a vector, log sigma a number
        point = torch.softmax(weight @ latent + bias, dim=0) @ embedding
        logits = -((point - embedding) ** 2).sum(dim=1) / (2 * torch.exp(log_sigma) ** 2)
    else:
        logits = -((latent - embedding) ** 2).sum(dim=1) / 2
    return -torch.log(torch.exp(logits[label]) / torch.exp(logits).sum())


def plain_ct_terms(block, gamma, embedding, readout, given, options):
    """The three terms of one example: denoising, cross-entropy of the read-out, KL of the start.

    given: image, label, t, noise of z_t, noise of z_1. options: loss, eta, largest, smoothing, readout.
    """
    image, label, time, noise, last_noise = given
    u = embedding[label]
    abar = plain_alpha_bar(gamma, time)
    z = torch.sqrt(abar) * u + torch.sqrt(1 - abar) * noise
    weight = options["eta"] / 2 * plain_snr_slope(gamma, time)
    logits = block(image, z, time)
    denoising = plain_denoising_loss(
        options["loss"], logits, embedding, label, weight, options["largest"], options["smoothing"]
    )
    last = plain_alpha_bar(gamma, 1.0)
    z_last = torch.sqrt(last) * u + torch.sqrt(1 - last) * last_noise
    entropy = plain_readout_loss(options["readout"], readout, embedding, z_last, label)
    first = plain_alpha_bar(gamma, 0.0)
    divergence = (first * (u**2).sum() - len(u) * first - len(u) * torch.log(1 - first)) / 2
    return denoising, entropy, divergence


def plain_fm_terms(block, embedding, readout, given, options):
    """The two terms of one example: flow, and the anchor (counted by the caller only where it is part of the loss).

    given: image, label, t, z_0, and the noise about the line. options: prediction, loss, largest, smoothing, sigma,
    readout.
    """
    image, label, time, z_first, about = given
    z_last = embedding[label]
    z = time * z_last + (1 - time) * z_first + options["sigma"] * about
    outputs = block(image, z, time)
    if options["prediction"] == "velocity":
        velocity = sum(outputs[k] * embedding[k] for k in range(len(outputs)))
    else:
        estimate = torch.softmax(outputs, dim=0) @ embedding
        velocity = (estimate - z) / (1 - time)
    if options["prediction"] == "velocity" or (options["loss"] == "paper" and options["sigma"] == 0):
        flow = ((velocity - (z_last - z_first)) ** 2).sum()
    else:
        weight = torch.tensor(1 / (1 - time) ** 2, dtype=torch.float64)
        flow = plain_denoising_loss(
            options["loss"], outputs, embedding, label, weight, options["largest"], options["smoothing"]
        )
    anchor = plain_readout_loss(options["readout"], readout, embedding, z + (1 - time) * velocity, label)
    return flow, anchor
