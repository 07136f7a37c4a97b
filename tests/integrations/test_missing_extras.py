"""Doors for libraries that are not installed: the error names the extra."""

import pytest

from sidestep.errors import InputError
from sidestep.integrations import lightning, transformers
from sidestep.rules import SPSA


def test_the_trainer_without_transformers_names_the_extra(monkeypatch):
    monkeypatch.setattr(transformers, "_Trainer", object)  # as it is where the import fails
    with pytest.raises(InputError, match=r"pip install 'sidestep\[transformers\]'"):
        transformers.SidestepTrainer(rule=SPSA())


def test_the_callback_without_lightning_names_the_extra(monkeypatch):
    monkeypatch.setattr(lightning, "_Callback", object)  # as it is where the import fails
    with pytest.raises(InputError, match=r"pip install 'sidestep\[lightning\]'"):
        lightning.SidestepCallback(SPSA())
