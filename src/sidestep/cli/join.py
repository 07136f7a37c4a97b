"""`sidestep join HOST:PORT`, and the other side, `sidestep train RULE --listen HOST:PORT`."""

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro

from sidestep.cli.options import Extra, module_from
from sidestep.cli.output import default_data_dir, error_console, notice, show
from sidestep.cli.parse import parsed
from sidestep.data import DataSet, load, names
from sidestep.data.tables.form import TableForm
from sidestep.errors import InputError
from sidestep.training.joining import join_run
from sidestep.training.progress import Silent
from sidestep.wording import counted, sentence
from sidestep.world import Guest, Host, World
from sidestep.world.address import read_token, settled_token

__all__ = ["join_command", "listening"]


def join_command(arguments: list[str]) -> None:
    """Parse the options, and take part in a run until it ends."""
    parsed(_join, "sidestep join", arguments)


def _join(
    where: Annotated[str, tyro.conf.Positional],
    /,
    token_file: Path | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    module: str | None = None,
    device: str | None = None,
    wait: float = 10.0,
    name: str | None = None,
) -> None:  # long: the options of the command
    """Take a share of every further step of a run, until it ends.

    Rule and options come from the run; the data are on this machine, and are compared with the run's. One who joins may
    go at any time: others take its parts, and the run ends at the same weights.

    Args:
        where: HOST:PORT of `sidestep train RULE --listen HOST:PORT`, or PORT on this machine.
        token_file: Copy of the token's file that the machine that listens has.
        data: Data set, .npz file, table or folder on this machine; by default the data set of the run's name.
        data_dir: Folder that is looked in before anything is downloaded. Default: the variable SIDESTEP_DATA.
        module: Image path that the run is trained with, FILE.py:NAME, if it is one of its own.
        device: Where to compute: auto, cpu, cuda, cuda:1, mps. By default as there.
        wait: Seconds for which to try again where nobody listens yet.
        name: What the run calls this worker, also when it comes back. Default: this machine's name.
    """
    guest = Guest(where, read_token(token_file) if token_file else None, wait,
                  socket.gethostname() if name is None else name)  # fmt: skip
    found = join_run(guest, _loader(data, data_dir), module=module_from(module) if module else None,
                     device=device, progress=_Notices())  # fmt: skip
    show(f"{found.said}; this worker has estimated {counted(found.parts, 'part')}, and sent {found.sent_bytes:,} bytes")


def _loader(data: str | None, data_dir: Path | None) -> Callable[[Mapping[str, Any]], DataSet]:
    """Return what loads the data of a run: no path on this machine is taken from another one."""

    def loaded(config: Mapping[str, Any]) -> DataSet:
        saved, task = config["data"], config["task"]
        name = str(saved.get("name"))
        if data is None and name not in {known.name for known in names()}:
            raise InputError(f"the run is trained on {sentence(name)}: give this machine's copy of it with --data")
        return load(
            data or name,
            data_dir=data_dir or default_data_dir(),
            validation=saved.get("validation", 0.1),
            size=saved.get("size"),
            targets=saved.get("targets", "auto"),
            target=saved.get("target"),
            form=TableForm.from_record(saved, task.get("targets", "classes"), task.get("class_names", ())),
            progress=error_console.is_terminal,
        )

    return loaded


@contextmanager
def listening(extra: Extra, world: World) -> Iterator[Host | None]:
    """Listen where the options say, if they do, until the end of the block."""
    if extra.listen is None:
        if extra.token_file:
            raise InputError(f"--token-file {extra.token_file} is for a run that others join: give --listen, too")
        yield None
        return
    if world.size > 1:
        raise InputError("--listen is for one process, which others join: start it without torchrun")
    token, new = settled_token(extra.token_file) if extra.token_file else (None, False)
    host = Host(extra.listen, token, extra.peer_timeout, extra.check_share)
    if new:
        notice(f"wrote a new token to {extra.token_file}: copy it to the machines that join")
    also = f" --token-file {extra.token_file}" if extra.token_file else ""
    host.announce(f"others can join: sidestep join {host.address}{also}")
    try:
        yield host
    finally:
        host.end("the run has ended", failed=True)


class _Notices(Silent):
    """Prints what a worker should know."""

    def notice(self, text: str) -> None:
        """Print a sentence."""
        notice(text)
