"""Destinations in 16 partitions: writing, searching, indexing; as vector and as halfvec."""

from __future__ import annotations

import json
import re
import signal
import threading
from typing import Any

import psycopg
import pytest

from pgvec_queue import (
    index_building,
    index_room,
    index_statements,
    model_migration,
    model_migration_begin,
    model_migration_end,
    recall,
    vector_index,
    vectorizer,
    verify,
)
from pgvec_queue.database import statement, versions
from pgvec_queue.errors import DefinitionError
from pgvec_queue.index_room import Room
from pgvec_queue.index_statements import BuildStoppedError, Step
from pgvec_queue.vector_index import IndexRefusedError
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker import Outcome
from tests.commandline import CommandLine
from tests.support import Bench, pgvec
from tests.waiting import wait_until

PARTITIONS = 16
LEAVES = "SELECT relid::regclass::text FROM pg_partition_tree('docs_vectors') WHERE isleaf ORDER BY 1"
INDEXES = (
    "SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam"
    " WHERE a.amname = 'hnsw' AND c.relkind = 'i'"
)
VALID = f"{INDEXES} AND i.indisvalid"
HERE = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
BUILDING = "SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database()"


def _fill(bench: Bench, rows: int) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, {rows}) i")


def _loaded(bench: Bench, rows: int = 400, **options: Any) -> Vectorizer:
    _fill(bench, rows)
    one = bench.enqueue("docs", "body", partitions=PARTITIONS, rows_per_job=100, **options)
    assert bench.drain() is Outcome.COMPLETE
    return one


def _is_right(bench: Bench, one: Vectorizer) -> bool:
    return not any(bench.wrong(one).values())


class _Attendant:
    """Attends to a build of the test's own; ends it after so many partitions."""

    def __init__(self, most: int = 10_000) -> None:
        self.most = most
        self.begun: list[tuple[str, Room, Step]] = []
        self.done: list[int] = []

    def stopped(self) -> bool:
        return len(self.done) >= self.most

    def waits(self, what: str | None) -> None:
        """Nobody asks."""

    def begins(self, index: str, given: Room, step: Step) -> None:
        self.begun.append((index, given, step))

    def built(self, step: Step) -> None:
        self.done.append(step.number)

    def goes_on(self, backend: int) -> None:
        """Nobody asks."""


def _build(bench: Bench, one: Vectorizer, attendant: _Attendant, **changes: Any) -> index_building.Built:
    wish = vector_index.Wish(**{"m": 16, "ef_construction": 64, "store": vector_index.default_store(one), **changes})
    with bench.database.connect("test") as connection:
        return index_building.build(connection, one, wish, versions(connection).vector_schema, attendant)


# Made


@pytest.mark.parametrize("store", ["vector", "halfvec"])
def test_a_destination_is_made_with_partitions_that_are_stored_as_one_table_is(bench: Bench, store: str) -> None:
    _fill(bench, 1)
    one = bench.define("docs", "body", partitions=PARTITIONS, store=store).vectorizer
    assert one.partitions == PARTITIONS
    leaves = [name for (name,) in bench.sql(LEAVES)]
    assert leaves == [f"docs_vectors_p{number:02}" for number in range(PARTITIONS)]
    assert bench.value("SELECT pg_get_partkeydef('docs_vectors'::regclass)") == "HASH (id)"
    assert bench.sql(
        "SELECT DISTINCT reloptions FROM pg_class WHERE oid IN (SELECT relid FROM pg_partition_tree('docs_vectors')"
        " WHERE isleaf)"
    ) == [(["toast_tuple_target=8160"],)]
    with pytest.raises(psycopg.errors.UniqueViolation):
        bench.sql(
            "INSERT INTO docs_vectors (id, chunk_index, chunk, embedding, source_hash)"
            " SELECT 1, 0, '', array_fill(1, ARRAY[8])::real[], '' FROM generate_series(1, 2)"
        )


