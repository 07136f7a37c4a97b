"""Local losses: every stage of a net has a head and a loss of its own, and no derivative passes between stages.

    g_l = d CE(head_l(stage_l(h_(l-1))), y) / d W_l          h_(l-1) is data

Each gradient is exact, taken by reverse mode within its stage: back through the head, the norm and the rectifier to the
one layer. So this is local back-propagation, and not forward-only. Source: Nøkland and Eidnes, "Training neural
networks with local error signals" (2019).
"""

import torch
from torch import Tensor, nn

from sidestep.data.objective import CLASSES, Objective
from sidestep.nets.check_module import inplace_explained
from sidestep.nets.precision import at_least_float32, full_precision
from sidestep.nets.substituted import functional_call
from sidestep.nets.ternary.nets import TernaryNet
from sidestep.nets.trained import trained

__all__ = ["floating", "local_gradients"]


def local_gradients(
    net: TernaryNet, images: Tensor, labels: Tensor, label_smoothing: float = 0.0, objective: Objective = CLASSES
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return parameter name -> gradient of its stage's mean loss, and unit name -> that loss.

    One stage's trits at a time are turned into numbers of the computation's precision, and dropped after it.
    """
    gradients: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    for index, (stage, head) in enumerate(zip(net.stages, net.heads, strict=True)):
        leaves = [floating(part, images) for part in (stage, head)]
        with torch.enable_grad():
            for leaf in (leaf for part in leaves for leaf in part.values()):
                leaf.requires_grad_()
            features = functional_call(stage, leaves[0], (images,))
            logits = functional_call(head, leaves[1], (features,))
            loss = objective.mean(at_least_float32(logits), labels, label_smoothing)
        names = [f"stages.{index}.{name}" for name in leaves[0]] + [f"heads.{index}.{name}" for name in leaves[1]]
        with full_precision(loss), inplace_explained():
            found = torch.autograd.grad(loss, [*leaves[0].values(), *leaves[1].values()])
        gradients.update(zip(names, found, strict=True))
        losses[f"stage {index}: {objective.name}"] = loss.detach()
        images = features.detach()
    return gradients, losses


def floating(module: nn.Module, like: Tensor) -> dict[str, Tensor]:
    """Return name -> trits as numbers, in the precision that matrix products of `like` run in."""
    device = like.device.type
    low = torch.is_autocast_enabled(device) and like.dtype != torch.float64
    own = like.dtype if like.is_floating_point() else torch.float32  # token ids say nothing of a precision
    dtype = torch.get_autocast_dtype(device) if low else own
    return {
        name: parameter.detach().to(dtype, memory_format=_layout(parameter))
        for name, parameter in trained(module).items()
    }


def _layout(parameter: Tensor) -> torch.memory_format:
    return torch.channels_last if parameter.ndim == 4 else torch.contiguous_format
