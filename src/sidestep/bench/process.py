"""Work in a fresh process: what it reports on its way, what it finds, and how it failed if it did."""

import multiprocessing
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, cast

from torch import OutOfMemoryError, set_num_threads

from sidestep.data import notices
from sidestep.data.notices import DataNotice
from sidestep.errors import NonFiniteError, SidestepError
from sidestep.training import Stopped
from sidestep.training.stopping import StopRequest

__all__ = ["FAILED", "Work", "failure", "run_in_process"]

FAILED = "failed"  # key of the record of work that failed
_LOOK = 0.2  # seconds between two looks whether to stop

Work = Callable[[Any, Callable[[Any], None]], dict[str, Any]]


def run_in_process(
    work: Work, given: Any, report: Callable[[Any], None], stop: StopRequest, threads: int | None = None
) -> dict[str, Any]:
    """Call `work(given, report)` in a fresh process, and return its record, or one that says how it failed.

    The process is started anew (spawn), so nothing of an earlier run is in its memory. It does not see Ctrl-C: whoever
    waits for it decides. What it prints goes where the parent's output goes.

    Args:
        work: a function of a module.
        given: what it gets; like everything that passes between processes, plain values or dataclasses.
        report: called here with whatever the work reports there.
        stop: asked while waiting.
        threads: of torch in the new process; by default as many as torch takes by itself.

    Returns:
        The work's record, or `{"failed": {"kind": ..., "why": ...}}`.

    Raises:
        Stopped: if a stop was requested; the process is then ended.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_in_there, args=(there, work, given, threads), daemon=True)
    process.start()
    there.close()
    try:
        while True:
            if stop.requested:
                raise Stopped("stopped", 0, stop.signal_number)
            if not here.poll(_LOOK):
                continue
            try:
                kind, value = here.recv()
            except EOFError:  # it ended without a word
                process.join()
                return {FAILED: _ended(process.exitcode or 0)}
            if kind == "record":
                return dict(value)
            if kind == "notice":
                notices.report(value)
                continue
            report(value)
    finally:
        process.join(timeout=5 if not stop.requested else 0)
        process.kill()
        process.join()
        here.close()


def failure(error: BaseException) -> dict[str, str]:
    """Return the kind of an error, and why, in a line."""
    why = f"{type(error).__name__}: {error}".splitlines()[0]
    lacks = ("out of memory", "can't allocate memory", "not enough memory")  # torch raises a RuntimeError on a CPU
    if isinstance(error, MemoryError | OutOfMemoryError) or any(words in str(error) for words in lacks):
        return {"kind": "out of memory", "why": why}
    if isinstance(error, NonFiniteError):
        return {"kind": "not finite", "why": str(error).partition(";")[0]}
    return {"kind": "refused" if isinstance(error, SidestepError) else "error", "why": why}


def _ended(status: int) -> dict[str, str]:
    if status >= 0:
        return {"kind": "error", "why": f"the process ended with status {status} and without a result"}
    name = signal.Signals(-status).name
    memory = ", for instance by the system for lack of memory" if name == "SIGKILL" else ""
    return {"kind": "killed", "why": f"the process was ended by {name}{memory}"}


@contextmanager
def _notices_sent(there: Connection) -> Iterator[None]:
    """Let the parent tell what loaders have to tell of data: it knows how, and whether it was shown before."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataNotice)
        others = warnings.showwarning

        def send(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, DataNotice):
                there.send(("notice", str(message)))
            else:
                others(message, category, *rest, **more)

        warnings.showwarning = cast("Any", send)
        yield


def _in_there(there: Connection, work: Work, given: Any, threads: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if threads:
        set_num_threads(threads)
    try:
        with _notices_sent(there):
            record = work(given, lambda value: there.send(("report", value)))
    except BrokenPipeError:  # nobody waits any more
        return
    except Exception as error:  # whatever a rule, a module or torch may raise: the others are to go on
        record = {FAILED: failure(error)}
    there.send(("record", record))
    there.close()
