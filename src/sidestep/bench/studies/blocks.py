"""Is it the denoising, or just T classifiers? Two rules on the same blocks, and the first one's chain taken apart."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidestep.bench.studies.chain import READINGS_BY_BLOCK, chain_answers, oracle_logits
from sidestep.data import DataSet, Split
from sidestep.errors import InputError
from sidestep.nets.noprop.stack import DenoisingStack
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule
from sidestep.rules.record import rule_record
from sidestep.training import Options, Progress, Run, load_run, train
from sidestep.training.folder import RunFolder
from sidestep.wording import counted

__all__ = ["AGREES", "ORACLE", "Watch", "mean_and_error", "study_blocks", "trained_run"]

ORACLE = "oracle: block k given the true label's z"
AGREES = "block k agrees with block 1"
COMPARED = ("block 1 alone", "mean of blocks", "mean of blocks on pure noise", "chain, z shuffled at every step")
_BATCH = 500

Watch = Callable[[str], AbstractContextManager[Progress]]


def study_blocks(  # long: two rules, and how and where they are trained
    rule: Rule,
    baseline: Rule,
    data: DataSet,
    options: Options,
    seeds: int,
    source: Mapping[str, Any],
    watch: Watch,
) -> dict[str, Any]:
    """Train both rules with every seed, take the first one's chain apart on the test split, and return the record.

    The runs lie in the folder `options.out`; finished ones are loaded, unfinished ones continued. Nothing is chosen on
    the test split, which is read when a run is done.

    Args:
        rule: makes a DenoisingStack.
        baseline: a rule that trains the same blocks otherwise.
        data: a data set with a test split.
        options: of all runs; `out` is the study's folder, and the seed is the first of the seeds.
        seeds: how many.
        source: how the data can be loaded again, with their name.
        watch: called with a line about each run that is trained, gives what is told of its progress.

    Raises:
        InputError: without a test split or a folder, for other numbers of seeds, or for runs of other options there.
    """
    out = options.out
    if out is None:
        raise InputError("the study needs a folder for its runs and results; give --out")
    if not 1 <= seeds <= 100:
        raise InputError(f"seeds must lie between 1 and 100, got {seeds}; 3 give a spread")
    if not data.has_test:
        raise InputError(f"{data.name} has no test split, on which the study is read; give data with one")
    parts = []
    for seed in range(options.seed, options.seed + seeds):
        runs = [
            trained_run(
                each, data, dataclasses.replace(options, seed=seed, out=out / f"{each.name}-{seed}"), source, watch
            )
            for each in (rule, baseline)
        ]
        found = {**_measure(runs[0], data.test), baseline.name: runs[1].result["test_accuracy"]}
        results = {run.rule.name: run.result for run in runs}
        found["parameters"] = {name: result["parameters"] for name, result in results.items()}
        found["seconds"] = {name: result["seconds"] for name, result in results.items()}
        parts.append({"seed": seed, **found})
    return _record(rule, baseline, data, options, parts)


def trained_run(  # long: what is trained, on what, how, and what is read of it
    rule: Rule,
    data: DataSet,
    options: Options,
    source: Mapping[str, Any],
    watch: Watch,
    readings: Sequence[str] | None = None,
) -> Run:
    """Return the run in `options.out`: loaded if it is finished, continued if it is not, new if there is none.

    A run that is trained here is evaluated by the named readings only, by default by those of `train`.

    Raises:
        InputError: if the folder holds a run with other options.
    """
    folder = RunFolder(Path(options.out or "."))
    epochs, steps = options.epochs_for(len(data.train)), options.steps_for(len(data.train))
    length = counted(epochs, "epoch") if options.steps is None else counted(steps, "step")
    result = folder.result() or {}
    done = result.get("steps", steps)
    if folder.config_file.exists() and done != steps and not (options.patience and done < steps):
        raise InputError(
            f"{folder.path} has been trained to its end, of {counted(result['epochs'], 'epoch')}, and would be lost "
            f"to a run of {epochs if options.steps is None else length}; choose another --out"
        )
    if folder.config_file.exists() and result:
        run = load_run(folder.path, device=options.device)
        _check_same(run, folder.config(), rule, data, options, source)
        run.result = result
        return run
    with watch(f"{rule.name} on {data.name}, seed {options.seed}: {length}") as progress:
        again = dataclasses.replace(options, epochs=epochs if options.steps is None else None, resume=True)
        return train(rule, data, again, source=source, progress=progress, readings=readings)


def _check_same(  # long: the six things that a run is made of
    run: Run, config: Mapping[str, Any], rule: Rule, data: DataSet, options: Options, source: Mapping[str, Any]
) -> None:
    free = {"out", "resume", "overwrite", "epochs", "steps", "device", "precision", "checkpoint_seconds"}
    given = {key: value for key, value in dataclasses.asdict(options).items() if key not in free}
    had = {key: config["train"].get(key) for key in given}
    given |= {
        "rule": rule,
        "data": data.source.get("name", source.get("name", data.name)),
        "training images": len(data.train),
    }
    had |= {"rule": run.rule, "data": config["data"].get("name"), "training images": config["data"].get("train_images")}
    different = [f"{key}: was {had[key]}, given {given[key]}" for key in given if had[key] != given[key]]
    if different:
        raise InputError(
            f"{options.out} was trained otherwise ({'; '.join(different)}); give the same options again, or choose "
            "another --out"
        )


def _measure(run: Run, test: Split) -> dict[str, Any]:
    """Return accuracies and agreements of one trained stack on the test split."""
    net = run.net
    if not isinstance(net, DenoisingStack):
        raise InputError(f"the rule {run.rule.name} makes a {type(net).__name__}; the study needs a stack of blocks")
    answers, labels = _answers(run, net, test)
    right = {name: answer == labels for name, answer in answers.items()}
    chain, first = answers["chain"], answers["block 1 alone"]
    chain_right, first_right = right["chain"], right["block 1 alone"]
    shares = {
        **right,
        AGREES: answers[READINGS_BY_BLOCK[0]] == first,
        "chain differs from block 1": chain != first,
        "chain right, block 1 wrong": chain_right & ~first_right,
        "chain wrong, block 1 right": ~chain_right & first_right,
    }
    return {name: share.double().mean(dim=-1).tolist() for name, share in shares.items()}


def _answers(run: Run, net: DenoisingStack, test: Split) -> tuple[dict[str, Tensor], Tensor]:
    """Return the answers by every reading and the labels, on the CPU.

    The order is random, since z is shuffled within a batch and a split may be sorted by class.
    """
    if len(test) < 2:
        raise InputError(f"the study shuffles z between images, so it needs two test images or more, got {len(test)}")
    noise, device, start = Noise(run.seed).stream("study"), run.compute.device, 0
    order = noise.stream("order").permutation(len(test)).to(test.labels.device)
    parts: list[dict[str, Tensor]] = []
    net.eval()
    for rows in order.tensor_split(math.ceil(len(test) / _BATCH)):  # sizes that differ by at most one
        images = run.task.prepare(test.images[rows].to(device))
        labels = test.labels[rows].to(device)
        with torch.no_grad(), run.compute.autocast():
            features = net.image_features(images)
            found = chain_answers(net, features, noise, start)
            found[ORACLE] = oracle_logits(net, features, labels, noise.stream("oracle"), start).argmax(dim=2)
        parts.append({name: answer.cpu() for name, answer in found.items()})
        start += len(rows)
    return {name: torch.cat([part[name] for part in parts], dim=-1) for name in parts[0]}, test.labels[order].cpu()


def _record(
    rule: Rule, baseline: Rule, data: DataSet, options: Options, parts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    spread = {
        name: mean_and_error([part[name] for part in parts])
        for name in parts[0]
        if name not in ("seed", "seconds", "parameters")
    }
    for name in (*COMPARED, baseline.name):  # seed by seed, so that what both share cancels
        spread[f"chain minus {name}"] = mean_and_error([part["chain"] - part[name] for part in parts])
    seconds = {name: mean_and_error([part["seconds"][name] for part in parts]) for name in parts[0]["seconds"]}
    return {
        "data": data.name,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "rule": rule_record(rule),
        "baseline": rule_record(baseline),
        "blocks": len(parts[0][AGREES]),
        **({"epochs": options.epochs_for(len(data.train))} if options.steps is None else {"steps": options.steps}),
        "batch": options.batch,
        "seeds": [part["seed"] for part in parts],
        "parameters": parts[0]["parameters"],
        "seconds": {name: {"mean": mean, "standard_error": error} for name, (mean, error) in seconds.items()},
        "mean": {name: mean for name, (mean, _) in spread.items()},
        "standard_error": {name: error for name, (_, error) in spread.items()},
        "by_seed": list(parts),
    }


def mean_and_error(values: Sequence[Any]) -> tuple[Any, Any]:
    """Return mean and standard error of numbers, or element by element of lists; the error of one value is None.

    >>> mean_and_error([1.0, 3.0])
    (2.0, 1.0)
    >>> mean_and_error([[1.0, 2.0]])
    ([1.0, 2.0], [None, None])
    """
    if isinstance(values[0], list):
        pairs = [mean_and_error(column) for column in zip(*values, strict=True)]
        return [mean for mean, _ in pairs], [error for _, error in pairs]
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
