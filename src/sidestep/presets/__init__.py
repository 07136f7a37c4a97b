"""Settings of rules that are known to reach something, by name."""

__all__: list[str] = []
