"""Sidestep: train neural networks without end-to-end back-propagation.

>>> from sidestep import Options, rules, train
>>> run = train(rules.NoPropDT(blocks=2), "digits", Options(epochs=1))
>>> run.result["rule"], run.result["steps"]
('noprop-dt', 10)
"""

from sidestep import data, nets, noise, rules
from sidestep.training import Options, Run, align, load_run, train
from sidestep.version import __version__

__all__ = ["Options", "Run", "__version__", "align", "data", "load_run", "nets", "noise", "rules", "train"]
