"""A worker from claim to write: many at once, errors of each kind, leases, and leaving in order."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg
import pytest

from pgvec_queue import quarantine, queue
from pgvec_queue.database import statement
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker import Outcome, Worker, WorkerOptions
from tests.support import WORDS, Bench
from tests.waiting import wait_until

RIGHT = {"missing": 0, "orphaned": 0, "stale": 0}


def _fill(bench: Bench, rows: int, table: str = "docs") -> None:
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text)")
    with bench.connection.cursor().copy(f"COPY {table} FROM STDIN") as copy:
        for i in range(rows):
            words = (WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(5 + i % 60))
            copy.write_row((i, f"Document {i}. " + " ".join(words) + "."))


def _chunks(bench: Bench) -> list[tuple[Any, ...]]:
    return bench.sql("SELECT id, chunk_index, chunk, source_hash, embedding::text FROM docs_vectors ORDER BY 1, 2")


def _several(bench: Bench, count: int, **options: Any) -> list[Outcome]:
    """Runs workers side by side in this process until all have drained."""
    outcomes: list[Outcome] = []
    threads = [threading.Thread(target=lambda: outcomes.append(bench.drain(**options))) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


@contextmanager
def _running(worker: Worker) -> Iterator[list[Any]]:
    """Runs a worker in a thread; yields a list that gets its outcome, or what it raised."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(worker.run())
        except Exception as error:  # noqa: BLE001 - the test looks at it
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ended
    finally:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_three_workers_make_what_one_makes_to_the_byte(bench: Bench) -> None:
    _fill(bench, 700)
    vectorizer = bench.enqueue("docs", "body", chunk_size=20, chunk_overlap=5, rows_per_job=25)
    assert _several(bench, 3) == [Outcome.COMPLETE] * 3
    by_three = _chunks(bench)
    assert len(by_three) > 1_000
    assert bench.wrong(vectorizer) == RIGHT
    bench.sql("TRUNCATE docs_vectors")
    bench.plan(vectorizer)
    assert bench.drain() is Outcome.COMPLETE
    assert _chunks(bench) == by_three
    assert bench.value("SELECT count(*) FROM pgvec.workers") == 0


def test_progress_adds_up_when_all_is_done(bench: Bench) -> None:
    _fill(bench, 300)
    bench.sql("UPDATE docs SET body = NULL WHERE id < 10")
    bench.enqueue("docs", "body", where="id < 200", rows_per_job=33)
    bench.drain()
    done = bench.progress("docs")
    assert (done.state, done.rows_total, done.rows_done, done.rows_failed) == ("complete", 200, 200, 0)
    assert (done.chunks, done.rows_embedded) == (190, 190)
    assert done.jobs["queued"] == done.jobs["running"] == 0
    assert done.jobs["done"] == bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'done'")


def test_nothing_is_embedded_twice_and_changes_are_found_anywhere_in_key_order(bench: Bench) -> None:
    _fill(bench, 500)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=40)
    bench.drain()
    bench.plan(vectorizer)
    bench.drain()
    assert bench.progress("docs").rows_embedded == 500
    bench.sql("DELETE FROM docs WHERE mod(id, 10) = 3")
    bench.sql("UPDATE docs SET body = body || ' more' WHERE mod(id, 10) = 4")
    bench.sql("INSERT INTO docs SELECT -i, 'before all ' || i FROM generate_series(1, 20) i")
    bench.plan(vectorizer)
    assert bench.drain() is Outcome.COMPLETE
    now = bench.progress("docs")
    assert now.rows_embedded == 500 + 50 + 20
    assert (now.rows_total, now.rows_done, now.chunks) == (470, 470, 470)
    assert bench.wrong(vectorizer) == RIGHT


