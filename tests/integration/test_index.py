"""The index on the vectors: when it is built, by whom, and what becomes of a build that ends early."""

from __future__ import annotations

import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgvec_queue import queue, vector_index, vectorizer
from pgvec_queue.database import Database, statement, transaction
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker import Outcome, Worker, WorkerOptions, indexing
from tests.support import Bench, pgvec
from tests.waiting import wait_until

VALID = "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam"
ALL = f"{VALID} WHERE a.amname = 'hnsw'"
VALID = f"{ALL} AND i.indisvalid"
BUILDING = "SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database()"
WAITING = f"{BUILDING} AND phase LIKE 'waiting%'"


def _fill(bench: Bench, rows: int, table: str = "docs") -> None:
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO {table} SELECT i, 'document ' || i FROM generate_series(1, {rows}) i")


def _index(bench: Bench, name: str = "docs") -> dict[str, Any]:
    found = bench.progress(name).index
    assert found is not None
    return found


def _goes_through(bench: Bench, name: str) -> bool:
    """Whether a search reads the index of that name."""
    scans = "SELECT coalesce(pg_stat_get_xact_numscans(%s::regclass), 0)"
    with bench.connection.transaction():
        bench.sql("SET LOCAL enable_seqscan = off")
        before = bench.value(scans, name)
        hits = bench.sql("SELECT s.key FROM docs_vectors d, pgvec.search(1, d.embedding::real[]) s WHERE d.id = 5")
        assert hits[0] == (["5"],)
        return bool(bench.value(scans, name) == before + 1)


def _jobs(bench: Bench) -> list[str]:
    return [state for (state,) in bench.sql("SELECT state FROM pgvec.jobs WHERE kind = 'index' ORDER BY id")]


@contextmanager
def _open_transaction(bench: Bench) -> Iterator[psycopg.Connection[Any]]:
    """A transaction that has a snapshot, for whose end every concurrent build waits."""
    with psycopg.connect(bench.dsn) as connection:
        connection.execute("CREATE TABLE something ()")
        connection.execute("LOCK docs_vectors IN ROW EXCLUSIVE MODE")
        yield connection
        connection.rollback()


