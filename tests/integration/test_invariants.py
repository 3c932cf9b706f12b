"""The ten invariants of docs/invariants.md, each with a test; ``python -m tests.guards`` takes their guards out."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from pgvec_queue import queue, resources
from pgvec_queue.slices import Fate
from pgvec_queue.worker import Outcome, Worker, WorkerOptions
from tests.oracle import expected, found, work_off
from tests.support import Bench, pgvec
from tests.waiting import wait_until

RIGHT = {"missing": 0, "orphaned": 0, "stale": 0}


def _docs(bench: Bench, rows: int = 10) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, %s) i", rows)


def test_1_together_or_not_at_all(bench: Bench) -> None:
    """A write whose progress cannot be recorded leaves no vectors, and the other way round."""
    _docs(bench)
    vectorizer = bench.enqueue("docs", "body")
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    embedded = bench.embed(vectorizer, part)
    bench.sql("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
    for table, event in (("pgvec.jobs", "UPDATE"), ("pgvec.counters", "INSERT"), ("docs_vectors", "INSERT")):
        bench.sql(f"CREATE TRIGGER refuse BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()")
        with pytest.raises(psycopg.errors.RaiseException):
            bench.write(vectorizer, part, embedded, worker)
        bench.sql(f"DROP TRIGGER refuse ON {table}")
        assert bench.value("SELECT count(*) FROM docs_vectors") == 0
        assert bench.value("SELECT coalesce(sum(rows_right), 0) FROM pgvec.counters") == 0
        assert bench.sql("SELECT state, checkpoint FROM pgvec.jobs") == [("running", None)]
    assert bench.write(vectorizer, part, embedded, worker).fate is Fate.WRITTEN
    assert bench.value("SELECT count(*) FROM docs_vectors") == 10
    assert bench.value("SELECT state FROM pgvec.jobs") == "done"


def _change(bench: Bench) -> None:
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 2")
    bench.sql("DELETE FROM docs WHERE id = 3")
    bench.sql("INSERT INTO docs VALUES (0, 'first'), (100, 'last')")
    bench.sql("UPDATE docs SET id = 50 WHERE id = 4")
    bench.sql("UPDATE docs SET body = ' ' WHERE id = 5")


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("moment", ["before the read", "before the write", "after the write"])
def test_2_right_when_idle(bench: Bench, moment: str, sync: bool, column: bool) -> None:
    """Users change what a worker has in hand; once the queue is empty, the destination holds the present texts."""
    _docs(bench)
    vectorizer = bench.enqueue("docs", "body", sync=sync, into_column="embedding" if column else None)
    worker = bench.register()
    job = bench.claim(worker)
    if moment == "before the read":
        _change(bench)
    part = bench.read(vectorizer, job)
    embedded = bench.embed(vectorizer, part)
    if moment == "before the write":
        _change(bench)
    assert bench.write(vectorizer, part, embedded, worker).fate is Fate.WRITTEN
    if moment == "after the write":
        _change(bench)
        if not sync:
            bench.plan(vectorizer)
    work_off(bench)
    assert found(bench, vectorizer) == expected(bench, vectorizer)


def test_3_fenced(bench: Bench) -> None:
    """A worker that lost its lease writes nothing, however late it wakes up; nor does it for a claim that is over."""
    _docs(bench)
    vectorizer = bench.enqueue("docs", "body")
    late, next_ = bench.register(), bench.register()
    part = bench.read(vectorizer, bench.claim(late))
    embedded = bench.embed(vectorizer, part)
    bench.sql("UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour' WHERE id = %s", late.worker)
    assert queue.reclaim(bench.connection) == (1, 1)
    assert bench.write(vectorizer, part, embedded, late).fate is Fate.LOST, "back in the queue"
    again = bench.claim(next_)
    assert bench.write(vectorizer, part, embedded, late).fate is Fate.LOST, "somebody else's"
    assert bench.write(vectorizer, part, embedded, next_).fate is Fate.LOST, "the same worker's, of another claim"
    assert bench.value("SELECT count(*) FROM docs_vectors") == 0
    assert bench.write(vectorizer, bench.read(vectorizer, again), embedded, next_).fate is Fate.WRITTEN


def _running(worker: Worker) -> Callable[[], None]:
    thread = threading.Thread(target=worker.run)
    thread.start()

    def end() -> None:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()

    return end


def test_4_no_transaction_is_open_while_a_model_runs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "delay=0.3")
    _docs(bench, 300)
    bench.enqueue("docs", "body", rows_per_job=20)
    end = _running(Worker(bench.database, WorkerOptions()))
    mine = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    try:
        wait_until(lambda: bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'running'") >= 2, 20)
        # The stages before the model read ahead; once their queues are full, all of them wait for it.
        wait_until(
            lambda: (
                bench.value(f"SELECT count(*) {mine} AND xact_start IS NULL") >= 2
                and not bench.sql(f"SELECT {mine} AND xact_start IS NOT NULL")
            ),
            20,
            what="every connection outside a transaction",
        )
        assert bench.progress("docs").rows_done < 300
    finally:
        end()


def test_5_one_bad_row_costs_one_row(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "refuse=bane;nan=curse")
    _docs(bench, 300)
    bench.sql("UPDATE docs SET body = body || ' bane' WHERE id IN (7, 8)")
    bench.sql("UPDATE docs SET body = body || ' curse' WHERE id = 100")
    vectorizer = bench.enqueue("docs", "body", rows_per_job=150)
    bench.sql("ALTER TABLE docs_vectors ADD CHECK (id <> 200)")
    assert bench.drain() is Outcome.QUARANTINED
    assert sorted(int(key[0]) for (key,) in bench.sql("SELECT key FROM pgvec.failures")) == [7, 8, 100, 200]
    done = bench.progress("docs")
    assert (done.rows_done, done.rows_failed, done.state) == (296, 4, "complete")
    assert bench.wrong(vectorizer) == RIGHT


@pytest.mark.timeout(60)
def test_6_nothing_is_stuck(bench: Bench) -> None:
    """Jobs of a dead worker, of one that is not there at all, and of one that left in order: others finish them."""
    _docs(bench, 60)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=10)
    dead, unknown, left = (bench.register(lease=1.0) for _ in range(3))
    for worker in (dead, unknown, left):
        bench.claim(worker)
    bench.sql("DELETE FROM pgvec.workers WHERE id = %s", unknown.worker)
    queue.leave(bench.connection, left)
    assert bench.drain(lease=1.0) is Outcome.COMPLETE
    assert bench.wrong(vectorizer) == RIGHT
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 2


def test_7_only_failures_count_as_attempts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopping, pausing, blocking and a connection that is lost count none; a death does."""
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "delay=0.02")
    # More than all rounds together finish of what they have in hand.
    _docs(bench, 1_200)
    bench.enqueue("docs", "body", rows_per_job=20)
    for interference in (
        "SELECT 1",
        "UPDATE pgvec.vectorizers SET paused = true",
        "UPDATE pgvec.vectorizers SET paused = false, blocked_reason = 'test'",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND datname = current_database()",
    ):
        bench.sql("UPDATE pgvec.vectorizers SET paused = false, blocked_reason = NULL")
        done = bench.progress("docs").rows_done
        end = _running(Worker(bench.database, WorkerOptions()))
        try:
            wait_until(lambda done=done: bench.progress("docs").rows_done > done, 20)  # type: ignore[misc]
            bench.sql(interference)
        finally:
            end()
        assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0
        assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'running'") == 0
    bench.sql("UPDATE pgvec.vectorizers SET paused = false, blocked_reason = NULL")
    worker = bench.register()
    bench.claim(worker)
    bench.sql("UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour'")
    queue.reclaim(bench.connection)
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 1


