"""The record of where and by what something was computed: the commit of the sources is theirs, or none."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sidestep.measure import commit_of, environment_of, environment_words
from sidestep.measure.environment import _commit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="asks git")


def git(folder, *words):
    named = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", "-C", folder, *named, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A repository with two folders of sources, one file each."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    git(tmp_path, "init", "-q")
    found = [tmp_path / "package", tmp_path / "more"]
    for folder in found:
        folder.mkdir()
        (folder / "code.py").write_text("1\n")
    (tmp_path / ".gitignore").write_text("installed\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return found


def test_the_commit_is_marked_where_the_sources_differ_from_it(sources):
    package, more = sources
    commit = git(package, "rev-parse", "HEAD")[:12]
    assert commit_of([package]) == commit
    (more / "code.py").write_text("2\n")
    assert (commit_of([package]), commit_of([package, more])) == (commit, f"{commit}+")
    (package / "new.py").touch()
    assert commit_of([package]) == f"{commit}+"


def test_somebody_elses_repository_is_not_taken_for_ours(sources, tmp_path):
    package, _ = sources
    installed = tmp_path / "installed" / "sidestep"  # as in a .venv within a project, which ignores it
    shutil.copytree(package, installed)
    assert commit_of([installed]) is None
    assert commit_of([package]) == commit_of([package / "code.py"]) is not None


def test_without_git_or_without_an_answer_there_is_none(sources, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert commit_of(sources) is None


def test_a_process_asks_once_so_that_a_later_commit_does_not_change_it(sources):
    package, _ = sources
    first = _commit((package,))
    git(package, "commit", "-qm", "second", "--allow-empty")
    assert (_commit((package,)), commit_of([package]) != first) == (first, True)


def test_the_record_in_words_has_no_markup_and_takes_the_commits_of_several():
    record = environment_of()
    assert record["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["commit"] == commit_of([Path(environment_of.__code__.co_filename).parent.parent])
    odd = {**record, "commit": None, "processor": "<b>x|y</b>", "threads": 2}
    assert environment_words(odd).endswith("&lt;b&gt;x\\|y&lt;/b&gt;, 2 threads")
    assert f"sidestep {record['sidestep']} (ab, cd+), " in environment_words(odd, ["ab", "cd+"])
    assert f"sidestep {record['sidestep']}, " in environment_words({**odd, "commit": "ab"}, [])
