"""The codecs of a step log: how each kind of update becomes bytes, and what those bytes bring back."""

__all__: list[str] = []
