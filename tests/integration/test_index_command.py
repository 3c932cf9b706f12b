"""``pgvec index``, ``enqueue --no-index`` and what ``status`` says of an index."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgvec_queue import progress
from tests.commandline import CommandLine
from tests.support import Bench, pgvec
from tests.waiting import wait_until

ALL = (
    "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
    " JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw' ORDER BY c.oid"
)
BUILDING = "SELECT pid FROM pg_stat_progress_create_index WHERE datname = current_database() AND phase LIKE 'waiting%'"


@pytest.fixture
def loaded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The table docs, embedded, without an index; commands use its database."""
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, 60) i")
    bench.enqueue("docs", "body")
    bench.drain()
    return bench


@pytest.fixture
def held(loaded: Bench) -> Iterator[psycopg.Connection[Any]]:
    """An open transaction for whose end every build waits."""
    with psycopg.connect(loaded.dsn) as connection:
        connection.execute("LOCK docs_vectors IN ROW EXCLUSIVE MODE")
        yield connection
        connection.rollback()


def _told(bench: Bench, cli: CommandLine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli("status", "docs", "--json").out)["index"]
    return found


def test_enqueue_has_an_index_built_by_default_and_leaves_it_with_no_index(
    bench: Bench, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)
    monkeypatch.delenv("PGVEC_INDEX")
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text); INSERT INTO docs VALUES (1, 'one'), (2, 'two')")
    options = ("--text", "body", "--model", "hashing-8", "--no-chunking")
    assert cli("enqueue", "docs", *options).code == 0
    assert cli("enqueue", "docs", *options, "--name", "plain", "--into", "plain", "--no-index").code == 0
    assert cli("work", "--drain").code == 0
    assert bench.sql(ALL) == [(_told(bench, cli)["name"].removeprefix("public."), True)]
    assert json.loads(cli("status", "plain", "--json").out)["index"]["state"] == "unwanted"
    said = cli("status").out
    assert "docs: index public.docs_vectors_hnsw_" in said
    assert "recall@10 1.000" in said
    assert not re.search("plain: (no )?index", said)
    assert cli("enqueue", "docs").code == 0
    assert cli("enqueue", "docs", "--name", "plain").code == 0
    assert cli("work", "--drain").code == 0
    assert len(bench.sql(ALL)) == 1


def test_a_setting_says_whether_new_vectorizers_get_one(loaded: Bench, cli: CommandLine) -> None:
    """PGVEC_INDEX is false in the tests."""
    assert cli("enqueue", "docs").code == 0
    assert json.loads(cli("status", "docs", "--json").out)["index"] is None
    assert cli("enqueue", "docs", "--index").code == 0
    assert _told(loaded, cli)["state"] == "wanted"
    assert cli("enqueue", "docs").code == 0
    assert _told(loaded, cli)["state"] == "wanted", "it is for new ones"


def test_it_builds_says_what_and_measures(loaded: Bench, cli: CommandLine) -> None:
    ran = cli("index", "docs", "--m", "8", "--ef-construction", "40")
    assert ran.code == 0, ran
    first, second = ran.out.splitlines()
    assert first.startswith("docs: public.docs_vectors_hnsw_")
    assert ", hnsw (m 8, ef_construction 40) over vector, " in first
    assert re.search(r", built in \d+ s$", first)
    assert second == "docs: recall@10 1.000, by 60 searches"
    assert "pgvec: building docs_vectors_hnsw_" in ran.err
    now = _told(loaded, cli)
    assert (now["state"], now["m"], now["ef_construction"], now["recall"]) == ("built", 8, 40, 1)
    again = cli("index", "docs")
    assert ", is there already" in again.out, "what was wanted last stays wanted"
    assert len(loaded.sql(ALL)) == 1


