"""What is poison and what is not: documents that fail alone, that kill, that hang; sick models and destinations."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import pytest

from pgvec_queue import queue
from pgvec_queue.embedders.faults import FaultyEmbedder
from pgvec_queue.worker import Outcome, reader
from tests.support import Bench, pgvec
from tests.waiting import wait_until

RIGHT = {"missing": 0, "orphaned": 0, "stale": 0}


def _docs(bench: Bench, rows: int, poison: dict[int, str]) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, %s) i", rows)
    for key, word in poison.items():
        bench.sql("UPDATE docs SET body = body || ' ' || %s WHERE id = %s", word, key)


@pytest.mark.parametrize(
    ("fault", "error_class"),
    [("refuse", "EmbedderError"), ("nan", "NotFinite"), ("inf", "NotFinite"), ("shape", "EmbedderError")],
)
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_documents_that_a_model_cannot_take_cost_themselves_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fault: str, error_class: str, chunk_size: int | None
) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", f"{fault}=bane")
    keys = [1, 17, 250, 251, 400]
    _docs(bench, 400, dict.fromkeys(keys, "bane"))
    options = {"chunk_size": chunk_size} if chunk_size else {}
    vectorizer = bench.enqueue("docs", "body", rows_per_job=100, **options)
    assert bench.drain() is Outcome.QUARANTINED
    failed = bench.sql("SELECT key, error_class, model, attempts FROM pgvec.failures ORDER BY key[1]::int")
    assert failed == [([str(key)], error_class, "hashing-8", 1) for key in keys]
    done = bench.progress("docs")
    assert (done.rows_total, done.rows_done, done.rows_failed) == (400, 395, 5)
    assert bench.wrong(vectorizer) == RIGHT


def test_a_model_that_fails_most_documents_is_sick_and_quarantines_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "nan=document")
    _docs(bench, 500, {})
    bench.enqueue("docs", "body", rows_per_job=50)
    assert bench.drain() is Outcome.BLOCKED
    assert bench.value("SELECT count(*) FROM pgvec.failures") == 0
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0
    assert bench.progress("docs").state == "active", "another worker's model may be well"
    monkeypatch.delenv("PGVEC_HASHING_FAULTS")
    assert bench.drain() is Outcome.COMPLETE


def test_a_model_that_falls_sick_half_way_takes_back_what_it_quarantined(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_MOST_ROWS", 32)
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "nan=bane")
    _docs(bench, 400, dict.fromkeys(range(201, 401), "bane"))
    vectorizer = bench.enqueue("docs", "body", rows_per_job=400)
    assert bench.drain() is Outcome.BLOCKED
    assert bench.value("SELECT count(*) FROM pgvec.failures") == 0
    monkeypatch.delenv("PGVEC_HASHING_FAULTS")
    assert bench.drain() is Outcome.COMPLETE
    assert bench.wrong(vectorizer) == RIGHT
    done = bench.progress("docs")
    assert (done.rows_total, done.rows_done, done.rows_failed) == (400, 400, 0)


def test_a_destination_that_refuses_most_documents_blocks_and_quarantines_none(bench: Bench) -> None:
    _docs(bench, 300, {})
    vectorizer = bench.enqueue("docs", "body", rows_per_job=50)
    bench.sql("ALTER TABLE docs_vectors ADD CONSTRAINT never CHECK (id < 0)")
    assert bench.drain() is Outcome.BLOCKED
    blocked = bench.progress("docs")
    assert blocked.state == "blocked"
    assert "never" in str(blocked.reason)
    assert bench.value("SELECT count(*) FROM pgvec.failures") == 0
    bench.sql("ALTER TABLE docs_vectors DROP CONSTRAINT never")
    bench.enqueue("docs")
    assert bench.drain() is Outcome.COMPLETE
    assert bench.wrong(vectorizer) == RIGHT


def _die(bench: Bench, worker: queue.Membership) -> None:
    bench.sql("UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour' WHERE id = %s", worker.worker)
    assert queue.reclaim(bench.connection) == (1, 1)


def test_two_deaths_at_a_checkpoint_make_a_job_run_alone_and_progress_clears_the_count(bench: Bench) -> None:
    _docs(bench, 10, {})
    vectorizer = bench.enqueue("docs", "body")

    def claimed(worker: queue.Membership) -> tuple[int, bool]:
        job = bench.claim(worker)
        return job.attempts, job.alone

    first, second, third, fourth = (bench.register() for _ in range(4))
    assert claimed(first) == (0, False)
    _die(bench, first)
    job = bench.claim(second)
    assert (job.attempts, job.alone) == (1, False)
    part = bench.read(vectorizer, job, rows=3)
    bench.write(vectorizer, part, bench.embed(vectorizer, part), second)
    _die(bench, second)
    assert claimed(third) == (1, False), "its checkpoint had moved since the first death"
    _die(bench, third)
    assert claimed(fourth) == (0, True)


def test_deaths_of_a_job_that_runs_alone_count_only_with_a_document_in_hand(bench: Bench) -> None:
    _docs(bench, 10, {})
    vectorizer = bench.enqueue("docs", "body")
    bench.sql("UPDATE pgvec.jobs SET alone = true")
    counts = []
    for in_hand in (False, True, False, True):
        worker = bench.register()
        job = bench.claim(worker)
        counts.append(job.attempts)
        if in_hand:
            queue.take_in_hand(bench.connection, job, worker)
        _die(bench, worker)
    assert counts == [0, 0, 1, 1]
    worker = bench.register()
    job = bench.claim(worker)
    assert job.attempts == 2
    part = bench.read(vectorizer, job, rows=1)
    queue.take_in_hand(bench.connection, job, worker)
    bench.write(vectorizer, part, bench.embed(vectorizer, part), worker)
    _die(bench, worker)
    assert bench.sql("SELECT attempts, in_hand FROM pgvec.jobs WHERE id = %s", job.id) == [(0, False)]


def test_a_worker_with_something_in_hand_claims_no_job_that_has_to_run_alone(bench: Bench) -> None:
    _docs(bench, 10, {})
    bench.enqueue("docs", "body", rows_per_job=5)
    bench.sql("UPDATE pgvec.jobs SET alone = true WHERE lower_key IS NULL")
    worker = bench.register()
    job = queue.Claimer(worker, None).claim(bench.connection, idle=False)
    assert job is not None
    assert not job.alone
    job = queue.Claimer(worker, None).claim(bench.connection, idle=True)
    assert job is not None
    assert job.alone


def test_a_worker_that_dies_while_it_leaves_counts_no_attempt(bench: Bench) -> None:
    _docs(bench, 10, {})
    bench.enqueue("docs", "body")
    worker = bench.register()
    job = bench.claim(worker)
    bench.sql("UPDATE pgvec.workers SET state = 'stopping'")
    _die(bench, worker)
    assert bench.sql("SELECT state, attempts FROM pgvec.jobs WHERE id = %s", job.id) == [("queued", 0)]


def test_a_job_that_runs_alone_is_read_one_document_at_a_time_with_nothing_else_in_hand(bench: Bench) -> None:
    _docs(bench, 40, {})
    vectorizer = bench.enqueue("docs", "body", rows_per_job=10)
    bench.sql("UPDATE pgvec.jobs SET alone = true WHERE lower_key = '{10}'")
    bench.sql("CREATE TABLE seen (checkpoint text[], state text, others bigint)")
    bench.sql(
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen VALUES (NEW.checkpoint,"
        " NEW.state, (SELECT count(*) FROM pgvec.jobs WHERE state = 'running' AND id <> NEW.id)); RETURN NULL; END $$"
    )
    bench.sql(
        "CREATE TRIGGER see AFTER UPDATE OF checkpoint ON pgvec.jobs FOR EACH ROW WHEN (NEW.alone)"
        " EXECUTE FUNCTION see()"
    )
    assert bench.drain() is Outcome.COMPLETE
    assert bench.wrong(vectorizer) == RIGHT
    seen = bench.sql("SELECT checkpoint, state, others FROM seen ORDER BY checkpoint[1]::int")
    assert seen == [([str(i)], "done" if i == 20 else "running", 0) for i in range(11, 21)]


def test_a_document_that_cost_two_workers_alone_is_quarantined_and_the_rest_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "kill=bane")
    _docs(bench, 10, {1: "bane"})
    vectorizer = bench.enqueue("docs", "body")
    bench.sql("UPDATE pgvec.jobs SET alone = true, attempts = 2")
    bench.sql("CREATE TABLE seen (state text, alone boolean)")
    bench.sql(
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO seen VALUES (NEW.state, NEW.alone); RETURN NULL; END $$"
    )
    bench.sql("CREATE TRIGGER see AFTER UPDATE OF checkpoint ON pgvec.jobs FOR EACH ROW EXECUTE FUNCTION see()")
    assert bench.drain() is Outcome.QUARANTINED
    assert bench.sql("SELECT key, error_class FROM pgvec.failures") == [(["1"], "WorkerDied")]
    assert bench.sql("SELECT * FROM seen") == [("running", False), ("done", False)], "the rest goes together"
    assert bench.wrong(vectorizer) == RIGHT
    assert bench.progress("docs").rows_done == 9


def test_calls_become_small_where_a_spoilt_one_is_dear_and_stay_large_where_it_is_cheap(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint refuses before it computes; a model that returns nonsense has computed it."""
    calls: list[int] = []
    embed = FaultyEmbedder.embed_documents

    def counted(self: FaultyEmbedder, texts: list[str], tokens: list[int], ids: Any = None) -> Any:
        calls.append(len(texts))
        return embed(self, texts, tokens, ids)

    monkeypatch.setattr(FaultyEmbedder, "embed_documents", counted)
    monkeypatch.setattr(reader, "_FIRST_ROWS", 200)
    monkeypatch.setattr(reader, "_MOST_ROWS", 200)
    _docs(bench, 800, dict.fromkeys((50, 350, 650), "bane"))
    embedded = {}
    for fault in ("refuse", "shape"):
        monkeypatch.setenv("PGVEC_HASHING_FAULTS", f"delay=0.002;{fault}=bane")
        calls.clear()
        bench.enqueue("docs", "body", name=fault, into=fault)
        assert bench.drain() is Outcome.QUARANTINED
        embedded[fault] = sum(calls)
        large = sum(size >= 200 for size in calls)
        assert large > 1 if fault == "refuse" else large == 1
    assert embedded["shape"] < 800 + 200 + 3 * 40


