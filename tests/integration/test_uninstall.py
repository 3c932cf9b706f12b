"""`pgvec uninstall`: all that is ours goes, and what stays is found again."""

from __future__ import annotations

import threading

import psycopg
import pytest

from pgvec_queue import schema, uninstall
from pgvec_queue.errors import PgvecError
from pgvec_queue.worker import Outcome, Worker, WorkerOptions
from tests.commandline import CommandLine
from tests.support import Bench, pgvec
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def _here(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)


def _documents(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    bench.sql("CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (1) TO (100)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, 20) i")


def _objects(bench: Bench) -> set[str]:
    """Everything in the database that is not PostgreSQL's own."""
    return {
        name
        for (name,) in bench.sql(
            "SELECT pg_describe_object(classid, objid, 0) FROM pg_depend WHERE objid >= 16384"
            " UNION SELECT 'trigger ' || tgname FROM pg_trigger UNION SELECT 'schema ' || nspname FROM pg_namespace"
        )
        if "pg_toast" not in name and "temp" not in name
    }


def test_nothing_of_ours_is_left_but_the_destinations(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    bench.sql("CREATE TABLE other (id int PRIMARY KEY, body text)")
    bench.connection.execute("DROP SCHEMA pgvec CASCADE")
    before = _objects(bench)
    schema.initialize(bench.database)
    bench.enqueue("docs", "body", sync=True)
    bench.enqueue("other", "body", into_column="v", sync=True)
    bench.drain()
    vectors = bench.sql("SELECT id, chunk, embedding::text, source_hash FROM docs_vectors ORDER BY id")
    ran = cli("uninstall", "--yes")
    assert (ran.code, ran.out) == (0, "pgvec is removed; the destinations stay as they are.\n")
    assert ran.err.splitlines() == [
        "goes: the schema pgvec with the vectorizers docs, other",
        "goes: triggers on public.docs",
        "goes: triggers on public.docs_1",
        "goes: triggers on public.other",
        "stays: public.docs_vectors",
        "stays: the columns v and v_hash of public.other",
        "stays: pgvector",
    ]
    left = {name for name in _objects(bench) - before if "docs_vectors" not in name and "of table other" not in name}
    assert left == set()
    assert bench.sql("SELECT id, chunk, embedding::text, source_hash FROM docs_vectors ORDER BY id") == vectors
    bench.sql("INSERT INTO docs VALUES (50, 'new')")


def test_what_stays_is_found_again_and_nothing_is_embedded_twice(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    bench.enqueue("docs", "body")
    bench.drain()
    assert cli("uninstall", "--yes").code == 0
    assert cli("uninstall", "--yes").err == "pgvec: there is no schema pgvec; nothing is to be removed\n"
    assert cli("init").code == 0
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 3")
    bench.enqueue("docs", "body", into="docs_vectors")
    bench.drain()
    progress = bench.progress("docs")
    assert (progress.rows_done, progress.rows_embedded, progress.chunks) == (20, 1, 20)


def test_what_others_made_of_ours_is_named_and_kept(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    bench.enqueue("docs", "body", sync=True)
    bench.sql("CREATE SCHEMA mine")
    bench.sql("CREATE VIEW mine.seen AS SELECT name, rows_done FROM pgvec.progress")
    bench.sql("CREATE TABLE mine.log (at timestamptz, one pgvec.events)")
    bench.sql("CREATE INDEX blank ON docs (id) WHERE pgvec.is_blank(body)")
    bench.sql("CREATE FUNCTION mine.f() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM pgvec.jobs; END")
    ran = cli("uninstall", "--yes")
    assert ran.code == 1
    refusal = ran.err.splitlines()[-1]
    assert refusal.startswith("pgvec: these use the schema pgvec and would go with it: column one of table mine.log; ")
    for named in ("function mine.f()", "index blank", "view mine.seen"):
        assert named in refusal
    with pytest.raises(PgvecError, match=r"view mine\.seen"):
        uninstall.remove(bench.connection)
    assert bench.value("SELECT count(*) FROM mine.seen") == 1
    assert cli("uninstall", "--yes", "--cascade").code == 0
    assert bench.value("SELECT to_regclass('mine.seen') IS NULL AND to_regclass('mine.log') IS NOT NULL")


def test_a_dry_run_changes_nothing_and_somebody_has_to_say_yes(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    bench.enqueue("docs", "body", sync=True)
    assert "goes: triggers on public.docs\n" in cli("uninstall", "--dry-run").err
    assert cli("uninstall").code == 2
    assert bench.progress("docs").sync
    assert bench.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pgvec%%'") > 0


def test_workers_leave_first(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    bench.enqueue("docs", "body")
    outcome: list[Outcome] = []
    worker = threading.Thread(target=lambda: outcome.append(Worker(bench.database, WorkerOptions()).run()))
    worker.start()
    wait_until(lambda: bench.value("SELECT count(*) FROM docs_vectors") == 20)
    ran = cli("uninstall", "--yes")
    worker.join(30)
    assert ran.code == 0, ran
    assert "to leave\n" in ran.err
    assert len(outcome) == 1


def test_a_worker_that_stays_is_named(bench: Bench, cli: CommandLine) -> None:
    member = bench.register()
    ran = cli("uninstall", "--yes", "--wait", "0.3")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("pgvec: these workers do not leave, or were started again: ")
    assert bench.value("SELECT leave FROM pgvec.workers WHERE id = %s", member.worker)
    assert cli("uninstall", "--yes", "--anyway").code == 0


def test_a_worker_whose_schema_went_ends_and_says_why(bench: Bench) -> None:
    worker = pgvec("work", "--lease", "1", dsn=bench.dsn)
    wait_until(lambda: bench.value("SELECT count(*) FROM pgvec.workers") == 1)
    try:
        uninstall.remove(bench.connection)
        _, err = worker.communicate(timeout=60)
    finally:
        worker.kill()
        worker.communicate()
    assert worker.returncode == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1] == (
        "pgvec: the schema pgvec is gone, or is not the one that this program needs; run: pgvec init"
    )


def test_an_open_transaction_is_not_waited_for_without_end(
    bench: Bench, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uninstall, "_LOCK_SECONDS", 0.2)
    with psycopg.connect(bench.dsn) as other:
        other.execute("SELECT count(*) FROM pgvec.jobs")
        assert "is in use by an open transaction" in cli("uninstall", "--yes").err
    assert cli("uninstall", "--yes").code == 0


def test_a_command_afterwards_says_what_is_missing(bench: Bench, cli: CommandLine) -> None:
    uninstall.remove(bench.connection)
    for command in (["work", "--drain"], ["status"], ["enqueue", "docs"]):
        assert cli.refused(*command) == "there is no pgvec schema; run: pgvec init"


def test_what_others_made_in_the_schema_is_never_dropped(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    bench.enqueue("docs", "body", sync=True)
    bench.drain()
    # As one could until it was refused: the vectors lie in our schema.
    bench.sql("ALTER TABLE docs_vectors SET SCHEMA pgvec")
    bench.sql("UPDATE pgvec.vectorizers SET destination_schema = 'pgvec'")
    bench.sql("CREATE TABLE pgvec.search (id serial)")
    bench.sql('CREATE FUNCTION pgvec."Mine"(a int) RETURNS int LANGUAGE sql AS $$SELECT a$$')
    bench.sql("CREATE TYPE pgvec.mood AS ENUM ('glad')")
    bench.sql("ALTER DEFAULT PRIVILEGES IN SCHEMA pgvec GRANT SELECT ON TABLES TO PUBLIC")
    refusal = (
        "pgvec: these lie in the schema pgvec, are not pgvec's own, and would go with it: "
        'function pgvec."Mine"(integer); '
        "table pgvec.docs_vectors; table pgvec.search; type pgvec.mood; move each to another schema, such as: "
        'ALTER FUNCTION pgvec."Mine"(integer) SET SCHEMA public\n'
    )
    for flags in (["--yes"], ["--yes", "--cascade"], ["--dry-run"]):
        ran = cli("uninstall", *flags)
        assert (ran.code, ran.err) == (1, refusal)
    with pytest.raises(PgvecError, match=r"table pgvec\.docs_vectors"):
        uninstall.remove(bench.connection, cascade=True)
    assert bench.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'pgvec%%'") > 0
    for one in uninstall.survey(bench.connection).foreign:
        bench.connection.execute(one.move)
    ran = cli("uninstall", "--yes")
    assert (ran.code, "pgvec.docs_vectors" in ran.err) == (0, False), ran
    assert bench.value("SELECT count(*) FROM docs_vectors") == 20


def test_pgvector_in_the_schema_is_to_be_moved_first(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    bench.enqueue("docs", "body")
    bench.drain()
    bench.sql("ALTER EXTENSION vector SET SCHEMA pgvec")
    for flags in (["--yes"], ["--yes", "--cascade"]):
        assert cli.refused("uninstall", *flags) == (
            "the extension vector lies in the schema pgvec and would go with it, and with it every column "
            "of its types; move it first: ALTER EXTENSION vector SET SCHEMA public"
        )
    bench.sql("ALTER EXTENSION vector SET SCHEMA public")
    assert cli("uninstall", "--yes").code == 0
    assert bench.value("SELECT count(embedding) FROM docs_vectors") == 20
