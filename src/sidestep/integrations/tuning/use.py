"""A fine-tune put to use: answers, accuracy on a file, and its log replayed into the base model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidestep.errors import CheckpointError, InputError
from sidestep.integrations.tuning.folder import TuneFolder, is_tuned, save_weights
from sidestep.integrations.tuning.net import TextNet, built
from sidestep.integrations.tuning.recipe import Recipe
from sidestep.integrations.tuning.run import Score, evaluated
from sidestep.integrations.tuning.texts import label_numbers, read_labelled, read_lines, read_text
from sidestep.nets.trained import trained
from sidestep.steplog import LogReader
from sidestep.steplog.replay import Replayed
from sidestep.training.attached_log import replay
from sidestep.training.options import Compute

__all__ = ["answers_of", "different_weights", "evaluate_tuned", "load_tuned", "replayed", "write_replayed"]


def load_tuned(run: str | Path, base: str | None = None, device: str = "auto") -> TextNet:
    """Return the net of a fine-tune with its trained weights; `.model` is a class of transformers
    with `reads="own"`, and its body, `.model.body`, under the layer that reads it otherwise.

    Args:
        run: its folder.
        base: where the base model is now, if it has moved.
        device: where to compute.

    Raises:
        CheckpointError: if the folder is damaged, has no weights yet, or the base model is another one.
    """
    folder = TuneFolder(Path(run))
    recipe = folder.recipe()
    net = built(base or recipe.base, recipe, Compute.find(device, "float32").device)
    folder.load_weights(net.model)
    net.model.eval()
    return net


def evaluate_tuned(  # long: what a file of texts is read with
    run: Path, data: Path, target: str | None, text: str | None, base: str | None, device: str
) -> tuple[int, Score]:
    """Return the number of texts, or of rows of next tokens, and the score of a fine-tune on them."""
    options: Mapping[str, Any] = TuneFolder(run).config()["options"]
    net = load_tuned(run, base, device)
    if net.recipe.tokens:
        rows = net.encoded([read_text(data)])
        return len(rows), evaluated(net, rows, None)
    found = read_labelled(data, target or options.get("target"), text or options.get("text"))
    labels = label_numbers(found.labels, net.recipe.labels, data)
    rows = net.encoded(found.texts)
    return len(rows), evaluated(net, rows, labels)


def answers_of(
    run: Path, file: Path, text: str | None, base: str | None, device: str
) -> tuple[list[str], list[str], list[float]]:
    """Return the texts of a file, the label that the model gives each, and its probability."""
    net = load_tuned(run, base, device)
    if net.recipe.tokens:
        raise InputError(f"{run} tells next tokens, not labels; `sidestep eval` says how well it tells those of a file")
    texts = read_lines(file, text)
    rows, found = net.encoded(texts), []
    with torch.no_grad():
        for at in range(0, len(rows), 32):
            found.append(net.logits(net.batch(rows, range(at, min(len(rows), at + 32)))).float().softmax(1).cpu())
    shares, places = torch.cat(found).max(1)
    return texts, [net.recipe.labels[place] for place in places.tolist()], shares.tolist()


def replayed(log: Path, base: str | None, to_step: int | None = None) -> tuple[TextNet, Replayed]:
    """Replay the log of a fine-tune into its base model, without data; the bits are those of training.

    Raises:
        CheckpointError: if the base model is another one than the log starts from, or the log is damaged.
        InputError: for a log of something else.
    """
    path = TuneFolder(log).log_file if log.is_dir() else log
    header = LogReader(path).header
    if "tune" not in header.training:
        raise InputError(f"{log} is not the log of a fine-tune, which alone has a base model; leave --base out")
    recipe = Recipe.of(header.training["tune"], path)
    net = built(base or recipe.base, recipe, torch.device("cpu"))
    return net, replay(path, net.model, to_step=to_step)


def write_replayed(net: TextNet, found: Replayed, out: Path) -> None:
    """Write the trained weights, in the form of a fine-tune's model.safetensors."""
    save_weights(out, net.model, found.step, "")


def different_weights(log: Path, run: Path, base: str | None) -> tuple[int, list[str]]:
    """Return the step of a fine-tune's weights, and the names of those that its log does not give, bit for bit."""
    if not is_tuned(run):
        raise CheckpointError(f"{run} is not the folder of a fine-tune")
    folder = TuneFolder(run)
    wanted = built(base or folder.recipe().base, folder.recipe(), torch.device("cpu"))
    step = folder.load_weights(wanted.model)
    net, _ = replayed(log, base or folder.recipe().base, step)
    theirs = dict(trained(wanted.model))
    return step, [name for name, weight in trained(net.model).items() if not _same(weight, theirs.get(name))]


def _same(one: Tensor, other: nn.Parameter | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one.detach(), other.detach())
