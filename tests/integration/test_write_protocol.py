"""The write of a slice, step by step: what each step is for, by doing what goes wrong without it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from pgvec_queue import queue
from pgvec_queue.slices import Failure, Fate
from pgvec_queue.vectorizer import Vectorizer
from tests.support import Bench, pgvec
from tests.waiting import wait_until


def _documents(bench: Bench, count: int = 10, **options: Any) -> Vectorizer:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text, other int)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, %s) i", count)
    return bench.enqueue("docs", "body", **options)


@pytest.mark.usefixtures("either_way")
def test_vectors_become_visible_in_the_transaction_that_records_their_progress(bench: Bench) -> None:
    vectorizer = _documents(bench)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    embedded = bench.embed(vectorizer, part)
    bench.sql("CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
    bench.sql("CREATE TRIGGER refuse BEFORE UPDATE ON pgvec.jobs FOR EACH ROW EXECUTE FUNCTION refuse()")
    with pytest.raises(psycopg.errors.RaiseException):
        bench.write(vectorizer, part, embedded, worker)
    assert bench.value("SELECT count(*) FROM docs_vectors") == 0
    assert bench.value("SELECT coalesce(sum(rows_right), 0) FROM pgvec.counters") == 0
    bench.sql("DROP TRIGGER refuse ON pgvec.jobs")
    assert bench.write(vectorizer, part, embedded, worker).fate is Fate.WRITTEN
    assert bench.value("SELECT count(*) FROM docs_vectors") == 10
    assert bench.value("SELECT state FROM pgvec.jobs") == "done"


def test_chunks_that_took_an_identical_one_s_vector_are_counted_with_what_was_written(bench: Bench) -> None:
    vectorizer = _documents(bench)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker), rows=4)
    embedded = [replace(one, reused=i) for i, one in enumerate(bench.embed(vectorizer, part))]
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 4")
    assert bench.write(vectorizer, part, embedded, worker).chunks_reused == 0 + 1 + 2
    queue.leave(bench.connection, worker)
    assert bench.sql("SELECT worker_id, chunks_reused FROM pgvec.counters") == [(0, 3)]
    assert bench.progress("docs").as_json()["chunks_reused"] == 3


@pytest.mark.usefixtures("either_way")
def test_a_late_worker_writes_nothing(bench: Bench) -> None:
    vectorizer = _documents(bench)
    late, next_ = bench.register(), bench.register()
    part = bench.read(vectorizer, bench.claim(late))
    embedded = bench.embed(vectorizer, part)
    bench.sql("UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour' WHERE id = %s", late.worker)
    assert queue.reclaim(bench.connection) == (1, 1)
    bench.claim(next_)
    assert bench.write(vectorizer, part, embedded, late).fate is Fate.LOST
    assert bench.value("SELECT count(*) FROM docs_vectors") == 0
    assert bench.value("SELECT attempts FROM pgvec.jobs") == 1


@pytest.mark.usefixtures("either_way")
def test_an_old_epoch_of_the_same_worker_writes_nothing(bench: Bench) -> None:
    vectorizer = _documents(bench)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    embedded = bench.embed(vectorizer, part)
    queue.release(bench.connection, worker)
    bench.claim(worker)
    assert bench.write(vectorizer, part, embedded, worker).fate is Fate.LOST
    assert bench.value("SELECT count(*) FROM docs_vectors") == 0


@pytest.mark.usefixtures("either_way")
def test_a_slice_is_refused_when_the_jobs_bound_has_moved(bench: Bench) -> None:
    vectorizer = _documents(bench)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    embedded = bench.embed(vectorizer, part)
    bench.sql("UPDATE pgvec.jobs SET upper_key = '{5}'")
    assert bench.write(vectorizer, part, embedded, worker).fate is Fate.LOST


@pytest.mark.usefixtures("either_way")
def test_a_slice_that_was_committed_is_not_written_again(bench: Bench) -> None:
    vectorizer = _documents(bench)
    worker = bench.register()
    job = bench.claim(worker)
    part = bench.read(vectorizer, job, rows=4)
    embedded = bench.embed(vectorizer, part)
    assert bench.write(vectorizer, part, embedded, worker).fate is Fate.WRITTEN
    assert bench.write(vectorizer, part, embedded, worker).fate is Fate.LOST
    now = queue.reread(bench.connection, job, worker)
    assert now is not None
    assert now.checkpoint == part.checkpoint == ["4"]
    assert bench.value("SELECT count(*) FROM docs_vectors") == 4


@pytest.mark.usefixtures("either_way")
def test_a_row_that_changed_since_the_read_is_left_alone_and_queued_by_its_key(bench: Bench) -> None:
    vectorizer = _documents(bench)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    embedded = bench.embed(vectorizer, part)
    bench.sql("UPDATE docs SET body = 'changed meanwhile' WHERE id = 3")
    bench.sql("UPDATE docs SET other = 1 WHERE id = 4")
    written = bench.write(vectorizer, part, embedded, worker)
    assert written.requeued == 1
    assert bench.value("SELECT keys FROM pgvec.jobs WHERE kind = 'keys'") == [["3"]]
    assert bench.sql("SELECT id FROM docs_vectors WHERE id IN (3, 4)") == [(4,)]
    bench.drain()
    assert bench.wrong(vectorizer) == {"missing": 0, "orphaned": 0, "stale": 0}
    assert bench.progress("docs").rows_done == bench.progress("docs").rows_total == 10


@pytest.mark.usefixtures("either_way")
def test_a_row_that_was_inserted_since_the_read_is_queued_by_its_key(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT 2 * i, 'document ' || i FROM generate_series(1, 5) i")
    vectorizer = bench.enqueue("docs", "body")
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    embedded = bench.embed(vectorizer, part)
    bench.sql("INSERT INTO docs VALUES (5, 'between'), (7, '  '), (9, NULL)")
    assert bench.write(vectorizer, part, embedded, worker).requeued == 1
    assert bench.value("SELECT keys FROM pgvec.jobs WHERE kind = 'keys'") == [["5"]]
    bench.drain()
    assert bench.wrong(vectorizer) == {"missing": 0, "orphaned": 0, "stale": 0}


@pytest.mark.usefixtures("either_way")
def test_a_settled_row_that_changed_since_the_read_is_queued_too(bench: Bench) -> None:
    vectorizer = _documents(bench)
    bench.drain()
    bench.sql("UPDATE docs SET body = 'new' WHERE id = 1")
    bench.plan(vectorizer)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    assert [d.key for d in part.documents] == [("1",)]
    embedded = bench.embed(vectorizer, part)
    bench.sql("UPDATE docs SET body = 'changed after it was found settled' WHERE id = 8")
    assert bench.write(vectorizer, part, embedded, worker).requeued == 1
    assert bench.value("SELECT keys FROM pgvec.jobs WHERE kind = 'keys'") == [["8"]]


@pytest.mark.usefixtures("either_way")
def test_a_row_that_was_deleted_since_the_read_gets_no_vectors_and_loses_its_old_ones(bench: Bench) -> None:
    vectorizer = _documents(bench)
    bench.drain()
    bench.sql("UPDATE docs SET body = body || ' again'")
    bench.plan(vectorizer)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    embedded = bench.embed(vectorizer, part)
    bench.sql("DELETE FROM docs WHERE id = 7")
    bench.write(vectorizer, part, embedded, worker)
    assert bench.wrong(vectorizer) == {"missing": 0, "orphaned": 0, "stale": 0}


def test_a_slice_that_is_no_whole_range_frees_from_quarantine_what_it_writes(bench: Bench) -> None:
    vectorizer = _documents(bench)
    bench.sql(
        "INSERT INTO pgvec.failures (vectorizer_id, key, source_hash, error_class, message, model)"
        " SELECT %s, ARRAY[i::text], '\\x00', 'Test', 'as it was before', 'hashing-8' FROM generate_series(2, 9) i",
        vectorizer.id,
    )
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker), rows=4)
    assert not part.last
    assert bench.write(vectorizer, part, bench.embed(vectorizer, part), worker).fate is Fate.WRITTEN
    assert bench.sql("SELECT key FROM pgvec.failures ORDER BY key") == [([str(i)],) for i in range(5, 10)]


def test_a_slice_that_is_no_whole_range_replaces_the_chunks_that_lie_in_it(bench: Bench) -> None:
    vectorizer = _documents(bench)
    bench.drain()
    bench.sql("UPDATE docs SET body = body || ' again'")
    bench.sql("DELETE FROM docs WHERE id = 2")
    bench.plan(vectorizer)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker), rows=4)
    written = bench.write(vectorizer, part, bench.embed(vectorizer, part), worker)
    assert (written.chunks_written, written.chunks_deleted) == (4, 5)
    assert bench.sql("SELECT id FROM docs_vectors WHERE id <= 5 ORDER BY id") == [(1,), (3,), (4,), (5,)]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("change", ["DELETE FROM docs WHERE id = 7", "UPDATE docs SET body = 'x' WHERE id = 7"])
def test_a_list_of_keys_waits_for_a_range_that_is_being_written(bench: Bench, change: str) -> None:
    """Without the lock, a deleted or changed row's list is written first, and the range then writes what is old."""
    vectorizer = _documents(bench)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    embedded = bench.embed(vectorizer, part)
    other = bench.database.connect("other")
    # Holds the range's write open between its look at the source and its end.
    bench.sql("CREATE TABLE gate (id int PRIMARY KEY)")
    bench.sql(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END $$"
    )
    bench.sql("CREATE TRIGGER wait AFTER INSERT ON docs_vectors FOR EACH STATEMENT EXECUTE FUNCTION wait()")
    other.execute("SELECT pg_advisory_lock(42)")
    writer = bench.database.connect("writer")
    ranged = threading.Thread(target=lambda: bench.write(vectorizer, part, embedded, worker, writer))
    ranged.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    wait_until(lambda: bench.value(waiting) == 1)
    bench.sql(change)
    bench.sql(
        "INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, rows) VALUES (%s, 'keys', '[[\"7\"]]', 1)", vectorizer.id
    )
    keys = bench.read(vectorizer, bench.claim(worker))
    second = bench.database.connect("second")
    listed = threading.Thread(
        target=lambda: bench.write(vectorizer, keys, bench.embed(vectorizer, keys), worker, second)
    )
    listed.start()
    wait_until(lambda: bench.value(waiting) == 2, what="the list of keys waiting for the range")
    other.execute("SELECT pg_advisory_unlock(42)")
    ranged.join()
    listed.join()
    for connection in (other, writer, second):
        connection.close()
    assert bench.wrong(vectorizer) == {"missing": 0, "orphaned": 0, "stale": 0}


