"""Training: the loop, its options, the run's folder, and the run that comes out."""

from sidestep.training.align import Aligned, align, alignment_curves
from sidestep.training.ask_tell import AskTell, Trial, ask_tell
from sidestep.training.attach import attach
from sidestep.training.attached_log import replay
from sidestep.training.early_stop import EarlyStop
from sidestep.training.failures import StepError
from sidestep.training.loaded import load_run
from sidestep.training.loggers import CsvLog, TensorBoard
from sidestep.training.observers import STOP, Begin, End, EpochEnd, ObserverError, StepEnd
from sidestep.training.options import Compute, Options
from sidestep.training.progress import Progress, Silent
from sidestep.training.run import train
from sidestep.training.step import Estimate, Step
from sidestep.training.stopping import Stopped
from sidestep.training.trained import Run

__all__ = [
    "STOP",
    "Aligned",
    "AskTell",
    "Begin",
    "Compute",
    "CsvLog",
    "EarlyStop",
    "End",
    "EpochEnd",
    "Estimate",
    "ObserverError",
    "Options",
    "Progress",
    "Run",
    "Silent",
    "Step",
    "StepEnd",
    "StepError",
    "Stopped",
    "TensorBoard",
    "Trial",
    "align",
    "alignment_curves",
    "ask_tell",
    "attach",
    "load_run",
    "replay",
    "train",
]
