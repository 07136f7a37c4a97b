"""Options of a training run that do not belong to any rule."""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from sidestep.data import steps_per_epoch
from sidestep.errors import InputError
from sidestep.keywords import KnownKeywords
from sidestep.measure import has_bfloat16
from sidestep.rules.fields import settle_fields
from sidestep.schedule import Decay, rate_factor

__all__ = ["Compute", "Options"]

_DEFAULT_EPOCHS = 10
_MANY_EPOCHS = 20  # for sets so small that an epoch is a few steps
_SMALL_SET = 5000
_MOST_STEPS = 10**12


@dataclass(frozen=True)
class Options(KnownKeywords):
    """How to train, whatever the rule."""

    epochs: int | None = None
    """Passes over the training split; 0 only evaluates the untrained net. Default: 10, or 20 below 5,000 images."""
    steps: int | None = None
    """Training steps in place of epochs; the last epoch may then be a part of one."""
    batch: int = 128
    """Images per step, at most the whole split; what does not fill a batch is left out of that epoch."""
    seed: int = 0
    """Seed of everything random: initial weights, order of the images, noise, dropout."""
    augment: Literal["none", "flip", "flip-crop", "shift"] = "none"
    """Random changes of the training images: horizontal flips, or flips and crops, for photographs, or shifts by up to
    one pixel either way, for digits and other drawings (the papers use none)."""
    decay: Decay = "none"
    """How the learning rate falls to 0 over the run: not at all (the NoProp paper), as half a cosine, or in a line."""
    warmup: float = 0.0
    """Share of the steps over which the learning rate first rises from zero, in [0, 1)."""
    average: float = 0.0
    """Decay a of a moving average of the weights, `w <- a w + (1 - a) w_step`, which is what is evaluated and kept
    as the model (with the running statistics of the weights themselves); 0 for none."""
    align: float = 0.0
    """Most share of the time that measuring how well the rule's estimates point along the true gradient may take, up to
    0.05; the numbers are written to metrics.jsonl. 0 for none."""
    patience: int = 0
    """Epochs without a better validation score after which to stop, with the best weights; 0 for never."""
    device: str = "auto"
    """Where to compute: auto (a CUDA GPU if there is one, else cpu), cpu, cuda, cuda:1, mps."""
    units: Literal["together", "in-turn", "one-resident"] = "together"
    """How the parts of a net that train without the others take their steps: all together; one after another, with one
    unit's activations and gradients at a time; or so that only one unit's weights and optimiser are in memory, too."""
    split: Literal["batch", "probes", "units"] | None = None
    """What of a step is estimated in equal parts, whose sum has the same bits whoever takes them: examples of the
    batch, or the step's probes; or which units each of several processes trains alone. Default: nothing in one process;
    among several, what the rule divides first."""
    shares: int | None = None
    """How many parts a step has: as many ranks, or fewer, can take them. Default: 4, or more for more ranks."""
    exchange_share: float | None = None
    """Share of each gradient's entries, the largest, that ranks exchange as signs, such as 0.01: a few thousand bytes a
    step; the rest waits for later steps. For rules that flip weights. Default: all, in eight bytes each."""
    exchange_window: int | None = None
    """Steps after which what waits of such a gradient is forgotten; 1: nothing waits, so that parts of a step can pass
    from one to another (--listen), and the share has to be larger, such as 0.1. Default: it waits until it is sent."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products and convolutions; auto takes bfloat16 where the processor is built for it."""
    checkpoint_seconds: float = 60.0
    """Most seconds between two checkpoints; there is also one after every epoch."""
    out: Path | None = None
    """Folder of the run. The command line takes runs/RULE-DATA-SEED if none is given; Python then writes nothing."""
    resume: bool = False
    """Continue the run in the folder from its last checkpoint; where there is none yet, start one and say so."""
    overwrite: bool = False
    """Delete the earlier run in the folder first."""

    def __post_init__(self) -> None:
        if isinstance(self.device, torch.device):
            object.__setattr__(self, "device", str(self.device))
        settle_fields(self)
        if self.epochs is not None and not 0 <= self.epochs <= 1_000_000:
            raise InputError(f"epochs must be 0 (only evaluate) or more, got {self.epochs}")
        if self.steps is not None and not 0 <= self.steps <= _MOST_STEPS:
            raise InputError(f"steps must be 0 (only evaluate) or more, up to 10^12, got {self.steps}")
        if self.steps is not None and self.epochs is not None:
            raise InputError(
                f"steps = {self.steps} and epochs = {self.epochs} both say when to end: give one of the two"
            )
        if not 1 <= self.batch <= 1_000_000:
            raise InputError(f"batch must be at least 1 and at most a million, got {self.batch}")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must lie between 0 and 2^63 - 1, got {self.seed}")
        if not (math.isfinite(self.checkpoint_seconds) and self.checkpoint_seconds > 0):
            raise InputError(f"checkpoint_seconds must be above 0, got {self.checkpoint_seconds}")
        if self.augment not in ("none", "flip", "flip-crop", "shift"):
            raise InputError(f"augment must be none, flip, flip-crop or shift, got {self.augment!r}")
        if self.decay not in ("none", "cosine", "linear"):
            raise InputError(f"decay must be none, cosine or linear, got {self.decay!r}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup must lie in [0, 1), a share of all steps, got {self.warmup}")
        if not 0 <= self.average < 1:
            raise InputError(f"average must lie in [0, 1), for instance 0.999 (0 for none), got {self.average}")
        if not 0 <= self.align <= 0.05:
            raise InputError(f"align must lie in [0, 0.05], a share of the time, got {self.align}")
        if not 0 <= self.patience <= 1_000_000:
            raise InputError(f"patience must be a number of epochs, or 0 for none, got {self.patience}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise InputError(f"precision must be auto, float32 or bfloat16, got {self.precision!r}")
        if self.units not in ("together", "in-turn", "one-resident"):
            raise InputError(f"units must be together, in-turn or one-resident, got {self.units!r}")
        self._check_division()
        if self.resume and self.overwrite:
            raise InputError("resume and overwrite contradict each other: give one of the two")

    def _check_division(self) -> None:
        if self.split not in (None, "batch", "probes", "units"):
            raise InputError(f"split must be batch, probes or units, got {self.split!r}")
        if self.shares is not None and not 1 <= self.shares <= 64:
            raise InputError(f"shares must be from 1 to 64 parts of a step, got {self.shares}")
        if self.exchange_share is not None and not 0 < self.exchange_share <= 1:
            raise InputError(
                f"exchange_share must lie in (0, 1], a share of a gradient such as 0.01, got {self.exchange_share}"
            )
        if self.exchange_window is not None and self.exchange_share is None:
            raise InputError(
                f"exchange_window = {self.exchange_window} is how long the rest of a gradient waits of which a share "
                "is exchanged: give exchange_share, too"
            )
        if self.exchange_window is not None and not 1 <= self.exchange_window <= 10**9:
            raise InputError(f"exchange_window must be a number of steps, 1 or more, got {self.exchange_window}")

    def rate_factor(self, step: int, steps: int) -> float:
        """Return what the learning rate is multiplied by at `step` of `steps`, counted from 0: in (0, 1].

        >>> [round(Options(decay="cosine", warmup=0.2).rate_factor(step, 10), 2) for step in range(10)]
        [0.33, 0.67, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
        """
        return rate_factor(self.decay, step, steps, round(self.warmup * steps))

    def epochs_for(self, examples: int) -> int:
        """Return the number of epochs, by the size of the training split if none was given."""
        if self.epochs is not None:
            return self.epochs
        return _MANY_EPOCHS if examples < _SMALL_SET else _DEFAULT_EPOCHS

    def steps_for(self, examples: int) -> int:
        """Return the number of steps of the whole run, of as many epochs as `epochs_for` says if none was given.

        >>> Options(steps=25).steps_for(1000), Options(epochs=2, batch=100).steps_for(1050)
        (25, 20)
        """
        return self.epochs_for(examples) * steps_per_epoch(examples, self.batch) if self.steps is None else self.steps


@dataclass(frozen=True)
class Compute:
    """A device and a precision, found out once at the start of a run."""

    device: torch.device
    precision: Literal["float32", "bfloat16"]

    @classmethod
    def find(cls, device: str, precision: str) -> "Compute":
        """Turn the options into what this machine has.

        Raises:
            InputError: if the device is unknown or absent.
        """
        found = _device(device)
        if precision == "auto":
            precision = "bfloat16" if has_bfloat16(found) else "float32"
        return cls(found, "bfloat16" if precision == "bfloat16" else "float32")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products and convolutions run in the chosen precision."""
        enabled = self.precision == "bfloat16"
        if not enabled and not torch.is_autocast_enabled(self.device.type):
            return nullcontext()  # there is nothing to turn off
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled, cache_enabled=False)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}: use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices; "
            "use --device cpu, or install a build of torch with CUDA and its driver"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device mps was asked for, but this machine has none; use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {name} is not supported: use cpu, cuda, cuda:N or mps")
    return device
