"""Live changes: what users do to a source reaches the destination, and nothing else does."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from pgvec_queue import sync
from pgvec_queue.errors import DefinitionError
from pgvec_queue.queue import Claimer, release
from pgvec_queue.vectorizer import Vectorizer, find, get
from pgvec_queue.worker import Worker, WorkerOptions
from tests.oracle import expected, found, work_off
from tests.support import Bench
from tests.waiting import wait_until

KINDS = {
    "table": {},
    "chunks": {"chunk_size": 16},
    "column": {"into_column": "embedding"},
}


def _docs(bench: Bench, rows: int = 20) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text, title text, clicks int NOT NULL DEFAULT 0)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i, 'title ' || i FROM generate_series(1, %s) i", rows)


def _synced(bench: Bench, **options: Any) -> Vectorizer:
    """A vectorizer over ``docs`` that follows changes, with everything embedded."""
    vectorizer = bench.enqueue("docs", "body", sync=True, **options)
    work_off(bench)
    assert _lists(bench) == []
    return vectorizer


def _lists(bench: Bench) -> list[list[str]]:
    """The queued keys, each as its columns joined, per job."""
    jobs = bench.sql("SELECT keys FROM pgvec.jobs WHERE kind = 'keys' AND state = 'queued' ORDER BY id")
    return [sorted(",".join(key) for key in keys) for (keys,) in jobs]


def _is_right(bench: Bench, vectorizer: Vectorizer) -> bool:
    work_off(bench)
    return found(bench, vectorizer) == expected(bench, vectorizer)


CHANGES = {
    "an insert": "INSERT INTO docs VALUES (100, 'new'), (101, 'newer')",
    "a text": "UPDATE docs SET body = 'changed' WHERE id IN (3, 4)",
    "a text that goes blank": "UPDATE docs SET body = ' ' WHERE id = 3",
    "a text that goes away": "UPDATE docs SET body = NULL WHERE id = 3",
    "a delete": "DELETE FROM docs WHERE id < 5",
    "a delete of all": "DELETE FROM docs",
    "a key": "UPDATE docs SET id = id + 1000 WHERE id < 5",
    "texts that change places": "UPDATE docs d SET body = e.body FROM docs e WHERE d.id < 5 AND e.id = 5 - d.id",
    "an upsert": "INSERT INTO docs VALUES (3, 'upserted'), (300, 'inserted')"
    " ON CONFLICT (id) DO UPDATE SET body = excluded.body",
    "a merge": "MERGE INTO docs d USING (VALUES (3, 'merged'), (4, NULL), (300, 'inserted')) m(id, body) ON d.id = m.id"
    " WHEN MATCHED AND m.body IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET body = m.body"
    " WHEN NOT MATCHED THEN INSERT (id, body) VALUES (m.id, m.body)",
    "a truncate": "TRUNCATE docs",
    "several in one transaction": "BEGIN; INSERT INTO docs VALUES (50, 'a'); UPDATE docs SET body = 'b' WHERE id = 50;"
    " DELETE FROM docs WHERE id = 50; INSERT INTO docs VALUES (50, 'c'); COMMIT",
    "a subtransaction that is rolled back": "BEGIN; UPDATE docs SET body = 'kept' WHERE id = 1; SAVEPOINT s;"
    " UPDATE docs SET body = 'lost' WHERE id = 2; ROLLBACK TO s; COMMIT",
    "a writing query": "WITH gone AS (DELETE FROM docs WHERE id < 4 RETURNING *)"
    " INSERT INTO docs SELECT id + 500, body, title, clicks FROM gone",
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_reaches_the_destination(bench: Bench, change: str, options: dict[str, Any]) -> None:
    if change.startswith("MERGE") and bench.connection.info.server_version < 150000:
        pytest.skip("MERGE came with PostgreSQL 15")
    _docs(bench)
    vectorizer = _synced(bench, **options)
    bench.sql(change)
    assert _is_right(bench, vectorizer)
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind = 'keys'") == 0, "lists leave no rows behind"


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_rows_of_a_copy_reach_the_destination(bench: Bench, options: dict[str, Any]) -> None:
    _docs(bench)
    vectorizer = _synced(bench, **options)
    with bench.connection.cursor().copy("COPY docs (id, body) FROM STDIN") as copy:
        for i in range(2_500):
            copy.write_row((1_000 + i, f"copied {i}"))
    assert sorted(len(keys) for keys in _lists(bench)) == [500, 1_000, 1_000]
    assert _is_right(bench, vectorizer)


UNCHANGED = {
    "another column": "UPDATE docs SET clicks = clicks + 1",
    "the same text": "UPDATE docs SET body = body",
    "no row": "UPDATE docs SET body = 'x' WHERE false",
    "nothing deleted": "DELETE FROM docs WHERE false",
    "nothing inserted": "INSERT INTO docs SELECT 1, 'x' WHERE false",
    "a rolled back change": "BEGIN; UPDATE docs SET body = 'x'; TRUNCATE docs; ROLLBACK",
    "a conflict that does nothing": "INSERT INTO docs VALUES (1, 'x') ON CONFLICT DO NOTHING",
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("change", UNCHANGED.values(), ids=UNCHANGED)
def test_what_changes_no_text_queues_nothing(bench: Bench, change: str, options: dict[str, Any]) -> None:
    _docs(bench)
    _synced(bench, **options)
    bench.sql(change)
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state <> 'done'") == 0


def test_only_what_the_filter_and_the_template_read_counts_besides(bench: Bench) -> None:
    _docs(bench)
    bench.sql("ALTER TABLE docs ADD lang text DEFAULT 'en', ADD other text")
    vectorizer = bench.enqueue(
        "docs", "body", sync=True, where="s.lang = 'en' AND clicks >= 0 -- a remark", template="$title: $chunk"
    )
    bench.drain()
    bench.sql("UPDATE docs SET other = 'x' WHERE id = 1")
    assert _lists(bench) == []
    bench.sql("UPDATE docs SET lang = 'de' WHERE id = 2")
    bench.sql("UPDATE docs SET clicks = 5 WHERE id = 3")
    bench.sql("UPDATE docs SET title = 'renamed' WHERE id = 4")
    assert _lists(bench) == [["2"], ["3"], ["4"]]
    bench.drain()
    assert found(bench, vectorizer) == expected(bench, vectorizer)
    bench.sql("UPDATE docs SET lang = 'en' WHERE id = 2")
    bench.drain()
    assert found(bench, vectorizer) == expected(bench, vectorizer)


def test_a_filter_over_the_whole_row_makes_every_column_count(bench: Bench) -> None:
    _docs(bench)
    bench.enqueue("docs", "body", sync=True, where="s IS NOT NULL")
    bench.sql("UPDATE docs SET clicks = 5 WHERE id = 3")
    assert _lists(bench) == [["3"]]


def test_a_delete_that_a_foreign_key_brings_along_is_followed(bench: Bench) -> None:
    bench.sql("CREATE TABLE authors (id int PRIMARY KEY)")
    bench.sql("INSERT INTO authors VALUES (1), (2), (3)")
    _docs(bench)
    bench.sql("ALTER TABLE docs ADD author int DEFAULT 1 REFERENCES authors ON DELETE CASCADE ON UPDATE CASCADE")
    bench.sql("UPDATE docs SET author = 2 WHERE id > 15")
    vectorizer = _synced(bench)
    bench.sql("DELETE FROM authors WHERE id = 2")
    assert _is_right(bench, vectorizer)
    assert len(found(bench, vectorizer)) == 15


def test_a_bulk_change_makes_one_job_per_thousand_keys(bench: Bench) -> None:
    _docs(bench, 20_000)
    bench.enqueue("docs", "body", sync=True)
    bench.sql("UPDATE docs SET body = body || '.' WHERE id <= 12500")
    assert sorted(len(keys) for keys in _lists(bench)) == [500] + [1_000] * 12


def test_a_bulk_change_after_single_ones_in_the_same_session_is_not_planned_for_single_ones(bench: Bench) -> None:
    _docs(bench, 20_000)
    bench.enqueue("docs", "body", sync=True)
    for i in range(10):
        bench.sql("UPDATE docs SET body = body || '.' WHERE id = %s", i + 1)
    bench.sql("SET statement_timeout TO '15s'")
    bench.sql("UPDATE docs SET body = body || '.'")
    assert sum(map(len, _lists(bench))) == 20_010


@pytest.mark.parametrize("partitioned", ["RANGE (id)", "LIST (lang)"])
def test_every_way_into_a_partition_is_followed(bench: Bench, partitioned: str) -> None:
    key = "PRIMARY KEY (id)" if "id" in partitioned else "PRIMARY KEY (lang, id)"
    bench.sql(f"CREATE TABLE docs (id bigint, lang text DEFAULT 'en', body text, {key}) PARTITION BY {partitioned}")
    first, second = (
        ("FROM (0) TO (100)", "FROM (100) TO (1000)") if "id" in partitioned else ("IN ('en')", "IN ('de', 'fr')")
    )
    bench.sql("CREATE TABLE docs_a (body text, id bigint NOT NULL, lang text NOT NULL DEFAULT 'en')")
    bench.sql(f"ALTER TABLE docs ATTACH PARTITION docs_a FOR VALUES {first}")
    bench.sql(f"CREATE TABLE docs_b PARTITION OF docs FOR VALUES {second}")
    bench.sql("INSERT INTO docs (id, body) SELECT i, 'document ' || i FROM generate_series(1, 20) i")
    vectorizer = _synced(bench)
    bench.sql("INSERT INTO docs_a (id, body) VALUES (50, 'straight into the partition')")
    bench.sql("UPDATE docs SET body = 'through the parent' WHERE id = 2")
    bench.sql("UPDATE docs_a SET body = 'in the partition' WHERE id = 3")
    bench.sql("UPDATE docs SET id = id + 200, lang = 'de' WHERE id = 4")
    bench.sql("DELETE FROM docs_a WHERE id = 5")
    assert _is_right(bench, vectorizer)
    bench.sql("TRUNCATE docs_b")
    assert _is_right(bench, vectorizer)
    bench.sql("TRUNCATE docs")
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind = 'sweep' AND state = 'queued'") == 1
    assert _is_right(bench, vectorizer)
    assert found(bench, vectorizer) == []


def test_a_partition_that_came_later_is_named_and_covered_by_the_next_enqueue(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    bench.sql("CREATE TABLE docs_a PARTITION OF docs FOR VALUES FROM (0) TO (100)")
    vectorizer = _synced(bench)
    assert sync.uncovered(bench.connection, vectorizer) == []
    bench.sql("CREATE TABLE docs_b PARTITION OF docs FOR VALUES FROM (100) TO (200)")
    assert sync.uncovered(bench.connection, vectorizer) == ["public.docs_b"]
    bench.sql("INSERT INTO docs VALUES (101, 'through the parent')")
    assert _lists(bench) == [["101"]]
    bench.enqueue("docs")
    assert sync.uncovered(bench.connection, vectorizer) == []
    bench.sql("ALTER TABLE docs_a DISABLE TRIGGER USER")
    assert sync.uncovered(bench.connection, vectorizer) == ["public.docs_a"]
    bench.enqueue("docs")
    assert sync.uncovered(bench.connection, vectorizer) == []
    bench.sql("ALTER TABLE docs DETACH PARTITION docs_b")
    bench.enqueue("docs")
    assert _is_right(bench, vectorizer)


def test_inheritance_children_are_followed(bench: Bench) -> None:
    _docs(bench)
    bench.sql("CREATE TABLE more (extra int) INHERITS (docs)")
    vectorizer = _synced(bench)
    bench.sql("INSERT INTO more (id, body) VALUES (900, 'a child')")
    bench.sql("UPDATE docs SET body = 'all of them' WHERE id IN (1, 900)")
    assert _is_right(bench, vectorizer)
    assert len(found(bench, vectorizer)) == 21


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_dropping_leaves_no_trigger_function_or_row_behind(bench: Bench, options: dict[str, Any], cli: Any) -> None:
    before = _ours(bench)
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    bench.sql("CREATE TABLE docs_a PARTITION OF docs FOR VALUES FROM (0) TO (100)")
    bench.sql("CREATE TABLE docs_b PARTITION OF docs FOR VALUES FROM (100) TO (200)")
    bench.sql("INSERT INTO docs VALUES (1, 'one')")
    _synced(bench, **options)
    bench.sql("UPDATE docs SET body = 'two'")
    bench.sql("ALTER TABLE docs DETACH PARTITION docs_b")
    assert cli("drop", "docs", "--yes", "--dsn", bench.dsn).code == 0
    assert _ours(bench) == before
    bench.sql("INSERT INTO docs VALUES (2, 'nobody follows this')")


def _ours(bench: Bench) -> tuple[Any, ...]:
    return (
        bench.sql("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgname LIKE 'pgvec_%'"),
        bench.sql("SELECT proname FROM pg_proc WHERE pronamespace = 'pgvec'::regnamespace ORDER BY 1"),
        *(
            bench.value(f"SELECT count(*) FROM pgvec.{table}")
            for table in ("vectorizers", "jobs", "counters", "samples", "failures")
        ),
    )


def test_following_can_be_switched_off_and_on(bench: Bench) -> None:
    _docs(bench)
    vectorizer = _synced(bench)
    bench.enqueue("docs", sync=False)
    work_off(bench)
    assert not get(bench.connection, "docs").sync
    bench.sql("UPDATE docs SET body = 'unseen' WHERE id = 1")
    assert _lists(bench) == []
    bench.enqueue("docs", sync=True)
    assert _is_right(bench, vectorizer)
    bench.sql("UPDATE docs SET body = 'seen' WHERE id = 1")
    assert _lists(bench) == [["1"]]


def test_a_column_that_is_renamed_blocks_the_vectorizer_and_stops_nobody(bench: Bench) -> None:
    _docs(bench)
    _synced(bench)
    bench.sql("ALTER TABLE docs RENAME body TO text")
    bench.sql("UPDATE docs SET text = 'still written' WHERE id = 1")
    bench.sql("DELETE FROM docs WHERE id = 2")
    assert bench.value("SELECT text FROM docs WHERE id = 1") == "still written"
    blocked = bench.progress("docs")
    assert blocked.state == "blocked"
    assert "public.docs" in str(blocked.reason)
    bench.sql("ALTER TABLE docs RENAME text TO body")
    vectorizer = bench.enqueue("docs")
    assert _is_right(bench, vectorizer)


def test_a_change_is_followed_from_before_the_plan_on(bench: Bench) -> None:
    """A row that changes after its range was read, and before the range is written, is in a list as well."""
    _docs(bench)
    vectorizer = bench.enqueue("docs", "body", sync=True)
    worker = bench.register()
    part = bench.read(vectorizer, bench.claim(worker))
    embedded = bench.embed(vectorizer, part)
    bench.sql("UPDATE docs SET body = 'meanwhile' WHERE id = 1")
    bench.sql("DELETE FROM docs WHERE id = 2")
    bench.sql("INSERT INTO docs VALUES (0, 'before')")
    bench.write(vectorizer, part, embedded, worker)
    assert _is_right(bench, vectorizer)


def test_a_table_that_stays_locked_is_named_with_who_holds_it(bench: Bench, monkeypatch: Any) -> None:
    monkeypatch.setattr(sync, "_LOCK_SECONDS", 0.05)
    monkeypatch.setattr(sync, "_LOCK_TRIES", 2)
    _docs(bench)
    with psycopg.connect(bench.dsn, application_name="nightly import") as user:
        user.execute("UPDATE docs SET clicks = 1 WHERE id = 1")
        with pytest.raises(DefinitionError, match=r"public.docs .*nightly import \(pid \d+\)"):
            bench.enqueue("docs", "body", sync=True)
    half = find(bench.connection, "docs")
    assert half is not None
    assert not half.sync
    vectorizer = bench.enqueue("docs", "body", sync=True)
    assert get(bench.connection, "docs").sync
    assert _is_right(bench, vectorizer)


REFUSED = {
    "a view": ("CREATE VIEW v AS SELECT * FROM docs", "v", {"key": ["id"]}, "is no table"),
    "a filter on the time": ("SELECT 1", "docs", {"where": "body <> now()::text"}, "IMMUTABLE"),
    "a filter on another table": ("SELECT 1", "docs", {"where": "id IN (SELECT id FROM docs)"}, "subquer"),
    "a filter on its own vectors": (
        "ALTER TABLE docs ADD embedding vector(8)",
        "docs",
        {"where": "embedding IS NULL", "into_column": "embedding"},
        "undoes itself",
    ),
    "a foreign partition": (
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER f FOREIGN DATA WRAPPER w;"
        " CREATE TABLE p (id bigint, body text) PARTITION BY RANGE (id);"
        " CREATE FOREIGN TABLE p_a PARTITION OF p FOR VALUES FROM (0) TO (9) SERVER f",
        "p",
        {},
        "primary key",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_followed_is_refused(bench: Bench, case: tuple[str, str, dict[str, Any], str]) -> None:
    before, source, options, words = case
    _docs(bench)
    bench.sql(before)
    with pytest.raises(DefinitionError, match=words):
        bench.enqueue(source, "body", sync=True, **options)
    assert bench.sql("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgname LIKE 'pgvec_%'") == []


def test_a_subscriber_is_refused(bench: Bench) -> None:
    _docs(bench)
    bench.sql("CREATE SUBSCRIPTION s CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false)")
    bench.sql("SET allow_system_table_mods TO on")
    bench.sql("INSERT INTO pg_subscription_rel SELECT oid, 'docs'::regclass, 'r', NULL FROM pg_subscription")
    try:
        with pytest.raises(DefinitionError, match="logical replication"):
            bench.enqueue("docs", "body", sync=True)
    finally:
        bench.sql("ALTER SUBSCRIPTION s SET (slot_name = NONE)")
        bench.sql("DROP SUBSCRIPTION s")


def test_limit_and_sync_exclude_each_other(bench: Bench, cli: Any) -> None:
    _docs(bench)
    said = cli(
        "enqueue", "docs", "--text", "body", "--model", "hashing-8", "--sync", "--limit", "3", "--dsn", bench.dsn
    )
    assert (said.code, "exclude each other" in said.err) == (2, True)
    bench.enqueue("docs", "body", sync=True)
    said = cli("enqueue", "docs", "--limit", "3", "--dsn", bench.dsn)
    assert (said.code, "exclude each other" in said.err) == (2, True)


def test_lists_are_claimed_together_up_to_a_slice_and_hold_each_key_once(bench: Bench) -> None:
    _docs(bench, 200)
    vectorizer = _synced(bench)
    for i in range(1, 41):
        bench.sql("UPDATE docs SET body = body || '!' WHERE id IN (%s, 200)", i)
    worker = bench.register()
    job = Claimer(worker, None).claim(bench.connection, keys=32)
    assert job is not None
    assert job.keys is not None
    assert sorted(job.keys) == sorted([*([str(i)] for i in range(1, 17)), ["200"]])
    assert (job.merged, job.rows) == (16, 0)
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind = 'keys'") == 25
    assert release(bench.connection, worker) == 1
    assert _is_right(bench, vectorizer)


def test_the_totals_follow_inserts_and_deletes(bench: Bench) -> None:
    _docs(bench)
    _synced(bench)
    assert (bench.progress("docs").rows_total, bench.progress("docs").rows_done) == (20, 20)
    bench.sql("INSERT INTO docs SELECT i, 'more ' || i FROM generate_series(21, 30) i")
    bench.sql("UPDATE docs SET body = 'changed' WHERE id <= 5")
    bench.sql("DELETE FROM docs WHERE id IN (6, 7, 30)")
    waiting = bench.progress("docs")
    assert (waiting.state, waiting.jobs["queued"]) == ("active", 3)
    assert waiting.lag_seconds is not None
    assert waiting.lag_seconds > 0
    work_off(bench)
    done = bench.progress("docs")
    assert (done.rows_total, done.rows_done, done.chunks, done.state) == (27, 27, 27, "complete")
    assert (done.jobs["queued"], done.lag_seconds) == (0, 0)
    bench.sql("TRUNCATE docs")
    work_off(bench)
    done = bench.progress("docs")
    assert (done.rows_total, done.rows_done, done.chunks) == (0, 0, 0)


def test_a_worker_that_waits_sees_a_change_soon(bench: Bench) -> None:
    _docs(bench)
    vectorizer = _synced(bench)
    worker = Worker(bench.database, WorkerOptions())
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(lambda: bench.sql("SELECT FROM pgvec.workers WHERE state = 'idle'"), 20)
        bench.sql("UPDATE docs SET body = 'soon' WHERE id = 1")
        wait_until(lambda: found(bench, vectorizer) == expected(bench, vectorizer), 20)
    finally:
        worker.stop()
        thread.join()


def test_doctor_names_partitions_that_are_not_followed(bench: Bench, cli: Any) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    bench.enqueue("docs", "body", sync=True)
    assert cli("doctor", "--dsn", bench.dsn).code == 0
    bench.sql("CREATE TABLE docs_new PARTITION OF docs FOR VALUES FROM (0) TO (100)")
    said = cli("doctor", "--dsn", bench.dsn)
    assert said.code == 1
    assert "public.docs_new; run: pgvec enqueue public.docs --name docs" in said.out


def test_status_shows_the_lag_of_what_follows_live_changes(bench: Bench, cli: Any) -> None:
    _docs(bench)
    _synced(bench)
    bench.sql("UPDATE docs SET body = 'waiting' WHERE id = 1")
    said = cli("status", "--dsn", bench.dsn)
    assert "lag" in said.out.splitlines()[0]
    assert said.out.splitlines()[1].rstrip().endswith(" s")
