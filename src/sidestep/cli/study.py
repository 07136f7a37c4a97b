"""`sidestep study NAME`: experiments that ask why a rule does as it does, with a table, a page and a picture."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidestep.bench.report import Table, folder_for_study, write_study
from sidestep.bench.studies.blocks import study_blocks
from sidestep.bench.studies.blocks_report import blocks_figure, blocks_tables, blocks_text
from sidestep.cli.bar import TrainingBar
from sidestep.cli.help import HELP, HELP_ALL
from sidestep.cli.output import default_data_dir, error_console, fail, show, show_json, show_line, show_table
from sidestep.cli.parse import parsed
from sidestep.data import DataSet, load
from sidestep.errors import InputError
from sidestep.rules import Backprop, NoPropDT
from sidestep.training import Options, Progress, Stopped
from sidestep.training.lock import only_writer
from sidestep.wording import suggestion

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["study_command"]


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
    parsed(STUDIES[name][1], f"sidestep study {name}", rest)


def _blocks(
    *,
    data: str = "digits",
    data_dir: Path | None = None,
    blocks: int = 10,
    epochs: int | None = None,
    batch: int = 128,
    seeds: int = 3,
    validation: float = 0.1,
    out: Path = Path("runs/study-noprop-blocks"),
    device: str = "auto",
    overwrite: bool = False,
    json: bool = False,
) -> None:  # long: the options of the command
    """Is it the denoising, or just T classifiers? Trains NoProp-DT and back-propagation on the same blocks with several
    seeds, and takes NoProp's chain apart on the test split. Finished runs are loaded; run it again after a stop.

    Args:
        data: Data set, .npz file or image folder.
        data_dir: Folder that is looked in before anything is downloaded. Default: the variable SIDESTEP_DATA.
        blocks: Blocks of both nets (the paper's T).
        epochs: Passes over the training split. Default: 10, or 20 below 5,000 images.
        batch: Images per step.
        seeds: How many seeds, from 0 on; more can be added later.
        validation: Share of the training split kept aside for validation.
        out: Folder of the runs, and of study.json, study.md and study.png.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
        overwrite: Replace the results of a study of other options, or of more seeds, in --out.
        json: Print the record as one JSON object on the last line of standard output.
    """
    found, source = _data(data, data_dir, validation)
    rules = NoPropDT(blocks=blocks), Backprop(blocks=blocks)
    asked = {
        "study": "noprop-blocks",
        "data": data,
        "blocks": blocks,
        "epochs": epochs,
        "batch": batch,
        "validation": validation,
    }  # fmt: skip; more seeds only add to the results
    options = Options(epochs=epochs, batch=batch, device=device, out=folder_for_study(out, asked, overwrite, seeds))
    try:
        with only_writer(out):
            record = study_blocks(*rules, found, options, seeds, source, _watch)
    except Stopped as stopped:
        fail(f"{stopped}; saved in {out}. Continue by running the same command again", 128 + stopped.signal_number)
    except KeyboardInterrupt:  # a second one, or not while training
        fail(f"stopped at once; what is finished is kept in {out}: continue by running the same command again", 130)
    _report(out, {"asked": asked, **record}, blocks_text(record), blocks_tables(record), blocks_figure(record), json)


STUDIES: Mapping[str, tuple[str, Callable[..., None]]] = {
    "noprop-blocks": ("is it the denoising, or just T classifiers? NoProp-DT's chain taken apart", _blocks),
}


def _data(name: str, data_dir: Path | None, validation: float) -> tuple[DataSet, dict[str, Any]]:
    """Return the data and how they can be loaded again."""
    directory = data_dir or default_data_dir()
    found = load(name, data_dir=directory, validation=validation, progress=error_console.is_terminal)
    source = {"name": name, "data_dir": data_dir, "validation": validation}
    return found, {key: value for key, value in source.items() if value is not None}


@contextmanager
def _watch(line: str) -> Iterator[Progress]:
    show_line(line)
    with TrainingBar(line) as bar:
        yield bar


def _report(out: Path, record: dict[str, Any], text: str, tables: list[Table], figure: "Figure", as_json: bool) -> None:
    write_study(out, record, text, tables, figure)
    if as_json:
        show_json(record)
        return
    for table in tables:
        show(f"{table.title}:", "")
        show_table("", table.columns, table.rows)
        show("")
    show(f"written: {out / 'study.json'}, study.md, study.png")
