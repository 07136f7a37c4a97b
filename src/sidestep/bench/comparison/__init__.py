"""Comparisons of rules: entries, runs in rounds, records, tables, pictures, the page."""

__all__: list[str] = []
