"""Ternary layers and nets, without float weights."""

__all__: list[str] = []
