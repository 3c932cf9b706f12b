"""Everything through pgbouncer in transaction mode, with fewer server connections than clients.

Whatever a statement of ours left on a connection would meet the next client there, so the last look is always at what
the pooled connections still hold. (TimeZone, DateStyle and application_name pgbouncer puts back by itself.)
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgvec_queue import schema, vectorizer
from pgvec_queue.database import Database
from tests.commandline import CommandLine
from tests.oracle import assert_right
from tests.pgbouncer import PROGRAM, Pooler, pooling
from tests.support import Bench, pgvec, run_pgvec
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed (Debian: apt install pgbouncer)")

SERVERS = 2
MODEL = ("--model", "hashing-8")
UNUSUAL = {
    "TimeZone": "Asia/Kolkata",
    "DateStyle": "German",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "0",
}


@pytest.fixture
def pooler(database: str, reachable: Path) -> Iterator[Pooler]:
    with pooling(reachable / "pgbouncer", database, pool_size=SERVERS) as running:
        yield running


@pytest.fixture
def direct(database: str) -> Iterator[Bench]:
    """The test's own way to the database, past the pooler; new connections have settings that are not ours."""
    bench = Bench(database)
    for name, value in UNUSUAL.items():
        bench.sql(f"ALTER DATABASE {bench.connection.info.dbname} SET {name} = {value!r}")
    yield bench
    bench.close()


