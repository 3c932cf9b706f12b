"""Another model beside the first: filled, compared, switched, rolled back, finished, while people search and write."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from pgvec_queue import model_migration, model_migration_begin, model_migration_end, model_report, search, vectorizer
from pgvec_queue.database import Database, versions
from pgvec_queue.embedders import DEFAULT_MODEL, DeviceOptions, Vectors, load
from pgvec_queue.errors import DefinitionError, PgvecError
from pgvec_queue.model_migration import Migration, MigrationStateError, NoMigrationError
from pgvec_queue.search import Answer, Search
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker import Worker, WorkerOptions
from tests.commandline import CommandLine
from tests.models import cut
from tests.support import Bench
from tests.waiting import wait_until

RIGHT = {"missing": 0, "orphaned": 0, "stale": 0}
OTHER = {"document_prompt": "other: ", "query_prompt": "other: "}
"""As good as another model to the hashing embedder: the same dimensions, and vectors that have nothing in common."""

LONELY = """
SELECT count(*) FROM pgvec.vectorizers
WHERE name ~ 'other' AND id NOT IN (SELECT new_id FROM pgvec.model_migrations)
"""


def fill(bench: Bench, rows: int = 60, **options: Any) -> Vectorizer:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, %s) i", rows)
    made = bench.enqueue("docs", "body", model="hashing-32", **options)
    bench.drain()
    return made


def begin(bench: Bench, name: str = "docs", **given: Any) -> Migration:
    begun = model_migration_begin.begin(bench.connection, name, given or OTHER, versions(bench.connection))
    bench.plan(begun.migration.new, begun.limit)
    return begun.migration


def now(bench: Bench, name: str = "docs") -> Migration:
    return model_migration.get(bench.connection, name)


def embed(found: Vectorizer, query: str) -> Vectors:
    return load(found.spec, DeviceOptions()).embed_query(query)


def best(bench: Bench, query: str, name: str = "docs", connection: Any = None) -> tuple[Vectorizer, float]:
    """Searches by name; a stored text scores 1 where model and vectors belong together, else next to nothing."""
    found, answer = search.by_name(
        connection or bench.connection, name, Search(query, limit=1), lambda one: embed(one, query)
    )
    assert answer.hits[0].score is not None
    return found, answer.hits[0].score


@contextmanager
def working(bench: Bench, **options: Any) -> Iterator[None]:
    worker = Worker(Database(bench.dsn), WorkerOptions(**options))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()


def settled(bench: Bench) -> bool:
    return bool(bench.value("SELECT NOT EXISTS (SELECT FROM pgvec.jobs WHERE state IN ('queued', 'running'))"))


def test_a_second_vectorizer_is_made_beside_the_first_with_all_but_what_was_named(bench: Bench) -> None:
    old = fill(bench, sync=True, rows_per_job=20, priority=3, chunk_size=64, chunk_overlap=8, template="$chunk!")
    vectorizer.alter(bench.connection, "docs", vectorizer.Changes(rows_per_second=5_000, commit_time=9))
    new = begin(bench, model="hashing-48", store="halfvec").new
    assert (new.name, new.model, new.dimensions, new.store) == ("docs@other", "hashing-48", 48, "halfvec")
    assert new.destination == "public.docs_vectors_hashing_48"
    for same in ("source", "key_columns", "text_columns", "filter", "template", "chunk_size", "chunk_overlap"):
        assert getattr(new, same) == getattr(old, same)
    assert (new.rows_per_job, new.priority, new.sync) == (20, 2, True)
    assert (
        bench.sql("SELECT rows_per_second_limit, commit_time_limit::text FROM pgvec.vectorizers ORDER BY id")
        == [(5_000, "00:00:09")] * 2
    )
    assert best(bench, "document number 7")[0].id == old.id
    bench.drain()
    assert (bench.wrong(old), bench.wrong(new)) == (RIGHT, RIGHT)


def test_the_second_one_is_never_there_without_being_the_second(bench: Bench) -> None:
    fill(bench)
    with psycopg.connect(bench.dsn, autocommit=True) as looking, ExitStack() as stack:
        seen = set()
        stop = threading.Event()

        def look() -> None:
            while not stop.is_set():
                seen.add(looking.execute(LONELY).fetchone())

        thread = threading.Thread(target=look)
        thread.start()
        stack.callback(thread.join, 30)
        stack.callback(stop.set)
        for _ in range(5):
            begin(bench)
            model_migration_end.abandon(bench.connection, now(bench))
    assert seen == {(0,)}


def test_beginning_again_goes_on_and_another_target_is_refused(bench: Bench) -> None:
    fill(bench)
    first = begin(bench, model="hashing-48")
    bench.sql("DELETE FROM pgvec.jobs WHERE vectorizer_id = %s", first.new.id)
    assert begin(bench, model="hashing-48").new.id == first.new.id
    assert begin(bench, "docs@other", model="hashing-48").new.id == first.new.id
    bench.drain()
    assert bench.wrong(first.new) == RIGHT
    with pytest.raises(DefinitionError, match=r"on its way to hashing-48 already, in docs@other.*--abandon"):
        begin(bench, model="hashing-64")
    with pytest.raises(DefinitionError, match=r"differs \(--store was vector, now it is halfvec\)"):
        begin(bench, model="hashing-48", store="halfvec")
    model_migration.switch(bench.connection, first)
    with pytest.raises(DefinitionError, match="--finish, or --rollback"):
        begin(bench, model="hashing-48")


def test_one_that_is_there_with_that_very_definition_is_taken(bench: Bench) -> None:
    fill(bench)
    first = begin(bench, model="hashing-48")
    bench.sql("DELETE FROM pgvec.model_migrations")
    assert begin(bench, model="hashing-48").new.id == first.new.id
    bench.sql("DELETE FROM pgvec.model_migrations")
    with pytest.raises(DefinitionError, match=r"docs@other.*belongs to one with another definition"):
        begin(bench, model="hashing-64")


def test_what_belongs_to_the_model_goes_with_it(bench: Bench) -> None:
    old = replace(
        fill(bench),
        embedder="openai",
        endpoint="http://host/v1",
        tokenizer="cl100k_base",
        revision="abc",
        trust_remote_code=True,
        query_prompt="q: ",
        dimensions=256,
        chunk_size=64,
        chunk_overlap=20,
    )
    kept = ("revision", "query_prompt", "dimensions", "tokenizer", "trust_remote_code", "embedder", "endpoint")

    def of(**given: Any) -> list[Any]:
        options = model_migration_begin._options(old, given)
        return [getattr(options, name) for name in kept]

    assert of(chunk_size=50) == ["abc", "q: ", 256, "cl100k_base", True, "openai", "http://host/v1"]
    assert of(model="another") == [None, None, None, None, False, "openai", "http://host/v1"]
    assert of(model="another", embedder="sentence-transformers", query_prompt="?") == [
        *(None, "?", None, None, False),
        *("sentence-transformers", None),
    ]
    # Code of another revision has been trusted by nobody.
    assert of(revision="def")[4] is False
    smaller = model_migration_begin._options(old, {"chunk_size": 30})
    assert (smaller.chunk_size, smaller.chunk_overlap, smaller.no_chunking) == (30, None, False)
    whole = model_migration_begin._options(old, {"no_chunking": True})
    assert (whole.chunk_size, whole.no_chunking) == (None, True)


def test_what_would_change_nothing_is_refused(bench: Bench) -> None:
    fill(bench)
    for given in ({"model": "hashing-32"}, {"store": "vector", "model": "hashing-32"}, {"too_long": "quarantine"}):
        with pytest.raises(DefinitionError, match="docs is embedded with hashing-32 as it is, in the same way"):
            begin(bench, **given)
    with pytest.raises(DefinitionError, match="no vectorizer is called 'nothing'"):
        begin(bench, "nothing", model="hashing-48")
    with pytest.raises(NoMigrationError, match="pgvec migrate-model docs --model MODEL"):
        now(bench)
    assert vectorizer.names(bench.connection) == ["docs"]


def test_the_name_of_the_new_destination_is_one_that_nothing_has(bench: Bench) -> None:
    fill(bench)
    bench.sql("CREATE VIEW docs_vectors_hashing_48 AS SELECT 1")
    assert begin(bench, model="hashing-48").new.destination_table == "docs_vectors_hashing_48_2"
    long = "ä" * 30
    bench.sql(f'CREATE TABLE "{long}" (id int PRIMARY KEY, body text)')
    bench.enqueue(f'"{long}"', "body", name="long", into="long_one", model="hashing-32")
    bench.sql(f'ALTER TABLE long_one RENAME TO "{long}x"')
    bench.sql(f"UPDATE pgvec.vectorizers SET destination_table = '{long}x' WHERE name = 'long'")
    made = begin(bench, "long", model="hashing-48").new
    assert len(made.destination_table.encode()) <= 63


def test_what_a_limit_has_selected_stays_selected(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 500) i")
    bench.enqueue("docs", "body", model="hashing-32", limit=120)
    bench.drain()
    new = begin(bench, model="hashing-48").new
    bench.drain()
    assert bench.value(f"SELECT count(*) FROM {new.destination}") == 120
    again = model_migration_begin.begin(bench.connection, "docs", {"model": "hashing-48"}, versions(bench.connection))
    assert again.limit == 0


def test_a_switch_swaps_two_names_and_a_rollback_swaps_them_back(bench: Bench) -> None:
    old = fill(bench, sync=True, priority=4)
    new = begin(bench).new
    bench.drain()
    model_migration.switch(bench.connection, now(bench))
    assert bench.sql("SELECT id, name, priority FROM pgvec.vectorizers ORDER BY id") == [
        (old.id, "docs@other", 3),
        (new.id, "docs", 4),
    ]
    assert now(bench).switched_at is not None
    with pytest.raises(MigrationStateError, match="docs has been switched to the new model already"):
        model_migration.switch(bench.connection, now(bench))
    # Both follow changes, so that nothing is lost by going back.
    bench.sql("UPDATE docs SET body = 'changed after the switch' WHERE id = 5")
    bench.drain()
    found, score = best(bench, "changed after the switch")
    assert found.id == new.id
    assert score == pytest.approx(1)
    model_migration.roll_back(bench.connection, now(bench))
    found, score = best(bench, "changed after the switch")
    assert found.id == old.id
    assert score == pytest.approx(1)
    with pytest.raises(MigrationStateError, match="nothing of docs was switched"):
        model_migration.roll_back(bench.connection, now(bench))
    assert [
        kind for (kind,) in bench.sql("SELECT kind FROM pgvec.events WHERE kind ~ 'switch|roll|migr' ORDER BY id")
    ] == [
        "migration begun",
        "switched",
        "rolled back",
    ]


def test_sql_switches_as_well(bench: Bench) -> None:
    fill(bench)
    with pytest.raises(psycopg.errors.NoDataFound, match="on its way to no other model"):
        bench.sql("SELECT pgvec.switch_model('docs')")
    new = begin(bench).new
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="nothing of docs was switched"):
        bench.sql("SELECT pgvec.roll_back_model('docs')")
    bench.sql("SELECT pgvec.switch_model('docs')")
    assert vectorizer.get(bench.connection, "docs").id == new.id
    bench.sql("SELECT pgvec.roll_back_model('docs@other')")
    assert vectorizer.get(bench.connection, "docs@other").id == new.id
    with pytest.raises(psycopg.errors.NoDataFound, match="no vectorizer is called"):
        bench.sql("SELECT pgvec.switch_model('nothing')")


def test_of_two_who_switch_at_once_one_does(bench: Bench) -> None:
    fill(bench)
    begin(bench)
    migration = now(bench)
    outcomes: list[Exception | None] = []

    def switch() -> None:
        with psycopg.connect(bench.dsn, autocommit=True) as connection:
            try:
                model_migration.switch(connection, migration)
            except PgvecError as error:
                outcomes.append(error)
            else:
                outcomes.append(None)

    threads = [threading.Thread(target=switch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(outcomes) == 4
    assert outcomes.count(None) == 1
    assert now(bench).switched_at is not None


def test_the_old_one_is_dropped_with_all_that_it_had(bench: Bench) -> None:
    old = fill(bench, sync=True)
    new = begin(bench).new
    bench.drain()
    with pytest.raises(MigrationStateError, match="nothing was switched"):
        model_migration_end.finish(bench.connection, now(bench))
    model_migration.switch(bench.connection, now(bench))
    with pytest.raises(MigrationStateError, match="docs is what is searched now"):
        model_migration_end.abandon(bench.connection, now(bench))
    bench.sql("UPDATE docs SET body = 'waits when the old one goes' WHERE id = 3")
    removed = model_migration_end.finish(bench.connection, now(bench))
    assert (removed.name, removed.destination, removed.statement) == ("docs@other", "public.docs_vectors", None)
    assert vectorizer.names(bench.connection) == ["docs"]
    assert bench.value("SELECT to_regclass('docs_vectors')") is None
    for table in ("jobs", "counters", "failures", "model_migrations"):
        column = "old_id" if table == "model_migrations" else "vectorizer_id"
        assert bench.value(f"SELECT count(*) FROM pgvec.{table} WHERE {column} = %s", old.id) == 0
    assert bench.sql(
        "SELECT DISTINCT p.proname FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid WHERE p.proname ~ '^sync_'"
    ) == [(f"sync_{new.id}",)]
    bench.drain()
    assert bench.wrong(vectorizer.get(bench.connection, "docs")) == RIGHT
    # And on to the next.
    assert begin(bench, model="hashing-48").new.name == "docs@other"


def test_the_new_one_can_be_given_up(bench: Bench) -> None:
    old = fill(bench, sync=True)
    new = begin(bench).new
    removed = model_migration_end.abandon(bench.connection, now(bench))
    assert (removed.name, removed.statement) == ("docs@other", None)
    assert bench.value("SELECT to_regclass(%s)", new.destination) is None
    assert vectorizer.names(bench.connection) == ["docs"]
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 3")
    bench.drain()
    assert bench.wrong(old) == RIGHT


def test_the_same_vectors_may_move_to_another_place(bench: Bench) -> None:
    fill(bench)
    assert begin(bench, into="elsewhere").new.destination == "public.elsewhere"
    bench.drain()
    assert best(bench, "document number 3", "docs@other")[1] == pytest.approx(1)
    assert begin(bench, into="elsewhere").new.destination == "public.elsewhere"
    with pytest.raises(DefinitionError, match=r"--into was public\.elsewhere"):
        begin(bench, into="docs_vectors")


@pytest.mark.parametrize("why", ["view", "kept", "its own"])
def test_a_destination_that_is_needed_stays(bench: Bench, why: str) -> None:
    if why == "its own":
        bench.sql(
            "CREATE TABLE mine (id bigint, chunk_index int, chunk text, embedding vector(32), source_hash bytea,"
            " UNIQUE (id, chunk_index))"
        )
    fill(bench, into="mine" if why == "its own" else None)
    if why == "view":
        bench.sql("CREATE VIEW newest AS SELECT * FROM docs_vectors")
    begin(bench)
    bench.drain()
    model_migration.switch(bench.connection, now(bench))
    removed = model_migration_end.finish(bench.connection, now(bench), keep_destination=why == "kept")
    reasons = {
        "view": "view newest depends on table docs_vectors",
        "kept": "as asked for",
        "its own": "it was there before",
    }
    table = "mine" if why == "its own" else "docs_vectors"
    assert (removed.why, removed.statement) == (reasons[why], f'DROP TABLE IF EXISTS "public"."{table}" RESTRICT')
    assert bench.value(f"SELECT count(*) FROM {table}") == 60
    assert vectorizer.names(bench.connection) == ["docs"]


@pytest.mark.parametrize("hash_column", ["digest", "emb_hash"])
def test_a_column_that_took_the_hashes_and_was_there_before_stays(bench: Bench, hash_column: str) -> None:
    bench.sql(f"CREATE TABLE docs (id bigint PRIMARY KEY, body text, {hash_column} bytea)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 5) i")
    columns = {"source_hash": ["digest"]} if hash_column == "digest" else {}
    bench.enqueue("docs", "body", model="hashing-32", into_column="emb", columns=columns)
    bench.drain()
    begin(bench)
    bench.drain()
    model_migration.switch(bench.connection, now(bench))
    removed = model_migration_end.finish(bench.connection, now(bench))
    assert (removed.statement, removed.why) == (None, None)
    assert bench.value(f"SELECT count({hash_column}) FROM docs") == 5
    assert not bench.sql("SELECT FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attname = 'emb'")


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ("mine int", "it is not the one that was made: it has no column id"),
        (
            "id bigint, chunk_index int, chunk text, source_hash bytea, embedding vector(33)",
            "it is not the one that was made: embedding is vector(33), not vector(32)",
        ),
    ],
)
def test_a_table_that_has_the_name_of_ours_by_now_stays(bench: Bench, columns: str, why: str) -> None:
    fill(bench)
    begin(bench)
    bench.drain()
    model_migration.switch(bench.connection, now(bench))
    bench.sql("ALTER TABLE docs_vectors RENAME TO archive")
    bench.sql(f"CREATE TABLE docs_vectors ({columns})")
    removed = model_migration_end.finish(bench.connection, now(bench))
    assert (removed.why, removed.statement) == (why, None)
    assert bench.value("SELECT to_regclass('docs_vectors') IS NOT NULL AND to_regclass('archive') IS NOT NULL")
    assert vectorizer.names(bench.connection) == ["docs"]


def test_what_is_gone_already_is_no_hindrance(bench: Bench) -> None:
    fill(bench)
    begin(bench)
    bench.drain()
    model_migration.switch(bench.connection, now(bench))
    bench.sql("DROP TABLE docs_vectors")
    assert model_migration_end.finish(bench.connection, now(bench)).why is None


def test_nothing_is_dropped_while_a_table_stays_locked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_migration_end, "_LOCK_SECONDS", 0.05)
    monkeypatch.setattr(model_migration_end, "_LOCK_TRIES", 2)
    fill(bench, sync=True)
    begin(bench)
    bench.drain()
    model_migration.switch(bench.connection, now(bench))
    with psycopg.connect(bench.dsn) as reader:
        reader.execute("SELECT count(*) FROM docs_vectors")
        with pytest.raises(PgvecError, match=r"docs@other cannot be dropped.*nothing was changed"):
            model_migration_end.finish(bench.connection, now(bench))
    model_migration.roll_back(bench.connection, now(bench))
    bench.sql("UPDATE docs SET body = 'still followed' WHERE id = 3")
    bench.drain()
    assert best(bench, "still followed")[1] == pytest.approx(1)


def test_the_source_stays_readable_while_somebody_reads_the_old_vectors(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_migration_end, "_LOCK_SECONDS", 30)
    fill(bench, sync=True)
    begin(bench)
    bench.drain()
    model_migration.switch(bench.connection, now(bench))
    migration = now(bench)

    def finish() -> None:
        with Database(bench.dsn).connect("finish") as connection:
            model_migration_end.finish(connection, migration)

    thread = threading.Thread(target=finish)
    with psycopg.connect(bench.dsn) as reader:
        reader.execute("SELECT count(*) FROM docs_vectors")
        thread.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'docs_vectors'::regclass AND NOT granted"
        wait_until(lambda: bench.value(waiting), 30)
        with psycopg.connect(bench.dsn) as other:
            other.execute("SET lock_timeout = '100ms'")
            other.execute("SELECT count(*) FROM docs")
            other.execute("UPDATE docs SET body = 'written meanwhile' WHERE id = 3")
    thread.join(30)
    assert vectorizer.names(bench.connection) == ["docs"]
    assert bench.value("SELECT to_regclass('docs_vectors')") is None


def test_deadlocks_are_told_like_locks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_migration, "_LOCK_TRIES", 1)
    monkeypatch.setattr(model_migration_end, "_LOCK_TRIES", 1)
    fill(bench)
    begin(bench)
    bench.drain()
    bench.sql(
        "CREATE FUNCTION public.unlucky() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected'; END $$"
    )
    bench.sql(
        "CREATE TRIGGER unlucky BEFORE UPDATE OR DELETE ON pgvec.model_migrations"
        " FOR EACH ROW EXECUTE FUNCTION public.unlucky()"
    )
    with pytest.raises(PgvecError, match="nothing was changed, try again"):
        model_migration.switch(bench.connection, now(bench))
    with pytest.raises(PgvecError, match="docs@other cannot be dropped"):
        model_migration_end.abandon(bench.connection, now(bench))


@pytest.mark.parametrize("filter_", [None, "docs.* IS DISTINCT FROM NULL"], ids=["all rows", "the row as a whole"])
def test_vectors_in_columns_of_the_source_move_to_another_column(bench: Bench, filter_: str | None) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text, n int)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i, i FROM generate_series(1, 50) i")
    where = None if filter_ is None else "s IS NOT NULL OR s.n > 0"
    old = bench.enqueue("docs", "body", model="hashing-32", into_column="embedding", where=where, sync=True)
    bench.drain()
    migration = begin(bench, model="hashing-48")
    assert migration.new.destination_roles.embedding == "embedding_hashing_48"
    # Each writes a column that the other's triggers may see; that comes to rest.
    bench.drain()
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 7")
    bench.drain()
    assert settled(bench)
    model_migration.switch(bench.connection, now(bench))
    assert best(bench, "changed")[1] == pytest.approx(1)
    removed = model_migration_end.finish(bench.connection, now(bench))
    assert (removed.destination, removed.statement) == ("public.docs.embedding", None)
    columns = [
        name
        for (name,) in bench.sql(
            "SELECT attname FROM pg_attribute WHERE attrelid = 'docs'::regclass AND attnum > 0 AND NOT attisdropped"
        )
    ]
    assert columns == ["id", "body", "n", "embedding_hashing_48", "embedding_hashing_48_hash"]
    bench.sql("UPDATE docs SET body = 'changed again' WHERE id = 7")
    bench.drain()
    assert best(bench, "changed again")[1] == pytest.approx(1)
    assert bench.progress("docs").state == "complete"
    assert old.id != vectorizer.get(bench.connection, "docs").id


def test_all_who_follow_a_source_go_on_when_its_old_columns_are_dropped(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 20) i")
    bench.enqueue("docs", "body", model="hashing-32", into_column="embedding", sync=True)
    third = bench.enqueue("docs", "body", model="hashing-8", name="third", sync=True, where="s IS NOT NULL OR s.id > 0")
    begin(bench, model="hashing-48")
    bench.drain()
    model_migration.switch(bench.connection, now(bench))
    assert model_migration_end.finish(bench.connection, now(bench)).statement is None
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 7")
    bench.drain()
    assert bench.progress("third").state == "complete"
    assert bench.wrong(third) == RIGHT


def test_columns_that_another_filter_reads_stay(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 20) i")
    bench.enqueue("docs", "body", model="hashing-32", into_column="embedding", sync=True)
    bench.drain()
    third = bench.enqueue(
        "docs", "body", model="hashing-8", name="third", sync=True, where="s.embedding IS NOT NULL OR s.id > 0"
    )
    begin(bench, model="hashing-48")
    bench.drain()
    model_migration.switch(bench.connection, now(bench))
    removed = model_migration_end.finish(bench.connection, now(bench))
    assert "s.embedding IS NOT NULL" in (removed.why or "")
    assert removed.statement is not None
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 7")
    bench.drain()
    assert bench.wrong(third) == RIGHT
    assert best(bench, "changed")[1] == pytest.approx(1)


def test_a_column_takes_no_chunks(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.enqueue("docs", "body", model="hashing-32", into_column="embedding")
    asked: list[dict[str, Any]] = [{"chunk_size": 50}, {"chunk_overlap": 5}]
    for given in asked:
        with pytest.raises(DefinitionError, match=r"one for each whole document; --chunk-.* needs --into TABLE"):
            begin(bench, model="hashing-48", **given)
    assert begin(bench, model="hashing-48", chunk_size=50, into="docs_chunks").new.chunk_size == 50
    # And goes on.
    assert begin(bench, model="hashing-48", chunk_size=50).new.chunk_size == 50


def test_columns_of_an_existing_table_are_found_by_their_names(bench: Bench) -> None:
    fill(bench, into="mine", columns={"embedding": ["vec"], "source_hash": ["digest"]})
    bench.sql("CREATE TABLE strange (doc bigint, embedding vector(48))")
    with pytest.raises(DefinitionError, match=r"no column 'id' for the key; give --into a new name, or a table whose"):
        begin(bench, model="hashing-48", into="strange")
    bench.sql("CREATE TABLE other (id bigint, chunk_index int, chunk text, vec vector(48), UNIQUE (id, chunk_index))")
    with pytest.raises(DefinitionError, match=r"no column 'embedding'; give --into a new name"):
        begin(bench, model="hashing-48", into="other")
    bench.sql("ALTER TABLE other RENAME COLUMN vec TO embedding")
    assert begin(bench, model="hashing-48", into="other").new.destination_roles.embedding == "embedding"
    bench.drain()
    assert best(bench, "document number 3", "docs@other")[1] == pytest.approx(1)
    model_migration_end.abandon(bench.connection, now(bench))
    assert begin(bench, model="hashing-48", into="another").new.destination_roles.embedding == "vec"


def test_an_endpoint_is_that_of_its_own_embedder(bench: Bench) -> None:
    old = fill(bench)
    options = model_migration_begin._options(old, {"endpoint": "http://host/v1"})
    assert (options.resolved_embedder, options.resolved_model) == ("openai", "hashing-32")
    elsewhere = replace(old, embedder="openai", endpoint="http://host/v1", dimensions=256)
    options = model_migration_begin._options(elsewhere, {"endpoint": "http://other/v1"})
    assert (options.resolved_embedder, options.endpoint, options.dimensions) == ("openai", "http://other/v1", 256)
    with pytest.raises(DefinitionError, match="--tokenizer is for the embedder openai, not hashing"):
        begin(bench, tokenizer="cl100k_base")
    with pytest.raises(DefinitionError, match="--endpoint is for the embedder openai, not hashing"):
        begin(bench, endpoint="http://host/v1", embedder="hashing")


def test_a_percent_sign_is_a_part_of_a_name(bench: Bench) -> None:
    bench.connection.execute('CREATE TABLE "do%cs" (id bigint PRIMARY KEY, body text)')
    bench.connection.execute("INSERT INTO \"do%cs\" SELECT i, 'document ' || i FROM generate_series(1, 9) i")
    bench.enqueue('"do%cs"', "body", model="hashing-32", name="docs", sync=True)
    begin(bench, model="hashing-48")
    bench.drain()
    found = model_report.report(bench.connection, now(bench), sample=3)
    assert (found.obstacles, found.queries) == ([], 3)
    assert found.old.table_bytes > 0
    model_migration.switch(bench.connection, now(bench))
    assert model_migration_end.finish(bench.connection, now(bench)).statement is None


def test_a_partition_that_only_the_old_one_follows_is_told(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    bench.sql("CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (0) TO (100)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 9) i")
    bench.enqueue("docs", "body", model="hashing-32", sync=True)
    bench.drain()
    new = begin(bench, model="hashing-48").new
    bench.drain()
    assert obstacles(bench) == []
    bench.sql("CREATE TABLE docs_2 PARTITION OF docs FOR VALUES FROM (100) TO (200)")
    bench.enqueue("docs")
    bench.sql("INSERT INTO docs_2 VALUES (150, 'late')")
    bench.drain()
    assert obstacles(bench) == [
        "docs@other does not follow the changes of public.docs_2, which came later; "
        "`pgvec enqueue public.docs --name docs@other`"
    ]
    bench.enqueue("public.docs", name="docs@other")
    bench.drain()
    assert obstacles(bench) == []
    assert bench.wrong(new) == RIGHT


def test_names_of_columns_do_not_grow_with_each_model(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.enqueue("docs", "body", model="hashing-32", into_column="embedding")
    for model, column in (("hashing-48", "embedding_hashing_48"), ("hashing-64", "embedding_hashing_64")):
        begin(bench, model=model)
        bench.drain()
        model_migration.switch(bench.connection, now(bench))
        model_migration_end.finish(bench.connection, now(bench))
        assert vectorizer.get(bench.connection, "docs").destination_roles.embedding == column


def test_workers_from_under_which_vectors_are_dropped_block_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    fill(bench, rows=400, sync=True, rows_per_job=20)
    with working(bench), working(bench):
        for number in range(4):
            begin(bench, document_prompt=f"{number}: ", query_prompt=f"{number}: ")
            wait_until(lambda: not model_report.state(bench.connection, now(bench)).new.jobs_left, 30)
            model_migration.switch(bench.connection, now(bench))
            bench.sql("UPDATE docs SET body = body || '.'")
            model_migration_end.finish(bench.connection, now(bench))
        wait_until(lambda: settled(bench), 30)
    assert [line.message for line in caplog.records if "is blocked" in line.message] == []
    assert bench.wrong(vectorizer.get(bench.connection, "docs")) == RIGHT


def test_workers_that_were_told_a_name_go_on_with_what_has_it(bench: Bench) -> None:
    fill(bench, sync=True)
    new = begin(bench).new
    with working(bench, names=("docs",)):
        bench.sql("UPDATE docs SET body = 'for the first' WHERE id = 1")
        wait_until(lambda: best(bench, "for the first")[1] > 0.99)
        assert bench.value(f"SELECT count(*) FROM {new.destination}") == 0
        model_migration.switch(bench.connection, now(bench))
        wait_until(lambda: bench.progress("docs").state == "complete")
        assert bench.wrong(new) == RIGHT
        bench.sql("UPDATE docs SET body = 'for the second' WHERE id = 2")
        wait_until(lambda: best(bench, "for the second")[1] > 0.99)
        # Nobody works on what has the other name now; its changes wait, and are not lost.
        assert model_report.state(bench.connection, now(bench)).old.changes_waiting == 1


class Searchers:
    """Threads that search by name all the time and look at each answer."""

    def __init__(self, bench: Bench, count: int) -> None:
        self.asked = 0
        self.failed: list[str] = []
        self.mixed = 0
        self.seen: set[int] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(bench, number)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, bench: Bench, number: int) -> None:
        with psycopg.connect(bench.dsn, autocommit=True) as connection:
            while not self._stop.is_set():
                number = number % 30 + 1
                try:
                    found, score = best(bench, f"document number {number}", connection=connection)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
                    self.failed.append(f"{type(error).__name__}: {error}")
                    continue
                self.seen.add(found.id)
                self.asked += 1
                self.mixed += score < 0.99

    def after(self, more: int) -> None:
        """Waits until so many more have been answered, or one has failed."""
        until = self.asked + more
        wait_until(lambda: self.asked >= until or self.failed or self.mixed, 30, what="more searches")

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


@pytest.mark.parametrize("given", [OTHER, {"model": "hashing-48"}], ids=["equal dimensions", "other dimensions"])
def test_searches_never_fail_and_never_mix_while_all_of_it_happens(bench: Bench, given: dict[str, Any]) -> None:
    old = fill(bench, sync=True)
    with ExitStack() as stack:
        stack.enter_context(working(bench))
        searchers = Searchers(bench, 4)
        stack.callback(searchers.end)
        changed = 0

        def change() -> None:
            nonlocal changed
            changed += 1
            bench.sql("UPDATE docs SET body = %s WHERE id = %s", f"changed {changed}", 31 + changed % 30)

        new = begin(bench, **given).new
        wait_until(lambda: bench.progress("docs@other").state == "complete", 30)
        for step in (model_migration.switch, model_migration.roll_back) * 3 + (model_migration.switch,):
            change()
            searchers.after(5)
            step(bench.connection, now(bench))
            searchers.after(5)
        model_migration_end.finish(bench.connection, now(bench))
        change()
        searchers.after(20)
        wait_until(lambda: settled(bench), 30)
    assert (searchers.failed, searchers.mixed) == ([], 0)
    assert searchers.seen == {old.id, new.id}
    assert bench.wrong(vectorizer.get(bench.connection, "docs")) == RIGHT


def test_a_search_whose_vectors_go_while_its_query_is_embedded_is_done_again(bench: Bench) -> None:
    old = fill(bench)
    new = begin(bench).new
    bench.drain()
    asked = []

    def embed_meanwhile(found: Vectorizer) -> Vectors:
        asked.append(found.id)
        if found.id == old.id:
            with psycopg.connect(bench.dsn, autocommit=True) as connection:
                model_migration.switch(connection, now(bench))
                model_migration_end.finish(connection, now(bench))
        return embed(found, "document number 9")

    found, answer = search.by_name(bench.connection, "docs", Search("document number 9", limit=1), embed_meanwhile)
    assert asked == [old.id, new.id]
    assert found.id == new.id
    assert answer.hits[0].score == pytest.approx(1)
    bench.sql(f"DROP TABLE {new.destination}")
    with pytest.raises(search.DestinationError):
        search.by_name(bench.connection, "docs", Search("document number 9"), embed_meanwhile)
    assert asked[2:] == [], "a table that is gone is missed before a query is embedded"


def test_in_an_event_loop_it_is_done_again_as_well(bench: Bench) -> None:
    old = fill(bench)
    new = begin(bench).new
    bench.drain()
    asked = []

    async def resolve() -> Vectorizer:
        return vectorizer.get(bench.connection, "docs")

    async def ask(found: Vectorizer) -> Answer:
        asked.append(found.id)
        if found.id == old.id:
            model_migration.switch(bench.connection, now(bench))
            model_migration_end.finish(bench.connection, now(bench))
        vector = embed(found, "document number 9")
        return search.nearest(bench.connection, found, Search("document number 9", limit=1), vector)

    found, answer = asyncio.run(search.by_name_async(resolve, ask))
    assert asked == [old.id, new.id]
    assert found.id == new.id
    assert answer.hits[0].score == pytest.approx(1)
    vectorizer.steer(bench.connection, "docs", "drop")

    async def known() -> Vectorizer:
        return new

    with pytest.raises(DefinitionError, match="no vectorizer is called 'docs@other' any more"):
        asyncio.run(search.by_name_async(known, ask))


def test_a_switch_in_the_middle_changes_nothing_for_a_search_that_has_begun(bench: Bench) -> None:
    old = fill(bench)
    begin(bench)
    bench.drain()

    def embed_meanwhile(found: Vectorizer) -> Vectors:
        model_migration.switch(bench.connection, now(bench))
        return embed(found, "document number 9")

    found, answer = search.by_name(bench.connection, "docs", Search("document number 9", limit=1), embed_meanwhile)
    assert found.id == old.id
    assert answer.hits[0].score == pytest.approx(1)


def obstacles(bench: Bench) -> list[str]:
    return model_report.state(bench.connection, now(bench)).obstacles


def test_what_is_not_ready_is_told_before_a_switch(bench: Bench) -> None:
    fill(bench, rows=300, sync=True, rows_per_job=100)
    begin(bench)
    assert obstacles(bench)[0] == "4 jobs of docs@other are not done"
    vectorizer.steer(bench.connection, "docs@other", "pause")
    assert "docs@other is paused" in obstacles(bench)[0]
    vectorizer.steer(bench.connection, "docs@other", "resume")
    bench.drain()
    assert obstacles(bench) == []
    bench.sql("UPDATE docs SET body = body || '!'")
    bench.drain(names=("docs",))
    assert obstacles(bench) == ["300 changes wait for docs@other, 0 for docs"]
    bench.drain()
    bench.sql("CREATE INDEX ON docs_vectors USING hnsw (embedding vector_cosine_ops)")
    assert obstacles(bench) == [
        "public.docs_vectors has an index on its vectors, public.docs_vectors_hashing_32 has none; build it first"
    ]
    bench.sql("CREATE INDEX ON docs_vectors_hashing_32 USING hnsw ((embedding::halfvec(32)) halfvec_cosine_ops)")
    assert obstacles(bench) == []
    bench.sql(
        "INSERT INTO pgvec.failures (vectorizer_id, key, source_hash, error_class, message, model)"
        " VALUES (%s, '{7}', '', 'NotFinite', 'NaN', 'm')",
        now(bench).new.id,
    )
    assert any("1 documents of docs@other are in quarantine, 0 of docs" in one for one in obstacles(bench))
    bench.sql("DELETE FROM pgvec.failures")
    vectorizer.get(bench.connection, "docs")
    bench.sql("UPDATE pgvec.vectorizers SET sync = false WHERE name = 'docs@other'")
    assert obstacles(bench) == [
        "docs follows live changes, docs@other does not; `pgvec enqueue public.docs --name docs@other --sync`, which "
        "also finds what has changed before"
    ]
    bench.sql("UPDATE pgvec.vectorizers SET sync = true, plan_complete = false WHERE name = 'docs@other'")
    assert any("not all rows of docs@other are planned" in one for one in obstacles(bench))


def test_a_report_compares_both(bench: Bench) -> None:
    fill(bench)
    begin(bench, chunk_size=16)
    bench.drain()
    bench.sql("CREATE INDEX ON docs_vectors USING hnsw (embedding vector_cosine_ops)")
    found = model_report.report(bench.connection, now(bench), sample=10)
    assert (found.old.coverage, found.new.coverage, found.queries, found.queries_from) == (1, 1, 10, "documents")
    # The same model on the same texts.
    assert found.agreement == 1
    assert (found.old.recall, found.old.recall_queries, found.new.recall) == (1, 10, None)
    assert found.old.table_bytes > 0 < found.old.index_bytes
    stored, at = bench.sql("SELECT report, reported_at FROM pgvec.model_migrations")[0]
    assert stored == json.loads(json.dumps(found.as_json()))
    assert at is not None
    model_migration_end.abandon(bench.connection, now(bench))
    begin(bench)
    bench.drain()
    other = model_report.report(bench.connection, now(bench), queries=["document number 3", "what is this?"])
    assert (other.queries, other.queries_from) == (2, "given")
    assert other.agreement is not None
    assert other.agreement < 0.9
    assert model_report.report(bench.connection, now(bench), sample=0).agreement is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One is short. Two is not. Three.", "One is short. Two is not."),
        ("a line\nand another", "a line and another"),
        ("これは文です。" * 5, "これは文です。" * 3),
        ("x" * 500, "x" * 200),
        ("a\0b", "ab"),
    ],
)
def test_the_first_sentence_of_a_text_is_a_query(text: str, sentence: str) -> None:
    assert model_report.first_sentence(text) == sentence


def test_of_a_large_table_a_few_pages_are_sampled(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_report, "_SMALL", 5)
    fill(bench)
    begin(bench)
    bench.drain()
    assert model_report.report(bench.connection, now(bench), sample=3).queries <= 3


def test_sample_queries_come_from_the_source_where_the_destination_has_no_text(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'title ' || i, 'body 100%% ' || i FROM generate_series(1, 20) i")
    bench.enqueue("docs", "title", "body", model="hashing-32", into_column="embedding", where="body LIKE '%100\\%%'")
    bench.drain()
    begin(bench, model="hashing-48")
    bench.drain()
    found = model_report.report(bench.connection, now(bench), sample=5)
    assert found.queries == 5
    assert found.old.destination == "public.docs.embedding"
    assert found.old.table_bytes == 20 * (32 * 4 + 8)


def test_dropping_one_of_the_two_ends_the_migration(bench: Bench) -> None:
    fill(bench)
    begin(bench)
    vectorizer.steer(bench.connection, "docs@other", "drop")
    with pytest.raises(NoMigrationError):
        now(bench)
    bench.drain()
    assert best(bench, "document number 1")[1] == pytest.approx(1)


@drawn(base=st.text(min_size=1, max_size=63).filter(lambda text: "\0" not in text), model=st.text(min_size=1))
def test_a_new_destination_s_name_is_short_enough(base: str, model: str) -> None:
    short = model_migration_begin._short(model)
    assert re.fullmatch("[a-z0-9_]{1,30}", short)
    table, column = model_migration_begin._LONGEST_TABLE, model_migration_begin._LONGEST_COLUMN
    for longest, ending in ((table, "_p255"), (column, "_hash")):
        names = list(itertools.islice(model_migration_begin._numbered(base, short, longest), 99))
        assert len(set(names)) == 99
        assert max(len((name + ending).encode()) for name in names) <= 63


@pytest.fixture
def line(bench: Bench, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)
    return cli


def test_from_the_command_line(bench: Bench, line: CommandLine) -> None:
    fill(bench, sync=True)
    assert line.refused("migrate-model", "docs") == (
        "docs is on its way to no other model; begin with: pgvec migrate-model docs --model MODEL"
    )
    dry = line("migrate-model", "docs", "--model", "hashing-48", "--dry-run")
    assert (dry.code, dry.err) == (0, "")
    assert "docs_vectors_hashing_48 (new)" in dry.out
    assert vectorizer.names(bench.connection) == ["docs"]
    begun = line("migrate-model", "docs", "--model", "hashing-48")
    assert begun.out == (
        "docs@other: 60 rows in 1 jobs, public.docs -> public.docs_vectors_hashing_48, hashing-48, 48 dimensions\n"
    )
    assert "docs is searched as before" in begun.err
    status = line("status").out
    assert "docs: on its way to hashing-48, beside docs@other: pgvec migrate-model docs" in status
    shown = [json.loads(one) for one in line("status", "--json").out.splitlines()]
    assert shown[0]["migration"] == {"to": "hashing-48", "beside": "docs@other", "reads": True, "switched": False}
    assert shown[1]["migration"]["reads"] is False
    refused = line.refused("migrate-model", "docs", "--switch", "--yes")
    assert "docs@other is not ready to take the place of docs: 1 job of docs@other is not done" in refused
    assert "--anyway" in refused
    assert "first `pgvec migrate-model docs --switch`" in line.refused("migrate-model", "docs", "--finish", "--yes")
    assert "--abandon" in line.refused("migrate-model", "docs", "--rollback", "--yes")
    bench.drain()
    report = line("migrate-model", "docs", "--sample", "3")
    assert "ready: pgvec migrate-model docs --switch" in report.out
    assert "agreement: " in report.out
    given = json.loads(line("migrate-model", "docs", "--query", "one", "--query", "two", "--json").out)
    assert (given["queries"], given["queries_from"], given["obstacles"]) == (2, "given", [])
    assert line.misused("migrate-model", "docs", "--switch").startswith("Search docs with hashing-48")
    switched = line("migrate-model", "docs", "--switch", "--yes")
    assert switched.out.startswith("docs is searched with hashing-48 in public.docs_vectors_hashing_48 now;")
    assert line.refused("migrate-model", "docs", "--switch", "--yes") == (
        "docs has been switched to the new model already; roll back, or finish"
    )
    assert "take that back with --rollback" in line.refused("migrate-model", "docs", "--abandon", "--yes")
    assert "switched at" in line("migrate-model", "docs", "--sample", "0").out
    assert "docs: switched to hashing-48, beside docs@other" in line("status").out
    assert line("search", "docs", "document number 4", "--limit", "1").out.startswith("1.000")
    rolled = line("migrate-model", "docs", "--rollback", "--yes")
    assert (rolled.out, rolled.err) == ("docs is searched with hashing-32 again.\n", "")
    assert line("migrate-model", "docs", "--switch", "--yes").code == 0
    finished = line("migrate-model", "docs", "--finish", "--yes")
    assert finished.out == "docs@other is dropped, and public.docs_vectors with it.\n"
    assert "on its way" not in line("status").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--switch", "--rollback"), "--switch and --rollback exclude each other"),
        (("--switch", "--model", "m"), "--switch and --model exclude each other"),
        (("--finish", "--query", "q"), "--finish and --query exclude each other"),
        (("--anyway",), "--anyway belongs to --switch"),
        (("--keep-destination", "--switch"), "--keep-destination belongs to --finish or --abandon"),
        (("--dry-run",), "--dry-run belongs to --model"),
        (("--model", "m", "--sample", "3"), "--sample is for the report, and --model begins a migration"),
        (("--model", "m", "--json"), "--json belongs to the report or to --dry-run"),
        (("--into", "t", "--into-column", "c"), "--into-column and --into exclude each other"),
        (("--no-chunking", "--chunk-size", "64"), "--no-chunking and --chunk-size exclude each other"),
    ],
)
def test_what_does_not_go_together_is_misuse(cli: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    assert cli.misused("migrate-model", "docs", *arguments) == said


def test_a_file_of_queries(bench: Bench, line: CommandLine, tmp_path: Any) -> None:
    fill(bench)
    begin(bench)
    bench.drain()
    file = tmp_path / "queries"
    file.write_text("one question\n\nanother question\n")
    assert json.loads(line("migrate-model", "docs", "--queries", str(file), "--json").out)["queries"] == 2
    file.write_text("\n\n")
    assert "has 0 lines with text" in line.misused("migrate-model", "docs", "--queries", str(file))
    file.write_bytes(b"\xff\xfe")
    assert "is no text in UTF-8" in line.misused("migrate-model", "docs", "--queries", str(file))


def test_what_needs_no_new_vectors_is_altered_and_the_rest_is_told_where_to_go(bench: Bench, line: CommandLine) -> None:
    fill(bench)
    altered = line("alter", "docs", "--sync", "--priority", "5")
    assert altered.out == "docs is altered.\n"
    assert "for what has changed before: pgvec enqueue public.docs --name docs" in altered.err
    bench.sql("UPDATE docs SET body = 'followed' WHERE id = 2")
    bench.drain()
    assert best(bench, "followed")[1] == pytest.approx(1)
    assert "follows live changes no longer" in line("alter", "docs", "--no-sync").err
    bench.sql("UPDATE docs SET body = 'not followed' WHERE id = 2")
    assert settled(bench)
    assert line.misused("alter", "docs", "--model", "new model") == (
        "--model is a part of the definition, and another one needs new vectors; run: pgvec migrate-model docs --model "
        "'new model'"
    )
    assert line.misused("alter", "docs", "--no-chunking").endswith("run: pgvec migrate-model docs --no-chunking")
    assert "make another vectorizer" in line.misused("alter", "docs", "--where", "true")
    assert "nothing to change was named" in line.misused("alter", "docs")
    refused = line.refused("enqueue", "docs", "--text", "body", "--model", "hashing-48", "--no-chunking")
    assert refused.endswith(
        "until you switch to them: pgvec migrate-model docs --model hashing-48; or give another --name"
    )
    refused = line.refused(
        "enqueue", "docs", "--text", "body", "--model", "hashing-32", "--no-chunking", "--where", "true"
    )
    assert refused.endswith("give another --name, or drop it first")


def test_a_limited_one_cannot_follow_changes(bench: Bench, line: CommandLine) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 50) i")
    bench.enqueue("docs", "body", limit=10)
    assert "has the rows that --limit selected" in line.refused("alter", "docs", "--sync")


def test_sync_of_one_of_two_says_what_the_other_does(bench: Bench, line: CommandLine) -> None:
    fill(bench)
    begin(bench)
    bench.drain()
    assert "docs@other, beside it, does not: pgvec alter docs@other --sync" in line("alter", "docs", "--sync").err
    assert "beside it" not in line("alter", "docs@other", "--sync").err
    assert obstacles(bench) == []


def test_both_are_asked_about_before_one_is_dropped(bench: Bench, line: CommandLine) -> None:
    fill(bench)
    begin(bench, model="hashing-48")
    bench.drain()
    said = line.misused("drop", "docs@other")
    assert "It ends the migration between hashing-32 and hashing-48, and docs stays" in said
    assert "`pgvec migrate-model docs --abandon` drops its vectors as well" in said


def test_answers_of_searches_name_what_was_asked(bench: Bench) -> None:
    fill(bench)
    found, answer = search.by_name(bench.connection, "docs", Search("number", limit=1, mode="text"), lambda _: None)
    assert isinstance(answer, Answer)
    assert found.name == "docs"


@pytest.mark.model
@pytest.mark.xdist_group("model")
def test_a_real_model_takes_the_place_of_another(bench: Bench, tmp_path: Path) -> None:
    target = cut(tmp_path)
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    texts = [
        "A lamp that is broken",
        "How to bake bread at home",
        "The train to the coast is late",
        "Rain in the hills",
    ]
    for key, text in enumerate(texts):
        bench.sql("INSERT INTO docs VALUES (%s, %s)", key, text)
    old = bench.enqueue("docs", "body", model=DEFAULT_MODEL, sync=True)
    new = begin(bench, model=target).new
    assert (new.dimensions, new.destination_table) == (old.dimensions, "docs_vectors_all_minilm_l6_v2_3_layers")
    # Nothing is measured of a machine that runs tests.
    bench.drain(device=DeviceOptions(runtime="torch", batch_tokens=1_024))
    found = model_report.report(bench.connection, now(bench))
    assert (found.obstacles, found.agreement) == ([], 1)

    def asked_of(one: Vectorizer) -> float:
        vector = load(old.spec, DeviceOptions(runtime="torch")).embed_query(texts[0])
        score = search.nearest(bench.connection, one, Search(texts[0], limit=1), vector).hits[0].score
        assert score is not None
        return score

    # The same query in the vectors of the other model: that is what never happens.
    assert asked_of(old) > 0.99 > 0.9 > asked_of(new)
    for step, expected in ((model_migration.switch, new), (model_migration.roll_back, old)):
        step(bench.connection, now(bench))
        one, score = best(bench, texts[0])
        assert one.id == expected.id
        assert score > 0.99
