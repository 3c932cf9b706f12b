"""From what a user asks for to a vectorizer that works: kinds of sources, keys and names, and what is refused."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from pgvec_queue import catalog, definition, destination
from pgvec_queue.catalog import quoted_name, split_name
from pgvec_queue.database import Connection, versions
from pgvec_queue.definition import Options
from pgvec_queue.errors import DefinitionError, PgvecError
from pgvec_queue.vectorizer import Vectorizer, block, by_ids, get
from pgvec_queue.worker import Outcome
from tests.oracle import assert_right, expected, found, work_off
from tests.support import Bench


@dataclass(frozen=True)
class Keys:
    """A kind of key: its columns, and values in no order, the last one added later; all as SQL."""

    columns: str
    values: Sequence[str]
    key: str = "k"
    before: str = "SELECT"


def _texts(*values: str) -> list[str]:
    return ["'" + value.replace("'", "''") + "'" for value in values]


_LETTERS = _texts("b", "B", "a", "Ä", "ä", "Z", "A")

KEYS = {
    "bigint": Keys("k bigint", ("7", "-3", "0", "9223372036854775807", "12", "-9223372036854775808", "5")),
    "int": Keys("k int", ("7", "-3", "0", "2147483647", "12", "100", "5")),
    "smallint": Keys("k smallint", ("7", "-3", "0", "32767", "12", "100", "5")),
    "numeric": Keys("k numeric", ("7.5", "-0.001", "0", "'NaN'", "12.50", "1e40", "5")),
    "numeric(9,2)": Keys("k numeric(9,2)", ("7.5", "-0.01", "0", "12.50", "12", "1000", "5")),
    "double precision": Keys(
        "k double precision", ("0.1", "1e-300", "'-infinity'", "'NaN'", "0.30000000000000004", "7", "0.3")
    ),
    "uuid": Keys("k uuid", _texts(*(f"{c * 8}-0000-4000-8000-00000000000{c}" for c in "3f0a7c5"))),
    "text": Keys("k text", _texts("", "Ab", "a'b", '{"x",NULL}', "b\\\n", "ä%s", "NULL")),
    'text COLLATE "C"': Keys('k text COLLATE "C"', _LETTERS),
    "text in another collation": Keys("k text COLLATE {other}", _LETTERS),
    "varchar": Keys("k varchar(12)", _texts("b", "B ", "a", "Ä", "ä", "Z", "A")),
    "char": Keys("k char(5)", _texts("b", "B", "a  b", "ab", "ä", "12345", "A")),
    "bytea": Keys("k bytea", _texts(r"\x", r"\x00", r"\x5c", r"\xff00", r"\x27", r"\x0a", r"\x09")),
    "date": Keys(
        "k date",
        _texts("2024-02-29", "1969-12-31", "infinity", "0044-03-15 BC", "12000-01-02", "2024-03-01", "2024-12-03"),
    ),
    "timestamptz": Keys(
        "k timestamptz",
        _texts(
            "2024-03-31 01:30:00+00",
            "2024-10-27 02:30:00+02",
            "2024-10-27 02:30:00+01",
            "-infinity",
            "2024-01-01 00:00:00.000001+14",
            "1900-01-01",
            "2024-03-31 00:30:00Z",
        ),
    ),
    "interval": Keys("k interval", _texts("1 month", "-1 day", "36:00:00.5", "1 year 2 mons", "0", "5 days", "4 days")),
    "enum": Keys(
        "k own.mood",
        _texts("sad", "a b", "ok", "it's", "happy", "meh", "fine"),
        before="CREATE TYPE own.mood AS ENUM ('sad', 'a b', 'ok', 'fine', 'it''s', 'happy', 'meh')",
    ),
    "domain": Keys("k own.letter", _LETTERS, before='CREATE DOMAIN own.letter AS text COLLATE "C"'),
    "int and text": Keys("a int, b text", ("1,'b'", "1,'a'", "0,'z'", "2,''", "-1,'ä'", "1,'B'", "1,'aa'"), "a, b"),
    "text, date and smallint": Keys(
        'a text COLLATE "C", b date, c smallint',
        (
            "'x', '2024-02-01', 1",
            "'x', '2024-01-02', 2",
            "'X', '2024-02-01', 1",
            "'x', '2024-02-01', -1",
            "'', '-infinity', 0",
            "'y', '2023-01-01', 3",
            "'x', '2024-02-01', 0",
        ),
        "b, a, c",
    ),
}


# What a server, a role or a client may have set, on which the text of a key and the meaning of a name would depend.
PLANNING = {
    "search_path": "own, public",
    "TimeZone": "Asia/Kolkata",
    "DateStyle": "SQL, MDY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-5",
}
WORKING = {**PLANNING, "search_path": "", "TimeZone": "America/New_York", "DateStyle": "SQL, DMY"}


@pytest.mark.parametrize(("sync", "partitions"), [(False, None), (True, 3)], ids=["", "sync, in partitions"])
@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_each_kind_of_key_gives_exactly_the_right_vectors_and_then_embeds_only_what_changed(
    bench: Bench, keys: Keys, sync: bool, partitions: int | None
) -> None:
    bench.partitions = partitions
    bench.sql("CREATE SCHEMA own")
    _set(bench, PLANNING)
    bench.sql(keys.before)
    columns = keys.columns.replace("{other}", _other_collation(bench))
    bench.sql(f"CREATE TABLE public.docs ({columns}, n int, body text, PRIMARY KEY ({keys.key}))")
    for n, value in enumerate(keys.values[:-1]):
        bench.sql(f"INSERT INTO docs VALUES ({value}, {n}, 'document {n}')")

    def enqueue() -> tuple[Vectorizer, Vectorizer]:
        table = bench.enqueue("docs", "body", rows_per_job=2, sync=sync)
        column = bench.enqueue(
            "docs", "body", name="column", into_column="v", store="halfvec", rows_per_job=4, sync=sync
        )
        return table, column

    def work() -> None:
        _set(bench, WORKING)
        work_off(bench)
        _set(bench, PLANNING)

    both = enqueue()
    work()
    assert_right(bench, *both)
    assert [_embedded(bench, one) for one in both] == [6, 6]
    bench.sql("UPDATE docs SET body = 'changed' WHERE n = 1")
    bench.sql("DELETE FROM docs WHERE n = 3")
    bench.sql("UPDATE docs SET body = NULL WHERE n = 4")
    bench.sql(f"INSERT INTO docs VALUES ({keys.values[-1]}, 6, 'added')")
    bench.sql("UPDATE docs SET n = n + 10")
    if not sync:
        enqueue()
    work()
    assert [_embedded(bench, one) for one in both] == [8, 8]
    if sync:
        assert [found(bench, one) for one in both] == [expected(bench, one) for one in both]
        both = enqueue()
        work()
    assert_right(bench, *both)
    assert [_embedded(bench, one) for one in both] == [8, 8]


NAMES = ['my "own".schema 100%', "%(lower)s %s", "it's {source} $1 \\\\", "Größe ✓"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_used_for_schema_table_key_text_and_destination(bench: Bench, name: str) -> None:
    quoted, text, mapped = (_quoted(name + suffix) for suffix in ("", "2", "3"))
    bench.sql(f"CREATE SCHEMA {quoted}")
    bench.sql(f"CREATE TABLE {quoted}.{quoted} ({quoted} int PRIMARY KEY, {text} text)")
    bench.sql(f"INSERT INTO {quoted}.{quoted} SELECT i, 'text ' || i FROM generate_series(1, 6) i")
    bench.sql(f"CREATE TABLE {quoted}.{mapped} ({quoted} text, {text} vector)")
    source, where = quoted_name(name, name), f"{quoted} < 6"
    both = [
        bench.enqueue(source, name + "2", name=name, where=where, rows_per_job=2, sync=True),
        bench.enqueue(source, name + "2", name="column", into_column=name + " v", where=where, rows_per_job=2),
    ]
    mapping = {"key": [name], "embedding": [name + "2"]}
    other = bench.enqueue(source, name + "2", name="mapped", into=quoted_name(name, name + "3"), columns=mapping)
    assert bench.drain(listen=False) is Outcome.COMPLETE
    assert_right(bench, *both, other)
    bench.sql(f"DELETE FROM {quoted}.{quoted} WHERE {quoted} = 2")
    bench.sql(f"UPDATE {quoted}.{quoted} SET {text} = 'changed' WHERE {quoted} = 3")
    # Apart from the ranges that follow, which would find the rows in hand, and embed them as well.
    assert bench.drain(listen=False) is Outcome.COMPLETE
    assert found(bench, both[0]) == expected(bench, both[0])
    for vectorizer in both:
        bench.plan(vectorizer)
    bench.enqueue(source, name="mapped")
    assert bench.drain(listen=False) is Outcome.COMPLETE
    assert_right(bench, *both)
    assert [key for key, *_ in found(bench, other)] == ["1", "3", "4", "5", "6"]
    assert [_embedded(bench, one) for one in (*both, other)] == [6, 6, 6]


@given(st.tuples(*[st.text('a". %é', min_size=1)] * 2))
@example((".", '"'))
@example(('""', 'a"."b'))
def test_a_quoted_name_is_read_back_as_it_was(name: tuple[str, str]) -> None:
    assert split_name(quoted_name(*name)) == name


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("docs", (None, "docs")),
        ("Sales.docs", ("Sales", "docs")),
        ('sales."a.b"', ("sales", "a.b")),
        ('"sales".docs', ("sales", "docs")),
    ],
)
def test_a_name_is_a_table_or_a_schema_and_a_table(written: str, read: tuple[str | None, str]) -> None:
    assert split_name(written) == read


@pytest.mark.parametrize("written", ["", "a.b.c", ".docs", "docs.", 'a"b', '"a', '""', "a..b"])
def test_what_is_no_name_of_a_table_is_refused(written: str) -> None:
    with pytest.raises(DefinitionError, match="write table or schema"):
        split_name(written)


def test_a_name_is_taken_as_written_first_and_then_as_sql_folds_it(bench: Bench) -> None:
    bench.sql('CREATE TABLE docs ("ID" int PRIMARY KEY, body text)')
    defined = bench.define("Docs", "BODY", key=["ID"]).vectorizer
    assert (defined.name, defined.source, defined.text_columns) == ("docs", "public.docs", ("body",))
    assert bench.define("DOCS", "Body").new is False
    bench.sql('CREATE TABLE "Docs" (id int PRIMARY KEY, body text)')
    assert bench.define("Docs", "body", into="others").vectorizer.source == "public.Docs"


def test_the_same_words_mean_the_same_destination_again(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("CREATE TABLE vectors (id int, words text, embedding vector, source_hash bytea)")
    said: dict[str, Any] = {"into": "Vectors", "columns": {"key": ["ID"], "chunk": ["Words"]}}
    assert bench.define("docs", "body", **said).new
    assert not bench.define("docs", "body", **said).new
    assert not bench.define("docs", "body", **{**said, "into": "public.vectors"}).new
    bench.sql("CREATE SCHEMA other")
    assert "--into was public.vectors, now it is other.vectors" in _refused(bench, "docs", "body", into="other.vectors")


def test_text_columns_are_joined_by_a_blank_line_and_nulls_left_out(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, a text, b varchar(20), c char(6))")
    bench.sql(
        "INSERT INTO docs VALUES (1, 'x', 'y', 'z'), (2, NULL, 'y', NULL), (3, '', ' ', NULL), (4, NULL, NULL, NULL)"
    )
    both = [bench.enqueue("docs", "a", "b", "c"), bench.enqueue("docs", "c", "a", name="column", into_column="v")]
    work_off(bench)
    assert_right(bench, *both)
    assert bench.sql("SELECT id, chunk FROM docs_vectors ORDER BY id") == [(1, "x\n\ny\n\nz"), (2, "y")]
    assert bench.progress("docs").rows_done == 4


FILTERS = [
    "body LIKE 'a%'",
    "body LIKE '%s' OR body = '100%' OR body ~ '%(lower)s' -- a trailing comment",
    "id % 2 = 0 AND body <> 'it''s'",
    "/* only */ s.id IN (SELECT id FROM docs WHERE vector = 1)",
    "ordinal = 1 AND hash IS NULL AND vector = 1 AND key0 IS NULL",
]


@pytest.mark.parametrize("where", FILTERS)
def test_a_filter_is_sql_over_the_row_taken_as_it_stands(bench: Bench, where: str) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text, ordinal int, vector int, hash text, key0 int)")
    for i, body in enumerate(("apple", "banana", "100%", "it's", "a%s", "x%(lower)s", "avocado", "50%s"), 1):
        bench.sql("INSERT INTO docs VALUES (%s, %s, %s, %s)", i, body, i % 2, i // 4)
    both = [
        bench.enqueue("docs", "body", where=where),
        bench.enqueue("docs", "body", name="column", into_column="v", where=where),
    ]
    work_off(bench)
    assert_right(bench, *both)
    assert 0 < len(found(bench, both[0])) < 8
    bench.sql("UPDATE docs SET ordinal = 1 - ordinal, vector = 1 - vector, body = reverse(body)")
    bench.plan(both[0])
    listed = [[str(i)] for i in range(1, 9)]
    for vectorizer in both:
        _list_keys(bench, vectorizer, listed)
    work_off(bench)
    for vectorizer in both:
        assert found(bench, vectorizer) == expected(bench, vectorizer)


def test_a_template_s_columns_are_embedded_with_each_chunk_and_a_change_of_them_is_a_change(bench: Bench) -> None:
    bench.sql('CREATE TABLE docs (id int PRIMARY KEY, title text, "100%" text, body text)')
    bench.sql("INSERT INTO docs SELECT i, 'title ' || i, i || ' percent', 'body ' || i FROM generate_series(1, 4) i")
    template = "$title (${100%}): $chunk"
    both = [
        bench.enqueue("docs", "body", template=template),
        bench.enqueue("docs", "body", name="column", into_column="v", template=template),
    ]
    bench.drain(listen=False)
    assert_right(bench, *both)
    bench.sql("UPDATE docs SET title = NULL WHERE id = 2")
    bench.sql("""UPDATE docs SET "100%" = 'all' WHERE id = 3""")
    for vectorizer in both:
        bench.plan(vectorizer)
    bench.drain(listen=False)
    assert_right(bench, *both)
    assert [_embedded(bench, one) for one in both] == [6, 6]


@pytest.mark.parametrize("partitioning", ["RANGE (id)", "HASH (id)"])
def test_a_partitioned_table_is_one_source(bench: Bench, partitioning: str) -> None:
    bench.sql(f"CREATE TABLE docs (id int PRIMARY KEY, body text) PARTITION BY {partitioning}")
    for part in range(3):
        values = (
            f"FROM ({part * 10}) TO ({part * 10 + 10})"
            if "RANGE" in partitioning
            else f"WITH (MODULUS 3, REMAINDER {part})"
        )
        bench.sql(f"CREATE TABLE docs{part} PARTITION OF docs FOR VALUES {values}")
    bench.sql("INSERT INTO docs SELECT i, 'body ' || i FROM generate_series(0, 27) i")
    both = [
        bench.enqueue("docs", "body", rows_per_job=4),
        bench.enqueue("docs", "body", name="column", into_column="v", rows_per_job=4),
    ]
    work_off(bench)
    assert_right(bench, *both)
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 7")
    bench.sql("UPDATE docs SET id = 28, v = NULL WHERE id = 1")
    for vectorizer in both:
        bench.plan(vectorizer)
    work_off(bench)
    assert_right(bench, *both)
    assert [_embedded(bench, one) for one in both] == [30, 30]


@pytest.mark.parametrize(
    "view",
    [
        "VIEW docs AS SELECT id, '<b>' || body AS body FROM base",
        "VIEW docs AS SELECT b.id, n.body || b.body AS body FROM base b JOIN names n ON n.id = b.id % 3",
        "VIEW docs AS SELECT id, string_agg(body, ' ') AS body FROM base GROUP BY id",
        "MATERIALIZED VIEW docs AS SELECT id, body FROM base",
    ],
)
def test_a_view_with_a_key_is_a_source(bench: Bench, view: str) -> None:
    bench.sql("CREATE TABLE names (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO names VALUES (0, 'none '), (1, 'one '), (2, 'two ')")
    bench.sql("CREATE TABLE base (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO base SELECT i, 'body ' || i FROM generate_series(1, 10) i")
    bench.sql(f"CREATE {view}")
    if "MATERIALIZED" in view:
        bench.sql("CREATE UNIQUE INDEX ON docs (id)")
    vectorizer = bench.enqueue("docs", "body", key=["id"], rows_per_job=4)
    work_off(bench)
    assert_right(bench, vectorizer)
    bench.sql("UPDATE base SET body = 'changed' WHERE id = 4")
    bench.sql("DELETE FROM base WHERE id IN (5, 10)")
    bench.sql("INSERT INTO base VALUES (11, 'added')")
    if "MATERIALIZED" in view:
        bench.sql("REFRESH MATERIALIZED VIEW docs")
    bench.plan(vectorizer)
    work_off(bench)
    assert_right(bench, vectorizer)
    assert _embedded(bench, vectorizer) == 12


@pytest.mark.parametrize(
    "view",
    [
        "SELECT id + 1 AS id, body FROM base",
        "SELECT other AS id, body FROM base",
        "SELECT id, body FROM base UNION SELECT id, body FROM base",
    ],
)
def test_a_view_that_no_index_walks_in_key_order_is_refused(bench: Bench, view: str) -> None:
    bench.sql("CREATE TABLE base (id int PRIMARY KEY, other int, body text)")
    bench.sql(f"CREATE VIEW docs AS {view}")
    message = _refused(bench, "docs", "body", key=["id"])
    assert "public.docs cannot be walked in the order of id by an index" in message
    assert "choose a key" in message


def test_a_key_of_two_columns_of_which_only_one_is_indexed_is_refused(bench: Bench) -> None:
    bench.sql("CREATE TABLE base (a int, b int, body text)")
    bench.sql("CREATE INDEX ON base (a)")
    bench.sql("CREATE VIEW docs AS SELECT * FROM base")
    assert "cannot be walked in the order of a, b" in _refused(bench, "docs", "body", key=["a", "b"])
    bench.sql("CREATE INDEX ON base (a, b)")
    assert bench.define("docs", "body", key=["a", "b"]).new


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
@pytest.mark.parametrize("key", ["id", "id, part"])
def test_rows_of_a_view_without_a_key_are_left_out_and_hide_no_others(bench: Bench, kind: str, key: str) -> None:
    bench.sql("CREATE TABLE base (id int, part int DEFAULT 0, body text)")
    bench.sql(f"CREATE UNIQUE INDEX ON base ({key})")
    bench.sql("INSERT INTO base (id, body) SELECT i, 'body ' || i FROM generate_series(1, 7) i")
    bench.sql("INSERT INTO base (id, part, body) SELECT NULL, i, 'no key' FROM generate_series(1, 7) i")
    bench.sql("INSERT INTO base (id, part, body) VALUES (3, NULL, 'half a key')" if "part" in key else "SELECT")
    bench.sql(f"CREATE {kind} docs AS SELECT * FROM base")
    if kind != "VIEW":
        bench.sql(f"CREATE UNIQUE INDEX ON docs ({key})")
    vectorizer = bench.enqueue("docs", "body", key=key.split(", "), rows_per_job=5)
    work_off(bench, rows=9)
    assert [row[0] for row in found(bench, vectorizer)] == list("1234567")
    assert bench.progress("docs").rows_done == bench.progress("docs").rows_total == 7


def test_the_key_is_walked_in_the_order_of_its_index(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (a int, b text, body text, PRIMARY KEY (b, a))")
    assert bench.define("docs", "body", key=["a", "b"]).vectorizer.key_columns == ("b", "a")
    bench.sql("CREATE TABLE mixed (a int NOT NULL, b int NOT NULL, body text)")
    bench.sql("CREATE UNIQUE INDEX ON mixed (a DESC, b)")
    assert "cannot be walked in the order of a, b" in _refused(bench, "mixed", "body", key=["a", "b"])
    bench.sql("CREATE UNIQUE INDEX ON mixed (b DESC, a DESC)")
    assert bench.define("mixed", "body", key=["a", "b"]).vectorizer.key_columns == ("b", "a")


def test_a_second_enqueue_finds_the_same_vectorizer_and_may_change_only_what_touches_no_vector(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    first = bench.define("docs", "body", where="id > 0", rows_per_job=10)
    again = bench.define("docs", "body", where="id > 0", rows_per_job=20, priority=5)
    assert (first.new, again.new) == (True, False)
    assert (again.vectorizer.rows_per_job, again.vectorizer.priority) == (20, 5)
    assert replace(again.vectorizer, rows_per_job=10, priority=0) == first.vectorizer
    bare = bench.define("docs", no_chunking=False, model=None)
    assert bare.vectorizer == again.vectorizer


def test_a_key_that_has_become_another_type_is_refused(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.define("docs", "body")
    bench.sql("ALTER TABLE docs ALTER id TYPE bigint")
    assert "the key id of public.docs was integer and is bigint now; drop the vectorizer 'docs'" in _refused(
        bench, "docs"
    )
    bench.sql("ALTER TABLE docs RENAME id TO nr")
    assert "public.docs has no column 'id' (the key)" in _refused(bench, "docs")


def test_a_second_enqueue_lets_a_blocked_vectorizer_go_on(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    known = bench.define("docs", "body").vectorizer
    block(bench.connection, known.id, "no such model")
    assert bench.progress("docs").state == "blocked"
    bench.define("docs")
    assert bench.progress("docs").state == "active"


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "--text": ({"text": ["body", "title"]}, "--text was body, now it is body, title"),
    "--where": ({"where": "id < 10"}, "--where was id > 0, now it is id < 10"),
    "no --where": ({"where": None}, "--where was id > 0, now it is not given"),
    "--key": ({"key": ["other"]}, "--key was id, now it is other"),
    "--model": ({"model": "hashing-9"}, "--model was hashing-8, now it is hashing-9"),
    "--embedder": ({"embedder": "openai"}, "--embedder was hashing, now it is openai"),
    "--endpoint": (
        {"endpoint": "http://x/v1", "embedder": "hashing"},
        "--endpoint was not given, now it is http://x/v1",
    ),
    "--revision": ({"revision": "abc"}, "--revision was not given, now it is abc"),
    "--tokenizer": ({"tokenizer": "gpt2"}, "--tokenizer was not given, now it is gpt2"),
    "--query-prompt": ({"query_prompt": "query: "}, "--query-prompt was , now it is query: "),
    "--document-prompt": ({"document_prompt": "passage: "}, "--document-prompt was , now it is passage: "),
    "--dimensions": ({"dimensions": 9}, "--dimensions was 8, now it is 9"),
    "--template": ({"template": "$title: $chunk"}, "--template was not given, now it is $title: $chunk"),
    "--trust-remote-code": ({"trust_remote_code": True}, "--trust-remote-code was not given, now it is given"),
    "--chunk-size": ({"chunk_size": 50}, "--chunk-size was 40, now it is 50"),
    "no --chunk-size": ({"chunk_size": None}, "--chunk-size was 40, now it is 128"),
    "--chunk-overlap": ({"chunk_overlap": 7}, "--chunk-overlap was 10, now it is 7"),
    "--no-chunking": ({"no_chunking": True}, "--no-chunking was not given, now it is given"),
    "--too-long": ({"too_long": "truncate"}, "--too-long was quarantine, now it is truncate"),
    "--store": ({"store": "halfvec"}, "--store was vector, now it is halfvec"),
    "--into": ({"into": "others"}, "--into was public.docs_vectors, now it is public.others"),
    "--into-column": ({"into_column": "v"}, "--into-column was not given, now it is v"),
    "--column": ({"columns": {"chunk": ["words"]}}, "--column chunk was chunk, now it is words"),
    "--column key": ({"columns": {"key": ["k"]}}, "--column key was id, now it is k"),
    "SOURCE": ({"source": "others", "name": "docs"}, "is over public.docs, not public.others; give another --name"),
}


def test_another_definition_under_the_same_name_is_refused_naming_the_difference(bench: Bench) -> None:
    for table in ("docs", "others"):
        bench.sql(f"CREATE TABLE {table} (id int PRIMARY KEY, other int NOT NULL UNIQUE, title text, body text)")
    said = Options(source="docs", text=["body"], where="id > 0", model="hashing-8", chunk_size=40)
    definition.define(bench.connection, said, versions(bench.connection))
    stored = bench.sql("SELECT * FROM pgvec.vectorizers")
    answers = {flag: _answers(bench, replace(said, **change)) for flag, (change, _) in CHANGES.items()}
    assert _unlike({flag: [words, "'docs'"] for flag, (_, words) in CHANGES.items()}, answers) == {}
    assert bench.sql("SELECT * FROM pgvec.vectorizers") == stored


def test_a_vectorizer_without_chunking_says_so_when_it_is_to_be_chunked(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.define("docs", "body", no_chunking=True)
    assert "--no-chunking was given, now it is not given" in _refused(bench, "docs", "body", no_chunking=False)


def test_a_bare_enqueue_means_the_definition_as_it_stands_but_not_what_it_says_otherwise(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.define("docs", "body", where="id > 0", chunk_size=40)
    settings = {"model": "hashing-9", "chunk_size": 99, "chunk_overlap": 9, "embedder": "openai"}
    assert bench.define("docs", **settings).new is False
    assert "--where was id > 0, now it is id > 5" in _refused(bench, "docs", where="id > 5")
    assert "--no-chunking was not given" in _refused(bench, "docs", no_chunking=True)


REFUSALS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "no such table": (
        'CREATE SCHEMA sales; CREATE TABLE sales."Dokumente" (id int PRIMARY KEY)',
        {"source": "dokumente"},
        ("no table or view 'dokumente'", "did you mean sales.Dokumente?"),
    ),
    "no such table anywhere": ("SELECT", {"source": "nothing"}, ("no table or view 'nothing'", "schema.table")),
    "no such schema": ("SELECT", {"source": "x.docs"}, ("no table or view 'x.docs'", "did you mean public.docs?")),
    "an index": ("CREATE INDEX idx ON docs (body)", {"source": "idx"}, ("no table or view 'idx'",)),
    "nothing to embed": ("SELECT", {"text": []}, ("no vectorizer is called 'docs' yet", "--text COLUMN")),
    "no such text column": ("SELECT", {"text": ["bodi"]}, ("no column 'bodi' (--text)", "it has: id, n, body")),
    "a text column that is no text": (
        "SELECT",
        {"text": ["n"]},
        ("public.docs.n is integer, not text", "casts it to text"),
    ),
    "json as text": ("ALTER TABLE docs ADD j jsonb", {"text": ["j"]}, ("public.docs.j is jsonb, not text",)),
    "no such key": ("SELECT", {"key": ["x"]}, ("no column 'x' (--key)",)),
    "no primary key": (
        "CREATE TABLE bare (id int NOT NULL UNIQUE, n int, body text)",
        {"source": "bare"},
        ("public.bare has no primary key", "--key COLUMN", "it has unique keys: id"),
    ),
    "no unique index either": (
        "CREATE TABLE bare (id int, body text)",
        {"source": "bare"},
        ("public.bare has no primary key", "no unique index either"),
    ),
    "a key that is not unique": ("SELECT", {"key": ["n"]}, ("the key n of public.docs is not unique", "make one")),
    "a key that is unique for some rows only": (
        "CREATE UNIQUE INDEX ON docs (n) WHERE n > 0",
        {"key": ["n"]},
        ("the key n of public.docs is not unique",),
    ),
    "a key that may be NULL": (
        "ALTER TABLE docs ADD UNIQUE (n)",
        {"key": ["n"]},
        ("the key column n of public.docs may be NULL", "SET NOT NULL"),
    ),
    "a view without a key": (
        "CREATE VIEW v AS SELECT * FROM docs",
        {"source": "v"},
        ("public.v is a view", "--key COLUMN"),
    ),
    "a filter that is no SQL": (
        "SELECT",
        {"where": "id >"},
        ("--where 'id >' cannot be used on public.docs", "syntax error"),
    ),
    "a filter that is no condition": ("SELECT", {"where": "id"}, ("--where 'id'", "must be type boolean")),
    "a filter over another column": ("SELECT", {"where": "nr > 1"}, ("--where 'nr > 1'", 'column "nr" does not exist')),
    "a filter that is an aggregate": ("SELECT", {"where": "count(*) > 1"}, ("aggregate functions are not allowed",)),
    "an empty filter": ("SELECT", {"where": " "}, ("--where is empty", "leave it out")),
    "a template without a chunk": ("SELECT", {"template": "$body"}, ("$chunk 0 times",)),
    "a template with an unknown column": (
        "SELECT",
        {"template": "$title: $chunk"},
        ("no column 'title' (--template)", "it has: id"),
    ),
    "a chunk longer than the model reads": (
        "SELECT",
        {"model": None, "chunk_size": 257, "no_chunking": False},
        ("--chunk-size 257 is more than the 256 tokens", "MiniLM"),
    ),
    "an overlap of more than half": (
        "SELECT",
        {"chunk_size": 10, "chunk_overlap": 6, "no_chunking": False},
        ("--chunk-overlap 6 is more than half of --chunk-size 10",),
    ),
    "an endpoint without a model": ("SELECT", {"endpoint": "http://localhost/v1", "model": None}, ("needs --model",)),
    "more dimensions than an index takes": (
        "SELECT",
        {"model": "hashing-4001"},
        ("4001 dimensions cannot be indexed", "HNSW takes 4000", "--no-index does without one", "--dimensions"),
    ),
    "more dimensions than halfvec's index takes": (
        "SELECT",
        {"model": "hashing-4001", "store": "halfvec"},
        ("4001 dimensions cannot be indexed", "HNSW takes 4000"),
    ),
}


def test_what_cannot_work_is_refused_in_one_line_that_names_it(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, n int, body text)")
    answers = {}
    for case, (before, said, _) in REFUSALS.items():
        options = {"source": "docs", "text": ["body"], "model": "hashing-8", "no_chunking": True, **said}
        with bench.connection.transaction(force_rollback=True):
            bench.sql(before)
            answers[case] = _answers(bench, Options(**options))
    assert _unlike({case: words for case, (_, _, words) in REFUSALS.items()}, answers) == {}
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 0


def test_the_most_dimensions_that_can_be_indexed_are_taken(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    assert bench.define("docs", "body", model="hashing-4000").vectorizer.dimensions == 4_000
    assert bench.define("docs", "body", name="n", into="n", model="hashing-16000", index=False).new
    assert bench.define("docs", "body", name="h", into="h", model="hashing-4000", store="halfvec").new


def test_a_proposal_makes_nothing(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    options = Options(source="docs", text=["body"], model="hashing-8")
    proposed = definition.propose(bench.connection, options, versions(bench.connection))
    assert (proposed.destination, proposed.chunk_size, proposed.chunk_overlap) == ("public.docs_vectors", 128, 20)
    assert bench.value("SELECT to_regclass('docs_vectors')") is None
    defined = definition.define(bench.connection, options, versions(bench.connection)).vectorizer
    assert replace(defined, id=0) == proposed
    assert definition.propose(bench.connection, options, versions(bench.connection)) == defined


@pytest.mark.parametrize("thing", ["TABLE docs_vectors (id int)", "TYPE docs_vectors AS (id int)"])
def test_a_destination_whose_name_is_taken_meanwhile_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, thing: str
) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    make = destination.make

    def make_late(connection: Connection, where_to: destination.Destination) -> None:
        bench.sql(f"CREATE {thing}")
        make(connection, where_to)

    monkeypatch.setattr(destination, "make", make_late)
    with pytest.raises(DefinitionError, match="already exists; name another one with --into"):
        bench.define("docs", "body", model="hashing-8")


def test_two_who_define_the_same_at_once_get_one_vectorizer(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    start = threading.Barrier(4)
    ended: list[object] = []

    def define() -> None:
        with bench.database.connect("test") as connection:
            start.wait()
            try:
                options = Options(source="docs", text=["body"], model="hashing-8")
                ended.append(definition.define(connection, options, versions(connection)).vectorizer.id)
            except DefinitionError as error:
                ended.append(str(error))

    threads = [threading.Thread(target=define) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = get(bench.connection, "docs")
    others = [one for one in ended if one != known.id]
    assert len(others) < len(ended) == 4
    assert all(re.search("again|another one with --into", str(one)) for one in others), others
    assert catalog.find_relation(bench.connection, "docs_vectors") is not None


def test_an_unknown_vectorizer_is_answered_with_those_there_are(bench: Bench) -> None:
    with pytest.raises(DefinitionError, match="no vectorizer is called 'docs'; there is none yet"):
        get(bench.connection, "docs")
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    known = bench.define("docs", "body").vectorizer
    with pytest.raises(DefinitionError, match="there are: docs"):
        get(bench.connection, "dogs")
    assert get(bench.connection, "docs") == known
    assert by_ids(bench.connection, [known.id, known.id + 1]) == [known]


def _refused(bench: Bench, source: str, *text: str, **options: Any) -> str:
    with pytest.raises(DefinitionError) as refused:
        bench.define(source, *text, **options)
    message = str(refused.value)
    assert "\n" not in message
    return message


def _answers(bench: Bench, options: Options) -> set[str]:
    """What a definition and a dry run of it are refused with; empty where they are not."""
    answers = set()
    for act in (definition.define, definition.propose):
        try:
            act(bench.connection, options, versions(bench.connection))
        except PgvecError as error:
            answers.add(str(error))
    return answers


def _unlike(wanted: Mapping[str, Sequence[str]], answers: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The answers that are not one and the same line with all the wanted words in it."""
    return {
        case: given
        for case, given in answers.items()
        if len(given) != 1 or "\n" in "".join(given) or any(words not in "".join(given) for words in wanted[case])
    }


def _list_keys(bench: Bench, vectorizer: Vectorizer, keys: list[list[str]]) -> None:
    bench.sql(
        "INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, rows) VALUES (%s, 'keys', %s, %s)",
        vectorizer.id,
        Jsonb(keys),
        len(keys),
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _set(bench: Bench, settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        bench.sql("SELECT set_config(%s, %s, false)", name, value)


def _other_collation(bench: Bench) -> str:
    """A collation that sorts otherwise than by code point, where the server has one."""
    collations = bench.sql(
        "SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname)"
        " FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace"
        " WHERE c.collencoding IN (-1, 6) AND c.collname NOT IN ('default', 'C') AND c.collisdeterministic"
    )
    for (name,) in collations:
        with contextlib.suppress(psycopg.errors.FeatureNotSupported):
            if bench.value(f"SELECT 'a' < 'B' COLLATE {name}"):
                return str(name)
    return 'pg_catalog."ucs_basic"'


def _embedded(bench: Bench, vectorizer: Vectorizer) -> int:
    return bench.progress(vectorizer.name).rows_embedded
