"""The heartbeat: one row per worker, on a connection and a thread of its own; also listens for work, and takes over
jobs.

A worker whose row is not fresh for a lease is declared gone by any other; its jobs go back to the queue, and it may
beat no more: then it gives up what it has and registers afresh. The same happens where it finds itself in another world
(a standby was promoted, a dump restored). A worker judges others only after its own heartbeat was unbroken for one
lease, so that the first one back after an outage does not declare everybody dead. It beats no more once a call hangs.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import psycopg

from pgvec_queue import process, queue
from pgvec_queue.database import Connection, Database, kind_of, one_line, statement
from pgvec_queue.errors import DatabaseError, Kind
from pgvec_queue.queue import Membership
from pgvec_queue.worker.models import Models
from pgvec_queue.worker.state import CALL_SECONDS, State
from pgvec_queue.worker.watch import sever

log = logging.getLogger("pgvec.worker")

BEATS_PER_LEASE = 6
_LONGEST_BEAT = 5.0
_LARGE_FLEET, _FEWEST_BEATS = 32, 3
_LOOK = 0.25
_HOUSEKEEPING = 60.0


@dataclass(slots=True)
class Heartbeat:
    """Beats for one worker id until told to stop. Times are in seconds."""

    database: Database
    state: State
    models: Models
    member: Membership
    lease: float
    listen: bool
    _stop: threading.Event = field(default_factory=threading.Event)
    _connection: Connection | None = None
    _beat_at: float = 0.0
    _unbroken_since: float | None = None
    _housekept_at: float = 0.0
    _reclaim_at: float = 0.0
    _told_to_leave: bool = False

    @property
    def period(self) -> float:
        if self.state.fleet > _LARGE_FLEET:
            return min(self.lease / _FEWEST_BEATS, 2 * _LONGEST_BEAT)
        return min(self.lease / BEATS_PER_LEASE, _LONGEST_BEAT)

    def run(self) -> None:
        self._beat_at = time.monotonic()
        try:
            while not self._ended:
                try:
                    self._once()
                except (psycopg.Error, DatabaseError) as error:
                    self._on_error(error)
        finally:
            self._close()

    def stop(self) -> None:
        self._stop.set()

    @property
    def _ended(self) -> bool:
        return self._stop.is_set() or self.state.lease_lost.is_set() or self.state.stalled is not None

    def _once(self) -> None:
        connection = self._open()
        self._told_to_leave = self.state.stopping.is_set()
        with self._watched(connection):
            row = connection.execute(statement("queue", "beat"), self._beat()).fetchone()
        if row is None:
            log.warning("worker %d was declared gone, or the database is another; starting afresh", self.member.worker)
            self.state.lease_lost.set()
            self.state.aborted.set()
            self.state.wake.set()
            return
        self.state.fleet, overdue = row
        now = time.monotonic()
        if self._unbroken_since is None or now - self._beat_at > self.lease:
            self._unbroken_since = now
        self._beat_at = now
        self._judge(connection, now, overdue=overdue)
        self._listen(connection, now + self.period)

    def _beat(self) -> dict[str, object]:
        embedder = self.models.latest
        return {
            "worker": self.member.worker,
            "world": self.member.world,
            "state": "stopping" if self._told_to_leave else self.state.activity,
            "device": embedder.device if embedder else None,
            "dtype": embedder.dtype if embedder else None,
            "runtime": getattr(embedder, "runtime", None),
            "models": self.models.names,
            "memory": process.peak_memory(),
            "waiting_for": "; ".join(sorted(set(self.state.waits.values()))) or None,
            "busy": self.state.busy.share,
            "documents_per_second": self.state.documents_per_second or None,
            "loads": self.models.loads,
            "batch_tokens": getattr(embedder, "batch_tokens", None),
            "padding": getattr(embedder, "padding", None),
        }

    def _watched(self, connection: Connection) -> AbstractContextManager[None]:
        """Severs all connections when this one has gone silent: well before the lease runs out, so that it is kept."""

        def overdue() -> None:
            sever(connection)
            self.state.watch.sever_all()

        return self.state.watch.call("the heartbeat's connection", max(1.0, self.lease / 2), overdue)

    def _judge(self, connection: Connection, now: float, *, overdue: bool) -> None:
        assert self._unbroken_since is not None
        if now - self._unbroken_since >= self.lease and (overdue or now >= self._reclaim_at):
            # Without anybody overdue as well: whoever declared one gone may have died before it took the jobs back.
            share = self.state.fleet * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
            self._reclaim_at = now + max(self.lease / BEATS_PER_LEASE, share)
            with self._watched(connection):
                workers, jobs = queue.reclaim(connection, self.member.worker)
            if workers or jobs:
                log.warning("%d workers are gone; %d jobs are back in the queue", workers, jobs)
                self.state.wake.set()
        # One at a time does it: in a large fleet each asks the more seldom.
        if now - self._housekept_at >= _HOUSEKEEPING * max(1.0, self.state.fleet / 10):
            self._housekept_at = now
            with self.state.watch.database("the housekeeping's connection", CALL_SECONDS, connection):
                queue.housekeeping(connection)

    def _listen(self, connection: Connection, until: float) -> None:
        """Waits until the next beat is due, and wakes the reader when somebody has added work."""
        while not self._ended and (left := until - time.monotonic()) > 0:
            if self.state.stopping.is_set() and not self._told_to_leave:
                # Whoever ends the process before it is done shall know that it was leaving.
                return
            if not self.listen:
                self._stop.wait(min(left, _LOOK))
                continue
            for _ in connection.notifies(timeout=min(left, _LOOK), stop_after=1):
                self.state.woken()

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self.database.connect("heartbeat")
            if self.listen:
                with self._watched(self._connection):
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
