"""Where a chain of the user's can be cut: an nn.Sequential of a stem, residual blocks `h + f(h)`, and what follows.

A part is residual if it keeps its input's shape and, with all its weights at zero, gives its input back: then f is
what the weights make. It is tried on what the chain itself gives to that part, on a copy.
"""

import copy
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidestep.data.task import Task
from sidestep.errors import InputError
from sidestep.nets.trained import check_own_weights
from sidestep.nets.user_modules import parts_in_order
from sidestep.noise import Noise
from sidestep.wording import counted

__all__ = ["Parts", "example_of", "group_sizes", "parts_of", "residual_places"]

_EXAMPLES = 2


@dataclass(frozen=True)
class Parts:
    """One chain in three: the stem, the blocks, and what stands behind them."""

    stem: nn.Sequential
    blocks: list[nn.Module]
    tail: nn.Sequential


def example_of(task: Task, noise: Noise) -> Tensor:
    """Return two made-up inputs of a task's shape, to try modules out on."""
    if task.inputs == "tokens":
        return torch.zeros(_EXAMPLES, *task.shape, dtype=torch.int64)
    return noise.normal(_EXAMPLES * torch.Size(task.shape).numel()).view(_EXAMPLES, *task.shape)


def residual_places(chain: nn.Module, name: str, example: Tensor) -> range:
    """Return which parts of a chain are its blocks: a run of residual ones, from the first to the last.

    Parts between them that change nothing (nn.Identity, dropout when evaluating) count among the blocks.

    Raises:
        InputError: for a module that is no nn.Sequential, has no residual part, or others between them.
    """
    parts = parts_in_order(chain)
    found, unchanged, inputs = [], set(), example
    with torch.no_grad():
        for index, part in enumerate(copy.deepcopy(parts)):
            outputs = part.eval()(inputs)
            if _gives_back(part, inputs):
                unchanged.add(index)
                if any(True for _ in part.parameters()):
                    found.append(index)
            inputs = outputs
    if not found:
        given = f"none of the {counted(len(parts), 'part')} of {name} is one" if parts else f"got one {name}"
        raise InputError(
            "this rule cuts a chain of residual blocks, an nn.Sequential of a stem, blocks that each return their "
            f"input plus what they compute, x + f(x), and what follows them; {given}: write the chain so, or take a "
            "rule that trains any module (`sidestep rules` lists them)"
        )
    for index in range(found[0], found[-1]):
        if index not in unchanged:
            raise InputError(
                f"part {index + 1} of the nn.Sequential ({type(parts[index]).__name__}) stands between residual blocks "
                "and is not one: with its weights at zero it does not give back its input, as x + f(x) would; put it "
                "into the stem, into a block, or behind the last one"
            )
    check_own_weights(parts)
    return range(found[0], found[-1] + 1)


def _gives_back(part: nn.Module, inputs: Tensor) -> bool:
    """Whether a part, a copy whose weights become zero, returns its input, and that scaled and moved, as no norm does.

    What a chain itself gives it has to pass, too: blocks that end in ReLU give theirs back, which has no negative part.
    """
    if not inputs.is_floating_point():
        return False
    for parameter in part.parameters():
        parameter.zero_()
    return all(_same(part(given), given) for given in (inputs, 2 * inputs + 1))


def _same(outputs: Tensor, inputs: Tensor) -> bool:
    return isinstance(outputs, Tensor) and outputs.shape == inputs.shape and torch.allclose(outputs, inputs)


def parts_of(chain: nn.Module, places: range) -> Parts:
    """Return a chain in three parts, with its blocks at those places."""
    parts = parts_in_order(chain)
    stem, tail = parts[: places.start], parts[places.stop :]
    return Parts(nn.Sequential(*stem), [parts[index] for index in places], nn.Sequential(*tail))


def group_sizes(groups: int, blocks: int, hint: str) -> list[range]:
    """Return which blocks each group has, as equal in number as they can be, the first ones larger.

    >>> group_sizes(3, 8, "")
    [range(0, 3), range(3, 6), range(6, 8)]

    Raises:
        InputError: for fewer blocks than groups; `hint` says how to get more.
    """
    if groups > blocks:
        raise InputError(
            f"groups = {groups} needs as many residual blocks or more, and there are {blocks}; take groups = {blocks} "
            f"or fewer{hint}"
        )
    size, more = divmod(blocks, groups)
    starts = [group * size + min(group, more) for group in range(groups + 1)]
    return [range(first, last) for first, last in itertools.pairwise(starts)]
