"""A text from the command line: training on a file, the log, and text from the net."""

import json
import shutil

import pytest
import torch
from torch import nn

from sidestep import Options, data, load_run, train
from sidestep.cli import main
from sidestep.errors import DataError, InputError
from sidestep.rules import Backprop, NoiseStep
from sidestep.training.generate import generate

TEXT = "abcab cabbac\n" * 100


def run(capsys, *words):
    status = 0
    try:
        main(list(words))
    except SystemExit as end:
        status = end.code or 0
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with a text and a run that knows it by heart."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "tiny.txt").write_text(TEXT, encoding="utf-8")
    rule = NoiseStep(hidden=(64,), flip_share=0.02)
    train(rule, str(folder / "tiny.txt"), Options(epochs=50, batch=4, decay="cosine", out=folder / "run"))
    return folder


@pytest.fixture(scope="module")
def trained(kept):
    return load_run(kept / "run")


def test_a_text_file_is_data_and_the_log_replays_to_the_run(kept, capsys, tmp_path, monkeypatch):
    shutil.copy(kept / "tiny.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["noise-step", "--hidden", "8", "8", "--estimator", "local-probes", "--steps", "3"]
    assert run(capsys, "train", *words, "--data", "tiny.txt")[0] == 0
    folder = "runs/noise-step-tiny-0"
    assert run(capsys, "verify", f"{folder}/steps.steplog", folder)[0] == 0
    status, out, _ = run(capsys, "eval", folder, "--json")
    assert status == 0
    assert "forward" in out
    assert run(capsys, "train", "noise-step", "--resume", "--out", folder, "--steps", "4")[0] == 0
    (tmp_path / "tiny.txt").write_text(TEXT.replace("a", "d"), encoding="utf-8")
    status, _, error = run(capsys, "eval", folder)
    assert status == 2
    assert "is not what" in error


def test_predict_names_the_command_that_writes_text(kept, capsys):
    status, _, error = run(capsys, "predict", str(kept / "run"), str(kept / "tiny.txt"))
    assert status == 2
    assert f"sidestepgenerate{kept / 'run'}" in "".join(error.split())  # wherever lines are broken


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "odd.txt").write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(DataError, match=r"odd.txt is no UTF-8 text \(byte 3\)"):
        data.load(tmp_path / "odd.txt")
    with pytest.raises(InputError, match="targets of a text are its next characters"):
        data.load(tmp_path / "odd.txt", targets="values")
    with pytest.raises(DataError, match="no such file"):
        data.load(tmp_path / "none.txt")


class TestGenerate:
    def test_the_likeliest_text_is_the_one_learnt_by_heart(self, trained):
        assert generate(trained, "abcab ", 60, temperature=0) == TEXT[6:66]

    def test_the_same_seed_gives_the_same_text_and_another_one_another(self, trained):
        text = generate(trained, "a", 40, temperature=20.0, seed=1)
        assert text == generate(trained, "a", 40, temperature=20.0, seed=1)
        assert text.startswith(generate(trained, "a", 10, temperature=20.0, seed=1))
        assert text != generate(trained, "a", 40, temperature=20.0, seed=2)

    def test_draws_are_as_frequent_as_the_probabilities_say(self, trained):
        ids = torch.zeros(1, 64, dtype=torch.int64)
        letter = trained.task.class_names.index("c")
        ids[0, 0] = letter
        chances = trained.predict(ids)[0, 0].double().log().div(3).softmax(dim=0)
        count = torch.zeros(len(chances), dtype=torch.float64)
        for seed in range(150):
            drawn = generate(trained, "c", 1, temperature=3.0, seed=seed)
            count[trained.task.class_names.index(drawn)] += 1
        error = (chances * (1 - chances) / 150).sqrt()
        assert bool(((count / 150 - chances).abs() < 4 * error + 1e-9).all())

    def test_a_prompt_longer_than_a_row_is_read_from_its_end(self, trained):
        long = TEXT[:130]
        assert generate(trained, long, 20, temperature=0) == generate(trained, long[-64:], 20, temperature=0)

    def test_words_have_spaces_between_them(self):
        rows = data.from_tokens([[0, 1, 2, 0, 1, 2, 0]] * 20, vocabulary=["to", "be", "or"])
        found = train(NoiseStep(hidden=(16,), flip_share=0.05), rows, Options(steps=40, batch=18))
        assert generate(found, "to be", 4, temperature=0) == "or to be or"

    @pytest.mark.parametrize(
        ("prompt", "said"),
        [
            ("abß", r"the prompt's character 'ß' \(number 3\) is none that the net knows; it knows 5: '\\n' ' ' 'a'"),
            ("", "needs one character or more"),
        ],
    )
    def test_a_prompt_that_the_net_cannot_read(self, trained, prompt, said):
        with pytest.raises(InputError, match=said):
            generate(trained, prompt)

    def test_a_run_of_something_else(self):
        found = train(NoiseStep(hidden=(8,)), "digits", Options(steps=1))
        with pytest.raises(InputError, match="inputs that are image with targets that are classes"):
            generate(found, "a")

    def test_a_net_that_sees_what_comes_later(self, kept):
        class Backwards(nn.Module):
            def __init__(self):
                super().__init__()
                self.words, self.last = nn.Embedding(5, 8), nn.Linear(8, 5)

            def forward(self, ids):
                return self.last(self.words(ids.roll(-1, dims=1)))

        found = train(Backprop(), str(kept / "tiny.txt"), Options(steps=1), model=Backwards)
        with pytest.raises(InputError, match="depends on later tokens"):
            generate(found, "a")

    def test_the_command(self, kept, capsys):
        words = ["generate", str(kept / "run"), "--prompt", "abcab", "--length", "20", "--seed", "3"]
        status, out, _ = run(capsys, *words, "--temperature", "0")
        assert status == 0
        assert out == TEXT[:25] + "\n"
        found = [json.loads(run(capsys, *words, "--temperature", "9", "--json")[1])["text"] for _ in range(2)]
        assert found[0] == found[1]
        status, _, error = run(capsys, "generate", str(kept / "run"), "--prompt", "Ω")
        assert status == 2
        assert "Ω" in error
        assert "Traceback" not in error
