"""`pgvec verify`: what differs is found exactly, whatever made it, and what `--fix` queues makes it right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pgvec_queue import verify as verifying
from pgvec_queue.errors import PgvecError
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.verify import Verified
from tests.commandline import CommandLine
from tests.oracle import expected, found, work_off
from tests.support import Bench

many = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    max_examples=15,
)


@pytest.fixture
def short_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of three rows, so that few rows have many ends of ranges among them."""
    for name in ("FIRST_ROWS", "MOST_ROWS"):
        monkeypatch.setattr(verifying, name, 3)


def _verify(bench: Bench, vectorizer: Vectorizer, *, fix: bool = False, progress: Any = None) -> Verified:
    return verifying.verify(bench.connection, bench.fragments(vectorizer), fix=fix, progress=progress)


def _differences(verified: Verified) -> tuple[int, int | None, int]:
    return verified.missing, verified.stale, verified.orphaned


def _queued(bench: Bench) -> list[str]:
    """The keys that unfinished lists name, composite ones joined."""
    lists = bench.sql("SELECT keys FROM pgvec.jobs WHERE kind = 'keys' AND state = 'queued'")
    return sorted(":".join(key) for (keys,) in lists for key in keys)


def _documents(bench: Bench, count: int = 10, text: str = "'document ' || i") -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text, kind text DEFAULT 'a')")
    bench.sql(f"INSERT INTO docs SELECT i, {text} FROM generate_series(1, %s) i", count)


def _right(bench: Bench, count: int = 10, text: str = "'document ' || i", **options: Any) -> Vectorizer:
    """Documents with the vectors that they have to have."""
    _documents(bench, count, text)
    vectorizer = bench.enqueue("docs", "body", **options)
    work_off(bench, 100)
    return vectorizer


def _assert_mended(bench: Bench, vectorizer: Vectorizer) -> None:
    """What --fix has queued, worked off, leaves nothing to find."""
    work_off(bench, 100)
    assert _differences(_verify(bench, vectorizer)) in ((0, 0, 0), (0, None, 0))
    assert found(bench, vectorizer) == expected(bench, vectorizer)


# Each kind of difference


@pytest.mark.usefixtures("short_ranges")
@pytest.mark.parametrize("options", [{}, {"chunk_size": 8}, {"into_column": "v"}], ids=["whole", "chunks", "column"])
def test_where_all_is_right_nothing_is_found_and_nothing_queued(bench: Bench, options: dict[str, Any]) -> None:
    vectorizer = _right(bench, text="repeat('word ' || i || '. ', i)", where="kind = 'a'", **options)
    bench.sql("INSERT INTO docs VALUES (11, E' \\n\\u00a0', 'a'), (12, NULL, 'a'), (13, 'not selected', 'b')")
    verified = _verify(bench, vectorizer, fix=True)
    assert _differences(verified) == (0, 0, 0)
    assert (verified.rows, verified.fixed, verified.quarantined) == (12, 0, 0)
    assert verified.examples == {"missing": [], "stale": [], "orphaned": []}
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state <> 'done'") == 0


@pytest.mark.usefixtures("short_ranges")
def test_missing_stale_and_orphaned_chunks_are_found_and_exactly_they_are_queued(bench: Bench) -> None:
    vectorizer = _right(bench, where="kind = 'a'")
    bench.sql("DELETE FROM docs_vectors WHERE id IN (1, 7)")
    bench.sql("INSERT INTO docs VALUES (0, 'before'), (11, 'behind')")
    bench.sql("UPDATE docs SET body = 'changed' WHERE id IN (2, 10)")
    bench.sql("UPDATE docs SET kind = 'b' WHERE id = 3")
    bench.sql("UPDATE docs SET body = ' ' WHERE id = 4")
    bench.sql("DELETE FROM docs WHERE id = 5")
    copied = "SELECT %s, chunk_index, chunk, embedding, source_hash FROM docs_vectors WHERE id = 6"
    for key in (-5, 99):
        bench.sql(f"INSERT INTO docs_vectors (id, chunk_index, chunk, embedding, source_hash) {copied}", key)
    verified = _verify(bench, vectorizer)
    assert _differences(verified) == (4, 2, 5)
    assert verified.examples == {
        "missing": [["0"], ["1"], ["7"], ["11"]],
        "stale": [["2"], ["10"]],
        "orphaned": [["-5"], ["3"], ["4"], ["5"], ["99"]],
    }
    assert _queued(bench) == []
    assert _verify(bench, vectorizer, fix=True).fixed == 11
    assert _queued(bench) == sorted(["-5", "0", "1", "2", "3", "4", "5", "7", "10", "11", "99"])
    _assert_mended(bench, vectorizer)


