"""What a comparison comes to, in plain sentences made of its numbers."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sidestep.bench.comparison.entries import BASELINE_KIND
from sidestep.bench.comparison.numbers import (
    MEASURES,
    Baseline,
    Measure,
    baseline_labels,
    baseline_of,
    finished,
    ratios,
    rounded,
    score,
    spread_of,
    value_of,
)

__all__ = ["CLOSE", "sentences"]

CLOSE = 0.01  # of accuracy: entries so near to the best one are compared by what they cost
_EVEN = 1.05  # a cost less than 5 % below that of the baseline's rule is no gain


class _Best(NamedTuple):
    measure: Measure
    entry: str
    value: float
    gains: bool  # whether it is of another rule than the baseline, and clearly lower than any of that rule


def sentences(
    records: Sequence[Mapping[str, Any]],
    data: str,
    labels: Mapping[str, str],
    baseline: Baseline,
    threshold: float | None,
) -> list[str]:
    """Return what the numbers on one data set come to.

    Only entries whose mean accuracy lies within a point of the best one are compared by cost: speed at the price of
    accuracy is no gain.

    Args:
        records: of all runs.
        data: the data set.
        labels: entry -> the name of its rule, in the order of the table.
        baseline: the entry that others are compared with, or entry -> the one of its own.
        threshold: the validation accuracy that seconds are counted to.
    """
    means = {label: _mean(finished(records, data, label)) for label in labels}
    there = {label: mean for label, mean in means.items() if mean is not None}
    if not there:
        return [f"On {data} no run has finished."]
    best = max(there, key=lambda label: there[label])
    near = [label for label in there if there[label] >= there[best] - CLOSE]
    rules = {labels[label] for label in baseline_labels(baseline) if label in labels}
    own = [label for label in near if labels[label] in rules]
    ended = {label: mean for label, mean in there.items() if labels[label] in rules}
    found = [f"On {data} the highest accuracy is that of {best}, {_percent(there[best])}."]
    others = f" Within a point of it: {_listed([label for label in near if label != best])}." if len(near) > 1 else ""
    found[0] += others
    bests = [each for measure in MEASURES if (each := _best(records, data, near, own, measure, threshold))]
    found.append(f"Of these {_all_said(bests, threshold)}." if len(near) > 1 and bests else "")
    rule = rules.pop() if len(rules) == 1 else BASELINE_KIND
    if own:
        found.append(_verdict(records, data, bests, rule, baseline, threshold))
    else:
        found.append(_far(rule, ended, there[best]))
    below = []
    for label in (label for label in there if label not in near):
        other = baseline_of(baseline, label)
        if other in there and other != label:
            below.append(f"{label} ({100 * (there[label] - there[other]):+.1f} points)")
    against = baseline if isinstance(baseline, str) else "back-propagation on the same net"
    found.append(f"Further from the best accuracy, against {against}: {_listed(below)}." if below else "")
    found.append(_sizes(records, data))
    missing = [label for label in labels if label not in there]
    found.append(f"No run finished of {_listed(missing)}." if missing else "")
    return [sentence for sentence in found if sentence]


def _far(rule: str, finished_runs: Mapping[str, float], best: float) -> str:
    """Say why there is nothing of the rule to compare with: it is further away, or none of its runs has finished."""
    if not finished_runs:
        return f"No run of {rule} has finished, so nothing is said of what others gain over it."
    nearest = max(finished_runs, key=lambda label: finished_runs[label])
    return f"The nearest of {rule} is {nearest}, {100 * (best - finished_runs[nearest]):.1f} points below the best."


def _verdict(  # long: what a verdict is about
    records: Sequence[Mapping[str, Any]],
    data: str,
    bests: Sequence[_Best],
    rule: str,
    baseline: Baseline,
    threshold: float | None,
) -> str:
    gains = [each for each in bests if each.gains]
    kept = [each.measure.superlative for each in bests if not each.gains]
    if not gains:
        return (
            f"{rule} is the better choice here: no other rule comes within a point of the best accuracy at less cost."
        )
    words = []
    for entry in dict.fromkeys(each.entry for each in gains):
        parts = []
        for measure in MEASURES:
            ratio = ratios(records, data, entry, baseline, measure.key, threshold)
            parts += [f"{measure.words} {rounded(ratio.median, 2)} x"] if ratio else []
        words.append(f"{entry} ({', '.join(parts)})" if parts else entry)
    won = f"{rule} keeps {_listed(kept)}" if kept else f"{rule} keeps none of these"
    against = baseline if isinstance(baseline, str) else "the same net trained by back-propagation"
    return f"{won}; there is something to gain from {_listed(words)}, against {against} of the same seeds."


def _best(
    records: Sequence[Mapping[str, Any]],
    data: str,
    near: Sequence[str],
    own: Sequence[str],
    measure: Measure,
    threshold: float | None,
) -> _Best | None:
    medians = {}
    for label in near:
        runs = finished(records, data, label)
        spread = spread_of([value_of(run, measure.key, threshold) for run in runs])
        if spread and spread.runs == len(runs):  # who reached it in some runs only is not the soonest
            medians[label] = spread.median
    if not medians:
        return None
    entry = min(medians, key=lambda label: medians[label])
    of_rule = [medians[label] for label in own if label in medians]
    if of_rule and medians[entry] * _EVEN > min(of_rule):  # even: then the baseline's rule has it
        entry = min((label for label in own if label in medians), key=lambda label: medians[label])
        return _Best(measure, entry, medians[entry], False)
    return _Best(measure, entry, medians[entry], True)


def _all_said(bests: Sequence[_Best], threshold: float | None) -> str:
    """Return who is best in what, entry by entry."""
    parts = []
    for entry in dict.fromkeys(best.entry for best in bests):
        parts.append(f"{entry} " + _listed([_said(best, threshold) for best in bests if best.entry == entry]))
    return "; ".join(parts)


def _said(best: _Best, threshold: float | None) -> str:
    if best.measure.key == "seconds_to":
        return f"is the soonest at {_percent(threshold or 0)} validation accuracy ({rounded(best.value)} s)"
    if best.measure.key == "seconds_per_step":
        return f"takes the shortest step ({rounded(1000 * best.value)} ms)"
    unit, size = ("MiB", 2**20) if best.value >= 2**20 else ("KiB", 2**10)
    verb = "needs the least memory" if best.measure.key == "peak_memory_bytes" else "exchanges the fewest bytes"
    return f"{verb} ({rounded(best.value / size)} {unit})"


def _sizes(records: Sequence[Mapping[str, Any]], data: str) -> str:
    found = [run["counts"]["parameters"] for run in finished(records, data) if "parameters" in run.get("counts", {})]
    if not found or min(found) == max(found):
        return ""
    return (
        f"The nets are not the same: they have from {min(found):,} to {max(found):,} parameters, since every rule "
        "comes with the net of its defaults unless options say otherwise."
    )


def _mean(runs: Sequence[Mapping[str, Any]]) -> float | None:
    return sum(map(score, runs)) / len(runs) if runs else None


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
