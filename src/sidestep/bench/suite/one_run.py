"""One run of the suite: training, then the validation accuracy, and for a seed which test images are right, once."""

import base64
import dataclasses
import time
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sidestep.bench.process import FAILED, failure
from sidestep.bench.suite.work import Work
from sidestep.data import DataSet, Split
from sidestep.measure import count_operations, peak_allocation
from sidestep.presets.matched import TRAIN
from sidestep.rules import RULES, Rule
from sidestep.training import Options, Stopped
from sidestep.training.begin import begin
from sidestep.training.evaluate import predictions
from sidestep.training.loop import Loop
from sidestep.training.state import State
from sidestep.training.stopping import StopRequest

__all__ = ["packed", "part_of", "run_work", "unpacked"]


def run_work(work: Work, data: DataSet, device: str, stop: StopRequest) -> dict[str, Any]:
    """Return the record of a run; one that a rule, a net or torch has ended says how.

    Seconds are of the processor and of this process, for training with its batches. The first seed also says what a
    step takes: operations over those of a prediction, and the bytes that its second step allocates.

    Raises:
        Stopped: when a stop was requested; the run is lost.
    """
    try:
        rule = RULES[work.cell.row.rule](**{**work.cell.fit.options, **work.options})
        counts = _counts(work, rule, data, device) if work.kind != "trial" and work.number == 0 else {}
        if work.kind == "counts":
            return {**work.record(), **counts}
        return {**work.record(), **_trained(work, rule, data, device, stop), **counts}
    except Exception as error:  # whatever a rule or torch may raise: the others are to go on
        return {**work.record(), FAILED: failure(error)}


def part_of(data: DataSet, images: int | None, test_images: int | None) -> DataSet:
    """Return data with the first images of train, and of test; pixels are scaled as in the whole."""
    train = data.train.part(slice(0, images))

    def read_test() -> Split:
        return data.test.part(slice(0, test_images))

    return dataclasses.replace(data, train=train, read_test=read_test if data.has_test else None)


def packed(right: Tensor) -> str:
    """Return which examples are right, (examples,) bool, as a text: bits, compressed, in base 64.

    >>> unpacked(packed(torch.tensor([True, False, True])), 3).tolist()
    [True, False, True]
    """
    bits = np.packbits(right.cpu().numpy())
    return base64.b64encode(zlib.compress(bits.tobytes(), 9)).decode()


def unpacked(text: str, examples: int) -> Tensor:
    """Return what was `packed`, (examples,)."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(bits, count=examples)).bool()


def _begin(work: Work, rule: Rule, data: DataSet, device: str) -> tuple[State, Loop]:
    given = {**TRAIN, **work.cell.budget.train, "epochs": work.epochs, "seed": work.seed, "device": device}
    used = part_of(data, work.images, work.cell.budget.test_images)
    given["batch"] = min(int(given["batch"]), len(used.train))
    return begin(rule, used, Options(**given), work.cell.fit.module)


def _trained(work: Work, rule: Rule, data: DataSet, device: str, stop: StopRequest) -> dict[str, Any]:
    state, loop = _begin(work, rule, data, device)
    began, clock = time.process_time(), time.perf_counter()
    while state.step < loop.total_steps:
        loop.take_step(state, stop)
        state.sums = {}
        if stop.requested:
            raise Stopped("stopped", state.step, stop.signal_number)
    spent, took = time.process_time() - began, time.perf_counter() - clock
    reading = _reading(work, rule)
    validation = _right(state, loop, loop.data.validation, reading)
    found: dict[str, Any] = {
        "validation": float(validation.double().mean()),
        "validation_images": len(validation),
        "steps": state.step,
        "processor_seconds": round(spent, 3),
        "seconds": round(took, 3),
    }
    if work.kind == "seed" and loop.data.has_test:
        test = _right(state, loop, loop.data.test, reading)
        found |= {"test": float(test.double().mean()), "test_images": len(test), "right": packed(test)}
    return found


def _reading(work: Work, rule: Rule) -> str:
    return work.cell.row.reading or rule.readings[0]


def _right(state: State, loop: Loop, split: Split, reading: str) -> Tensor:
    """Return which images of a split a reading has right, (images,)."""
    parts = predictions(loop.rule, state.net, split.images, loop.task, loop.compute, loop.noise, [reading])
    return torch.cat([part[reading].argmax(1).cpu() for part in parts]) == split.targets.to("cpu")


def _counts(work: Work, rule: Rule, data: DataSet, device: str) -> Mapping[str, Any]:
    """What a step takes, measured on a net that is not trained further."""
    state, loop = _begin(work, rule, data, device)
    loop.take_step(state)
    with peak_allocation(loop.compute.device) as peak:
        loop.take_step(state)
    batch, noise = loop.batch(state.step), loop.noise.stream("estimate").at(state.step)
    with count_operations() as estimated:
        rule.estimate(state.net, batch, noise)
    with count_operations() as forward:
        rule.predict(state.net, batch.inputs, loop.noise.stream("predict"), 0, [_reading(work, rule)])
    return {
        "parameters": sum(parameter.numel() for parameter in state.net.parameters()),
        "allocated_bytes": peak.bytes,
        "forward_equivalents": round(estimated.count / forward.count, 2) if forward.count else None,
    }
