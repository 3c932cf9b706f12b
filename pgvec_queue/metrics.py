"""The queue as a whole as Prometheus's metrics, read from the database at each scrape.

A scrape always has an answer, within eight seconds: where the database cannot be read by then, ``pgvec_up`` is 0 and
the metrics of the queue are missing. One look at the database goes on at a time; scrapes that come meanwhile, or within
a second after its beginning, share its answer. There is one connection, made anew when it is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from prometheus_client.metrics_core import Metric as Family
from psycopg.rows import dict_row

from pgvec_queue import __version__, schema
from pgvec_queue.database import Connection, Database, one_line, statement, transaction
from pgvec_queue.errors import DatabaseError
from pgvec_queue.exposition import Families, Metric
from pgvec_queue.log import get_logger

log = get_logger("pgvec.metrics")

STATEMENT_SECONDS = 10.0
PATIENCE = 8.0
"""Seconds that a scrape waits for the database; Prometheus itself gives up after ten."""
_FRESH = 1.0
VECTORIZER_STATES = ("active", "paused", "blocked", "cancelled", "complete")
WORKER_STATES = ("starting", "idle", "loading", "working", "stopping", "gone")
JOB_STATES = ("queued", "running", "done", "cancelled")

Row = dict[str, Any]

_GAUGES = {
    "pgvec_rows_selected": ("rows_total", "Rows that the vectorizer selects."),
    "pgvec_rows_done": ("rows_done", "Rows whose chunks are right."),
    "pgvec_rows_failed": ("rows_failed", "Rows in quarantine."),
    "pgvec_chunks": ("chunks", "Chunks in the destination."),
    "pgvec_plan_complete": ("plan_complete", "1 when all jobs of the last enqueue are planned."),
    "pgvec_oldest_queued_job_age_seconds": ("oldest_queued", "Age of the oldest job that is queued."),
    "pgvec_rows_per_second": ("rows_per_second", "Rows made right per second, of the last minute."),
    "pgvec_chunks_per_second": ("chunks_per_second", "Chunks written per second, of the last minute."),
    "pgvec_tokens_per_second": ("tokens_per_second", "Tokens embedded per second, of the last minute."),
    "pgvec_eta_seconds": ("eta_seconds", "Time left at the present rate; missing while nothing moves."),
    "pgvec_eta_low_seconds": ("eta_low_seconds", "Time left if the rate is better, by as much as minutes differ."),
    "pgvec_eta_high_seconds": ("eta_high_seconds", "Time left if the rate is worse, by as much as minutes differ."),
    "pgvec_change_lag_seconds": ("lag_seconds", "Age of the oldest live change that is not in the destination."),
    "pgvec_rows_per_second_limit": ("rows_per_second_limit", "Rows per second that may be read, where limited."),
    "pgvec_replication_lag_limit_seconds": (
        "replication_lag_limit",
        "What a standby may be behind while the vectorizer is worked on, where limited.",
    ),
    "pgvec_commit_time_limit_seconds": (
        "commit_time_limit",
        "What a small commit may take while the vectorizer is worked on, where limited.",
    ),
}
_COUNTERS = {
    "pgvec_rows_embedded_total": ("rows_embedded", "Rows embedded."),
    "pgvec_rows_wasted_total": ("rows_wasted", "Rows embedded whose vectors were thrown away."),
    "pgvec_rows_truncated_total": ("rows_truncated", "Rows that were cut to what the model reads."),
    "pgvec_rows_unchanged_total": ("rows_unchanged", "Rows found as they were when they were embedded, or blank."),
    "pgvec_chunks_kept_total": ("chunks_kept", "Chunks of changed documents that kept their vector."),
    "pgvec_chunks_reused_total": ("chunks_reused", "Chunks that took the vector of an identical one."),
    "pgvec_chunks_cached_total": ("chunks_cached", "Chunks whose vector a worker remembered."),
    "pgvec_tokens_embedded_total": ("tokens", "Tokens embedded."),
    "pgvec_written_bytes_total": ("bytes_written", "Bytes of keys, chunks and vectors sent to the destination."),
    "pgvec_jobs_reclaimed_total": ("jobs_reclaimed", "Jobs taken back from workers that were gone."),
}

METRICS = (
    Metric("pgvec_up", "gauge", "1 when the queue could be read from the database, else 0."),
    Metric("pgvec_scrape_duration_seconds", "gauge", "What reading the queue took at this scrape."),
    Metric("pgvec_exporter_info", "gauge", "Always 1; the version of the exporter.", ("version",)),
    Metric("pgvec_schema_info", "gauge", "Always 1; the revision of the schema pgvec.", ("revision",)),
    Metric(
        "pgvec_vectorizer_info",
        "gauge",
        "Always 1; what the vectorizer reads, writes and embeds with.",
        ("vectorizer", "source", "destination", "model"),
    ),
    Metric(
        "pgvec_vectorizer_state",
        "gauge",
        "1 for the state in which the vectorizer is, 0 for the others.",
        ("vectorizer", "state"),
    ),
    Metric("pgvec_jobs", "gauge", "Jobs by state; cancelled: given up.", ("vectorizer", "state")),
    *(Metric(name, "gauge", text, ("vectorizer",)) for name, (_, text) in _GAUGES.items()),
    *(Metric(name, "counter", text, ("vectorizer",)) for name, (_, text) in _COUNTERS.items()),
    Metric(
        "pgvec_quarantined_documents",
        "gauge",
        "Documents in quarantine by error class; all but the twenty most frequent classes are called other.",
        ("vectorizer", "error_class"),
    ),
    Metric(
        "pgvec_workers",
        "gauge",
        "Workers by state; gone: not heard of for a lease, and kept for a day.",
        ("state",),
    ),
    Metric("pgvec_last_beat_age_seconds", "gauge", "Time since any worker was heard of."),
    Metric("pgvec_oldest_beat_age_seconds", "gauge", "Time since the most silent of those that are not gone was."),
    Metric("pgvec_devices_busy_ratio", "gauge", "How busy the workers' devices are, 0 to 1, on average."),
    Metric(
        "pgvec_replication_lag_seconds",
        "gauge",
        "How far the slowest standby is behind; measured where a vectorizer limits it.",
    ),
    Metric(
        "pgvec_commit_time_seconds",
        "gauge",
        "What a small commit takes, of the slowest worker; measured where a vectorizer limits it.",
    ),
)


@dataclass(frozen=True, slots=True)
class Queue:
    """What one look at the database has found."""

    revision: str
    vectorizers: Sequence[Row]
    failures: Sequence[Row]
    workers: Sequence[Row]


@dataclass(slots=True)
class _Look:
    """A look at the database, in a thread of its own."""

    began: float
    done: threading.Event = field(default_factory=threading.Event)
    found: Queue | None = None
    """None as long as there is no answer, and where there was none."""


class QueueCollector:
    """Tells of the whole queue of one database; safe to use from any thread."""

    def __init__(self, database: Database, *, patience: float = PATIENCE) -> None:
        """``patience`` is in seconds."""
        self._database = database
        self._patience = patience
        self._lock = threading.Lock()
        self._latest: _Look | None = None
        self._connection: Connection | None = None
        self._trouble: str | None = None

    def collect(self) -> Iterator[Family]:
        began = time.monotonic()
        look = self._look()
        look.done.wait(self._patience)
        families = Families(METRICS)
        families.add("pgvec_up", look.found is not None)
        families.add("pgvec_exporter_info", 1, __version__)
        if look.found is not None:
            _add(families, look.found)
        families.add("pgvec_scrape_duration_seconds", time.monotonic() - began)
        return iter(families)

    def close(self) -> None:
        """Closes the connection, unless a look is just using it: that one ends with the process."""
        with self._lock:
            if self._connection is not None and (self._latest is None or self._latest.done.is_set()):
                self._connection.close()

    def _look(self) -> _Look:
        """Returns the look that is going on or has just ended, else a new one."""
        with self._lock:
            now = time.monotonic()
            latest = self._latest
            if latest is None or (latest.done.is_set() and now - latest.began >= _FRESH):
                latest = self._latest = _Look(now)
                threading.Thread(target=self._read, args=(latest,), name="pgvec-look", daemon=True).start()
            return latest

    def _read(self, look: _Look) -> None:
        try:
            look.found = self._read_again() if self._connection is not None else self._read_once()
        except (psycopg.Error, DatabaseError) as error:
            self._tell(one_line(error))
        # The thread ends here; the next scrape begins another.
        except Exception as error:
            log.exception("queue could not be read", error=str(error))
            self._trouble = str(error)
        else:
            self._tell(None)
        finally:
            look.done.set()

    def _read_again(self) -> Queue:
        """Reads on the connection of the last look, and where that was lost meanwhile, on a new one."""
        try:
            return self._read_once()
        except psycopg.OperationalError:
            if self._connection is not None:
                raise
        return self._read_once()

    def _read_once(self) -> Queue:
        if self._connection is None:
            self._connection = self._database.connect("exporter")
        connection = self._connection
        try:
            with (
                transaction(connection, statement_timeout=STATEMENT_SECONDS, read_only=True),
                connection.cursor(row_factory=dict_row) as cursor,
            ):
                revision = schema.require(connection)
                rows = [
                    cursor.execute(statement("metrics", name)).fetchall()
                    for name in ("vectorizers", "failures", "workers")
                ]
                return Queue(revision, *rows)
        finally:
            if connection.closed:
                self._connection = None

    def _tell(self, trouble: str | None) -> None:
        """Says what is wrong once, and once that all is well again."""
        if trouble == self._trouble:
            return
        if trouble is None:
            log.info("queue can be read again")
        else:
            log.warning("queue cannot be read; it is tried again at each scrape", error=trouble)
        self._trouble = trouble


def _add(families: Families, queue: Queue) -> None:
    families.add("pgvec_schema_info", 1, queue.revision)
    for row in queue.vectorizers:
        _add_vectorizer(families, row)
    for row in queue.failures:
        families.add("pgvec_quarantined_documents", row["documents"], row["name"], row["error_class"])
    _add_workers(families, queue.workers)


def _add_vectorizer(families: Families, row: Row) -> None:
    name = row["name"]
    families.add("pgvec_vectorizer_info", 1, name, row["source"], row["destination"], row["model"])
    for state in VECTORIZER_STATES:
        families.add("pgvec_vectorizer_state", state == row["state"], name, state)
    for state in JOB_STATES:
        families.add("pgvec_jobs", row[f"jobs_{state}"], name, state)
    for metric, (column, _) in (_GAUGES | _COUNTERS).items():
        families.add(metric, row[column], name)


def _add_workers(families: Families, rows: Sequence[Row]) -> None:
    counts = {row["state"]: row["workers"] for row in rows}
    for state in WORKER_STATES:
        families.add("pgvec_workers", counts.get(state, 0), state)
    alive = [row for row in rows if row["state"] != "gone"]
    families.add("pgvec_last_beat_age_seconds", min((row["youngest_beat"] for row in rows), default=None))
    families.add("pgvec_oldest_beat_age_seconds", max((row["oldest_beat"] for row in alive), default=None))
    busy = sum(row["busy_workers"] for row in alive)
    families.add("pgvec_devices_busy_ratio", sum(row["busy"] or 0.0 for row in alive) / busy if busy else None)
    families.add("pgvec_replication_lag_seconds", _most(alive, "lag"))
    families.add("pgvec_commit_time_seconds", _most(alive, "commit_time"))


def _most(rows: Sequence[Row], column: str) -> float | None:
    return max((row[column] for row in rows if row[column] is not None), default=None)
