"""A suite of runs in which every rule has the same nets, recipe and search budget."""

__all__: list[str] = []