def test_a_key_of_several_columns_and_a_chunk_id(bench: Bench) -> None:
    bench.sql('CREATE TABLE docs (lang text COLLATE "C", id uuid, body text, PRIMARY KEY (lang, id))')
    bench.sql("INSERT INTO docs SELECT 'l' || i % 3, gen_random_uuid(), 'text ' || i FROM generate_series(1, 50) i")
    bench.enqueue("docs", "body", partitions=3, columns={"chunk_id": ["chunk_id"]})
    assert bench.drain() is Outcome.COMPLETE
    assert bench.value("SELECT pg_get_partkeydef('docs_vectors'::regclass)") == "HASH (lang, id)"
    assert bench.value("SELECT count(DISTINCT chunk_id) FROM docs_vectors") == 50
    assert bench.value("SELECT count(DISTINCT tableoid) FROM docs_vectors") == 3
    with bench.connection.transaction():
        bench.sql("SET LOCAL enable_seqscan = off")
        plan = bench.sql("EXPLAIN SELECT FROM docs_vectors WHERE chunk_id = 'x'")
    assert any("chunk_id_idx" in line for (line,) in plan), "a chunk is found by its id"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"into": "there", "partitions": 4}, "public.there exists, and stays as it is; leave --partitions out"),
        ({"into_column": "vector", "partitions": 4}, "--into-column vector keeps the vectors in public.docs"),
        ({"into": "a" * 60, "partitions": 4}, "a partition's name '" + "a" * 60 + "_p03' is longer than 63 bytes"),
        ({"source": "prices", "partitions": 4}, "the key price (money) has no hash to partition by"),
        ({"adopt": True, "partitions": 4}, "public.docs_vectors does not exist"),
    ],
)
def test_what_cannot_be_partitioned_is_refused(bench: Bench, options: dict[str, Any], said: str) -> None:
    _fill(bench, 1)
    bench.sql("CREATE TABLE there (id bigint, embedding vector(8))")
    bench.sql("CREATE TABLE prices (price money PRIMARY KEY, body text)")
    source = options.pop("source", "docs")
    with pytest.raises(DefinitionError) as refused:
        bench.define(source, "body", **options)
    assert said in str(refused.value)
    assert bench.sql("SELECT FROM pgvec.vectorizers") == []


def test_another_number_of_partitions_is_refused_and_none_keeps_it(bench: Bench) -> None:
    _fill(bench, 1)
    bench.define("docs", "body", partitions=4)
    bench.define("docs", "body")
    assert bench.define("docs").vectorizer.partitions == 4
    for options in ({}, {"text": ("body",)}):
        with pytest.raises(DefinitionError) as refused:
            bench.define("docs", *options.get("text", ()), partitions=8)
        assert "--partitions was 4, now it is 8" in str(refused.value)
        assert "pgvec migrate-model docs --partitions 8" in str(refused.value)
    bench.define("docs", "body", name="one", into="one", partitions=1)
    assert bench.define("docs", name="one", partitions=1).vectorizer.partitions is None
    with pytest.raises(DefinitionError, match="--partitions was 1, now it is 4"):
        bench.define("docs", name="one", partitions=4)


# Written


@pytest.mark.parametrize("store", ["vector", "halfvec"])
def test_rows_are_spread_updated_and_deleted(bench: Bench, store: str) -> None:
    one = _loaded(bench, 800, store=store, sync=True)
    assert _is_right(bench, one)
    rows = [count for (count,) in bench.sql("SELECT count(*) FROM docs_vectors GROUP BY tableoid")]
    assert len(rows) == PARTITIONS
    assert max(rows) < 2 * min(rows)
    bench.sql("UPDATE docs SET body = body || ' changed' WHERE id % 3 = 0")
    bench.sql("DELETE FROM docs WHERE id % 5 = 0")
    bench.sql("UPDATE docs SET id = id + 10000 WHERE id % 7 = 0")
    bench.sql("INSERT INTO docs SELECT i, 'late ' || i FROM generate_series(2001, 2100) i")
    assert bench.drain() is Outcome.COMPLETE
    assert _is_right(bench, one)
    assert bench.value("SELECT count(*) FROM docs_vectors") == bench.value("SELECT count(*) FROM docs")
    # Behind the triggers' back, a range makes it right.
    bench.sql("ALTER TABLE docs DISABLE TRIGGER USER")
    bench.sql("UPDATE docs SET body = 'unheard' WHERE id % 11 = 0")
    bench.sql("DELETE FROM docs WHERE id % 13 = 0")
    bench.enqueue("docs")
    assert bench.drain() is Outcome.COMPLETE
    assert _is_right(bench, one)


def _plans(bench: Bench, one: Vectorizer, *names: tuple[str, str]) -> dict[str, str]:
    """What the server makes of statements over a slice, as a worker runs them."""
    fragments = bench.fragments(one)
    keys = [(str(key),) for key in range(1, 41)]
    parts: dict[str, Any] = {
        "listed": fragments.listed(),
        "listed_is_destination": fragments.listed_is("d"),
        "listed_is_source": fragments.listed_is("s"),
        "destination_scope": fragments.bounds("d", lower=True, upper=True),
        "made_here": fragments.made_here,
        "scope": fragments.bounds("s", lower=True, upper=True),
    }
    values = {
        **fragments.key_lists(keys),
        "lower": ["0"],
        "upper": ["40"],
        "most": 1000,
        "rows": 1000,
        "bytes": 1 << 20,
        "max_bytes": 1 << 20,
        "count": True,
    }
    found = {}
    with bench.connection.transaction(force_rollback=True):
        bench.connection.execute(statement("reading", "local_settings"), {"joins": "off"})
        for file, name in names:
            query = fragments.compose(file, name, **parts)
            text = b"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) " + query.as_bytes(bench.connection)
            found[name] = "\n".join(line for (line,) in bench.connection.execute(text, values))
    return found