@pytest.mark.usefixtures("short_ranges")
def test_in_a_column_a_vector_is_missing_stale_or_orphaned(bench: Bench) -> None:
    vectorizer = _right(bench, into_column="v", where="kind = 'a'")
    bench.sql("UPDATE docs SET v = NULL WHERE id = 1")
    bench.sql("UPDATE docs SET v_hash = NULL WHERE id = 2")
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 3")
    bench.sql("UPDATE docs SET kind = NULL WHERE id = 4")
    bench.sql("UPDATE docs SET body = NULL WHERE id = 10")
    verified = _verify(bench, vectorizer, fix=True)
    assert verified.examples == {"missing": [["1"]], "stale": [["2"], ["3"]], "orphaned": [["4"], ["10"]]}
    assert _queued(bench) == sorted(["1", "2", "3", "4", "10"])
    _assert_mended(bench, vectorizer)


@pytest.mark.usefixtures("short_ranges")
@pytest.mark.parametrize(
    ("damage", "stale"),
    [
        ("DELETE FROM docs_vectors WHERE id = 5 AND chunk_index = 0", "5"),
        ("DELETE FROM docs_vectors WHERE id = 5 AND chunk_index = 1", "5"),
        ("UPDATE docs_vectors SET chunk_index = chunk_index + 1 WHERE id = 5", "5"),
        ("UPDATE docs_vectors SET chunk_index = 0 WHERE id = 5 AND chunk_index = 1", "5"),
        ("UPDATE docs_vectors SET chunk_index = NULL WHERE id = 5 AND chunk_index = 2", "5"),
        ("UPDATE docs_vectors SET source_hash = NULL WHERE id = 5 AND chunk_index = 1", "5"),
        ("UPDATE docs_vectors SET source_hash = '\\x00' WHERE id = 5 AND chunk_index = 2", "5"),
        ("UPDATE docs_vectors SET embedding = NULL WHERE id = 5 AND chunk_index = 2", "5"),
        ("INSERT INTO docs_vectors SELECT * FROM docs_vectors WHERE id = 5", "5"),
    ],
    ids=["first", "middle", "shifted", "twice", "no_index", "no_hash", "one_hash", "no_vector", "all_twice"],
)
def test_a_set_of_chunks_that_is_not_whole_is_stale_and_made_anew(bench: Bench, damage: str, stale: str) -> None:
    bench.sql("CREATE TABLE docs_vectors (id int, chunk_index int, chunk text, embedding vector(8), source_hash bytea)")
    vectorizer = _right(bench, text="repeat('word ' || i || '. ', 20)", chunk_size=16)
    assert bench.value("SELECT min(n) FROM (SELECT count(*) n FROM docs_vectors GROUP BY id) c") >= 3
    assert _differences(_verify(bench, vectorizer)) == (0, 0, 0)
    bench.sql(damage)
    verified = _verify(bench, vectorizer, fix=True)
    assert _differences(verified) == (0, 1, 0)
    assert _queued(bench) == [stale]
    _assert_mended(bench, vectorizer)


