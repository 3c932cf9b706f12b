"""A million jobs through the queue: what a claim costs then, and what the job table looks like.

    python -m benchmarks.queue [--jobs 1000000] [--real 20000] [--processes 2] [--plans]

The jobs are inserted in bulk. ``--real`` of each million go through the real ``Claimer`` and the real statements of
``sql/queue.sql`` and ``sql/writing.sql``, one at a time; the others, which only have to be there and gone, through the
same three updates, some at a time. That leaves as many row versions and index entries, but fewer of them find room on
their page (HOT), so the sizes are upper bounds. No source is read and no vector written. What is measured is the real
thing, with fsync on; between measurements commits do not wait for the disk (``synchronous_commit = off``), which
changes nothing in the table.

A claim is measured from ``BEGIN`` to the answer of ``COMMIT``, in a row and, idle, at the pace of a worker that polls
about once a second: the claimer looks at the whole queue only now and then, and in a row that would hardly show. The
bar is 5 ms for the 95th percentile. ``--plans`` prints EXPLAIN (ANALYZE, BUFFERS) of each statement of one claim.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg

from benchmarks import common
from pgvec_queue import queue
from pgvec_queue.bench import claim
from pgvec_queue.bench.report import percentile
from pgvec_queue.database import Connection, Database, versions
from pgvec_queue.queue import Claimer, Job

BAR_MS = 5.0
_SAMPLES = 500
_PACED = 40
_SPARE = 4 * _SAMPLES
_SETTINGS = "SELECT name, setting FROM pg_settings WHERE name IN ('fsync', 'synchronous_commit', 'shared_buffers')"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--jobs", type=int, default=1_000_000)
    options.add_argument("--real", type=int, default=20_000, help="jobs of each pump that are claimed one by one")
    options.add_argument("--processes", type=int, default=2, help="that pump jobs through")
    options.add_argument("--plans", action="store_true")
    chosen = options.parse_args()
    with common.server() as (dsn, _), psycopg.connect(dsn, autocommit=True) as connection:
        print(", ".join(f"{name} {value}" for name, value in connection.execute(_SETTINGS)))
        bench = Bench(dsn, connection, chosen)
        return 0 if bench.run() else 1


_CLAIMABLE = """
SELECT count(*) FROM pgvec.jobs j JOIN pgvec.vectorizers v ON v.id = j.vectorizer_id
WHERE j.state = 'queued' AND NOT v.paused
"""


class Bench:
    """The phases, one after the other over one job table."""

    def __init__(self, dsn: str, connection: Connection, chosen: argparse.Namespace) -> None:
        self._dsn = dsn
        self._connection = connection
        self._jobs = chosen.jobs
        self._chosen = chosen
        self._good = True
        self._many = claim.define(connection, versions(connection), "many")
        self._few = claim.define(connection, versions(connection), "few")

    def run(self) -> bool:
        print(f"{'what':58} | median ms  p95 ms  max ms | first look ms")
        self._idle("a. an empty queue")

        claim.insert_jobs(self._connection, self._many, self._jobs)
        self._pump()
        self._table(f"after {self._jobs:,} jobs")

        claim.insert_jobs(self._connection, self._many, self._jobs)
        self._vacuum()
        self._busy(f"b. {self._jobs:,} queued, {self._jobs:,} done")
        self._claim_and_complete()
        self._table(f"with {self._jobs:,} more queued")

        self._connection.execute("UPDATE pgvec.vectorizers SET paused = true, priority = 9 WHERE id = %s", [self._many])
        claim.insert_jobs(self._connection, self._few, _SPARE)
        self._busy(f"c. {self._jobs:,} of a paused vectorizer ahead")
        self._pump()
        self._idle("c. the same, nothing left to claim")

        self._connection.execute("UPDATE pgvec.vectorizers SET paused = false WHERE id = %s", [self._many])
        with self._stranger():
            self._pump()
            claim.insert_jobs(self._connection, self._many, _SPARE)
            self._busy(f"d. a snapshot older than the last {self._jobs:,} jobs")
            self._pump()
            self._idle("d. the same, nothing left to claim")
            self._table("under the snapshot")
        self._vacuum()
        self._table("after VACUUM")
        self._insert_lists(_SPARE)
        self._lists(f"e. {_SPARE:,} lists of one key, up to 1,000 in a claim")
        print(f"bar: p95 of {BAR_MS} ms: {'kept' if self._good else 'missed'}")
        return self._good

    def _insert_lists(self, jobs: int) -> None:
        self._connection.execute(
            "INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, key_count, rows)"
            " SELECT %s, 'keys', jsonb_build_array(jsonb_build_array(i::text)), 1, 0 FROM generate_series(1, %s) i",
            [self._few, jobs],
        )

    def _pump(self) -> None:
        """Claims, checkpoints and finishes every job that may be claimed."""
        queued = self._value(_CLAIMABLE)
        started = time.monotonic()
        in_sets = claim.pump_in_sets(self._dsn, queued - self._chosen.real)
        middle = time.monotonic()
        with multiprocessing.get_context("spawn").Pool(self._chosen.processes) as pool:
            done = sum(pool.map(pump, [self._dsn] * self._chosen.processes))
        assert (in_sets + done, self._value(_CLAIMABLE)) == (queued, 0)
        if in_sets:
            print(
                f"  {in_sets:,} jobs through the queue in sets in {middle - started:.0f} s; {done:,} by "
                f"{self._chosen.processes} claimers, {done / (time.monotonic() - middle):,.0f}/s"
            )

    def _value(self, query: LiteralString) -> int:
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    def _busy(self, what: str) -> None:
        """Claims jobs one after the other, and finishes each apart from the measurement."""
        with self._claimer(what) as (connection, claimer):
            times = []
            for _ in range(1 + _SAMPLES):
                began = time.perf_counter()
                job = _some(claimer.claim(connection))
                times.append(time.perf_counter() - began)
                claim.complete(connection, claimer, job)
            self._report(what, times[1:], times[0])

    def _idle(self, what: str) -> None:
        with self._claimer(what) as (connection, claimer):
            first = _timed(lambda: _nothing(claimer.claim(connection)))
            self._report(what, [_timed(lambda: _nothing(claimer.claim(connection))) for _ in range(_SAMPLES)], first)
            times = []
            for _ in range(_PACED):
                time.sleep(random.uniform(0.7, 1.3))
                times.append(_timed(lambda: _nothing(claimer.claim(connection))))
            self._report(f"{what}, once a second", times, None)

    def _lists(self, what: str) -> None:
        with self._claimer(what) as (connection, claimer):
            times = []
            while True:
                began = time.perf_counter()
                job = claimer.claim(connection)
                if job is None:
                    break
                times.append(time.perf_counter() - began)
                claim.complete(connection, claimer, job)
            print(f"{what:58} | {_numbers(times)} | {len(times)} claims")

    def _claim_and_complete(self) -> None:
        with self._claimer(None) as (connection, claimer):
            times = [
                _timed(lambda: claim.complete(connection, claimer, _some(claimer.claim(connection))))
                for _ in range(_SAMPLES)
            ]
        print(f"{'   claim + complete, one job at a time, fsync on':58} | {_numbers(times)} | (design: 2.7)")

    @contextmanager
    def _claimer(self, what: str | None) -> Iterator[tuple[Connection, Claimer]]:
        """A worker that has just started; first, with ``--plans``, the plans of its first claim and of a later one."""
        with Database(self._dsn).connect("bench") as connection:
            member = queue.register(connection, names=None, lease=3600)
            if what is not None and self._chosen.plans:
                self._explain(what, Claimer(member, None))
            try:
                yield connection, Claimer(member, None)
            finally:
                queue.leave(connection, member)

    def _explain(self, what: str, claimer: Claimer) -> None:
        with psycopg.connect(self._dsn, autocommit=True, prepare_threshold=None) as connection:
            for which in ("first", "next"):
                with connection.transaction(force_rollback=True):
                    print(f"  plans of {which} claim: {what}")
                    connection.cursor_factory = _ExplainingCursor
                    claimer.claim(connection)
                    connection.cursor_factory = psycopg.Cursor

    def _report(self, what: str, times: list[float], first: float | None) -> None:
        self._good &= percentile(times, 95) * 1000 <= BAR_MS
        print(f"{what:58} | {_numbers(times)} | {'' if first is None else f'{first * 1000:6.2f}'}")

    def _table(self, when: str) -> None:
        size = self._connection.execute(
            "SELECT pg_table_size('pgvec.jobs'), count(*) FILTER (WHERE state = 'queued'), count(*) FROM pgvec.jobs"
        ).fetchone()
        self._connection.execute("SELECT pg_stat_force_next_flush()")
        tuples = self._connection.execute(
            "SELECT n_live_tup, n_dead_tup, n_tup_hot_upd, n_tup_upd, autovacuum_count FROM pg_stat_user_tables"
            " WHERE relid = 'pgvec.jobs'::regclass"
        ).fetchone()
        indexes = self._connection.execute(
            "SELECT indexrelid::regclass::text, pg_relation_size(indexrelid) FROM pg_index"
            " WHERE indrelid = 'pgvec.jobs'::regclass ORDER BY 1"
        ).fetchall()
        assert size is not None
        assert tuples is not None
        live, dead, hot, updated, vacuums = tuples
        print(
            f"  job table {when}: {size[0] / 2**20:.0f} MB ({size[0] / max(size[2], 1):.0f} bytes a job), "
            f"{size[1]:,} of {size[2]:,} queued; {live:,} live and {dead:,} dead tuples, "
            f"{hot:,} of {updated:,} updates HOT, {vacuums} autovacuums; "
            + ", ".join(f"{name.removeprefix('pgvec.')} {bytes_ / 2**20:.0f} MB" for name, bytes_ in indexes)
        )

    def _vacuum(self) -> None:
        self._connection.execute("VACUUM (ANALYZE) pgvec.jobs")

    @contextmanager
    def _stranger(self) -> Iterator[None]:
        """Somebody's transaction, whose snapshot keeps every dead tuple of the whole database."""
        with psycopg.connect(self._dsn) as stranger:
            stranger.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            stranger.execute("SELECT count(*) FROM pgvec.vectorizers")
            yield