@pytest.fixture
def pooled(pooler: Pooler, database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The DSN through the pooler, which is also what commands use."""
    dsn = pooler.dsn(database)
    monkeypatch.setenv("PGVEC_DSN", dsn)
    return dsn


def _left_behind(direct: str, pooled: str) -> list[dict[str, Any]]:
    """Per server connection of the pool: what is otherwise than on a connection that nobody has used."""
    arguments: dict[str, Any] = {"autocommit": True, "prepare_threshold": None, "application_name": "the next client"}
    with ExitStack() as stack:
        unused = stack.enter_context(psycopg.connect(direct, **arguments))
        stack.enter_context(unused.transaction())
        settings = _settings(unused)
        found = []
        for _ in range(SERVERS):
            # An open transaction keeps the connection, so the next client gets another one.
            client = stack.enter_context(psycopg.connect(pooled, **arguments))
            stack.enter_context(client.transaction())
            found.append(
                {name: value for name, value in _settings(client).items() if settings.get(name, value) != value}
                | {what: rows for what, query in _STATE.items() if (rows := client.execute(query).fetchall())}
            )
    return found


_STATE = {
    "own settings": "SELECT name FROM pg_settings WHERE name ~ '[.]' AND source = 'session'",
    "prepared statements": "SELECT name FROM pg_prepared_statements",
    "cursors": "SELECT name FROM pg_cursors WHERE is_holdable",
    "advisory locks": "SELECT mode, objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    "channels": "SELECT pg_listening_channels()",
    "temporary tables": "SELECT relname FROM pg_class WHERE relnamespace = pg_my_temp_schema()",
}


def _settings(connection: psycopg.Connection[Any]) -> dict[str, str]:
    return dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())


CLEAN: list[dict[str, Any]] = [{}] * SERVERS


def _fill(direct: Bench, rows: int) -> None:
    words = "'Row ' || i || '. ' || repeat('some words of it. ', 1 + i % 40)"
    direct.sql("CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text)")
    direct.sql(f"INSERT INTO docs SELECT i, 'title ' || i, {words} FROM generate_series(1, {rows}) i")
    direct.sql("CREATE TABLE pairs (day date, code text, body text, embedding vector(8), PRIMARY KEY (day, code))")
    direct.sql(f"INSERT INTO pairs SELECT date '2024-01-01' + i % 50, 'c' || i, {words} FROM generate_series(1, 200) i")
    direct.sql("CREATE VIEW short AS SELECT id, body FROM docs WHERE length(body) < 300")
    direct.sql("CREATE TABLE held (doc_id text NOT NULL, part text, embedding vector(8))")


@contextmanager
def _worker(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A worker process, which does not outlive the test."""
    process = pgvec("work", *arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def _drain(count: int) -> None:
    """Several workers at once until all is done."""
    with ExitStack() as stack:
        processes = [stack.enter_context(_worker("--drain", "--no-listen")) for _ in range(count)]
        ended = [(*process.communicate(timeout=120), process.returncode) for process in processes]
        assert [code for _, _, code in ended] == [0] * count, ended


def test_three_workers_embed_every_kind_of_definition_over_two_connections(
    pooler: Pooler, pooled: str, direct: Bench, cli: CommandLine
) -> None:
    assert cli("init").code == 0
    _fill(direct, 600)
    for arguments in (
        ("docs", "--text", "title", "--text", "body", "--chunk-size", "20", "--chunk-overlap", "5"),
        ("pairs", "--text", "body", "--name", "pairs_apart", "--no-chunking", "--store", "halfvec", "--sync"),
        ("pairs", "--text", "body", "--name", "pairs_inside", "--into-column", "embedding"),
        ("pairs", "--text", "body", "--name", "some", "--into", "some", "--where", "length(body) < 300", "--sync"),
        ("short", "--text", "body", "--key", "id", "--where", "id % 3 = 0", "--no-chunking"),
        (
            *("docs", "--text", "body", "--name", "held", "--into", "held"),
            *("--column", "key=doc_id", "--column", "chunk=part", "--template", "$title: $chunk"),
        ),
    ):
        ran = cli("enqueue", *arguments, *MODEL, "--rows-per-job", "40")
        assert ran.code == 0, ran
    _drain(3)
    defined = [vectorizer.get(direct.connection, name) for name in vectorizer.names(direct.connection)]
    assert len(defined) == 6
    assert_right(direct, *defined)
    direct.sql("UPDATE pairs SET body = 'changed ' || body WHERE code < 'c150'")
    direct.sql("DELETE FROM pairs WHERE code > 'c90'")
    _drain(1)
    assert_right(direct, *(one for one in defined if one.sync))
    assert len(pooler.show("SERVERS")) <= SERVERS + 1, "one more is that of the console"
    assert _left_behind(direct.dsn, pooled) == CLEAN


def test_commands_work_and_leave_no_session_state(pooled: str, direct: Bench, cli: CommandLine) -> None:
    assert cli("init").code == 0
    _fill(direct, 30)
    assert cli("enqueue", "docs", "--text", "body", "--no-chunking", *MODEL, "--limit", "20").code == 0
    direct.sql("ALTER TABLE docs_vectors ADD CONSTRAINT refused CHECK (id <> 7)")
    assert cli("pause", "docs").code == 0
    assert run_pgvec("work", "--drain", "--no-listen").code == 0
    assert _status(cli)["rows_done"] == 0
    assert cli("resume", "docs").code == 0
    assert run_pgvec("work", "--drain", "--no-listen").code == 3
    assert (_status(cli)["rows_done"], _status(cli)["rows_failed"]) == (19, 1)
    assert json.loads(cli("failures", "docs", "--json").out)["key"] == ["7"]
    direct.sql("ALTER TABLE docs_vectors DROP CONSTRAINT refused")
    assert cli("retry", "docs").code == 0
    assert run_pgvec("work", "--drain", "--no-listen").code == 0
    assert (_status(cli)["state"], _status(cli)["rows_done"]) == ("complete", 20)
    assert len(cli("search", "docs", "some words", "--limit", "60", "--json").out.splitlines()) == 20
    assert cli("verify", "docs").code == 0
    for arguments in (["doctor"], ["workers"], ["cancel", "docs", "--yes"], ["drop", "docs", "--yes"]):
        ran = cli(*arguments)
        assert ran.code == 0, ran
    assert direct.value("SELECT count(*) FROM pgvec.vectorizers") == 0
    assert _left_behind(direct.dsn, pooled) == CLEAN


def _status(cli: CommandLine) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cli("status", "docs", "--json").out)
    return found


def test_the_jobs_of_a_killed_worker_are_taken_over(pooled: str, direct: Bench) -> None:
    """It dies inside its write transaction, which the pooler then has to end on the server."""
    schema.initialize(Database(direct.dsn))
    _fill(direct, 300)
    docs = direct.enqueue("docs", "body", rows_per_job=20)
    direct.sql("CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM FROM open; RETURN NULL; END'")
    direct.sql("CREATE TABLE open ()")
    direct.sql("CREATE TRIGGER gate AFTER INSERT ON docs_vectors EXECUTE FUNCTION gate()")
    with direct.database.connect("gatekeeper") as gatekeeper:
        with gatekeeper.transaction():
            gatekeeper.execute("LOCK TABLE open IN ACCESS EXCLUSIVE MODE")
            with _worker("--no-listen", "--lease", "1"):
                wait_until(lambda: _waiting(direct), 30, what="a worker inside its write")
        assert direct.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'running'") > 0
        ran = run_pgvec("work", "--drain", "--no-listen", "--lease", "1")
    assert ran.code == 0, ran
    assert_right(direct, docs)
    assert direct.value("SELECT max(attempts) FROM pgvec.jobs") == 1
    assert _left_behind(direct.dsn, pooled) == CLEAN


def _waiting(direct: Bench) -> bool:
    found: bool = direct.value("SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'open'::regclass AND NOT granted)")
    return found


def test_listening_through_the_pooler_does_no_harm(pooled: str, direct: Bench, cli: CommandLine) -> None:
    """LISTEN is the default; through a pooler the hints reach nobody for certain, and polling does it alone."""
    schema.initialize(Database(direct.dsn))
    _fill(direct, 200)
    with _worker("--lease", "3") as worker:
        wait_until(lambda: direct.value("SELECT count(*) FROM pgvec.workers WHERE state = 'idle'") == 1, 30)
        assert cli("enqueue", "docs", "--text", "body", "--no-chunking", *MODEL).code == 0
        wait_until(lambda: direct.progress("docs").state == "complete")
        direct.sql("NOTIFY pgvec_jobs; NOTIFY pgvec_jobs, 'more'")
        beat = direct.value("SELECT beat_at FROM pgvec.workers")
        wait_until(lambda: direct.value("SELECT beat_at FROM pgvec.workers") > beat, what="another heartbeat")
        # Hints that come for it on a connection in somebody else's hands do not disturb that one.
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as other:
            for number in range(20):
                direct.sql("NOTIFY pgvec_jobs")
                assert other.execute("SELECT %s::int", [number]).fetchone() == (number,)
        worker.send_signal(signal.SIGTERM)
        _, errors = worker.communicate(timeout=30)
    assert worker.returncode == 0, errors
    assert "WARNING" not in errors
    assert_right(direct, vectorizer.get(direct.connection, "docs"))
    left = _left_behind(direct.dsn, pooled)
    assert [{what: value for what, value in one.items() if what != "channels"} for one in left] == CLEAN


def test_hints_come_past_the_pooler_where_a_direct_dsn_is_given(pooled: str, direct: Bench, cli: CommandLine) -> None:
    schema.initialize(Database(direct.dsn))
    _fill(direct, 50)
    # In so large a fleet a worker polls about once a minute.
    direct.sql(
        "INSERT INTO pgvec.workers (host, pid, version, lease)"
        " SELECT 'elsewhere', i, 'x', interval '1 day' FROM generate_series(1, 200) i"
    )
    with _worker("--lease", "3", "--direct-dsn", direct.dsn) as worker:
        wait_until(lambda: direct.value("SELECT count(*) FROM pgvec.workers WHERE state = 'idle'") == 1, 30)
        assert cli("enqueue", "docs", "--text", "body", "--no-chunking", *MODEL).code == 0
        wait_until(lambda: direct.progress("docs").state == "complete", what="a worker that heard of it")
        worker.send_signal(signal.SIGTERM)
        _, errors = worker.communicate(timeout=30)
    assert worker.returncode == 0, errors
    assert _left_behind(direct.dsn, pooled) == CLEAN


def test_an_index_is_left_to_workers_with_a_way_past_the_pooler(
    pooler: Pooler, pooled: str, direct: Bench, database: str, cli: CommandLine
) -> None:
    assert cli("init").code == 0
    _fill(direct, 40)
    assert cli("enqueue", "docs", "--text", "body", *MODEL, "--no-chunking", "--index").code == 0
    _drain(1)
    now = json.loads(cli("status", "docs", "--json").out)
    assert (now["state"], now["index"]["state"]) == ("complete", "wanted")
    assert "give workers --direct-dsn" in now["index"]["reason"]
    assert "give --direct-dsn (PGVEC_DIRECT_DSN)" in cli.refused("index", "docs")
    with _worker("--drain", "--no-listen", "--direct-dsn", database) as process:
        said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    now = json.loads(cli("status", "docs", "--json").out)["index"]
    assert (now["state"], now["reason"], now["recall"]) == ("built", None, 1)
    assert "is there already" in cli("index", "docs", "--direct-dsn", database).out
    assert _left_behind(database, pooled) == CLEAN
