"""What this process has of its machine: cores, and memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cores() -> int:
    """Returns the cores that this process may run on, as far as the system tells."""
    # Not everywhere can a process be kept to some of the cores.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def peak_memory() -> int | None:
    """Returns the most resident memory that this process has had, in bytes; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not by getrusage, which on Linux counts what the parent held when it forked this process.
        found = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(found[0].split()[1]) * 1024 if found else None
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts in bytes, others in KiB.
    return peak if sys.platform == "darwin" else peak * 1024