@contextmanager
def _process(bench: Bench, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = pgvec("work", "--lease", "1", *arguments, dsn=bench.dsn)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def _draining(bench: Bench, count: int = 1) -> Iterator[list[Any]]:
    """Workers that drain, in threads; yields a list of how they have ended, and waits for all of them."""
    ended: list[Any] = []

    def run(worker: Worker) -> None:
        try:
            ended.append(worker.run())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            ended.append(error)

    workers = [Worker(bench.database, WorkerOptions(drain=True, lease=1.0)) for _ in range(count)]
    threads = [threading.Thread(target=run, args=[worker]) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        yield ended
        for thread in threads:
            thread.join(60)
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()


def _loaded(bench: Bench, rows: int = 100) -> Vectorizer:
    """All is embedded, and the index is wanted."""
    _fill(bench, rows)
    one = bench.enqueue("docs", "body")
    assert bench.drain() is Outcome.COMPLETE
    vector_index.want(bench.connection, one, vector_index.default_wish(one))
    vector_index.queue(bench.connection, one)
    return one


# By default


def test_a_backfill_ends_with_an_index_whose_recall_is_known(bench: Bench) -> None:
    _fill(bench, 300)
    bench.enqueue("docs", "body", model="hashing-32", rows_per_job=40, index_new=True)
    assert (_index(bench)["state"], _jobs(bench)) == ("wanted", ["queued"])
    assert bench.progress("docs").jobs["queued"] == 8, "the index is none of the rows' jobs"
    assert bench.drain() is Outcome.COMPLETE
    there = _index(bench)
    assert (there["state"], there["reason"], there["m"], there["ef_construction"]) == ("built", None, 16, 64)
    assert there["name"].startswith("public.docs_vectors_hnsw_")
    assert there["size_bytes"] > 0
    assert there["seconds"] >= 0
    assert there["recall"] > 0.9
    assert there["recall_queries"] == 100
    assert bench.value(VALID) == 1
    assert _goes_through(bench, there["name"])
    done = bench.progress("docs")
    assert (done.state, done.jobs["done"], done.jobs["queued"], done.jobs["running"]) == ("complete", 8, 0, 0)
    assert _jobs(bench) == ["done"]


def test_a_new_vectorizer_gets_one_and_an_old_one_stays_as_it_is(bench: Bench) -> None:
    _fill(bench, 10)
    bench.enqueue("docs", "body", index_new=True)
    bench.enqueue("docs", "body", name="second", into="second", index_new=False)
    assert bench.progress("second").index is None
    bench.enqueue("docs", "body", name="second", index_new=True)
    assert bench.progress("second").index is None, "nothing is built for what was there without"
    bench.enqueue("docs", "body", index_new=False)
    assert _index(bench)["state"] == "wanted"
    assert _jobs(bench) == ["queued"], "one job, however often it is asked for"


def test_no_index_is_remembered_until_one_is_asked_for(bench: Bench) -> None:
    _fill(bench, 10)
    bench.enqueue("docs", "body", index=False, index_new=True)
    bench.enqueue("docs", "body", index_new=True)
    assert (_index(bench)["state"], _jobs(bench)) == ("unwanted", [])
    bench.drain()
    assert bench.value(ALL) == 0
    bench.enqueue("docs", "body", index=True)
    assert (_index(bench)["state"], _jobs(bench)) == ("wanted", ["queued"])
    bench.enqueue("docs", "body", index=False)
    assert (_index(bench)["state"], _jobs(bench)) == ("unwanted", [])


def test_an_index_that_is_there_stays_when_none_is_wanted_any_more(bench: Bench) -> None:
    _loaded(bench)
    bench.drain()
    remarks = bench.define("docs", "body", index=False).remarks
    assert len(remarks) == 1
    assert "stays; `pgvec index docs --drop` removes it" in remarks[0]
    assert bench.value(VALID) == 1


def test_an_index_that_was_dropped_is_missed_and_made_up_for(bench: Bench) -> None:
    _loaded(bench)
    bench.drain()
    name = _index(bench)["name"]
    bench.sql(f"DROP INDEX {name}")
    assert _index(bench)["state"] == "missing"
    assert "pgvec index docs" in _index(bench)["reason"]
    bench.enqueue("docs", "body")
    bench.drain()
    assert (_index(bench)["state"], bench.value(VALID)) == ("built", 1)


def test_an_index_of_somebody_s_own_is_respected(bench: Bench) -> None:
    _fill(bench, 50)
    bench.enqueue("docs", "body")
    bench.drain()
    bench.sql("CREATE INDEX mine ON docs_vectors USING hnsw (embedding vector_cosine_ops) WITH (m = 8)")
    remarks = bench.define("docs", "body", index=True).remarks
    assert remarks == ["public.mine (hnsw) serves searches; no other index is built"]
    assert (_index(bench)["state"], _index(bench)["name"], _jobs(bench)) == ("built", "public.mine", [])


def test_an_index_that_serves_no_cosine_is_none(bench: Bench) -> None:
    _loaded(bench, 50)
    bench.sql("CREATE INDEX mine ON docs_vectors USING hnsw (embedding vector_l2_ops)")
    bench.sql("CREATE INDEX few ON docs_vectors USING hnsw (embedding vector_cosine_ops) WHERE id < 10")
    bench.drain()
    assert bench.value(VALID) == 3


def test_the_vector_column_of_a_source_gets_one_as_well(bench: Bench) -> None:
    _fill(bench, 60)
    defined = bench.define("docs", "body", into_column="embedding", index_new=True)
    assert any("HNSW index on vector of public.docs.embedding" in remark for remark in defined.remarks)
    bench.plan(defined.vectorizer)
    assert bench.drain() is Outcome.COMPLETE
    assert _index(bench)["recall"] == 1.0
    assert bench.value(VALID) == 1


@pytest.mark.parametrize("dimensions", [2_000, 2_001, 4_000])
def test_vectors_that_are_too_long_for_an_index_are_indexed_as_halfvec(bench: Bench, dimensions: int) -> None:
    _fill(bench, 20)
    bench.enqueue("docs", "body", model=f"hashing-{dimensions}", index=True)
    assert bench.drain() is Outcome.COMPLETE
    there = _index(bench)
    assert (there["state"], there["store"]) == ("built", "vector" if dimensions == 2_000 else "halfvec")
    assert there["recall"] == 1.0
    assert _goes_through(bench, there["name"])


# Who claims it, and when


def _claimable(bench: Bench) -> list[Any]:
    return bench.connection.execute(statement("index", "claimable"), {"names": None, "left": []}).fetchall()


def _claim(connection: Any, one: Vectorizer, member: queue.Membership) -> Any:
    with transaction(connection):
        return connection.execute(
            statement("index", "claim"), {"vectorizer": one.id, "worker": member.worker, "world": member.world}
        ).fetchone()


def test_it_is_claimable_when_no_range_is_unfinished(bench: Bench) -> None:
    _fill(bench, 100)
    one = bench.enqueue("docs", "body", rows_per_job=50, index=True)
    member = bench.register()

    def claimable() -> bool:
        listed = bool(_claimable(bench))
        with bench.connection.transaction(force_rollback=True):
            assert bool(_claim(bench.connection, one, member)) == listed
        return listed

    assert not claimable()
    bench.sql("UPDATE pgvec.jobs SET state = 'done' WHERE kind = 'range' AND id <> (SELECT max(id) FROM pgvec.jobs)")
    assert not claimable(), "one is queued"
    bench.sql("UPDATE pgvec.jobs SET state = 'running', worker_id = 77 WHERE kind = 'range' AND state = 'queued'")
    assert not claimable(), "one is running"
    bench.sql("UPDATE pgvec.jobs SET kind = 'sweep' WHERE state = 'running'")
    assert not claimable(), "a sweep is running"
    bench.sql("UPDATE pgvec.jobs SET state = 'done' WHERE state = 'running'")
    assert claimable()
    bench.sql("INSERT INTO pgvec.jobs (vectorizer_id, kind, keys) VALUES (%s, 'keys', '[[\"1\"]]')", one.id)
    assert claimable(), "live changes go on for ever"
    for held in ("plan_complete = false", "paused = true", "cancelled = true", "blocked_reason = 'broken'"):
        with bench.connection.transaction(force_rollback=True):
            bench.sql(f"UPDATE pgvec.vectorizers SET {held}")
            assert not claimable()


def test_of_many_that_claim_it_at_once_one_gets_it(bench: Bench) -> None:
    one = _loaded(bench, 10)
    members = [bench.register() for _ in range(4)]
    with ExitStack() as stack:
        connections = [stack.enter_context(bench.database.connect("test")) for _ in members]
        for _ in range(10):
            start = threading.Barrier(len(members))
            got: list[Any] = []

            def claim(connection: Any, member: queue.Membership, start: threading.Barrier, got: list[Any]) -> None:
                start.wait()
                got.append(_claim(connection, one, member))

            threads = [
                threading.Thread(target=claim, args=[connection, member, start, got])
                for connection, member in zip(connections, members, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(row is not None for row in got) == 1
            bench.sql("UPDATE pgvec.jobs SET state = 'queued', worker_id = NULL WHERE kind = 'index'")


def test_two_workers_that_finish_the_last_two_ranges_at_once_make_one_valid_index(bench: Bench) -> None:
    _fill(bench, 400)
    bench.enqueue("docs", "body", rows_per_job=200, index=True)
    with _draining(bench, 2) as ended:
        pass
    assert ended == [Outcome.COMPLETE] * 2
    assert (bench.value(VALID), bench.value(ALL)) == (1, 1)
    assert bench.sql("SELECT state, epoch FROM pgvec.jobs WHERE kind = 'index'") == [("done", 1)]
    assert _index(bench)["state"] == "built"


def test_the_rest_of_the_queue_goes_on_while_an_index_is_built(bench: Bench) -> None:
    _loaded(bench)
    _fill(bench, 300, "others")
    with _open_transaction(bench) as other, _draining(bench) as ended:
        wait_until(lambda: bench.sql(WAITING), what="the build")
        bench.enqueue("others", "body")
        wait_until(lambda: bench.progress("others").rows_done == 300, what="the other vectorizer")
        now = _index(bench)
        assert now["state"] == "building"
        assert f"pid {other.info.backend_pid}" in now["waiting_for"]
        assert bench.progress("docs").state == "complete", "its rows are done"
        wait_until(
            lambda: bench.sql("SELECT FROM pgvec.workers WHERE waiting_for LIKE '%%index of docs%%'"),
            what="the worker's row",
        )
        assert bench.sql("SELECT job_kind, vectorizer, state FROM pgvec.worker_status") == [
            ("index", "docs", "working")
        ]
        assert ended == [], "a worker that drains waits for the index"
        other.rollback()
    assert ended == [Outcome.COMPLETE]
    assert bench.value(VALID) == 1


# Builds that end early


def test_whoever_waits_for_a_build_has_no_transaction_open(bench: Bench) -> None:
    _loaded(bench)
    ours = "SELECT state, xact_start FROM pg_stat_activity WHERE application_name LIKE 'pgvec index%'"
    with psycopg.connect(bench.dsn, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock((1885828713::bigint << 32) | 'docs_vectors'::regclass::oid::bigint)")
        with _draining(bench) as ended:
            wait_until(
                lambda: bench.sql("SELECT FROM pgvec.workers WHERE waiting_for LIKE '%has been building%'"),
                what="a worker that waits",
            )
            # It looks now and then, for a moment; one that stayed open would never be seen so.
            for _ in range(3):
                wait_until(lambda: ("idle", None) in bench.sql(ours), what="nothing open")
            assert bench.sql(BUILDING) == []
            other.execute("SELECT pg_advisory_unlock_all()")
    assert ended == [Outcome.COMPLETE]
    assert bench.value(VALID) == 1


def test_a_worker_that_is_killed_leaves_a_build_that_the_next_waits_for(bench: Bench) -> None:
    _loaded(bench)
    with _open_transaction(bench) as other:
        with _process(bench) as process:
            wait_until(lambda: bench.sql(WAITING), 30, what="the build")
            pid = bench.value(BUILDING)
        assert bench.sql(BUILDING) == [(pid,)], "the server goes on"
        with _draining(bench) as ended:
            wait_until(
                lambda: bench.sql("SELECT FROM pgvec.workers WHERE waiting_for LIKE %s", f"%(pid {pid})%"),
                30,
                what="the next worker, waiting",
            )
            assert bench.value("SELECT epoch FROM pgvec.jobs WHERE kind = 'index'") == 2
            assert bench.sql(BUILDING) == [(pid,)], "nobody else builds"
            assert _index(bench)["state"] == "building"
            other.rollback()
    assert process.returncode == -signal.SIGKILL
    assert ended == [Outcome.COMPLETE]
    assert (bench.value(VALID), bench.value(ALL)) == (1, 1)
    assert _index(bench)["seconds"] is None, "it was there"
    assert _index(bench)["recall"] == 1.0


def test_what_a_build_that_was_ended_leaves_is_dropped_and_built_anew(bench: Bench) -> None:
    _loaded(bench)
    with _open_transaction(bench) as other:
        with _process(bench):
            wait_until(lambda: bench.sql(WAITING), 30, what="the build")
        with _draining(bench) as ended:
            wait_until(lambda: bench.value("SELECT max(epoch) FROM pgvec.jobs WHERE kind = 'index'") == 2, 30)
            left = bench.value("SELECT indexrelid FROM pg_index WHERE NOT indisvalid")
            bench.sql(BUILDING.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"))
            other.rollback()
    assert ended == [Outcome.COMPLETE]
    assert (bench.value(VALID), bench.value(ALL)) == (1, 1)
    assert not bench.sql("SELECT FROM pg_class WHERE oid = %s", left)
    assert _index(bench)["seconds"] is not None


def test_a_worker_that_is_told_to_leave_ends_the_build_and_leaves(bench: Bench) -> None:
    _loaded(bench)
    with _open_transaction(bench):
        with _process(bench) as process:
            wait_until(lambda: bench.sql(WAITING), 30, what="the build")
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert "build of an index was stopped" in (process.stderr.read() if process.stderr else "")
        assert bench.sql(BUILDING) == []
        assert bench.sql("SELECT state, attempts FROM pgvec.jobs WHERE kind = 'index'") == [("queued", 0)]
        assert _index(bench)["state"] == "wanted"
        assert (bench.value(VALID), bench.value(ALL)) == (0, 1), "what is left of it"
    assert bench.drain() is Outcome.COMPLETE
    assert (bench.value(VALID), bench.value(ALL)) == (1, 1)


@pytest.mark.parametrize("how", ["pause", "drop"])
def test_a_vectorizer_that_is_stopped_has_its_build_ended(bench: Bench, how: str) -> None:
    _loaded(bench)
    with _open_transaction(bench), _draining(bench) as ended:
        wait_until(lambda: bench.sql(WAITING), what="the build")
        vectorizer.steer(bench.connection, "docs", how)
        queue.notify(bench.connection, "steer")
        wait_until(lambda: not bench.sql(BUILDING), what="the end of the build")
        wait_until(lambda: ended, what="the end of the worker: nothing is left to wait for")
    assert ended == [Outcome.COMPLETE]
    assert _jobs(bench) == (["queued"] if how == "pause" else [])
    if how == "pause":
        vectorizer.steer(bench.connection, "docs", "resume")
        assert bench.drain() is Outcome.COMPLETE
        assert (bench.value(VALID), bench.value(ALL)) == (1, 1)


def test_a_worker_that_lost_its_lease_ends_its_build(bench: Bench) -> None:
    _loaded(bench)
    with _open_transaction(bench) as other, _draining(bench) as ended:
        wait_until(lambda: bench.sql(WAITING), what="the build")
        first = bench.value(BUILDING)
        bench.sql("UPDATE pgvec.workers SET gone = true")
        wait_until(
            lambda: not bench.sql("SELECT FROM pg_stat_activity WHERE pid = %s", first), what="the first build's end"
        )
        wait_until(lambda: bench.value("SELECT epoch FROM pgvec.jobs WHERE kind = 'index'") == 2, 20)
        other.rollback()
    assert ended == [Outcome.COMPLETE]
    assert (bench.value(VALID), bench.value(ALL)) == (1, 1)


# What is not wanted any more, or otherwise


def test_a_build_of_what_is_not_wanted_any_more_ends_and_nobody_waits_for_it(bench: Bench) -> None:
    _loaded(bench)
    with _open_transaction(bench), _draining(bench) as ended:
        wait_until(lambda: bench.sql(WAITING), what="the build")
        bench.define("docs", "body", index=False)
        wait_until(lambda: ended, 20, what="the end of the worker")
        assert bench.sql(BUILDING) == []
    assert ended == [Outcome.COMPLETE]
    assert (_index(bench)["state"], _jobs(bench), bench.value(VALID)) == ("unwanted", [], 0)


def test_a_job_of_what_is_not_wanted_any_more_holds_up_no_drain(bench: Bench) -> None:
    _loaded(bench)
    bench.sql("UPDATE pgvec.indexes SET state = 'unwanted'")
    with _draining(bench) as ended:
        wait_until(lambda: ended, what="the end of the worker")
    assert ended == [Outcome.COMPLETE]
    bench.connection.execute(statement("index", "withdrawn"))
    assert _jobs(bench) == []


def test_a_job_that_is_given_back_ends_where_it_is_needless(bench: Bench) -> None:
    one = _loaded(bench)
    member = bench.register()

    def given_back() -> list[str]:
        job = _claim(bench.connection, one, member)
        if not wanted:
            bench.sql("UPDATE pgvec.indexes SET state = 'unwanted'")
        else:
            vector_index.queue(bench.connection, one, anew=False)
            assert _jobs(bench) == ["running"]
            vector_index.queue(bench.connection, one)
            assert _jobs(bench) == ["running", "queued"]
            assert not _claimable(bench), "one is built"
        bench.connection.execute(statement("index", "give_back"), {"id": job[0], "seconds": 0})
        return _jobs(bench)

    wanted = True
    assert given_back() == ["queued"]
    wanted = False
    assert given_back() == []


def test_what_becomes_of_a_build_does_not_bring_back_the_wish(bench: Bench) -> None:
    one = _loaded(bench)
    bench.drain()
    there = vector_index.existing(bench.connection, vector_index.target(bench.connection, one))[0]
    bench.define("docs", "body", index=False)
    for note in (
        lambda: vector_index.note_begun(bench.connection, one),
        lambda: vector_index.note_found(bench.connection, one, there, seconds=1.0),
        lambda: vector_index.note_refused(bench.connection, one, "no"),
        lambda: bench.connection.execute(statement("index", "failed"), {"vectorizer": one.id, "reason": "no"}),
    ):
        note()
        assert _index(bench)["state"] == "unwanted"


def test_a_reason_why_there_was_none_goes_when_there_is_one(bench: Bench) -> None:
    one = _loaded(bench)
    bench.drain()
    bench.sql("UPDATE pgvec.indexes SET state = 'refused', reason = 'no room'")
    bench.enqueue("docs", "body")
    assert (_index(bench)["state"], _index(bench)["reason"]) == ("built", None)
    bench.sql("UPDATE pgvec.indexes SET state = 'wanted', reason = 'a worker left it to others'")
    vector_index.note_begun(bench.connection, one)
    assert _index(bench)["reason"] is None


def test_a_wish_that_is_made_during_a_build_is_fulfilled_after_it(bench: Bench) -> None:
    one = _loaded(bench)
    with _open_transaction(bench) as other, _draining(bench) as ended:
        wait_until(lambda: bench.sql(WAITING), what="the build")
        with transaction(bench.connection):
            vector_index.want(bench.connection, one, vector_index.Wish(24, 64, "vector"))
            vector_index.queue(bench.connection, one)
        other.rollback()
    assert ended == [Outcome.COMPLETE]
    assert _jobs(bench) == ["done", "done"]
    assert bench.value(ALL) == 1
    assert "m='24'" in bench.value("SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%hnsw%'")


def test_what_a_build_leaves_goes_with_its_vectorizer(bench: Bench) -> None:
    _loaded(bench)
    with _open_transaction(bench) as other, _draining(bench) as ended:
        wait_until(lambda: bench.sql(WAITING), what="the build")
        vectorizer.steer(bench.connection, "docs", "drop")
        queue.notify(bench.connection, "steer")
        wait_until(lambda: not bench.sql(BUILDING), what="the end of the build")
        other.rollback()
    assert ended == [Outcome.COMPLETE]
    assert bench.value(ALL) == 0


# What cannot be built


def _failing(bench: Bench, condition: str, code: str, message: str) -> None:
    """The server fails at CREATE INDEX, as it would for want of room."""
    raised = f"RAISE EXCEPTION '{message}' USING ERRCODE = '{code}'"
    bench.sql(
        "CREATE FUNCTION fails() RETURNS event_trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN IF {condition} THEN {raised}; END IF; END $$"
    )
    bench.sql("CREATE EVENT TRIGGER fails ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION fails()")


def test_without_room_in_shared_memory_one_process_builds_and_says_so(bench: Bench) -> None:
    _loaded(bench)
    bench.sql("UPDATE pgvec.indexes SET parallel_workers = 1")
    message = 'could not resize shared memory segment "/PostgreSQL.1" to 2147483648 bytes: No space left on device'
    _failing(bench, "current_setting('max_parallel_maintenance_workers') <> '0'", "53100", message)
    assert bench.drain() is Outcome.COMPLETE
    there = _index(bench)
    assert there["state"] == "built"
    assert "built by one process: could not resize shared memory segment" in there["reason"]


@pytest.mark.parametrize("code", ["53100", "40P01", "XX000", "57P03"])
def test_what_may_pass_is_tried_again_a_few_times_and_then_refused(bench: Bench, code: str) -> None:
    _loaded(bench)
    _failing(bench, "true", code, "could not extend file: No space left on device")

    def failed(times: int) -> bool:
        return bool(bench.sql("SELECT FROM pgvec.indexes WHERE failures = %s", times))

    with _draining(bench) as ended:
        for times in (1, 2):
            wait_until(lambda times=times: failed(times), what="a failure")  # type: ignore[misc]
            assert _index(bench)["reason"] == "could not extend file: No space left on device"
            assert bench.value(
                "SELECT run_after > clock_timestamp() + interval '20 s' FROM pgvec.jobs WHERE kind = 'index'"
            )
            bench.sql("UPDATE pgvec.jobs SET run_after = NULL WHERE kind = 'index'")
    assert ended == [Outcome.COMPLETE]
    there = _index(bench)
    assert (there["state"], _jobs(bench)) == ("refused", ["done"])
    assert there["reason"].endswith("when that is mended, run: pgvec index docs")
    assert bench.progress("docs").state == "complete"


def test_what_pgvector_refuses_is_refused_with_its_reason(bench: Bench) -> None:
    _loaded(bench)
    bench.sql("ALTER TABLE docs_vectors ALTER embedding TYPE vector")
    assert bench.drain() is Outcome.COMPLETE
    there = _index(bench)
    assert there["state"] == "refused"
    assert there["reason"] == "column does not have dimensions; when that is mended, run: pgvec index docs"
    bench.sql("ALTER TABLE docs_vectors ALTER embedding TYPE vector(8)")
    bench.enqueue("docs", "body")
    bench.drain()
    assert _index(bench)["state"] == "built", "another enqueue tries it again"


@contextmanager
def _role(bench: Bench) -> Iterator[Database]:
    """Somebody who may do everything a worker does, but does not own the destination."""
    role = f"worker_{uuid.uuid4().hex}"
    bench.sql(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA pgvec TO {role}")
    bench.sql(f"GRANT ALL ON ALL TABLES IN SCHEMA pgvec TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    bench.sql(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA pgvec TO {role}")
    try:
        yield Database(make_conninfo(bench.dsn, user=role))
    finally:
        bench.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_worker_that_may_not_leaves_it_to_one_that_may(bench: Bench) -> None:
    _loaded(bench)
    with _role(bench) as other:
        assert Worker(other, WorkerOptions(drain=True)).run() is Outcome.COMPLETE, "it does not wait for ever"
    there = _index(bench)
    assert (there["state"], _jobs(bench)) == ("wanted", ["queued"])
    assert there["reason"] == (
        "a worker left it to others: only the owner of public.docs_vectors (postgres) may index it; "
        "or run: pgvec index docs"
    )
    assert bench.drain() is Outcome.COMPLETE
    assert (_index(bench)["state"], _index(bench)["reason"]) == ("built", None)


@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_build_that_somebody_ends_is_not_begun_anew(bench: Bench, how: str) -> None:
    _loaded(bench)
    with _open_transaction(bench), _draining(bench) as ended:
        wait_until(lambda: bench.sql(WAITING), what="the build")
        bench.sql(f"SELECT {how}(pid) FROM pg_stat_progress_create_index WHERE datname = current_database()")
        wait_until(lambda: ended, what="the end of the worker")
    assert ended == [Outcome.COMPLETE]
    assert (_index(bench)["state"], _jobs(bench)) == ("refused", ["done"])
    assert _index(bench)["reason"].startswith("somebody has ended its build (")
    assert _index(bench)["reason"].endswith("to begin anew, run: pgvec index docs")


def test_a_build_that_costs_one_worker_after_the_other_is_refused(bench: Bench) -> None:
    one = _loaded(bench)
    for deaths in (1, 2, 3):
        assert _claim(bench.connection, one, bench.register()) is not None
        bench.sql("UPDATE pgvec.workers SET gone = true")
        queue.reclaim(bench.connection)
        assert bench.sql("SELECT attempts, alone FROM pgvec.jobs WHERE kind = 'index'") == [(deaths, False)]
    assert bench.drain() is Outcome.COMPLETE
    assert (_index(bench)["state"], _jobs(bench), bench.value(ALL)) == ("refused", ["done"], 0)
    assert "3 workers have ended while they built it" in _index(bench)["reason"]


def test_a_worker_that_may_not_look_at_indexes_does_all_else(bench: Bench) -> None:
    _fill(bench, 30)
    bench.enqueue("docs", "body", index=True)
    with _role(bench) as other:
        bench.sql(f"REVOKE ALL ON pgvec.indexes FROM {conninfo_to_dict(other.conninfo('test'))['user']}")
        assert Worker(other, WorkerOptions(drain=True)).run() is Outcome.COMPLETE
    assert (bench.progress("docs").rows_done, _jobs(bench)) == (30, ["queued"])


def test_a_direct_connection_that_cannot_be_made_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "_SOON", 0.01)
    _loaded(bench)

    class Full(Database):
        """A server that has no connection left for a build."""

        def connect(self, stage: str) -> Any:
            return (
                Database(make_conninfo(bench.dsn, dbname="nowhere")) if stage == "index" else bench.database
            ).connect(stage)

    worker = Worker(bench.database, WorkerOptions(drain=True), direct=Full(bench.dsn))
    ended = threading.Thread(target=worker.run)
    ended.start()
    try:
        wait_until(lambda: not ended.is_alive(), 20, what="the end of the worker")
    finally:
        worker.stop()
        ended.join(20)
    assert (_index(bench)["state"], _jobs(bench)) == ("wanted", ["queued"])
    assert "a worker left it to others: cannot connect to the database nowhere" in _index(bench)["reason"]


def test_no_timeout_of_the_database_ends_the_drop_of_what_is_left(bench: Bench) -> None:
    one = _loaded(bench)
    name = vector_index.target(bench.connection, one).names[0]
    with _open_transaction(bench) as other:
        with psycopg.connect(bench.dsn, autocommit=True) as cut:
            cut.execute("SET statement_timeout = 100")
            with pytest.raises(psycopg.errors.QueryCanceled):
                cut.execute(
                    f"CREATE INDEX CONCURRENTLY {name} ON docs_vectors USING hnsw (embedding vector_cosine_ops)"
                )
        bench.sql(f"ALTER DATABASE {bench.value('SELECT current_database()')} SET statement_timeout = 200")
        with _draining(bench) as ended:
            wait_until(
                lambda: bench.sql(
                    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'DROP INDEX%'"
                    " AND (state <> 'active' OR query_start < clock_timestamp() - interval '0.4 s')"
                ),
                what="a drop that waits for longer than the timeout",
            )
            other.rollback()
    assert ended == [Outcome.COMPLETE]
    assert (_index(bench)["state"], bench.value(VALID), bench.value(ALL)) == ("built", 1, 1)


def test_a_worker_that_is_told_to_leave_ends_a_search_that_measures_recall(bench: Bench) -> None:
    one = _loaded(bench)
    bench.drain()
    vector_index.queue(bench.connection, one)
    with psycopg.connect(bench.dsn) as other:
        other.execute("LOCK docs_vectors")
        with _process(bench) as process:
            wait_until(
                lambda: bench.sql(
                    "SELECT FROM pg_locks WHERE NOT granted AND relation = 'docs_vectors'::regclass"
                    " AND pid IN (SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pgvec index%')"
                ),
                30,
                what="a search that waits",
            )
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    assert bench.sql("SELECT failures, state FROM pgvec.indexes") == [(0, "built")]
    assert _jobs(bench) == ["done", "queued"]
