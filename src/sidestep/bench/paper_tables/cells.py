"""One cell of a table: a preset trained with one seed, and read several times. Files say what is done already."""

import gc
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from sidestep import checkpoint
from sidestep.bench.paper_tables.rows import recipe_of
from sidestep.bench.studies.blocks import Watch, trained_run
from sidestep.data import DataSet, Split
from sidestep.errors import BusyError, CheckpointError, InputError, SidestepError
from sidestep.measure.environment import environment_of
from sidestep.noise import Noise
from sidestep.presets.catalogue import Preset
from sidestep.rules import RULES
from sidestep.training import Compute, Options, Run
from sidestep.training.evaluate import accuracies
from sidestep.training.evaluation_progress import EvaluationProgress, checksum
from sidestep.training.folder import RunFolder
from sidestep.training.stopping import stop_on_signals

__all__ = ["Plan", "cell_record", "check_precision", "commits_of", "continues", "fill_cell", "run_in_folder"]

_APART = 32  # bits between the seed of a run and the seeds that its further inference runs draw noise from
_UNDER_WAY = "inference-run.json"  # how far the inference run has come that is under way
_SECONDS = 60.0  # between two writes of how far an inference run has come


@dataclass(frozen=True)
class Plan:
    """How the cells of a table are filled."""

    out: Path  # runs lie in OUT/BUDGET/PRESET-SEED
    budget: str = "full"
    seeds: int = 3
    inference_runs: int = 5  # of a reading that draws noise; another is read once
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_seconds: float = 60.0
    elsewhere: Mapping[tuple[str, int], Mapping[str, Any]] = field(default_factory=dict)  # finished in other folders

    def folder(self, preset: Preset, seed: int) -> Path:
        """Return the folder of a run."""
        return self.out / self.budget / f"{preset.name}-{seed}"

    def readings(self, preset: Preset) -> int:
        """Return how often each run of a row is read."""
        return self.inference_runs if preset.sampled else 1

    def failure_file(self, preset: Preset, seed: int) -> Path:
        """Return the file that says why a run failed, beside its folder."""
        return self.out / self.budget / f"{preset.name}-{seed}.failed.json"


def fill_cell(preset: Preset, seed: int, data: DataSet, source: Mapping[str, Any], plan: Plan, watch: Watch) -> bool:
    """Train what is not trained yet and read what is not read yet; return whether that worked.

    A run that fails (out of memory, a loss that is no number) is noted beside its folder, and tried again next time.
    One that was finished elsewhere (`Plan.elsewhere`) is not trained here, nor read: its net is not here.

    Args:
        preset: the row, with the values of the budget.
        seed: of the run.
        data: what to train on.
        source: how it can be loaded again.
        plan: where, and how often to read.
        watch: called with a line about the run, gives what is told of its progress.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, when the checkpoint is written.
        BusyError: if another process writes the run.
    """
    file = plan.failure_file(preset, seed)
    if "merged" in (cell_record(preset, seed, plan) or {}):
        return True
    try:
        file.unlink(missing_ok=True)
        _start_over(plan.device)
        rule = RULES[preset.rule](**preset.options)
        here: dict[str, Any] = {name: getattr(plan, name) for name in ("device", "precision", "checkpoint_seconds")}
        options = Options(**{**preset.train, **here}, seed=seed, out=plan.folder(preset, seed))
        needed = list(dict.fromkeys([rule.readings[0], preset.reading]))
        run = trained_run(rule, data, options, source, watch, needed)
        _read_often(run, preset, data.test, plan.readings(preset))
    except BusyError:  # somebody else fills this cell: that is no failure of the run
        raise
    except (SidestepError, MemoryError, RuntimeError) as error:  # torch reports a lack of memory as a RuntimeError
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(file, {"failed": message})
        return False
    return True


def _start_over(device: str) -> None:
    """Let go of what the run before has left on a GPU, so that each run's memory is measured alone."""
    found = Compute.find(device, "auto").device
    if found.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(found)


def _read_often(run: Run, preset: Preset, test: Split, count: int) -> None:
    """Write the accuracies of `count` inference runs, each with other noise; the first is the run's own.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, when what was counted is written.
    """
    path, steps = (run.folder or Path()) / "inference.json", run.result["steps"]
    record = _read(path)
    first = run.result["readings"][preset.reading]
    kept = record.get("accuracies", {}).get(preset.reading, [first])
    if record.get("steps") != steps or record.get("images") != len(test) or kept[0] != first:  # of an earlier net
        record = {"steps": steps, "images": len(test), "accuracies": {}}
        record["environment"] = environment_of(run.compute.device)
    record["recipe"] = recipe_of(preset)  # the run was taken up with it
    shares = record["accuracies"].setdefault(preset.reading, [first])
    while len(shares) < count:
        shares.append(_another(run, preset.reading, test, len(shares)))
        checkpoint.write_json(path, record)
    checkpoint.write_json(path, record)
    path.with_name(_UNDER_WAY).unlink(missing_ok=True)


