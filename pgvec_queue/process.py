"""What this process has of its machine, cores and memory, and how its interpreter shares them among threads."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
"""Where a container finds the bounds that are its own (cgroup v2)."""


def cores() -> int:
    """Returns the cores that this process, or its container, may use, as far as the system tells."""
    # Not everywhere can a process be kept to some of the cores.
    allowed = getattr(os, "sched_getaffinity", None)
    there = len(allowed(0)) if allowed else os.cpu_count() or 1
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return there
    # Microseconds of processor time in each period of so many; "max" where there is no bound.
    return min(there, max(1, -(-int(quota) // int(period)))) if quota.isdigit() else there


def machine_memory() -> int | None:
    """Returns the bytes of this machine, or of its container; None where the system does not tell."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
    try:
        bound = (_CGROUP / "memory.max").read_text().strip()
    except OSError:
        bound = "max"
    return min(there, int(bound)) if bound.isdigit() else there


def settle() -> None:
    """Sets the interpreter up for a pipeline of threads that pass on many small objects.

    What is loaded by now is here to stay: the collector of cycles needs not look at it again, nor at each thousand of
    documents on their way, which are no cycles (it took half of the embedding stage's time beside a free model). A
    thread that waits for the interpreter, when the device or the database has answered, gets it within a
    millisecond instead of five.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    sys.setswitchinterval(0.001)


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
