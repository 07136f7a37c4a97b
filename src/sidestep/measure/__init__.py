"""What is measured: memory, operations, bytes exchanged, the processor, agreement with the true gradient."""

from typing import TYPE_CHECKING

from sidestep.later import later

if TYPE_CHECKING:
    from sidestep.measure.alignment import WHOLE, Alignment, Comparison, effective_probes
    from sidestep.measure.allocations import PeakAllocation, peak_allocation
    from sidestep.measure.environment import commit_of, environment_of, environment_words
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
else:
    __getattr__, __dir__ = later(
        __name__,
        {
            "alignment": "WHOLE Alignment Comparison effective_probes",
            "allocations": "PeakAllocation peak_allocation",
            "environment": "commit_of environment_of environment_words",
            "exchange": "update_bytes",
            "memory": (
                "Growth free_memory_bytes keep_freed_memory memory_growth peak_memory_bytes "
                "restart_peak_memory return_freed_memory"
            ),
            "operations": "Operations count_operations",
            "processor": "has_bfloat16 processor_name",
        },
    )

__all__ = [
    "WHOLE",
    "Alignment",
    "Comparison",
    "Growth",
    "Operations",
    "PeakAllocation",
    "commit_of",
    "count_operations",
    "effective_probes",
    "environment_of",
    "environment_words",
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
