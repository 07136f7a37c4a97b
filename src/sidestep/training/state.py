"""What changes while training: the net, the optimiser, the position, and the average of the weights."""

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from sidestep import checkpoint
from sidestep.errors import CheckpointError, InputError
from sidestep.nets.trained import trained
from sidestep.training.gathered import Gathered, own_moments
from sidestep.training.own_optimizer import restore_scheduler
from sidestep.training.unit_files import UnitFiles

__all__ = ["AVERAGE", "KEPT", "UNSENT", "State"]

AVERAGE = "average/"  # what the names of averaged weights begin with in a checkpoint
KEPT = "kept/"  # and those of weights that an observer kept
UNSENT = "unsent/"  # and what parts of a step had not yet exchanged


@dataclass
class State:
    """What changes while training; with the configuration, all that a resumed run needs."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0  # spent training, over all resumptions
    sums: dict[str, float] = field(default_factory=dict)  # of each loss over this epoch
    summed_from: int = 0  # the step that they begin after, where that is within the epoch
    average: dict[str, Tensor] = field(default_factory=dict)  # of the weights, by name; empty if none is kept
    kept: dict[str, Tensor] = field(default_factory=dict)  # weights and buffers that the run is to end with, if any
    kept_step: int | None = None
    saved_step: int = -1
    loader: Any = None  # where a loader of the user's stood, as it says itself
    own_optimizer: bool = False  # whether the optimiser is one of the user's
    scheduler: LRScheduler | None = None  # of the user's, in place of a decay
    files: UnitFiles | None = None  # where units are while they do not train; None: in memory, like all else
    elsewhere: frozenset[str] = frozenset()  # names of parameters and buffers that other ranks hold
    unsent: Mapping[str, Tensor] = field(default_factory=dict)  # of gradients, by name in a checkpoint
    gathered: Gathered | None = None  # what a checkpoint needs of other ranks

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]  # before a checkpoint is restored

    @property
    def net_device(self) -> torch.device:
        """Where the net's parameters lie."""
        return next(self.net.parameters()).device

    def check_average(self) -> None:
        """Raise InputError if the net has parameters that no moving average can be taken of."""
        for name, parameter in trained(self.net).items():
            if not parameter.is_floating_point():
                raise InputError(
                    f"a moving average needs float weights, but {name} is {parameter.dtype}: leave --average out"
                )

    def set_rate(self, factor: float) -> None:
        """Multiply the learning rates that the rule gave by `factor`; a schedule of the user's has set its own."""
        if self.scheduler is not None:
            return
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def keep_in_files(self, files: UnitFiles) -> None:
        """Move all units into files, from now on and as they come to have more (moments, averages)."""
        self.files = files
        files.release_after_use(self.net)
        self.put_away(*files.units)

    def put_away(self, *units: str) -> None:
        """Move what units have in memory of their own into their files, if there are any, and release all pages."""
        if self.files is None:
            return
        parameters = dict(self.net.named_parameters())
        for unit in units:
            names = self.files.units.get(unit, [])
            for name, view in self.files.moved(unit, {name: parameters[name].data for name in names}).items():
                parameters[name].data = view
            averages = {name: self.average[name] for name in names if name in self.average}
            self.average.update(self.files.moved(unit, averages))
            moments = {
                f"{name} {key}": value
                for name in names
                for key, value in self.optimizer.state.get(parameters[name], {}).items()
                if isinstance(value, Tensor) and value.ndim
            }
            for label, view in self.files.moved(unit, moments).items():
                name, key = label.split(" ")
                self.optimizer.state[parameters[name]][key] = view
        self.files.release()

    def release(self) -> None:
        """Let the system take back the pages of units that are in files."""
        if self.files:
            self.files.release()

    def move_average(self, decay: float, names: Iterable[str] | None = None) -> None:
        """Take one step of the weights' average, `w <- a w + (1 - a) w_step`; a is smaller in the first steps.

        `a = min(decay, (1 + step) / (10 + step))`, so that the random weights of the start are soon forgotten.

        Args:
            decay: the most that a can be.
            names: of the parameters, if not all.
        """
        weight = min(decay, (1 + self.step) / (10 + self.step))
        parameters = trained(self.net)  # what is frozen is its own average
        with torch.no_grad():
            for name in parameters if names is None else names:
                if name not in self.average:
                    self.average[name] = parameters[name].detach().clone()
                self.average[name].lerp_(parameters[name], 1 - weight)

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The net with its averaged weights, or as it is if none are kept; afterwards it is as before."""
        self._swap_average()
        try:
            yield self.net
        finally:
            self._swap_average()

    def _swap_average(self) -> None:
        parameters = dict(self.net.named_parameters())
        with torch.no_grad():
            for name, value in self.average.items():
                kept = parameters[name].detach().clone()
                parameters[name].copy_(value)
                value.copy_(kept)
                self.release()

    def keep(self) -> None:
        """Keep a copy of the weights (averaged, if an average is taken) and buffers that are here, for the end."""
        with self.averaged() as net:
            own = self._passing(net.state_dict())
            self.kept = {name: own[name].detach().clone() for name in own if name not in self.elsewhere}
        self.kept_step = self.step

    def forget(self) -> None:
        """Forget what was kept."""
        self.kept, self.kept_step = {}, None

    def adopt_kept(self) -> None:
        """Put the weights that were kept, if any, into the net for good."""
        if self.kept:
            self.net.load_state_dict(self.kept)
            self.release()

    def adopt_average(self) -> None:
        """Put the averaged weights, if any are kept, into the net for good."""
        parameters = dict(self.net.named_parameters())
        with torch.no_grad():
            for name, value in self.average.items():
                parameters[name].copy_(value)
                self.release()

    def not_finite(self) -> list[str]:
        """Return the names of trained parameters that hold an infinity or no number."""
        found = list(self.gathered.not_finite) if self.gathered else []
        for name, parameter in trained(self.net).items():
            if name in self.elsewhere:
                continue
            if not bool(parameter.isfinite().all()):
                found.append(name)
            self.release()
        return found

    def weights(self) -> Mapping[str, Tensor]:
        """Return the net's parameters and buffers by name, to be looked at one after another; of all ranks, if here."""
        own = self.net.state_dict()
        if self.elsewhere and self.gathered:
            prefix = KEPT if self.kept_step is not None else "net/"
            return self.gathered.completed(own, self.elsewhere, prefix)
        return self._passing(own)

    def _passing(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.files.passing(tensors) if self.files else tensors

    def tensors(self) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """Return everything as named tensors, to be looked at one after another, and a JSON record."""
        moments, record = checkpoint.optimizer_tensors(self.optimizer)
        whole = self.net.state_dict().items()
        tensors = {f"net/{name}": tensor for name, tensor in whole if name not in self.elsewhere}
        tensors.update({f"optimizer/{name}": tensor for name, tensor in moments.items()})
        tensors.update({f"sum/{name}": torch.tensor(total, dtype=torch.float64) for name, total in self.sums.items()})
        tensors.update({f"{AVERAGE}{name}": tensor for name, tensor in self.average.items()})
        tensors.update({f"{KEPT}{name}": tensor for name, tensor in self.kept.items()})
        tensors.update(self.unsent)
        kept = {} if self.kept_step is None else {"kept_step": self.kept_step}
        part = {"summed_from": self.summed_from} if self.sums and self.summed_from else {}
        rates = {"scheduler": self.scheduler.state_dict()} if self.scheduler else {}
        place = {"step": self.step, "seconds": self.seconds, "optimizer": record}
        if self.gathered:
            self.gathered.add_to(record)
            return ChainMap(tensors, cast(Any, self.gathered.tensors)), {**place, **kept, **part, **rates}
        return self._passing(tensors), {**place, **kept, **part, **rates}

    def restore(self, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        """Take over copies of what `tensors` returned earlier, one unit after another where units are in files."""
        units = self.files.units if self.files else {}

        def part(prefix: str) -> dict[str, str]:
            return {name[len(prefix) :]: name for name in tensors if name.startswith(prefix)}

        net = {name: stored for name, stored in part("net/").items() if name not in self.elsewhere}
        average, self.average = part(AVERAGE), {}
        own, moved = self.net.state_dict().keys() - self.elsewhere, {name for names in units.values() for name in names}
        if net.keys() != own:
            different = ", ".join(sorted(net.keys() ^ own)[:8])
            raise CheckpointError(f"the checkpoint belongs to another net: one of the two does not have {different}")
        for unit, names in {**units, "": [name for name in own if name not in moved]}.items():
            try:
                self.net.load_state_dict({name: tensors[net[name]] for name in names}, strict=False)
            except RuntimeError as error:
                raise CheckpointError(f"the checkpoint belongs to another net: {error}") from error
            self.average.update({n: tensors[average[n]].to(self.net_device, copy=True) for n in names if n in average})
            self.put_away(unit)
        kept = own_moments(record["optimizer"], self.net, self.optimizer, self.elsewhere)
        checkpoint.restore_optimizer(self.optimizer, _Under("optimizer/", tensors), kept, lambda: self.put_away(*units))
        self.sums = {name: float(tensors[stored]) for name, stored in part("sum/").items()}
        wanted = {name: stored for name, stored in part(KEPT).items() if name not in self.elsewhere}
        self.kept = {name: tensors[stored].to(self.net_device, copy=True) for name, stored in wanted.items()}
        self.unsent = {name: tensors[name].clone() for name in tensors if name.startswith(UNSENT)}
        self.kept_step = int(record["kept_step"]) if self.kept else None
        self.step = self.saved_step = int(record["step"])
        self.seconds, self.summed_from = float(record["seconds"]), int(record.get("summed_from", 0))
        self.loader = record.get("loader")
        restore_scheduler(self.scheduler, record.get("scheduler"), self.step)


class _Under(Mapping[str, Tensor]):
    """The tensors whose names begin with a prefix, by the rest of the name."""

    def __init__(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        self._prefix, self._tensors = prefix, tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __contains__(self, name: object) -> bool:
        return f"{self._prefix}{name}" in self._tensors

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._prefix) for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)
