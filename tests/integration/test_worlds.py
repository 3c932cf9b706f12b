"""Another world: a dump restored elsewhere, or a standby promoted, with leases running."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from psycopg import sql

from pgvec_queue import queue
from pgvec_queue.database import statement
from pgvec_queue.slices import Fate
from pgvec_queue.worker import Outcome
from tests.support import Bench
from tests.waiting import wait_until

RIGHT = {"missing": 0, "orphaned": 0, "stale": 0}


def _docs(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 100) i")


@pytest.fixture
def restored(bench: Bench, administration: psycopg.Connection[tuple[object, ...]]) -> Iterator[Bench]:
    """A copy of the bench's database as it is after the test's preparation: call ``restore`` on it first."""
    name = f"test_{uuid.uuid4().hex}"
    copy = object.__new__(Bench)

    def restore() -> None:
        source = bench.value("SELECT current_database()")
        bench.connection.close()
        administration.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(source))
        )
        bench.__post_init__()
        copy.__init__(bench.dsn.replace(source, name))  # type: ignore[misc]

    copy.restore = restore  # type: ignore[attr-defined]
    yield copy
    if hasattr(copy, "connection"):
        copy.close()
    administration.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def test_the_world_is_the_same_for_everybody_in_it(bench: Bench) -> None:
    here = bench.value("SELECT pgvec.world()")
    assert len(here.split("/")) == 4
    with psycopg.connect(bench.dsn) as other:
        assert other.execute("SELECT pgvec.world()").fetchone() == (here,)
    bench.sql("GRANT USAGE ON SCHEMA pgvec TO public")
    bench.sql("SET ROLE pg_monitor")
    assert bench.value("SELECT pgvec.world()") == here, "it takes no right of its own"
    bench.sql("RESET ROLE")


def test_a_worker_of_another_world_claims_writes_and_beats_nothing(bench: Bench) -> None:
    _docs(bench)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=50)
    here = bench.register()
    elsewhere = replace(here, world="another")
    assert queue.Claimer(elsewhere, None).claim(bench.connection) is None
    job = bench.claim(here)
    part = bench.read(vectorizer, job)
    embedded = bench.embed(vectorizer, part)
    assert bench.write(vectorizer, part, embedded, elsewhere).fate is Fate.LOST
    assert queue.reread(bench.connection, job, elsewhere) is None
    beat: dict[str, object] = {
        "state": "idle",
        "device": None,
        "dtype": None,
        "runtime": None,
        "models": [],
        "memory": 0,
        "waiting_for": None,
        "busy": None,
        "documents_per_second": None,
        "loads": 0,
        "batch_tokens": None,
        "padding": None,
        "cache_chunks": None,
        "cache_bytes": None,
        "cache_lookups": 0,
        "cache_hits": 0,
        "plenty": False,
        "commit_seconds": None,
        "lag_seconds": None,
        "in_hand": [],
    }
    for member, beats in ((here, True), (elsewhere, False)):
        row = bench.connection.execute(
            statement("queue", "beat"), {**beat, "worker": member.worker, "world": member.world}
        ).fetchone()
        assert (row is not None) is beats
    assert bench.write(vectorizer, part, embedded, here).fate is Fate.WRITTEN
    # What another knows of plenty of jobs is for whoever may do them.
    told = []
    for theirs, mine in ((["a", "b"], ["b"]), (["a"], ["b"]), (["a"], None), (None, ["b"])):
        other, member = (queue.register(bench.connection, names=names, lease=60) for names in (theirs, mine))
        bench.sql("UPDATE pgvec.workers SET plenty = id = %s", other.worker)
        values = {**beat, "worker": member.worker, "world": member.world}
        row = bench.connection.execute(statement("queue", "beat"), values).fetchone()
        assert row is not None
        told.append(row[2])
    assert told == [True, False, True, True]


def test_a_worker_from_before_a_restore_writes_nothing_into_the_restored_database(
    bench: Bench, restored: Bench
) -> None:
    """It was in the middle of a job; the restored rows say that the job is its own, at the very same checkpoint."""
    _docs(bench)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=100)
    worker = bench.register(lease=1.0)
    job = bench.claim(worker)
    restored.restore()  # type: ignore[attr-defined]
    bench.sql("UPDATE docs SET body = 'changed in the old world only' WHERE id = 5")
    part = bench.read(vectorizer, job)
    embedded = bench.embed(vectorizer, part)
    assert restored.sql("SELECT state, epoch FROM pgvec.jobs WHERE id = %s", job.id) == [("running", job.epoch)]
    assert restored.write(vectorizer, part, embedded, worker).fate is Fate.LOST
    assert restored.value("SELECT count(*) FROM docs_vectors") == 0
    assert restored.drain(lease=1.0) is Outcome.COMPLETE, "the jobs go on"
    assert restored.wrong(vectorizer) == RIGHT
    assert bench.write(vectorizer, part, embedded, worker).fate is Fate.WRITTEN, "the old world goes on as well"


def test_jobs_that_were_running_in_a_dump_go_on_where_it_is_restored(bench: Bench, restored: Bench) -> None:
    _docs(bench)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=20, sync=True)
    for _ in range(3):
        bench.claim(bench.register(lease=1.0))
    restored.restore()  # type: ignore[attr-defined]
    restored.sql("UPDATE docs SET body = 'changed in the new world' WHERE id = 99")
    assert restored.drain(lease=1.0) is Outcome.COMPLETE
    assert restored.wrong(vectorizer) == RIGHT
    wait_until(lambda: restored.value("SELECT count(*) FROM pgvec.workers WHERE NOT gone") == 0)
