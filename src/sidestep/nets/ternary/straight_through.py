"""Float twins of ternary nets, for back-propagation: plain, or with ternary weights by the straight-through estimator.

    w_q = a t,   t = sgn(w) [|w| > D],   D = 0.7 mean |w|,   a = mean of |w| where t is not 0;   dL/dw := dL/dw_q

per layer; w is a float latent. Sources: Li, Zhang and Liu, "Ternary weight networks" (2016), equations 4 to 6; Bengio,
Léonard and Courville, "Estimating or propagating gradients through stochastic neurons" (2013).
"""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from sidestep.errors import InputError
from sidestep.nets.ternary.layers import TernaryConv2d, TernaryLayer, TernaryLinear
from sidestep.nets.ternary.nets import TernaryNet
from sidestep.noise import Noise

__all__ = ["StraightThrough", "float_twin"]


class StraightThrough(nn.Module):
    """The parametrisation `w -> a t` of a layer's weight; its derivative is taken to be one.

    >>> import torch
    >>> StraightThrough()(torch.tensor([1.0, -3.0, 0.2])).tolist()
    [2.0, -2.0, 0.0]
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Return the ternary weight, times its layer's scale."""
        size = weight.detach().abs()
        kept = size > 0.7 * size.mean()
        scale = (size * kept).sum() / kept.sum().clamp_min(1)
        ternary = weight.detach().sign() * kept * scale
        return weight + (ternary - weight.detach())


def float_twin(net: TernaryNet, noise: Noise, ternary: bool) -> TernaryNet:
    """Put torch's own float layers, newly drawn, in the place of ternary ones, in `net` itself, and return it.

    Args:
        net: the net; its stages, norms and heads stay.
        noise: where the layers' initial weights come from.
        ternary: whether their weights are used as ternary ones, by the straight-through estimator.
    """
    with noise.torch_seeded():
        for module in list(net.modules()):
            for name, layer in list(module.named_children()):
                if isinstance(layer, TernaryLayer):
                    setattr(module, name, _float_layer(layer, ternary))
    return net


def _float_layer(layer: TernaryLayer, ternary: bool) -> nn.Module:
    made: nn.Module
    if isinstance(layer, TernaryLinear):
        made = nn.Linear(layer.shape[1], layer.shape[0], layer.bias is not None)
    elif isinstance(layer, TernaryConv2d):
        outputs, inputs = layer.shape[0], layer.shape[1] * layer.groups
        kernel = (layer.shape[2], layer.shape[3])
        made = nn.Conv2d(
            inputs, outputs, kernel, layer.stride, layer.padding, layer.dilation, layer.groups, layer.bias is not None
        )
    else:
        raise InputError(f"there is no float twin of {type(layer).__name__}")
    if ternary:
        parametrize.register_parametrization(made, "weight", StraightThrough())
    return made
