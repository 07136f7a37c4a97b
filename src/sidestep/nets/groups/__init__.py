"""Chains of residual blocks cut into groups, each of which denoises its own range of noise levels."""

__all__: list[str] = []
