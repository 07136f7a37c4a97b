"""What is measured of a run: memory, the processor, and how estimates agree with the true gradient."""

from sidestep.measure.alignment import WHOLE, Alignment, Comparison, effective_probes
from sidestep.measure.allocations import PeakAllocation, peak_allocation
from sidestep.measure.memory import keep_freed_memory, peak_memory_bytes
from sidestep.measure.processor import has_bfloat16

__all__ = [
    "WHOLE",
    "Alignment",
    "Comparison",
    "PeakAllocation",
    "effective_probes",
    "has_bfloat16",
    "keep_freed_memory",
    "peak_allocation",
    "peak_memory_bytes",
]
