"""Cosines that theory predicts of untrained nets, beside the measured ones: the first table of docs/alignment.md."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean, stdev

from torch import Tensor

from sidestep.data import DataSet
from sidestep.measure import WHOLE, Alignment, Comparison, effective_probes
from sidestep.noise import Noise
from sidestep.rules import SPSA, ForwardGradient, NoiseStep, Rule, Task
from sidestep.rules.shared.trits import as_gradients, sign_and_median
from sidestep.rules.untrained import untrained
from sidestep.training import Compute
from sidestep.training.alignment_watch import check_measurable, held_batch
from sidestep.update import Seeded, Update

__all__ = ["Claim", "claims", "spread", "theory_table"]

ESTIMATES = 16


@dataclass(frozen=True)
class Claim:
    """A cosine that theory predicts: which tensors of which estimates it is about."""

    what: str
    rule: Rule
    theory: Callable[[int], float]  # squared cosine, from the number of elements
    batch: int = 128
    prefix: str = ""
    code: Callable[[Tensor], Tensor] | None = None  # what is made of the coefficients


def claims() -> list[Claim]:
    """Return what is held to theory."""
    weights = [
        Claim(f"forward gradient, {k} weight probes", ForwardGradient(kind="weights", hidden=(32,), tangents=k),
              lambda d, k=k: k / (k + d - 1))
        for k in (1, 16, 64)
    ]  # fmt: skip
    pairs = [
        Claim(f"SPSA, {k} pairs", SPSA(hidden=(32,), pairs=k, sides="both"), lambda d, k=k: k / (k + d - 1))
        for k in (1, 16)
    ]
    activities = [
        Claim(f"activity probes, {k} tangents, n = 64, batch {batch}",
              ForwardGradient(kind="activities", hidden=(64,), tangents=k, norm=False),
              lambda d, k=k: k / (k + 63), batch, "stages.")
        for k, batch in ((1, 2), (16, 2), (1, 128))
    ]  # fmt: skip
    ternary = NoiseStep(estimator="weight-probes", hidden=(32,), density=1.0, schedule="constant")
    codes = [
        Claim(f"128 dense ternary probes, {name}", ternary, lambda d, k=k: k / (k + d - 1), code=code)
        for name, k, code in (
            ("real", 128, None), ("signs", 128 * 2 / math.pi, lambda coefs: coefs.sign()),
            ("sign and median", 128 * 0.81, sign_and_median),
        )
    ]  # fmt: skip
    return [*weights, *pairs, *activities, *codes]


def measured(claim: Claim, data: DataSet, seed: int) -> Alignment:
    """Return the alignment of untrained nets' estimates, over the tensors that the claim is about."""
    task = Task.of(data)
    net = untrained(claim.rule, task, seed, data.train)
    batch = held_batch(claim.rule, data.validation, task, claim.batch, Compute.find("cpu", "float32"))
    true = check_measurable(claim.rule).true_gradients(net, batch)
    compared = Comparison({name: g for name, g in true.items() if name.startswith(claim.prefix)})
    for index in range(ESTIMATES):
        update = claim.rule.estimate(net, batch, Noise(seed).stream(f"look {index}"))
        compared.add(gradients(claim, net, update))
    return compared.result()[WHOLE]


def gradients(claim: Claim, net: object, update: Update) -> dict[str, Tensor]:
    """Return an estimate by name, its coefficients coded as the claim has it."""
    if isinstance(update, Seeded):
        coefs = claim.code(update.coefs) if claim.code else update.coefs
        return as_gradients(net, replace(update, coefs=coefs))
    return update.gradients


def theory_table(data: DataSet, seeds: list[int]) -> tuple[str, list[tuple[float, float]]]:
    """Return the table as Markdown, and (theory, measured) cosines."""
    lines = ["| estimate | elements d | cos, theory | cos, measured | effective probes |", "|---|---|---|---|---|"]
    points = []
    for claim in claims():
        found = [measured(claim, data, seed) for seed in seeds]
        d = found[0].elements
        squares = [f.effective_probes / (f.effective_probes + d - 1) for f in found]
        cosines = [math.sqrt(square) for square in squares]
        theory = math.sqrt(claim.theory(d))
        probes = effective_probes(mean(squares), d)
        points.append((theory, mean(cosines)))
        lines.append(f"| {claim.what} | {d:,} | {theory:.4f} | {spread(cosines, 4)} | {probes:,.3g} |")
    return "\n".join(lines), points


def spread(values: list[float], digits: int) -> str:
    """Return mean and standard deviation."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")
