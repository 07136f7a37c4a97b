"""Tables of features: a column each, scaled by column."""

__all__: list[str] = []
