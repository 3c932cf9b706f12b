"""How many cores there are for this process."""

from __future__ import annotations

import os


def available() -> int:
    """Returns the cores that this process may run on, as far as the system tells."""
    # Not everywhere can a process be kept to some of the cores.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
