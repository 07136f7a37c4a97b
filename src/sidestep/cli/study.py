"""`sidestep study NAME`: experiments that ask why a rule does as it does, with a table, a page and a picture."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sidestep.bench.paper_tables.rows import first_images
from sidestep.bench.report import Table, folder_for_study, write_study
from sidestep.bench.studies.blocks import study_blocks
from sidestep.bench.studies.blocks_report import blocks_figure, blocks_page, blocks_tables, blocks_text
from sidestep.cli.bar import TrainingBar
from sidestep.cli.help import HELP, HELP_ALL
from sidestep.cli.options import DataOptions
from sidestep.cli.output import default_data_dir, error_console, fail, show, show_json, show_line, show_table
from sidestep.cli.parse import parsed_groups
from sidestep.cli.training_options import takes
from sidestep.data import DataSet, load
from sidestep.errors import InputError
from sidestep.rules import Backprop, NoPropDT
from sidestep.training import Options, Progress, Stopped
from sidestep.training.lock import only_writer
from sidestep.wording import suggestion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["study_command"]

_TINY_STEPS = 5


def study_command(arguments: list[str]) -> None:
    """Parse the options, run a study, and print its tables."""
    if not arguments or arguments[0] in (*HELP, HELP_ALL):
        lines = [f"  {name:16}{about}" for name, (about, _) in STUDIES.items()]
        show("usage: sidestep study NAME [OPTIONS]", "", "studies:", *lines, "",
             "`sidestep study NAME --help` explains the options of a study.")  # fmt: skip
        return
    name, rest = arguments[0], arguments[1:]
    if name not in STUDIES:
        said = suggestion(name, STUDIES, f"there are: {', '.join(STUDIES)}")
        raise InputError(f"unknown study {name!r}: {said}")
    STUDIES[name][1](rest)


_ABOUT = """\
Is it the denoising, or just T classifiers? Trains NoProp-DT and back-propagation on the same blocks with several
seeds, and takes NoProp's chain apart on the test split. Finished runs are loaded; run it again after a stop.
"""


@takes("study", Options)
@dataclass(frozen=True)
class StudyOptions:
    """How both nets are trained, and what is kept."""

    budget: Literal["tiny", "full"] = "full"
    """full: as many steps as the other options say, on all images; tiny: 5 steps, or those that are given, on the first
    images, to see that everything runs."""
    seeds: int = 3
    """How many seeds; more can be added later."""
    seed: int = 0
    """The first seed."""
    out: Path = Path("runs/study-noprop-blocks")
    """Folder of the runs, and of study.json, study.md, study.png and study.html."""
    overwrite: bool = False
    """Replace the results of a study of other options, or of more seeds, in --out."""
    json: bool = False
    """Print the record as one JSON object on the last line of standard output."""


@takes("study", DataOptions)
@dataclass(frozen=True)
class StudyData:
    """Which images to train on."""


@dataclass(frozen=True)
class StudyRule:
    """What both nets are made of."""

    blocks: int = 10
    """Blocks of both nets (the paper's T)."""


def _blocks(arguments: Sequence[str]) -> None:
    groups = {"run": (StudyOptions, None), "data": (StudyData, None), "rule": (StudyRule, None)}
    given, images, rule = parsed_groups(groups, "sidestep study noprop-blocks", arguments, _ABOUT)
    found, source = _data(images)
    if given.budget == "tiny":
        found = first_images(found)
        given = given if given.epochs is not None else dataclasses.replace(given, steps=given.steps or _TINY_STEPS)
    rules = NoPropDT(blocks=rule.blocks), Backprop(blocks=rule.blocks)
    names = [each.name for each in dataclasses.fields(Options) if hasattr(given, each.name)]
    trained = {name: getattr(given, name) for name in names}
    asked = {
        "study": "noprop-blocks",
        "data": images.data,
        "blocks": rule.blocks,
        "epochs": given.epochs,
        "batch": given.batch,
        "validation": images.validation,
    }  # fmt: skip; more seeds only add to the results
    plain, kept = Options(), ("device", "out", "overwrite", "checkpoint_seconds")
    asked |= {name: value for name, value in trained.items() if name not in kept and value != getattr(plain, name)}
    asked |= {"budget": given.budget} if given.budget != "full" else {}
    of_data = {"image_size": images.image_size, "target": images.target}
    asked |= {name: value for name, value in of_data.items() if value is not None}
    out = folder_for_study(given.out, asked, given.overwrite, given.seeds)
    options = Options(**{**trained, "out": out, "overwrite": False})
    try:
        with only_writer(out):
            record = study_blocks(*rules, found, options, given.seeds, source, _watch)
    except Stopped as stopped:
        fail(f"{stopped}; saved in {out}. Continue by running the same command again", 128 + stopped.signal_number)
    except KeyboardInterrupt:  # a second one, or not while training
        fail(f"stopped at once; what is finished is kept in {out}: continue by running the same command again", 130)
    pages = blocks_text(record), blocks_tables(record), blocks_figure(record), blocks_page(record)
    _report(out, {"asked": asked, **record}, *pages, given.json)


STUDIES: Mapping[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "noprop-blocks": ("is it the denoising, or just T classifiers? NoProp-DT's chain taken apart", _blocks),
}


def _data(given: Any) -> tuple[DataSet, dict[str, Any]]:
    """Return the data and how they can be loaded again."""
    directory = given.data_dir or default_data_dir()
    found = load(given.data, data_dir=directory, validation=given.validation, size=given.image_size,
                 target=given.target, progress=error_console.is_terminal)  # fmt: skip
    source = {"name": given.data, "data_dir": given.data_dir, "validation": given.validation, "size": given.image_size,
              "target": given.target}  # fmt: skip
    return found, {key: value for key, value in source.items() if value is not None}


@contextmanager
def _watch(line: str) -> Iterator[Progress]:
    show_line(line)
    with TrainingBar(line) as bar:
        yield bar


def _report(
    out: Path, record: dict[str, Any], text: str, tables: list[Table], figure: "Figure", html: str, as_json: bool
) -> None:
    write_study(out, record, text, tables, figure, html)
    if as_json:
        show_json(record)
        return
    for table in tables:
        show(f"{table.title}:", "")
        show_table("", table.columns, table.rows)
        show("")
    show(f"written: {out / 'study.json'}, study.md, study.png, study.html")
