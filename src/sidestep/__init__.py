"""Sidestep: train neural networks without end-to-end back-propagation.

>>> from sidestep import Options, rules, train
>>> run = train(rules.NoPropDT(blocks=2), "digits", Options(epochs=1))
>>> run.result["rule"], run.result["steps"]
('noprop-dt', 10)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sidestep.version import __version__

__all__ = [
    "STOP",
    "CsvLog",
    "EarlyStop",
    "Options",
    "Run",
    "TensorBoard",
    "__version__",
    "align",
    "ask_tell",
    "attach",
    "data",
    "load_run",
    "nets",
    "noise",
    "replay",
    "rules",
    "testing",
    "train",
]

if TYPE_CHECKING:
    from sidestep import data, nets, noise, rules, testing
    from sidestep.training import STOP, CsvLog, EarlyStop, Options, Run, TensorBoard, load_run, replay, train
    from sidestep.training.align import align
    from sidestep.training.ask_tell import ask_tell
    from sidestep.training.attach import attach
else:
    # torch takes seconds to import: what needs it comes when it is asked for, so that the command line, whose entry
    # lies in this package, can be stopped meanwhile
    def __getattr__(name: str) -> Any:
        if name in __all__ and name not in ("data", "nets", "noise", "rules", "testing"):
            globals()[name] = getattr(import_module("sidestep.training"), name)
            return globals()[name]
        if name.isidentifier() and not name.startswith("_"):
            try:
                return import_module(f"sidestep.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"sidestep.{name}":
                    raise
        raise AttributeError(f"module 'sidestep' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