def test_the_faster_of_two_workers_on_one_job_does_most_of_it(bench: Bench) -> None:
    """The slow one hangs in its first call; the fast one takes a half after the other, until hardly any row is left."""
    _fill(bench, 400)
    with _endpoint(closed=True, holds=1) as (url, gate):
        vectorizer = bench.enqueue("docs", "body", **_remote(url), rows_per_job=400)
        with _running(Worker(bench.database, WorkerOptions(lease=6.0))):
            wait_until(lambda: gate.waiting, 20)
            with _running(Worker(bench.database, WorkerOptions(lease=6.0))):
                wait_until(lambda: bench.value("SELECT count(*) FROM docs_vectors") > 400 - 16, 30, what="the thefts")
                gate.open.set()
                wait_until(lambda: bench.progress("docs").state == "complete", 30)
                by_worker = [rows for (rows,) in bench.sql("SELECT rows_embedded FROM pgvec.counters ORDER BY 1")]
    assert sum(by_worker) == 400
    assert 0 < by_worker[0] < 16
    assert bench.wrong(vectorizer) == RIGHT
    done = bench.progress("docs")
    assert (done.rows_total, done.rows_done) == (400, 400)
    assert done.rows_wasted > 0, "the slow one had read more than was left to it"
    assert bench.value("SELECT sum(writes_refused) FROM pgvec.counters") == 0
    assert done.jobs["queued"] == 0
    assert done.jobs["done"] == bench.value("SELECT count(*) FROM pgvec.jobs")


def test_a_worker_s_row_tells_what_its_device_does(bench: Bench) -> None:
    _fill(bench, 100)
    bench.enqueue("docs", "body")
    measured = "SELECT FROM pgvec.worker_status WHERE busy BETWEEN 0 AND 1 AND documents_per_second > 0 AND loads = 1"
    with _running(Worker(bench.database, WorkerOptions(lease=1.0))):
        wait_until(lambda: bench.sql(measured), 20)


def test_a_document_that_the_destination_refuses_costs_only_itself(bench: Bench) -> None:
    _fill(bench, 200)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=100)
    bench.sql("ALTER TABLE docs_vectors ADD CHECK (id NOT IN (17, 150))")
    assert bench.drain() is Outcome.QUARANTINED
    assert bench.sql("SELECT key, error_class FROM pgvec.failures ORDER BY key") == [
        (["150"], "SQLSTATE 23514"),
        (["17"], "SQLSTATE 23514"),
    ]
    done = bench.progress("docs")
    assert (done.rows_total, done.rows_done, done.rows_failed) == (200, 198, 2)
    assert bench.wrong(vectorizer) == RIGHT


def test_a_document_over_the_limit_is_quarantined_unread(bench: Bench) -> None:
    _fill(bench, 20)
    bench.enqueue("docs", "body")
    bench.sql("UPDATE pgvec.vectorizers SET max_document_bytes = 1000")
    bench.sql("UPDATE docs SET body = repeat('x', 1001) WHERE id = 7")
    assert bench.drain() is Outcome.QUARANTINED
    assert bench.sql("SELECT key, error_class FROM pgvec.failures") == [(["7"], "DocumentTooLarge")]
    assert bench.progress("docs").rows_done == 19


def test_a_dropped_source_blocks_its_vectorizer_and_others_go_on(bench: Bench) -> None:
    _fill(bench, 50)
    _fill(bench, 50, "gone")
    bench.enqueue("gone", "body")
    bench.enqueue("docs", "body")
    bench.sql("DROP TABLE gone")
    assert bench.drain() is Outcome.BLOCKED
    blocked = bench.progress("gone")
    assert blocked.state == "blocked"
    assert blocked.reason is not None
    assert "gone" in blocked.reason
    assert bench.progress("docs").state == "complete"
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0


def test_a_missing_model_blocks_its_vectorizer(bench: Bench) -> None:
    _fill(bench, 10)
    bench.enqueue("docs", "body")
    bench.sql("UPDATE pgvec.vectorizers SET model = 'hashing-nonsense'")
    assert bench.drain() is Outcome.BLOCKED
    assert "hashing-nonsense" in str(bench.progress("docs").reason)


def test_a_paused_vectorizer_is_left_alone_and_does_not_hold_up_a_drain(bench: Bench) -> None:
    _fill(bench, 10)
    vectorizer = bench.enqueue("docs", "body")
    bench.sql("UPDATE pgvec.vectorizers SET paused = true")
    bench.sql("INSERT INTO pgvec.samples VALUES (%s, 1, clock_timestamp(), 5, 5, 5)", vectorizer.id)
    assert bench.drain() is Outcome.COMPLETE
    assert bench.value("SELECT count(*) FROM docs_vectors") == 0
    paused = bench.progress("docs")
    assert (paused.state, paused.rows_per_second, paused.eta_seconds) == ("paused", 0, None)


