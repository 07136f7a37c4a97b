"""Doors for libraries that are not installed: the error names the extra."""

import pytest

from sidestep.errors import InputError
from sidestep.integrations import lightning, transformers
from sidestep.integrations.tuning import TuneOptions, net, tune
from sidestep.rules import SPSA


def test_the_trainer_without_transformers_names_the_extra(monkeypatch):
    monkeypatch.setattr(transformers, "_Trainer", object)  # as it is where the import fails
    with pytest.raises(InputError, match=r"pip install 'sidestep\[transformers\]'"):
        transformers.SidestepTrainer(rule=SPSA())


def test_the_callback_without_lightning_names_the_extra(monkeypatch):
    monkeypatch.setattr(lightning, "_Callback", object)  # as it is where the import fails
    with pytest.raises(InputError, match=r"pip install 'sidestep\[lightning\]'"):
        lightning.SidestepCallback(SPSA())


def test_a_fine_tune_without_transformers_names_the_extra(monkeypatch, tmp_path):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(net.importlib, "import_module", missing)
    (tmp_path / "a.csv").write_text("text,label\ngood,1\nbad,0\n")
    options = TuneOptions(data=tmp_path / "a.csv", target="label", out=tmp_path / "run")
    with pytest.raises(InputError, match=r"needs transformers, which is missing: pip install 'sidestep\[tune\]'"):
        tune("model", options)
