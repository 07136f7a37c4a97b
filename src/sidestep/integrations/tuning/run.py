"""The loop of a fine-tune: batches of texts, a rule's steps, looks at the validation texts, and going on from there."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sidestep.data.tables.files import is_table_file
from sidestep.errors import InputError
from sidestep.integrations.tuning.base import check_base
from sidestep.integrations.tuning.folder import TuneFolder, options_record
from sidestep.integrations.tuning.gradient import summed_gradients
from sidestep.integrations.tuning.head import fit_head
from sidestep.integrations.tuning.net import Rows, TextNet, built, most_tokens
from sidestep.integrations.tuning.options import TuneOptions, rule_of_options
from sidestep.integrations.tuning.recipe import Recipe
from sidestep.integrations.tuning.texts import cut, label_numbers, read_labelled, read_text
from sidestep.measure.memory import peak_memory_bytes
from sidestep.nets.trained import trained
from sidestep.noise import Noise
from sidestep.rules.protocol import Rule
from sidestep.rules.record import rule_record
from sidestep.steplog.header import digest_of
from sidestep.training.attach import attach
from sidestep.training.options import Compute
from sidestep.training.step import Step
from sidestep.training.stopping import Stopped, stop_on_signals

__all__ = ["Score", "evaluated", "tune"]

_WINDOW = 8  # batches among which texts are sorted by length, so that little of a batch is padding
_EVALUATED = 64  # texts at a time
Told = Callable[[str], None]


@dataclass(frozen=True)
class Score:
    """Accuracy, as a share, and mean loss, in nats, of texts or of next tokens."""

    accuracy: float
    loss: float


@dataclass
class _Data:
    train: Rows
    validation: Rows
    train_labels: Tensor | None
    validation_labels: Tensor | None
    facts: dict[str, Any]


def tune(
    model: str, options: TuneOptions, named: Mapping[str, Any] | None = None, told: Told = lambda _: None
) -> dict[str, Any]:
    """Fine-tune a pretrained model on texts, and return what stands in the run's result.json.

    Args:
        model: folder of a model of transformers, or its name where a hub is reached.
        options: how.
        named: hyper-parameters of the rule, beside those of the options.
        told: gets a sentence of how far it is, at every look at the validation texts.

    Raises:
        InputError: for options, a model or data that cannot be used so.
        Stopped: by a signal; the run is saved.
    """
    rule = rule_of_options(options, dict(named or {}))
    check_base(model)
    out = options.out or Path("runs") / f"{options.rule}-{Path(model).name}-{options.seed}"
    folder = TuneFolder(out)
    with folder.writing(options.resume, options.overwrite) as again:
        net, data = _prepared(model, options, folder.recipe() if again else None)
        config = {
            "recipe": net.recipe.record(), "rule": rule_record(rule), "options": options_record(options),
            "data": data.facts, "start": digest_of(net.model),
        }  # fmt: skip
        if again:
            folder.check_same(config)
        run = _Run(net, data, rule, options, folder, told)
        run.begin(again, config)
        return run.to_the_end()


def evaluated(net: TextNet, rows: Rows, labels: Tensor | None) -> Score:
    """Return the score of texts, or of next tokens where there are no labels."""
    right = total = nats = 0.0
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    training = net.model.training
    net.model.eval()
    with torch.no_grad():
        for at in range(0, len(order), _EVALUATED):
            chosen = order[at : at + _EVALUATED]
            batch = net.batch(rows, chosen)
            logits = net.logits(batch).float()
            wanted = batch["input_ids"][:, 1:].flatten() if labels is None else labels[chosen].to(logits.device)
            logits = logits[:, :-1].flatten(0, 1) if labels is None else logits
            right += float((logits.argmax(1) == wanted).sum())
            nats += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            total += len(wanted)
    net.model.train(training)
    return Score(right / total, nats / total)


def _prepared(model: str, options: TuneOptions, saved: Recipe | None) -> tuple[TextNet, _Data]:
    """Return the net before its first step, with a fitted output layer, and the texts as tokens."""
    device = Compute.find(options.device, "float32").device
    table = is_table_file(options.data)
    texts = read_labelled(options.data, options.target, options.text) if table else None
    for name, given in (("--target", options.target), ("--stop-at", options.stop_at)):
        if given is not None and not table:
            raise InputError(
                f"{options.data} is a text, whose next tokens are learned: leave {name} out, or give a table"
            )
    kinds = texts.kinds if texts else ()
    if texts and len(kinds) < 2:
        raise InputError(f"{options.data}: all labels in {options.target} are {kinds[0]!r}; there must be two or more")
    if saved and saved.labels != kinds:
        raise InputError(
            f"the run was begun with the labels {', '.join(saved.labels[:8]) or 'of next tokens'}, and {options.data} "
            f"has {', '.join(kinds[:8]) or 'none'}; go on with those that it was begun with, or choose another --out"
        )
    length = options.length or most_tokens(model, 64)
    recipe = Recipe(model, kinds, options.part, options.lora, length, options.seed, options.reads)
    net = built(model, replace(recipe, head=saved.head) if saved else recipe, device, options.checkpointed)
    rows = net.encoded(texts.texts if texts else [read_text(options.data)])
    train, validation = cut(len(rows), options.validation, options.batch)
    labels = label_numbers(texts.labels, kinds, options.data) if texts else None
    digest = hashlib.blake2b(repr((rows, texts and texts.labels)).encode(), digest_size=16).hexdigest()
    data = _Data(
        [rows[place] for place in train], [rows[place] for place in validation],
        None if labels is None else labels[train], None if labels is None else labels[validation],
        {"rows": len(train), "validation_rows": len(validation), "digest": digest},
    )  # fmt: skip
    if data.train_labels is not None and options.head == "fitted" and not saved:
        layer = fit_head(net, data.train, data.train_labels)
        net.recipe = replace(net.recipe, head=layer or ())
    return net, data


class _Run:
    """A fine-tune under way."""

    def __init__(  # long: what a run is made of
        self, net: TextNet, data: _Data, rule: Rule, options: TuneOptions, folder: TuneFolder, told: Told
    ) -> None:
        self._net, self._data, self._rule, self._options = net, data, rule, options
        self._folder, self._told = folder, told
        self._lines: list[dict[str, Any]] = []
        self._passes, self._seconds, self._loss = 0, 0.0, float("nan")
        self._order: tuple[int, list[list[int]]] = (-1, [])
        self._step: Step

    def begin(self, again: bool, config: Mapping[str, Any]) -> None:
        """Attach the rule, and take up where an earlier process left."""
        options, folder = self._options, self._folder
        self._step = attach(
            self._net.model, self._rule, seed=options.seed, steps=options.steps or 1, decay=options.decay,
            warmup=options.warmup,
        )  # fmt: skip
        self._net.model.train(options.backward)
        logs = self._rule.takes.log != "no"
        if again and folder.state_file.exists():
            extra = self._step.load(folder.path, folder.log_file if logs else None)
            self._lines, self._passes, self._seconds = extra["lines"], extra["passes"], extra["seconds"]
            folder.result_file.unlink(missing_ok=True)
            return
        self._check_repeats()
        folder.begin(config)
        if logs:
            self._step.begin_log(folder.log_file, {"tune": self._net.recipe.record()}, seconds=600.0)
        self._look()

    def to_the_end(self) -> dict[str, Any]:
        """Take all steps that are left, and return the result."""
        options, begun = self._options, time.process_time() - self._seconds
        counting = self._net.model.register_forward_pre_hook(self._count)
        try:
            with stop_on_signals() as stop:
                while self._step.steps < options.steps and not self._enough():
                    self._loss = self._take()
                    self._seconds = time.process_time() - begun
                    done = self._step.steps
                    if stop.requested:
                        self._save()
                        raise Stopped(f"stopped at step {done:,} of {options.steps:,}", done, stop.signal_number)
                    if done % options.every == 0 or done == options.steps:
                        counting.remove()
                        self._look()
                        counting = self._net.model.register_forward_pre_hook(self._count)
        finally:
            counting.remove()
            self._step.close()
        return self._finished()

    def _enough(self) -> bool:
        """Whether so many validation texts were right, at the last look, that the run may end."""
        return self._options.stop_at is not None and self._lines[-1]["accuracy"] >= self._options.stop_at

    def _count(self, *_: Any) -> None:
        self._passes += 1

    def _take(self) -> float:
        """Take one step, and return its loss."""
        chosen, options = self._batch(self._step.steps), self._options
        size = options.batch // options.micro_batches
        losses = [self._loss_of(chosen[at : at + size]) for at in range(0, options.batch, size)]
        if len(losses) == 1:
            return float(self._step(losses[0]))
        update = summed_gradients(self._net.model, losses, self._step.noise)
        self._step.take(update)
        return float(next(iter(update.losses.values())))

    def _loss_of(self, chosen: list[int]) -> Callable[[], Tensor]:
        batch, labels = self._net.batch(self._data.train, chosen), self._data.train_labels
        wanted = None if labels is None else labels[chosen]
        return lambda: self._net.loss(batch, wanted)

    def _batch(self, step: int) -> list[int]:
        """Return the numbers of a step's texts: each epoch in its own order, sorted within a few batches."""
        rows, size = self._data.train, self._options.batch
        each = len(rows) // size
        epoch = step // each
        if self._order[0] != epoch:
            order = Noise(self._options.seed).stream("tune").stream("order").at(epoch).permutation(len(rows)).tolist()
            batches = []
            for at in range(0, each, _WINDOW):
                window = order[at * size : min(each, at + _WINDOW) * size]
                window.sort(key=lambda place: len(rows[place]))
                batches += [window[start : start + size] for start in range(0, len(window), size)]
            self._order = epoch, batches
        return self._order[1][step % each]

    def _check_repeats(self) -> None:
        """Raise InputError for a model whose loss differs from itself under one seed: a rule would follow the noise."""
        if self._options.backward or not self._options.steps:
            return
        loss, noise = self._loss_of(self._batch(0)), Noise(self._options.seed).stream("repeats")
        found = []
        for _ in range(2):
            with torch.no_grad(), noise.torch_seeded(next(self._net.model.parameters()).device):
                found.append(float(loss()))
        if abs(found[0] - found[1]) > 1e-6 * max(1.0, abs(found[0])):
            raise InputError(
                f"the model is not deterministic under one seed: its loss on the same texts is {found[0]:.6g} and then "
                f"{found[1]:.6g}, and {self._rule.name} compares losses; let it draw from torch's generators alone"
            )

    def _look(self) -> None:
        """Evaluate on the validation texts, tell, and save."""
        score, step = evaluated(self._net, self._data.validation, self._data.validation_labels), self._step.steps
        line = {"step": step, "accuracy": score.accuracy, "loss": score.loss, "passes": self._passes}
        self._lines.append({**line, "processor_seconds": round(self._seconds, 2)})
        self._folder.write_metrics(self._lines)
        self._save()
        self._told(_progress(step, self._options.steps, self._loss, score, self._seconds, self._net.recipe.tokens))
        if self._enough() and step < self._options.steps:
            self._told(f"ended at step {step:,} of {self._options.steps:,}, by --stop-at {self._options.stop_at:g}")
        elif score.accuracy == 1 and step == 0 < self._options.steps:
            self._told(
                "all validation texts are right already, so that they can tell no progress: --steps 0 keeps this, "
                "--stop-at 1 ends at the first look at which all are right"
            )

    def _save(self) -> None:
        extra = {"lines": self._lines, "passes": self._passes, "seconds": self._seconds}
        self._step.save(self._folder.path, extra, frozen=False)

    def _finished(self) -> dict[str, Any]:
        first, last, log = self._lines[0], self._lines[-1], self._folder.log_file
        result = {
            "rule": self._rule.name, "base": self._net.recipe.base, "labels": list(self._net.recipe.labels),
            "seed": self._options.seed, "steps": self._step.steps, "passes": self._passes,
            "weights": sum(weight.numel() for weight in trained(self._net.model).values()),
            "validation_accuracy_before": first["accuracy"], "validation_accuracy": last["accuracy"],
            "validation_loss_before": first["loss"], "validation_loss": last["loss"],
            "processor_seconds": round(self._seconds, 2), "peak_memory_bytes": peak_memory_bytes(),
            "log_bytes": log.stat().st_size if log.exists() else None, "out": str(self._folder.path),
        }  # fmt: skip
        self._folder.write_result(self._net.model, result)
        return result


def _progress(step: int, steps: int, loss: float, score: Score, seconds: float, tokens: bool) -> str:
    judged = f"{score.loss / 0.6931471805599453:.3f} bits a token" if tokens else f"accuracy {score.accuracy:.1%}"
    if step == 0:
        return f"before the first step: validation {judged}"
    left = seconds / step * (steps - step)
    return f"step {step:,} of {steps:,}: loss {loss:.3f}, validation {judged}, about {left:,.0f} s left"
