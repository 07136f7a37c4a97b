"""What a log holds and what it costs, beside the weights that it stands for."""

import math
from typing import Any

from sidestep.steplog.header import DTYPES, Header
from sidestep.steplog.reader import LogReader
from sidestep.ternary import packed_bytes

__all__ = ["summary"]

COSINE = 1.386  # 2 ln 2: a direction told in R bits has at most this much R / d of cosine^2

_OF_NETS = ("net", "hidden", "norm")  # options of nets that a rule builds; a module that was attached is none of these


def summary(reader: LogReader) -> dict[str, Any]:
    """Return the facts about a log by name; entries that do not apply are None.

    `cosine2_at_most` bounds how well a step's direction, told in the bits that a step takes here, can agree with any
    gradient: 1.386 R / d; None where that is 1 or more, which bounds nothing.
    """
    header = reader.header
    steps, counts = reader.counts()
    probes, flips, least = counts.probes, counts.flips, counts.least_bits
    damage, scan = reader.damage, reader.scan()
    packed = sum(_weight_bytes(kind, math.prod(shape)) for _, kind, shape in header.parameters)
    block_bits = 8.0 * (scan.size - len(header.to_bytes()))  # with heads and checksums
    bits = block_bits / steps if steps else 0.0
    bound = COSINE * bits / header.weights
    return {
        **_origin(header),
        "weights": header.weights,
        "parameters": len(header.parameters),
        "steps": steps,
        "blocks": scan.blocks,
        "probes": probes or None,
        "non_zero_share": counts.non_zero / probes if probes else None,
        "bits_per_probe": block_bits / probes if probes and not flips else None,
        "flips": flips if counts.flip_steps else None,
        "bits_per_flip": block_bits / flips if flips and not probes else None,
        "of_the_least_possible": block_bits / least if least and not probes else None,
        "bits_per_step": bits,
        "cosine2_at_most": bound if bound < 1 else None,
        "header_bytes": len(header.to_bytes()),
        "bytes": scan.size,
        "file_bytes": scan.file_size,
        "packed_weights_bytes": packed,
        "log_to_packed_weights": scan.size / packed if packed else None,
        "damage": damage or scan.damage,
    }


def _weight_bytes(kind: str, count: int) -> int:
    """Trits take 1.6 bits each; floats are stored as they are."""
    return count * DTYPES[kind].itemsize if DTYPES[kind].is_floating_point else packed_bytes(count)


def _origin(header: Header) -> dict[str, Any]:
    unused = ("name", *_OF_NETS) if header.attached else ("name",)
    tuned = header.training.get("tune")
    return {
        "rule": header.rule["name"],
        "options": {name: value for name, value in header.rule.items() if name not in unused},
        "base": tuned["base"] if isinstance(tuned, dict) and "base" in tuned else None,
        "data": header.data or None,
        "module": header.module,
        "seed": header.seed,
        "noise": header.noise,
        "sidestep": header.sidestep,
    }
