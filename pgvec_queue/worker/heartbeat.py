"""The heartbeat: one row per worker, on a connection and a thread of its own; also listens for work, and takes over
jobs.

A worker whose row is not fresh for a lease is declared gone by any other; its jobs go back to the queue, and it may
beat no more: then it gives up what it has and registers afresh. A worker judges others only after its own heartbeat
was unbroken for one lease, so that the first one back after an outage does not declare everybody dead.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from dataclasses import dataclass, field

import psycopg

from pgvec_queue import queue
from pgvec_queue.database import Connection, Database, kind_of, one_line, statement
from pgvec_queue.errors import DatabaseError, Kind
from pgvec_queue.worker.models import Models
from pgvec_queue.worker.state import State

log = logging.getLogger("pgvec.worker")

BEATS_PER_LEASE = 6
_LONGEST_BEAT = 5.0
_HOUSEKEEPING = 60.0


@dataclass(slots=True)
class Heartbeat:
    """Beats for one worker id until told to stop. Times are in seconds."""

    database: Database
    state: State
    models: Models
    worker: int
    lease: float
    listen: bool
    _stop: threading.Event = field(default_factory=threading.Event)
    _connection: Connection | None = None
    _beat_at: float = 0.0
    _unbroken_since: float | None = None
    _housekept_at: float = 0.0
    _reclaimed_at: float = 0.0

    @property
    def period(self) -> float:
        return min(self.lease / BEATS_PER_LEASE, _LONGEST_BEAT)

    def run(self) -> None:
        self._beat_at = time.monotonic()
        try:
            while not self._stop.is_set() and not self.state.lease_lost.is_set():
                try:
                    self._once()
                except (psycopg.Error, DatabaseError) as error:
                    self._on_error(error)
        finally:
            self._close()

    def stop(self) -> None:
        self._stop.set()

    def _once(self) -> None:
        connection = self._open()
        row = connection.execute(
            statement("queue", "beat"),
            {
                "worker": self.worker,
                "state": "stopping" if self.state.stopping.is_set() else self.state.activity,
                "device": embedder.device if (embedder := self.models.latest) else None,
                "dtype": embedder.dtype if embedder else None,
                "models": self.models.names,
                "memory": resident_bytes(),
            },
        ).fetchone()
        if row is None:
            log.warning("worker %d was declared gone by another; starting afresh", self.worker)
            self.state.lease_lost.set()
            self.state.aborted.set()
            self.state.wake.set()
            return
        now = time.monotonic()
        if self._unbroken_since is None or now - self._beat_at > self.lease:
            self._unbroken_since = now
        self._beat_at = now
        self._judge(connection, now)
        self._listen(connection, now + self.period)

    def _judge(self, connection: Connection, now: float) -> None:
        assert self._unbroken_since is not None
        if now - self._unbroken_since >= self.lease and now - self._reclaimed_at >= self.lease / BEATS_PER_LEASE:
            self._reclaimed_at = now
            workers, jobs = queue.reclaim(connection)
            if workers or jobs:
                log.warning("%d workers are gone; %d jobs are back in the queue", workers, jobs)
                self.state.wake.set()
        if now - self._housekept_at >= _HOUSEKEEPING:
            self._housekept_at = now
            queue.housekeeping(connection)

    def _listen(self, connection: Connection, until: float) -> None:
        """Waits until the next beat is due, and wakes the reader when somebody has added work."""
        while not self._stop.is_set() and (left := until - time.monotonic()) > 0:
            if not self.listen:
                self._stop.wait(left)
                return
            for _ in connection.notifies(timeout=min(left, 0.5), stop_after=1):
                self.state.wake.set()

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self.database.connect("heartbeat")
            if self.listen:
                self._connection.execute(statement("queue", "listen"))
        return self._connection

    def _on_error(self, error: Exception) -> None:
        log.warning("heartbeat: %s", one_line(error))
        if kind_of(error) is not Kind.PASSING:
            self.state.fail(error)
            self._stop.set()
            return
        self._close()
        self._stop.wait(min(1.0, self.period))

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def resident_bytes() -> int | None:
    """Returns the process's peak resident memory in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
