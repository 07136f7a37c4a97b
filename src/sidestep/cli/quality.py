"""How good the answers of a reading are, as cells of a table."""

from sidestep.data.objective import NEXT_TOKENS
from sidestep.training.calibration import Quality
from sidestep.training.likelihood import bits_of

__all__ = ["quality_cells", "quality_columns", "score_cell"]


def quality_columns(score: str | None = None) -> list[str]:
    """Return the columns of a table of readings; `score` names what is counted where targets are no classes."""
    if score == NEXT_TOKENS.score_name:
        return [score, "bits a token"]
    return [score] if score else ["accuracy", "NLL", "ECE", "T"]


def score_cell(value: float, score: str | None = None) -> str:
    """Return an accuracy as a percentage, or another score, such as R2, as a number."""
    return f"{value:.4f}" if score and "accuracy" not in score else f"{value:.2%}"


def quality_cells(quality: Quality, score: str | None = None) -> list[str]:
    """Return a reading's cells; a dash for T says that NLL and ECE are those of scores."""
    if score == NEXT_TOKENS.score_name:
        bits = bits_of(quality)
        return [score_cell(quality.accuracy, score), "-" if bits is None else f"{bits:.4f}"]
    if quality.nll is None or quality.ece is None:
        return [score_cell(quality.accuracy, score)]
    temperature = "-" if quality.temperature is None else f"{quality.temperature:.3g}"
    return [f"{quality.accuracy:.2%}", f"{quality.nll:.4f}", f"{quality.ece:.4f}", temperature]