@pytest.mark.usefixtures("either_way")
def test_a_failed_document_goes_into_quarantine_and_its_old_chunks_go(bench: Bench) -> None:
    vectorizer = _documents(bench)
    bench.drain()
    bench.sql("UPDATE docs SET body = 'poison' WHERE id = 5")
    bench.plan(vectorizer)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    failed = [
        replace(one, chunks=(), vectors=None, failure=Failure("Test", "no\0 good"))
        for one in bench.embed(vectorizer, part)
    ]
    assert bench.write(vectorizer, part, failed, worker).failed == 1
    assert bench.sql("SELECT key, error_class FROM pgvec.failures") == [(["5"], "Test")]
    assert bench.sql("SELECT id FROM docs_vectors WHERE id = 5") == []
    bench.plan(vectorizer)
    bench.drain()
    assert bench.progress("docs").rows_failed == 1, "an unchanged document stays in quarantine"
    bench.sql("UPDATE docs SET body = 'healed' WHERE id = 5")
    bench.plan(vectorizer)
    bench.drain()
    assert bench.progress("docs").rows_failed == 0
    assert bench.wrong(vectorizer) == {"missing": 0, "orphaned": 0, "stale": 0}


def test_a_column_of_a_row_that_somebody_holds_is_written_later_and_nobody_waits(bench: Bench) -> None:
    vectorizer = _documents(bench, into_column="embedding")
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    embedded = bench.embed(vectorizer, part)
    with psycopg.connect(bench.dsn) as user:
        user.execute("SELECT FROM docs WHERE id = 3 FOR UPDATE")
        written = bench.write(vectorizer, part, embedded, worker)
    assert written.requeued == 1
    assert bench.sql("SELECT id FROM docs WHERE embedding IS NULL") == [(3,)]
    bench.drain()
    assert bench.value("SELECT count(*) FROM docs WHERE embedding IS NULL") == 0
    assert bench.value("SELECT count(*) FROM docs WHERE embedding_hash <> pgvec.source_hash(body)") == 0


