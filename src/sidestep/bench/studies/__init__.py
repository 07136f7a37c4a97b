"""Studies of why the rules do as they do: blocks, the weight of a loss, alignment."""

__all__: list[str] = []
