"""Comparisons of rules, and studies of why they do as they do."""

__all__: list[str] = []
