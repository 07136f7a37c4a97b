"""What the rules that denoise a label share: the embedding's options, and the terms that no block sees."""

from functools import partial

import torch
from torch import Tensor, nn

from sidestep.data import Split
from sidestep.data.rows import in_memory
from sidestep.errors import InputError
from sidestep.nets.noprop.denoiser import Denoiser, TimedBlock
from sidestep.nets.noprop.embeddings import class_embedding, unit_rows
from sidestep.nets.noprop.image_paths import path_maker
from sidestep.nets.noprop.readouts import make_readout
from sidestep.nets.noprop.schedules import Levels
from sidestep.nets.noprop.target_space import TargetSpace, target_space
from sidestep.nets.noprop.token_path import TokenPath, on_tokens
from sidestep.nets.trained import trained
from sidestep.nets.user_modules import ImagePath, image_paths
from sidestep.noise import Noise
from sidestep.rules.protocol import Task
from sidestep.rules.takes import Takes

__all__ = [
    "TAKES",
    "block_units",
    "check_norm",
    "check_options",
    "embedding_for",
    "learns",
    "make_denoiser",
    "path_for",
    "project_rows",
    "readout_loss",
    "start_divergence",
]


TAKES = Takes(
    "blocks",
    ("image", "features", "tokens"),
    ("classes", "labels", "values"),
    no_attach=(
        "its blocks see a noised label beside the input, which a model of yours has no place for; a part of one can be "
        "the path of the inputs, train(rule, data, module=...)"
    ),
)
_SMALL_SHARE = 0.03  # the series is exact to 1e-8 below it


def learns(embedding: str) -> bool:
    """Whether an embedding of that kind is trained."""
    return embedding in ("learned", "prototype")


def embedding_for(
    kind: str, dimension: int | None, unit_norm: bool, task: Task, noise: Noise, examples: Split | None
) -> Tensor:
    """Return the class embeddings that a rule's options and the data give, (classes, dimension)."""
    if task.targets != "classes":
        return _own_coordinates(kind, task)
    if kind == "prototype" and task.inputs == "tokens":
        raise InputError("embedding = prototype has the shape of images, and token ids have no mean; take another")
    images = None
    if examples is not None and kind == "prototype":
        images = task.scaled(in_memory(examples.images, "embedding = prototype"))
    labels = examples.targets if examples is not None else None
    rows = class_embedding(kind, task.classes, task.shape, dimension, noise, images, labels)
    return unit_rows(rows) if unit_norm else rows


def _own_coordinates(kind: str, task: Task) -> Tensor:
    """Return the identity, (K, K): labels and values are points of their own space, and need no embedding."""
    if kind != "one-hot":
        raise InputError(
            f"embedding = {kind} is for classes, but the data have {task.targets}, which are their own embedding, one "
            "element each; leave embedding at one-hot"
        )
    return torch.eye(task.classes)


def check_options(task: Task, readout: str, smoothing: float = 0.0, levels: str = "") -> None:
    """Raise InputError for a hyper-parameter that has no meaning for several labels or real values."""
    if task.targets == "classes":
        return
    wrong = {
        f"readout = {readout}": (readout == "radial", "take readout = softmax, which is linear here, or nearest"),
        f"label_smoothing = {smoothing}": (smoothing > 0, "leave it at 0"),
        f"levels = {levels}": (levels == "readable", "take levels = cosine"),
    }
    for option, (given, instead) in wrong.items():
        if given:
            raise InputError(f"{option} does not go with targets that are {task.targets}; {instead}")


def block_units(net: nn.Module) -> dict[str, list[str]]:
    """Return the parameter names of the one block of a continuous-time net, and of what is trained with it."""
    names = list(trained(net))
    shared = [name for name in names if not name.startswith("block.")]
    found = {"block": [name for name in names if name.startswith("block.")]}
    return {**found, "read-out": shared} if shared else found


def project_rows(net: nn.Module) -> None:
    """Scale a trained embedding's rows back to norm 1."""
    embedding = net.embedding
    if isinstance(embedding, nn.Parameter) and embedding.requires_grad:
        with torch.no_grad():
            embedding.copy_(unit_rows(embedding))


def start_divergence(embedding_of_labels: Tensor, level: Levels) -> Tensor:
    """Return the batch mean of `KL(q(z_0|y) || N(0,I)) = 1/2 [abar_0 |u_y|^2 - d abar_0 - d ln(1 - abar_0)]`."""
    squared, dimension = embedding_of_labels.square().sum(dim=1), embedding_of_labels.shape[1]
    share = level.signal
    # below, the two terms cancel to a series of which these are the first: -a^2/2 - a^3/3 - ...
    small = -(share**2) * (1 / 2 + share * (1 / 3 + share * (1 / 4 + share * (1 / 5 + share / 6))))
    both = torch.where(share < _SMALL_SHARE, small, share + level.noise.log())
    return (share * squared - dimension * both).mean() / 2


def readout_loss(space: TargetSpace, readout: nn.Module, embedding: Tensor, latent: Tensor, labels: Tensor) -> Tensor:
    """Return the batch mean of `-log p_out(y | z)`: `CE(p_out(z), y)` of classes."""
    return space.objective.mean(readout(latent, embedding), labels)


def path_for(task: Task, path: str, module: ImagePath | None, norm: bool) -> ImagePath:
    """Return what makes a block's path from the inputs: the user's module, or the one of a name.

    Raises:
        InputError: for token ids of an unknown vocabulary, or a path that is for images.
    """
    if task.inputs != "tokens":
        return path_maker(path, task.shape, norm=norm) if module is None else module
    if module is not None:
        return on_tokens(module)
    if path != "auto":
        raise InputError(f"path = {path} is for images, and the data have tokens; leave it at auto, or give a module")
    if not task.vocabulary:
        raise InputError(
            "how many tokens there are is not known: make the data with data.from_tokens(ids, classes, "
            "vocabulary=..., targets='classes'), or give a module that takes token ids"
        )
    return partial(TokenPath, task.vocabulary, norm=norm)


def check_norm(norm: str, path: str, module: ImagePath | None) -> bool:
    """Return whether a built-in path is to end in batch norm.

    Raises:
        InputError: if it is asked for where it is not this option's to say.
    """
    if norm == "batch" and (module is not None or path == "resnet-9"):
        why = (
            "path = resnet-9 has it after every convolution"
            if module is None
            else "a module of your own ends as it does"
        )
        raise InputError(f"norm = batch is how the other built-in paths can end, and {why}; leave norm out")
    return norm == "batch"


def make_denoiser(  # long: what a continuous-time net is made of
    task: Task,
    noise: Noise,
    module: ImagePath | None,
    path: str,
    norm: bool,
    embedding: Tensor,
    kind: str,
    readout: str,
    schedule: nn.Module | None,
) -> Denoiser:
    """Return a continuous-time net, ready to train.

    Args:
        task: what it is for.
        noise: where the initial weights come from.
        module: an image path of the user's, or None.
        path: name of the image path otherwise.
        norm: whether that ends in batch norm.
        embedding: u, (classes, dimension).
        kind: the kind of embedding.
        readout: name of the read-out.
        schedule: the noise schedule, or None.
    """
    given = path_for(task, path, module, norm)
    shape = None if module is None else task.shape
    made = image_paths(given, 1, noise.stream("paths"), shape)[0]
    with noise.stream("blocks").torch_seeded():
        block = TimedBlock(made, task.shape, embedding.shape[1], task.classes, kind == "prototype")
        space = target_space(task)
        return Denoiser(block, embedding, make_readout(readout, embedding, space), schedule, learns(kind), space)
