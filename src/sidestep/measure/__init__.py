"""What is measured: memory, operations, bytes exchanged, the processor, agreement with the true gradient."""

from sidestep.measure.alignment import WHOLE, Alignment, Comparison, effective_probes
from sidestep.measure.allocations import PeakAllocation, peak_allocation
from sidestep.measure.exchange import update_bytes
from sidestep.measure.memory import (
    Growth,
    free_memory_bytes,
    keep_freed_memory,
    memory_growth,
    peak_memory_bytes,
    restart_peak_memory,
    return_freed_memory,
)
from sidestep.measure.operations import Operations, count_operations
from sidestep.measure.processor import has_bfloat16, processor_name

__all__ = [
    "WHOLE",
    "Alignment",
    "Comparison",
    "Growth",
    "Operations",
    "PeakAllocation",
    "count_operations",
    "effective_probes",
    "free_memory_bytes",
    "has_bfloat16",
    "keep_freed_memory",
    "memory_growth",
    "peak_allocation",
    "peak_memory_bytes",
    "processor_name",
    "restart_peak_memory",
    "return_freed_memory",
    "update_bytes",
]