def test_a_column_keeps_no_vector_of_a_text_that_changed_or_went_blank(bench: Bench) -> None:
    vectorizer = _documents(bench, into_column="embedding", where="other IS NULL")
    bench.drain()
    bench.sql("UPDATE docs SET body = ' ' WHERE id = 1")
    bench.sql("UPDATE docs SET other = 1 WHERE id = 2")
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 3")
    bench.plan(vectorizer)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    assert [d.key for d in part.documents] == [("3",)]
    embedded = bench.embed(vectorizer, part)
    bench.sql("UPDATE docs SET body = 'changed once more' WHERE id = 3")
    bench.write(vectorizer, part, embedded, worker)
    assert bench.sql("SELECT id FROM docs WHERE embedding IS NULL ORDER BY id") == [(1,), (2,)]
    assert bench.value("SELECT embedding_hash <> pgvec.source_hash(body) FROM docs WHERE id = 3")
    bench.drain()
    assert not bench.value("SELECT embedding_hash <> pgvec.source_hash(body) FROM docs WHERE id = 3")


@pytest.mark.parametrize("listed", [False, True])
def test_a_column_of_a_row_that_somebody_holds_is_cleared_later(bench: Bench, listed: bool) -> None:
    vectorizer = _documents(bench, into_column="embedding", where="other IS NULL", sync=listed)
    bench.drain()
    bench.sql("UPDATE docs SET other = 1 WHERE id IN (3, 4)")
    if not listed:
        bench.plan(vectorizer)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    with psycopg.connect(bench.dsn) as user:
        user.execute("SELECT FROM docs WHERE id = 3 FOR UPDATE")
        bench.write(vectorizer, part, [], worker)
    assert bench.sql("SELECT id FROM docs WHERE embedding IS NULL") == [(4,)]
    bench.drain()
    assert bench.sql("SELECT id FROM docs WHERE embedding IS NULL ORDER BY id") == [(3,), (4,)]


