"""Workers of two versions on one queue; one that the schema has left behind, and one that is ahead of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2
import psycopg
import pytest

from pgvec_queue import schema
from pgvec_queue.slices import Fate
from pgvec_queue.vectorizer import Vectorizer
from tests.chaos.program import Program
from tests.oracle import assert_right
from tests.support import Bench, run_pgvec
from tests.upgrade import versions
from tests.upgrade.fleet import Fleet, wait_for
from tests.upgrade.users import SOURCE, User
from tests.upgrade.versions import NEXT, NEXT_VERSION
from tests.waiting import wait_until

pytestmark = [pytest.mark.usefixtures("isolated"), pytest.mark.xdist_group("upgrade")]

WAITS = "waiting for a schema that this program works with"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Program]:
    """The present version, and two that might be next: one beside which it works, and one beside which it does not."""
    made = tmp_path_factory.mktemp("programs")
    for name in ("present", "next", "other"):
        (made / name).mkdir()
    return {
        "present": versions.present(made / "present"),
        "next": versions.following(made / "next", compatible=True),
        "other": versions.following(made / "other", compatible=False),
    }


@pytest.fixture
def fleet(bench: Bench, tmp_path: Path) -> Iterator[Fleet]:
    """Processes whose model takes 2 ms for a document."""
    made = Fleet(bench.dsn, tmp_path, {"PGVEC_HASHING_FAULTS": "delay=0.002"})
    yield made
    made.close()


def fill(bench: Bench, rows: int, rows_per_job: int = 20) -> Vectorizer:
    bench.sql(SOURCE)
    bench.sql("INSERT INTO docs (body) SELECT 'document number ' || i FROM generate_series(1, %s::int) i", rows)
    return bench.enqueue("docs", "body", rows_per_job=rows_per_job, sync=True)


def versions_at_work(bench: Bench) -> set[str]:
    """Of the workers that have a job."""
    held = "SELECT version FROM pgvec.workers w JOIN pgvec.jobs j ON j.worker_id = w.id AND j.state = 'running'"
    return {version for (version,) in bench.sql(held)}


def is_complete(bench: Bench) -> bool:
    return bench.progress("docs").state == "complete"


def assert_no_failure(bench: Bench, fleet: Fleet, *vectorizers: Vectorizer) -> None:
    """Everything is right, and nothing was counted, blocked, quarantined or said to be wrong."""
    assert_right(bench, *vectorizers)
    assert bench.sql("SELECT sum(attempts), count(*) FILTER (WHERE alone) FROM pgvec.jobs") == [(0, 0)]
    assert bench.sql("SELECT FROM pgvec.events WHERE kind IN ('blocked', 'quarantined', 'reclaimed')") == []
    for member in fleet.members:
        assert "error:" not in member.said, member.said
        assert "Traceback" not in member.said, member.said


def test_a_compatible_upgrade_beneath_running_workers_costs_nothing(
    bench: Bench, fleet: Fleet, programs: dict[str, Program]
) -> None:
    docs = fill(bench, 500)
    with User(bench.dsn, 1) as user:
        old = [fleet.start(programs["present"], "work", "--lease", "2") for _ in range(2)]
        wait_until(lambda: versions_at_work(bench), 30)
        programs["next"].must("init", dsn=bench.dsn)
        assert schema.revision(bench.connection) == NEXT
        for member in old:
            wait_for(member, f"schema was upgraded; this program works with it revision={NEXT}")
        new = fleet.start(programs["next"], "work", "--lease", "2")
        # A program of before may be started anew, and used for all else, as long as the schema says so.
        again = fleet.start(programs["present"], "work", "--lease", "2")
        wait_until(lambda: NEXT_VERSION in versions_at_work(bench), 30, what="a worker of the next version at work")
        wait_for(again, "worker is ready")
        assert json.loads(run_pgvec("status", "--json", dsn=bench.dsn).out)["name"] == "docs"
        for member in (*old, again):
            assert member.leave() == 0, member.said
    assert (user.failures, min(user.done.values()) > 0) == ([], True), user.done
    wait_until(lambda: is_complete(bench), 60, what="all of it")
    assert new.leave() == 0
    assert_no_failure(bench, fleet, docs)
    assert bench.value("SELECT count(*) FROM pgvec.workers WHERE zone = 'nowhere'") == 0


def test_an_index_on_a_table_of_the_queue_is_built_beside_its_users(bench: Bench, programs: dict[str, Program]) -> None:
    fill(bench, 100)
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('pgvec.jobs_claimed_by')"
    building = "FROM pg_stat_progress_create_index WHERE datname = current_database()"
    programs["next"].must("init", dsn=bench.dsn)
    assert bench.sql(valid) == [(True,)]
    bench.sql("DROP INDEX pgvec.jobs_claimed_by")
    with psycopg.connect(bench.dsn) as user:
        # Its build waits for whoever is in a transaction with the table, and nobody waits for the build.
        user.execute("INSERT INTO docs (body) VALUES ('not committed yet')")
        init = programs["next"].start("init", dsn=bench.dsn, stderr=programs["next"].directory / "init.log")
        wait_until(lambda: bench.sql(valid) == [(False,)] or init.poll() is not None, 60, what="a build that has begun")
        # What has upgraded the schema has let go of all, however long the build takes.
        bench.sql("INSERT INTO docs (body) VALUES ('meanwhile')")
        assert bench.claim(bench.register()) is not None
        # A build that was ended leaves an index that is none.
        init.kill()
        init.wait()
        bench.sql(f"SELECT pg_terminate_backend(pid) {building}")
        wait_until(lambda: not bench.sql(f"SELECT {building}"))
        assert bench.sql(valid) == [(False,)]
    assert "up to date" in programs["next"].must("init", dsn=bench.dsn)
    assert bench.sql(valid) == [(True,)]


def test_a_worker_that_the_schema_leaves_behind_gives_back_what_it_has_and_waits(
    bench: Bench, fleet: Fleet, programs: dict[str, Program]
) -> None:
    docs = fill(bench, 2_000)
    left = fleet.start(programs["present"], "work", "--lease", "2", "--metrics-port", "0")
    wait_until(lambda: versions_at_work(bench), 30)
    programs["other"].must("init", dsn=bench.dsn)
    assert bench.sql("SELECT FROM pgvec.jobs WHERE state = 'running'") == []
    wait_for(left, f"{WAITS}: the pgvec schema is at revision {NEXT}, newer than this program's {schema.HEAD}")
    assert left.said.count(WAITS) == 1
    # Whoever watches over it is not to start it again and again.
    [url] = [line.partition("url=")[2] for line in left.said.splitlines() if "metrics are served" in line]
    answer = httpx2.get(url.replace("/metrics", "/health"), trust_env=False)
    assert (answer.status_code, "waiting for the schema" in answer.text) == (200, True), answer.text
    # Another start waits as well, and so does one that has several processes.
    for more in ([], ["--processes", "2"]):
        late = fleet.start(programs["present"], "work", *more)
        wait_for(late, WAITS)
        assert late.leave() == 0, late.said
    ran = run_pgvec("work", "--drain", dsn=bench.dsn)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert ran.err.endswith(f"newer than this program's {schema.HEAD}; upgrade pgvec-queue\n")
    fleet.start(programs["other"])
    wait_until(lambda: is_complete(bench), 60, what="all of it, by the other version")
    assert left.runs
    assert left.leave() == 0
    bench.sql("ALTER TABLE pgvec.jobs RENAME COLUMN read_up_to TO read_to")
    assert_no_failure(bench, fleet, docs)


def test_a_lease_ends_in_the_transaction_that_leaves_its_program_behind(
    bench: Bench, programs: dict[str, Program]
) -> None:
    docs = fill(bench, 40)
    worker = bench.register()
    job = bench.claim(worker)
    part = bench.read(docs, job, 4)
    embedded = bench.embed(docs, part)
    programs["other"].must("init", dsn=bench.dsn)
    assert bench.sql("SELECT gone FROM pgvec.workers") == [(True,)]
    told = "SELECT kind, worker_id FROM pgvec.events WHERE message LIKE '%: its program is too old for the schema'"
    assert bench.sql(told) == [("gone", worker.worker)]
    left = "SELECT state, worker_id, attempts, epoch FROM pgvec.jobs WHERE id = %s"
    assert bench.sql(left, job.id) == [("queued", None, 0, job.epoch)]
    assert bench.write(docs, part, embedded, worker).fate is Fate.LOST
    assert bench.value("SELECT count(*) FROM docs_vectors") == 0


def test_back_to_the_earlier_version_without_a_dump(
    bench: Bench, fleet: Fleet, programs: dict[str, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The schema goes, and the vectors stay; nothing that is there is embedded again."""
    fill(bench, 50)
    bench.drain()
    later = programs["other"]
    later.must("init", dsn=bench.dsn)
    ran = run_pgvec("uninstall", "--yes", dsn=bench.dsn)
    assert ran.code == 1
    assert "newer than this program's" in ran.err
    later.must("uninstall", "--yes", dsn=bench.dsn)
    bench.sql("UPDATE docs SET body = 'changed meanwhile' WHERE id = 7")
    assert run_pgvec("init", dsn=bench.dsn).code == 0
    docs = bench.enqueue("docs", "body", into="docs_vectors", sync=True)
    bench.drain()
    assert_right(bench, docs)
    assert bench.progress("docs").rows_embedded == 1


def test_a_worker_that_is_ahead_of_the_schema_begins_when_that_is_upgraded(
    bench: Bench, fleet: Fleet, programs: dict[str, Program]
) -> None:
    docs = fill(bench, 100)
    ahead = fleet.start(programs["other"])
    wait_for(
        ahead, f"{WAITS}: the pgvec schema is at revision {schema.HEAD}, this program needs {NEXT}; run: pgvec init"
    )
    assert bench.sql("SELECT FROM pgvec.workers") == []
    programs["other"].must("init", dsn=bench.dsn)
    wait_for(ahead, f"schema is there; the worker begins revision={NEXT}")
    wait_until(lambda: is_complete(bench), 30)
    ahead.process.send_signal(signal.SIGTERM)
    assert ahead.process.wait(20) == 0
    bench.sql("ALTER TABLE pgvec.jobs RENAME COLUMN read_up_to TO read_to")
    assert_no_failure(bench, fleet, docs)
