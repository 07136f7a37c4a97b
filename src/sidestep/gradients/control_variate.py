"""A control variate for pairs of noise in a chain of dense layers: what layers did for the other half of the batch.

    z_l +- eps n_l                  noise n of a pair's members on what layer l computes; f(z_l) goes to the next
    dz = dh T,  dh = s (dz + n)     how layers respond: T fitted by least squares to the other half of the batch, and s
                                    the ratio of what a unit passes on to what it was moved by, in the same pair
    g_l = s_l (T_(l+1) g_(l+1))     how an example's loss should change with what its layers compute, from the error at
                                    the last one's outputs, a central difference of the loss alone
    sum_l g_l . n_l                 what a pair's losses should differ by; only what is left over multiplies the noise

`g + (alpha - sum_l g_l . n_l) n` has the mean of `alpha n` for any g that does not depend on n, hence whatever the fit
is worth. T comes from other examples. s is the same for n and -n, and free of n for ever smaller noise where f is
smooth; at a finite eps, and since units that hardly moved count as still, that mean is kept nearly, not exactly. The
better the fit, the less noise is left. No derivative is taken, and weights are not read.

Sources: Owen, "Monte Carlo theory, methods and examples" (2013), section 8.9, for control variates; Akrout, Wilson,
Humphreys, Lillicrap and Tweed, "Deep learning without weight transport" (2019), for feedback that is learned from what
noise in one layer does to the next; that pairs of the same batch tell it is ours.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidestep.gradients.rank_one import Factors, Members, noise_at_outputs

__all__ = ["Response", "expected_gradients", "expected_of_pairs", "responses", "watched"]

_RIDGE = 1e-4  # of the mean square of what arrives
_STILL = 1e-3  # of the root mean square: units that were moved by less say nothing of their slope


@dataclass(frozen=True)
class Response:
    """What one layer saw and computed in K pairs, in units of eps.

    inputs: (K, inputs), the mean over both members.
    arrived: half the difference of the inputs, (K, inputs); None for the first layer, which sees the same.
    computed: half the difference of what it computed without its own noise, (K, outputs).
    noise: its own, (K, outputs).
    """

    inputs: Tensor
    arrived: Tensor | None
    computed: Tensor
    noise: Tensor


@contextmanager
def watched(net: nn.Module, wanted: bool = True) -> Iterator[dict[str, tuple[nn.Linear, Tensor, Tensor]]]:
    """Give layer name -> layer, inputs and outputs, of the dense layers of a net that runs inside, if `wanted`.

    Entered before noise is added to outputs by hooks, so that outputs come without it.
    """
    found: dict[str, tuple[nn.Linear, Tensor, Tensor]] = {}
    with ExitStack() as stack:
        for name, layer in net.named_modules() if wanted else ():
            if isinstance(layer, nn.Linear):
                hook = layer.register_forward_hook(
                    lambda layer, given, output, name=name: found.update({name: (layer, given[0], output)})
                )
                stack.callback(hook.remove)
        yield found


def responses(
    seen: dict[str, tuple[nn.Linear, Tensor, Tensor]], factors: dict[str, Factors], members: Members, eps: float
) -> dict[str, Response]:
    """Return layer name -> its response, of members with one example each."""
    found = {}
    for name, (layer, inputs, outputs) in seen.items():
        noise = outputs.new_zeros(1, members.count, outputs.shape[1])  # of a frozen layer
        if name in factors:
            noise = noise_at_outputs(layer, inputs, factors[name], members).view(-1, *noise.shape[1:])
        if len(inputs) == members.examples:  # before any noise: once for all members
            each = inputs.repeat(members.pairs, 1)
            found[name] = Response(each, None, torch.zeros_like(noise[0]), noise[0])
        else:
            inputs, outputs = (part.view(2, members.count, -1) for part in (inputs, outputs))
            arrived, computed = ((part[0] - part[1]) / (2 * eps) for part in (inputs, outputs))
            found[name] = Response(inputs.mean(dim=0), arrived, computed, noise.mean(dim=0))
    return found


def expected_gradients(found: dict[str, Response], errors: Tensor, members: Members) -> dict[str, Tensor]:
    """Return layer name -> how each pair's loss is expected to change with the layer's outputs, (K, outputs).

    Args:
        found: of layers in their order, each fed by the one before it through functions of single values.
        errors: how the loss changes with what the last one gives, (K, outputs of the last).
        members: whose halves are fitted to each other: the first half of the examples, and the second.
    """
    names = list(found)
    first = torch.arange(members.count, device=errors.device) % members.examples < members.examples // 2
    guesses = {names[-1]: errors}
    for name, later in zip(reversed(names[:-1]), reversed(names[1:]), strict=True):
        own, after = found[name], found[later]
        assert after.arrived is not None  # only the first layer has none
        carried = torch.empty_like(after.arrived)
        for rows, others in ((first, ~first), (~first, first)):
            carried[rows] = guesses[later][rows] @ _fitted(after.arrived[others], after.computed[others]).T
        guesses[name] = _slopes(own.computed + own.noise, after.arrived) * carried
    return {name: guesses[name] for name in names}


def expected_of_pairs(found: dict[str, Response], guesses: dict[str, Tensor]) -> Tensor:
    """Return what half the difference of each pair's loss over eps should be, (K,)."""
    return torch.stack([(guesses[name] * own.noise).sum(dim=1) for name, own in found.items()]).sum(dim=0)


def _fitted(arrived: Tensor, computed: Tensor) -> Tensor:
    """Return T of `computed = arrived T`, (inputs, outputs); zeros from no examples."""
    squares = arrived.T @ arrived
    squares.diagonal().add_(_RIDGE * squares.diagonal().mean() + torch.finfo(squares.dtype).tiny)
    return torch.cholesky_solve(arrived.T @ computed, torch.linalg.cholesky(squares))


def _slopes(moved: Tensor, passed: Tensor) -> Tensor:
    """Return what each unit passes on over what it was moved by, 0 where it hardly moved."""
    still = moved.abs() <= _STILL * moved.square().mean().sqrt()
    return torch.where(still, 0.0, passed / moved)