def test_the_highest_priority_is_worked_on_first(bench: Bench) -> None:
    _fill(bench, 60)
    _fill(bench, 60, "urgent")
    bench.enqueue("docs", "body", rows_per_job=10)
    bench.enqueue("urgent", "body", rows_per_job=10, priority=5)
    bench.drain()
    order = [v for (v,) in bench.sql("SELECT vectorizer_id FROM pgvec.jobs ORDER BY claimed_at")]
    assert order == sorted(order, reverse=True)


def test_work_goes_on_when_the_worker_that_had_it_is_gone(bench: Bench) -> None:
    _fill(bench, 100)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=20)
    dead = bench.register(lease=1.0)
    job = bench.claim(dead)
    part = bench.read(vectorizer, job, rows=8)
    bench.write(vectorizer, part, bench.embed(vectorizer, part), dead)
    assert bench.drain(lease=1.0) is Outcome.COMPLETE
    assert bench.wrong(vectorizer) == RIGHT
    assert bench.sql("SELECT attempts, epoch FROM pgvec.jobs WHERE id = %s", job.id) == [(1, 2)]
    assert bench.progress("docs").rows_embedded == 100, "what the dead one had written was not embedded again"


def test_a_worker_that_is_cut_off_in_the_middle_of_a_beat_is_declared_gone_as_any_other(bench: Bench) -> None:
    _fill(bench, 10)
    bench.enqueue("docs", "body")
    cut_off = bench.register(lease=1.0)
    bench.claim(cut_off)
    with closing(psycopg.connect(bench.database.conninfo("heartbeat"))) as connection:
        connection.execute(statement("database", "timeouts"))
        connection.execute("UPDATE pgvec.workers SET beat_at = clock_timestamp() WHERE id = %s", (cut_off.worker,))
        with _running(Worker(bench.database, WorkerOptions(lease=1.0))):
            wait_until(lambda: bench.progress("docs").state == "complete", 30, what="its job was taken over")


def test_a_worker_judges_nobody_before_its_own_heart_beat_for_a_lease(bench: Bench) -> None:
    _fill(bench, 10)
    bench.enqueue("docs", "body")
    dead = bench.register(lease=1.0)
    bench.claim(dead)
    bench.sql("UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour'")
    worker = Worker(bench.database, WorkerOptions(lease=60.0))
    with _running(worker):
        wait_until(lambda: bench.value("SELECT count(*) FROM pgvec.workers WHERE state = 'idle'") == 1)
        wait_until(lambda: bench.value("SELECT max(beat_at) - min(started_at) > interval '4 s' FROM pgvec.workers"), 30)
        assert bench.value("SELECT state FROM pgvec.jobs") == "running"


def test_a_worker_that_was_declared_gone_starts_afresh_under_a_new_id(bench: Bench) -> None:
    _fill(bench, 10)
    worker = Worker(bench.database, WorkerOptions(lease=2.0))
    with _running(worker):
        wait_until(lambda: bench.sql("SELECT id FROM pgvec.workers"))
        (first,) = bench.sql("SELECT id FROM pgvec.workers")[0]
        bench.sql("UPDATE pgvec.workers SET gone = true WHERE id = %s", first)
        wait_until(lambda: bench.sql("SELECT id FROM pgvec.workers WHERE NOT gone AND id <> %s", first), 15)
        vectorizer = bench.enqueue("docs", "body")
        wait_until(lambda: bench.progress("docs").state == "complete", 15)
        assert bench.wrong(vectorizer) == RIGHT


def test_a_worker_told_to_stop_releases_its_jobs_and_counts_no_attempt(bench: Bench) -> None:
    _fill(bench, 3_000)
    with _endpoint() as (url, gate):
        vectorizer = bench.enqueue("docs", "body", **_remote(url), rows_per_job=100)
        worker = Worker(bench.database, WorkerOptions())
        with _running(worker) as ended:
            wait_until(lambda: gate.calls > 2)
            worker.stop()
            wait_until(lambda: ended, 20)
        assert ended == [Outcome.STOPPED]
    states = dict(bench.sql("SELECT state, count(*) FROM pgvec.jobs GROUP BY 1"))
    assert set(states) <= {"queued", "done"}
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0
    assert bench.value("SELECT count(*) FROM pgvec.workers") == 0
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE worker_id IS NOT NULL") == 0
    assert vectorizer.id == 1


