"""Doors for other libraries, each imported when it is asked for: scikit-learn estimators, export to other programs."""

__all__: list[str] = []
