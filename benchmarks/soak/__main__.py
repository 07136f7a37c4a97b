"""Run the parts of the soak test, and print their counts; the status is 1 if any of them found a failure.

python -m benchmarks.soak [kills mutations] [--count N] [--seconds S] [--seed 0]
"""

import argparse
import collections
import importlib
import pkgutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import soak


def main() -> None:
    """Run rounds of each part until the time is up, one at least, each round with a seed of its own."""
    known = sorted(found.name for found in pkgutil.iter_modules(soak.__path__) if not found.name.startswith("_"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--count", type=int, help="cases of a round of each part; 0: all it has")
    parser.add_argument("--seconds", type=float, default=0.0, help="go on with further seeds for so long, per part")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = sorted(set(given.parts) - set(known))
    if wrong:
        parser.error(f"no such part: {', '.join(wrong)}; there are: {', '.join(known)}")
    failures = 0
    for name in given.parts or known:
        part, started, rounds = importlib.import_module(f"benchmarks.soak.{name}"), time.perf_counter(), 0
        if not hasattr(part, "run"):
            continue
        counts: collections.Counter[str] = collections.Counter()
        count = getattr(part, "DEFAULT", 0) if given.count is None else given.count
        while not rounds or time.perf_counter() - started < given.seconds:
            counts.update(part.run(given.seed + rounds, count))
            rounds += 1
        words = ", ".join(f"{key} {value:,}" for key, value in counts.items())
        print(f"{name}: {words}; seed {given.seed}, {rounds} rounds, {time.perf_counter() - started:.0f} s", flush=True)
        failures += sum(counts[key] for key in soak.FAILURES)
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
