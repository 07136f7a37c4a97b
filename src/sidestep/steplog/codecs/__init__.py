"""The codecs of a step log: how each kind of update becomes bytes, and what those bytes bring back.

`CODECS` is the one list of them: writer, reader, replay and summary ask it, and know no kind of update by name.
"""

from typing import Any, TypeGuard

from sidestep.errors import InputError
from sidestep.steplog.codecs.codec import Codec, Counts, Logged
from sidestep.steplog.codecs.flips import FlipsCodec
from sidestep.steplog.codecs.reals import RealsCodec
from sidestep.steplog.codecs.sets import SetsCodec
from sidestep.steplog.codecs.trits import TritsCodec
from sidestep.steplog.header import Header
from sidestep.update import Update

__all__ = ["CODECS", "Codec", "Counts", "Logged", "codec_of", "is_logged"]

CODECS: dict[int, Codec[Any]] = {codec.kind: codec for codec in (TritsCodec(), FlipsCodec(), RealsCodec(), SetsCodec())}


def codec_of(update: Update) -> Codec[Any]:
    """Return the codec of an update's kind; raises InputError for a kind that no log takes."""
    for codec in CODECS.values():
        if codec.holds(update):
            return codec
    raise InputError(f"a log takes trits, flips, or numbers along dense probes, got {type(update).__name__}")


def is_logged(update: Update, header: Header, step: int) -> TypeGuard[Logged]:
    """Say whether an update can be logged: flips, or one number per probe that is drawn from the run's noise.

    The numbers are trits; along dense probes they are float32 and have a learning rate. Steps that would take more than
    2^31 operations to replay, or have more than 2^24 flips, cannot.
    """
    return any(codec.holds(update) and codec.is_logged(update, header, step) for codec in CODECS.values())
