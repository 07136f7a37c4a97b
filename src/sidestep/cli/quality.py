"""How good the answers of a reading are, as cells of a table."""

from sidestep.training.calibration import Quality

__all__ = ["QUALITY_COLUMNS", "quality_cells"]

QUALITY_COLUMNS = ["accuracy", "NLL", "ECE", "T"]


def quality_cells(quality: Quality) -> list[str]:
    """Return a reading's cells; a dash for T says that NLL and ECE are those of scores."""
    temperature = "-" if quality.temperature is None else f"{quality.temperature:.3g}"
    return [f"{quality.accuracy:.2%}", f"{quality.nll:.4f}", f"{quality.ece:.4f}", temperature]
