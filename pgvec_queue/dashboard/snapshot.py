"""Reads what the dashboard shows, in one short read-only transaction.

Everything comes from the views, and nothing counts the rows of a source or the jobs of a queue.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from psycopg.rows import class_row

from pgvec_queue import progress, schema
from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.errors import SchemaOutdatedError
from pgvec_queue.progress import Progress

MINUTES = 15
"""Of which the rate is shown minute by minute."""
_STATEMENT_TIMEOUT = 5.0
_LOCK_TIMEOUT = 2.0
_LONG_GONE = 900.0
"""Seconds after which a worker that is gone, and holds nothing, is no news any more."""


@dataclass(frozen=True, slots=True)
class WorkerLine:
    """One row of ``pgvec.worker_status``, as far as it is shown."""

    host: str
    pid: int
    device: str | None
    state: str
    jobs: int
    waiting_for: str | None
    busy: float | None
    """Share, 0 to 1, of the time with a job in hand in which the device worked."""
    rows_per_second: float
    vectorizer: str | None
    job_id: int | None
    job_kind: str | None
    checkpoint: str | None
    since_beat: float
    """Seconds."""

    @property
    def troubled(self) -> bool:
        """It is gone, or waits for something: that is what somebody looks for first."""
        return self.waiting_for is not None or (self.state == "gone" and not self.long_gone)

    @property
    def long_gone(self) -> bool:
        return self.state == "gone" and self.jobs == 0 and self.since_beat > _LONG_GONE


@dataclass(frozen=True, slots=True)
class FailureLine:
    """The documents of one error class in quarantine, and what the latest of them met."""

    error_class: str
    documents: int
    ago: float
    """Seconds."""
    message: str


@dataclass(frozen=True, slots=True)
class EventLine:
    """One row of ``pgvec.recent_events``."""

    ago: float
    """Seconds."""
    kind: str
    vectorizer: str | None
    host: str | None
    job_id: int | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the database said at one moment."""

    vectorizers: tuple[Progress, ...] = ()
    """By name."""
    minutes: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """By vectorizer: rows per second in each of the last minutes, the oldest first; 0 where nothing was done."""
    workers: tuple[WorkerLine, ...] = ()
    """Trouble first, then the fastest, and those that are long gone last."""
    failures: tuple[FailureLine, ...] = ()
    """Of the chosen vectorizer."""
    failures_of: str | None = None
    """Whose they are; None: of nobody, there is no vectorizer."""
    events: tuple[EventLine, ...] = ()
    """Newest first."""
    hint: str | None = None
    """What to do before there is anything to see: the schema is missing, or is not this program's."""


def read(connection: Connection, chosen: str | None = None) -> Snapshot:
    """Reads everything; the failures are those of the vectorizer ``chosen``, or of the first where there is none such.

    Raises ``psycopg.Error``: each statement may take five seconds.
    """
    with transaction(connection, statement_timeout=_STATEMENT_TIMEOUT, lock_timeout=_LOCK_TIMEOUT, read_only=True):
        try:
            schema.require(connection)
        except SchemaOutdatedError as error:
            return Snapshot(hint=str(error))
        vectorizers = progress.read(connection)
        names = [one.name for one in vectorizers]
        of = chosen if chosen in names else names[0] if names else None
        failed = any(one.rows_failed for one in vectorizers if one.name == of)
        return Snapshot(
            vectorizers=tuple(vectorizers),
            minutes=_minutes(connection),
            workers=tuple(sorted(_workers(connection), key=_urgency)),
            failures=tuple(_failures(connection, of)) if of is not None and failed else (),
            failures_of=of,
            events=tuple(sorted(_events(connection), key=lambda event: event.ago)),
        )


def _urgency(worker: WorkerLine) -> tuple[bool, bool, bool, float, str, int]:
    return (
        worker.long_gone,
        not worker.troubled,
        worker.state != "gone",
        -worker.rows_per_second,
        worker.host,
        worker.pid,
    )


def _workers(connection: Connection) -> list[WorkerLine]:
    with connection.cursor(row_factory=class_row(WorkerLine)) as cursor:
        return cursor.execute(statement("dashboard", "workers")).fetchall()


def _minutes(connection: Connection) -> dict[str, tuple[float, ...]]:
    found: dict[str, list[float]] = {}
    for name, place, rate in connection.execute(statement("dashboard", "minutes")).fetchall():
        found.setdefault(name, [0.0] * MINUTES)[place] = rate
    return {name: tuple(rates) for name, rates in found.items()}


def _failures(connection: Connection, name: str) -> list[FailureLine]:
    with connection.cursor(row_factory=class_row(FailureLine)) as cursor:
        return cursor.execute(statement("dashboard", "failures"), {"name": name}).fetchall()


def _events(connection: Connection) -> list[EventLine]:
    with connection.cursor(row_factory=class_row(EventLine)) as cursor:
        return cursor.execute(statement("dashboard", "events")).fetchall()
