"""The variant of a paper's method that a rule's options make is said, and is true of every preset."""

import dataclasses
import json

import pytest

from sidestep import Options, rules, train
from sidestep.cli import main
from sidestep.presets.catalogue import PRESETS
from sidestep.rules import RULES
from sidestep.rules.shared.variant import HasVariant, variant_of

KINDS = [kind for kind in RULES.values() if isinstance(kind(), HasVariant)]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_the_papers_presets_are_as_in_the_paper_and_the_improved_ones_are_not(preset):
    found = variant_of(RULES[preset.rule](**preset.options))
    if found is None:
        assert RULES[preset.rule] not in KINDS
    elif preset.table:
        assert found.startswith("trained as in the paper; read by ")
        assert f"the paper's reading: {preset.reading})" in found
    elif "-best-" in preset.name:
        assert found.startswith("not the paper's: trained with ")
        assert "loss = cross-entropy" in found


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_that_leaves_the_paper_is_named_and_only_those(kind):
    assert set(kind.paper_options) <= {field.name for field in dataclasses.fields(kind)}
    assert kind.paper_reading in kind.readings
    paper = kind(**{name: values[0] for name, values in kind.paper_options.items()})
    assert variant_of(paper).startswith("trained as in the paper")
    for name, value in {"unit_norm": True, "learning_rate": 2e-3, "embedding": "orthogonal"}.items():
        found = variant_of(dataclasses.replace(paper, **{name: value}))
        assert found.startswith(f"not the paper's: trained with {name} = {value}; read by")


def test_defaults_of_ct_and_fm_are_not_the_paper_s():
    for rule in (rules.NoPropCT(), rules.NoPropFM()):
        assert variant_of(rule).startswith("not the paper's: trained with ")
        assert "loss = cross-entropy" in variant_of(rule)
    assert "schedule = linear" in variant_of(rules.NoPropCT())
    assert "prediction = label" in variant_of(rules.NoPropFM())


def test_tables_and_results_say_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = variant_of(rules.NoPropFM(steps=1, draws=1))
    main(["train", "noprop-fm", "--epochs", "0", "--steps", "1", "--draws", "1", "--out", "run"])
    assert f"variant: {wanted}" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "result.json").read_text())["variant"] == wanted
    main(["eval", "run", "--reading", "euler"])
    assert f"variant: {wanted}" in capsys.readouterr().out
    main(["rules"])
    assert f"noprop-ct, by default: {variant_of(rules.NoPropCT())}" in capsys.readouterr().out
    main(["rules", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["noprop-ct"]["variant"] == variant_of(rules.NoPropCT())
    assert told["spsa"]["variant"] is None


def test_a_rule_of_no_paper_says_nothing():
    assert train(rules.Backprop(net="linear"), "digits", Options(epochs=0)).result["variant"] is None
