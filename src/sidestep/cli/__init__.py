"""The command line: `sidestep train RULE`, `eval`, `predict`, `replay`, `rules`, `data` and others."""

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from sidestep.cli.help import HELP as HELP_WORDS
from sidestep.cli.help import HELP_ALL
from sidestep.cli.launched import check_one_process, rank_in_words
from sidestep.cli.output import data_notices_shown, fail, show
from sidestep.cli.rescue import explained, from_own
from sidestep.cli.streams import all_letters, delivered, output_lost, waiting
from sidestep.errors import SidestepError
from sidestep.version import __version__
from sidestep.wording import suggestion

__all__ = ["main"]


@dataclass(frozen=True)
class _Later:
    """A command of a module here that is imported when the command runs: most import torch, which takes seconds."""

    module: str
    command: str

    def __call__(self, arguments: list[str]) -> None:
        name = f"sidestep.cli.{self.module}"
        new = name not in sys.modules
        gc.disable()  # nothing that imports make is garbage, and looking through it takes a sixth of torch's import
        try:
            with waiting("" if self.module == "catalogue" else "loading torch ..."):
                module = import_module(name)
        except KeyboardInterrupt:
            fail("stopped before anything was started", 130)
        finally:
            if new:
                gc.freeze()  # later passes need not look through it either
            gc.enable()
        getattr(module, self.command)(arguments)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _Later("train", "train_command"),
    "tune": _Later("tune", "tune_command"),
    "join": _Later("join", "join_command"),
    "eval": _Later("evaluate", "eval_command"),
    "predict": _Later("predict", "predict_command"),
    "show": _Later("showing", "show_command"),
    "generate": _Later("generate", "generate_command"),
    "export": _Later("export", "export_command"),
    "runs": _Later("runs", "runs_command"),
    "compare": _Later("runs", "compare_command"),
    "align": _Later("align", "align_command"),
    "replay": _Later("steplog", "replay_command"),
    "inspect": _Later("steplog", "inspect_command"),
    "verify": _Later("steplog", "verify_command"),
    "rules": _Later("catalogue", "rules_command"),
    "presets": _Later("catalogue", "presets_command"),
    "data": _Later("catalogue", "data_command"),
    "bench": _Later("bench", "bench_command"),
    "reproduce": _Later("reproduce", "reproduce_command"),
    "study": _Later("study", "study_command"),
    "fit-memory": _Later("fit_memory", "fit_memory_command"),
}
_SHARED = ("train",)  # commands that several processes do together
_READING = ("rules", "presets")  # commands that write and compute nothing
HELP = """\
usage: sidestep COMMAND ...

Train neural networks without end-to-end back-propagation.

commands:
  train RULE        train a net by a learning rule, e.g.: sidestep train noprop-dt --data mnist --out runs/a
  tune MODEL        a pretrained model learns your texts, e.g.: sidestep tune MODEL --data a.csv --target label
  join HOST:PORT    help with a run that `sidestep train RULE --listen HOST:PORT` trains there, from any machine
  eval RUN          accuracy of a trained run by every sampler, e.g.: sidestep eval runs/a
  predict RUN FILE  classes of images, answers for a table's rows: sidestep predict runs/a photo.jpg more/ --out a.csv
  show RUN          a page on this machine: draw a picture, watch every block answer, e.g.: sidestep show runs/a
  generate RUN      text from a net of next tokens, e.g.: sidestep generate runs/a --prompt "To be" --temperature 0.8
  export RUN FILE   a trained net for other programs, e.g.: sidestep export runs/a model.onnx --check
  runs              the runs in a folder: rule, data, seed, accuracy, finished or not, size
  compare RUN RUN   is one run better than another on the same test images, or is it chance?
  align RULE | RUN  how well a rule's estimates point along the true gradient, layer by layer, untrained or in a run
  replay LOG        rebuild a trained net from its step log, e.g.: sidestep replay runs/a --out model.safetensors
  inspect LOG       what a step log holds, and its size beside the packed weights
  verify LOG RUN    replay a step log and compare with the weights of a run, bit for bit
  rules             the learning rules
  presets           named recipes for `sidestep train --preset NAME`, among them every cell of NoProp's tables
  data              the data sets; `sidestep data show NAME --out grid.png` makes a picture of one
  bench             rules side by side: accuracy, time, memory and bytes, e.g.: sidestep bench --rules all --to 0.96
  reproduce TABLE   train a table of the NoProp paper, e.g.: sidestep reproduce noprop-table1 --budget tiny
  fit-memory        which ways to train fit into a budget of memory, e.g.: sidestep fit-memory --budget 512MiB
  study NAME        an experiment that asks why, e.g.: sidestep study noprop-blocks

options:
  -h, --help        this help; `sidestep COMMAND --help` and `sidestep train RULE --help` explain the options
  --help-all        after a command: the options that few need, too
  --version         the version
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 if all went well, 2 for wrong input, 128 + signal if it was stopped.

    1 if what was printed could not be written, or a command's own answer is no; 70 for a mistake of ours.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    all_letters()
    with delivered():
        _run(_begun, given)


def _begun(given: list[str]) -> None:
    odd = [word for word in given if "\0" in word]
    if odd:
        fail(f"{odd[0]!r} holds a NUL character, which no name of a file can hold; leave it out", 2)
    if not given or given[0] in (*HELP_WORDS, HELP_ALL, "help"):
        show(*HELP.splitlines())
    elif given[0] == "--version":
        show(f"sidestep {__version__}")
    elif given[0] not in COMMANDS:
        said = suggestion(given[0], COMMANDS, f"there are: {', '.join(COMMANDS)}")
        fail(f"unknown command {given[0]!r}: {said}", 2)
    else:
        if given[0] not in (*_READING, *_SHARED) and not {*HELP_WORDS, HELP_ALL} & set(given[1:]):
            check_one_process()
        COMMANDS[given[0]](given[1:])


def _run(command: Callable[[list[str]], None], given: list[str]) -> None:
    try:
        with data_notices_shown():
            command(given)
    except KeyboardInterrupt:
        fail(f"{rank_in_words()}stopped at once; if a checkpoint was written, it is whole: go on by --resume", 130)
    except SidestepError as error:
        fail(f"{rank_in_words()}{error}", 2)
    except BaseException as error:  # no traceback leaves the command line
        if output_lost(error) or (isinstance(error, SystemExit) and not from_own(error)):
            raise
        fail(*explained(error))
