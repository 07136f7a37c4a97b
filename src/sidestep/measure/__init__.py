"""What is measured of a run: memory and the processor."""

from sidestep.measure.allocations import PeakAllocation, peak_allocation
from sidestep.measure.memory import Growth, free_memory_bytes, keep_freed_memory, memory_growth, peak_memory_bytes
from sidestep.measure.processor import has_bfloat16

__all__ = [
    "Growth",
    "PeakAllocation",
    "free_memory_bytes",
    "has_bfloat16",
    "keep_freed_memory",
    "memory_growth",
    "peak_allocation",
    "peak_memory_bytes",
]
