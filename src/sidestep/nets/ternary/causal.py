"""A ternary net of rows of tokens that tells the next one at each place, in stages of one layer each.

    stage 1:  h_t = relu(norm(scale sum_d c_d E_d[x_(t - d)]))              d = 0 .. 7, an embedding for each distance
    stage l:  h_t = relu(norm(scale W_l [c_0 h_t, c_1 h_(t - 4 2^(l - 1))]))    so that stage l sees 4 2^l tokens
    head:     logits_t = scale_h V_l h_t                                at every place

c_d is fixed, as (1 + d)^-0.7 in stage 1, and as 1 and 0.2 above it: near tokens tell more than far ones, and trits,
which are all of one size, could say so only by zeros.

No layer lies between a stage's products and its loss, and no other place takes part: norm, ReLU and head work at one
place. So a stage's tail is as short as in an MLP, and local losses and local probes are what they are there, a place
in the part of an example. An attention block has four layers that feed each other across places before its loss.
Windows whose reach doubles: van den Oord et al., "WaveNet" (2016); embeddings by distance: Bengio et al., "A neural
probabilistic language model" (2003).
"""

import itertools
import math
from collections.abc import Sequence

from torch import nn

from sidestep.errors import InputError
from sidestep.nets.ternary.layers import TernaryLinear
from sidestep.nets.ternary.nets import TernaryNet, ternary_mlp
from sidestep.nets.tokens import PlaceWindow, TokenShares, TokenWindow

__all__ = ["ternary_causal_net", "ternary_shares_net"]

_FIRST = 8  # tokens that the first stage sees
_FALL = 0.7  # of the weight of a token with its distance
_BACK = 0.2  # what the features of an earlier place are multiplied by, where those of the place itself are by 1


def ternary_causal_net(length: int, vocabulary: int, hidden: Sequence[int], bias: bool) -> TernaryNet:
    """Return the net, with a head on every stage; ids (batch, length) -> logits (batch, length, vocabulary).

    Args:
        length: of a row, which no window passes.
        vocabulary: how many tokens there are.
        hidden: widths of the stages.
        bias: give every layer a ternary bias.
    """
    if not hidden or any(width < 1 for width in hidden):
        raise InputError(f"a ternary net of tokens needs one stage or more, of at least one unit each, got {hidden}")
    first = min(_FIRST, length)
    near = [(1 + back) ** -_FALL for back in range(first)]
    window = TokenWindow(vocabulary, first, near)
    stages = [_stage(window, first * vocabulary, hidden[0], bias, math.sqrt(1.5 / first))]
    back = _FIRST
    for inputs, outputs in itertools.pairwise(hidden):
        offsets = (0, back) if back < length else (0,)
        stages.append(_stage(PlaceWindow(offsets, (1, _BACK)[: len(offsets)]), len(offsets) * inputs, outputs, bias))
        back *= 2
    return TernaryNet(stages, [TernaryLinear(width, vocabulary, bias) for width in hidden])


def ternary_shares_net(vocabulary: int, hidden: Sequence[int], outputs: int, bias: bool) -> TernaryNet:
    """Return dense stages on how often each token stands in a row, with a head each; ids -> (batch, outputs)."""
    net = ternary_mlp((vocabulary,), hidden, outputs, bias, True)
    stages = list(net.stages)
    return TernaryNet([nn.Sequential(TokenShares(vocabulary), *stages[0].children()), *stages[1:]], list(net.heads))


def _stage(window: nn.Module, inputs: int, outputs: int, bias: bool, scale: float | None = None) -> nn.Module:
    layer = TernaryLinear(
        inputs, outputs, bias, scale
    )  # of one-hot inputs one in each window counts, whatever the size
    return nn.Sequential(window, layer, nn.LayerNorm(outputs, elementwise_affine=False), nn.ReLU())
