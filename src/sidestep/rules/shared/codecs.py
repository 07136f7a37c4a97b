"""What goes with what in noise_step: the estimate, what is logged of it, and how that moves weights."""

from sidestep.errors import InputError

__all__ = ["codec_and_update"]

_CODEC_OF = {"flips": "flips", "bop": "flips", "clamped-sum": "trits", "accumulators": "trits"}  # by the update


def codec_and_update(estimator: str, codec: str, update: str) -> tuple[str, str]:
    """Return the codec and the update, with `auto` resolved.

    Raises:
        InputError: if the two do not go with one another.

    >>> codec_and_update("local-losses", "auto", "auto"), codec_and_update("rank-one", "auto", "auto")
    (('flips', 'flips'), ('trits', 'accumulators'))
    """
    if codec == "auto":
        codec = _CODEC_OF.get(update, "trits" if estimator in ("weight-probes", "rank-one") else "flips")
    if update == "auto":
        update = "flips" if codec == "flips" else "accumulators" if estimator == "rank-one" else "clamped-sum"
    if _CODEC_OF[update] != codec:
        raise InputError(
            f"codec {codec} does not go with update {update}: flips are logged as flips, and clamped-sum and "
            "accumulators work on trits; leave one of the two at auto"
        )
    return codec, update
