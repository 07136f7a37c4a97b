"""Training: the loop, its options, the run's folder, and the run that comes out."""

from sidestep.training.options import Compute, Options
from sidestep.training.progress import Progress, Silent
from sidestep.training.run import Run, load_run, train
from sidestep.training.stopping import Stopped

__all__ = ["Compute", "Options", "Progress", "Run", "Silent", "Stopped", "load_run", "train"]