class _ExplainingCursor(psycopg.Cursor[Any]):
    """Prints the plan of what it runs, with what it really took, before running it."""

    def execute(self, query: Any, params: Any = None, **arguments: Any) -> _ExplainingCursor:
        text = query.as_string(self.connection) if hasattr(query, "as_string") else str(query)
        if "pgvec." in text:
            connection = self.connection
            with connection.transaction(force_rollback=True):
                plan = psycopg.Cursor(connection).execute(f"EXPLAIN (ANALYZE, BUFFERS) {text}".encode(), params)
                print("".join(f"    {line}\n" for (line,) in plan))
        return super().execute(query, params, **arguments)


def pump(dsn: str) -> int:
    """Works jobs off until there are none, without reading or writing anything for them; returns how many."""
    done = 0
    with Database(dsn).connect("bench") as connection:
        connection.execute("SET synchronous_commit TO off")
        member = queue.register(connection, names=None, lease=36_000)
        claimer = Claimer(member, None)
        while (job := claimer.claim(connection)) is not None:
            claim.move(connection, claimer, job)
            claim.complete(connection, claimer, job, checkpoint=["1"])
            done += 1
        queue.leave(connection, member)
    return done


def _some(job: Job | None) -> Job:
    assert job is not None
    return job


def _nothing(job: Job | None) -> None:
    assert job is None, job


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _numbers(times: list[float]) -> str:
    return f"{statistics.median(times) * 1000:9.2f} {percentile(times, 95) * 1000:7.2f} {max(times) * 1000:7.2f}"


if __name__ == "__main__":
    sys.exit(main())
