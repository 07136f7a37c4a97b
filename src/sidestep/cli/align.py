"""`sidestep align RULE` and `sidestep align RUN`: how well a rule's estimates point along the true gradient."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sidestep import checkpoint
from sidestep.bench.report import png_of
from sidestep.bench.studies.alignment_report import alignment_figure, alignment_table
from sidestep.cli.help import HELP, HELP_ALL
from sidestep.cli.options import DataOptions, data_of, module_from
from sidestep.cli.output import check_new, default_data_dir, error_console, show, show_json, show_table
from sidestep.cli.parse import parsed, parsed_groups
from sidestep.cli.training_options import takes
from sidestep.data import load
from sidestep.errors import InputError
from sidestep.rules import RULES, HasTrueGradient
from sidestep.training import Aligned, Options, align, alignment_curves, load_run
from sidestep.wording import meant

__all__ = ["align_command"]

_HELP = f"""\
usage: sidestep align RULE [OPTIONS]    an untrained net
       sidestep align RUN [OPTIONS]     the net of a trained run, as its folder holds it

rules: {", ".join(name for name, kind in RULES.items() if issubclass(kind, HasTrueGradient))}

Estimates the gradient of one batch of validation images several times, each with noise of its own, and compares with
the true one. `sidestep align RULE --help` explains the options of a rule. To measure while training, give
`sidestep train` the option --align 0.05.
"""


@dataclass(frozen=True)
class AlignOptions:
    """What to measure, and where to write it."""

    estimates: int = 8
    """Estimates of the one batch, each with noise of its own."""
    batch: int = 128
    """Images, the first ones of the validation split."""
    out: Path | None = None
    """Draw the cosines there (.png), for a run trained with --align also those over training."""
    module: str | None = None
    """Image path of your own, FILE.py:NAME."""
    device: str = "auto"
    """Where to compute: auto (a CUDA GPU if there is one, else cpu), cpu, cuda, cuda:1, mps."""
    overwrite: bool = False
    """Let --out replace a file that exists."""
    json: bool = False
    """Print one JSON object; numbers that are infinite or do not exist are null."""


@dataclass(frozen=True)
class AlignRunOptions(AlignOptions):
    """What to measure of a run, and where to write it."""

    data: str | None = None
    """What the run was trained on, if it has moved: a data set, a .npz file or an image folder."""
    data_dir: Path | None = None
    """Folder that is looked in before anything is downloaded. Default: the variable SIDESTEP_DATA."""


@takes("align", Options)
@dataclass(frozen=True)
class AlignRuleOptions(AlignOptions):
    """What to measure of an untrained net, and where to write it."""

    seed: int = 0
    """Seed of the initial weights and the noise."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the estimates; the true gradient is in float32."""


def align_command(arguments: list[str]) -> None:
    """Parse the options, measure, and print the table."""
    if not arguments or arguments[0] in (*HELP, HELP_ALL):
        show(*_HELP.splitlines())
    elif arguments[0] in RULES:
        _align_rule(arguments[0], arguments[1:])
    elif Path(arguments[0]).is_dir():
        _align_run(Path(arguments[0]), arguments[1:])
    else:
        hint = meant(arguments[0], RULES, quoted=False)
        raise InputError(f"{arguments[0]!r} is neither a rule nor the folder of a run: {hint}rules: {', '.join(RULES)}")


def _align_rule(name: str, arguments: list[str]) -> None:
    about = f"Measure how well the estimates of {name} point along the true gradient, in an untrained net."
    groups = {"run": (AlignRuleOptions, None), "data": (DataOptions, None), "rule": (RULES[name], None)}
    look, given, rule = parsed_groups(groups, f"sidestep align {name}", arguments, about)
    _check(look)
    data = load(
        given.data,
        data_dir=given.data_dir or default_data_dir(),
        validation=given.validation,
        size=given.image_size,
        targets=given.targets,
        target=given.target,
        progress=error_console.is_terminal,
    )
    options = Options(batch=look.batch, seed=look.seed, device=look.device, precision=look.precision)
    module = module_from(look.module) if look.module else None
    _report(align(rule, data, options, estimates=look.estimates, module=module), look, {})


def _align_run(folder: Path, arguments: list[str]) -> None:
    about = "Measure how well the estimates of a run's rule point along the true gradient, in its net as it stands."
    look = parsed(AlignRunOptions, f"sidestep align {folder}", arguments, about)
    _check(look)
    # never from the run's own configuration: looking at somebody's run must not run their code
    run = load_run(folder, module=module_from(look.module) if look.module else None, device=look.device)
    found = align(run, data_of(folder, look.data, look.data_dir), Options(batch=look.batch), estimates=look.estimates)
    _report(found, look, alignment_curves(folder))


def _check(look: AlignOptions) -> None:
    if look.out:
        check_new(look.out, look.overwrite, (".png",))


def _report(found: Aligned, look: AlignOptions, curves: dict[str, list[tuple[int, float]]]) -> None:
    if look.out:
        checkpoint.write_bytes(look.out, png_of(alignment_figure(found, curves)))
    if look.json:
        show_json({**found.record(), "training": curves})
        return
    table = alignment_table(found)
    show_table(table.title, table.columns, table.rows)
    if found.left_out:
        show(f"left out, since the loss does not depend on them or the rule does not estimate them: "
             f"{', '.join(found.left_out)}")  # fmt: skip
    if look.out:
        show(f"written: {look.out}")