def test_another_definition_takes_the_place_of_the_old_one_when_it_is_valid(
    loaded: Bench, cli: CommandLine, held: psycopg.Connection[Any]
) -> None:
    held.rollback()
    assert cli("index", "docs").code == 0
    ((old, _),) = loaded.sql(ALL)
    held.execute("LOCK docs_vectors IN ROW EXCLUSIVE MODE")
    process = pgvec("index", "docs", "--store", "halfvec", dsn=loaded.dsn)
    wait_until(lambda: loaded.sql(BUILDING), 30, what="the build")
    assert loaded.sql(ALL)[0] == (old, True), "at no time is there none"
    held.rollback()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert loaded.sql(ALL) == [(f"{old}b", True)]
    assert "over halfvec" in out
    assert cli("index", "docs", "--store", "vector").code == 0
    assert loaded.sql(ALL) == [(old, True)]


def test_ctrl_c_ends_the_build_and_the_next_one_begins_anew(
    loaded: Bench, cli: CommandLine, held: psycopg.Connection[Any]
) -> None:
    process = pgvec("index", "docs", dsn=loaded.dsn)
    wait_until(lambda: loaded.sql(BUILDING), 30, what="the build")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("pgvec: building docs_vectors_hnsw_")
    assert f"(pid {held.info.backend_pid}) has been open" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.endswith("pgvec: interrupted\n")
    assert loaded.sql(BUILDING) == []
    now = _told(loaded, cli)
    assert (now["state"], now["reason"]) == ("wanted", "a build was cut short; run: pgvec index docs")
    held.rollback()
    assert cli("index", "docs").code == 0
    assert [valid for _, valid in loaded.sql(ALL)] == [True]


def test_it_waits_for_whoever_builds_already(loaded: Bench, held: psycopg.Connection[Any]) -> None:
    first = pgvec("index", "docs", dsn=loaded.dsn)
    wait_until(lambda: loaded.sql(BUILDING), 30, what="the build")
    (pid,) = loaded.sql(BUILDING)[0]
    second = pgvec("index", "docs", dsn=loaded.dsn)
    assert second.stderr is not None
    assert f"(pid {pid}) has been building an index on public.docs_vectors" in second.stderr.readline()
    held.rollback()
    outs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert ("built in" in outs[0], "is there already" in outs[1]) == (True, True)
    assert [valid for _, valid in loaded.sql(ALL)] == [True]


def test_it_may_be_left_to_the_workers(loaded: Bench, cli: CommandLine) -> None:
    ran = cli("index", "docs", "--queue", "--m", "20")
    assert (ran.code, loaded.sql(ALL)) == (0, [])
    assert "a worker builds the index" in ran.out
    assert cli("work", "--drain").code == 0
    assert (_told(loaded, cli)["m"], _told(loaded, cli)["ef_construction"]) == (20, 64)
    assert "is there already" in cli("index", "docs", "--queue").out


def test_a_new_vectorizer_takes_the_index_that_one_before_it_has_left(loaded: Bench, cli: CommandLine) -> None:
    assert cli("index", "docs", "--m", "8").code == 0
    there = loaded.sql(ALL)
    assert cli("drop", "docs", "--yes").code == 0
    enqueued = cli("enqueue", "docs", "--text", "body", "--model", "hashing-8", "--into", "docs_vectors", "--index")
    assert enqueued.code == 0, enqueued.err
    now = _told(loaded, cli)
    assert (now["state"], now["m"], loaded.sql(ALL)) == ("built", 8, there)
    assert loaded.sql("SELECT FROM pgvec.jobs WHERE kind = 'index'") == []


def test_it_drops_what_pgvec_has_built_and_wants_none(loaded: Bench, cli: CommandLine) -> None:
    assert cli("index", "docs").code == 0
    assert "Give --yes" in cli.misused("index", "docs", "--drop")
    ran = cli("index", "docs", "--drop", "--yes")
    assert ran.code == 0, ran
    assert loaded.sql(ALL) == []
    assert _told(loaded, cli)["state"] == "unwanted"
    assert cli("index", "docs", "--drop", "--yes").out == "docs: no index of pgvec's dropped\n"


