"""The command line: `sidestep train RULE`, `eval`, `predict`, `rules`, `data`."""

import difflib
import sys
from collections.abc import Sequence

from sidestep.cli.output import fail, show
from sidestep.errors import SidestepError
from sidestep.training.stopping import Stopped
from sidestep.version import __version__

__all__ = ["main"]

_HELP = """\
usage: sidestep COMMAND ...

Train neural networks without end-to-end back-propagation.

commands:
  train RULE        train a net by a learning rule, e.g.: sidestep train noprop-dt --data mnist --out runs/a
  eval RUN          accuracy of a trained run by every sampler, e.g.: sidestep eval runs/a
  predict RUN FILE  classes of the images in a file, e.g.: sidestep predict runs/a images.npz
  rules             the learning rules
  data              the data sets; `sidestep data show NAME --out grid.png` makes a picture of one

options:
  -h, --help        this help; `sidestep COMMAND --help` and `sidestep train RULE --help` explain each option
  --version         the version
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 if all went well, 2 for wrong input, 1 for other failures, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        show(_HELP)
        return
    if given[0] == "--version":
        show(f"sidestep {__version__}")
        return
    try:
        _dispatch(given[0], given[1:])
    except Stopped as stopped:
        fail(str(stopped), 128 + stopped.signal_number)
    except KeyboardInterrupt:
        fail("stopped at once; the last checkpoint is as it was", 130)
    except SidestepError as error:
        fail(str(error), 2)
    except BrokenPipeError:
        sys.stderr.close()


def _dispatch(command: str, rest: list[str]) -> None:
    # imported here, so that --help and a misspelt command do not wait for torch
    if command == "train":
        from sidestep.cli.train import train_command

        train_command(rest)
    elif command == "eval":
        from sidestep.cli.use import eval_command

        eval_command(rest)
    elif command == "predict":
        from sidestep.cli.use import predict_command

        predict_command(rest)
    elif command == "rules":
        from sidestep.cli.lists import rules_command

        rules_command(rest)
    elif command == "data":
        from sidestep.cli.lists import data_command

        data_command(rest)
    else:
        known = ["train", "eval", "predict", "rules", "data"]
        near = difflib.get_close_matches(command, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        fail(f"unknown command {command!r}{hint} There are: {', '.join(known)}", 2)