def test_a_worker_survives_lost_connections(bench: Bench) -> None:
    _fill(bench, 2_000)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=50)
    worker = Worker(bench.database, WorkerOptions())
    ending = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'pgvec %' AND pid <> pg_backend_pid()"
    )
    with _running(worker) as ended:
        for share in (0.2, 0.5, 0.8):
            wait_until(lambda s=share: bench.progress("docs").rows_done >= 2_000 * s, 30)  # type: ignore[misc]
            bench.sql(ending)
        wait_until(lambda: bench.progress("docs").state == "complete", 60)
        assert not ended
    assert bench.wrong(vectorizer) == RIGHT
    assert bench.progress("docs").rows_done == bench.progress("docs").rows_total == 2_000
    assert bench.value("SELECT count(*) FROM pgvec.failures") == 0


def test_no_transaction_is_open_while_the_model_runs(bench: Bench) -> None:
    _fill(bench, 300)
    with _endpoint(closed=True) as (url, gate):
        bench.enqueue("docs", "body", **_remote(url))
        with _running(Worker(bench.database, WorkerOptions())):
            wait_until(lambda: gate.waiting, 20)
            # Stages before the model may still be reading ahead; once their queues are full, nothing is left open.
            open_ = (
                "SELECT application_name, state FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"
            )
            try:
                wait_until(lambda: not bench.sql(open_), 10, what="no transaction open while the model runs")
                assert gate.waiting
            finally:
                gate.open.set()
            wait_until(lambda: bench.progress("docs").state == "complete", 30)


def test_one_bad_document_among_many_is_found_by_halving(bench: Bench) -> None:
    _fill(bench, 100)
    bench.sql("UPDATE docs SET body = 'this is POISON' WHERE id IN (3, 77)")
    with _endpoint() as (url, _):
        vectorizer = bench.enqueue("docs", "body", **_remote(url))
        assert bench.drain() is Outcome.QUARANTINED
    assert sorted(bench.sql("SELECT key FROM pgvec.failures")) == [(["3"],), (["77"],)]
    assert bench.wrong(vectorizer) == RIGHT
    assert bench.progress("docs").rows_done == 98


def test_an_endpoint_that_is_down_is_waited_for_and_no_attempt_is_counted(bench: Bench) -> None:
    _fill(bench, 40)
    with _endpoint(status=503) as (url, gate):
        bench.enqueue("docs", "body", **_remote(url))
        with _running(Worker(bench.database, WorkerOptions())):
            wait_until(lambda: gate.calls >= 2, 20)
            gate.status = 200
            wait_until(lambda: bench.progress("docs").state == "complete", 60)
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0
    assert bench.value("SELECT count(*) FROM pgvec.failures") == 0


def test_a_refused_key_blocks_the_vectorizer(bench: Bench) -> None:
    _fill(bench, 10)
    with _endpoint(status=401) as (url, _):
        bench.enqueue("docs", "body", **_remote(url))
        assert bench.drain() is Outcome.BLOCKED
    assert bench.progress("docs").state == "blocked"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_document_without_a_finite_vector_is_quarantined(bench: Bench, bad: float) -> None:
    _fill(bench, 20)
    bench.sql("UPDATE docs SET body = 'UNREAL' WHERE id = 5")
    with _endpoint(unreal=bad) as (url, _):
        bench.enqueue("docs", "body", **_remote(url))
        assert bench.drain() is Outcome.QUARANTINED
    assert bench.sql("SELECT key, error_class FROM pgvec.failures") == [(["5"], "NotFinite")]


class _Gate:
    """What a test knows and decides of the endpoint."""

    def __init__(self, status: int, unreal: float | None, holds: float) -> None:
        self.calls = 0
        self.waiting = 0
        self.status = status
        self.unreal = unreal
        self.holds = holds
        """How many calls wait while it is closed; those that come later pass."""
        self.open = threading.Event()