def test_a_key_is_looked_up_in_its_partition_alone(bench: Bench) -> None:
    """Else a slice would look up each of its keys in all of them."""
    one = _loaded(bench)
    bench.sql("ANALYZE docs_vectors")
    plans = _plans(
        bench,
        one,
        ("writing", "delete_listed"),
        ("reading", "read_range"),
        ("reading", "old_chunks"),
        ("reading", "read_keys"),
    )
    for name, plan in plans.items():
        assert "Seq Scan on docs_vectors" not in plan, name
        loops = [
            int(line.rpartition("loops=")[2].rstrip(")"))
            for line in plan.splitlines()
            if "docs_vectors_p" in line and "Scan" in line and "loops=" in line
        ]
        assert 0 < sum(loops) <= 3 * 40, f"{name}: {plan}"


# Searched


@pytest.mark.parametrize("store", ["vector", "halfvec"])
def test_a_search_goes_through_the_index_of_each_partition(bench: Bench, store: str) -> None:
    one = _loaded(bench, 1_600, model="hashing-32", store=store, index=True)
    search = "SELECT key FROM pgvec.search(1, %s::real[], max_hits => 50, exact => {})"
    scans = "SELECT count(*) FROM pg_class WHERE relkind = 'i' AND relname ~ '_hnsw_'"
    scans += " AND pg_stat_get_xact_numscans(oid) > 0"
    found = 0
    for number in range(5):
        query = bench.value("SELECT embedding::real[] FROM docs_vectors WHERE id = %s", number * 97 + 1)
        with bench.connection.transaction():
            bench.sql("SET LOCAL enable_seqscan = off")
            through = bench.sql(search.format("false"), query)
            assert bench.value(scans) == PARTITIONS
        exact = bench.sql(search.format("true"), query)
        assert through[0] == exact[0] == ([str(number * 97 + 1)],)
        assert len(through) == 50
        found += len({key[0] for (key,) in through} & {key[0] for (key,) in exact})
    assert found >= 0.98 * 5 * 50
    assert one.partitions == PARTITIONS


def test_vectors_that_are_too_long_for_an_index_are_searched_as_halfvec(bench: Bench) -> None:
    _fill(bench, 80)
    bench.enqueue("docs", "body", partitions=4, model="hashing-2001", index=True)
    assert bench.drain() is Outcome.COMPLETE
    there = bench.progress("docs").index
    assert there is not None
    assert (there["state"], there["store"], there["partitions_built"], there["recall"]) == ("built", "halfvec", 4, 1.0)


def test_half_an_index_is_searched_through_and_finds_all(bench: Bench) -> None:
    one = _loaded(bench, 400, model="hashing-32")
    with pytest.raises(BuildStoppedError):
        _build(bench, one, _Attendant(most=7))
    search = (
        "SELECT key, score FROM pgvec.search(1, (SELECT embedding::real[] FROM docs_vectors WHERE id = 1), exact => {})"
    )
    with bench.connection.transaction():
        bench.sql("SET LOCAL enable_seqscan = off")
        assert bench.sql(search.format("false")) == bench.sql(search.format("true"))


def test_pages_through_partitions_fit_together(bench: Bench) -> None:
    _loaded(bench, 400, model="hashing-32", index=True)
    query = bench.value("SELECT embedding::real[] FROM docs_vectors WHERE id = 1")
    page = "SELECT key FROM pgvec.search(1, %s::real[], max_hits => %s, skip => %s)"
    with bench.connection.transaction():
        bench.sql("SET LOCAL enable_seqscan = off")
        whole = bench.sql(page, query, 60, 0)
        pages = [row for skip in range(0, 60, 10) for row in bench.sql(page, query, 10, skip)]
    assert pages == whole
    assert len({key[0] for (key,) in whole}) == 60


# Indexed