@pytest.mark.parametrize("fault", ["kill", "hang"])
def test_a_document_that_kills_or_hangs_the_process_is_found_among_many(bench: Bench, fault: str) -> None:
    _docs(bench, 200, {77: "bane"})
    vectorizer = bench.enqueue("docs", "body", rows_per_job=50)
    environment = {"PGVEC_HASHING_FAULTS": f"{fault}=bane"}
    deaths = 0
    while True:
        worker = pgvec("work", "--drain", "--lease", "1", "--stall", "5", dsn=bench.dsn, env=environment)
        _, err = worker.communicate(timeout=60)
        if worker.returncode == 3:
            break
        assert worker.returncode == (-signal.SIGKILL if fault == "kill" else 1), err
        assert fault == "kill" or "did not come back" in err
        deaths += 1
        assert deaths < 6
    assert deaths == 4
    assert bench.sql("SELECT key, error_class FROM pgvec.failures") == [(["77"], "WorkerDied")]
    assert bench.wrong(vectorizer) == RIGHT
    assert bench.progress("docs").rows_done == 199


def _started(bench: Bench, faults: str) -> subprocess.Popen[str]:
    worker = pgvec("work", "--lease", "3", dsn=bench.dsn, env={"PGVEC_HASHING_FAULTS": faults})
    wait_until(lambda: bench.sql("SELECT FROM pgvec.workers WHERE state = 'working'"), 30, what="work in hand")
    return worker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_leaves_within_a_supervisor_s_patience_whatever_the_model_is_at(
    bench: Bench, number: signal.Signals
) -> None:
    """A call of a model that takes a minute is left behind; the jobs are given back, and no attempt is counted."""
    _docs(bench, 200, {})
    bench.enqueue("docs", "body", rows_per_job=20)
    worker = _started(bench, "delay=2")
    try:
        worker.send_signal(number)
        _, err = worker.communicate(timeout=10)
    finally:
        worker.kill()
    assert worker.returncode == 0, err
    assert "Traceback" not in err
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'running'") == 0
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0
    assert bench.value("SELECT count(*) FROM pgvec.workers") == 0