def _another(run: Run, reading: str, test: Split, number: int) -> float:
    """Return the accuracy of one more inference run, or of what an earlier process left to do of it."""
    key = {"steps": run.result["steps"], "weights": checksum(run.net.state_dict().values()), "rule": str(run.rule),
           "run": number, "device": run.compute.device.type, "precision": run.compute.precision}  # fmt: skip
    with stop_on_signals() as stop:
        tally = EvaluationProgress((run.folder or Path()) / _UNDER_WAY, key, _SECONDS, stop)
        count, noise = tally.of("test", test, [reading]), Noise(run.seed + (number << _APART))
        return accuracies(run.rule, run.net, test, run.task, run.compute, noise, [reading], count)[reading]


def cell_record(preset: Preset, seed: int, plan: Plan) -> dict[str, Any] | None:
    """Return what is known of a cell: its numbers, or why it failed; None where it was not run to its end.

    The run of the folder counts, and without one that is finished the run of `Plan.elsewhere`; where both are one run,
    that which was read more often.

    Args:
        preset: the row, with the values of the budget.
        seed: of the run.
        plan: where it lies.
    """
    failed = _read(plan.failure_file(preset, seed))
    here, elsewhere = run_in_folder(preset, seed, plan), plan.elsewhere.get((preset.name, seed))
    if here and not failed and not (elsewhere and _reads_more(elsewhere, here)):
        return here
    if elsewhere:
        return {**elsewhere, "merged": True}
    return {"seed": seed, **failed} if failed else None


def check_precision(presets: Sequence[Preset], plan: Plan) -> None:
    """Raise InputError if a precision is asked for and a run that is done or begun has another.

    Args:
        presets: the rows, with their own values.
        plan: with the budget, the precision, and where the runs lie.
    """
    if plan.precision == "auto":
        return
    for preset, seed in itertools.product(presets, range(plan.seeds)):
        for_budget = preset.for_budget(plan.budget)
        folder, cell = plan.folder(for_budget, seed), cell_record(for_budget, seed, plan) or {}
        merged = cell.get("precision") if "merged" in cell else None
        for had, where, fix in ((_precision_of(folder), str(folder), "choose another --out to train it so"),
                                (merged, "--merge", "leave its file out")):  # fmt: skip
            if had not in (None, plan.precision):
                raise InputError(
                    f"--precision {plan.precision}: {preset.row} on {preset.data}, seed {seed}, was trained in {had} "
                    f"({where}), and would stand on the page as it is: {fix}, or leave --precision out"
                )


def _precision_of(folder: Path) -> str | None:
    """Return the precision of a run that is done, or was begun, in a folder; None where there is none."""
    found = _read(folder / "result.json").get("precision")
    try:
        return str(found or RunFolder(folder).config()["train"]["precision"])
    except (SidestepError, LookupError, TypeError):  # not there, or damaged: training will say so
        return found


def _reads_more(elsewhere: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    return len(elsewhere["accuracies"]) > len(here["accuracies"]) and continues(elsewhere, here)


def continues(run: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Whether a run is the earlier one, read as often or more often since."""
    same = ("seconds", "device", "precision", "default_reading")
    return (
        len(run["accuracies"]) >= len(earlier["accuracies"])
        and all(map(math.isclose, run["accuracies"], earlier["accuracies"]))
        and all(run[name] == earlier[name] for name in same)
    )


def run_in_folder(preset: Preset, seed: int, plan: Plan) -> dict[str, Any] | None:
    """Return the numbers of the run in the folder, of all its inference runs, if it is finished and was read."""
    folder = plan.folder(preset, seed)
    result, inference = _read(folder / "result.json"), _read(folder / "inference.json")
    shares = inference.get("accuracies", {}).get(preset.reading)
    if not result or not shares or inference["steps"] != result["steps"]:
        return None
    wanted = ("seconds", "epochs", "steps", "parameters", "peak_memory_bytes", "device", "precision")
    default = RULES[preset.rule].readings[0]
    return {
        "seed": seed,
        "accuracies": shares,
        "test_images": inference.get("images"),
        "default_reading": {default: result["readings"][default]},
        **{key: result[key] for key in wanted},
        "environment": inference.get("environment"),
        "recipe": inference.get("recipe"),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return checkpoint.read_json(path)
    except CheckpointError:  # not there, not ours or changed: then it counts as not done
        return {}


def commits_of(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the commits of cells that were computed in one place, each once, and that some did not keep theirs."""
    found = dict.fromkeys((cell.get("environment") or {}).get("commit") or "" for cell in cells)
    known = [commit for commit in found if commit]
    return [*known, *(["others not kept"] if known and "" in found else [])]
