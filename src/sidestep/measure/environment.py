"""Where and by which sources something was computed: the record that is kept beside a number."""

import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sidestep.measure.processor import processor_name
from sidestep.version import __version__
from sidestep.wording import counted

__all__ = ["environment_of", "environment_words"]


def environment_of(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the versions, the commit of the sources, the device and its name, and this process's number of threads.

    Args:
        device: where it is computed.
    """
    return {
        "sidestep": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(device),
        "processor": processor_name(device),
        "threads": torch.get_num_threads(),
    }


def environment_words(record: Mapping[str, Any]) -> str:
    """Return an environment's record in words; older ones have no commit.

    >>> environment_words({"sidestep": "0.2.0", "torch": "2.13.0", "processor": "Xeon", "threads": 1})
    'sidestep 0.2.0, torch 2.13.0, Xeon, 1 thread'
    """
    commit = f" ({record['commit']})" if record.get("commit") else ""
    return (
        f"sidestep {record['sidestep']}{commit}, torch {record['torch']}, {record['processor']}, "
        f"{counted(record['threads'], 'thread')}"
    )


@cache  # the sources that this process has loaded
def _commit() -> str | None:
    """The commit of the sources, where they are in a repository, marked where they differ from it."""
    here = Path(__file__).parent.parent
    try:
        asked = [["git", "-C", str(here), *words] for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "."])]
        commit, changed = (
            subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout for words in asked
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip()[:12] + ("+" if changed.strip() else "")
