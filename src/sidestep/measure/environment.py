"""Where and by which sources something was computed: the record that is kept beside a number."""

import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sidestep.measure.processor import processor_name
from sidestep.version import __version__
from sidestep.wording import counted, markdown

__all__ = ["commit_of", "environment_of", "environment_words"]

_PACKAGE = Path(__file__).parent.parent


def environment_of(device: str | torch.device = "cpu", sources: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the versions, the commit of the sources, the device and its name, and this process's number of threads.

    The commit is asked for once in a process: ask early, before a long run, so that it is that of what was loaded.

    Args:
        device: where it is computed.
        sources: files or folders beside the package, in the same repository, that the number rests on, too.
    """
    return {
        "sidestep": __version__,
        "commit": _commit((_PACKAGE, *sources)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
        "processor": processor_name(device),
        "threads": torch.get_num_threads(),
    }


def environment_words(record: Mapping[str, Any], commits: Sequence[str] | None = None) -> str:
    """Return an environment's record in words, for a page; older ones have no commit.

    Args:
        record: of `environment_of`.
        commits: those of all records that are alike but for it. Default: its own.

    >>> environment_words({"sidestep": "0.2.0", "torch": "2.13.0", "processor": "Xeon", "threads": 1, "commit": "ab12"})
    'sidestep 0.2.0 (ab12), torch 2.13.0, Xeon, 1 thread'
    """
    own = [record["commit"]] if record.get("commit") else []
    said = own if commits is None else commits
    which = f" ({', '.join(said)})" if said else ""
    versions, processor = (markdown(str(record[name])) for name in ("torch", "processor"))
    return (
        f"sidestep {markdown(str(record['sidestep']))}{markdown(which)}, torch {versions}, {processor}, "
        f"{counted(record['threads'], 'thread')}"
    )


@cache
def _commit(sources: Sequence[Path]) -> str | None:
    return commit_of(sources)


def commit_of(sources: Sequence[Path]) -> str | None:
    """Return the commit of sources, marked `+` where they differ from it; None where no repository has them.

    Args:
        sources: files or folders of one repository, e.g. the package; of an installed copy, within the repository of
            somebody else, that one is not meant.
    """
    first = sources[0]
    begin = ["git", "--no-optional-locks", "-C", str(first if first.is_dir() else first.parent)]
    names = [str(each.resolve()) for each in sources]
    asked = (["ls-files", "--error-unmatch", "--", names[0]], ["rev-parse", "HEAD"],
             ["status", "--porcelain", "--", *names])  # fmt: skip
    try:
        _, commit, changed = (
            subprocess.run([*begin, *words], capture_output=True, text=True, check=True, timeout=10).stdout
            for words in asked
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip()[:12] + ("+" if changed.strip() else "")
