"""What a net has to know of the data, and one step's batch of them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sidestep.data.batches import standardise
from sidestep.data.named import blank_named, is_named
from sidestep.data.objective import CLASSES, OBJECTIVES, Objective, values_objective
from sidestep.data.share import WHOLE, Share
from sidestep.data.splits import DataSet
from sidestep.errors import InputError

__all__ = ["Batch", "Inputs", "InputsKind", "TargetsKind", "Task"]

InputsKind = Literal["image", "features", "tokens", "mapping"]
TargetsKind = Literal["classes", "labels", "values", "tokens"]
Inputs = Tensor | Mapping[str, Tensor]  # (batch, ...), or several such tensors by name


@dataclass(frozen=True)
class Task:
    """What a net has to know of the data: what the inputs are and how they are scaled, and what the targets are.

    shape: of one input: channels, height, width of an image; the number of features; the length of a row of tokens.
    class_names: one name for each output of the net: classes, labels, values or the vocabulary.
    mean, std: per channel of images, per column of features; of tokens nothing.
    pixels: dtype of the raw inputs, which says what one unit of a pixel is: uint8, float32, or int64 for tokens.
    inputs: image, features, tokens or mapping.
    targets: classes, labels (several for an example), values (real numbers) or tokens (one for each place).
    target_mean, target_std: of each value over the train split: nets are trained on values in these units.
    named: of a mapping, name, dtype and shape of each tensor: `ids: int64 6`.
    vocabulary: how many token ids there are, where that is known.
    own: a loss of the user's own, in place of that of the targets; a record has its name alone.
    """

    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: str = "uint8"
    inputs: InputsKind = "image"
    targets: TargetsKind = "classes"
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    named: tuple[str, ...] = ()
    vocabulary: int = 0
    own: Objective | None = field(default=None, compare=False)

    @classmethod
    def of(cls, data: DataSet) -> "Task":
        """Return what a net has to know of a data set."""
        images = data.train.images
        inputs: InputsKind = "image"
        pixels = "mapping" if is_named(images) else str(images.dtype).removeprefix("torch.")
        if is_named(images):
            inputs = "mapping"
        elif images.ndim == 2:
            inputs = "tokens" if pixels == "int64" else "features"
        found = cls(data.image_shape, tuple(data.class_names), tuple(data.mean), tuple(data.std), pixels, inputs)
        kind: dict[str, Any] = {
            "targets": data.targets, "target_mean": data.target_mean, "target_std": data.target_std,
            "own": data.objective, "named": images.table if is_named(images) else (),
            "vocabulary": data.vocabulary,
        }  # fmt: skip
        return dataclasses.replace(found, **kind)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Task":
        """Return the task of a record that `record` gave; raises LookupError or TypeError for anything else."""
        shape, names, mean, std = (tuple(record[name]) for name in ("image_shape", "class_names", "mean", "std"))
        inputs, targets = record.get("inputs", "image"), record.get("targets", "classes")
        if inputs not in get_args(InputsKind) or targets not in get_args(TargetsKind):
            raise LookupError(f"there are no inputs of kind {inputs!r} with targets of kind {targets!r}")
        centre, spread = (tuple(record.get(name, ())) for name in ("target_mean", "target_std"))
        named = tuple(record.get("named", ()))
        words = int(record.get("vocabulary", 0))
        return cls(shape, names, mean, std, record["pixels"], inputs, targets, centre, spread, named, words)

    def record(self) -> dict[str, Any]:
        """Return it as plain values for configurations and logs; what images and classes alone never said is left out.

        >>> Task((1, 8, 8), ("a", "b"), (0.0,), (1.0,)).record()["image_shape"]
        (1, 8, 8)
        """
        found = dataclasses.asdict(dataclasses.replace(self, own=None))
        found.pop("own")
        if self.own is not None:
            found["objective"] = self.own.name
        usual = {
            "inputs": "image",
            "targets": "classes",
            "target_mean": (),
            "target_std": (),
            "named": (),
            "vocabulary": 0,
        }
        kept = {name: value for name, value in found.items() if usual.get(name) != value}
        return {"image_shape": kept.pop("shape"), **kept}  # under the name that it has had from the beginning

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image; raises InputError for inputs of another kind."""
        if self.inputs != "image" or len(self.shape) != 3:
            raise InputError(
                f"this net takes images, but the inputs are {self.inputs} of shape {self.shape}; take a net of dense "
                "layers, or give a module of your own that takes them"
            )
        channels, height, width = self.shape
        return channels, height, width

    @property
    def example(self) -> str:
        """What one input is called when people are told of it: image or row."""
        return "image" if self.inputs == "image" else "row"

    @property
    def likely(self) -> bool:
        """Whether a net's answers are probabilities of classes; those by a loss of the user's own need not be."""
        return self.targets == "classes" and self.own is None

    @property
    def classes(self) -> int:
        """The number of the net's outputs: of classes, for a classifier."""
        return len(self.class_names)

    @property
    def objective(self) -> Objective:
        """The loss per example, and what is counted."""
        if self.own is not None:
            return self.own
        if self.targets == "values" and self.target_mean:
            return values_objective(self.target_mean, self.target_std)
        return OBJECTIVES[self.targets]

    def blank(self, count: int, device: torch.device) -> "Batch":
        """Return a batch of zeros of the right shapes and dtypes, to try a net on."""
        dtype = torch.int64 if self.inputs == "tokens" else None
        inputs: Any = torch.zeros(count, *self.shape, device=device, dtype=dtype)
        if self.inputs == "mapping":
            inputs = blank_named(self.named, count, device)
        shape = {"classes": (count,), "tokens": (count, *self.shape)}.get(self.targets, (count, self.classes))
        whole = self.targets in ("classes", "tokens")
        return Batch(inputs, torch.zeros(shape, device=device, dtype=torch.int64 if whole else None), self.objective)

    def prepare(self, raw: Any) -> Any:
        """Return inputs as the net takes them, from inputs as they lie in a split: scaled, images channels last.

        Args:
            raw: (n, channels, height, width), or (n, features), or token ids (n, length), or several tensors by name.
        """
        return self.laid_out(self.scaled(raw))

    def scaled(self, raw: Any) -> Any:
        """Return raw inputs with mean 0 and variance 1 by channel or by column; token ids and mappings as they are."""
        return raw if self.inputs in ("tokens", "mapping") else standardise(raw, self.mean, self.std)

    def laid_out(self, inputs: Any) -> Any:
        """Return scaled inputs as a net gets them: images with channels last in memory, a mapping as a plain one."""
        if is_named(inputs):
            return inputs.tensors
        return inputs.contiguous(memory_format=torch.channels_last) if self.inputs == "image" else inputs

    def check_pixels(self, images: Any) -> None:
        """Raise InputError for inputs of another dtype than trained on: 255 and 1.0 would both pass for white."""
        if is_named(images) or self.inputs == "mapping":
            table = images.table if is_named(images) else ()
            if table != self.named:
                raise InputError(
                    f"the inputs are {', '.join(table) or 'one tensor'}, but the net was trained on "
                    f"{', '.join(self.named) or self.inputs}; give a mapping with the same names, dtypes and shapes"
                )
            return
        found = str(images.dtype).removeprefix("torch.")
        if found != self.pixels:
            if self.inputs != "image":
                raise InputError(f"the rows are {found}, but the net was trained on {self.pixels}; convert them first")
            raise InputError(
                f"the images are {found}, but the net was trained on {self.pixels} pixels; convert them to the units "
                "of the training data first (uint8 counts from 0 to 255)"
            )


@dataclass(frozen=True)
class Batch:
    """One training batch on the device: inputs as the net takes them, their targets, and what they are judged by.

    share: which part of a step this is; an estimate has the part's examples, and takes the part's probes alone.
    """

    inputs: Any  # (batch, channels, height, width), float, for images; a mapping of tensors where the data have one
    targets: Tensor  # (batch,), int64, for classes
    objective: Objective = CLASSES
    share: Share = WHOLE
