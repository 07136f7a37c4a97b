"""Rows of token ids."""

__all__: list[str] = []
