"""Forward-mode tangents of ternary nets: many directions at once."""

__all__: list[str] = []
