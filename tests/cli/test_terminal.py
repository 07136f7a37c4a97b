"""What reaches the terminal: text that came from a file obeys nothing, and no traceback leaves the command line."""

import ast
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import sidestep.cli
from sidestep.cli import main
from sidestep.cli.options import module_from
from sidestep.cli.output import check_new, notice, show, show_table
from sidestep.cli.rescue import explained
from sidestep.wording import csv_text, markdown, spelled

SOURCE = Path(sidestep.cli.__file__).parent
MARKUP, TITLE, FORMULA = "[/x]:cat:", "\x1b]0;$\\frac$owned\x07", '=HYPERLINK("http://x","y")'
CLASSES = (MARKUP, f"{TITLE}\r\n\x9b2J", f"{FORMULA}\u202e\u200b")
HOSTILE = "[red]\x1b[2J\u202e"  # as the name of a file or folder
OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
QUICK = ["--hidden", "4", "--epochs", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data whose classes and names are hostile, and a run of it that has a log."""
    folder = tmp_path_factory.mktemp("hostile")
    images = numpy.arange(30 * 16).reshape(30, 4, 4).astype("uint8")
    labels = numpy.arange(30) % 3
    numpy.savez(folder / f"{HOSTILE}.npz", x_train=images, y_train=labels, x_test=images, y_test=labels,
                class_names=list(CLASSES))  # fmt: skip
    numpy.savez(folder / "images.npz", images=images[:5])
    before = Path.cwd()
    os.chdir(folder)
    try:
        words = ["train", "spsa", *QUICK, "--data", f"{HOSTILE}.npz", "--batch", "8"]
        main([*words, "--out", f"{HOSTILE} run", "--json"])
    finally:
        os.chdir(before)
    return folder


def run(capfd, *arguments):
    """Return exit status, standard output and standard error."""
    status = 0
    try:
        main(arguments)
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    captured = capfd.readouterr()
    return status, captured.out, captured.err


COMMANDS = [
    (0, ["train", "spsa", *QUICK, "--data", f"{HOSTILE}.npz", "--batch", "8", "--out", f"{HOSTILE} again"]),
    (2, ["train", "spsa", *QUICK, "--data", f"{HOSTILE}.npz", "--out", f"{HOSTILE} run"]),
    (2, ["train", "spsa", *QUICK, "--data", f"{HOSTILE}.npz", "--out", f"{HOSTILE}.npz/run"]),
    (2, ["train", HOSTILE]),
    (2, ["train", "spsa", "--preset", HOSTILE]),
    (2, ["train", "spsa", "--module", f"{HOSTILE}.py:x"]),
    (2, ["train", "spsa", f"--{HOSTILE}", "1"]),
    (2, ["train", "spsa", "--epochs", HOSTILE]),
    (0, ["eval", f"{HOSTILE} run"]),
    (2, ["eval", f"{HOSTILE} run", "--reading", HOSTILE]),
    (2, ["eval", f"{HOSTILE} run", "--set", f"{HOSTILE}=1"]),
    (2, ["eval", f"{HOSTILE} run", "--data", "digits"]),
    (2, ["eval", HOSTILE]),
    (0, ["predict", f"{HOSTILE} run", "images.npz", "--out", f"{HOSTILE}.csv", "--overwrite"]),
    (2, ["predict", f"{HOSTILE} run", f"{HOSTILE}.png"]),
    (0, ["align", f"{HOSTILE} run", "--estimates", "2"]),
    (2, ["align", HOSTILE]),
    (0, ["replay", f"{HOSTILE} run", "--out", f"{HOSTILE}.safetensors", "--overwrite"]),
    (2, ["replay", f"{HOSTILE} run", "--only", HOSTILE]),
    (0, ["inspect", f"{HOSTILE} run"]),
    (0, ["verify", f"{HOSTILE} run", f"{HOSTILE} run"]),
    (2, ["verify", f"{HOSTILE} run", HOSTILE]),
    (0, ["data", "show", f"{HOSTILE}.npz", "--out", f"{HOSTILE}.png", "--overwrite"]),
    (2, ["data", "show", HOSTILE]),
    (2, ["data", HOSTILE]),
    (2, ["presets", "--data", HOSTILE]),
    (2, ["bench", "--rules", HOSTILE]),
    (2, ["bench", "--rules", "spsa", "--data", f"{HOSTILE}x.npz", "--out", f"{HOSTILE} bench"]),
    (2, ["reproduce", HOSTILE]),
    (2, ["study", HOSTILE]),
    (2, ["study", "noprop-blocks", "--data", f"{HOSTILE}x.npz", "--out", f"{HOSTILE} study"]),
    (2, ["fit-memory", "--budget", HOSTILE]),
    (2, ["fit-memory", "--budget", "1MB", "--data", HOSTILE]),
    (2, [HOSTILE]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "arguments"), COMMANDS, ids=[f"{i} {words[0]!a}" for i, (_, words) in enumerate(COMMANDS)]
)
def test_no_command_lets_a_name_reach_the_terminal(capfd, trained, monkeypatch, wanted, arguments):
    monkeypatch.chdir(trained)
    monkeypatch.delenv("SIDESTEP_DATA", raising=False)
    status, out, error = run(capfd, *arguments)
    assert status == wanted, error
    assert not OBEYED.search(out), ascii(out)
    assert not OBEYED.search(error), ascii(error)


def test_classes_are_printed_as_they_are_and_kept_exactly(capfd, trained, monkeypatch):
    monkeypatch.chdir(trained)
    words = ["predict", f"{HOSTILE} run", "images.npz", "--most", "5"]
    _, out, error = run(capfd, *words, "--json")
    record = json.loads(out)
    assert out.isascii()
    assert set(record["classes"]) <= set(CLASSES)
    assert {CLASSES.index(name) for name in record["classes"]} == set(record["labels"])
    status, out, error = run(capfd, *words, "--out", "safe.csv", "--overwrite")
    assert status == 0, error
    for label in set(record["labels"]):
        assert spelled(CLASSES[label]) in out
    cells = Path("safe.csv").read_text().splitlines()[1:]
    assert len(cells) == 5
    assert all(("'=HYPERLINK" in line) == (CLASSES[label] == CLASSES[2])
               for line, label in zip(cells, record["labels"], strict=True))  # fmt: skip


def test_only_the_doors_print():
    """A module of the command line that prints by itself would have to remember what the doors do."""
    wrong = []
    for file in SOURCE.glob("*.py"):
        if file.name in ("output.py", "parse.py", "streams.py"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name == "print" or name.endswith(
                ("console.print", ".stdout.write", ".stderr.write", "TextColumn", "tyro.cli")
            ):
                wrong.append(f"{file.name}:{node.lineno} {name}")
    assert not wrong


def test_the_doors_show_text_and_obey_nothing(capfd):
    text = "[/x][bold]a\x1b]0;t\x07 :cat: \udcff é 猫\u3000犬\n\u2028b"
    show(text)
    notice(text)
    show_table(text, [text], [[text]])
    captured = capfd.readouterr()
    seen = r"[/x][bold]a\x1b]0;t\x07 :cat: \udcff é 猫" + "\u3000" + "犬"
    assert captured.out.count(seen + r"\n\u2028b") == 4
    assert captured.err == f"sidestep: {seen} b\n"


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "＝1", "-", "+x"])
def test_a_text_cell_of_csv_is_never_a_formula(text):
    assert csv_text([[text]]).strip('"').startswith("'")


def test_numbers_and_plain_words_stay_as_they_are_in_csv():
    assert csv_text([["a,b", "-3", "+1.5e-3", -2, 0.5, "cat-dog"]]) == '"a,b",-3,+1.5e-3,-2,0.5,cat-dog\n'


def test_markdown_shows_text_and_has_no_markup():
    assert markdown("<img src=x>|![a](b)`c`\n# d") == r"&lt;img src=x&gt;\|\!\[a\](b)\`c\`\\n\# d"


@pytest.mark.parametrize("arguments", [["rules"], ["rules", "--json"], ["train", "spsa", "--help"], ["--version"]])
def test_output_that_cannot_be_written_ends_in_a_line(capfd, monkeypatch, arguments):
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        status, _, error = run(capfd, *arguments)
    assert status == 1
    assert error.startswith("sidestep: standard output could not be written: No space left on device")
    assert len(error.splitlines()) == 1


def test_no_reader_any_more_ends_in_silence(capfd, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run(capfd, "presets") == (1, "", "")


def test_errors_that_cannot_be_written_change_no_status(monkeypatch, capfd):
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert run(capfd, "eval", "nowhere")[0] == 2
        notice("training goes on")
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_closed_streams_are_no_file_s(tmp_path):
    """The first file that is opened gets the lowest free number: it must not be that of standard output."""
    words = "import os; from sidestep.__main__ import _fill_closed_streams as fill; fill()"
    words += "; open('made', 'w'); print('lost'); os.write(1, b'lost')"
    line = f'"{sys.executable}" -c "{words}" >&- 2>&-'
    found = subprocess.run(["bash", "-c", line], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SOURCE.parents[1])})
    assert found.returncode == 0
    assert (tmp_path / "made").read_bytes() == b""


def test_a_console_without_a_letter_gets_another_in_its_place(capfd, trained, monkeypatch):
    monkeypatch.chdir(trained)
    Path("é.npz").write_bytes(Path("images.npz").read_bytes())
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    status, _, error = run(capfd, "predict", f"{HOSTILE} run", "é.npz", "--out", "é.csv", "--overwrite")
    assert status == 0, error
    assert rb"written: \xe9.csv" in shown.getvalue()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert run(capfd, "train", "spsa", "--help")[0] == 0


def test_errors_that_nobody_expected_are_a_sentence(capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def broken(_):
        raise LookupError("\x1b[2J[/x]")

    monkeypatch.setitem(sidestep.cli.COMMANDS, "rules", broken)
    status, out, error = run(capfd, "rules")
    assert (status, out) == (70, "")
    assert error.startswith(
        r"sidestep: this is a mistake in Sidestep, not yours: LookupError: \x1b[2J[/x]. The details"
    )
    assert "raise LookupError" in next(tmp_path.glob("sidestep-*.txt")).read_text()


def test_too_little_memory_is_told_with_the_size():
    for make in (lambda: torch.empty(1 << 50, dtype=torch.uint8), lambda: numpy.empty(1 << 60, "uint8")):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            make()
        words, status = explained(caught.value)
        assert (status, re.search(r"[\d,.]+ [GE]iB were asked for", words) is not None) == (2, True), words


def test_an_error_inside_the_users_module_is_told_as_one(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def path():\n    raise RuntimeError('my mistake')\n")
    made = module_from("mine.py:path")
    with pytest.raises(RuntimeError) as caught:
        made()
    assert explained(caught.value) == (
        f"your module failed in {Path.cwd()}/mine.py, line 2: RuntimeError: my mistake",
        2,
    )
    for number, how in enumerate(("raise SystemExit(0)", "raise BaseException('x')", "raise SystemExit")):
        Path(f"leaves{number}.py").write_text(f"def path():\n    {how}\n")
        words = ["train", "backprop", "--module", f"leaves{number}.py:path", "--out", "never", "--epochs", "1"]
        status, _, error = run(capfd, *words)
        assert (status, f"leaves{number}.py" in error) == (2, True), error
    Path("leaves.py").write_text("raise SystemExit(0)\n")
    status, _, error = run(capfd, "train", "backprop", "--module", "leaves.py:x")
    assert (status, "SystemExit" in error) == (2, True)


@pytest.mark.parametrize("arguments", [
    ["train", "spsa", "--out", "a\0b"], ["eval", "a\0b"], ["replay", "x", "--drop-steps", "0:" + "9" * 5000],
    ["train", "spsa", "--hidden", "9" * 25, "--epochs", "1", "--out", "x"],
])  # fmt: skip
def test_arguments_that_no_file_or_number_can_be(capfd, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    status, _, error = run(capfd, *arguments)
    assert status == 2
    assert len(error.splitlines()) == 1
    assert len(error) < 6000


def test_a_folder_is_no_output_file(tmp_path):
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_new(tmp_path / "x.csv", True, (".csv",))