def test_a_worker_builds_partition_by_partition(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_READ_WHOLE", 100)  # of more, vectors are sampled from some pages
    _loaded(bench, 800, model="hashing-32", index=True)
    there = bench.progress("docs").index
    assert there is not None
    assert (there["state"], there["reason"], there["partitions"], there["partitions_built"]) == ("built", None, 16, 16)
    assert there["recall"] > 0.95
    assert there["size_bytes"] == bench.value(
        "SELECT sum(pg_relation_size(indexrelid)) FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
        " JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw'"
    )
    assert bench.value(VALID) == PARTITIONS
    (name, kind, valid) = bench.sql(
        "SELECT c.relname, c.relkind::text, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw' AND i.indrelid = 'docs_vectors'::regclass"
    )[0]
    assert (f"public.{name}", kind, valid) == (there["name"], "I", True)


def test_a_build_that_is_stopped_goes_on_where_it_was(bench: Bench) -> None:
    one = _loaded(bench)
    with pytest.raises(BuildStoppedError):
        _build(bench, one, _Attendant(most=5))
    before = set(
        bench.sql("SELECT indexrelid FROM pg_index i JOIN pg_class c ON c.oid = indexrelid WHERE relname ~ '_hnsw_'")
    )
    assert bench.value(VALID) == 5
    vector_index.want(bench.connection, one, vector_index.default_wish(one))
    now = bench.progress("docs").index
    assert now is not None
    assert (now["state"], now["partitions"], now["partitions_built"]) == ("wanted", 16, 5)
    attendant = _Attendant()
    assert _build(bench, one, attendant).index.valid
    assert attendant.done == [*range(6, 17)]
    assert before < set(bench.sql("SELECT indexrelid FROM pg_index"))
    assert bench.value(VALID) == PARTITIONS


def test_what_a_killed_worker_has_built_is_kept(bench: Bench) -> None:
    one = _loaded(bench)
    half = f"SELECT ({VALID}) >= 3"
    with psycopg.connect(bench.dsn) as other:
        # A partition that somebody writes to holds its build up, and a worker dies while it waits.
        other.execute("LOCK docs_vectors_p03 IN ROW EXCLUSIVE MODE")
        vector_index.want(bench.connection, one, vector_index.default_wish(one))
        vector_index.queue(bench.connection, one)
        process = pgvec("work", "--lease", "1", dsn=bench.dsn)
        try:
            wait_until(lambda: bench.value(half) and bench.sql(f"{BUILDING} AND phase LIKE 'waiting%'"), 30)
            now = bench.progress("docs").index
            assert now is not None
            assert (now["state"], now["partitions_built"]) == ("building", 3)
            assert 3 / 16 <= now["share"] < 4 / 16
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        bench.sql(BUILDING.replace("SELECT pid", "SELECT pg_terminate_backend(pid)"))
        wait_until(lambda: not bench.sql(BUILDING), what="the end of the build")
        other.rollback()
    kept = set(bench.sql(VALID.replace("count(*)", "c.oid")))
    assert (len(kept), bench.value(INDEXES), bench.value(VALID)) == (3, 4, 3)
    assert bench.drain(lease=1.0) is Outcome.COMPLETE
    assert (bench.value(INDEXES), bench.value(VALID)) == (PARTITIONS, PARTITIONS)
    assert kept < set(bench.sql(VALID.replace("count(*)", "c.oid")))
    assert bench.value("SELECT attempts FROM pgvec.jobs WHERE kind = 'index'") == 0, "what was done since counts"


def test_another_definition_takes_the_place_of_the_old_one(bench: Bench) -> None:
    one = _loaded(bench)
    _build(bench, one, _Attendant())
    with pytest.raises(BuildStoppedError):
        _build(bench, one, _Attendant(most=4), m=8, ef_construction=32)
    assert bench.value(VALID) == PARTITIONS + 4, "the old one serves meanwhile"
    with pytest.raises(BuildStoppedError):
        _build(bench, one, _Attendant(most=2), m=12)
    assert bench.value(VALID) == PARTITIONS + 2, "what was begun for nothing is gone"
    built = _build(bench, one, _Attendant(), m=12)
    assert (built.index.m, bench.value(VALID)) == (12, PARTITIONS)
    options = bench.sql("SELECT DISTINCT reloptions FROM pg_class WHERE relname ~ '_hnsw_' AND relkind = 'i'")
    assert options == [(["m=12", "ef_construction=64"],)]


def test_the_old_index_is_dropped_when_nobody_uses_it(bench: Bench) -> None:
    one = _loaded(bench, 50)
    _build(bench, one, _Attendant())
    with psycopg.connect(bench.dsn) as other:
        other.execute("SELECT FROM docs_vectors_p07")

        class Waiting(_Attendant):
            def waits(self, what: str | None) -> None:
                if what is not None and "in use" in what:
                    other.rollback()

        assert _build(bench, one, Waiting(), m=8).index.m == 8
    assert bench.value(VALID) == PARTITIONS


def test_the_old_index_goes_with_the_next_build_where_one_has_ended_while_it_waited(bench: Bench) -> None:
    one = _loaded(bench, 50)
    _build(bench, one, _Attendant())
    vector_index.want(bench.connection, one, vector_index.Wish(8, 32, "vector"))
    vector_index.note_begun(bench.connection, one)
    with psycopg.connect(bench.dsn) as other:
        other.execute("SELECT FROM docs_vectors_p07")

        class Stopping(_Attendant):
            def waits(self, what: str | None) -> None:
                if what is not None and "in use" in what:
                    now = bench.progress("docs").index
                    assert now is not None
                    assert (now["state"], now["partitions_built"]) == ("building", PARTITIONS), "of the new one"
                    self.most = 0

        with pytest.raises(BuildStoppedError):
            _build(bench, one, Stopping(), m=8, ef_construction=32)
    assert bench.value(VALID) == 2 * PARTITIONS
    assert _build(bench, one, _Attendant(), m=8, ef_construction=32).index.m == 8
    assert bench.value(VALID) == PARTITIONS


def test_a_lock_on_all_partitions_is_tried_for_shortly_and_ever_more_seldom(bench: Bench) -> None:
    """Readers that leave one after the other would hold up a search behind the drop for as long as there are some."""
    one = _loaded(bench, 50)
    built = _build(bench, one, _Attendant())
    holders = {f"docs_vectors_p{number:02}": psycopg.connect(bench.dsn) for number in range(PARTITIONS)}
    for name, holder in holders.items():
        holder.execute(f"SELECT FROM {name}")
    gave_up = threading.Event()

    class Waiting(_Attendant):
        def waits(self, what: str | None) -> None:
            if what is not None:
                gave_up.set()

    def leave() -> None:
        waited = (
            "SELECT relation::regclass::text FROM pg_locks"
            f" WHERE {HERE} AND NOT granted AND mode = 'AccessExclusiveLock'"
        )
        with psycopg.connect(bench.dsn, autocommit=True) as looking:
            while not gave_up.is_set() and any(not holder.closed for holder in holders.values()):
                for (name,) in looking.execute(f"{waited} AND clock_timestamp() - waitstart > '20 ms'"):
                    holders[name].close()
        for holder in holders.values():
            holder.close()

    leaving = threading.Thread(target=leave)
    leaving.start()
    with bench.database.connect("test") as connection:
        index_building.remove(connection, vector_index.target(connection, one), built.index.label, Waiting())
    assert gave_up.is_set(), "it waited for all of them in one go"
    leaving.join()
    assert bench.value(INDEXES) == 0
    for (seconds, pausing), _ in zip(index_statements.tries(), range(20), strict=False):
        assert seconds <= 0.8
        assert seconds <= pausing / 20
    assert pausing >= 30


def test_autovacuum_makes_room_for_the_drop_of_an_index(bench: Bench) -> None:
    """It gives way to whoever has waited for deadlock_timeout, which nobody does who others wait behind."""
    one = _loaded(bench, 50)
    built = _build(bench, one, _Attendant())
    with bench.database.connect("test") as connection, psycopg.connect(bench.dsn) as vacuum:
        vacuum.execute("LOCK docs_vectors_p03 IN SHARE UPDATE EXCLUSIVE MODE")
        waiting = threading.Thread(
            target=index_building.remove,
            args=[connection, vector_index.target(connection, one), built.index.label, _Attendant()],
        )
        waiting.start()
        gentle = f"SELECT FROM pg_locks WHERE {HERE} AND NOT granted AND mode = 'ShareUpdateExclusiveLock'"
        wait_until(lambda: bench.sql(gentle), what="a wait that is in nobody's way")
        assert bench.value("SELECT count(*) FROM docs_vectors") == 50
        vacuum.rollback()
        waiting.join(30)
    assert bench.value(INDEXES) == 0


@pytest.mark.parametrize("how", ["ALTER TABLE docs_vectors DETACH PARTITION {}", "DROP TABLE {}"])
@pytest.mark.parametrize("which", ["docs_vectors_p00", "docs_vectors_p15"])
def test_a_partition_that_leaves_during_a_build_does_not_end_it(bench: Bench, how: str, which: str) -> None:
    one = _loaded(bench, 50)

    class Leaving(_Attendant):
        def begins(self, index: str, given: Room, step: Step) -> None:
            super().begins(index, given, step)
            if step.number == (1 if which.endswith("00") else PARTITIONS) and "DROP" in how:
                bench.sql(how.format(which))

        def goes_on(self, backend: int) -> None:
            """Nobody asks."""

        def built(self, step: Step) -> None:
            super().built(step)
            if step.number == PARTITIONS - 1 and "DETACH" in how:
                bench.sql(how.format(which))

    assert _build(bench, one, Leaving()).index.valid
    assert bench.value(VALID) == PARTITIONS - 1
    assert bench.sql("SELECT FROM pg_indexes WHERE tablename = %s AND indexname ~ '_hnsw_'", which) == []


def test_whoever_builds_an_index_on_a_partition_is_waited_for(bench: Bench) -> None:
    one = _loaded(bench, 50)
    said: list[str] = []
    with psycopg.connect(bench.dsn) as holder, psycopg.connect(bench.dsn, autocommit=True) as other:
        holder.execute("LOCK docs_vectors_p03 IN ROW EXCLUSIVE MODE")

        class Waiting(_Attendant):
            def waits(self, what: str | None) -> None:
                if what is not None and "has been building an index on public.docs_vectors" in what:
                    said.append(what)
                    holder.rollback()

            def begins(self, index: str, given: Room, step: Step) -> None:
                holder.rollback()
                super().begins(index, given, step)

        thread = threading.Thread(
            target=other.execute, args=["CREATE INDEX CONCURRENTLY mine ON docs_vectors_p03 (chunk)"]
        )
        thread.start()
        wait_until(lambda: bench.sql(BUILDING), what="somebody's build")
        _build(bench, one, Waiting())
        thread.join()
    assert said
    assert bench.value(VALID) == PARTITIONS


def test_partitions_of_partitions_are_indexed_too(bench: Bench) -> None:
    _fill(bench, 200)
    bench.sql(
        "CREATE TABLE own (id bigint, chunk text, embedding vector(8), source_hash bytea) PARTITION BY RANGE (id)"
    )
    bench.sql("CREATE INDEX ON own (id)")
    bench.sql("CREATE TABLE own_a PARTITION OF own FOR VALUES FROM (0) TO (100)")
    bench.sql("CREATE TABLE own_b PARTITION OF own FOR VALUES FROM (100) TO (1000) PARTITION BY HASH (id)")
    for number in range(2):
        bench.sql(f"CREATE TABLE own_b{number} PARTITION OF own_b FOR VALUES WITH (MODULUS 2, REMAINDER {number})")
    one = bench.enqueue("docs", "body", into="own", index=True)
    assert one.partitions is None
    assert bench.drain() is Outcome.COMPLETE
    there = bench.progress("docs").index
    assert there is not None
    assert (there["state"], there["partitions"], there["partitions_built"]) == ("built", 3, 3)
    assert there["recall"] == 1.0
    bench.sql("CREATE TABLE own_c PARTITION OF own FOR VALUES FROM (1000) TO (2000)")
    assert bench.value(VALID) == 4, "one that comes later has its index from the beginning"
    assert bench.progress("docs").index["partitions_built"] == 4  # type: ignore[index]


@pytest.mark.parametrize(
    "how", ["mine", "docs_vectors_p02_hnsw_16_200", "docs_vectors_hnsw_99999_4", "a foreign table"]
)
def test_what_no_index_of_all_partitions_can_be_made_of_is_refused(bench: Bench, how: str) -> None:
    one = _loaded(bench, 50)
    if how != "a foreign table":
        bench.sql(f"CREATE INDEX {how} ON docs_vectors_p02 USING hnsw (embedding vector_cosine_ops)")
        said = f"public.{how} (hnsw) is there, on a partition of public.docs_vectors, and pgvec has not made it"
    else:
        bench.sql("CREATE TABLE own (LIKE docs_vectors) PARTITION BY RANGE (id)")
        bench.sql("CREATE FOREIGN DATA WRAPPER w; CREATE SERVER f FOREIGN DATA WRAPPER w")
        bench.sql("CREATE FOREIGN TABLE own_f PARTITION OF own FOR VALUES FROM (0) TO (9) SERVER f")
        bench.sql("UPDATE pgvec.vectorizers SET destination_table = 'own'")
        one = vectorizer.get(bench.connection, one.name)
        said = "public.own_f is a foreign table, which can have no index"
    with pytest.raises(IndexRefusedError) as refused:
        _build(bench, one, _Attendant())
    assert said in str(refused.value)
    assert bench.sql("SELECT FROM pg_class WHERE relkind = 'I' AND relname ~ '_hnsw_'") == []
    assert bench.value(VALID) == (0 if how == "a foreign table" else 1), "it is somebody's"


def test_memory_is_judged_by_the_largest_partition(bench: Bench) -> None:
    one = _loaded(bench, 800, model="hashing-32")
    attendant = _Attendant()
    _build(bench, one, attendant)
    each = [given.needed for _, given, _ in attendant.begun]
    whole = index_room.room(bench.connection, one, vector_index.default_wish(one)).needed
    assert sum(each) == pytest.approx(whole, rel=0.01)
    assert max(each) < whole / 8
    assert [step.number for _, _, step in attendant.begun] == [*range(1, 17)]
    assert attendant.begun[-1][2].before == pytest.approx(800 - attendant.begun[-1][2].vectors)


def test_partitions_of_another_owner_are_left_to_others(bench: Bench) -> None:
    one = _loaded(bench, 20)
    bench.sql("DO $$ BEGIN CREATE ROLE partitions_other; EXCEPTION WHEN duplicate_object THEN END $$")
    bench.sql("DO $$ BEGIN CREATE ROLE partitions_me; EXCEPTION WHEN duplicate_object THEN END $$")
    bench.sql("ALTER TABLE docs_vectors OWNER TO partitions_me; ALTER TABLE docs_vectors_p03 OWNER TO partitions_other")
    bench.sql("GRANT CREATE ON SCHEMA public TO partitions_me, partitions_other")
    with bench.connection.transaction(force_rollback=True):
        bench.sql("SET LOCAL ROLE partitions_me")
        said = vector_index.hindrance(bench.connection, vector_index.target(bench.connection, one))
    assert said == "only the owner of public.docs_vectors_p00 (" + bench.value("SELECT current_user") + ") may index it"


# Everything else


def test_verify_finds_and_repairs_what_is_wrong_in_any_partition(bench: Bench) -> None:
    one = _loaded(bench)
    bench.sql("DELETE FROM docs_vectors WHERE id IN (1, 2, 3)")
    bench.sql("UPDATE docs_vectors SET source_hash = '' WHERE id IN (4, 5)")
    bench.sql(
        "INSERT INTO docs_vectors"
        " SELECT 9000, 0, chunk, embedding, source_hash, created_at FROM docs_vectors WHERE id = 9"
    )
    found = verify.verify(bench.connection, bench.fragments(one), fix=True)
    assert (found.missing, found.stale, found.orphaned) == (3, 2, 1)
    assert bench.drain() is Outcome.COMPLETE
    assert _is_right(bench, one)
    assert bench.value("SELECT count(*) FROM docs_vectors") == 400


def test_another_model_keeps_the_partitions_or_takes_others(bench: Bench) -> None:
    one = _loaded(bench, 60)

    def begun(**given: Any) -> Vectorizer:
        found = model_migration_begin.begin(bench.connection, "docs", given, versions(bench.connection))
        bench.plan(found.migration.new)
        return found.migration.new

    kept = begun(model="hashing-16")
    assert kept.partitions == PARTITIONS
    assert begun(model="hashing-16").id == kept.id, "again goes on"
    assert bench.drain() is Outcome.COMPLETE
    assert _is_right(bench, kept)
    with pytest.raises(DefinitionError, match="--partitions was 16, now it is 4"):
        begun(model="hashing-16", partitions=4)
    model_migration_end.abandon(bench.connection, model_migration.get(bench.connection, "docs"))
    assert bench.sql("SELECT FROM pg_class WHERE relname ~ '^docs_vectors_hashing'") == []
    assert begun(partitions=1).partitions is None, "the same model, in one table"
    model_migration_end.abandon(bench.connection, model_migration.get(bench.connection, "docs"))
    into_column = begun(into_column="vector")
    assert (into_column.partitions, into_column.into_column) == (None, True)
    bench.drain()
    model_migration.switch(bench.connection, model_migration.get(bench.connection, "docs"))
    removed = model_migration_end.finish(bench.connection, model_migration.get(bench.connection, "docs"))
    assert (removed.why, removed.destination) == (None, one.destination)
    assert bench.sql("SELECT FROM pg_class WHERE relname ~ '^docs_vectors'") == [], "its partitions go with it"


def test_a_row_that_no_partition_takes_is_put_into_quarantine_and_tried_again(bench: Bench) -> None:
    """A table of somebody's own, by ranges of the key."""
    _fill(bench, 30)
    bench.sql(
        "CREATE TABLE own (id bigint, chunk text, embedding vector(8), source_hash bytea) PARTITION BY RANGE (id)"
    )
    bench.sql("CREATE INDEX ON own (id); CREATE TABLE own_a PARTITION OF own FOR VALUES FROM (0) TO (29)")
    one = bench.enqueue("docs", "body", into="own")
    assert bench.drain() is Outcome.QUARANTINED
    assert bench.sql("SELECT key, message FROM pgvec.failures ORDER BY key") == [
        ([key], 'no partition of relation "own" found for row') for key in ("29", "30")
    ]
    bench.sql("CREATE TABLE own_b PARTITION OF own FOR VALUES FROM (29) TO (100)")
    assert vectorizer.retry(bench.connection, "docs") == 2
    assert bench.drain() is Outcome.COMPLETE
    assert _is_right(bench, one)


def test_a_table_may_be_partitioned_by_what_is_not_in_the_key(bench: Bench) -> None:
    _fill(bench, 60)
    bench.sql(
        "CREATE TABLE own (id bigint, chunk text, embedding vector(8), source_hash bytea,"
        " region int DEFAULT (random() * 2)::int) PARTITION BY LIST (region)"
    )
    bench.sql("CREATE INDEX ON own (id)")
    for region in range(3):
        bench.sql(f"CREATE TABLE own_{region} PARTITION OF own FOR VALUES IN ({region})")
    one = bench.enqueue("docs", "body", into="own", sync=True, index=True)
    assert bench.drain() is Outcome.COMPLETE
    bench.sql("UPDATE docs SET body = body || ' again' WHERE id % 2 = 0; DELETE FROM docs WHERE id % 3 = 0")
    assert bench.drain() is Outcome.COMPLETE
    assert _is_right(bench, one)
    assert bench.value("SELECT count(*) FROM own") == 40
    assert bench.progress("docs").index["partitions_built"] == 3  # type: ignore[index]


# From the command line


@pytest.fixture
def here(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)
    _fill(bench, 300)
    return bench


_OPTIONS = ("--text", "body", "--model", "hashing-8", "--no-chunking", "--partitions", "16")


def test_a_dry_run_tells_of_partitions_and_the_memory_of_one(here: Bench, cli: CommandLine) -> None:
    ran = cli("enqueue", "docs", *_OPTIONS, "--dry-run")
    assert "destination: public.docs_vectors (new, 16 partitions by hash of id)" in ran.out
    assert "for each of 16 partitions" in ran.out
    parts = json.loads(cli("enqueue", "docs", *_OPTIONS, "--dry-run", "--json").out)
    whole = json.loads(cli("enqueue", "docs", *_OPTIONS[:-2], "--dry-run", "--json").out)
    memory = "hnsw_vector_memory_bytes"
    assert (parts["partitions"], whole["partitions"]) == (16, 0)
    assert parts[memory]["estimate"] == pytest.approx(whole[memory]["estimate"] / 16, rel=0.01)
    assert here.sql("SELECT FROM pgvec.vectorizers") == []
    # Of one that is there, by what its partitions hold.
    assert cli("enqueue", "docs", *_OPTIONS).code == 0
    here.drain()
    here.sql("UPDATE docs SET body = body || ' again'")
    again = json.loads(cli("enqueue", "docs", "--dry-run", "--json").out)
    assert again["partitions"] == 16
    assert whole[memory]["estimate"] / 16 <= again[memory]["estimate"] < whole[memory]["estimate"] / 8


def test_the_index_is_built_shown_and_dropped(here: Bench, cli: CommandLine) -> None:
    assert cli("enqueue", "docs", *_OPTIONS, "--no-index").code == 0
    assert cli("work", "--drain").code == 0
    ran = cli("index", "docs")
    assert ran.code == 0
    assert "(16 of 16 partitions) with 64.0 MB of memory" in ran.err
    assert re.search(r"docs: public\.docs_vectors_hnsw_\d+_4, hnsw \(m 16.*\n.*recall@10 1.000", ran.out)
    assert "index public.docs_vectors_hnsw_" in cli("status", "docs").out
    here.sql("DROP INDEX public.docs_vectors_hnsw_" + str(here.value("SELECT 'docs_vectors'::regclass::oid")) + "_4")
    one = vectorizer.get(here.connection, "docs")
    with pytest.raises(BuildStoppedError):
        _build(here, one, _Attendant(most=7))
    oid = here.value("SELECT 'docs_vectors_p15'::regclass::oid")
    here.sql(
        f"CREATE INDEX docs_vectors_p15_hnsw_{oid}_4b ON docs_vectors_p15 USING hnsw (embedding vector_cosine_ops)"
    )
    vector_index.want(here.connection, one, vector_index.default_wish(one))
    assert "(8 of 16 partitions are)" in cli("status", "docs").out
    told = json.loads(cli("status", "docs", "--json").out)["index"]
    assert (told["state"], told["partitions"], told["partitions_built"]) == ("wanted", 16, 8)
    ran = cli("index", "docs", "--drop", "--yes")
    assert "dropped" in ran.out
    assert here.value("SELECT count(*) FROM pg_class WHERE relname ~ '_hnsw_'") == 0
    assert cli("doctor").code in (0, 1)


def test_what_is_left_of_a_build_goes_when_none_is_wanted_any_more(bench: Bench) -> None:
    one = _loaded(bench, 100)
    with pytest.raises(BuildStoppedError):
        _build(bench, one, _Attendant(most=7))
    with bench.database.connect("test") as connection:
        index_building.clear(connection, one, _Attendant())
    assert bench.value("SELECT count(*) FROM pg_class WHERE relname ~ '_hnsw_'") == 0


def test_what_a_doctor_and_a_report_say_of_sizes_counts_partitions(here: Bench, cli: CommandLine) -> None:
    assert cli("enqueue", "docs", *_OPTIONS).code == 0
    here.drain()
    (size,) = here.connection.execute(
        statement("doctor", "size"), {"schema": "public", "table": "docs_vectors"}
    ).fetchone() or (0,)
    assert size == here.value("SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('docs_vectors')")
    assert size > 16 * 8192


def test_vectors_in_partitions_are_taken_over(here: Bench, cli: CommandLine) -> None:
    assert cli("enqueue", "docs", *_OPTIONS, "--index").code == 0
    here.drain()
    assert cli("drop", "docs", "--yes").code == 0
    here.sql("ALTER TABLE docs_vectors ALTER source_hash DROP NOT NULL; UPDATE docs_vectors SET source_hash = NULL")
    ran = cli("enqueue", "docs", *_OPTIONS[:-2], "--adopt", "--into", "docs_vectors")
    assert ran.code == 0, ran
    assert "300" in ran.err + ran.out
    here.drain()
    one = vectorizer.get(here.connection, "docs")
    assert one.partitions is None, "it was there"
    assert here.value("SELECT coalesce(sum(rows_embedded), 0) FROM pgvec.counters") == 0
    assert here.value("SELECT sum(rows_adopted) FROM pgvec.counters") == 300
    assert here.value("SELECT count(*) FROM docs_vectors WHERE source_hash IS NULL") == 0
    assert cli("uninstall", "--yes").code == 0
    assert here.value("SELECT count(*) FROM docs_vectors") == 300
