"""`sidestep show RUN`: a page on this machine where one draws a picture and watches a trained net answer."""

from pathlib import Path
from typing import Annotated

import tyro

from sidestep.cli.options import module_from
from sidestep.cli.output import show
from sidestep.cli.parse import parsed
from sidestep.integrations.show import Shown
from sidestep.integrations.show_server import HOST, show_server

__all__ = ["show_command"]


def show_command(arguments: list[str]) -> None:
    """Parse the options, and serve the page until Ctrl-C."""
    parsed(_show, "sidestep show", arguments)


def _show(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    port: int = 8765,
    module: str | None = None,
    device: str = "auto",
) -> None:
    """Serve a page on this machine alone: draw a digit or drop a picture, and see what every block guesses and how the
    answer moves from block to block; for a run that leaves a step log, after any of its steps. Ctrl-C ends it.

    Args:
        run: Folder of the run, on images with classes.
        port: Where the page is: http://127.0.0.1:PORT/; 0 for any port that is free.
        module: Image path the run was trained with, FILE.py:NAME, if it was one of your own.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps.
    """
    shown = Shown(run, module_from(module) if module else None, device)
    with show_server(shown, port) as server:
        show(f"{run} is shown at http://{HOST}:{server.server_address[1]}/ ; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            show("ended")
