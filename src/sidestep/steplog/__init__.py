"""Step logs: a trained model as the steps that made it (docs/step-log.md)."""

from sidestep.steplog.codecs import is_logged
from sidestep.steplog.header import Header
from sidestep.steplog.reader import LogReader, Scan
from sidestep.steplog.recorder import Recorder
from sidestep.steplog.replay import Replayed, rebuild, replay
from sidestep.steplog.summary import summary
from sidestep.steplog.untrained import check_net
from sidestep.steplog.writer import LogWriter

__all__ = [
    "Header",
    "LogReader",
    "LogWriter",
    "Recorder",
    "Replayed",
    "Scan",
    "check_net",
    "is_logged",
    "rebuild",
    "replay",
    "summary",
]
