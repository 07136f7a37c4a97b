"""Compare ways to fit temperatures on halves of MNIST's validation images, of the runs of `experiments.calibration`.

    python -m experiments.calibration_fits --runs runs/calibration [--seed 0] [--images 144]

Each of two halves of 3,000 images is fitted on and measured on the other; a number is the mean of both ways;
with --images, of fits to so many images of a half, its first eight parts of that size. The test split is not opened.
Beside the ways with one number T stands a map with two that keeps the order of classes as well,
`q = softmax(-a (max log p - log p)^g)`, of the a and g of highest likelihood.
"""

import argparse
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
from scipy.optimize import brentq, minimize, minimize_scalar
from torch import Tensor

from experiments.calibration import ENTRIES, run_of
from experiments.given import a_count, a_seed
from sidestep import data
from sidestep.cli.output import default_data_dir
from sidestep.noise import Noise
from sidestep.training.calibration import HIGHEST, Quality, calibrated, confidence_sums, fit_sums, fit_temperature

PARTS = 8
LIMIT = math.log(HIGHEST)
Fit = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]  # scores and labels -> a map of scores


def logs_of(scores: Tensor) -> Tensor:
    """Return log p in float64."""
    return scores.double().clamp_min(torch.finfo(torch.float32).tiny).log()


def with_temperature(temperature: float) -> Callable[[Tensor], Tensor]:
    """Return the map of one temperature."""
    return lambda scores: calibrated(scores, temperature)


def likeliest(scores: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit T by the likelihood, with the prior."""
    logs = logs_of(scores)

    def cost(place: float) -> float:
        own = (math.exp(place) * logs).log_softmax(dim=1).gather(1, labels[:, None])
        return math.exp(place) - place - float(own.sum())

    return with_temperature(math.exp(-minimize_scalar(cost, bounds=(-LIMIT, LIMIT), method="bounded").x))


def expected(scores: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit T so that the mean confidence is the accuracy."""
    logs = logs_of(scores)
    accuracy = (int((logs.argmax(dim=1) == labels).sum()) + 1) / (len(labels) + 2)

    def surplus(place: float) -> float:
        return float((math.exp(place) * logs).softmax(dim=1).amax(dim=1).mean()) - accuracy

    return with_temperature(math.exp(-brentq(surplus, -LIMIT, LIMIT)))


def taken(scores: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit T as Sidestep does."""
    return with_temperature(fit_temperature(fit_sums(scores, labels).tolist()))


def two_numbers(scores: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Fit a and g by the likelihood."""

    def logits(scores: Tensor, a: float, g: float) -> Tensor:
        logs = logs_of(scores)
        return -math.exp(a) * (logs.amax(dim=1, keepdim=True) - logs).clamp_min(1e-12) ** math.exp(g)

    def cost(given: tuple[float, float]) -> float:
        return -float(logits(scores, *given).log_softmax(dim=1).gather(1, labels[:, None]).mean())

    a, g = minimize(cost, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-7}).x
    return lambda scores: logits(scores, a, g).softmax(dim=1).float()


FITS: dict[str, Fit] = {"likeliest": likeliest, "expected": expected, "taken": taken, "two numbers": two_numbers}


def compared(name: str, seed: int, runs: Path, images: int) -> list[tuple[float, float]]:
    """Return ECE and NLL on the half that was not fitted on, by way to fit: means of both ways."""
    mnist = data.load("mnist", data_dir=default_data_dir())
    run, validation = run_of(name, seed, mnist, runs), mnist.validation
    rows = Noise(seed).stream("halves").permutation(len(validation)).tensor_split(2)
    halves = [(run.predict(validation.images[each], raw=True), validation.labels[each]) for each in rows]
    found = []
    for fit in FITS.values():
        both = []
        for (scores, labels), (others, truth) in (halves, halves[::-1]):
            parts = zip(scores.split(images), labels.split(images), strict=True)
            for few, own in itertools.islice(parts, PARTS):
                both.append(Quality.of(0, confidence_sums(fit(few, own)(others), truth, None).tolist(), None))
        found.append((mean(each.ece for each in both), mean(each.nll for each in both)))
    return found


def main() -> None:
    """Parse the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/calibration"), help="folder of the trained runs")
    parser.add_argument("--seed", type=a_seed, default=0)
    parser.add_argument("--images", type=a_count, default=3_000, help="how many are fitted on")
    given = parser.parse_args()
    print(f"| rule | {' | '.join(f'{name}: ECE' for name in FITS)} | {' | '.join(f'{name}: NLL' for name in FITS)} |")
    print("|---" * (1 + 2 * len(FITS)) + "|")
    lines = {name: compared(name, given.seed, given.runs, given.images) for name in ENTRIES}
    lines["mean"] = [
        (mean(line[i][0] for line in lines.values()), mean(line[i][1] for line in lines.values()))
        for i in range(len(FITS))
    ]
    for name, line in lines.items():
        print("| " + " | ".join([name, *(f"{ece:.4f}" for ece, _ in line), *(f"{nll:.3f}" for _, nll in line)]) + " |")


if __name__ == "__main__":
    main()
