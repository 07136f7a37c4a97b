"""`sidestep tune MODEL --data FILE`: a pretrained model learns labels of texts, or next tokens, by any rule."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidestep.cli.help import HELP, HELP_ALL
from sidestep.cli.options import Repeated, all_words, settings
from sidestep.cli.output import fail, notice, show, show_json
from sidestep.cli.parse import parsed_groups
from sidestep.errors import InputError
from sidestep.training.stopping import Stopped

__all__ = ["tune_command"]

_ABOUT = """Fine-tune a pretrained model of transformers on texts.

MODEL is a folder with config.json, weights and the tokenizer's files, or a name where a hub is reached. For instance
`sidestep tune sentence-transformers/all-MiniLM-L6-v2 --data reviews.csv --target label`, then
`sidestep eval RUN --data test.csv` and `sidestep predict RUN texts.txt`."""


@dataclass(frozen=True)
class Extra:
    """Everything else."""

    set: Repeated = ()
    """Hyper-parameters of the rule, NAME=VALUE, e.g. --set pairs=8 eps=1e-3 (`sidestep train RULE --help` has them)."""
    json: bool = False
    """Print one JSON object, the last line of standard output."""


def tune_command(arguments: list[str]) -> None:
    """Parse the options, fine-tune, and print the result."""
    from sidestep.integrations.tuning import TuneOptions, tune

    asked = set(arguments) & {*HELP, HELP_ALL}
    if not asked and (not arguments or arguments[0].startswith("-")):
        raise InputError("give the model first: sidestep tune MODEL --data FILE --target COLUMN")
    model, rest = ("", arguments) if asked else (arguments[0], arguments[1:])
    groups: Any = {"options": (TuneOptions, None), "other": (Extra, None)}
    options, extra = parsed_groups(groups, "sidestep tune MODEL", rest, _ABOUT)
    if not any(word.split("=")[0] == "--data" for word in rest):
        raise InputError("--data names the texts: a table (.csv) with --target, or a text (.txt)")
    try:
        result = tune(model, options, settings(all_words(extra.set)), notice)
    except Stopped as stopped:
        words = [word for word in arguments if word not in ("--resume", "--overwrite")]
        again = shlex.join(["sidestep", "tune", *words, "--resume"])
        fail(f"{stopped}; saved. Continue with: {again}", 128 + stopped.signal_number)
    if extra.json:
        show_json(result)
        return
    _report(result)


def _report(result: dict[str, Any]) -> None:
    before, after, out = result["validation_accuracy_before"], result["validation_accuracy"], result["out"]
    if not result["labels"]:
        bits = [result[name] / 0.6931471805599453 for name in ("validation_loss_before", "validation_loss")]
        show(f"validation: {bits[0]:.3f} bits a token before, {bits[1]:.3f} after")
    else:
        show(f"validation accuracy: {before:.1%} before the first step, {after:.1%} after")
    show(
        f"{result['rule']}: {result['steps']:,} steps, {result['passes']:,} forward passes, {result['weights']:,} "
        f"weights trained, {result['processor_seconds']:,.0f} processor seconds"
    )
    if result["log_bytes"]:
        show(f"the fine-tune as its log: {result['log_bytes']:,} bytes, {Path(out) / 'steps.steplog'}")
    show(f"written: {out}")