def test_a_job_whose_dead_worker_was_waiting_for_a_lock_is_free_within_seconds(bench: Bench) -> None:
    """Its backend holds the job's row, and would see only after the lock's timeout that nobody is there any more."""
    vectorizer = _documents(bench)
    with psycopg.connect(bench.dsn) as user:
        user.execute("LOCK TABLE docs_vectors IN SHARE MODE")
        dead = pgvec("work", "--lease", "1", dsn=bench.dsn)
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        wait_until(lambda: bench.sql(waiting), 20, what="a write that waits")
        dead.kill()
        dead.communicate()
        wait_until(lambda: not bench.sql(waiting), 5, what="the end of its backend")
        bench.sql("UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour'")
        assert queue.reclaim(bench.connection) == (1, 1)
    bench.drain()
    assert bench.wrong(vectorizer) == {"missing": 0, "orphaned": 0, "stale": 0}


def test_a_document_that_became_blank_leaves_the_quarantine(bench: Bench) -> None:
    vectorizer = _documents(bench, 1)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    failed = [
        replace(one, chunks=(), vectors=None, failure=Failure("Test", "no")) for one in bench.embed(vectorizer, part)
    ]
    bench.write(vectorizer, part, failed, worker)
    bench.sql("UPDATE docs SET body = ' '")
    bench.plan(vectorizer)
    bench.drain()
    assert bench.sql("SELECT key FROM pgvec.failures") == []
