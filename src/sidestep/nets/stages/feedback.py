"""Layers whose error comes back through a matrix of its own instead of the transposed weights.

    forward:   z = W h + b            backward:   dL/dh := B^T dL/dz,    dL/dW, dL/db as ever

B has the shape of W, also in a convolution, where B^T is the transposed convolution. With B = W this is backprop.
Sources: Lillicrap et al., "Random synaptic feedback weights support error backpropagation for deep learning" (2016);
Liao, Leibo and Poggio, "How important is weight symmetry in backpropagation?" (2016); Akrout et al., "Deep learning
without weight transport" (2019).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from sidestep.errors import InputError
from sidestep.noise import Noise

__all__ = [
    "FeedbackKind",
    "FeedbackLayer",
    "check_layers",
    "exact_errors",
    "feedback_kinds",
    "with_feedback",
    "without_feedback",
]

FeedbackKind = Literal["random", "sign-symmetric", "kolen-pollack"]


class FeedbackLayer(nn.Module):
    """A linear layer or convolution whose input gets its error through `matrix()`.

    Args:
        layer: an nn.Linear or nn.Conv2d.
        kind: `random`: B is fixed; `sign-symmetric`: B = sign(W) mean |W|, of the weights as they are; `kolen-pollack`:
            B is a parameter, for a rule that gives it the gradient of W.
        noise: where B is drawn from, uniform like the layer's own weights.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, kind: FeedbackKind, noise: Noise) -> None:
        super().__init__()
        self.layer, self.kind, self.exact = layer, kind, False
        if kind == "sign-symmetric":
            return
        with noise.torch_seeded():
            drawn = nn.init.kaiming_uniform_(torch.empty_like(layer.weight), a=5**0.5)
        if kind == "random" or not layer.weight.requires_grad:  # beside a frozen W there is no step for B either
            self.register_buffer("feedback", drawn.detach())
        else:
            self.feedback = nn.Parameter(drawn.detach())

    def matrix(self) -> Tensor:
        """Return B, of the weight's shape."""
        if self.kind == "sign-symmetric":
            weight = self.layer.weight.detach()
            return weight.sign() * weight.abs().mean()
        return self.feedback.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the layer gives; its derivative by the inputs goes through `matrix()`."""
        outputs = self.layer(inputs if self.exact else inputs.detach())
        if self.exact or not inputs.requires_grad:
            return outputs
        return _CarriedBack.apply(outputs, inputs, self._back(inputs.shape))

    def _back(self, shape: torch.Size) -> Callable[[Tensor], Tensor]:
        matrix, layer = self.matrix(), self.layer
        if isinstance(layer, nn.Linear):
            return lambda error: error @ matrix.to(error.dtype)
        steps = layer.stride, layer.padding, layer.dilation, layer.groups
        return lambda error: conv2d_input(shape, matrix.to(error.dtype), error, *steps)


class _CarriedBack(torch.autograd.Function):
    """`outputs`, unchanged; on the way back the inputs get `back(error)`."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, inputs: Tensor, back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.back, ctx.dtype = back, inputs.dtype
        return outputs.clone()  # of a view of it no later part could work in place

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, Tensor, None]:
        return error, ctx.back(error).to(ctx.dtype), None


_OWN_WEIGHTS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d)  # one number per feature: nothing to carry


def check_layers(net: nn.Module) -> None:
    """Raise InputError for a layer with weights that no feedback is defined for; it says what to do instead."""
    for name, layer in net.named_modules():
        if any(True for _ in layer.parameters(recurse=False)) and not isinstance(
            layer, (nn.Linear, nn.Conv2d, *_OWN_WEIGHTS)
        ):
            raise InputError(
                f"layer {name} ({type(layer).__name__}) has no feedback: only Linear and Conv2d layers have one, "
                "and norms and layers without weights need none; build it of these, or train it by direct feedback "
                "alignment or local losses, which have ordinary back-propagation inside a stage"
            )
        if isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
            raise InputError(
                f"layer {name} (Conv2d) pads with {layer.padding_mode}, {layer.padding!r}; feedback needs a number of "
                "zeros, for instance padding=1"
            )


def feedback_kinds(net: nn.Module) -> set[str]:
    """Return the kinds of feedback that the layers of `net` have; none for a net whose errors come back exactly."""
    return {layer.kind for layer in net.modules() if isinstance(layer, FeedbackLayer)}


@contextmanager
def exact_errors(net: nn.Module) -> Iterator[None]:
    """Inside, errors come back through the weights: the gradient is the true one, to measure feedback against."""
    layers = [layer for layer in net.modules() if isinstance(layer, FeedbackLayer)]
    for layer in layers:
        layer.exact = True
    try:
        yield
    finally:
        for layer in layers:
            layer.exact = False


def without_feedback(net: nn.Module) -> None:
    """Put the plain layer back in the place of every FeedbackLayer of `net`."""
    for name, layer in [found for found in net.named_modules() if isinstance(found[1], FeedbackLayer)]:
        parent, _, last = name.rpartition(".")
        setattr(net.get_submodule(parent), last, layer.layer)


def with_feedback(net: nn.Module, kind: FeedbackKind, noise: Noise) -> None:
    """Put a FeedbackLayer in the place of every linear layer and convolution of `net`.

    Raises:
        InputError: for layers without a definition (see `check_layers`).
    """
    check_layers(net)
    every = list(net.named_modules(remove_duplicate=False))  # a layer may stand in several places
    made: dict[int, FeedbackLayer] = {}
    for name, layer in every:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if id(layer) not in made:
                made[id(layer)] = FeedbackLayer(layer, kind, noise.sub(len(made)))
            parent, _, last = name.rpartition(".")
            setattr(net.get_submodule(parent), last, made[id(layer)])
