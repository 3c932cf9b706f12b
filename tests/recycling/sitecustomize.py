"""Loaded by any Python whose ``PYTHONPATH`` names this directory: SIGUSR1 recycles the process's worker.

It stands in for a device that does not give memory back, which is what recycles a worker otherwise.
"""

from __future__ import annotations

import gc
import signal


def _recycle(*_: object) -> None:
    from pgvec_queue.worker import Worker

    for worker in gc.get_objects():
        if isinstance(worker, Worker):
            worker.recycle()


signal.signal(signal.SIGUSR1, _recycle)
