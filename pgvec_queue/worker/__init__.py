"""The worker: claims jobs, reads, chunks, embeds and writes, in stages with bounded queues between them.

A worker holds no state worth saving: it can be killed at any time, and whoever claims its jobs next goes on from their
checkpoints. ``Worker.run`` is the whole of it; the stages are threads of one process, each with its own connection.
"""

from pgvec_queue.worker.lifecycle import Outcome, Worker
from pgvec_queue.worker.options import WorkerOptions

__all__ = ["Outcome", "Worker", "WorkerOptions"]