def test_somebody_s_own_index_is_left_as_it_is(loaded: Bench, cli: CommandLine) -> None:
    loaded.sql("CREATE INDEX mine ON docs_vectors USING hnsw (embedding vector_cosine_ops)")
    ran = cli("index", "docs")
    assert ran.out.startswith("docs: public.mine, hnsw (m 16, ef_construction 64) over vector, ")
    assert cli.refused("index", "docs", "--m", "20") == (
        "public.mine (hnsw) is there, which pgvec has not made; to have another one, first run: "
        "DROP INDEX CONCURRENTLY public.mine"
    )
    ran = cli("index", "docs", "--drop", "--yes")
    assert ran.err == "pgvec: public.mine stays: pgvec has not made it\n"
    assert loaded.sql(ALL) == [("mine", True)]


def test_what_does_not_fit_is_refused_with_what_to_do(loaded: Bench, cli: CommandLine) -> None:
    loaded.sql("UPDATE pgvec.vectorizers SET chunks_base = 100000")
    said = cli.refused("index", "docs", "--memory", "1M")
    assert said.startswith("its graph needs about ")
    assert "of memory to build, and 1 MB may be used; " in said
    assert "`pgvec index docs --memory " in said
    assert "`--anyway` builds" in said
    now = _told(loaded, cli)
    assert (now["state"], now["reason"]) == ("refused", said)
    assert f"docs: no index: {said}" in cli("status").out
    ran = cli("index", "docs", "--memory", "2M", "--anyway")
    assert ran.code == 0
    assert "the rest is built many times slower" in ran.err


def test_it_refuses_what_cannot_be_meant(loaded: Bench, cli: CommandLine) -> None:
    assert cli.misused("index", "docs", "--drop", "--m", "8") == "--drop and --m exclude each other"
    assert cli.misused("index", "docs", "--recall", "--queue") == "--recall and --queue exclude each other"
    assert cli.misused("index", "docs", "--queue", "--seconds", "5") == "--queue and --seconds exclude each other"
    assert "no vectorizer is called 'dogs'" in cli.refused("index", "dogs")
    assert "docs has no index; build one: pgvec index docs" in cli.refused("index", "docs", "--recall")
    assert cli.refused("index", "docs", "--m", "40", "--ef-construction", "50") == (
        "ef_construction 50 is less than twice m (40)"
    )
    assert cli("index", "docs", "--m", "40").code == 0
    assert _told(loaded, cli)["ef_construction"] == 80


def test_recall_may_be_measured_again(loaded: Bench, cli: CommandLine) -> None:
    assert cli("index", "docs").code == 0
    loaded.sql("INSERT INTO docs_vectors SELECT id + 100, 0, chunk, embedding, source_hash FROM docs_vectors")
    ran = cli("index", "docs", "--recall")
    assert (ran.code, ran.out) == (0, "docs: recall@10 1.000, by 100 searches\n")


def test_a_halfvec_index_is_for_what_is_no_halfvec(loaded: Bench, cli: CommandLine) -> None:
    loaded.enqueue("docs", "body", name="half", into="half", store="halfvec")
    assert "would gain nothing" in cli.refused("index", "half", "--store", "vector")
    loaded.drain()
    assert "over halfvec" in cli("index", "half").out


def test_a_table_that_is_gone_is_named(loaded: Bench, cli: CommandLine) -> None:
    loaded.sql("DROP TABLE docs_vectors")
    assert cli.refused("index", "docs") == "public.docs_vectors has no column embedding, or is gone"


def test_whoever_may_not_look_into_one_schema_sees_the_others(bench: Bench) -> None:
    bench.sql("CREATE SCHEMA private; CREATE TABLE private.docs (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO private.docs VALUES (1, 'one')")
    bench.enqueue("private.docs", "body", index_new=True)
    bench.drain()
    role = f"looker_{bench.connection.info.dbname}"
    with bench.connection.transaction(force_rollback=True):
        bench.sql(f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA pgvec TO {role}")
        bench.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA pgvec TO {role}; SET LOCAL ROLE {role}")
        (seen,) = progress.read(bench.connection)
    assert seen.index is not None
    assert (seen.state, seen.index["state"]) == ("complete", "built")
