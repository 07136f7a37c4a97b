"""How long presets train: steps that were timed on one machine, scaled by how fast this one multiplies matrices.

    minutes = steps x (seconds of a step there) x (matrix seconds here) / (matrix seconds there) / 60

`benchmarks/preset_times.py` writes preset_times.json. All are processor seconds of one core, so that other
programs do not matter. Evaluation and downloads come on top.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["PATH", "fitting", "machine", "matrix_seconds", "minutes_of", "said_minutes", "times"]

PATH = Path(__file__).with_name("preset_times.json")
_SIZE, _TRIES = 1024, 7


def times() -> dict[str, dict[str, dict[str, float]]]:
    """Return preset -> budget -> steps, seconds of a step, and seconds of the matrix product beside it."""
    found: dict[str, dict[str, dict[str, float]]] = json.loads(PATH.read_text(encoding="utf-8"))["presets"]
    return found


def machine() -> str:
    """Return what the steps were timed on."""
    found = json.loads(PATH.read_text(encoding="utf-8"))["machine"]
    return f"one core of {found['processor']}, torch {found['torch']}"


def matrix_seconds() -> float:
    """Return the processor seconds, the best of a few tries, of a product of two 1024 x 1024 matrices in float32."""
    import numpy as np  # here, since a list without times needs no numpy

    left = np.ones((_SIZE, _SIZE), dtype=np.float32)
    found = []
    for _ in range(_TRIES):
        began = time.process_time()
        left @ left
        found.append(time.process_time() - began)
    return min(found)


def minutes_of(timed: Mapping[str, float], here: float) -> float:
    """Return about how many minutes a run trains on one core whose matrix product takes `here` seconds.

    >>> minutes_of({"steps": 600, "seconds": 0.1, "matrix": 0.02}, here=0.04)
    2.0
    """
    return timed["steps"] * timed["seconds"] * here / timed["matrix"] / 60


def fitting(
    timed: Mapping[str, Mapping[str, Mapping[str, float]]], most: float, here: float, shortest: bool = False
) -> dict[str, tuple[str, float]]:
    """Return preset -> the longest (or shortest) of its budgets that fits, and its minutes, of those that have one.

    >>> budgets = {
    ...     "full": {"steps": 6000, "seconds": 0.1, "matrix": 0.02},
    ...     "tiny": {"steps": 60, "seconds": 0.1, "matrix": 0.02},
    ... }
    >>> fitting({"a": budgets}, most=5, here=0.02)
    {'a': ('tiny', 0.1)}
    """
    found = {}
    for name, budgets in timed.items():
        minutes = {budget: minutes_of(of, here) for budget, of in budgets.items()}
        fits = [budget for budget, each in minutes.items() if each <= most]
        if fits:
            best = (min if shortest else max)(fits, key=lambda budget: (minutes[budget], budget == "full"))
            found[name] = (best, minutes[best])
    return found


def said_minutes(minutes: float) -> str:
    """Return minutes as one says them.

    >>> [said_minutes(m) for m in (0.3, 4.2, 200, 5000)]
    ['18 s', '4 min', '3.3 h', '3.5 days']
    """
    if minutes < 1:
        return f"{max(1, round(60 * minutes))} s"
    if minutes < 100:
        return f"{round(minutes)} min"
    return f"{minutes / 60:.1f} h" if minutes < 2880 else f"{minutes / 1440:.1f} days"
