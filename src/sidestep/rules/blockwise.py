"""Groups of residual blocks, each trained alone to denoise its own range of noise levels.

DiffusionBlocks: Shing, Koyama, Akiba, "DiffusionBlocks: Block-wise Neural Network Training via Diffusion
Interpretation", arXiv 2506.14202 (ICLR 2026), sections 3 and 4. A chain of L residual blocks is cut into B groups.
Group b sees the input through a stem of its own, and the target through noise at a level l of its range:

    z = sqrt(abar) u_y + sqrt(1 - abar) eps,   abar = sigmoid(l),   l ~ U[l_(b-1) - o w, l_b + o w],   w = l_b - l_(b-1)
    L_b = loss( F_b(x, c_in z, l), y )

No derivative passes between groups, so a step needs the memory of one of them. To predict, the groups follow each
other along the deterministic walk from z = 0, and the mean of their answers is the prediction. A share of steps can go
end to end along that walk instead, on the loss of its last outputs (`exact_share`), which are then the prediction; they
need the memory of the whole chain.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from sidestep.checks import check_range
from sidestep.errors import InputError
from sidestep.gradients.end_to_end import end_to_end, gradients_of
from sidestep.nets.check_module import name_of
from sidestep.nets.dropout import draw_from_torch, masks_from
from sidestep.nets.groups.chains import residual_chain
from sidestep.nets.groups.cut import Parts, example_of, group_sizes, parts_of, residual_places
from sidestep.nets.groups.group import Group
from sidestep.nets.groups.group_chain import GroupChain, group_space, mean_square
from sidestep.nets.groups.levels import level_bounds
from sidestep.nets.parallel import kept_statistics, run_units
from sidestep.nets.trained import parameters_of, set_training, trained
from sidestep.nets.user_modules import ImagePath, each_image_path
from sidestep.rules.fields import RARE
from sidestep.rules.protocol import Batch, Dense, Division, Noise, Rule, Split, Takes, Task, Update

__all__ = ["Blockwise"]


@dataclass(frozen=True)
class Blockwise(Rule[GroupChain]):
    """Train B groups of residual blocks, each on its own range of noise levels (DiffusionBlocks, 2026)."""

    groups: int = 3
    """Number of groups B that the blocks are cut into, each trained alone, and of steps to predict."""
    depth: int = 6
    """Number of residual blocks L in all; a module of your own has its own."""
    net: Literal["auto", "mlp", "vit", "resnet", "gpt"] = "auto"
    """Residual blocks: of dense layers, self-attention between patches, 3 x 3 convolutions, or causal self-attention
    between tokens. Default: gpt for rows of tokens, mlp otherwise."""
    width: int = 128
    """Features of a block, or its channels."""
    patch: int = 4
    """Side of a square patch, with net = vit."""
    exact_share: float = 0.0
    """Share of steps that go end to end through all groups, on the loss of the prediction itself; above 0 a step needs
    the memory of the whole chain."""
    levels: Literal["normal", "readable"] = "normal"
    """Where ranges of noise levels meet: at equal probability mass of a normal log noise (the paper's), or in equal
    steps of how readable a noisy class is."""
    overlap: float = 0.1
    """What a range is made longer by at both ends in training, as a share of its width."""
    smallest_alpha_bar: float = 1e-3
    """How much of the target is left in z at the noisiest level."""
    largest_alpha_bar: float | None = None
    """How much of the target is left in z at the cleanest level. Default: 0.999; of next tokens 0.5, from which a
    token can hardly be read, so that every group learns to predict and none to copy."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of AdamW."""

    name: ClassVar[str] = "blockwise"
    summary: ClassVar[str] = "Residual blocks in groups, each trained alone to denoise its range of noise levels"
    takes: ClassVar[Takes] = Takes(
        "residual",
        ("image", "features", "tokens"),
        ("classes", "labels", "values", "tokens"),
        no_attach=(
            "its groups see a noised target beside the input, which a model of yours has no place for; give a chain of "
            "residual blocks by train(rule, data, module=...)"
        ),
    )
    readings: ClassVar[tuple[str, ...]] = ("mean of groups", "walk", "group 1 alone")
    rare: ClassVar[frozenset[str]] = (RARE - {"groups"}) | {"overlap"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, 1000, groups=self.groups, depth=self.depth)
        check_range(1, 1_000_000, width=self.width, patch=self.patch)
        check_range(0, 1, exact_share=self.exact_share, overlap=self.overlap)
        group_sizes(self.groups, self.depth, ", or a larger depth")
        self._bounds("classes", 2)
        if self.exact_share:  # exact steps train the end of the walk
            object.__setattr__(self, "readings", ("walk", "group 1 alone", "mean of groups"))

    def build(self, task: Task, noise: Noise, examples: Split | None, module: ImagePath | None) -> GroupChain:
        """Make the groups, of blocks of a kind or of a chain of the user's: each group has a stem and a head."""
        self._check_task(task)
        bounds = self._bounds(task.targets, task.classes)
        example = example_of(task, noise.stream("example"))
        parts = self._built(task, noise) if module is None else self._given(task, noise, module, example)
        with noise.stream("heads").torch_seeded():
            groups = (
                Group(
                    part, example, task.classes, task.classes, mean_square(task), task.targets == "tokens"
                ).begin_with_inputs()
                for part in parts
            )
            return GroupChain(groups, bounds, task.classes, group_space(task), together=module is None)

    def _bounds(self, targets: str, classes: int) -> Tensor:
        """Return the levels between which the groups stand, (B + 1,)."""
        usual = 0.5 if targets == "tokens" else 0.999
        largest = usual if self.largest_alpha_bar is None else self.largest_alpha_bar
        return level_bounds(self.levels, self.groups, classes, self.smallest_alpha_bar, largest)

    def _check_task(self, task: Task) -> None:
        """Raise InputError for a hyper-parameter that has no meaning for the data."""
        if task.targets == "tokens" and task.inputs != "tokens":
            raise InputError(
                f"{self.name} takes next tokens as targets of rows of tokens, but the data have {task.inputs}; take "
                "another rule, or targets of another kind"
            )
        if task.targets not in ("classes", "tokens") and self.levels == "readable":
            raise InputError(
                f"levels = readable does not go with targets that are {task.targets}; take levels = normal"
            )
        if task.targets != "classes" and self.label_smoothing:
            raise InputError(
                f"label_smoothing = {self.label_smoothing} does not go with targets that are {task.targets}; leave it "
                "at 0"
            )

    def _built(self, task: Task, noise: Noise) -> Iterator[Parts]:
        """Yield the parts of each group, of the kind of blocks that `net` says."""
        kind = self.net
        if kind == "auto":
            kind = "gpt" if task.inputs == "tokens" else "mlp"
        if (kind == "gpt") != (task.inputs == "tokens"):
            raise InputError(f"net = {kind} does not take inputs that are {task.inputs}; leave net at auto")
        if kind == "gpt" and not task.vocabulary and task.targets != "tokens":
            raise InputError(
                "how many tokens there are is not known: make the data with data.from_tokens(ids, classes, "
                "vocabulary=..., targets='classes')"
            )
        words = task.vocabulary or task.classes
        for index, places in enumerate(group_sizes(self.groups, self.depth, "")):
            with noise.stream("blocks").sub(index).torch_seeded():
                chain = residual_chain(kind, task.shape, len(places), self.width, self.patch, words)
            yield parts_of(chain, range(1, len(places) + 1))

    def _given(self, task: Task, noise: Noise, module: ImagePath, example: Tensor) -> Iterator[Parts]:
        """Yield the parts of each group, of a chain of the user's: every group has a stem and a tail of its own."""
        shape = None if task.inputs == "tokens" else task.shape
        places = range(0)
        for index, chain in enumerate(each_image_path(module, self.groups, noise.stream("blocks"), shape)):
            draw_from_torch(chain)  # of tokens no shape is given, by which other chains are known as the user's
            places = places or residual_places(chain, name_of(module), example)
            size, part = group_sizes(self.groups, len(places), "")[index], parts_of(chain, places)
            yield Parts(part.stem, part.blocks[size.start : size.stop], part.tail)
            del chain, part  # before the next is made

    def fits(self, net: GroupChain) -> bool:
        """Whether a net has as many groups as this rule trains."""
        return net.count == self.groups

    def units(self, net: GroupChain) -> dict[str, list[str]]:
        """Return the parameter names of each group; nothing is shared."""
        names = list(trained(net))
        prefixes = {f"group {i + 1}": f"groups.{i}." for i in range(net.count)}
        return {unit: [name for name in names if name.startswith(start)] for unit, start in prefixes.items()}

    @property
    def divides(self) -> Mapping[Division, int]:
        """The groups, or the batch; with end-to-end steps the batch alone."""
        return {"batch": 0} if self.exact_share else {"units": self.groups, "batch": 0}

    def _exact(self, step: int) -> bool:
        """Whether a step goes end to end: a share of all steps, as evenly spread as it can be."""
        return int((step + 1) * self.exact_share) > int(step * self.exact_share)

    def estimate(self, net: GroupChain, batch: Batch, noise: Noise) -> Update:
        """Return every group's gradients of its own loss, or those of the prediction's loss, end to end."""
        set_training(net)
        if self._exact(noise.step):
            return self._end_to_end(net, batch, noise)
        own = batch.share.units(net.count)
        tasks = [partial(self._group_estimate, net, index, batch, noise.sub(index)) for index in own]
        with kept_statistics(net) as changed:
            parts, statistics = run_units(tasks, batch.inputs.device, net.together), changed()
        gradients = {name: gradient for part in parts for name, gradient in part.gradients.items()}
        return Dense(gradients, statistics, {name: loss for part in parts for name, loss in part.losses.items()})

    def estimates(self, net: GroupChain, batch: Batch, noise: Noise) -> Iterator[tuple[str, Dense]]:
        """Yield one group's update after another: one group's activations and gradients are in memory at a time."""
        if self.exact_share:
            raise InputError(
                f"exact_share = {self.exact_share} has steps through all groups at once; use units = together, or "
                "exact_share = 0"
            )
        set_training(net)
        for index in range(net.count):
            yield f"group {index + 1}", self._alone(net, index, batch, noise.sub(index))

    def _alone(self, net: GroupChain, index: int, batch: Batch, noise: Noise) -> Dense:
        with kept_statistics(net.group(index), f"groups.{index}.") as changed:
            found = self._group_estimate(net, index, batch, noise)
            return Dense(found.gradients, changed(), found.losses)

    def _group_estimate(self, net: GroupChain, index: int, batch: Batch, noise: Noise) -> Dense:
        """Return the gradients of group `index` alone: of its loss at levels of its own range, batch mean."""
        device = batch.inputs.device
        generator = noise.generator(device)
        with masks_from(generator):
            if net.together:
                outputs = net.drawn_outputs(index, batch.inputs, batch.targets, self.overlap, generator)
            else:  # a module of the user's may draw from torch's own generator
                with noise.stream("module").torch_seeded(device):
                    outputs = net.drawn_outputs(index, batch.inputs, batch.targets, self.overlap, generator)
        loss = self._loss(net, outputs, batch)
        wanted = {f"groups.{index}.{name}": value for name, value in net.group(index).named_parameters()}
        return Dense(gradients_of(loss, wanted), {}, {self._term(net, index): loss.detach()})

    def _end_to_end(self, net: GroupChain, batch: Batch, noise: Noise) -> Dense:
        """Return the gradient of the prediction's loss through all groups; the other losses are only reported."""
        device = batch.inputs.device
        with (
            kept_statistics(net) as changed,
            masks_from(noise.generator(device)),
            noise.stream("module").torch_seeded(device),
        ):
            losses = [self._loss(net, outputs, batch) for outputs in net.walk(batch.inputs)]
            gradients = gradients_of(losses[-1], parameters_of(net))
            named = {self._term(net, index): loss.detach() for index, loss in enumerate(losses)}
            return Dense(gradients, changed(), named)

    def _loss(self, net: GroupChain, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the batch mean of the loss of outputs, ()."""
        return net.space.objective.mean(outputs, batch.targets, self.label_smoothing)

    @staticmethod
    def _term(net: GroupChain, index: int) -> str:
        return f"group {index + 1}: {net.space.objective.name}"

    def true_gradients(self, net: GroupChain, batch: Batch) -> dict[str, Tensor]:
        """Return the gradient of the default reading, through all groups from z = 0."""
        return end_to_end(net, batch, net if self.exact_share else net.mean_outputs, running=True)

    def predict(
        self, net: GroupChain, images: Tensor, noise: Noise, start: int = 0, names: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Return what is answered by the mean of groups along the walk, at its end, and by group 1 alone."""
        net.eval()
        with torch.no_grad():
            return net.predictions(images, names or self.readings)
