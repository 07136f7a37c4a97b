"""The tables of the NoProp paper: rows, cells, accuracies, memory."""

__all__: list[str] = []
