"""What the documents show works: README's commands and Python, the notebooks, every link, no foreign paths.

A shell block in README.md holds `sidestep ...` commands only (and output, where commands begin with `$ `),
or has `<!-- not run: reason -->` right above it. Blocks run in order, in one temporary folder. A Python block
gets a fresh namespace, or its predecessor's with `<!-- continues -->` right above it.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import sidestep
from sidestep.errors import InputError
from sidestep.noise import Noise
from sidestep.rules import RULES, Batch

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted(path for path in (ROOT / "docs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
FENCE = re.compile(r"^(?:<!--\s*(?P<note>[^\n]*?)\s*-->\n+)?```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```", re.M | re.S)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)")
# Written in two parts so that this file does not contain them.
FOREIGN = tuple(a + b for a, b in (("/wo", "rk/"), ("/ro", "ot/"), ("/tmp/", "probe"), ("shar", "ed/")))
TEXTS = {".py", ".md", ".toml", ".ipynb", ".yml", ".yaml", ".cfg", ".txt", ".json"}


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    note: str
    line: int

    @property
    def left_out(self) -> bool:
        return self.note.startswith("not run:")


def blocks(text: str) -> list[Block]:
    return [
        Block(found["language"], found["body"], found["note"] or "", text.count("\n", 0, found.start("body")))
        for found in FENCE.finditer(text)
    ]


def commands(block: Block) -> list[str]:
    """The commands of a shell block, one a line: continued lines joined, comments and output dropped."""
    lines = block.body.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def readme_blocks(*languages: str) -> list[Block]:
    found = blocks(README.read_text(encoding="utf-8")) if README.exists() else []
    return [block for block in found if block.language in languages and not block.left_out]


def python_chains() -> list[list[Block]]:
    chains: list[list[Block]] = []
    for block in readme_blocks("python"):
        if block.note == "continues":
            chains[-1].append(block)
        else:
            chains.append([block])
    return chains


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory) -> dict[str, str]:
    """An environment in which `sidestep` is this checkout's, whatever is installed."""
    programs = tmp_path_factory.mktemp("bin")
    program = programs / "sidestep"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sidestep "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "MPLBACKEND": "agg",
    }


