"""Train every rule on MNIST, or only what is missing, and print the table of docs/rules-compared.md.

    python -m experiments.rules_page --runs runs/rules --seeds 0 1 2 [--only spsa evolution] [--draw]

Each run is a process of its own, one after another, in float32 on one core. A twentieth of the training images is kept
aside. No setting was chosen on these runs: all come from the single-seed trials on the rules' pages, which list test
accuracy. In brackets behind an accuracy stand its standard error over seeds and that of the test set. Processor seconds
are those of the whole process, evaluation included; of a resumed run there are none.
"""

import argparse
import json
import resource
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from experiments.given import a_seed
from experiments.ternary_page import TEST_IMAGES, read, train
from sidestep.bench.report import share
from sidestep.bench.studies.blocks import mean_and_error
from sidestep.rules import RULES


@dataclass(frozen=True)
class Entry:
    """One line of the table: how it is trained, and the test accuracy that was asked for beforehand."""

    title: str
    net: str
    arguments: tuple[str, ...]
    target: float | None = None

    def given(self, option: str) -> str | None:
        """Return what the command line gives for an option, or None where it leaves the default."""
        words = dict(zip(self.arguments, self.arguments[1:], strict=False))
        return words.get(option)

    def setting(self) -> str:
        """Return label smoothing, whether images are shifted, and epochs, as three cells."""
        default = getattr(RULES[self.arguments[0]](), "label_smoothing", "-")
        smoothing = self.given("--label-smoothing") or f"{default:g}" if default != "-" else "-"
        shifts = "yes" if self.given("--augment") == "shift" else "no"
        return f"{smoothing} | {shifts} | {self.given('--epochs')}"


TWELVE = ("--epochs", "12", "--augment", "shift")
SMOOTH = ("--label-smoothing", "0.1")
WIDE = ("--net", "mlp", "--hidden", "512", "512")
INPUT = ("--columns", "input", "--learning-rate", "3e-3", "--batch", "1024", "--epochs", "60")
ENTRIES = {
    "linear": Entry("a linear classifier", "784-10", ("backprop", "--net", "linear", "--epochs", "12")),
    "backprop": Entry("backprop", "512-512", ("backprop", *WIDE, *TWELVE)),
    "backprop-norm": Entry("backprop, batch norm", "512-512", ("backprop", *WIDE, "--norm", "batch", *TWELVE)),
    "backprop-smooth": Entry("backprop", "512-512", ("backprop", *WIDE, *SMOOTH, *TWELVE)),
    "backprop-norm-smooth": Entry(
        "backprop, batch norm", "512-512", ("backprop", *WIDE, "--norm", "batch", *SMOOTH, *TWELVE)
    ),
    "deep": Entry(
        "backprop, deep supervision", "512-512",
        ("backprop", *WIDE, "--norm", "batch", "--deep-supervision", "0.3", *TWELVE),
    ),
    "ll-plain": Entry("local-loss, batch norm", "512-512", ("local-loss", "--label-smoothing", "0", *TWELVE)),
    "ll": Entry("local-loss, batch norm", "512-512", ("local-loss", *TWELVE), 98.5),
    "dfa": Entry("direct-feedback-alignment", "512-512", ("direct-feedback-alignment", *TWELVE), 98.0),
    "fa": Entry("feedback-alignment", "512-512", ("feedback-alignment", *TWELVE), 97.8),
    "ff": Entry(
        "channel-wise competition (forward-forward, label as a head)", "512-512",
        ("forward-forward", "--label", "head", "--threshold", "1", "--epochs", "5", "--augment", "shift"), 97.0,
    ),
    "fg": Entry("forward-gradient, local", "512-512", ("forward-gradient", "--epochs", "28", "--batch", "256"), 97.5),
    "heb": Entry("hebbian, and a linear read-out", "512-512", ("hebbian", "--epochs", "16"), 96.0),
    "evo": Entry("node perturbation (evolution along the input)", "128-64", ("evolution", *INPUT)),
    "spsa": Entry(
        "spsa, one pair, as in version 0.1.0", "64",
        ("spsa", "--pairs", "1", "--sides", "both", "--distribution", "rademacher", "--optimizer-kind", "sgd",
         "--lr", "0.001", "--epochs", "12"),
    ),
    "backprop-small": Entry(
        "backprop, layer norm", "128-64",
        ("backprop", "--net", "mlp", "--hidden", "128", "64", "--norm", "layer", "--epochs", "12"),
    ),
}  # fmt: skip


def timed(name: str, seed: int, folder: Path) -> None:
    """Run one entry, and write down its processor seconds, unless an earlier process took a part of them."""
    if (folder / "result.json").exists():
        return
    resumed = (folder / "config.toml").exists()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    arguments = (*ENTRIES[name].arguments, "--data", "mnist", "--decay", "cosine", "--precision", "float32")
    train(name, arguments, seed, folder, threads=1)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    if not resumed:
        (folder / "processor.json").write_text(json.dumps(spent))


def row(entry: Entry, folders: list[Path]) -> str | None:
    """Return a line of the table, or None without any finished run."""
    found = [(folder, curve) for folder in folders if (curve := read(folder))]
    if not found:
        return None
    tests = [curve.test for _, curve in found]
    best = [100 * curve.epochs[-1][2] for _, curve in found]
    times = [json.loads(path.read_text()) for folder, _ in found if (path := folder / "processor.json").exists()]
    seconds = f"{mean(times):.0f}" if times else "-"
    target = (
        ""
        if entry.target is None
        else f"{entry.target:.1f}: {'met' if 100 * mean(tests) >= entry.target else 'missed'}"
    )
    return (
        f"| {entry.title} | {entry.net} | {entry.setting()} | {len(found)} "
        f"| {share(*mean_and_error(tests), images=TEST_IMAGES)} | {mean(best):.2f} "
        f"| {100 * mean(curve.train for _, curve in found):.2f} | {seconds} | {target} |"
    )


def main() -> None:
    """Parse the options, train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=a_seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=list(ENTRIES), choices=list(ENTRIES))
    parser.add_argument("--draw", action="store_true", help="train nothing; the table of what is there")
    given = parser.parse_args()
    for seed in given.seeds if not given.draw else ():
        for name in given.only:
            timed(name, seed, given.runs / f"{name}-{seed}")
    columns = ("rule", "hidden layers", "label smoothing", "shifts", "epochs", "seeds", "test % (seeds; test set)",
               "validation %", "train %", "processor seconds", "target")  # fmt: skip
    print(f"| {' | '.join(columns)} |")
    print("|" + "---|" * len(columns))
    for name in given.only:
        line = row(ENTRIES[name], [given.runs / f"{name}-{seed}" for seed in given.seeds])
        if line:
            print(line)


if __name__ == "__main__":
    main()
