"""Calls that do not come back: what is severed, and what ends the worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest

from pgvec_queue.route import sever
from pgvec_queue.worker import Worker, WorkerOptions
from pgvec_queue.worker.watch import Watch
from tests.support import Bench, pgvec
from tests.waiting import wait_until


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    thread = threading.Thread(target=watch.run)
    thread.start()
    yield watch
    watch.stop()
    thread.join()


def test_a_call_past_its_deadline_is_told_once_and_one_that_ends_in_time_is_not(watch: Watch) -> None:
    told: list[str] = []
    overdue = threading.Event()

    def late() -> None:
        told.append("late")
        overdue.set()

    with watch.call("a quick one", 60, lambda: told.append("quick")):
        pass
    with watch.call("a late one", 0, late):
        assert overdue.wait(5)
        # The watch looks again and again while the call goes on.
        with watch.call("another", 0, lambda: told.append("another")):
            wait_until(lambda: "another" in told)
    assert told == ["late", "another"]


def test_a_severed_connection_fails_at_once_in_the_thread_that_waits_for_it(bench: Bench, watch: Watch) -> None:
    connection = bench.database.connect("sleeper")
    started = time.monotonic()
    with pytest.raises(psycopg.OperationalError), watch.database("a sleep", 0.1, connection):
        connection.execute("SELECT pg_sleep(30)")
    assert time.monotonic() - started < 15
    sever(connection)
    connection.close()
    sever(connection)


def test_all_connections_are_severed_when_one_shows_that_the_network_is_cut(bench: Bench, watch: Watch) -> None:
    failed: list[BaseException] = []

    def sleep(connection: psycopg.Connection[tuple[object, ...]]) -> None:
        try:
            with watch.database("a sleep", 60, connection):
                connection.execute("SELECT pg_sleep(30)")
        except psycopg.OperationalError as error:
            failed.append(error)

    threads = [threading.Thread(target=sleep, args=(bench.database.connect("sleeper"),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
    wait_until(lambda: bench.value(asleep) == 2)
    watch.sever_all()
    for thread in threads:
        thread.join(15)
    assert len(failed) == 2


def test_a_worker_whose_call_hangs_beats_no_more_and_gives_nothing_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job may be what hangs: it is left to the lease, and the death counts."""
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "hang=bane")
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs VALUES (1, 'bane')")
    bench.enqueue("docs", "body")
    worker = Worker(bench.database, WorkerOptions(lease=1.0, stall=1.0))
    with pytest.raises(Exception, match="the model did not come back"):
        worker.run()
    assert worker.hung
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'running'") == 1
    wait_until(lambda: bench.value("SELECT count(*) FROM pgvec.worker_status WHERE state = 'gone'"))


def test_a_worker_whose_connections_all_go_silent_makes_new_ones_and_keeps_its_lease(bench: Bench) -> None:
    """The connections stay open and nothing comes back: its server processes are stopped."""
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, 2000) i")
    bench.enqueue("docs", "body", rows_per_job=100)
    worker = pgvec("work", "--lease", "4", dsn=bench.dsn, env={"PGVEC_HASHING_FAULTS": "delay=0.004"})
    stopped: list[int] = []
    try:
        wait_until(lambda: bench.progress("docs").rows_done > 100, 30)
        for (pid,) in bench.sql(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ):
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
        before = bench.value("SELECT beat_at FROM pgvec.workers")
        wait_until(lambda: bench.value("SELECT beat_at FROM pgvec.workers") > before, 15, what="a beat")
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: bench.progress("docs").state == "complete", 60)
        assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0
        assert bench.value("SELECT count(*) FROM pgvec.workers") == 1
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        worker.terminate()
        _, err = worker.communicate(timeout=30)
    assert worker.returncode == 0, err
    assert 'what="the heartbeat\'s connection"' in err


def test_a_job_that_was_claimed_unheard_goes_back(bench: Bench) -> None:
    """Its claim was committed, and the connection broke before the answer came: only its owner can know."""
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, 300) i")
    bench.enqueue("docs", "body", rows_per_job=100)
    bench.sql("UPDATE pgvec.vectorizers SET paused = true")
    worker = pgvec("work", "--lease", "2", dsn=bench.dsn)
    try:
        wait_until(lambda: bench.value("SELECT count(*) FROM pgvec.workers"), 30)
        bench.sql(
            "UPDATE pgvec.jobs SET state = 'running', epoch = epoch + 1, worker_id = (SELECT id FROM pgvec.workers)"
            " WHERE state = 'queued' AND id = (SELECT max(id) FROM pgvec.jobs)"
        )
        bench.sql("UPDATE pgvec.vectorizers SET paused = false")
        wait_until(lambda: bench.progress("docs").state == "complete", 30)
        assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0
    finally:
        worker.terminate()
        _, err = worker.communicate(timeout=30)
    assert worker.returncode == 0, err
