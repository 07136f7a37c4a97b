"""Peak memory of training on memory-mapped files larger than memory should have to be, beside the same arrays in RAM.

A file of images, of a table or of tokens (random numbers) is written in chunks, and a process of its own for each line
makes a data set of it (with a validation cut), takes some steps, and evaluates. `process` is what that process grew by
(VmHWM), from after the imports and a first small run on: data, net and all that torch takes beside them.

OMP_NUM_THREADS=1 python benchmarks/memory_map.py --gigabytes 2
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sidestep import Options, data, train
from sidestep.measure import memory_growth
from sidestep.noise import Noise
from sidestep.rules import SPSA, Backprop

SHAPES = {"images": ((3, 32, 32), np.uint8), "table": ((256,), np.float64), "tokens": ((257,), np.uint16)}
MIB = 1 << 20


def write(kind: str, path: Path, size: int) -> None:
    """Write a file of random numbers of about `size` bytes, a chunk at a time."""
    shape, dtype = SHAPES[kind]
    count = size // (int(np.prod(shape)) * np.dtype(dtype).itemsize)
    made = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(count, *shape))
    words = Noise(0).words(4096 * int(np.prod(shape))).numpy().reshape(4096, *shape) % 1000
    for start in range(0, count, 4096):
        part = made[start : start + 4096]
        numbers = (words[: len(part)] + start) % 251
        part[:] = numbers % 16 if kind == "tokens" else numbers
    made.flush()


def step(kind: str, path: Path, mapped: bool, steps: int) -> int:
    """Make a data set of the file, train and evaluate; return how many bytes the process grew by."""
    train(Backprop(net="mlp", hidden=(8,)), "digits", Options(steps=1))  # what torch needs once
    with memory_growth() as growth:
        array = np.load(path, mmap_mode="r") if mapped else np.load(path)
        options = Options(steps=steps, batch=128)
        if kind == "tokens":
            found = data.from_tokens(array, vocabulary=16, validation=0.01)
            model = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16))
            train(SPSA(), found, options, model=model)
        else:
            labels = np.arange(len(array)) % 10
            found = data.from_arrays(array, labels, validation=0.01)
            train(Backprop(net="mlp", hidden=(64,)), found, options)
    return growth.bytes


def main() -> None:
    """Print a line for each kind of data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--in-memory", action="store_true", help="measure the same arrays in RAM, too")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        kind, path, mapped = given.one
        print(step(kind, Path(path), mapped == "mapped", given.steps))
        return
    print(f"{'data':8} {'file, MiB':>10} {'as':>8} {'process, MiB':>13} {'seconds':>8}")
    for kind in given.kinds:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.npy"
            write(kind, path, round(given.gigabytes * 1e9))
            for how in ["mapped", "memory"][: 1 + given.in_memory]:
                command = [sys.executable, __file__, "--steps", str(given.steps), "--one", kind, str(path), how]
                begun = time.perf_counter()
                grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                seconds = time.perf_counter() - begun
                print(f"{kind:8} {path.stat().st_size / MIB:10,.0f} {how:>8} {grown / MIB:13,.0f} {seconds:8.1f}")


if __name__ == "__main__":
    main()
