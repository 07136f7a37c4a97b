"""What a step takes, and what fits into a budget of memory."""

__all__: list[str] = []
