"""What this worker does not do: jobs that it leaves to others, and vectorizers that nobody can serve."""

from __future__ import annotations

from typing import Protocol

from pgvec_queue import queue, schema, vectorizer
from pgvec_queue.log import get_logger
from pgvec_queue.queue import Claimer, Membership
from pgvec_queue.worker.link import Link
from pgvec_queue.worker.state import State, StoppedError
from pgvec_queue.worker.work import Run

log = get_logger("pgvec.worker")


class Block(Protocol):
    """Blocks a vectorizer with the reason; ``shown`` is that without what it repeats of a document."""

    def __call__(self, run: Run, reason: str, shown: str | None = None) -> None: ...


def leave_to_others(link: Link, state: State, claimer: Claimer, run: Run, reason: str, shown: str) -> None:
    """Claims nothing more of the run's vectorizer here, and gives back what this worker has of it.

    ``shown`` is the reason without what it repeats of a document.
    """
    name = run.fragments.vectorizer.name
    log.error("vectorizer is left to other workers", vectorizer=name, error=shown)
    claimer.refused[run.job.vectorizer_id] = reason
    state.waits[name] = f"{name}: {reason}"
    state.drop_vectorizer(run.job.vectorizer_id)
    link.call(lambda connection: queue.release(connection, claimer.member, vectorizer=run.job.vectorizer_id))


def block(link: Link, state: State, member: Membership, run: Run, reason: str, shown: str | None = None) -> None:
    """Blocks the run's vectorizer with the reason, and gives back all of its jobs.

    ``shown`` is the reason without what it repeats of a document, where it may do so. Raises ``StoppedError`` where the
    schema has become another one since the session began: that may be the reason, and blocks nothing.
    """
    name = run.fragments.vectorizer.name
    state.drop_vectorizer(run.job.vectorizer_id)
    if link.call(schema.revision) != state.revision:
        state.outgrow()
        raise StoppedError
    if not link.call(lambda connection: vectorizer.by_ids(connection, [run.job.vectorizer_id])):
        # Dropped with its destination, in the middle of what was being done for it.
        log.warning("vectorizer of a job was dropped", job=run.job.id)
        return
    log.error("vectorizer is blocked", vectorizer=name, error=shown or reason)
    link.call(lambda connection: vectorizer.block(connection, run.job.vectorizer_id, reason))
    link.call(lambda connection: queue.release(connection, member, vectorizer=run.job.vectorizer_id))
