"""What forward-forward trains: stages whose activity says how well an image and a label go together.

    input:   h_0 = the image, with a channel that shows the label as a fixed pattern of signs
    stage:   h_l = relu(W_l * h_(l-1) / rms(h_(l-1)) + b_l)     the length, which says the answer, is taken off
    goodness of stage l:   g_l = mean of h_l squared

With `label = head` the image comes alone, the features of a stage are shared out among the classes, and g_l(y) is the
mean over those of class y. Sources: Hinton, "The forward-forward algorithm" (2022), sections 2 and 3.3; the pattern:
Lee and Song, "SymBa" (2023); the shared features: Papachristodoulou et al., "Convolutional channel-wise competitive
learning for the forward-forward algorithm" (2024).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, softplus

from sidestep.errors import InputError
from sidestep.nets.precision import at_least_float32, full_precision
from sidestep.nets.shapes import Shape, image_sides
from sidestep.nets.stages.layerwise import layerwise_stages, shapes_of
from sidestep.noise import Noise

__all__ = ["GoodnessNet", "goodness_loss", "goodness_of_shares", "wrong_labels"]


class GoodnessNet(nn.Module):
    """Stages with a goodness each, and a linear read-out of what they see in an image without a label.

    Args:
        kind: `mlp` or `conv` (see `layerwise_net`).
        image_shape: (channels, height, width).
        hidden: widths of the stages, or their channels.
        classes: number of classes.
        painted: whether the label is shown in the input; otherwise features are shared out among the classes.
        noise: where patterns and initial weights come from.
    """

    patterns: Tensor

    def __init__(  # long: what such a net is made of
        self,
        kind: str,
        image_shape: Shape,
        hidden: tuple[int, ...],
        classes: int,
        painted: bool,
        noise: Noise,
    ) -> None:
        super().__init__()
        self.seen_shape = image_shape if len(image_shape) == 3 else (1, 1, *image_shape)  # features: one row of pixels
        channels, height, width = image_sides(self.seen_shape)
        if not painted and min(hidden) < classes:
            raise InputError(
                f"with the label as a head every stage needs a feature per class, {classes}, got {min(hidden)}; give "
                "it more, or show the label in the input"
            )
        self.classes, self.painted = classes, painted
        if painted:
            signs = noise.stream("patterns").signs(classes * height * width).view(classes, 1, height, width).float()
            self.register_buffer("patterns", torch.cat([signs, torch.zeros(1, 1, height, width)]))
        shape = (channels + painted, height, width)
        with noise.stream("layers").torch_seeded():
            self.stages = nn.ModuleList(layerwise_stages(kind, shape, hidden, "none"))
            self.readout = nn.Linear(sum(hidden), classes)
        self.shapes = shapes_of(self.stages, shape)

    def shown(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Return the input of the first stage: images with the pattern of `labels`, (batch,), or of none."""
        if not self.painted:
            return images
        if labels is None:
            labels = torch.full(images.shape[:1], self.classes, device=images.device)
        if images.ndim == 2:
            images = images.view(images.shape[0], *self.seen_shape)
        return torch.cat([images, self.patterns[labels].to(images.dtype)], dim=1)

    def stage_outputs(self, inputs: Tensor) -> Iterator[Tensor]:
        """Yield each stage's output; no derivative passes from one to the next."""
        for stage in self.stages:
            inputs = stage(inputs)
            yield inputs
            inputs = _without_length(inputs.detach())

    def goodness(self, outputs: Tensor) -> Tensor:
        """Return the mean square of a stage's features: (batch,), or (batch, classes) with the label as a head."""
        squares = at_least_float32(outputs).square()
        if squares.ndim > 2:
            squares = squares.flatten(2).mean(dim=2)  # (batch, features), over places
        if self.painted:
            return squares.mean(dim=1)
        return _by_shares(squares, self.classes)

    def inputs_of_pair(self, images: Tensor, labels: Tensor, wrong: Tensor) -> Tensor:
        """Return images with their true labels and then with wrong ones, (2 batch, ...), or as they are."""
        if not self.painted:
            return images
        return torch.cat([self.shown(images, labels), self.shown(images, wrong)])

    def goodness_of_pair(self, outputs: Tensor, labels: Tensor, wrong: Tensor) -> tuple[Tensor, Tensor]:
        """Return the goodness of the true and of the wrong labels, (batch,) each, from what a stage makes of them."""
        goodness = self.goodness(outputs)
        if self.painted:
            right, other = goodness.chunk(2)
            return right, other
        return goodness.gather(1, labels[:, None])[:, 0], goodness.gather(1, wrong[:, None])[:, 0]

    def every_goodness(self, images: Tensor) -> Tensor:
        """Return the sum of the stages' goodness for every label, (batch, classes), by trying all labels."""
        if not self.painted:
            return torch.stack([self.goodness(h) for h in self.stage_outputs(images)]).sum(dim=0)
        found = []
        for label in range(self.classes):
            labels = torch.full(images.shape[:1], label, device=images.device)
            outputs = self.stage_outputs(self.shown(images, labels))
            found.append(torch.stack([self.goodness(h) for h in outputs]).sum(dim=0))
        return torch.stack(found, dim=1)

    def seen(self, images: Tensor) -> Tensor:
        """Return what the stages make of images without a label, lengths taken off, averaged over places."""
        with torch.no_grad():
            found = [_without_length(h) for h in self.stage_outputs(self.shown(images, None))]
        return torch.cat([h.flatten(2).mean(dim=2) if h.ndim > 2 else h for h in found], dim=1)  # (batch, features)

    def joined(self, images: Tensor) -> Tensor:
        """Return what `seen` does, with derivatives from one stage to the next: for back-propagation end to end."""
        found, inputs = [], self.shown(images, None)
        for stage in self.stages:
            inputs = _without_length(stage(inputs))
            found.append(inputs.flatten(2).mean(dim=2) if inputs.ndim > 2 else inputs)
        return torch.cat(found, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the read-out's logits, (batch, classes)."""
        return at_least_float32(self.readout(self.seen(images)))


def goodness_of_shares(outputs: Tensor, classes: int) -> Tensor:
    """Return the mean square of every class's share of features, (batch, classes); of maps over all places.

    Args:
        outputs: of a stage, (batch, features, ...).
        classes: number of classes, at most as many as features, which are shared out among them in their order.
    """
    squares = at_least_float32(outputs).square()
    return _by_shares(squares.flatten(2).mean(dim=2) if squares.ndim > 2 else squares, classes)


def _by_shares(squares: Tensor, classes: int) -> Tensor:
    features = squares.shape[1]
    owner = torch.arange(features, device=squares.device) * classes // features
    shares = torch.nn.functional.one_hot(owner, classes).to(squares.dtype)
    with full_precision(squares):
        return squares @ (shares / shares.sum(dim=0))


def goodness_loss(right: Tensor, wrong: Tensor, threshold: float, sharpness: float) -> Tensor:
    """Return the mean of `softplus(a (t - g+)) + softplus(a (g- - t))`, or of `softplus(a (g- - g+))` without a t.

    Args:
        right: goodness of the true labels, (batch,).
        wrong: goodness of wrong ones, (batch,).
        threshold: t; 0 compares the two with each other instead (Lee and Song 2023).
        sharpness: a.

    >>> round(float(goodness_loss(torch.tensor([2.0]), torch.tensor([0.5]), 1.0, 1.0)), 4)
    0.7873
    """
    if threshold == 0:
        return softplus(sharpness * (wrong - right)).mean()
    return (softplus(sharpness * (threshold - right)) + softplus(sharpness * (wrong - threshold))).mean()


def wrong_labels(labels: Tensor, logits: Tensor, noise: Noise) -> Tensor:
    """Return a label for every example that is never its own, drawn with the probabilities that `logits` give them.

    `argmax(log p + Gumbel)` with the true label at minus infinity: exact, whatever the probabilities.

    Args:
        labels: the true ones, (batch,).
        logits: (batch, classes); all the same for a uniform draw.
        noise: where the draws come from.
    """
    uniform = noise.uniform(logits.numel(), device=logits.device).view_as(logits).clamp_min(2.0**-25)
    scores = log_softmax(logits.double(), dim=1) - (-uniform.double().log()).log()
    return scores.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)


def _without_length(features: Tensor) -> Tensor:
    """Divide each example by the root of its mean square."""
    squares = at_least_float32(features).flatten(1).square().mean(dim=1) + 1e-6
    return features * squares.rsqrt().to(features.dtype).view(-1, *[1] * (features.ndim - 1))
