"""Where a run begins: at its first step, at its last checkpoint, or where its step log ends."""

from sidestep.rules.protocol import Rule
from sidestep.steplog import Recorder
from sidestep.training.folder import RunFolder
from sidestep.training.options import Options
from sidestep.training.progress import Progress
from sidestep.training.state import State

__all__ = ["take_up"]

_MOMENTUM = (
    "there is no state.safetensors: the weights are replayed from the step log up to step {step}. It holds flips, not "
    "what they were made from: an optimiser's momentum starts anew, so the bits will differ from an uninterrupted run's"
)
_REPLAYED = "there is no state.safetensors: everything is replayed from the step log, up to step {step}"


def take_up(
    folder: RunFolder, options: Options, state: State, rule: Rule, recorder: Recorder, progress: Progress
) -> int:
    """Bring `state` to where the run stands, and return how many bytes of the metrics belong to it.

    Raises:
        CheckpointError: if the checkpoint, or the log without one, is damaged or of another run.
    """
    if not options.resume:
        return 0
    found = folder.load_state()
    if found:
        state.restore(*found)
        recorder.resume(found[1])
        return int(found[1]["metrics_bytes"])
    scan = recorder.resume_log(state.net, rule, state.optimizer)
    if scan is None:
        return 0
    state.step = scan.steps
    if scan.steps:
        progress.notice((_MOMENTUM if scan.flips else _REPLAYED).format(step=scan.steps))
    return folder.metrics_until(scan.steps)
