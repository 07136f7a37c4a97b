"""The gradient of a batch in parts: the activations of one part at a time, and one set of gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sidestep.nets.trained import device_of, trained
from sidestep.noise import Noise
from sidestep.rules.shared.any_module import LOSS
from sidestep.update import Dense

__all__ = ["summed_gradients"]


def summed_gradients(net: nn.Module, losses: Sequence[Callable[[], Tensor]], noise: Noise) -> Dense:
    """Return the gradient of the mean of equal parts' losses, summed in `.grad` as each part goes back.

    Each part draws its own dropout, from the noise.
    """
    total = 0.0
    for index, loss in enumerate(losses):
        with noise.stream("module").sub(index).torch_seeded(device_of(net)), torch.enable_grad():
            found = loss() / len(losses)
            found.backward()
        total += float(found.detach())
    gradients = {name: weight.grad for name, weight in trained(net).items() if weight.grad is not None}
    for weight in trained(net).values():
        weight.grad = None
    return Dense(gradients, losses={LOSS: torch.tensor(total)})
