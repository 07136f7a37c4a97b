"""Where a run begins: at its first step, at its last checkpoint, or where its step log ends."""

from typing import Any

import torch
from torch import Tensor

from sidestep.errors import CheckpointError, SidestepError
from sidestep.rules.protocol import Rule
from sidestep.steplog import Recorder, Scan
from sidestep.training.folder import RunFolder
from sidestep.training.options import Options
from sidestep.training.own_optimizer import restore_scheduler
from sidestep.training.progress import Progress
from sidestep.training.state import State

__all__ = ["log_identity", "restore", "same_bits"]

_MOMENTUM = (
    "there is no state.safetensors: the weights are replayed from the step log up to step {step}. It holds flips, not "
    "what they were made from: an optimiser's momentum starts anew, so the bits will differ from an uninterrupted run's"
)
_REPLAYED = "there is no state.safetensors: everything is replayed from the step log, up to step {step}"
_CUT = "the step log ends within a block: its {step} steps are kept, its last {lost} bytes are cut off"
_LOST = "steps.steplog is gone: the run goes on from its checkpoint without a log, so it cannot be replayed any more"


def log_identity(options: Options, examples: int) -> dict[str, Any]:
    """Return what the steps of a run follow from, beside its rule, data and seed; logs of other runs differ in it."""
    names = ["batch", "augment", "decay", "warmup", "average"]
    if options.decay != "none" or options.warmup:
        names.append("epochs" if options.steps is None else "steps")  # the learning rate follows from it, at every step
    if options.split:
        names += ["split", "shares"]
    if options.exchange_share is not None:
        names.append("exchange_share")
    if options.exchange_window is not None:
        names.append("exchange_window")
    return {"train_images": examples, **{name: getattr(options, name) for name in names}}


def restore(
    folder: RunFolder, options: Options, state: State, rule: Rule, recorder: Recorder, progress: Progress
) -> int:
    """Bring `state` to where the run stands, and return how many bytes of the metrics belong to it; writes nothing.

    Raises:
        CheckpointError: if the checkpoint, or the log without one, is damaged or of another run.
    """
    if not options.resume:
        return 0
    found = folder.open_state()
    if found:
        try:
            kept = folder.metrics_of(found[1])
            state.restore(*found)
            lost = recorder.resume(found[1])
        except SidestepError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"the record in {folder.state_file} lacks or misnames an entry ({type(error).__name__}: {error}): use "
                "a copy, or train anew with --overwrite"
            ) from error
        if lost:
            progress.notice(_LOST)
        return kept
    scan = recorder.resume_log(state.net, rule, state.optimizer)
    _check_end(folder, state, scan)
    if scan is None:
        return 0
    state.step = scan.steps
    restore_scheduler(state.scheduler, None, scan.steps)
    if scan.damage:
        progress.notice(_CUT.format(step=scan.steps, lost=scan.file_size - scan.size))
    if scan.steps:
        progress.notice((_MOMENTUM if scan.flips else _REPLAYED).format(step=scan.steps))
    return folder.metrics_until(scan.steps)


def _check_end(folder: RunFolder, state: State, scan: Scan | None) -> None:
    """Refuse to go on, which would remove the trained model, unless that is what the run stands at without a state."""
    found = folder.load_model()
    if not found:
        return
    trained, own = found[0], state.net.state_dict()
    if trained.keys() == own.keys() and all(same_bits(own[name], value) for name, value in trained.items()):
        return
    log = folder.log_file
    there, rescue = f"{log} is not there either", ""
    if scan:
        damage = f" ({scan.damage})" if scan.damage else ""
        there = f"{log} leads to step {scan.steps:,} only{damage}, not to that model"
        rescue = (
            f"have the weights of the steps that are good written, sidestep replay {log} --to-step {scan.steps} --out "
            "FILE.safetensors; or "
        )
    raise CheckpointError(
        f"the run in {folder.path} had finished, as its model.safetensors says, but its state.safetensors is gone, and "
        f"{there}. Nothing was changed: keep a copy of the model and bring the files back; or {rescue}begin anew with "
        "--overwrite"
    )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors have one dtype, shape and content, bit for bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(first, second)
