"""Migrations: from each earlier schema with jobs in flight, on a busy queue, and what a migration may not do."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from pgvec_queue import __version__, queue, resources, schema
from pgvec_queue.errors import DatabaseError
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker import Outcome
from tests.oracle import assert_right
from tests.support import Bench
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
MIGRATIONS = sorted((resources.directory("alembic") / "versions").glob("*.sql"))
_TABLES = ("vectorizers", "jobs", "workers", "counters")


def revision_of(path: Path) -> str:
    return path.name[:4]


def go_back_to(bench: Bench, count: int) -> None:
    """Makes the schema what the first ``count`` migrations make, with the vectorizers, jobs and workers as they are."""
    kept = {
        table: bench.value(f"SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]') FROM pgvec.{table} t") for table in _TABLES
    }
    bench.sql("DROP SCHEMA pgvec CASCADE; DROP SCHEMA IF EXISTS pgvec_collections CASCADE; CREATE SCHEMA pgvec")
    for path in MIGRATIONS[:count]:
        bench.connection.execute(path.read_bytes())
    bench.sql("CREATE TABLE pgvec.alembic_version (version_num varchar(32) NOT NULL PRIMARY KEY)")
    bench.sql("INSERT INTO pgvec.alembic_version VALUES (%s)", revision_of(MIGRATIONS[count - 1]))
    for table, rows in kept.items():
        columns = [
            name
            for (name,) in bench.sql(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0", f"pgvec.{table}"
            )
        ]
        put = sql.SQL(
            "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE"
            " SELECT {columns} FROM jsonb_populate_recordset(NULL::{table}, %s)"
        ).format(table=sql.Identifier("pgvec", table), columns=sql.SQL(", ").join(map(sql.Identifier, columns)))
        bench.connection.execute(put, [Jsonb(rows)])
        if "id" in columns:
            highest = max((row["id"] for row in rows), default=0) + 1
            bench.sql("SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)", f"pgvec.{table}", highest)


def in_flight(bench: Bench) -> list[Vectorizer]:
    """Two vectorizers, one of each kind of destination, with jobs done, begun, claimed, queued, and lists of keys."""
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 60) i")
    made = [
        bench.enqueue("docs", "body", rows_per_job=10),
        bench.enqueue("docs", "body", name="column", into_column="v", rows_per_job=10),
    ]
    worker = bench.register()
    by_id = {one.id: one for one in made}
    for slices in (3, 3, 1, 1, 0):
        job = bench.claim(worker)
        for _ in range(slices):
            part = bench.read(by_id[job.vectorizer_id], job, 4)
            job = bench.write(by_id[job.vectorizer_id], part, bench.embed(by_id[job.vectorizer_id], part), worker).job
    bench.sql("UPDATE docs SET body = 'changed' WHERE id IN (1, 2, 25, 59)")
    bench.sql("DELETE FROM docs WHERE id IN (3, 44)")
    for one in made:
        bench.sql(
            "INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, key_count) VALUES (%s, 'keys', %s, 6)",
            one.id,
            json.dumps([["1"], ["2"], ["25"], ["59"], ["3"], ["44"]]),
        )
    states = {state for (state,) in bench.sql("SELECT DISTINCT state FROM pgvec.jobs")}
    assert states == {"queued", "running", "done"}
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'running' AND checkpoint IS NOT NULL") > 0
    # It will not be heard of again.
    bench.sql("UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour'")
    return made


@pytest.mark.parametrize("count", range(1, len(MIGRATIONS)), ids=[revision_of(path) for path in MIGRATIONS[:-1]])
def test_jobs_in_flight_under_an_earlier_schema_are_done_under_the_present_one(bench: Bench, count: int) -> None:
    made = in_flight(bench)
    go_back_to(bench, count)
    assert schema.initialize(bench.database) == revision_of(MIGRATIONS[count - 1])
    queue.reclaim(bench.connection)
    assert bench.drain() is Outcome.COMPLETE
    assert_right(bench, *made)
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state <> 'done'") == 0


def test_no_migration_writes_a_table_anew(bench: Bench) -> None:
    """That would lock it for as long as it takes; a constraint is added as NOT VALID, a column with a constant."""
    in_flight(bench)
    go_back_to(bench, 1)
    files = "SELECT relname, relfilenode FROM pg_class WHERE relnamespace = 'pgvec'::regnamespace AND relkind = 'r'"
    for path in MIGRATIONS[1:]:
        before = dict(bench.sql(files))
        bench.connection.execute(path.read_bytes())
        after = dict(bench.sql(files))
        assert {name: after.get(name) for name in before} == before, path.name


def test_on_a_busy_queue_an_upgrade_lets_everybody_pass_until_it_gets_its_locks(bench: Bench) -> None:
    in_flight(bench)
    go_back_to(bench, len(MIGRATIONS) - 1)
    ended: list[object] = []

    def upgrade() -> None:
        try:
            ended.append(schema.initialize(bench.database))
        except Exception as error:  # noqa: BLE001 - the test looks at it
            ended.append(error)

    waits = (
        "SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND l.relation IS NOT NULL"
        " AND a.datname = current_database() AND a.application_name LIKE 'pgvec init%%'"
    )
    bench.sql("SET lock_timeout = '10s'")
    with psycopg.connect(bench.dsn, application_name="a long one") as user:
        # As a trigger of a user's transaction has, that is still open, and every claim for a moment.
        user.execute("LOCK TABLE pgvec.vectorizers, pgvec.jobs, pgvec.workers IN ROW EXCLUSIVE MODE")
        thread = threading.Thread(target=upgrade)
        thread.start()
        for _ in range(2):
            wait_until(lambda: bench.sql(waits), 30, what="an upgrade that waits")
            # Behind it in the queue for the lock, and by it as soon as it has given up.
            bench.sql("UPDATE pgvec.vectorizers SET priority = 1")
            bench.sql("UPDATE pgvec.jobs SET run_after = NULL")
        assert (ended, thread.is_alive()) == ([], True)
    thread.join(60)
    assert ended == [revision_of(MIGRATIONS[-2])]
    schema.require(bench.connection)


def test_an_upgrade_that_gets_no_lock_says_who_has_it_and_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_LOCK_TRIES", 3)
    go_back_to(bench, len(MIGRATIONS) - 1)
    with psycopg.connect(bench.dsn, application_name="somebody's report") as other:
        other.execute("LOCK TABLE pgvec.vectorizers, pgvec.workers IN ACCESS SHARE MODE")
        with pytest.raises(DatabaseError) as refused:
            schema.initialize(bench.database)
        who = f"somebody's report (pid {other.info.backend_pid})"
    assert re.fullmatch(
        r"the schema is not upgraded, and is as it was: for \d+ s its tables were locked by (.*); end that, then run "
        r"`pgvec init` again",
        str(refused.value),
    )
    assert who in str(refused.value)
    assert schema.revision(bench.connection) == revision_of(MIGRATIONS[-2])
    assert schema.initialize(bench.database) == revision_of(MIGRATIONS[-2])


# What each migration says of itself


def test_each_migration_says_which_programs_work_with_it() -> None:
    """Before 0008 no program worked with another schema than its own."""
    said: list[str] = []
    for path in MIGRATIONS[7:]:
        found = re.findall(r'^oldest_program = "(\d{4})"$', path.with_suffix(".py").read_text(), re.MULTILINE)
        assert len(found) == 1, path.name
        assert found[0] <= revision_of(path)
        said += found
    assert said == sorted(said), "what has once been left behind stays so"


def test_every_revision_has_the_version_that_released_it() -> None:
    page = (ROOT / "docs" / "upgrading.md").read_text()
    listed = dict(re.findall(r"^\| (\d{4}) \| (\d+\.\d+\.\d+) \|", page, re.MULTILINE))
    assert list(listed) == [revision_of(path) for path in MIGRATIONS]
    sections = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert set(listed.values()) <= set(sections)
    assert sections[0] == listed[schema.HEAD] == __version__
    for path in MIGRATIONS[7:]:
        said = re.findall(r'^oldest_program = "(\d{4})"$', path.with_suffix(".py").read_text(), re.MULTILINE)
        assert re.search(rf"^\| {revision_of(path)} \| {listed[revision_of(path)]} \| {said[0]} \|", page, re.MULTILINE)
