"""The first stage: claims jobs, reads them slice by slice, and decides when a draining worker is done.

It claims only when there is room for another slice, so no job lies idle in a worker's hands. A slice is about one
second of the device's work, measured as the worker goes.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence

import psycopg

from pgvec_queue import queue, reading, vectorizer
from pgvec_queue.database import Connection, one_line, versions
from pgvec_queue.fragments import Fragments
from pgvec_queue.queue import Claimer, Pending
from pgvec_queue.slices import Slice
from pgvec_queue.worker.stages import Channel
from pgvec_queue.worker.state import Link, Run, State, Work

log = logging.getLogger("pgvec.worker")

SLICE_BYTES = 8 * 1024 * 1024
"""Text in one slice, apart from its last document."""
_FIRST_ROWS, _LEAST_ROWS, _MOST_ROWS = 32, 8, 2_000
_IDLE_POLL = (0.7, 1.3)
_DRAIN_POLL = (0.1, 0.3)


class Reader:
    """Feeds ``out`` until the worker is told to leave, or, when draining, until nothing is left to wait for."""

    def __init__(
        self, link: Link, state: State, out: Channel, worker: int, names: Sequence[str] | None, *, drain: bool
    ) -> None:
        self._link = link
        self._state = state
        self._out = out
        self._names = names
        self._drain = drain
        self.claimer = Claimer(worker, names)
        self._fragments: dict[int, Fragments] = {}

    def run(self) -> None:
        while not self._state.ending:
            self._state.wake.clear()
            run = self._claim()
            if run is not None:
                self._state.activity = "working"
                self._read_job(run)
            elif self._state.in_flight == 0 and self._drain and self._is_drained():
                self._state.drained.set()
            else:
                self._wait()

    def _claim(self) -> Run | None:
        job = self._link.call(self.claimer.claim)
        if job is None:
            return None
        fragments = self._fragments.get(job.vectorizer_id)
        if fragments is None:
            fragments = self._link.call(lambda connection: _load_fragments(connection, job.vectorizer_id))
            if fragments is None:
                log.warning("job %d belongs to a vectorizer that was dropped", job.id)
                return None
            self._fragments[job.vectorizer_id] = fragments
        run = Run(job, fragments)
        self._state.begin(run)
        return run

    def _read_job(self, run: Run) -> None:
        job = run.job
        while not run.dropped and not self._state.ending:
            try:
                part = self._link.call(self._reading(run, job))
            except psycopg.Error as error:
                # Reading touches no single document: what fails here fails for the whole vectorizer.
                self._block(run, error)
                return
            self._state.enter()
            self._out.put(Work(run, part))
            if part.last:
                return
            job = part.after()

    def _reading(self, run: Run, job: queue.Job) -> Callable[[Connection], Slice]:
        rows = self._rows()
        return lambda connection: reading.read(connection, run.fragments, job, rows=rows, max_bytes=SLICE_BYTES)

    def _rows(self) -> int:
        rate = self._state.documents_per_second
        return min(max(round(rate), _LEAST_ROWS), _MOST_ROWS) if rate else _FIRST_ROWS

    def _block(self, run: Run, error: psycopg.Error) -> None:
        block(
            self._link,
            self._state,
            self.claimer.worker,
            run,
            f"reading {run.fragments.vectorizer.source}: {one_line(error)}",
        )

    def _wait(self) -> None:
        if self._state.in_flight == 0:
            self._state.activity = "idle"
        low, high = _DRAIN_POLL if self._drain else _IDLE_POLL
        self._state.wake.wait(random.uniform(low, high))  # noqa: S311 - jitter, no secret

    def _is_drained(self) -> bool:
        return not any(one.waits and one.id not in self.claimer.refused for one in self.pending())

    def pending(self) -> list[Pending]:
        return self._link.call(lambda connection: queue.pending(connection, self._names))


def _load_fragments(connection: Connection, vectorizer_id: int) -> Fragments | None:
    found = vectorizer.by_ids(connection, [vectorizer_id])
    return Fragments(found[0], versions(connection).vector_schema) if found else None


def block(link: Link, state: State, worker: int, run: Run, reason: str) -> None:
    """Blocks the run's vectorizer with the reason, and gives back all of its jobs."""
    name = run.fragments.vectorizer.name
    state.drop_vectorizer(run.job.vectorizer_id)
    log.error("%s is blocked: %s", name, reason)
    link.call(lambda connection: vectorizer.block(connection, run.job.vectorizer_id, reason))
    link.call(lambda connection: queue.release(connection, worker, vectorizer=run.job.vectorizer_id))
