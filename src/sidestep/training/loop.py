"""The one training loop: batch -> estimate -> decide -> apply, for every rule alike."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from functools import partial

from sidestep.data import DataSet, steps_per_epoch
from sidestep.errors import CheckpointError, InputError, NonFiniteError, RankError, SidestepError
from sidestep.noise import Noise
from sidestep.rules.protocol import Batch, HasHealthCheck, Rule, Task, UnitByUnit
from sidestep.rules.shared.whole_model import OnWholeModel
from sidestep.steplog import Recorder
from sidestep.training.attached_rule import Built, take_update
from sidestep.training.batches import TrainingBatches
from sidestep.training.evaluate import accuracies
from sidestep.training.failures import kept, with_position
from sidestep.training.folder import RunFolder
from sidestep.training.metrics import MetricsLog, writer
from sidestep.training.observers import Begin, EpochEnd, ObserverError, Observers, StepEnd
from sidestep.training.options import Compute, Options
from sidestep.training.parts import Parts
from sidestep.training.ranks import answers_of_all, any_of
from sidestep.training.state import State
from sidestep.training.stopping import StopRequest
from sidestep.training.unit_modes import unsupported_reason
from sidestep.training.unit_ranks import UnitRanks
from sidestep.update import Update, loss_values
from sidestep.world import Alone, World

__all__ = ["Loop"]


class Loop:
    """Trains one net by one rule on one data set, from whatever step the state stands at."""

    def __init__(  # long: rule, data and options, and two places to write to
        self,
        rule: Rule,
        data: DataSet,
        options: Options,
        compute: Compute,
        folder: RunFolder | None,
        recorder: Recorder | None = None,
    ) -> None:
        self.rule, self.data, self.options, self.compute, self.folder = rule, data, options, compute, folder
        self.recorder = recorder
        self.parts: Parts | UnitRanks | None = None  # of a step that is divided; None: it is estimated as one
        self._writes = False  # whether a step is half written
        self.task, self.noise = Task.of(data), Noise(options.seed)
        self._batches = TrainingBatches(rule, data, options, compute.device)
        self._estimates = self.noise.stream("estimate")
        self.total_steps = options.steps_for(len(data.train))
        batches = data.feed.epoch or max(1, self.total_steps) if data.feed else None
        self.steps_per_epoch = batches or steps_per_epoch(len(data.train), options.batch)

    def run(self, state: State, kept_metrics: int, observers: Observers, stop: StopRequest) -> None:
        """Train to the last step, or until a stop is requested or an observer says so; the state is saved either way.

        Args:
            state: where to start from; changed in place.
            kept_metrics: bytes of the metrics file that belong to that state.
            observers: told of the beginning, and of every step and epoch.
            stop: asked after every step.

        Raises:
            NonFiniteError: if a loss, or a weight about to be saved, is not finite; the last checkpoint stays.
            ObserverError, BatchError, StepError: if an observer, a loader, or other code of the user's raises an error;
                the state after the last whole step is saved before.
        """
        with ExitStack() as stack:
            log = stack.enter_context(self.folder.metrics(kept_metrics)) if self.folder else None
            if self.recorder:
                stack.callback(self.recorder.close)
            if state.files:
                stack.callback(state.files.close)
            if not state.sums and state.step % self.steps_per_epoch:  # a step log has no losses
                state.summed_from = state.step
            if state.step == 0 < self.total_steps:
                self._collect(state)
                self._save(state, log)  # before the log's first block, which does not hold an optimiser's momentum
            try:
                self._take_steps(state, log, observers, stop)
            except (NonFiniteError, RankError, CheckpointError):
                raise  # the last checkpoint is the good one
            except Exception as error:
                self._save_whole(state, log)
                whole = isinstance(self.rule, OnWholeModel) and self.task.inputs != "mapping"
                found = with_position(error, state.step, self._kept(state), self.task if whole else None)
                if found is error:
                    raise
                raise found from found.__cause__

    def _take_steps(self, state: State, log: MetricsLog | None, observers: Observers, stop: StopRequest) -> None:
        ended = any_of(self.world, observers.notify("on_begin", self._beginning(state)))
        each, each_asked = observers.wants("on_step"), any_of(self.world, observers.may_stop("on_step"))
        saved = time.perf_counter()
        started = saved - state.seconds
        while state.step < self.total_steps and not self._stops(stop) and not ended:
            if isinstance(self.parts, Parts):
                self.parts.due = self._due(saved)
            self.take_step(state, stop)
            state.seconds = time.perf_counter() - started
            due = self.parts.due if isinstance(self.parts, Parts) else self._due(saved)
            ended, failed = observers.answer("on_step", self._step(state, log)) if each else (False, None)
            failed_anywhere = False
            if each_asked:
                ended, failed_anywhere = answers_of_all(self.world, ended, failed is not None)
            if state.step % self.steps_per_epoch == 0 or state.step == self.total_steps:
                self._collect(state)  # an epoch ends whole, whatever an observer of its last step has raised
                ended |= observers.notify("on_epoch", self._end_epoch(state, log))
                ended = any_of(self.world, ended)
                self._collect(state, kept=True)
                state.seconds = time.perf_counter() - started
                due = True
            self._end_failed(state, failed, failed_anywhere)
            if due:
                if isinstance(self.parts, Parts):
                    self.parts.collect(state)
                self._save(state, log)
                saved = time.perf_counter()
        if self._stops(stop) or ended:
            self._collect(state)
            self._save(state, log)

    def _end_failed(self, state: State, failed: ObserverError | None, anywhere: bool) -> None:
        """End after a step of which an observer has raised an error: all ranks after the same one, and saved."""
        if anywhere:
            self._collect(state)
        if failed:
            raise failed
        if anywhere:
            self.world.gather(b"")  # raises the sentence of the rank whose observer it was

    def _collect(self, state: State, kept: bool = False) -> None:
        """Bring the units of a net that is spread over ranks to the one that writes, or what an observer has kept."""
        if isinstance(self.parts, UnitRanks):
            self.parts.collect(state, kept)
        elif self.parts and not kept:
            self.parts.collect(state)

    def _due(self, saved: float) -> bool:
        return time.perf_counter() - saved > self.options.checkpoint_seconds

    @property
    def world(self) -> World:
        """The ranks that train together."""
        return self.parts.world if self.parts else Alone()

    def _stops(self, stop: StopRequest) -> bool:
        """Whether somebody asked for a stop, of several ranks before the last exchange: all stop after one step."""
        if self.parts is None or self.world.size == 1:
            return stop.requested
        stop.signal_number = self.parts.signal or stop.signal_number
        return self.parts.signal != 0

    def _beginning(self, state: State) -> Begin:
        score = self.task.objective.score_name if len(self.data.validation) else None
        folder = self.folder.path if self.folder else None
        return Begin(state.step, self.total_steps, self.steps_per_epoch, self.options.batch, self.rule.name, score,
                     state.net, folder, state.kept_step, state.forget)  # fmt: skip

    def _step(self, state: State, log: MetricsLog | None) -> StepEnd:
        return StepEnd(state.step, self.total_steps, self.options.batch, dict(self._losses), state.seconds, state.net,
                       writer(log, state.step, state.seconds))  # fmt: skip

    def take_step(self, state: State, stop: StopRequest | None = None) -> None:
        """Take one training step, of all units at once or of one after another; ranks hear of a stop request."""
        state.set_rate(self.options.rate_factor(state.step, self.total_steps))
        self._losses: dict[str, float] = {}
        for unit, update in self._updates(state, stop or StopRequest()):
            names, losses = list(update.losses), loss_values(update)
            self._check_finite(names, losses, state)
            # no log keeps the updates of single units, which are dense
            record = partial(self.recorder.record, state.step, state.net) if self.recorder and unit is None else None
            self._writes = True
            take_update(Built(self.rule, state.net, state.optimizer, state.own_optimizer), update, record)
            del update  # before the next unit's are made
            if self.options.average:
                state.move_average(self.options.average, unit and self.rule.units(state.net).get(unit, []))
            if unit:
                state.put_away(unit)
            for name, loss in zip(names, losses, strict=True):
                state.sums[name] = state.sums.get(name, 0.0) + loss
                self._losses[name] = loss
        if state.scheduler:
            state.scheduler.step()
        state.step += 1
        self._writes = False

    def _updates(self, state: State, stop: StopRequest) -> Iterator[tuple[str | None, Update]]:
        """Return the update of this step, for no unit in particular, or each unit's: made when it is asked for."""
        batch, noise = self.batch(state.step), self._estimates.at(state.step)
        self._batches.check_one(batch, state.net, state.step)
        if self.parts:
            return iter([(None, self.parts.estimate(self.rule, state.net, batch, noise, self.compute, stop))])
        if self.options.units == "together":
            with self.compute.autocast():
                return iter([(None, self.rule.estimate(state.net, batch, noise))])
        if not isinstance(self.rule, UnitByUnit):
            raise InputError(unsupported_reason(self.rule, self.options.units, self.compute.device))
        each = self.rule.estimates(state.net, batch, noise)

        def following() -> tuple[str, Update] | None:
            with self.compute.autocast():  # for the estimate alone, which a generator would not leave in between
                return next(each, None)

        return iter(following, None)

    def batch(self, step: int) -> Batch:
        """Return the training batch of a step: a function of the seed and the step alone, or the next of a loader."""
        return self._batches.at(step)

    def _end_epoch(self, state: State, log: MetricsLog | None) -> EpochEnd:
        started = (state.step - 1) // self.steps_per_epoch * self.steps_per_epoch
        steps = state.step - max(started, state.summed_from)
        values = {("train", name): total / steps for name, total in sorted(state.sums.items())}
        state.sums = {}
        if state.step % self.steps_per_epoch:  # the last part of an epoch, which more steps may follow one day
            state.summed_from = state.step
        accuracy = None
        if len(self.data.validation):
            best, part = self.rule.readings[0], self.data.validation
            predicting = self.parts.predicting(state.net) if isinstance(self.parts, UnitRanks) else nullcontext()
            with predicting, state.averaged() as net:
                accuracy = accuracies(self.rule, net, part, self.task, self.compute, self.noise, [best])[best]
            values["validation", self.task.objective.score_name] = accuracy
        values.update({("train", name): value for name, value in self.rule.diagnostics(state.net).items()})
        if log:
            for (split, name), value in values.items():
                log.write(state.step, split, name, value, state.seconds)
        why = self.rule.failure(state.net) if isinstance(self.rule, HasHealthCheck) else None
        if why:
            raise NonFiniteError(f"after step {state.step}, {why}; {self._kept(state)}")
        losses = {name: value for (split, name), value in values.items() if split == "train"}
        return EpochEnd(-(-state.step // self.steps_per_epoch), state.step, self.total_steps, losses, accuracy,
                        state.seconds, state.net, writer(log, state.step, state.seconds), state.keep)  # fmt: skip

    def _save(self, state: State, log: MetricsLog | None) -> None:
        if self.folder is None or log is None or state.saved_step == state.step:
            return
        if self.parts and not self.parts.collected(state):
            return  # what other ranks hold is not here
        broken = state.not_finite()
        if broken:
            raise NonFiniteError(
                f"after step {state.step}, {len(broken)} parameters are not finite (first: {broken[0]}); "
                f"{self._kept(state)}; try a smaller --learning-rate"
            )
        tensors, record = state.tensors()
        logged = self.recorder.commit() if self.recorder else {}
        position = self.data.feed.state() if self.data.feed else None
        fed = {"loader": position} if position is not None else {}
        self.folder.save_state(tensors, {**record, **log.commit(), **logged, **fed})
        state.saved_step = state.step

    def _save_whole(self, state: State, log: MetricsLog | None) -> None:
        """Save what an error has ended, unless a step is half written, or a loader can go on from before alone."""
        feed = self.data.feed
        if self._writes or (feed and not feed.back_to(state.step) and state.saved_step > 0):
            return
        with suppress(SidestepError):  # the weights are not finite, or the disk is full; the first error is told
            self._save(state, log)

    def _check_finite(self, names: list[str], losses: list[float], state: State) -> None:
        if all(map(math.isfinite, losses)):
            return
        name, value = next((n, loss) for n, loss in zip(names, losses, strict=True) if not math.isfinite(loss))
        unit, _, term = name.partition(": ")
        raise NonFiniteError(
            f"the loss is {value} at step {state.step}, unit {unit}, term {term}; training stopped; "
            f"{self._kept(state)}; try a smaller --learning-rate, --precision float32, or look for extreme pixel values"
        )

    def _kept(self, state: State) -> str:
        return kept(self.folder, state.saved_step)
