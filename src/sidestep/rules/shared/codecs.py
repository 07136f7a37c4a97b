"""What goes with what in noise_step: the estimate, what is logged of it, and how that moves weights."""

from sidestep.checks import check_range
from sidestep.data.task import Task
from sidestep.errors import InputError
from sidestep.notices import tell

__all__ = ["LOCAL", "check_choices", "check_tokens", "codec_and_update", "note_projection"]

LOCAL = ("local-losses", "local-probes")  # estimators that need a head on every stage

_CODEC_OF = {
    "flips": "flips",
    "sets": "flips",
    "bop": "flips",
    "clamped-sum": "trits",
    "accumulators": "trits",
}  # by the update


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


def note_projection(estimator: str, probes: int, trits: int) -> None:
    """Warn that trits, which estimators of dense gradients do not give, are made of a projection on a few probes."""
    tell(
        f"codec = trits with estimator = {estimator}: each step's gradient of {trits:,} weights is projected on "
        f"{probes:,} random probes, and a sign of each is all that moves weights; codec = flips, the default, logs the "
        "moves of the gradient itself"
    )


def check_choices(
    net: str, norm: str, pooled: tuple[int, ...] | None, estimator: str, directions: int | None, guide: str
) -> None:
    """Raise InputError for hyper-parameters of a net or of local probes that do not go with the others."""
    if norm == "batch" and (net == "mlp" or estimator != "local-losses"):
        raise InputError(
            "a batch norm makes examples depend on each other, which probes do not allow for: norm = batch goes "
            "with net = conv and estimator = local-losses"
        )
    if net == "mlp" and pooled is not None:
        raise InputError("pooled is for net = conv; an MLP has nothing to pool")
    if estimator != "local-probes" and (directions is not None or guide != "none"):
        raise InputError("directions and guide are for estimator = local-probes; leave them out, or choose it")
    if directions is not None:
        check_range(1, 1 << 24, directions=directions)
    if guide != "none" and directions is None:
        raise InputError(
            f"guide = {guide} stands beside some random directions, and a complete set leaves it nothing: set "
            "directions, or leave the guide out"
        )


def check_tokens(task: Task, module: object, estimator: str, net: str) -> None:
    """Raise InputError for hyper-parameters, or a module of the user's, that do not go with rows of tokens."""
    if task.inputs != "tokens":
        raise InputError(
            f"noise-step takes next tokens as targets of rows of tokens, but the data have {task.inputs}; take another "
            "rule: `sidestep rules` shows what each takes"
        )
    if task.targets != "tokens" and not task.vocabulary:
        raise InputError(
            "how many tokens there are is not known: make the data with data.from_tokens(ids, classes, vocabulary=...)"
        )
    if module is not None:
        raise InputError(
            "noise-step builds the stages for rows of tokens itself: leave the module out, or give a whole model of "
            "ternary layers, train(NoiseStep(estimator='weight-probes', schedule='constant'), data, model=make_model)"
        )
    if net != "mlp":
        raise InputError(f"net = {net} is for images; rows of tokens take net = mlp")
    if estimator not in LOCAL:
        raise InputError(f"estimator = {estimator} has no form for rows of tokens; take local-losses or local-probes")
