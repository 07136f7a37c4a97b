"""NoProp-DT as one would first write it: float32, one block after another, torch's own dropout, one optimiser a block.

Nothing here is imported from the package. The fast path is held to this code (equal losses and gradients from equal
weights and noise, dropout off), and its speed is given as a multiple of this loop's.
"""

import math

import torch
from torch import nn


class PlainBlock(nn.Module):
    def __init__(self, channels, size, classes, dimension, rate=0.2):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(rate),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Dropout(rate),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(rate),
        )  # fmt: skip
        self.dense = nn.Linear(128 * (size // 4) ** 2, 256)
        self.norm = nn.BatchNorm1d(256)
        self.first = nn.Sequential(nn.Linear(dimension, 256), nn.BatchNorm1d(256), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256), nn.BatchNorm1d(256)
        )
        self.fuse = nn.Sequential(
            nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU(),
            nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, classes),
        )  # fmt: skip

    def forward(self, images, latent):
        image = self.norm(self.dense(self.convolutions(images).flatten(1)))
        hidden = self.first(latent)
        return self.fuse(torch.cat([image, hidden + self.residual(hidden)], dim=1))


def plain_alpha_bar(blocks, offset=0.008, low=1e-3, high=0.999):
    def level(time):
        return math.cos((time + offset) / (1 + offset) * math.pi / 2) ** 2

    return [min(max(level(1 - t / blocks) / level(0), low), high) for t in range(blocks + 1)]


def plain_block_loss(block, t, images, labels, embedding, alpha_bar, eta, noise):
    """T/2 eta (SNR(t) - SNR(t-1)) |uhat_t(z_(t-1), x) - u_y|^2, mean over the batch; t counts from 1."""
    target = embedding[labels]
    latent = math.sqrt(alpha_bar[t - 1]) * target + math.sqrt(1 - alpha_bar[t - 1]) * noise
    estimate = torch.softmax(block(images, latent), dim=1) @ embedding
    snr = [a / (1 - a) for a in alpha_bar]
    weight = (len(alpha_bar) - 1) / 2 * eta * (snr[t] - snr[t - 1])
    return weight * ((estimate - target) ** 2).sum(dim=1).mean()


class PlainNoProp:
    """T blocks on one-hot labels, and a linear read-out, each with its own AdamW."""

    def __init__(self, channels, size, classes, blocks=10, eta=0.1):
        self.embedding, self.eta = torch.eye(classes), eta
        self.alpha_bar = plain_alpha_bar(blocks)
        self.blocks = [PlainBlock(channels, size, classes, classes) for _ in range(blocks)]
        self.readout = nn.Linear(classes, classes)
        self.optimizers = [torch.optim.AdamW(b.parameters(), lr=1e-3, weight_decay=1e-3) for b in self.blocks]
        self.readout_optimizer = torch.optim.AdamW(self.readout.parameters(), lr=1e-3, weight_decay=1e-3)

    def step(self, images, labels):
        losses = []
        for t, (block, optimizer) in enumerate(zip(self.blocks, self.optimizers, strict=True), start=1):
            noise = torch.randn(len(labels), self.embedding.shape[1])
            loss = plain_block_loss(block, t, images, labels, self.embedding, self.alpha_bar, self.eta, noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        noise = torch.randn(len(labels), self.embedding.shape[1])
        last = self.alpha_bar[-1]
        latent = math.sqrt(last) * self.embedding[labels] + math.sqrt(1 - last) * noise
        entropy = nn.functional.cross_entropy(self.readout(latent), labels)
        self.readout_optimizer.zero_grad()
        entropy.backward()
        self.readout_optimizer.step()
        return losses
