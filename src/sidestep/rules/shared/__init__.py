"""What rules have in common."""

__all__: list[str] = []
