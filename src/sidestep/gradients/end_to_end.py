"""The gradient that rules are measured against: that of the loss a net is judged by, end to end, by reverse mode."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sidestep.data.task import Batch
from sidestep.nets.check_module import inplace_explained
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import full_precision
from sidestep.noise import Noise

__all__ = ["end_to_end", "gradients_of"]


def gradients_of(loss: Tensor, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return name -> gradient of `loss`, for the tensors that are trained and take part; the others are left out."""
    trained = {name: tensor for name, tensor in wanted.items() if tensor.requires_grad}
    if not trained:
        return {}
    with full_precision(loss), inplace_explained():  # or autocast would round what the forward pass had in float32
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(trained, found, strict=True) if gradient is not None}


def end_to_end(
    net: nn.Module,
    batch: Batch,
    logits_of: Callable[[Tensor], Tensor],
    wanted: Mapping[str, Tensor] | None = None,
    running: bool = False,
) -> dict[str, Tensor]:
    """Return name -> `d CE(logits_of(images), labels) / d theta`, the batch's mean, without autocast or dropout.

    Args:
        net: its statistics, and its modules' modes, are afterwards as they were.
        batch: images and labels.
        logits_of: the default reading as logits, (batch, ...) -> (batch, classes), differentiable.
        wanted: tensors that the logits depend on, by name; by default the net's parameters.
        running: batch norm by its running statistics, as when predicting, and not by those of the batch.
    """
    device = batch.inputs.device
    drawn = Noise(0).stream("module").torch_seeded(device)  # for modules of the user's that draw
    with _modes(net, running), kept_statistics(net), full_precision(batch.inputs), drawn, torch.enable_grad():
        loss = batch.objective.mean(logits_of(batch.inputs), batch.targets)
        return gradients_of(loss, dict(net.named_parameters()) if wanted is None else wanted)


@contextmanager
def _modes(net: nn.Module, running: bool) -> Iterator[None]:
    before = [(module, module.training) for module in net.modules()]
    net.train(not running)
    for module, _ in before:
        if "Dropout" in type(module).__name__:
            module.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode
