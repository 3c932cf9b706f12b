"""Where vectors go: tables that are made, tables that were there, columns of the source, and what does not fit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgvec_queue import definition
from pgvec_queue.database import Database, versions
from pgvec_queue.definition import Options
from pgvec_queue.errors import DefinitionError
from pgvec_queue.worker import Outcome
from tests.oracle import assert_right, expected, found, work_off
from tests.support import WORDS, Bench
from tests.waiting import wait_until


def _documents(bench: Bench, count: int = 4) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, %s) i", count)


def _described(bench: Bench, table: str) -> list[tuple[Any, ...]]:
    return bench.sql(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)"
        " FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
        " WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum",
        table,
    )


def _unique(bench: Bench, table: str) -> list[str]:
    definitions = bench.sql(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'u'",
        table,
    )
    return [text for (text,) in definitions]


def test_a_table_is_made_beside_the_source_with_its_key(bench: Bench) -> None:
    bench.sql("CREATE SCHEMA shop")
    bench.sql("CREATE TABLE shop.docs (a numeric(9,2), b varchar(7), body text, PRIMARY KEY (b, a))")
    defined = bench.define("shop.docs", "body", chunk_size=20)
    assert (defined.vectorizer.destination, defined.vectorizer.destination_created) == ("shop.docs_vectors", True)
    assert _described(bench, "shop.docs_vectors") == [
        ("b", "character varying(7)", True, None),
        ("a", "numeric(9,2)", True, None),
        ("chunk_index", "integer", True, None),
        ("chunk", "text", True, None),
        ("embedding", "vector(8)", True, None),
        ("source_hash", "bytea", True, None),
        ("created_at", "timestamp with time zone", True, "now()"),
    ]
    assert _unique(bench, "shop.docs_vectors") == ["UNIQUE (b, a, chunk_index)"]


def test_the_column_map_names_the_columns_of_a_table_that_is_made(bench: Bench) -> None:
    _documents(bench)
    columns = {"key": ["doc"], "chunk_id": ["cid"], "chunk_index": ["n"], "chunk": ["words"], "embedding": ["v"]}
    more = {"source_hash": ["h"], "created_at": ["at"]}
    vectorizer = bench.enqueue("docs", "body", into="vectors", columns={**columns, **more}, store="halfvec")
    names = [(name, type_) for name, type_, *_ in _described(bench, "vectors")]
    assert names == [
        ("doc", "integer"),
        ("cid", "text"),
        ("n", "integer"),
        ("words", "text"),
        ("v", "halfvec(8)"),
        ("h", "bytea"),
        ("at", "timestamp with time zone"),
    ]
    work_off(bench)
    assert_right(bench, vectorizer)
    assert bench.sql("SELECT doc, n, cid FROM vectors ORDER BY 1") == [(i, 0, f"{i}_0") for i in range(1, 5)]


def test_a_key_s_collation_is_the_same_in_the_table_that_is_made(bench: Bench) -> None:
    """With another one, no range of keys would be the same range there, and no index would serve."""
    bench.sql('CREATE DOMAIN letter AS text COLLATE "POSIX"')
    bench.sql('CREATE TABLE docs (a text COLLATE "C", b text, c letter, body text, PRIMARY KEY (a, b, c))')
    assert bench.define("docs", "body").vectorizer.destination_ordered
    collations = "SELECT attname, attcollation FROM pg_attribute WHERE attrelid = %s::regclass AND attname ~ '^[abc]$'"
    assert sorted(bench.sql(collations, "docs_vectors")) == sorted(bench.sql(collations, "docs"))


@pytest.mark.parametrize(
    ("model", "store", "inline"), [("384", "vector", True), ("1024", "vector", False), ("1024", "halfvec", True)]
)
def test_vectors_stay_in_the_row_where_three_rows_fit_a_page(
    bench: Bench, model: str, store: str, inline: bool
) -> None:
    _documents(bench)
    bench.define("docs", "body", model=f"hashing-{model}", store=store)
    options = bench.value("SELECT reloptions FROM pg_class WHERE relname = 'docs_vectors'")
    assert options == (["toast_tuple_target=8160"] if inline else None)


def test_a_column_and_its_hash_are_added_to_the_source_and_announced(bench: Bench) -> None:
    _documents(bench)
    defined = bench.define("docs", "body", into_column="v")
    assert list(defined.remarks) == ["adds the column v to public.docs", "adds the column v_hash to public.docs"]
    assert _described(bench, "docs")[2:] == [("v", "vector(8)", False, None), ("v_hash", "bytea", False, None)]
    bench.sql("ALTER TABLE docs ADD w halfvec, ADD h bytea")
    other = bench.define("docs", "body", name="w", into_column="w", store="halfvec", columns={"source_hash": ["h"]})
    assert not other.remarks
    assert not other.vectorizer.destination_created


# The example of the FDA's device reports


def _fda(bench: Bench, rows: int) -> None:
    bench.sql("CREATE SCHEMA fda_data")
    bench.sql("CREATE TABLE fda_data.event_mdr_text (id bigint PRIMARY KEY, text text)")
    bench.sql(
        "CREATE TABLE event_text_vectors (id serial PRIMARY KEY, fulltext_id text NOT NULL, chunk_id text UNIQUE,"
        " text_chunk text, embedding vector(384), created_at timestamptz DEFAULT now())"
    )
    for i in range(1, rows + 1):
        words = " ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(4 * i))
        bench.sql("INSERT INTO fda_data.event_mdr_text VALUES (%s, %s)", i * 1_000, f"Report {i}. {words}.")


FDA: dict[str, Any] = {
    "into": "event_text_vectors",
    "columns": {"key": ["fulltext_id"], "chunk": ["text_chunk"]},
    "model": "hashing-384",
    "chunk_size": 20,
    "chunk_overlap": 5,
    "rows_per_job": 5,
}


def test_a_table_that_was_there_is_used_as_it_stands(bench: Bench) -> None:
    _fda(bench, 12)
    defined = bench.define("fda_data.event_mdr_text", "text", **FDA)
    vectorizer = defined.vectorizer
    roles = vectorizer.destination_roles
    assert (roles.chunk_id, roles.created_at, roles.chunk_index, roles.source_hash) == (
        "chunk_id",
        "created_at",
        None,
        None,
    )
    assert not vectorizer.destination_created
    assert not vectorizer.destination_ordered
    hash_, index = defined.remarks
    assert "event_text_vectors has no column for the source's hash" in hash_
    assert "changed ones not" in hash_
    assert index == "builds an index on fulltext_id of public.event_text_vectors, which has none"
    indexed = bench.sql(
        "SELECT pg_get_indexdef(indexrelid) LIKE '%% (fulltext_id)', indisvalid FROM pg_index"
        " WHERE indrelid = 'event_text_vectors'::regclass AND NOT indisunique"
    )
    assert indexed == [(True, True)]
    bench.plan(vectorizer)
    assert bench.drain(listen=False) is Outcome.COMPLETE
    assert_right(bench, vectorizer)
    counts = bench.sql("SELECT fulltext_id, count(*) FROM event_text_vectors GROUP BY 1")
    assert max(count for _, count in counts) > 2
    ids = [(f"{key}_{index}",) for key, count in counts for index in range(count)]
    assert sorted(ids) == sorted(bench.sql("SELECT chunk_id FROM event_text_vectors WHERE created_at IS NOT NULL"))


def test_rows_deleted_from_the_source_leave_a_table_whose_key_has_another_type(bench: Bench) -> None:
    _fda(bench, 12)
    vectorizer = bench.enqueue("fda_data.event_mdr_text", "text", **FDA)
    work_off(bench)
    bench.sql("DELETE FROM fda_data.event_mdr_text WHERE id IN (1000, 5000, 12000)")
    bench.sql("UPDATE fda_data.event_mdr_text SET text = ' ' WHERE id = 2000")
    bench.sql("INSERT INTO fda_data.event_mdr_text VALUES (500, 'a new report')")
    for junk in ("abc", "", "99999999999999999999", " 3000", "03000", "3000.0", "NULL", "4000'"):
        bench.sql("INSERT INTO event_text_vectors (fulltext_id, chunk_id) VALUES (%s, %s)", junk, junk)
    bench.enqueue("fda_data.event_mdr_text", "text", **FDA)
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind = 'sweep'") > 3
    work_off(bench)
    assert found(bench, vectorizer) == expected(bench, vectorizer)
    progress = bench.progress(vectorizer.name)
    assert (progress.rows_embedded, progress.rows_done, progress.rows_total) == (13, 10, 10)


def test_a_row_whose_change_cannot_be_told_keeps_its_vectors_until_its_key_is_listed(bench: Bench) -> None:
    _fda(bench, 3)
    vectorizer = bench.enqueue("fda_data.event_mdr_text", "text", **FDA)
    work_off(bench)
    before = found(bench, vectorizer)
    bench.sql("UPDATE fda_data.event_mdr_text SET text = 'changed' WHERE id = 2000")
    bench.plan(vectorizer)
    work_off(bench)
    assert found(bench, vectorizer) == before


# Tables that were there


@pytest.mark.parametrize(
    ("key", "other", "values"),
    [
        ("bigint", "text", ["5", "10", "-1", "9223372036854775807"]),
        ("uuid", "text", ["'00000000-0000-4000-8000-00000000000a'", "'A0000000-0000-4000-8000-000000000000'"]),
        ("timestamptz", "text", ["'2024-03-31 01:30:00.5+07'", "'infinity'", "'1900-01-01 BC'"]),
        ("int", "bigint", ["5", "10", "-1"]),
        ("bigint", "int", ["5", "10", "-1"]),
        ("int", "numeric", ["5", "10", "-1"]),
        ("varchar(5)", "text", ["'b'", "'a '", "'Z'"]),
        ("text", "varchar(9)", ["'b'", "'a '", "'Z'"]),
        ("char(5)", "text", ["'b'", "'a'", "'Z'"]),
        ("text", "uuid", ["'00000000-0000-4000-8000-00000000000a'"]),
    ],
)
def test_the_key_is_cast_to_the_destination_s_type(bench: Bench, key: str, other: str, values: list[str]) -> None:
    bench.sql(f"CREATE TABLE docs (id {key} PRIMARY KEY, body text)")
    for i, value in enumerate(values):
        bench.sql(f"INSERT INTO docs VALUES ({value}, 'document {i}')")
    bench.sql(f"CREATE TABLE vectors (id {other}, chunk text, embedding vector, source_hash bytea)")
    vectorizer = bench.enqueue("docs", "body", into="vectors", rows_per_job=2)
    assert not vectorizer.destination_ordered
    work_off(bench)
    assert_right(bench, vectorizer)
    bench.sql("UPDATE docs SET body = 'changed' WHERE body = 'document 0'")
    bench.sql("DELETE FROM docs WHERE body = 'document 1'")
    bench.plan(vectorizer)
    work_off(bench)
    assert found(bench, vectorizer) == expected(bench, vectorizer)
    assert bench.progress("docs").rows_embedded == len(values) + 1


def test_key_and_embedding_are_all_that_a_table_needs(bench: Bench) -> None:
    _documents(bench)
    bench.sql("CREATE TABLE vectors (id int, embedding halfvec)")
    vectorizer = bench.enqueue("docs", "body", into="vectors", store="halfvec")
    assert vectorizer.destination_ordered
    work_off(bench)
    assert_right(bench, vectorizer)
    bench.sql("DELETE FROM docs WHERE id = 2")
    bench.plan(vectorizer)
    work_off(bench)
    assert_right(bench, vectorizer)


def test_what_a_table_held_counts_as_its_chunks_and_goes_where_no_row_has_it(bench: Bench) -> None:
    _documents(bench)
    bench.sql("CREATE TABLE vectors (id int, chunk text, embedding vector(8), source_hash bytea)")
    bench.sql("INSERT INTO vectors SELECT i, 'old', NULL FROM generate_series(3, 9) i")
    vectorizer = bench.enqueue("docs", "body", into="vectors")
    assert bench.progress("docs").chunks == 7
    work_off(bench)
    assert_right(bench, vectorizer)
    assert bench.progress("docs").chunks == 4


def test_rows_without_a_key_in_a_table_that_was_there_hide_no_others_and_stay(bench: Bench) -> None:
    _documents(bench, 9)
    bench.sql("CREATE TABLE vectors (id text, embedding vector)")
    vectorizer = bench.enqueue("docs", "body", into="vectors", rows_per_job=8)
    work_off(bench)
    bench.sql("INSERT INTO vectors SELECT NULL, NULL FROM generate_series(1, 9)")
    bench.sql("DELETE FROM docs WHERE id IN (1, 9)")
    bench.plan(vectorizer)
    work_off(bench)
    assert bench.sql("SELECT id FROM vectors ORDER BY id") == [*((str(i),) for i in range(2, 9)), *[(None,)] * 9]


def test_a_column_s_chunks_are_the_vectors_that_it_holds(bench: Bench) -> None:
    _documents(bench)
    bench.sql("ALTER TABLE docs ADD v vector(8)")
    bench.sql("UPDATE docs SET v = '[1,0,0,0,0,0,0,0]' WHERE id < 3")
    vectorizer = bench.enqueue("docs", "body", into_column="v")
    assert bench.progress("docs").chunks == 2
    work_off(bench)
    assert_right(bench, vectorizer)
    assert bench.progress("docs").chunks == 4
    bench.sql("UPDATE docs SET body = 'changed' WHERE id < 4")
    bench.sql("UPDATE docs SET body = '' WHERE id = 4")
    bench.plan(vectorizer)
    work_off(bench)
    assert_right(bench, vectorizer)
    assert bench.progress("docs").chunks == 3


def test_a_key_that_cannot_be_cast_after_all_blocks_with_the_reason(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id text PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs VALUES ('12', 'twelve'), ('abc', 'no number')")
    bench.sql("CREATE TABLE vectors (id bigint, embedding vector)")
    bench.enqueue("docs", "body", into="vectors")
    assert bench.drain(listen=False) is Outcome.BLOCKED
    assert 'invalid input syntax for type bigint: "abc"' in str(bench.progress("docs").reason)


# Indexes on the key


def _indexes(bench: Bench, table: str) -> list[str]:
    return [
        name
        for (name,) in bench.sql(
            "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = %s::regclass AND i.indisvalid ORDER BY 1",
            table,
        )
    ]


@pytest.mark.parametrize(
    ("indexes", "built"),
    [
        ("CREATE INDEX mine ON vectors (b, a, embedding)", False),
        ("ALTER TABLE vectors ADD CONSTRAINT mine UNIQUE (a, b, chunk_index)", False),
        ("CREATE INDEX mine ON vectors (a, chunk_index, b)", True),
        ("CREATE INDEX mine ON vectors (a) INCLUDE (b)", True),
        ("CREATE INDEX mine ON vectors (a, b) WHERE a > 0", True),
        ("CREATE INDEX mine ON vectors (a, (b + 1))", True),
        ("CREATE INDEX mine ON vectors USING hash (a)", True),
    ],
)
def test_an_index_on_the_key_is_built_only_where_none_begins_with_it(bench: Bench, indexes: str, built: bool) -> None:
    bench.sql("CREATE TABLE docs (a int, b int, body text, PRIMARY KEY (a, b))")
    bench.sql("CREATE TABLE vectors (a int, b int, chunk_index int, embedding vector(8), source_hash bytea)")
    bench.sql(indexes)
    remarks = bench.define("docs", "body", into="vectors").remarks
    assert len(_indexes(bench, "vectors")) == len(remarks) + 1 == 1 + built


def test_tables_with_long_names_that_begin_alike_get_an_index_each(bench: Bench) -> None:
    _documents(bench)
    for i in range(2):
        table = "ü" * 30 + str(i)
        bench.sql(f'CREATE TABLE "{table}" (id int, embedding vector)')
        bench.define("docs", "body", name=table, into=table)
        assert len(_indexes(bench, f'"{table}"')) == 1


@contextlib.contextmanager
def _a_build_that_waits(bench: Bench) -> Iterator[psycopg.Connection[Any]]:
    """Defines a vectorizer whose index build waits for somebody's transaction; yields that one's connection."""
    _documents(bench)
    bench.sql("CREATE TABLE vectors (id int, embedding vector(8))")
    bench.sql(f"ALTER DATABASE {bench.value('SELECT current_database()')} SET lock_timeout TO '50ms'")
    with psycopg.connect(bench.dsn) as user:
        user.execute("INSERT INTO vectors VALUES (1, NULL)")
        yield user


def _define_elsewhere(bench: Bench, ended: list[object]) -> None:
    with bench.database.connect("test") as connection:
        options = Options(source="docs", text=["body"], into="vectors", model="hashing-8", no_chunking=True)
        try:
            ended.append(definition.define(connection, options, versions(connection)))
        except (DefinitionError, psycopg.Error) as error:
            ended.append(error)


BUILDING = "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()"


def test_an_index_that_somebody_builds_is_not_built_twice(bench: Bench) -> None:
    ended: list[object] = []
    with _a_build_that_waits(bench) as user:
        builder = threading.Thread(target=_define_elsewhere, args=(bench, ended))
        builder.start()
        wait_until(lambda: bench.value(BUILDING) == 1)
        with pytest.raises(DefinitionError, match=r"an index on public.vectors is being built already; try again"):
            bench.define("docs", "body", into="vectors")
        # It waits longer than the database's timeout, and does not fail for it.
        waits = (
            "SELECT clock_timestamp() - query_start FROM pg_stat_activity"
            " WHERE datname = current_database() AND query ~ '^CREATE INDEX'"
        )
        wait_until(lambda: bench.value(waits) > timedelta(seconds=0.2))
        user.rollback()
        builder.join()
    assert not bench.define("docs", "body", into="vectors").new
    assert len(_indexes(bench, "vectors")) == 1
    assert isinstance(ended[0], definition.Defined)


def test_an_index_build_that_was_stopped_is_made_up_for_by_the_next_enqueue(bench: Bench) -> None:
    ended: list[object] = []
    with _a_build_that_waits(bench):
        builder = threading.Thread(target=_define_elsewhere, args=(bench, ended))
        builder.start()
        wait_until(lambda: bench.value(BUILDING) == 1)
        # The server's other databases are other tests'.
        bench.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_progress_create_index WHERE datname = current_database()")
        builder.join()
    assert isinstance(ended[0], psycopg.errors.QueryCanceled)
    assert _indexes(bench, "vectors") == []
    assert bench.value("SELECT count(*) FROM pg_index WHERE indrelid = 'vectors'::regclass AND NOT indisvalid") == 1
    assert not bench.define("docs").new
    assert len(_indexes(bench, "vectors")) == 1
    assert bench.value("SELECT count(*) FROM pg_index WHERE indrelid = 'vectors'::regclass") == 1


def test_a_destination_that_is_gone_is_told(bench: Bench) -> None:
    _documents(bench)
    bench.define("docs", "body")
    bench.sql("DROP TABLE docs_vectors")
    with pytest.raises(DefinitionError, match=r"destination public.docs_vectors is gone; drop the vectorizer 'docs'"):
        bench.define("docs")


# What does not fit


REFUSALS: dict[str, tuple[str, dict[str, Any], Sequence[str]]] = {
    "the source itself": ("SELECT", {"into": "docs"}, ("public.docs is the source itself", "--into")),
    "a view": ("CREATE VIEW v AS SELECT 1 AS id", {"into": "v"}, ("the destination public.v is no table", "--into")),
    "a sequence": ("CREATE SEQUENCE sq", {"into": "sq"}, ("public.sq cannot be made", "already exists", "--into")),
    "no such schema": ("SELECT", {"into": "x.vectors"}, ("no schema 'x' for the destination", "make it")),
    "a name too long": ("SELECT", {"into": "ü" * 32}, ("ü' is longer than 63 bytes", "--into")),
    "a column's name too long": (
        "SELECT",
        {"columns": {"chunk": ["x" * 64]}},
        ("x' is longer than 63 bytes", "--column ROLE=NAME"),
    ),
    "a name too long by default": (
        f'CREATE TABLE "{"t" * 60}" (id int PRIMARY KEY, body text)',
        {"source": "t" * 60},
        ("_vectors' is longer than 63 bytes", "--into"),
    ),
    "an unknown role": (
        "SELECT",
        {"columns": {"vector": ["v"]}},
        ("--column vector=… names no role", "roles are key, chunk_id"),
    ),
    "a role with two columns": (
        "SELECT",
        {"columns": {"chunk": ["a", "b"]}},
        ("--column chunk=… was given 2 times", "only key may have several"),
    ),
    "a column with two roles": (
        "SELECT",
        {"into": "vectors", "columns": {"chunk": ["t"], "chunk_id": ["t"]}},
        ("public.vectors.t was given two roles",),
    ),
    "two columns of one name": (
        "CREATE TABLE odd (chunk int PRIMARY KEY, body text)",
        {"source": "odd"},
        ("would have two columns chunk", "--column chunk=chunk_text"),
    ),
    "a key of too few columns": (
        "CREATE TABLE two (a int, b int, body text, PRIMARY KEY (a, b))",
        {"source": "two", "columns": {"key": ["a"]}},
        ("the key has 2 columns (a, b), but 1 are mapped", "--column key=NAME once per key column"),
    ),
    "no column for the key": (
        "CREATE TABLE bare (doc int, embedding vector)",
        {"into": "bare"},
        ("public.bare exists and has no column 'id' for the key", "--column key=NAME (it has: doc, embedding)"),
    ),
    "no column for the vector": (
        "CREATE TABLE bare (id int, v vector)",
        {"into": "bare"},
        ("public.bare exists and has no column 'embedding'", "--column embedding=NAME"),
    ),
    "no such column": (
        "SELECT",
        {"into": "vectors", "columns": {"chunk": ["words"]}},
        ("public.vectors has no column 'words' (--column chunk)", "it has: id"),
    ),
    "a vector that is none": (
        "ALTER TABLE vectors ADD v float4[]",
        {"into": "vectors", "columns": {"embedding": ["v"]}},
        ("public.vectors.v is real[], not vector",),
    ),
    "a halfvec": (
        "ALTER TABLE vectors ADD v halfvec(8)",
        {"into": "vectors", "columns": {"embedding": ["v"]}},
        ("public.vectors.v is halfvec(8), not vector", "--store halfvec"),
    ),
    "other dimensions": (
        "ALTER TABLE vectors ADD v vector(9)",
        {"into": "vectors", "columns": {"embedding": ["v"]}},
        ("public.vectors.v takes 9 dimensions, the model gives 8", "choose another"),
    ),
    "a chunk_index that is no integer": (
        "SELECT",
        {"into": "vectors", "columns": {"chunk_index": ["t"]}},
        ("public.vectors.t is text; as chunk_index it has to be integer",),
    ),
    "a chunk that is no text": (
        "SELECT",
        {"into": "vectors", "columns": {"chunk": ["n"]}},
        ("public.vectors.n is integer; as chunk it has to be text",),
    ),
    "a chunk_id that is no text": (
        "SELECT",
        {"into": "vectors", "columns": {"chunk_id": ["n"]}},
        ("public.vectors.n is integer; as chunk_id it has to be text",),
    ),
    "a hash that is no bytea": (
        "SELECT",
        {"into": "vectors", "columns": {"source_hash": ["t"]}},
        ("public.vectors.t is text; as source_hash it has to be bytea",),
    ),
    "a column that nobody fills": (
        "ALTER TABLE vectors ADD lang text NOT NULL",
        {"into": "vectors"},
        ("public.vectors.lang must not be NULL and has no default", "--column ROLE=lang", "give it a default"),
    ),
    "a time of creation without default": (
        "ALTER TABLE vectors ADD created_at timestamptz",
        {"into": "vectors"},
        ("public.vectors.created_at has no default; set it to now()",),
    ),
    "a key that cannot be cast": (
        "ALTER TABLE vectors ADD k uuid",
        {"into": "vectors", "columns": {"key": ["k"]}},
        ("the key id (integer) cannot become public.vectors.k (uuid)", "cannot cast"),
    ),
    "a key that would be rounded": (
        "CREATE TABLE fine (id numeric PRIMARY KEY, body text)",
        {"source": "fine", "into": "vectors"},
        (
            "the key id (numeric) is rounded as public.vectors.id (integer)",
            "two keys could become one",
            "numeric, or text",
        ),
    ),
    "a time that would be rounded to a day": (
        "CREATE TABLE fine (id timestamptz PRIMARY KEY, body text); ALTER TABLE vectors ADD day date",
        {"source": "fine", "into": "vectors", "columns": {"key": ["day"]}},
        ("the key id (timestamp with time zone) is rounded as public.vectors.day (date)",),
    ),
    "a key of another collation": (
        'CREATE TABLE c (id text COLLATE "C" PRIMARY KEY, body text); ALTER TABLE vectors ADD k text COLLATE "POSIX"',
        {"source": "c", "into": "vectors", "columns": {"key": ["k"]}},
        ("the key id and public.vectors.k have different collations", "give both the same"),
    ),
    "one row per key only": (
        "ALTER TABLE vectors ADD UNIQUE (id)",
        {"into": "vectors", "no_chunking": False},
        ("public.vectors allows one row per id", "--no-chunking"),
    ),
    "partitions without an index": (
        "CREATE TABLE parts (id int, embedding vector) PARTITION BY HASH (id)",
        {"into": "parts"},
        ("public.parts has no index on id; make one",),
    ),
    "a table of another vectorizer": (
        "SELECT",
        {"into": "taken"},
        ("the destination public.taken belongs to the vectorizer 'other'", "--into"),
    ),
    "a column of another vectorizer": (
        "SELECT",
        {"into_column": "v"},
        ("the column v of destination public.docs belongs to the vectorizer 'column'", "--into-column"),
    ),
    "a hash of another vectorizer": (
        "SELECT",
        {"into_column": "w", "columns": {"source_hash": ["v_hash"]}},
        ("belongs to the vectorizer 'column'",),
    ),
    "a column of a view": (
        "CREATE VIEW dv AS SELECT * FROM docs",
        {"source": "dv", "key": ["id"], "into_column": "w"},
        ("public.dv is no table, so it can get no vector column", "--into TABLE"),
    ),
    "a column with a role it cannot have": (
        "SELECT",
        {"into_column": "w", "columns": {"chunk": ["c"]}},
        ("with --into-column only --column source_hash=NAME", "not chunk"),
    ),
    "a column of another type": ("SELECT", {"into_column": "body"}, ("public.docs.body is text, not vector",)),
    "a column of other dimensions": (
        "ALTER TABLE docs ADD w vector(9)",
        {"into_column": "w"},
        ("public.docs.w takes 9 dimensions, the model gives 8",),
    ),
    "a column's hash of another type": (
        "SELECT",
        {"into_column": "w", "columns": {"source_hash": ["body"]}},
        ("public.docs.body is text; it has to be bytea",),
    ),
    "a column whose hash has too long a name": (
        "SELECT",
        {"into_column": "w" * 60},
        ("w_hash' is longer than 63 bytes", "--column source_hash=NAME"),
    ),
}


def test_a_destination_that_does_not_fit_is_refused_in_one_line_that_says_what_to_do(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("CREATE TABLE vectors (id int, t text, n int, embedding vector(8), source_hash bytea)")
    bench.define("docs", "body", name="other", into="taken")
    bench.define("docs", "body", name="column", into_column="v")
    wrong = {}
    for case, (before, said, words) in REFUSALS.items():
        options = {"source": "docs", "text": ["body"], "name": "new", "model": "hashing-8", "no_chunking": True, **said}
        answer = "nothing"
        with bench.connection.transaction(force_rollback=True):
            bench.sql(before)
            with contextlib.suppress(psycopg.errors.ActiveSqlTransaction):
                try:
                    definition.define(bench.connection, Options(**options), versions(bench.connection))
                except DefinitionError as error:
                    answer = str(error)
        if "\n" in answer or any(word not in answer for word in words):
            wrong[case] = answer
    assert wrong == {}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "you may not make the destination public.docs_vectors: permission denied for schema public"),
        ({"into_column": "v"}, "you may not make the destination public.docs: must be owner of table docs"),
    ],
)
def test_who_may_not_make_the_destination_is_told_so(bench: Bench, said: dict[str, Any], words: str) -> None:
    _documents(bench)
    role = _plain_role(bench)
    with Database(bench.dsn).connect("test") as connection:
        connection.execute(f"SET ROLE {role}")
        options = Options(source="docs", text=["body"], model="hashing-8", **said)
        with pytest.raises(DefinitionError) as refused:
            definition.define(connection, options, versions(connection))
    assert str(refused.value) == words
    bench.sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def _plain_role(bench: Bench) -> str:
    """A role that may read the source and use our schema, and make nothing."""
    role = f"plain_{bench.value('SELECT current_database()')}"
    bench.sql(f"CREATE ROLE {role}; REVOKE CREATE ON SCHEMA public FROM public")
    bench.sql(f"GRANT USAGE ON SCHEMA pgvec TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA pgvec TO {role}")
    bench.sql(f"GRANT SELECT ON docs TO {role}")
    return role


def test_our_own_schema_takes_no_vectors_and_is_no_source(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    for into in ("pgvec.docs_vectors", "pgvec.jobs", "PGVEC.jobs"):
        with pytest.raises(
            DefinitionError,
            match=r"^the schema pgvec is pgvec's own; name a table in another schema with --into$",
        ):
            bench.define("docs", "body", into=into)
    with pytest.raises(DefinitionError, match=r"^pgvec\.events cannot be embedded: the schema pgvec is pgvec's own"):
        bench.define("pgvec.events", "message", key=["id"])
    with pytest.raises(DefinitionError, match=r"^pgvec\.events cannot be embedded"):
        bench.define("pgvec.events", "message", into_column="v")
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 0
