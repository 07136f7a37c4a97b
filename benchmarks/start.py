"""Time how commands start: processor seconds of whole processes, in alternating turns with `python -c "import torch"`.

    OMP_NUM_THREADS=1 python -m benchmarks.start [--rounds 5] [--out start.json]

For each command: the median of its seconds, and of its ratio to importing torch in the same round, with the spread.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SIDESTEP = [sys.executable, "-m", "sidestep"]
TORCH = [sys.executable, "-c", "import torch"]
COMMANDS = {
    "--version": ["--version"],
    "--help": ["--help"],
    "rules": ["rules"],
    "presets": ["presets"],
    "data": ["data"],
    "train noprop-dt --epochs 0": ["train", "noprop-dt", "--epochs", "0", "--overwrite", "--out", "run"],
}


def seconds(command: list[str], folder: str) -> float:
    """Processor seconds, user and system, of one process that succeeds."""
    before = os.times()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent


def main() -> None:
    """Print one line for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for the seconds of every round")
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
    with tempfile.TemporaryDirectory() as folder:
        for arguments in COMMANDS.values():  # files are read once, so that all are warm
            seconds([*SIDESTEP, *arguments], folder)
        found = [
            (seconds(TORCH, folder), {name: seconds([*SIDESTEP, *given], folder) for name, given in COMMANDS.items()})
            for _ in range(given.rounds)
        ]
    print(f"import torch: {statistics.median(torch for torch, _ in found):.2f} s")
    for name in COMMANDS:
        ratios = sorted(of[name] / torch for torch, of in found)
        print(f"{name:28} {statistics.median(of[name] for _, of in found):6.2f} s   "
              f"{statistics.median(ratios):5.2f} of import torch ({ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip
    if given.out:
        record = {"import torch": [torch for torch, _ in found]}
        record |= {name: [of[name] for _, of in found] for name in COMMANDS}
        given.out.write_text(json.dumps({"processor seconds": record}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