def test_a_worker_whose_terminal_is_closed_leaves_in_order(bench: Bench) -> None:
    _docs(bench, 400, {})
    bench.enqueue("docs", "body", rows_per_job=20)
    ours, its = os.openpty()
    worker = subprocess.Popen(
        [*_command(), "work"],
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        env={**os.environ, "PGVEC_DSN": bench.dsn, "PGVEC_HASHING_FAULTS": "delay=0.05"},
        preexec_fn=_take_terminal,
    )
    os.close(its)
    try:
        wait_until(lambda: bench.sql("SELECT FROM pgvec.jobs WHERE state = 'running'"), 30, what="a job that runs")
        os.close(ours)
        assert worker.wait(10) == 0
    finally:
        worker.kill()
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'running'") == 0
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0


def _command() -> list[str]:
    import sys

    return [sys.executable, "-m", "pgvec_queue"]


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_worker_that_is_killed_while_it_leaves_counts_no_attempt(bench: Bench) -> None:
    _docs(bench, 200, {})
    bench.enqueue("docs", "body", rows_per_job=20)
    worker = _started(bench, "delay=1")
    try:
        worker.terminate()
        wait_until(lambda: bench.sql("SELECT FROM pgvec.workers WHERE state = 'stopping'"), 5, what="word of it")
        worker.kill()
        worker.communicate()
    finally:
        worker.kill()
    bench.sql("UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour'")
    assert queue.reclaim(bench.connection)[0] == 1
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0


def test_why_nothing_moves_is_in_the_status(bench: Bench) -> None:
    _docs(bench, 10, {})
    bench.enqueue("docs", "body")
    row: dict[str, Any] = {"waiting": "the model: endpoint answers 503"}
    worker = bench.register()
    bench.sql("UPDATE pgvec.workers SET waiting_for = %s, host = 'mac' WHERE id = %s", row["waiting"], worker.worker)
    assert bench.progress("docs").reason == "mac: the model: endpoint answers 503"