def test_8_the_queue_grows_with_jobs_not_rows(bench: Bench) -> None:
    _docs(bench, 20_000)
    bench.enqueue("docs", "body", sync=True)
    assert bench.value("SELECT count(*) FROM pgvec.jobs") == 21
    bench.sql("UPDATE docs SET body = body || '.'")
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind = 'keys'") == 20
    bench.sql("UPDATE docs SET body = body || '.' WHERE id <= 999")
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind = 'keys'") == 21
    bench.sql("TRUNCATE docs")
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind = 'sweep'") == 1


def test_9_the_database_s_clock_is_the_only_clock(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose own clock is hours off keeps its lease, and takes nobody else's."""
    other_clock = re.compile(
        r"\bnow\(\)|\b(current_timestamp|localtimestamp|current_time)\b|(statement|transaction)_timestamp"
    )
    for path in resources.directory("sql").glob("*.sql"):
        assert not other_clock.findall(path.read_text())
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 7 * 3600)
    _docs(bench, 200)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=20)
    other = bench.register(lease=60.0)
    held = bench.claim(other)
    worker = Worker(bench.database, WorkerOptions(lease=1.0))
    end = _running(worker)
    try:
        wait_until(lambda: bench.progress("docs").jobs["queued"] == 0, 20)
        wait_until(
            lambda: bench.value("SELECT max(clock_timestamp() - started_at) > interval '2 s' FROM pgvec.workers"), 20
        )
        assert bench.sql("SELECT worker_id FROM pgvec.jobs WHERE id = %s", held.id) == [(other.worker,)]
        assert bench.value("SELECT count(*) FROM pgvec.workers WHERE gone") == 0
    finally:
        end()
    skew = bench.value(
        "SELECT max(abs(extract(epoch FROM finished_at - clock_timestamp()))) FROM pgvec.jobs WHERE state = 'done'"
    )
    assert skew < 60
    queue.leave(bench.connection, other)
    assert bench.drain() is Outcome.COMPLETE
    assert bench.wrong(vectorizer) == RIGHT


def test_10_memory_is_bounded(bench: Bench) -> None:
    """One job with 200 MB of text, and a document beyond the limit, in a process that grows by a fraction of that."""
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, repeat(md5(i::text) || ' ', 6000) FROM generate_series(1, 1000) i")
    bench.sql("INSERT INTO docs VALUES (5000, repeat('x', 11 * 1024 * 1024))")
    vectorizer = bench.enqueue("docs", "body", rows_per_job=100_000)
    process = pgvec("work", dsn=bench.dsn)
    try:
        wait_until(
            lambda: (
                bench.progress("docs").state == "complete"
                and bench.value("SELECT count(*) FROM pgvec.workers WHERE state = 'idle'")
            ),
            120,
        )
        used = bench.value("SELECT memory_bytes FROM pgvec.workers")
    finally:
        process.terminate()
        process.communicate()
    assert used < 200 * 1024 * 1024
    assert bench.sql("SELECT key, error_class FROM pgvec.failures") == [(["5000"], "DocumentTooLarge")]
    assert bench.wrong(vectorizer) == RIGHT