def test_a_whole_document_that_is_there_twice_is_stale(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs_vectors (id int, embedding vector(8), source_hash bytea)")
    vectorizer = _right(bench)
    bench.sql("INSERT INTO docs_vectors SELECT * FROM docs_vectors WHERE id = 4")
    assert _verify(bench, vectorizer, fix=True).examples["stale"] == [["4"]]
    _assert_mended(bench, vectorizer)


@pytest.mark.usefixtures("short_ranges")
def test_what_a_script_has_inserted_is_right_without_a_job(bench: Bench) -> None:
    _documents(bench)
    bench.sql("CREATE TABLE theirs (doc int, vec vector(8), digest bytea)")
    bench.sql(
        "INSERT INTO theirs SELECT id, '[1,0,0,0,0,0,0,0]', substring(sha256(convert_to(body, 'UTF8')) FOR 16)"
        " FROM docs WHERE id <> 3"
    )
    columns = {"key": ["doc"], "embedding": ["vec"], "source_hash": ["digest"]}
    vectorizer = bench.define("docs", "body", into="theirs", columns=columns).vectorizer
    assert _verify(bench, vectorizer, fix=True).examples == {"missing": [["3"]], "stale": [], "orphaned": []}
    work_off(bench)
    assert _differences(_verify(bench, vectorizer)) == (0, 0, 0)
    assert bench.value("SELECT count(*) FROM theirs WHERE vec = '[1,0,0,0,0,0,0,0]'") == 9


def test_without_a_hash_a_changed_text_cannot_be_told_and_a_gap_counts_as_missing(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs_vectors (id int, chunk_index int, embedding vector(8))")
    vectorizer = _right(bench, text="repeat('word ' || i || '. ', 20)", chunk_size=16)
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 1")
    bench.sql("DELETE FROM docs_vectors WHERE id = 2 AND chunk_index = 1")
    bench.sql("DELETE FROM docs WHERE id = 3")
    verified = _verify(bench, vectorizer, fix=True)
    assert verified.stale is None
    assert verified.missing == 1
    assert verified.examples == {"missing": [["2"]], "stale": [], "orphaned": verified.examples["orphaned"]}
    assert _queued(bench) == ["2", "3"]
    work_off(bench)
    assert _differences(_verify(bench, vectorizer)) == (0, None, 0)


# Quarantine


def _quarantine(bench: Bench, vectorizer: Vectorizer, key: int) -> None:
    bench.sql(
        "INSERT INTO pgvec.failures (vectorizer_id, key, source_hash, error_class, message, model)"
        " SELECT %s, ARRAY[id::text], pgvec.source_hash(body), 'Poison', 'no', 'm' FROM docs WHERE id = %s",
        vectorizer.id,
        key,
    )


@pytest.mark.parametrize("options", [{}, {"into_column": "v"}], ids=["table", "column"])
def test_a_row_in_quarantine_is_missing_only_once_its_text_has_changed(bench: Bench, options: dict[str, Any]) -> None:
    _documents(bench)
    vectorizer = bench.define("docs", "body", **options).vectorizer
    for key in (2, 3):
        _quarantine(bench, vectorizer, key)
    bench.plan(vectorizer)
    work_off(bench)
    verified = _verify(bench, vectorizer, fix=True)
    assert (_differences(verified), verified.quarantined) == ((0, 0, 0), 2)
    assert _queued(bench) == []
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 3")
    verified = _verify(bench, vectorizer, fix=True)
    assert (_differences(verified), verified.quarantined) == ((1, 0, 0), 1)
    work_off(bench)
    verified = _verify(bench, vectorizer)
    assert (_differences(verified), verified.quarantined) == ((0, 0, 0), 1)


@pytest.mark.parametrize("options", [{}, {"into_column": "v"}], ids=["table", "column"])
def test_vectors_of_an_old_text_of_a_row_in_quarantine_are_stale(bench: Bench, options: dict[str, Any]) -> None:
    vectorizer = _right(bench, **options)
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 2")
    _quarantine(bench, vectorizer, 2)
    assert _verify(bench, vectorizer, fix=True).examples["stale"] == [["2"]]
    _assert_mended(bench, vectorizer)


# Keys and sources of any kind


@pytest.mark.usefixtures("short_ranges")
def test_keys_of_another_type_are_swept_exactly_where_orphans_lie(bench: Bench) -> None:
    bench.sql("CREATE TABLE theirs (doc text, embedding vector(8), source_hash bytea)")
    vectorizer = _right(bench, into="theirs", columns={"key": ["doc"]})
    assert not vectorizer.destination_ordered
    assert _differences(_verify(bench, vectorizer, fix=True)) == (0, 0, 0)
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'queued'") == 0
    for stray in ("007", "stray", "12.5", ""):
        bench.sql("INSERT INTO theirs SELECT %s, embedding, source_hash FROM theirs WHERE doc = '7'", stray)
    bench.sql("DELETE FROM theirs WHERE doc = '1'")
    bench.sql("DELETE FROM docs WHERE id = 2")
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 3")
    verified = _verify(bench, vectorizer, fix=True)
    assert _differences(verified) == (1, 1, 5)
    assert verified.fixed == 7
    assert _queued(bench) == ["1", "3"]
    swept = (
        "SELECT count(*) FROM theirs t WHERE EXISTS (SELECT FROM pgvec.jobs WHERE kind = 'sweep' AND state = 'queued'"
        " AND (lower_key IS NULL OR t.doc > lower_key[1]) AND (upper_key IS NULL OR t.doc <= upper_key[1]))"
    )
    assert 5 <= bench.value(swept) < bench.value("SELECT count(*) FROM theirs")
    _assert_mended(bench, vectorizer)


@pytest.mark.usefixtures("short_ranges")
@pytest.mark.parametrize("types", [("int", "int"), ("int", "bigint")], ids=["ordered", "unordered"])
def test_rows_without_a_key_are_orphaned_and_go_at_once_with_fix(bench: Bench, types: tuple[str, str]) -> None:
    """No range and no list can name them, so no job could delete them."""
    bench.sql(f"CREATE TABLE docs (a {types[0]}, b text, body text, PRIMARY KEY (a, b))")
    bench.sql("INSERT INTO docs SELECT i / 3, i, 'document ' || i FROM generate_series(1, 9) i")
    bench.sql(f"CREATE TABLE docs_vectors (a {types[1]}, b text, embedding vector(8), source_hash bytea)")
    for key in ("NULL, NULL", "1, NULL", "NULL, '1'", "99, NULL"):
        bench.sql(f"INSERT INTO docs_vectors VALUES ({key}, '[1,0,0,0,0,0,0,0]', '\\x00')")
    vectorizer = bench.enqueue("docs", "body")
    work_off(bench)
    before = bench.progress("docs").chunks
    assert _differences(_verify(bench, vectorizer)) == (0, 0, 4)
    verified = _verify(bench, vectorizer, fix=True)
    assert (verified.orphaned, verified.fixed) == (4, 4)
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'queued'") == 0
    assert _differences(_verify(bench, vectorizer)) == (0, 0, 0)
    assert (before, bench.progress("docs").chunks) == (13, 9)
    assert bench.value("SELECT count(*) FROM docs_vectors") == 9


@pytest.mark.usefixtures("short_ranges")
def test_a_view_a_template_and_several_text_columns_are_compared_as_they_are_embedded(bench: Bench) -> None:
    bench.sql("CREATE TABLE base (id int PRIMARY KEY, title text, a text, b text, other text)")
    bench.sql(
        "INSERT INTO base SELECT i, 'title ' || i, 'a ' || i, nullif('b ' || i, 'b 3') FROM generate_series(1, 8) i"
    )
    bench.sql("CREATE VIEW docs AS SELECT * FROM base")
    vectorizer = bench.enqueue("docs", "a", "b", key=["id"], template="$title: $chunk", chunk_size=64)
    bench.drain()
    assert _differences(_verify(bench, vectorizer)) == (0, 0, 0)
    bench.sql("UPDATE base SET other = 'plays no part' WHERE id = 1")
    bench.sql("UPDATE base SET title = 'another' WHERE id = 2")
    bench.sql("UPDATE base SET b = 'now' WHERE id = 3")
    assert _verify(bench, vectorizer, fix=True).examples["stale"] == [["2"], ["3"]]
    bench.drain()
    assert _differences(_verify(bench, vectorizer)) == (0, 0, 0)
    assert found(bench, vectorizer) == expected(bench, vectorizer)


@pytest.mark.usefixtures("short_ranges")
def test_a_partitioned_source_and_destination_are_compared_by_their_common_key(bench: Bench) -> None:
    bench.sql(
        "CREATE TABLE docs (region text, at timestamptz, body text, PRIMARY KEY (region, at))"
        " PARTITION BY LIST (region)"
    )
    for region in ("north", "south"):
        bench.sql(f"CREATE TABLE docs_{region} PARTITION OF docs FOR VALUES IN ('{region}')")
    bench.sql(
        "CREATE TABLE docs_vectors (region text, at timestamptz, embedding vector(8), source_hash bytea)"
        " PARTITION BY HASH (region)"
    )
    bench.sql("CREATE INDEX ON docs_vectors (region, at)")
    for i in range(2):
        bench.sql(f"CREATE TABLE vectors_{i} PARTITION OF docs_vectors FOR VALUES WITH (MODULUS 2, REMAINDER {i})")
    bench.sql(
        "INSERT INTO docs SELECT (ARRAY['north', 'south'])[1 + i %% 2], timestamptz '2024-03-31 00:00Z' + i * interval"
        " '1 hour 1 microsecond', 'document ' || i FROM generate_series(1, %s) i",
        12,
    )
    vectorizer = bench.enqueue("docs", "body")
    work_off(bench)
    assert _differences(_verify(bench, vectorizer)) == (0, 0, 0)
    bench.sql("DELETE FROM docs_vectors WHERE extract(hour FROM at AT TIME ZONE 'UTC') = 4")
    bench.sql("DELETE FROM docs WHERE extract(hour FROM at AT TIME ZONE 'UTC') = 5")
    bench.sql("INSERT INTO docs_vectors SELECT NULL, at, embedding, source_hash FROM docs_vectors LIMIT 1")
    verified = _verify(bench, vectorizer, fix=True)
    assert _differences(verified) == (1, 0, 2)
    assert verified.examples["missing"] == [["north", "2024-03-31 04:00:00.000004+00"]]
    _assert_mended(bench, vectorizer)


@pytest.mark.usefixtures("short_ranges")
def test_names_and_keys_may_be_anything(bench: Bench) -> None:
    bench.sql('CREATE TABLE "do%c s" ("ha""%sh" text, place uuid, selected text, PRIMARY KEY ("ha""%sh", place))')
    bench.sql(
        """INSERT INTO "do%c s" SELECT E'a\\\\{",%' || i, gen_random_uuid(), 'text' FROM generate_series(1, 7) i"""
    )
    vectorizer = bench.enqueue('"do%c s"', "selected", where="""s."ha""%sh" NOT LIKE '%5' -- 100 %""")
    work_off(bench)
    assert _differences(_verify(bench, vectorizer)) == (0, 0, 0)
    bench.sql("""UPDATE "do%c s" SET selected = 'other'""")
    assert _verify(bench, vectorizer, fix=True).stale == 6
    work_off(bench)
    assert _differences(_verify(bench, vectorizer)) == (0, 0, 0)


# How it goes about it


def _ranges(bench: Bench, vectorizer: Vectorizer) -> Iterator[int]:
    """The source rows of each range."""
    done = [0]
    _verify(bench, vectorizer, progress=lambda rows, _: done.append(rows))
    return (b - a for a, b in pairwise(done))


@pytest.mark.usefixtures("short_ranges")
def test_a_range_is_bounded_in_the_source_and_in_the_destination(bench: Bench) -> None:
    """A source that was emptied leaves its whole destination behind its last row."""
    vectorizer = _right(bench, 12)
    assert max(_ranges(bench, vectorizer)) == 3
    bench.sql("DELETE FROM docs WHERE id > 1")
    sizes: list[int] = []
    _verify(bench, vectorizer, fix=True, progress=lambda *_: sizes.append(len(_queued(bench))))
    assert [b - a for a, b in pairwise([0, *sizes])] == [2, 3, 3, 3, 0]
    _assert_mended(bench, vectorizer)


def test_a_list_names_a_thousand_keys_at_most_and_counts_as_one_of_live_changes(bench: Bench) -> None:
    _documents(bench, 2_500)
    vectorizer = bench.define("docs", "body").vectorizer
    verified = _verify(bench, vectorizer, fix=True)
    assert (verified.missing, verified.fixed, len(verified.examples["missing"])) == (2_500, 2_500, 5)
    lists = bench.sql("SELECT jsonb_array_length(keys), key_count, rows FROM pgvec.jobs WHERE kind = 'keys'")
    assert sum(length for length, *_ in lists) == 2_500
    assert all(length == counted <= 1_000 and rows == 0 for length, counted, rows in lists)
    assert len(lists) <= 4


@pytest.mark.usefixtures("short_ranges")
def test_a_change_between_two_ranges_is_seen_in_both_tables_or_in_neither(bench: Bench) -> None:
    """Source and destination of a range are read in one snapshot; so what one transaction changes never shows."""
    vectorizer = _right(bench)
    with bench.database.connect("user") as user:

        def change(*_: int) -> None:
            with user.transaction():
                user.execute("UPDATE docs SET body = body || ' more'")
                user.execute(
                    "UPDATE docs_vectors d SET source_hash = pgvec.source_hash(s.body) FROM docs s WHERE s.id = d.id"
                )

        assert _differences(_verify(bench, vectorizer, progress=change)) == (0, 0, 0)


def test_no_transaction_stays_open_between_ranges_and_without_fix_nothing_may_be_written(bench: Bench) -> None:
    _documents(bench)
    vectorizer = bench.define("docs", "body").vectorizer
    states: list[Any] = []
    look = "SELECT state FROM pg_stat_activity WHERE pid = %s"
    with bench.database.connect("user") as user, bench.database.connect("verify") as connection:
        connection.execute("SET default_transaction_read_only = on")

        def progress(*_: int) -> None:
            states.append(user.execute(look, (connection.info.backend_pid,)).fetchone())

        verified = verifying.verify(connection, bench.fragments(vectorizer), progress=progress)
    assert verified.missing == 10
    assert set(states) == {("idle",)}


@pytest.mark.usefixtures("short_ranges")
def test_an_interrupted_fix_has_queued_whole_ranges_and_the_next_one_the_rest(bench: Bench) -> None:
    _documents(bench)
    vectorizer = bench.define("docs", "body").vectorizer

    def interrupt(rows: int, _: int) -> None:
        if rows == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _verify(bench, vectorizer, fix=True, progress=interrupt)
    assert _queued(bench) == ["1", "2", "3", "4", "5", "6"]
    work_off(bench)
    assert _verify(bench, vectorizer, fix=True).missing == 4
    assert len(_queued(bench)) == 4
    _assert_mended(bench, vectorizer)


@pytest.mark.usefixtures("short_ranges")
def test_a_vectorizer_that_is_dropped_meanwhile_gets_no_job(bench: Bench) -> None:
    _documents(bench)
    vectorizer = bench.define("docs", "body").vectorizer

    def drop(*_: int) -> None:
        bench.sql("DELETE FROM pgvec.vectorizers")
        bench.sql("DELETE FROM pgvec.jobs")

    with pytest.raises(PgvecError, match="was dropped meanwhile"):
        _verify(bench, vectorizer, fix=True, progress=drop)
    assert bench.value("SELECT count(*) FROM pgvec.jobs") == 0
    with pytest.raises(PgvecError, match="was dropped meanwhile"):
        _verify(bench, vectorizer)


@pytest.mark.usefixtures("short_ranges")
@pytest.mark.parametrize("options", [{}, {"into_column": "v"}], ids=["table", "column"])
def test_rows_that_a_limit_left_for_later_are_not_missing(bench: Bench, options: dict[str, Any]) -> None:
    _documents(bench)
    vectorizer = bench.enqueue("docs", "body", limit=4, **options)
    work_off(bench)
    assert _differences(_verify(bench, vectorizer, fix=True)) == (0, 0, 0)
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 4")
    if options:
        bench.sql("UPDATE docs SET v = NULL WHERE id = 1")
        bench.sql("UPDATE docs SET v = (SELECT v FROM docs WHERE id = 2), body = NULL WHERE id = 9")
    else:
        bench.sql("DELETE FROM docs_vectors WHERE id = 1")
        held = "chunk_index, chunk, embedding, source_hash"
        bench.sql(f"INSERT INTO docs_vectors (id, {held}) SELECT 99, {held} FROM docs_vectors WHERE id = 2")
    assert _differences(_verify(bench, vectorizer, fix=True)) == (1, 1, 1)
    work_off(bench)
    assert _differences(_verify(bench, vectorizer)) == (0, 0, 0)
    count = "SELECT count(v) FROM docs" if options else "SELECT count(*) FROM docs_vectors"
    assert bench.value(count) == 4


def test_jobs_that_are_unfinished_at_the_start_are_counted(bench: Bench) -> None:
    _documents(bench)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=4)
    bench.claim(bench.register())
    verified = _verify(bench, vectorizer)
    assert (verified.unfinished_jobs, verified.missing) == (3, 10)
    bench.sql("UPDATE pgvec.jobs SET state = 'done'")
    assert _verify(bench, vectorizer).unfinished_jobs == 0


# Random damage

KINDS: dict[str, dict[str, Any]] = {
    "table": {"chunk_size": 8},
    "column": {"into_column": "v"},
    "unordered": {"into": "theirs", "columns": {"key": ["x", "y"]}},
}
KEY = st.tuples(st.integers(-2, 2), st.sampled_from(["", "a", "B", 'ä,"{}\\']))
TEXT = st.one_of(st.none(), st.just(" \n"), st.integers(1, 30).map(lambda n: "some words. " * n))
DAMAGE = st.sampled_from(["text", "row", "chunks", "hash", "first", "stray", "kind"])


@pytest.mark.parametrize("kind", KINDS)
@given(
    rows=st.dictionaries(KEY, TEXT, min_size=1, max_size=15), damage=st.lists(st.tuples(DAMAGE, KEY, TEXT), max_size=8)
)
@many
@pytest.mark.usefixtures("short_ranges")
def test_random_damage_is_found_exactly_and_gone_after_a_fix(
    bench: Bench,
    kind: str,
    rows: dict[tuple[int, str], str | None],
    damage: list[tuple[str, tuple[int, str], str | None]],
) -> None:
    bench.sql("DROP TABLE IF EXISTS docs, docs_vectors, theirs; TRUNCATE pgvec.vectorizers, pgvec.jobs, pgvec.counters")
    bench.sql("CREATE TABLE docs (a int, b text, body text, kind text DEFAULT 'a', PRIMARY KEY (a, b))")
    bench.sql("CREATE TABLE theirs (x bigint, y text, chunk_index int, embedding vector(8), source_hash bytea)")
    for (a, b), text in rows.items():
        bench.sql("INSERT INTO docs VALUES (%s, %s, %s)", a, b, text)
    vectorizer = bench.enqueue("docs", "body", where="kind = 'a'", **KINDS[kind])
    work_off(bench, 100)
    for what, key, text in damage:
        _damage(bench, kind, what, key, text)
    wanted = _by_hand(bench, vectorizer)
    verified = _verify(bench, vectorizer, fix=True)
    assert _differences(verified) == tuple(len(keys) for keys in wanted)
    listed = {":".join(key) for keys in wanted[: 2 if kind == "unordered" else 3] for key in keys}
    assert _queued(bench) == sorted(listed)
    assert verified.fixed == verified.differences
    _assert_mended(bench, vectorizer)


def _damage(bench: Bench, kind: str, what: str, key: tuple[int, str], text: str | None) -> None:
    table, a, b = {
        "table": ("docs_vectors", "a", "b"),
        "column": ("docs", "a", "b"),
        "unordered": ("theirs", "x", "y"),
    }[kind]
    hash_, vector = ("v_hash", "v") if kind == "column" else ("source_hash", "embedding")
    of_key = f"WHERE ({a}, {b}) = (%s, %s)"
    if what == "text":
        bench.sql(
            "INSERT INTO docs VALUES (%s, %s, %s) ON CONFLICT (a, b) DO UPDATE SET body = excluded.body", *key, text
        )
    elif what == "row":
        bench.sql("DELETE FROM docs WHERE (a, b) = (%s, %s)", *key)
    elif what == "kind":
        bench.sql("UPDATE docs SET kind = 'b' WHERE (a, b) = (%s, %s)", *key)
    elif what == "hash":
        bench.sql(f"UPDATE {table} SET {hash_} = '\\x00' {of_key}", *key)
    elif kind == "column":
        bench.sql(f"UPDATE docs SET {vector} = NULL {of_key}", *key)
    elif what == "stray":
        bench.sql(
            f"INSERT INTO {table} ({a}, {b}, chunk_index, {'chunk, ' if kind == 'table' else ''}embedding, source_hash)"
            f" SELECT %s, %s, coalesce((SELECT max(chunk_index) + 2 FROM {table} {of_key}), 0),"
            f" {chr(39) * 2 + ', ' if kind == 'table' else ''}'[1,0,0,0,0,0,0,0]', '\\x00'",
            *key,
            *key,
        )
    else:
        bench.sql(f"DELETE FROM {table} {of_key}{' AND chunk_index = 0' if what == 'first' else ''}", *key)


Found = set[tuple[str, ...]]


def _by_hand(bench: Bench, vectorizer: Vectorizer) -> tuple[Found, Found, list[tuple[str, ...]]]:
    """Missing rows, stale rows, and a key per orphaned chunk, worked out here."""
    wanted: dict[tuple[str, ...], bytes] = {
        (a, b): bytes(hash_)
        for a, b, body, hash_ in bench.sql(
            "SELECT a::text, b, body, substring(sha256(convert_to(body, 'UTF8')) FOR 16) FROM docs WHERE kind = 'a'"
        )
        if body is not None and body.strip()
    }
    held: dict[tuple[str, ...], list[tuple[bytes, int]]] = {}
    if vectorizer.into_column:
        query = "SELECT a::text, b, v_hash, 0 FROM docs WHERE v IS NOT NULL"
    else:
        keys = "x::text, y" if vectorizer.destination_table == "theirs" else "a::text, b"
        query = f"SELECT {keys}, source_hash, chunk_index FROM {vectorizer.destination_table}"
    for a, b, hash_, index in bench.sql(query):
        held.setdefault((a, b), []).append((bytes(hash_), index))
    missing = {key for key in wanted if key not in held}
    stale = {
        key
        for key, hash_ in wanted.items()
        if key in held and sorted(held[key]) != [(hash_, i) for i in range(len(held[key]))]
    }
    if vectorizer.chunk_size is None:
        stale |= {key for key in wanted if len(held.get(key, ())) > 1}
    return missing, stale, [key for key, chunks in held.items() for _ in chunks if key not in wanted]


# The command line


@pytest.fixture
def pgvec(bench: Bench, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)
    return cli


def test_the_command_says_what_differs_and_what_to_do(bench: Bench, pgvec: CommandLine) -> None:
    vectorizer = _right(bench)
    ran = pgvec("verify", "docs")
    line = r"docs: 10 rows compared in \d+\.\d s: 0 missing, 0 stale, 0 orphaned chunks, 0 in quarantine\n"
    assert re.fullmatch(line, ran.out)
    assert (ran.code, ran.err) == (0, "")
    bench.sql("DELETE FROM docs_vectors WHERE id <= 7")
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 8")
    ran = pgvec("verify", "docs")
    assert ran.out.endswith(" s: 7 missing, 1 stale, 0 orphaned chunks, 0 in quarantine\n")
    assert ran.code == 1
    assert ran.err.splitlines() == [
        "pgvec: missing: 1; 2; 3; 4; 5; …",
        "pgvec: stale: 8",
        "pgvec: 8 differences in docs; `pgvec verify docs --fix` queues what is wrong",
    ]
    ran = pgvec("verify", "docs", "--fix")
    assert ran.code == 0
    assert ran.err.splitlines()[-1] == "pgvec: 8 differences queued; `pgvec work` makes them right"
    ran = pgvec("verify", "docs")
    assert ran.code == 1
    assert "pgvec: 1 job is unfinished: the figures include what is still queued" in ran.err.splitlines()
    _assert_mended(bench, vectorizer)
    assert pgvec("verify", "docs").code == 0


@pytest.mark.usefixtures("short_ranges")
def test_orphaned_chunks_are_counted_with_their_rows_and_only_keys_left_out_are_hinted_at(
    bench: Bench, pgvec: CommandLine
) -> None:
    _right(bench)
    extra = "INSERT INTO docs_vectors (id, chunk_index, chunk, embedding, source_hash)"
    bench.sql(f"{extra} SELECT id, i, chunk, embedding, source_hash FROM docs_vectors, generate_series(1, 3) i")
    bench.sql("DELETE FROM docs WHERE id IN (5, 6, 7)")
    ran = pgvec("verify", "docs")
    assert " 12 orphaned chunks of 3 rows, " in ran.out
    assert "pgvec: orphaned: 5; 6; 7" in ran.err.splitlines()
    assert json.loads(pgvec("verify", "docs", "--json").out)["orphaned"] == 12
    bench.sql("DELETE FROM docs WHERE id IN (3, 8, 9)")
    ran = pgvec("verify", "docs")
    assert " 24 orphaned chunks of 6 rows, " in ran.out
    assert "pgvec: orphaned: 3; 5; 6; 7; 8; …" in ran.err.splitlines()


def test_an_orphaned_vector_of_a_column_is_called_so(bench: Bench, pgvec: CommandLine) -> None:
    _right(bench, into_column="v", chunk_size=None)
    bench.sql("UPDATE docs SET body = ' ' WHERE id = 4")
    assert " 1 orphaned vector, " in pgvec("verify", "docs").out


def test_json_is_one_object_with_the_numbers_and_examples(bench: Bench, pgvec: CommandLine) -> None:
    bench.sql("CREATE TABLE docs_vectors (id int, embedding vector(8))")
    _documents(bench)
    bench.define("docs", "body")
    bench.sql("INSERT INTO docs_vectors SELECT i, '[1,0,0,0,0,0,0,0]' FROM generate_series(2, 11) i")
    ran = pgvec("verify", "docs", "--json", "--fix")
    answer = json.loads(ran.out)
    assert answer.pop("seconds") >= 0
    assert answer == {
        "name": "docs",
        "rows": 10,
        "missing": 1,
        "stale": None,
        "orphaned": 1,
        "quarantined": 0,
        "unfinished_jobs": 0,
        "fixed": 2,
        "examples": {"missing": [["1"]], "stale": [], "orphaned": [["11"]]},
    }
    assert "public.docs_vectors has no column for the hash of a text" in ran.err
    assert ran.code == 0
    assert "stale unknown" not in ran.out
    assert "1 missing, unknown stale, 1 orphaned chunk of 1 row, " in pgvec("verify", "docs").out


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("DROP TABLE docs_vectors", 'relation "public.docs_vectors" does not exist'),
        ("ALTER TABLE docs RENAME body TO text", "column s.body does not exist"),
        ("DROP TABLE docs", 'relation "public.docs" does not exist'),
    ],
    ids=["destination", "column", "source"],
)
def test_what_is_gone_is_one_line(bench: Bench, pgvec: CommandLine, broken: str, reason: str) -> None:
    _right(bench)
    bench.sql(broken)
    assert pgvec.refused("verify", "docs") == f"the database refused: {reason}"


