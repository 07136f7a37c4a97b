"""How good the answers of a reading are, as cells of a table."""

from sidestep.training.calibration import Quality

__all__ = ["quality_cells", "quality_columns", "score_cell"]


def quality_columns(score: str | None = None) -> list[str]:
    """Return the columns of a table of readings; `score` names what is counted where targets are no classes."""
    return [score] if score else ["accuracy", "NLL", "ECE", "T"]


def score_cell(value: float, score: str | None = None) -> str:
    """Return an accuracy as a percentage, or another score, such as R2, as a number."""
    return f"{value:.4f}" if score and "accuracy" not in score else f"{value:.2%}"


def quality_cells(quality: Quality, score: str | None = None) -> list[str]:
    """Return a reading's cells; a dash for T says that NLL and ECE are those of scores."""
    if quality.nll is None or quality.ece is None:
        return [score_cell(quality.accuracy, score)]
    temperature = "-" if quality.temperature is None else f"{quality.temperature:.3g}"
    return [f"{quality.accuracy:.2%}", f"{quality.nll:.4f}", f"{quality.ece:.4f}", temperature]
