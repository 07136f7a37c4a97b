"""NoProp's nets: image paths, blocks, schedules, samplers, read-outs."""

__all__: list[str] = []