def test_shell_blocks_of_the_readme_run(surroundings, tmp_path):
    for block in readme_blocks("bash", "console", "sh", "shell"):
        for command in commands(block):
            where = f"README.md, block at line {block.line}: {command}"
            assert command.split()[0] == "sidestep", f"{where}: mark the block <!-- not run: reason -->"
            done = subprocess.run(
                command,
                shell=True,
                cwd=tmp_path,
                env=surroundings,
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert done.returncode == 0, f"{where}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("chain", python_chains(), ids=lambda chain: f"line-{chain[0].line}")
def test_python_of_the_readme_runs(chain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace = {"__name__": "__main__"}
    for block in chain:
        # Empty lines in front make a traceback name the line in README.md.
        exec(compile("\n" * block.line + block.body, str(README), "exec"), namespace)


def test_the_rule_that_the_page_on_new_rules_shows_trains_and_keeps_to_what_a_rule_must(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = blocks((ROOT / "docs" / "adding-a-rule.md").read_text(encoding="utf-8"))
    namespace = {"__name__": "__main__"}
    for block in shown:
        exec(compile("\n" * block.line + block.body, "docs/adding-a-rule.md", "exec"), namespace)
    rule, run = namespace["LocalSigns"](), namespace["run"]
    assert run.result["test_accuracy"] > 0.75  # about 0.89; chance is 0.1
    before = {name: tensor.clone() for name, tensor in run.net.state_dict().items()}
    images = torch.zeros(4, *run.task.shape)
    update = rule.estimate(run.net, Batch(images, torch.arange(4)), Noise(0))
    assert set(update.gradients) == {name for name, _ in run.net.named_parameters()}
    assert {float(value) for each in update.gradients.values() for value in each.unique()} <= {-1.0, 0.0, 1.0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.net.state_dict().items())
    with pytest.raises(InputError, match="local-signs has no place for a module of your own"):
        rule.build(run.task, Noise(0), None, torch.nn.Flatten)
    with pytest.raises(InputError, match="local-signs works on the net that it builds itself"):
        rule.apply(torch.nn.Linear(2, 2), update, None)
    with pytest.raises(InputError, match="learning_rate must be above 0"):
        namespace["LocalSigns"](learning_rate=-1.0)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(path, surroundings, tmp_path, monkeypatch):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND")  # the kernel shows figures inline
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in LINK.findall(text):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file).resolve() if file else page
        found = place.exists() and (place == ROOT or ROOT in place.parents)
        if found and anchor and place.suffix == ".md":
            found = anchor in anchors(place.read_text(encoding="utf-8"))
        if not found:
            broken.append(target)
    assert not broken, f"{page.relative_to(ROOT)}: {', '.join(broken)}"


def anchors(text: str) -> set[str]:
    """The anchors that a Markdown page's headings get: lower case, spaces to dashes, punctuation dropped."""
    headings = re.findall(r"^#+ +(.+?) *$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def project_texts() -> list[Path]:
    folders = [ROOT / name for name in ("src", "tests", "docs", "examples", "benchmarks", "experiments")]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in TEXTS]
    files = [path for path in files if not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)]
    return [path for path in [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml", *files] if path.is_file()]


def test_nothing_names_places_of_another_machine():
    found = []
    for path in project_texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            others = line.replace("rules/" + FOREIGN[-1], "")  # a room of ours
            words = [word for word in FOREIGN if word in others]
            words += re.findall(r"(?i)\bissues? #?\d+\b", line)
            found += [f"{path.relative_to(ROOT)}:{number}: {word}" for word in words]
    assert not found, "\n".join(found)


PARTS = ("When to use it", "Cost and memory", "What it cannot do", "Measured")


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_page_with_its_equation_its_limits_and_a_measured_row(name):
    text = (ROOT / "docs" / "rules" / f"{name}.md").read_text(encoding="utf-8")
    title, *parts = re.split(r"^## ", text, flags=re.M)
    assert title.startswith(f"# {name}\n")
    assert re.search(r"^    \S.*[=:].*\S", title, re.M), "an equation, indented, before the first heading"
    found = {part.split("\n", 1)[0]: part.split("\n", 1)[1] for part in parts}
    assert [heading for heading in found if heading in PARTS] == list(PARTS)
    for heading in PARTS:
        assert len(found[heading].split()) > 10, heading
    assert re.search(r"\d\d\.\d|\.\d\d\d", found["Measured"])
    assert f"rules/{name}.md" in (ROOT / "docs" / "rules-compared.md").read_text(encoding="utf-8")


def test_no_page_is_of_a_rule_that_is_not_there():
    assert {path.stem for path in (ROOT / "docs" / "rules").glob("*.md")} == set(RULES)


def test_the_version_is_the_same_everywhere():
    package = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"$', package, re.M)[1]
    assert sidestep.__version__ == version
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_blocks_are_read_as_meant():
    """The reader of the documents itself: notes, continued lines, prompts, comments."""
    text = (
        "<!-- not run: needs the network -->\n```bash\nsidestep a\n```\n\ntext\n\n"
        "```console\n$ sidestep b \\\n    --c 1\noutput\n$ sidestep d\n```\n"
        "<!-- continues -->\n\n```python\nx = 1\n```\n"
    )
    first, second, third = blocks(text)
    assert (first.left_out, second.left_out, third.note) == (True, False, "continues")
    assert commands(second) == ["sidestep b      --c 1", "sidestep d"]
    assert text.splitlines()[third.line] == "x = 1"


def long_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > 120 and not line.lstrip().startswith("|")]


def long_paragraphs(text: str) -> list[str]:
    text = re.sub(r"<!--.*?-->", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.S)
    found = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+[.)]) )", text):
        plain = not paragraph.lstrip().startswith(("|", "#", "<")) and not paragraph.startswith("    ")
        if plain and len(paragraph.split()) > 90:
            found.append(paragraph)
    return found


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_lines_and_paragraphs_can_be_read(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if "results" not in page.parts:  # tables that commands wrote
        assert not long_lines(text)
        if page.name != "CHANGELOG.md":  # its entries are read one by one
            assert not [paragraph[:60] for paragraph in long_paragraphs(text)]