def test_a_right_that_lacks_is_one_line_and_reading_is_enough_without_fix(
    bench: Bench, pgvec: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _right(bench)
    bench.sql("DELETE FROM docs_vectors WHERE id = 1")
    role = bench.value("SELECT 'reader_' || current_database()")
    bench.sql(f'CREATE ROLE "{role}" LOGIN')
    try:
        bench.sql(
            f'GRANT USAGE ON SCHEMA pgvec TO "{role}"; GRANT SELECT ON ALL TABLES IN SCHEMA pgvec, public TO "{role}"'
        )
        monkeypatch.setenv(
            "PGVEC_DSN", bench.dsn.replace("postgres@", f"{role}@", 1).replace("user=postgres", f"user={role}")
        )
        assert "1 missing" in pgvec("verify", "docs").out
        assert (
            pgvec.refused("verify", "docs", "--fix")
            == "the database refused: permission denied for table jobs; a member of pgvec_enqueuer may (docs/roles.md)"
        )
        bench.sql(f'REVOKE SELECT ON docs_vectors FROM "{role}"')
        assert pgvec.refused("verify", "docs") == "the database refused: permission denied for table docs_vectors"
    finally:
        bench.sql(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


def test_keys_that_a_list_names_are_the_source_s_own_text(bench: Bench) -> None:
    """As a session with other settings would not write them."""
    bench.sql(
        "CREATE TABLE docs (at date, body text, PRIMARY KEY (at)); INSERT INTO docs VALUES ('2024-01-02', 'text')"
    )
    vectorizer = bench.define("docs", "body").vectorizer
    bench.sql("SET DateStyle = 'German'")
    _verify(bench, vectorizer, fix=True)
    assert bench.sql("SELECT keys FROM pgvec.jobs") == [([["2024-01-02"]],)]
    _assert_mended(bench, vectorizer)
