"""The queue: claim, release, reclaim, and the workers' own rows; thin over ``sql/queue.sql``.

Guarantees: a job has at most one owner whose writes count (its epoch is raised at each claim, and ``writing`` checks
it); a claimed job is finished, released, or returned by ``reclaim`` once its worker's heartbeat is older than its
lease. Does not guarantee that a job runs once: it may run again from its checkpoint, and that changes nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg.rows import class_row, dict_row

from pgvec_queue import __version__
from pgvec_queue.database import Connection, statement, transaction

Key = tuple[str, ...]
"""A key's columns in canonical text (ISO dates, UTC)."""


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job as its worker last saw it; the fence compares exactly this."""

    id: int
    vectorizer_id: int
    kind: str
    lower_key: list[str] | None
    upper_key: list[str] | None
    keys: list[list[str]] | None
    rows: int
    rows_seen: int
    checkpoint: list[str] | None
    epoch: int
    attempts: int


@dataclass(slots=True)
class Claimer:
    """Claims jobs for one worker: picks the vectorizer, stays with it, and remembers where its jobs begin."""

    worker: int
    names: Sequence[str] | None
    refused: set[int] = field(default_factory=set)
    """Vectorizers that this worker cannot serve."""
    current: int = 0
    _floors: dict[int, int] = field(default_factory=dict)
    _claims: int = 0

    # A released job comes back with a low id: now and then every worker looks from the beginning.
    _RESCAN = 64

    def claim(self, connection: Connection) -> Job | None:
        """Claims the next job, live changes before ranges, or returns None when there is nothing to claim."""
        names = None if self.names is None else list(self.names)
        with transaction(connection, statement_timeout=30):
            vectorizers = connection.execute(
                statement("queue", "runnable"), {"names": names, "current": self.current, "refused": list(self.refused)}
            ).fetchall()
            for (vectorizer,) in vectorizers:
                job = self._claim_of(connection, vectorizer)
                if job is not None:
                    self.current = vectorizer
                    return job
        return None

    def _claim_of(self, connection: Connection, vectorizer: int) -> Job | None:
        self._claims += 1
        if self._claims % self._RESCAN == 0:
            self._floors.clear()
        for kind in ("keys", "range", "sweep"):
            floor = self._floors.get(vectorizer, 0) if kind == "range" else 0
            job = self._claim_kind(connection, vectorizer, kind, floor)
            if job is None and floor:
                job = self._claim_kind(connection, vectorizer, kind, 0)
            if job is not None:
                if kind == "range":
                    self._floors[vectorizer] = job.id
                return job
        return None

    def _claim_kind(self, connection: Connection, vectorizer: int, kind: str, floor: int) -> Job | None:
        with connection.cursor(row_factory=class_row(Job)) as cursor:
            return cursor.execute(
                statement("queue", "claim"),
                {"vectorizer": vectorizer, "kind": kind, "floor": floor, "worker": self.worker},
            ).fetchone()


def reread(connection: Connection, job: Job, worker: int) -> Job | None:
    """Returns the job as it stands now, or None when it is no longer this worker's."""
    with connection.cursor(row_factory=class_row(Job)) as cursor:
        return cursor.execute(
            statement("queue", "reread"), {"id": job.id, "epoch": job.epoch, "worker": worker}
        ).fetchone()


def release(connection: Connection, worker: int, *, vectorizer: int | None = None, job: int | None = None) -> int:
    """Gives back this worker's running jobs (all, those of one vectorizer, or one), and returns how many."""
    with transaction(connection):
        cursor = connection.execute(
            statement("queue", "release"), {"worker": worker, "vectorizer": vectorizer, "job": job}
        )
    return cursor.rowcount


def reclaim(connection: Connection) -> tuple[int, int]:
    """Declares workers dead whose lease ran out and returns their jobs to the queue; returns (workers, jobs)."""
    with transaction(connection):
        gone = connection.execute(statement("queue", "mark_gone")).rowcount
    # Apart from the marking, so that a beat that came first is seen.
    with transaction(connection):
        jobs = connection.execute(statement("queue", "reclaim")).rowcount
    return gone, jobs


def register(connection: Connection, *, names: Sequence[str] | None, lease: float) -> int:
    """Makes this process a worker and returns its id; ``lease`` is in seconds."""
    row = connection.execute(
        statement("queue", "register"),
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "names": None if names is None else list(names),
            "lease": lease,
        },
    ).fetchone()
    assert row is not None
    return int(row[0])


def leave(connection: Connection, worker: int) -> None:
    """Gives back every job and removes the worker's row; what it counted is kept."""
    release(connection, worker)
    with transaction(connection):
        connection.execute(statement("queue", "leave"), {"worker": worker})
        connection.execute(statement("queue", "fold_counters"))


def housekeeping(connection: Connection) -> None:
    """Prunes finished jobs, old samples and dead workers' rows; one worker at a time does it, others pass by."""
    with transaction(connection):
        turn = connection.execute(statement("queue", "housekeeping_turn")).fetchone()
        if turn is None or not turn[0]:
            return
        for name in ("fold_counters", "prune_workers", "prune_samples", "prune_jobs"):
            connection.execute(statement("queue", name))


@dataclass(frozen=True, slots=True)
class Pending:
    """What is left of one vectorizer, as far as a draining worker cares."""

    id: int
    name: str
    queued: bool
    running: bool
    planning: bool
    unplanned: bool
    blocked_reason: str | None
    paused: bool

    @property
    def waits(self) -> bool:
        """Something will still become claimable or end by itself."""
        return self.blocked_reason is None and not self.paused and (self.queued or self.running or self.planning)


def pending(connection: Connection, names: Sequence[str] | None) -> list[Pending]:
    with connection.cursor(row_factory=class_row(Pending)) as cursor:
        return cursor.execute(
            statement("queue", "pending"), {"names": None if names is None else list(names)}
        ).fetchall()


def notify(connection: Connection, payload: str = "") -> None:
    """Wakes idle workers: a hint in a transaction of its own, since NOTIFY takes a database-wide lock at commit."""
    connection.execute(statement("queue", "notify"), {"payload": payload})


def failures(connection: Connection, vectorizer_id: int) -> list[dict[str, Any]]:
    """Returns the quarantine of a vectorizer, oldest first."""
    # A client reads times in some of the server's date styles only.
    with transaction(connection), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement("progress", "failures"), {"id": vectorizer_id}).fetchall()


def retry(connection: Connection, vectorizer_id: int, error_class: str | None) -> int:
    """Takes documents out of quarantine, all or those of one error class, and queues them; returns how many."""
    with transaction(connection, statement_timeout=300):
        row = connection.execute(
            statement("queue", "retry"), {"id": vectorizer_id, "error_class": error_class}
        ).fetchone()
    return int(row[0]) if row else 0
