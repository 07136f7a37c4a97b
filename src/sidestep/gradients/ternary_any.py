"""Derivatives of a user's own loss along sparse probes of ternary weights, by forward mode.

    alpha_i = d/de L(w + e nu_i) at e = 0           L: whatever a function of the user's returns

`sidestep.gradients.tangents.alignments` gives the same numbers of a net's own loss, many probes at a time; here a probe
is a call of the function, which is all that is known.
"""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from sidestep.errors import InputError
from sidestep.gradients.any_module import Losses, mean_loss
from sidestep.gradients.forward_mode import forward_mode
from sidestep.nets.check_module import inplace_explained
from sidestep.nets.parallel import kept_statistics
from sidestep.nets.precision import full_precision
from sidestep.nets.substituted import substituted
from sidestep.nets.ternary.layers import ternary_parameters
from sidestep.noise import Noise
from sidestep.probes import SparseProbes

__all__ = ["alignments_of_losses"]


def alignments_of_losses(
    net: nn.Module, losses: Losses, probes: SparseProbes, noise: Noise, taken: range | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return alpha, (probes taken,), the mean loss, (), and the buffers that a forward pass changes, by name.

    Args:
        net: a module whose trained parameters are all trits; it is left as it was.
        losses: calls the net and returns its loss, one number or one per example; once for every probe.
        probes: over all weights, in the order of `ternary_parameters`.
        noise: where dropout and the like draw from, the same in every call.
        taken: the numbers of the probes that are wanted, all by default.

    Raises:
        InputError: for a net with other parameters, or a loss of another form or without a derivative.
    """
    weights = {name: trits.float() for name, trits in ternary_parameters(net).items()}
    device, sizes = next(iter(weights.values())).device, [weight.numel() for weight in weights.values()]
    found, statistics = [], dict[str, Tensor]()
    with torch.no_grad(), forward_mode(net), full_precision(next(iter(weights.values()))):
        for index in range(probes.count) if taken is None else taken:
            entries = probes.entries(index, index + 1, device)
            flat = torch.zeros(sum(sizes), device=device).index_add_(0, entries.position, entries.sign.float())
            parts = zip(flat.split(sizes), weights.items(), strict=True)
            along = {name: part.view(weight.shape) for part, (name, weight) in parts}
            with (
                forward_ad.dual_level(), inplace_explained(), kept_statistics(net) as changed,
                noise.torch_seeded(device),
            ):  # fmt: skip
                with substituted(net, {name: forward_ad.make_dual(w, along[name]) for name, w in weights.items()}):
                    loss, derivative = forward_ad.unpack_dual(mean_loss(losses()))
                if derivative is None:
                    raise InputError(
                        "the loss has no derivative with respect to the ternary weights; leave detach() out of the "
                        "function, and let it call the model that was attached"
                    )
                found.append(derivative.clone())
                statistics = changed()
                value = loss.clone()
    return torch.stack(found), value, statistics
