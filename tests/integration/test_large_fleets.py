"""What workers of a large fleet tell each other with their heartbeats, so that it is soon at work, LISTEN or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pgvec_queue.worker import Worker, WorkerOptions
from tests.support import Bench
from tests.waiting import wait_until

OWN = "host <> 'elsewhere'"


def _fill(bench: Bench, rows: int) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, %s) i", rows)


def _others(bench: Bench, count: int) -> None:
    """Workers that live, and do nothing."""
    bench.sql(
        "INSERT INTO pgvec.workers (host, pid, version, lease)"
        " SELECT 'elsewhere', i, 'x', interval '1 day' FROM generate_series(1, %s) i",
        count,
    )


@contextmanager
def _deaf_worker(bench: Bench, lease: float) -> Iterator[None]:
    worker = Worker(bench.database, WorkerOptions(lease=lease, listen=False))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(lambda: bench.value(f"SELECT count(*) FROM pgvec.workers WHERE state = 'idle' AND {OWN}"), 30)
        yield
    finally:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_an_idle_worker_looks_when_another_knows_of_plenty(bench: Bench) -> None:
    _fill(bench, 30)
    _others(bench, 200)
    # So large a fleet lets each of its workers poll once in half a minute at the soonest.
    with _deaf_worker(bench, 3.0):
        bench.enqueue("docs", "body")
        assert bench.progress("docs").state == "active"
        bench.sql("UPDATE pgvec.workers SET plenty = true WHERE host = 'elsewhere' AND pid = 7")
        wait_until(lambda: bench.progress("docs").state == "complete", 15, what="a worker that was told")


def test_whoever_finds_more_than_two_jobs_per_worker_says_so_until_it_is_idle(bench: Bench) -> None:
    _fill(bench, 400)
    _others(bench, 1)
    with _deaf_worker(bench, 1.0):
        assert not bench.value(f"SELECT plenty FROM pgvec.workers WHERE {OWN}")
        bench.enqueue("docs", "body", rows_per_job=1)
        wait_until(lambda: bench.value(f"SELECT plenty FROM pgvec.workers WHERE {OWN}"), 20, what="the word of plenty")
        wait_until(lambda: bench.progress("docs").state == "complete", 30)
        wait_until(lambda: not bench.value(f"SELECT plenty FROM pgvec.workers WHERE {OWN}"), 10, what="its end")