@contextmanager
def _endpoint(
    *, closed: bool = False, status: int = 200, unreal: float | None = None, holds: float = math.inf
) -> Iterator[tuple[str, _Gate]]:
    """Somebody's embeddings endpoint on this machine: constant vectors, and the answers that a test asks for."""
    gate = _Gate(status, unreal, holds)
    if not closed:
        gate.open.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None: ...

        def do_POST(self) -> None:
            texts = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
            gate.calls += 1
            if gate.calls <= gate.holds:
                gate.waiting += 1
                gate.open.wait(30)
                gate.waiting -= 1
            code = 400 if any("POISON" in text for text in texts) else gate.status
            vector = [0.5] * 4
            data = [
                {"index": i, "embedding": [gate.unreal] * 4 if "UNREAL" in text and gate.unreal else vector}
                for i, text in enumerate(texts)
            ]
            body = json.dumps({"data": data} if code == 200 else {"error": {"message": "no"}}).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", gate
    finally:
        gate.open.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def _tokenizer(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint's lengths are counted by a tokenizer; a word-level one of the test's own will do."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    global _TOKENIZER
    _TOKENIZER = str(tmp_path / "tokenizer.json")


_TOKENIZER = ""


def _remote(url: str) -> dict[str, Any]:
    return {"model": "fake", "embedder": "openai", "endpoint": url, "dimensions": 4, "tokenizer": _TOKENIZER}


def test_claims_are_oldest_first_and_a_released_job_keeps_its_checkpoint(bench: Bench) -> None:
    _fill(bench, 100)
    vectorizer: Vectorizer = bench.enqueue("docs", "body", rows_per_job=50)
    worker = bench.register()
    first = bench.claim(worker)
    part = bench.read(vectorizer, first, rows=10)
    bench.write(vectorizer, part, bench.embed(vectorizer, part), worker)
    assert queue.release(bench.connection, worker) == 1
    again = queue.Claimer(worker, None).claim(bench.connection)
    assert again is not None
    assert (again.id, again.checkpoint, again.epoch, again.attempts) == (first.id, part.checkpoint, 2, 0)


def test_two_workers_never_claim_the_same_job(bench: Bench) -> None:
    _fill(bench, 200)
    bench.enqueue("docs", "body", rows_per_job=2)
    claimed: list[int] = []

    def claim_all() -> None:
        with psycopg.connect(bench.dsn, autocommit=True) as connection:
            claimer = queue.Claimer(queue.register(connection, names=None, lease=60), None)
            while (job := claimer.claim(connection)) is not None:
                claimed.append(job.id)

    threads = [threading.Thread(target=claim_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed)) == 101


def test_documents_that_are_retried_leave_the_quarantine_when_they_succeed(bench: Bench) -> None:
    _fill(bench, 50)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=20)
    bench.sql("ALTER TABLE docs_vectors ADD CONSTRAINT picky CHECK (id NOT IN (17, 30))")
    assert bench.drain() is Outcome.QUARANTINED
    bench.sql("ALTER TABLE docs_vectors DROP CONSTRAINT picky")
    assert quarantine.retry(bench.connection, vectorizer.id, "SQLSTATE 99999") == 0
    assert quarantine.retry(bench.connection, vectorizer.id, "SQLSTATE 23514") == 2
    assert bench.progress("docs").rows_done == 48
    assert bench.drain() is Outcome.COMPLETE
    done = bench.progress("docs")
    assert (done.rows_total, done.rows_done, done.rows_failed) == (50, 50, 0)
    assert bench.wrong(vectorizer) == RIGHT


@pytest.mark.parametrize(("poll", "listen"), [((300.0, 300.0), True), ((0.05, 0.1), False)])
def test_an_idle_worker_is_woken_by_notify_and_without_it_by_polling(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, poll: tuple[float, float], listen: bool
) -> None:
    monkeypatch.setattr("pgvec_queue.worker.reader._IDLE_POLL", poll)
    _fill(bench, 10)
    with _running(Worker(bench.database, WorkerOptions(listen=listen))):
        wait_until(lambda: bench.sql("SELECT FROM pgvec.workers WHERE state = 'idle'"), 20)
        bench.enqueue("docs", "body")
        wait_until(lambda: bench.progress("docs").state == "complete", 20)
