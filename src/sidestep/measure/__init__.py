"""What is measured of a run: memory and the processor."""

from sidestep.measure.allocations import PeakAllocation, peak_allocation
from sidestep.measure.memory import keep_freed_memory, peak_memory_bytes
from sidestep.measure.processor import has_bfloat16

__all__ = ["PeakAllocation", "has_bfloat16", "keep_freed_memory", "peak_allocation", "peak_memory_bytes"]
