"""``plan``: how fast a table is cut into jobs, and what the queue weighs.

The table has a bigint key, is vacuumed, and has just been read (of a table larger than memory, its index). Each round
plans it for a vectorizer of its own, and walks the same index once with nothing else to do, which no plan can beat.
Nobody works on the jobs meanwhile.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from psycopg import sql

from pgvec_queue import definition
from pgvec_queue.bench import DEFAULT_ROUNDS, Say, part
from pgvec_queue.bench.database import Arena, Place, arena
from pgvec_queue.bench.report import Figure, Report, ratios, report
from pgvec_queue.database import statement, transaction

_TABLE = "documents"
_PART = 10_000_000
"""Rows that are made at a time: a hundred million take minutes, and somebody may be watching."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is planned."""

    rows: int = 5_000_000
    rounds: int = DEFAULT_ROUNDS


@dataclass(frozen=True, slots=True)
class _Planned:
    jobs: int
    seconds: float
    rows_per_second: float
    table_bytes: int
    """By which the job table has grown."""
    index_bytes: int
    """By which its indexes have."""
    wal_bytes: int
    first_seconds: float


def run(place: Place, options: Options, say: Say) -> Report:
    """Measures in a database of its own."""
    with arena(place) as own:
        say(f"making a table of {options.rows:,} rows")
        table = sql.Identifier(_TABLE)
        own.connection.execute(statement("bench", "create_documents").format(table=table))
        for first in range(1, options.rows + 1, _PART):
            last = min(first + _PART - 1, options.rows)
            own.connection.execute(
                statement("bench", "make_short_documents").format(table=table), {"first": first, "rows": last}
            )
            if last < options.rows:
                say(f"{last:,} of them")
        own.connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(table))
        _walk(own)
        planned, walked = [], []
        for number in range(1, options.rounds + 1):
            say(f"round {number} of {options.rounds}")
            planned.append(_plan(own, f"plan_{number}", options.rows))
            walked.append(options.rows / _walk(own))
        rates = [one.rows_per_second for one in planned]
        return report(
            own,
            "plan",
            asdict(options),
            [
                Figure("planned_rows_per_second", rates),
                Figure("index_scan_rows_per_second", walked),
                Figure("jobs", [one.jobs for one in planned]),
                Figure("plan_seconds", [one.seconds for one in planned]),
                Figure("queue_bytes_per_row", [(one.table_bytes + one.index_bytes) / options.rows for one in planned]),
                Figure("queue_table_bytes_per_job", [one.table_bytes / one.jobs for one in planned]),
                Figure("queue_index_bytes_per_job", [one.index_bytes / one.jobs for one in planned]),
                Figure("wal_bytes_per_job", [one.wal_bytes / one.jobs for one in planned]),
                Figure("first_job_seconds", [one.first_seconds for one in planned]),
            ],
            [ratios("plan_to_index_scan", rates, walked)],
        )


def _plan(own: Arena, name: str, rows: int) -> _Planned:
    """Plans the table for a new vectorizer."""
    options = definition.Options(
        source=_TABLE, text=("body",), name=name, into=f"{name}_vectors", model="hashing-8", no_chunking=True
    )
    fresh = part.of_table(own, _TABLE, options)
    before = _sizes(own)
    committed: list[float] = []
    started = time.perf_counter()
    planned = fresh.plan(lambda _jobs, _rows: committed.append(time.perf_counter()))
    ended = time.perf_counter()
    table, index, wal = (after - was for after, was in zip(_sizes(own), before, strict=True))
    seconds = ended - started
    return _Planned(planned.jobs, seconds, rows / seconds, table, index, wal, committed[0] - started)


def _walk(own: Arena) -> float:
    """Reads the key's index from end to end; returns seconds."""
    with transaction(own.connection, statement_timeout=3_600):
        own.connection.execute(statement("catalog", "prefer_indexes"))
        started = time.perf_counter()
        own.connection.execute(statement("bench", "index_scan").format(table=sql.Identifier(_TABLE))).fetchone()
        return time.perf_counter() - started


def _sizes(own: Arena) -> tuple[int, int, int]:
    """Returns the bytes of the job table and of its indexes, and how far the WAL is."""
    row = own.connection.execute(statement("bench", "plan_bytes")).fetchone()
    assert row is not None
    return row[0], row[1], row[2]
