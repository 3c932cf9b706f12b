"""What a look at the views costs: a million jobs queued, a million done, 200 workers at it for an hour.

    python -m benchmarks.views [--jobs 1000000] [--workers 200] [--looks 50]

Bar: 20 ms for a look at ``pgvec.progress``; the others are printed beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from benchmarks import common
from pgvec_queue import queue
from pgvec_queue.database import Connection

BAR = 20.0
_VIEWS = ("progress", "worker_status", "recent_minutes", "recent_events")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--jobs", type=int, default=1_000_000)
    options.add_argument("--workers", type=int, default=200)
    options.add_argument("--looks", type=int, default=50)
    chosen = options.parse_args()
    kept = True
    with common.server() as (dsn, connection):
        for name in ("moving", "still"):
            connection.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY, body text)".encode())
            ran = common.run(dsn, "enqueue", name, "--text", "body", "--model", "hashing-8", "--no-chunking", "--sync")
            assert ran.code == 0
        _fill(connection, chosen.jobs, chosen.workers)
        queue.housekeeping(connection)
        for view in _VIEWS:
            looks = sorted(_look(connection, view) for _ in range(chosen.looks))
            median, worst = statistics.median(looks), looks[int(len(looks) * 0.95)]
            print(f"{view}: median {median:.1f} ms, p95 {worst:.1f} ms")
            kept = kept and (view != "progress" or median <= BAR)
    print(f"bar: {BAR:.0f} ms for progress: {'kept' if kept else 'missed'}")
    return 0 if kept else 1


def _fill(connection: Connection, jobs: int, workers: int) -> None:
    for statement in (
        "INSERT INTO pgvec.workers (host, pid, version, lease, state)"
        f" SELECT 'host-' || i, i, '1', '1 day', 'working' FROM generate_series(1, {workers}) i",
        "INSERT INTO pgvec.jobs (vectorizer_id, kind, lower_key, upper_key, rows, state, finished_at)"
        " SELECT 1, 'range', ARRAY[i::text], ARRAY[(i + 1)::text], 1000, 'done', clock_timestamp()"
        f" FROM generate_series(1, {jobs}) i",
        "INSERT INTO pgvec.jobs (vectorizer_id, kind, lower_key, upper_key, rows)"
        f" SELECT 1, 'range', ARRAY[i::text], ARRAY[(i + 1)::text], 1000 FROM generate_series(1, {jobs}) i",
        # One with nothing to do, whose first queued job nobody finds among the other's million.
        "UPDATE pgvec.jobs SET state = 'done', finished_at = clock_timestamp() WHERE vectorizer_id = 2",
        "UPDATE pgvec.jobs SET state = 'running', worker_id = id % 200 + 1 WHERE id IN"
        f" (SELECT id FROM pgvec.jobs WHERE state = 'queued' ORDER BY id LIMIT {workers})",
        "INSERT INTO pgvec.counters (vectorizer_id, worker_id, rows_right, jobs_done)"
        f" SELECT 1, i, 1000, {jobs // workers} FROM generate_series(1, {workers}) i",
        f"UPDATE pgvec.vectorizers SET jobs_planned = {2 * jobs}, rows_planned = {2000 * jobs} WHERE id = 1",
        "INSERT INTO pgvec.samples (vectorizer_id, worker_id, at, rows, chunks, tokens)"
        " SELECT 1, w, date_bin('10 seconds', clock_timestamp(), '2000-01-01') - i * interval '10 seconds', 10, 10, 10"
        f" FROM generate_series(0, 359) i, generate_series(1, {workers}) w",
        "VACUUM ANALYZE",
    ):
        connection.execute(statement.encode())


def _look(connection: Connection, view: str) -> float:
    began = time.monotonic()
    connection.execute(f"SELECT * FROM pgvec.{view}".encode()).fetchall()
    return 1000 * (time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
