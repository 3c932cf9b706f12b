"""A vectorizer's limit in rows per second, which all workers share: it holds for what is read of ranges."""

from __future__ import annotations

import time

from pgvec_queue import queue
from pgvec_queue.worker.link import Link
from pgvec_queue.worker.measures import HELD
from pgvec_queue.worker.state import State
from pgvec_queue.worker.work import Run

_KEPT_FOR = 2.0
"""Seconds that a job is kept while others use up what may be read."""
_LOOK = 0.1


class Pace:
    """One worker's share of the limits."""

    def __init__(self, link: Link, state: State) -> None:
        self._link = link
        self._state = state

    def has_room(self, run: Run) -> bool:
        """False where others use up the vectorizer's rate for so long that the job goes back."""
        vectorizer = run.job.vectorizer_id
        if run.job.kind != "range" or vectorizer not in self._state.rate_limits:
            return True
        return self._link.call(lambda connection: queue.spent(connection, vectorizer)) < _KEPT_FOR

    def keep(self, run: Run, rows: int) -> bool:
        """Waits for as long as the vectorizer's limit asks for, since so many rows of a range were read.

        False where others have used it up for so long that the job goes back.
        """
        vectorizer = run.job.vectorizer_id
        if not rows or run.job.kind != "range" or vectorizer not in self._state.rate_limits:
            return True
        seconds = self._link.call(lambda connection: queue.reserve(connection, vectorizer, rows, most=_KEPT_FOR))
        if seconds is None:
            # Or there is no limit any more.
            return self._link.call(lambda connection: queue.spent(connection, vectorizer)) < _KEPT_FOR
        deadline = time.monotonic() + seconds
        with self._state.measures.waiting(HELD):
            while (left := deadline - time.monotonic()) > 0 and vectorizer in self._state.rate_limits:
                if run.stopped or run.dropped or self._state.ending or self._state.aborted.wait(min(left, _LOOK)):
                    break
        return True
