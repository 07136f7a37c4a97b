"""Nets in stages, each with a head or feedback of its own."""

__all__: list[str] = []
