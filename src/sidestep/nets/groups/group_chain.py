"""A chain of residual blocks in groups, with the noise levels between them, and what is answered along it.

The walk is the deterministic one of Song et al. (2021, eq. 12 with eta = 0), one step a group, from z = 0:

    uhat_b = E[u_y | outputs of group b at z, l_(b-1)]
    z <- sqrt(abar_b) uhat_b + sqrt((1 - abar_b) / (1 - abar_(b-1))) (z - sqrt(abar_(b-1)) uhat_b)
"""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from sidestep.data.objective import IGNORED, NEXT_TOKENS
from sidestep.data.task import Task
from sidestep.nets.groups.group import Group, pooled
from sidestep.nets.groups.levels import draw_levels
from sidestep.nets.noprop.samplers import ddim_step
from sidestep.nets.noprop.schedules import Levels
from sidestep.nets.noprop.spread_blocks import SpreadBlocks
from sidestep.nets.noprop.target_space import TargetSpace, target_space
from sidestep.nets.precision import at_least_float32

__all__ = ["GroupChain", "PlainChain", "group_space", "mean_square"]


def _token_rows(targets: Tensor, rows: Tensor) -> Tensor:
    known = targets != IGNORED
    return nn.functional.embedding(targets.where(known, 0), rows) * known.unsqueeze(-1)


def _expected_tokens(outputs: Tensor, rows: Tensor) -> Tensor:
    return outputs.softmax(dim=-1) @ rows


_TOKEN_SPACE = TargetSpace(NEXT_TOKENS, _token_rows, _expected_tokens)


def group_space(task: Task) -> TargetSpace:
    """Return the space of a task's targets: as NoProp has it, and of next tokens one-hot at each place."""
    return _TOKEN_SPACE if task.targets == "tokens" else target_space(task)


def mean_square(task: Task) -> float:
    """Return s^2, the mean square of an element of u_y: 1/m of one-hot rows, 1 of labels and standardised values."""
    return 1 / task.classes if task.targets in ("classes", "tokens") else 1.0


class GroupChain(SpreadBlocks):
    """B groups of residual blocks, each of which denoises its own range of levels.

    Args:
        groups: B of them, made one by one.
        bounds: l_0 .. l_B, float64 of shape (B + 1,), rising.
        outputs: K, also the length of u_y and z.
        space: what the targets are, and how they are embedded.
        together: whether groups may run at once; False if they draw from torch's global generator.
    """

    kind = "group"
    bounds: Tensor
    rows: Tensor

    def __init__(
        self, groups: Iterable[Group], bounds: Tensor, outputs: int, space: TargetSpace, together: bool = True
    ) -> None:
        super().__init__()
        self.groups = self._own(groups, len(bounds) - 1)
        self.space, self.together = space, together
        self.register_buffer("bounds", bounds.detach().clone())
        self.register_buffer("rows", torch.eye(outputs), persistent=False)

    @property
    def count(self) -> int:
        """The number of groups, B."""
        return len(self.groups)

    def group(self, index: int) -> Group:
        """Return group `index`, from 0 to B - 1."""
        module = self.groups[index]
        assert isinstance(module, Group)  # for the type checker: a ModuleList does not say what it holds
        return module

    def noised(self, targets: Tensor, level: Tensor, generator: torch.Generator) -> Tensor:
        """Return a draw of `z = sqrt(abar) u_y + sqrt(1 - abar) eps`, (batch, ..., K), at levels l, (batch,)."""
        clean = self.space.embed(targets, self.rows)
        shares = Levels.at(-level.to(clean.dtype).view(-1, *[1] * (clean.ndim - 1)))
        noise = torch.empty_like(clean).normal_(generator=generator)
        return shares.signal.sqrt() * clean + shares.noise.sqrt() * noise

    def drawn_outputs(
        self, index: int, inputs: Tensor, targets: Tensor, overlap: float, generator: torch.Generator
    ) -> Tensor:
        """Return what a group reads off inputs and noisy targets, at a level drawn for each example."""
        level = draw_levels(self.bounds, index, overlap, len(inputs), generator)
        latent, group = self.noised(targets, level, generator), self.group(index)
        return group.outputs(group.features(inputs), latent, level)

    def walk(self, inputs: Tensor) -> list[Tensor]:
        """Return every group's outputs along the walk from z = 0, of which the last are the prediction."""
        features = self.features_here(lambda index: self.group(index).features(inputs), inputs, self.together)
        levels = Levels.at(-self.bounds)
        levels = Levels(levels.signal.to(self.rows.dtype), levels.noise.to(self.rows.dtype))
        shape = (*inputs.shape[: 2 if self.group(0).places else 1], len(self.rows))
        latent, found = self.rows.new_zeros(shape), []
        for index, rows in enumerate(features):
            level = self.bounds[index : index + 1].to(latent.dtype)
            found.append(self.logits_anywhere(index, lambda: self.group(index).outputs(rows, latent, level)))  # noqa: B023
            guess = self.space.estimate(found[-1], self.rows)
            latent = ddim_step(latent, guess, levels[index], levels[index + 1])
        return found

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the last group's outputs at the end of the walk, (batch, ..., K)."""
        return self.walk(inputs)[-1]

    def mean_outputs(self, inputs: Tensor) -> Tensor:
        """Return outputs whose prediction is the mean of all groups' predictions along the walk, (batch, ..., K)."""
        every = torch.stack(self.walk(inputs))
        if self.space.objective.kind in ("classes", "tokens"):
            return every.log_softmax(dim=-1).logsumexp(dim=0)  # but for a constant, which no softmax sees
        if self.space.objective.kind == "labels":
            yes, no = (logsigmoid(side).logsumexp(dim=0) for side in (every, -every))
            return yes - no  # the logit of the mean, finite where that rounds to 0 or 1
        return every.mean(dim=0)

    def predictions(self, inputs: Tensor, names: Collection[str]) -> dict[str, Tensor]:
        """Return the wanted readings: `mean of groups` (along the walk), `walk`, `group 1 alone` (at z = 0)."""
        every = [self.space.objective.predictions(outputs) for outputs in self.walk(inputs)]
        found = {"walk": every[-1], "group 1 alone": every[0], "mean of groups": torch.stack(every).mean(dim=0)}
        return {name: found[name] for name in names}


class PlainChain(nn.Module):
    """The same blocks as one residual net without a latent, to be trained end to end: inputs -> outputs.

    The first group's stem, all groups' blocks, and what stands behind the last one's.
    """

    def __init__(self, chain: GroupChain) -> None:
        super().__init__()
        first, last = chain.group(0), chain.group(chain.count - 1)
        self.stem, self.tail, self.head = first.stem, last.tail, last.head
        self.blocks = nn.ModuleList(block for index in range(chain.count) for block in chain.group(index).blocks)
        self.places = last.places

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs, (batch, ..., K)."""
        hidden = self.stem(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        outputs: Tensor = at_least_float32(self.head(pooled(self.tail(hidden), self.places)))
        return outputs
