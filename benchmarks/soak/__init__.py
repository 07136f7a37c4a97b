"""Long searches for damage, bounded and seeded: `make soak`, or `python -m benchmarks.soak`.

A part is a module in this folder with a function `run(seed, count)` that tries about `count` cases (0: all it has),
drawn by the seed alone, and returns counts by name. What counts as a failure is named in `FAILURES`; all else is there
to be read. A part may have `DEFAULT`, how many cases it tries when nobody says.
"""

FAILURES = ("silent differences", "lost runs", "tracebacks", "hangs")  # each must be 0

__all__ = ["FAILURES"]
