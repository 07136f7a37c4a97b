"""`sidestep tune`: a pretrained model learns labels or next tokens, goes on to the same bits, is kept as its log."""

import csv
import json
import shutil

import pytest
import torch

from sidestep.cli import main
from sidestep.errors import CheckpointError, InputError
from sidestep.noise import Noise
from sidestep.steplog import LogReader

transformers = pytest.importorskip("transformers")

from sidestep.integrations.tuning import TuneOptions, head, tune  # noqa: E402
from sidestep.integrations.tuning import run as running  # noqa: E402
from sidestep.integrations.tuning.net import built  # noqa: E402
from sidestep.integrations.tuning.recipe import Recipe  # noqa: E402
from sidestep.integrations.tuning.use import answers_of, different_weights, evaluate_tuned, load_tuned, replayed  # noqa: E402

GOOD, BAD, OTHER = ("good", "fine", "great"), ("bad", "awful", "poor"), ("film", "plot", "is", "was", "the", "a")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAIR = {"pairs": 1, "sides": "both", "learning_rate": 1e-3}


def sentences(count, seed=0):
    draws = Noise(seed).integers(count * 8, 6).view(count, 8).tolist()
    rows = []
    for row in draws:
        good = row[0] < 3
        rows.append((" ".join([(GOOD if good else BAD)[row[1] % 3], *(OTHER[k] for k in row[2 : 3 + row[1]])]), good))
    return rows


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A BERT, a sentence encoder and a GPT-2 of a few thousand weights, and texts."""
    place = tmp_path_factory.mktemp("tune")
    words = [*SPECIAL, *GOOD, *BAD, *OTHER]
    for name in ("bert", "encoder", "gpt"):
        (place / name).mkdir()
        tokenizer(words).save_pretrained(place / name)
        transformers.set_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        if name == "gpt":
            config = transformers.GPT2Config(
                vocab_size=len(words), n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=2, eos_token_id=3
            )
            model = transformers.GPT2LMHeadModel(config)
        else:
            model = transformers.BertModel(
                transformers.BertConfig(vocab_size=len(words), max_position_embeddings=16, **sizes)
            )
        model.save_pretrained(place / name)
    for file, count, seed in (("train.csv", 200, 0), ("test.csv", 60, 1)):
        with (place / file).open("w", newline="") as handle:
            csv.writer(handle).writerows(
                [("text", "label"), *((text, "yes" if good else "no") for text, good in sentences(count, seed))]
            )
    (place / "text.txt").write_text(" ".join(text for text, _ in sentences(120)))
    return place


def tokenizer(words):
    return transformers.BertTokenizer(vocab={word: place for place, word in enumerate(words)})


def options(home, out, **given):
    return TuneOptions(**{"data": home / "train.csv", "target": "label", "steps": 4, "out": out, **given})


def tuned(home, out, named=PAIR, model="encoder", **given):
    return tune(str(home / model), options(home, out, **given), named)


def weights(run):
    return {name: weight.detach().clone() for name, weight in load_tuned(run).model.named_parameters()}


def test_a_fitted_output_layer_reads_the_labels_off_a_frozen_model(home, tmp_path):
    result = tuned(home, tmp_path / "a", steps=0)
    assert result["validation_accuracy"] > 0.9  # of a random model: the mean of its states knows which words there are
    drawn = tuned(home, tmp_path / "b", steps=0, head="drawn")
    assert drawn["validation_accuracy"] < 0.8
    count, score = evaluate_tuned(tmp_path / "a", home / "test.csv", None, None, None, "cpu")
    assert count == 60
    assert score.accuracy > 0.9


def test_a_run_that_is_replaced_stays_until_the_new_one_can_begin(home, tmp_path):
    tuned(home, tmp_path / "a", steps=1)
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    for model, more in (("nowhere", {}), ("encoder", {"length": 17}), ("encoder", {"target": "lable"})):
        with pytest.raises(InputError):
            tuned(home, tmp_path / "a", model=model, overwrite=True, **more)
        assert {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()} == before
    tuned(home, tmp_path / "a", {}, rule="backprop", steps=1, overwrite=True)
    assert not (tmp_path / "a" / "steps.steplog").exists()


def test_the_output_layer_is_fitted_to_all_labels_of_a_long_table_that_is_sorted_by_them(home, tmp_path, monkeypatch):
    monkeypatch.setattr(head, "_MOST", 40)
    with (home / "train.csv").open(newline="") as source, (tmp_path / "sorted.csv").open("w", newline="") as handle:
        first, *rest = csv.reader(source)
        csv.writer(handle).writerows([first, *sorted(rest, key=lambda row: row[1])])
    assert tuned(home, tmp_path / "a", steps=0, data=tmp_path / "sorted.csv")["validation_accuracy"] > 0.9


def test_back_propagation_learns_and_its_parts_sum_to_the_whole(home, tmp_path):
    common = {"rule": "backprop", "learning_rate": 1e-2, "steps": 40, "head": "drawn"}
    result = tuned(home, tmp_path / "a", {}, "encoder", **common)
    assert result["validation_accuracy"] > 0.9
    assert result["log_bytes"] is None
    dropout = json.loads((home / "encoder" / "config.json").read_text())["hidden_dropout_prob"]
    assert dropout > 0  # so parts and whole meet other masks, and end elsewhere, but learn as well
    parts = tuned(home, tmp_path / "b", {}, "encoder", micro_batches=4, checkpointed=True, **common)
    assert parts["validation_accuracy"] > 0.9
    assert parts["passes"] == 4 * 40


def test_parts_of_a_batch_have_the_gradient_of_the_whole(home):
    recipe = Recipe("", ("no", "yes"), "all", 0, 16, 0)
    net = built(str(home / "encoder"), recipe, torch.device("cpu"))
    rows, labels = net.encoded([text for text, _ in sentences(8)]), torch.tensor([0, 1] * 4)
    parts = [lambda at=at: net.loss(net.batch(rows, range(at, at + 2)), labels[at : at + 2]) for at in range(0, 8, 2)]
    found = running.summed_gradients(net.model, parts, Noise(0)).gradients
    net.loss(net.batch(rows, range(8)), labels).backward()
    for name, weight in net.model.named_parameters():
        assert torch.allclose(found[name], weight.grad, atol=1e-6), name


@pytest.mark.parametrize("part", ["norms", "head", "all"])
def test_only_what_is_trained_moves_and_is_kept(part, home, tmp_path):
    tuned(home, tmp_path / "a", train=part)
    moved = weights(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "tune.json").read_text())
    net = built(str(home / "encoder"), Recipe.of(config["recipe"], ""), torch.device("cpu"))
    for name, weight in net.model.named_parameters():
        small = name.startswith("head") or name.endswith("bias") or "LayerNorm" in name
        wanted = {"norms": small, "head": name.startswith("head"), "all": True}[part]
        assert (not torch.equal(weight, moved[name])) == wanted or name.endswith("token_type_embeddings.weight"), name


@pytest.mark.parametrize("model", ["encoder", "bert", "gpt"])
def test_the_log_gives_the_same_bits_into_the_base_model_and_no_other(model, home, tmp_path):
    given = {"data": home / "text.txt", "target": None, "length": 8} if model == "gpt" else {}
    given |= {"reads": "own"} if model == "bert" else {}
    tuned(home, tmp_path / "a", model=model, steps=6, **given)
    log = tmp_path / "a" / "steps.steplog"
    assert different_weights(log, tmp_path / "a", None) == (6, [])
    assert LogReader(log).header.training["decay"] == "linear"
    shutil.copytree(home / model, tmp_path / "other")
    kind = transformers.AutoModelForCausalLM if model == "gpt" else transformers.AutoModel
    other = kind.from_pretrained(home / model)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="weights are not those that the log starts from"):
        replayed(log, str(tmp_path / "other"))


@pytest.mark.parametrize("rule", ["spsa", "backprop"])
def test_a_stopped_run_goes_on_to_the_same_bits(rule, home, tmp_path, monkeypatch):
    named = PAIR if rule == "spsa" else {}
    tuned(home, tmp_path / "whole", named, rule=rule, steps=8, evaluate_every=3)
    taken, take = [], running._Run._take

    def killed(self):
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(1)
        return take(self)

    monkeypatch.setattr(running._Run, "_take", killed)
    with pytest.raises(KeyboardInterrupt):
        tuned(home, tmp_path / "cut", named, rule=rule, steps=8, evaluate_every=3)
    monkeypatch.undo()
    with pytest.raises(InputError, match="--resume"):
        tuned(home, tmp_path / "cut", named, rule=rule, steps=8, evaluate_every=3)
    with pytest.raises(InputError, match="begun with steps = 8, and now it is 9"):
        tuned(home, tmp_path / "cut", named, rule=rule, steps=9, evaluate_every=3, resume=True)
    tuned(home, tmp_path / "cut", named, rule=rule, steps=8, evaluate_every=3, resume=True)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(weight, cut[name]) for name, weight in whole.items())
    if rule == "spsa":
        assert different_weights(tmp_path / "cut" / "steps.steplog", tmp_path / "whole", None) == (8, [])


def test_a_run_ends_where_enough_validation_texts_are_right(home, tmp_path):
    said = []
    tune(str(home / "encoder"), options(home, tmp_path / "a", steps=2), PAIR, said.append)
    assert any("all validation texts are right already" in line for line in said)
    said.clear()
    result = tune(str(home / "encoder"), options(home, tmp_path / "b", steps=2, stop_at=0.9), PAIR, said.append)
    assert (result["steps"], result["validation_accuracy"] >= 0.9) == (0, True)
    assert said[-1] == "ended at step 0 of 2, by --stop-at 0.9"
    assert different_weights(tmp_path / "b" / "steps.steplog", tmp_path / "b", None) == (0, [])
    settings = {"rule": "backprop", "named": {"learning_rate": 0.01}, "head": "drawn", "steps": 60, "stop_at": 0.9}
    first = tuned(home, tmp_path / "c", **settings, evaluate_every=5)
    assert 0 < first["steps"] < 60
    assert first["steps"] % 5 == 0
    again = tuned(home, tmp_path / "c", **settings, evaluate_every=5, resume=True)
    assert again["steps"] == first["steps"]
    with pytest.raises(InputError, match="stop_at must be above 0 and at most 1"):
        options(home, tmp_path / "d", stop_at=2.0)
    with pytest.raises(InputError, match="leave --stop-at out"):
        tuned(home, tmp_path / "d", model="gpt", data=home / "text.txt", target=None, length=8, stop_at=0.5)


def test_other_texts_or_labels_than_the_run_was_begun_with_are_refused(home, tmp_path):
    tuned(home, tmp_path / "a", steps=1)
    table = (home / "train.csv").read_text()
    other = tmp_path / "other.csv"
    for text, said in (
        (table.replace(",yes", ",right"), r"begun with the labels no, yes, and .*other\.csv has no, right"),
        (table.replace(",no", ",yes", 1), "begun with other texts or labels"),
        (table + "good film,yes\n", "begun with other texts or labels"),
    ):
        other.write_text(text)
        with pytest.raises(InputError, match=said):
            tuned(home, tmp_path / "a", steps=1, data=other, resume=True)


def test_the_command_line_tunes_evaluates_predicts_replays_and_verifies(home, tmp_path, capsys):
    def ran(*words):
        with pytest.raises(SystemExit) if words[0] == "fails" else _nothing() as ended:
            main(list(map(str, words[words[0] == "fails" :])))
        return capsys.readouterr(), ended

    run, base = tmp_path / "run", home / "encoder"
    said, _ = ran(
        "tune", base, "--data", home / "train.csv", "--target", "label", "--steps", 3, "--out", run, "--set", "pairs=2"
    )
    assert "validation accuracy" in said.out
    assert "before the first step" in said.err
    said, _ = ran("runs", tmp_path, "--json")
    (listed,) = json.loads(said.out)["runs"]
    assert (listed["rule"], listed["data"], listed["finished"]) == ("spsa", str(base), True)
    assert listed["score"] == json.loads((run / "result.json").read_text())["validation_accuracy"]
    said, _ = ran("eval", run, "--data", home / "test.csv", "--json")
    assert json.loads(said.out)["rows"] == 60
    (tmp_path / "lines.txt").write_text("good film\n\nawful plot\n")
    ran("predict", run, tmp_path / "lines.txt", "--out", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as handle:
        assert [row["label"] for row in csv.DictReader(handle)] == ["yes", "no"]
    said, _ = ran("replay", run / "steps.steplog", "--base", base, "--out", tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").exists()
    assert "3 steps replayed" in said.out
    said, _ = ran("verify", run, run)
    assert "bit for bit" in said.out
    said, ended = ran("fails", "tune", base, "--target", "label")
    assert ended.value.code == 2
    assert "--data names the texts" in said.err


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_what_cannot_be_tuned_is_refused_in_a_sentence(home, tmp_path, monkeypatch):
    for words, given in {
        "there must be two or more": {"target": "text", "text": "label", "data": _one_label(tmp_path)},
        "say which holds the labels": {"target": None},
        "has no column 'labl'": {"target": "labl"},
        "checkpointed saves activations of a backward pass": {"checkpointed": True},
        "multiple of micro_batches": {"rule": "backprop", "micro_batches": 5},
        "rule must be one of": {"rule": "hebbian"},
        "has 16 positions": {"length": 17},
        "are for validation: that leaves .* and 4,000 or more are needed": {"batch": 4000},
    }.items():
        with pytest.raises(InputError, match=words):
            tuned(home, tmp_path / "a", {}, **given)
        assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match=r"there is no folder .*nothing; give one with config\.json"):
        tuned(home, tmp_path / "a", model="nothing")
    (home / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be opened as a model of transformers"):
        tuned(home, tmp_path / "a", model="empty")
    with pytest.raises(InputError, match="nothing is left to train"):
        tuned(home, tmp_path / "a", model="gpt", data=home / "text.txt", target=None, length=8, train="head")


def test_token_ids_beyond_the_embedding_are_refused(home, tmp_path):
    words = [f"w{number}" for number in range(40)]
    place = tmp_path / "more"
    place.mkdir()
    transformers.BertModel.from_pretrained(home / "bert").save_pretrained(place)
    tokenizer([*SPECIAL, *words]).save_pretrained(place)
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"w3{n % 10} w1,{n % 2}\n" for n in range(60)))
    with pytest.raises(InputError, match="the tokenizer gives the token id"):
        tune(str(place), options(home, tmp_path / "a", data=tmp_path / "t.csv"), PAIR)


def test_a_model_that_draws_outside_of_the_seed_is_refused(home, tmp_path, monkeypatch):
    loss, calls = running.TextNet.loss, []

    def drawn(self, batch, labels):
        calls.append(1)
        return loss(self, batch, labels) + 0.01 * len(calls)

    monkeypatch.setattr(running.TextNet, "loss", drawn)
    with pytest.raises(InputError, match="not deterministic under one seed"):
        tuned(home, tmp_path / "a")


def _one_label(place):
    (place / "one.csv").write_text("text,label\n" + "same,film\n" * 50)
    return place / "one.csv"


def test_adapters_alone_move_and_are_kept(home, tmp_path):
    pytest.importorskip("peft")
    result = tuned(home, tmp_path / "a", {}, rule="backprop", learning_rate=3e-3, steps=20, lora=2)
    assert result["weights"] < 1500
    assert (tmp_path / "a" / "model.safetensors").stat().st_size < 20_000
    assert tuned(home, tmp_path / "b", lora=2)["weights"] == result["weights"]
    assert different_weights(tmp_path / "b" / "steps.steplog", tmp_path / "b", None) == (4, [])


def test_answers_are_the_labels(home, tmp_path):
    tuned(home, tmp_path / "a", steps=0)
    (tmp_path / "t.txt").write_text("great film\npoor the plot\n")
    texts, labels, shares = answers_of(tmp_path / "a", tmp_path / "t.txt", None, None, "cpu")
    assert texts == ["great film", "poor the plot"]
    assert labels == ["yes", "no"]
    assert min(shares) > 0.5
