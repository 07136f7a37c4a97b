"""`load_run`: from a folder back to the net."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from sidestep.data.objective import Objective
from sidestep.errors import CheckpointError, InputError, SidestepError
from sidestep.keywords import known_keywords
from sidestep.nets.ternary.layers import pack_layers
from sidestep.nets.user_modules import ImagePath
from sidestep.rules import rule_from_record
from sidestep.rules.protocol import Task
from sidestep.rules.record import WHOLE
from sidestep.rules.untrained import untrained
from sidestep.training.attached_rule import as_objective
from sidestep.training.compatibility import table_form
from sidestep.training.evaluate import with_inference
from sidestep.training.folder import RunFolder
from sidestep.training.options import Compute
from sidestep.training.state import AVERAGE, KEPT
from sidestep.training.trained import Run

__all__ = ["load_run"]

_UNFIT = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError)


@known_keywords()
def load_run(
    path: str | Path,
    *,
    module: ImagePath | None = None,
    model: ImagePath | None = None,
    objective: Objective | Callable[[Tensor, Tensor], Tensor] | None = None,
    device: str = "auto",
    inference: Mapping[str, Any] | None = None,
) -> Run:
    """Return the run in a folder, with the weights of its end, or of its last checkpoint if it has not ended.

    Args:
        path: the run's folder.
        module: the image path the run was trained with, if it was one of your own.
        model: the whole model, likewise.
        objective: the loss of your own, likewise; without it predictions are the outputs as they are.
        device: where to compute from now on.
        inference: new values of hyper-parameters that only predictions depend on (`rule.for_inference`), such as steps.

    Raises:
        CheckpointError: if the folder holds no run, or a file in it is damaged.
        InputError: if the run was trained with a module of your own and none is given, or for another setting.
    """
    folder = RunFolder(Path(path))
    config = folder.config()
    with _described(folder.config_file):
        rule, known, seed = (
            rule_from_record(config["rule"]),
            Task.from_record(config["task"]),
            int(config["train"]["seed"]),
        )
        compute = Compute.find(device, config["train"]["precision"])
    module = module or model
    if objective is not None:
        known = dataclasses.replace(known, own=as_objective(objective))
    if "module" in config and module is None:
        how = "model=...)" if WHOLE in config["rule"] else "module=...) or --module file.py:Name"
        raise InputError(
            f"{path} was trained with a module of its own ({config['module']['name']}): give it, load_run(path, {how}"
        )
    rule = with_inference(rule, inference or {})
    with _described(folder.config_file):
        net = untrained(rule, known, seed, None, module)
    with _described(folder.state_file):
        weights, step = _weights(folder)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {path} do not fit the net of its config.toml: {error}") from error
    net = pack_layers(net).to(compute.device)
    table = table_form(Path(path))
    return Run(rule, net, known, compute, seed, step, {}, Path(path), folder.calibration(step), table)


@contextmanager
def _described(file: Path) -> Iterator[None]:
    """Raise CheckpointError for whatever goes wrong with what a file says that may come from anybody."""
    try:
        yield
    except SidestepError:
        raise
    except _UNFIT as error:
        said = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{file} lacks or misnames an entry ({type(error).__name__}: {said})") from error


def _weights(folder: RunFolder) -> tuple[dict[str, Tensor], int]:
    found = folder.load_state()
    if found:
        tensors, record = found
        weights = {name[4:]: tensor for name, tensor in tensors.items() if name.startswith("net/")}
        weights |= {name[len(AVERAGE) :]: tensor for name, tensor in tensors.items() if name.startswith(AVERAGE)}
        weights |= {name[len(KEPT) :]: tensor for name, tensor in tensors.items() if name.startswith(KEPT)}
        return weights, int(record["step"])
    found = folder.load_model()
    if not found:
        raise CheckpointError(f"{folder.path} has no checkpoint yet; let it train on with --resume")
    return found[0], int(found[1].get("step", 0))
