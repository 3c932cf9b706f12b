"""The schema becomes another one beneath a running worker, at its worst moments."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from pgvec_queue import schema
from pgvec_queue.errors import SchemaOutdatedError
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker import Outcome, Worker, WorkerOptions
from tests.oracle import assert_right
from tests.support import Bench
from tests.waiting import wait_until

NEWER = "9999"


@dataclass
class Running:
    """A worker in a thread; how it ended is in ``ended``."""

    worker: Worker
    ended: list[Outcome | BaseException] = field(default_factory=list)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.ended.append(self.worker.run())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.ended.append(error)

    def leave(self) -> Outcome | BaseException:
        self.worker.stop()
        self.thread.join(30)
        return self.ended[0]


Start = Callable[..., Running]


@pytest.fixture
def start(bench: Bench) -> Iterator[Start]:
    """Starts a worker that beats five times a second."""
    started: list[Running] = []

    def begin(*, drain: bool = False) -> Running:
        started.append(Running(Worker(bench.database, WorkerOptions(lease=1.2, drain=drain))))
        return started[-1]

    yield begin
    for one in started:
        one.leave()


def fill(bench: Bench) -> Vectorizer:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 40) i")
    return bench.enqueue("docs", "body", rows_per_job=20)


def raises_once(bench: Bench) -> str:
    """What raises the error of a column that is not there, the first time alone, while the schema is the newer one."""
    bench.sql("CREATE SEQUENCE public.tries")
    return (
        f"IF (SELECT version_num FROM pgvec.alembic_version) = '{NEWER}' AND nextval('public.tries') = 1 THEN"
        " RAISE EXCEPTION 'there is no such column' USING ERRCODE = 'undefined_column'; END IF;"
    )


def is_idle(bench: Bench) -> bool:
    return bench.sql("SELECT state FROM pgvec.workers WHERE NOT gone") == [("idle",)]


def test_an_error_of_the_upgrade_blocks_no_vectorizer(
    bench: Bench, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "delay=0.03")
    docs = fill(bench)
    body = f"BEGIN {raises_once(bench)} RETURN NULL; END"
    bench.sql(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
    bench.sql("CREATE TRIGGER refuse AFTER INSERT ON docs_vectors EXECUTE FUNCTION refuse()")
    running = start(drain=True)
    wait_until(lambda: bench.sql("SELECT FROM pgvec.jobs WHERE state = 'running'"), what="a job in hand")
    bench.upgrade_to(NEWER, schema.HEAD)
    running.thread.join(30)
    assert running.ended == [Outcome.COMPLETE]
    assert bench.value("SELECT last_value FROM public.tries") > 1
    assert bench.sql("SELECT FROM pgvec.events WHERE kind = 'blocked'") == []
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0
    assert_right(bench, docs)


def test_a_statement_that_fails_because_of_the_upgrade_ends_no_worker(bench: Bench, start: Start) -> None:
    running = start()
    wait_until(lambda: is_idle(bench))
    world = bench.value("SELECT pgvec.world()")
    text = raises_once(bench)
    bench.sql(
        "CREATE OR REPLACE FUNCTION pgvec.world() RETURNS text LANGUAGE plpgsql STABLE PARALLEL RESTRICTED"
        f" AS $$ BEGIN {text} RETURN '{world}'; END $$"
    )
    bench.upgrade_to(NEWER, schema.HEAD)
    docs = fill(bench)
    wait_until(lambda: bench.progress("docs").state == "complete", 30)
    assert bench.value("SELECT last_value FROM public.tries") > 1
    assert_right(bench, docs)
    assert running.leave() is Outcome.STOPPED


def test_a_worker_leaves_a_schema_that_it_does_not_work_with_and_comes_back(bench: Bench, start: Start) -> None:
    running = start()
    wait_until(lambda: is_idle(bench))
    [(before,)] = bench.sql("SELECT id FROM pgvec.workers")
    bench.upgrade_to(NEWER)
    wait_until(lambda: not bench.sql("SELECT FROM pgvec.workers"), 30, what="its leaving")
    docs = fill(bench)
    assert running.worker.look().schema is not None
    bench.upgrade_to(NEWER, schema.HEAD)
    wait_until(lambda: bench.progress("docs").state == "complete", 30)
    assert bench.value("SELECT max(id) FROM pgvec.workers") > before
    assert_right(bench, docs)
    assert running.leave() is Outcome.STOPPED


def test_a_worker_that_drains_does_not_wait_for_the_schema(bench: Bench, start: Start) -> None:
    bench.upgrade_to(NEWER)
    running = start(drain=True)
    running.thread.join(30)
    assert isinstance(running.ended[0], SchemaOutdatedError)


def test_a_worker_that_waits_for_the_schema_leaves_at_once(bench: Bench, start: Start) -> None:
    bench.upgrade_to(NEWER)
    running = start()
    wait_until(lambda: running.worker.look().schema is not None)
    assert running.leave() is Outcome.STOPPED
