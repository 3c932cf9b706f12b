"""``pgvec work --metrics-port``: what a real worker tells of itself, against what the database says."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from pgvec_queue import __version__, schema
from pgvec_queue.database import Database
from pgvec_queue.embedders import DeviceOptions
from pgvec_queue.worker import Outcome, Worker, WorkerOptions
from pgvec_queue.worker.measures import STAGES
from pgvec_queue.worker.metrics import METRICS, WorkerCollector, health
from tests.chaos.proxy import Network, Proxy
from tests.chaos.server import Server, free_port
from tests.commandline import assert_one_line
from tests.prometheus import Scraped, assert_clean, collected, get, needs_promtool, scrape
from tests.support import Bench, Ran, pgvec, run_pgvec
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("isolated")

ROOT = Path(__file__).parents[2]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts ``pgvec`` as a process of its own; whatever is left of it is killed at the end."""
    with ExitStack() as stack:

        def begin(*arguments: str, dsn: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
            process = pgvec(*arguments, dsn=dsn, env=env)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield begin


def fill(bench: Bench, rows: int, table: str = "docs") -> None:
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text)")
    bench.sql(
        f"INSERT INTO {table} SELECT i, 'document number ' || i || ' with words' FROM generate_series(1, %s) i", rows
    )


def counted(bench: Bench, name: str) -> dict[str, int]:
    """What the workers' writes have counted in the database."""
    columns = (
        "rows_right",
        "rows_embedded",
        "rows_wasted",
        "chunks_written",
        "chunks_reused",
        "tokens",
        "bytes_written",
    )
    sums = ", ".join(f"sum({column})::bigint" for column in columns)
    (row,) = bench.sql(
        f"SELECT {sums} FROM pgvec.counters c JOIN pgvec.vectorizers v ON v.id = c.vectorizer_id WHERE v.name = %s",
        name,
    )
    return dict(zip(columns, row, strict=True))


def told(scraped: Scraped, name: str) -> dict[str, float]:
    """The same, as the worker tells it."""
    metrics = {
        "rows_right": "rows_right",
        "rows_embedded": "rows_embedded",
        "rows_wasted": "rows_wasted",
        "chunks_written": "chunks_written",
        "chunks_reused": "chunks_reused",
        "tokens": "tokens_written",
        "bytes_written": "written_bytes",
    }
    return {column: scraped(f"pgvec_worker_{metric}_total", vectorizer=name) for column, metric in metrics.items()}


@contextmanager
def running(bench: Bench, **options: object) -> Iterator[Worker]:
    """A worker in a thread of this process; it has left in order at the end."""
    worker = Worker(bench.database, WorkerOptions(**options))  # type: ignore[arg-type]
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(worker.run()), daemon=True)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(20)
    assert outcomes == [Outcome.STOPPED]


def drained(bench: Bench, **options: object) -> Scraped:
    worker = Worker(bench.database, WorkerOptions(drain=True, **options))  # type: ignore[arg-type]
    worker.run()
    return collected(WorkerCollector(worker))


# What is counted


def test_a_worker_s_counters_are_those_of_the_database(bench: Bench) -> None:
    fill(bench, 900)
    fill(bench, 300, "other")
    bench.sql("UPDATE docs SET body = 'the same text' WHERE id %% %s = 0", 10)
    bench.enqueue("docs", "body", rows_per_job=100)
    bench.enqueue("other", "body", rows_per_job=50, chunk_size=4, chunk_overlap=0)
    scraped = drained(bench)
    for name in ("docs", "other"):
        assert told(scraped, name) == counted(bench, name), name
    assert told(scraped, "docs")["rows_right"] == 900
    assert told(scraped, "docs")["chunks_reused"] > 0
    assert told(scraped, "other")["chunks_written"] > 300
    jobs = dict(
        bench.sql(
            "SELECT v.name, count(*) FROM pgvec.jobs j JOIN pgvec.vectorizers v ON v.id = vectorizer_id GROUP BY 1"
        )
    )
    assert {name: scraped("pgvec_worker_claims_total", vectorizer=name) for name in jobs} == jobs
    assert scraped("pgvec_worker_slices_dropped_total", vectorizer="docs") == 0
    assert scraped("pgvec_worker_writes_total", vectorizer="other") >= 6
    assert set(scraped.kinds) <= {metric.name for metric in METRICS}


def test_batches_hold_the_tokens_that_the_model_was_given(bench: Bench) -> None:
    fill(bench, 200)
    bench.enqueue("docs", "body")
    scraped = drained(bench)
    tokens = bench.value("SELECT sum(tokens)::bigint FROM pgvec.counters")
    assert scraped("pgvec_worker_batch_tokens_sum") == tokens
    assert 1 <= scraped("pgvec_worker_batch_tokens_count") <= 200
    assert scraped("pgvec_worker_batch_tokens_bucket", le="+Inf") == scraped("pgvec_worker_batch_tokens_count")
    assert (scraped("pgvec_worker_padding_tokens_total"), scraped("pgvec_worker_padding_ratio")) == (0, 0)


def test_documents_that_fail_are_counted_by_their_error(bench: Bench) -> None:
    fill(bench, 300)
    bench.enqueue("docs", "body")
    bench.sql("ALTER TABLE docs_vectors ADD CHECK (id NOT IN (17, 150, 151))")
    bench.sql("UPDATE pgvec.vectorizers SET max_document_bytes = %s", 2_000)
    bench.sql("UPDATE docs SET body = repeat('long ', 1000) WHERE id = %s", 99)
    scraped = drained(bench)
    classes = {
        labels["error_class"]: scraped("pgvec_worker_documents_failed_total", **labels)
        for labels in scraped.labels("pgvec_worker_documents_failed_total")
    }
    assert classes == dict(bench.sql("SELECT error_class, count(*) FROM pgvec.failures GROUP BY 1"))
    assert classes["SQLSTATE 23514"] == 3
    assert sum(classes.values()) == 4


def test_jobs_that_are_the_rest_of_somebody_else_s_are_told_apart(bench: Bench, start: Start) -> None:
    fill(bench, 4_000)
    bench.enqueue("docs", "body", rows_per_job=10_000)
    owner = start("work", "--drain", dsn=bench.dsn, env={"PGVEC_HASHING_FAULTS": "rate=200"})
    wait_until(lambda: bench.progress("docs").rows_done > 0, 30, what="the owner's first slice")
    scraped = drained(bench)
    owner.communicate(timeout=60)
    assert scraped("pgvec_worker_steals_total", vectorizer="docs") >= 1
    assert scraped("pgvec_worker_claims_total", vectorizer="docs") == 0


def test_live_changes_never_make_a_counter_fall(bench: Bench) -> None:
    fill(bench, 100)
    bench.enqueue("docs", "body", sync=True)
    with running(bench) as worker:
        seen = []

        def embedded() -> float:
            scraped = collected(WorkerCollector(worker))
            if not scraped.has("pgvec_worker_rows_right_total"):
                return 0
            seen.append(scraped("pgvec_worker_rows_right_total", vectorizer="docs"))
            return scraped("pgvec_worker_rows_embedded_total", vectorizer="docs")

        wait_until(lambda: embedded() == 100, 20, what="the first hundred")
        bench.sql("DELETE FROM docs WHERE id <= %s", 50)
        wait_until(lambda: bench.value("SELECT count(*) FROM docs_vectors") == 50, 20, what="the deletion")
        bench.sql("UPDATE docs SET body = body || ' once more' WHERE id > %s", 90)
        wait_until(lambda: embedded() == 110, 20, what="ten changes")
    assert seen == sorted(seen)


def test_counters_survive_the_loss_of_a_lease(bench: Bench) -> None:
    fill(bench, 200)
    bench.enqueue("docs", "body")
    with running(bench, lease=2.0) as worker:
        collector = WorkerCollector(worker)
        wait_until(lambda: bench.progress("docs").rows_done == 200, 20, what="the first rows")
        (old,) = bench.sql("UPDATE pgvec.workers SET gone = true RETURNING id")
        wait_until(lambda: collected(collector)("pgvec_worker_lease_losses_total") == 1, 20, what="the loss")
        bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(201, 500) i")
        bench.plan(bench.define("docs", "body").vectorizer)
        wait_until(lambda: bench.progress("docs").rows_done == 500, 20, what="the rest")
        assert bench.value("SELECT id FROM pgvec.workers WHERE NOT gone") != old[0]
        wait_until(lambda: told(collected(collector), "docs") == counted(bench, "docs"), what="the same numbers")
        assert told(collected(collector), "docs")["rows_embedded"] == 500


def test_a_stage_s_time_is_all_accounted_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "rate=1000")
    fill(bench, 30_000)
    bench.enqueue("docs", "body")
    with running(bench) as worker:
        wait_until(lambda: bench.progress("docs").rows_done > 500, 30, what="some rows")
        first = collected(WorkerCollector(worker))
        wait_until(lambda: bench.progress("docs").rows_done > 3_500, 30, what="more rows")
        second = collected(WorkerCollector(worker))
    spent = {
        stage: {
            labels["activity"]: second("pgvec_worker_stage_seconds_total", **labels)
            - first("pgvec_worker_stage_seconds_total", **labels)
            for labels in second.labels("pgvec_worker_stage_seconds_total")
            if labels["stage"] == stage
        }
        for stage in STAGES
    }
    total = {stage: sum(times.values()) for stage, times in spent.items()}
    assert min(total.values()) > 0.8
    assert max(total.values()) - min(total.values()) < 0.2
    assert min(seconds for times in spent.values() for seconds in times.values()) >= 0
    # The device is what everybody waits for.
    assert spent["embedder"]["working"] > 0.8 * total["embedder"]
    assert spent["writer"]["starved"] > 0.5 * total["writer"]
    assert spent["reader"]["blocked"] > 0.5 * total["reader"]
    assert second("pgvec_worker_device_busy_ratio") > 0.5


def test_slices_that_are_given_up_are_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "rate=200")
    fill(bench, 3_000)
    bench.enqueue("docs", "body")
    with running(bench) as worker:
        wait_until(lambda: bench.progress("docs").rows_done > 0, 30, what="some rows")
        assert collected(WorkerCollector(worker))("pgvec_worker_slices_dropped_total", vectorizer="docs") == 0
        bench.sql("SELECT pgvec.pause('docs')")
        wait_until(lambda: not worker.look().slices and not worker.look().jobs, 20, what="empty hands")
        scraped = collected(WorkerCollector(worker))
    assert scraped("pgvec_worker_slices_dropped_total", vectorizer="docs") >= 1


def test_a_reader_that_a_limit_holds_back_says_so(bench: Bench) -> None:
    fill(bench, 3_000)
    bench.enqueue("docs", "body")
    bench.sql("SELECT pgvec.alter_vectorizer('docs', rows_per_second_limit => %s)", 100)
    with running(bench) as worker:
        wait_until(lambda: bench.progress("docs").rows_done > 200, 30, what="some rows")
        scraped = collected(WorkerCollector(worker))
    held, starved, working = (
        scraped("pgvec_worker_stage_seconds_total", stage="reader", activity=activity)
        for activity in ("held", "starved", "working")
    )
    assert held > 1
    assert held > 2 * (starved + working)


def test_what_is_in_hand_and_what_it_runs_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "rate=200")
    fill(bench, 1_000)
    bench.enqueue("docs", "body")
    with running(bench) as worker:
        before = collected(WorkerCollector(worker))
        assert [labels["version"] for labels in before.labels("pgvec_worker_info")] == [__version__]
        wait_until(lambda: bench.progress("docs").rows_done > 0, 30, what="some rows")
        scraped = collected(WorkerCollector(worker))
    assert scraped("pgvec_worker_info", version=__version__, device="cpu", dtype="float32", runtime="") == 1
    assert scraped("pgvec_worker_state", state="working") == 1
    assert sum(scraped("pgvec_worker_state", **labels) for labels in scraped.labels("pgvec_worker_state")) == 1
    assert scraped("pgvec_worker_jobs") >= 1
    assert scraped("pgvec_worker_slices") >= 1
    assert (scraped("pgvec_worker_models"), scraped("pgvec_worker_model_loads_total")) == (1, 1)
    assert scraped("pgvec_worker_model_memory_bytes") > 1_000
    assert scraped("pgvec_worker_lease_seconds") == 30
    assert scraped("pgvec_worker_peak_memory_bytes") > 10e6


@pytest.mark.model
def test_a_real_model_s_batches_are_told_with_their_padding(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, repeat('word ', i) FROM generate_series(1, 60) i")
    bench.enqueue("docs", "body", model="sentence-transformers/all-MiniLM-L6-v2")
    # What is said need not be measured first.
    scraped = drained(bench, device=DeviceOptions("cpu", batch_tokens=512, threads=1, runtime="torch"))
    real = bench.value("SELECT sum(tokens)::bigint FROM pgvec.counters")
    computed = scraped("pgvec_worker_batch_tokens_sum")
    assert computed > real
    assert scraped("pgvec_worker_padding_tokens_total") == computed - real
    assert 0 < scraped("pgvec_worker_padding_ratio") < 0.2
    assert scraped("pgvec_worker_batch_tokens_count") > 1


# Whether it is well


def test_a_worker_that_has_not_begun_is_not_well(bench: Bench) -> None:
    worker = Worker(bench.database, WorkerOptions())
    assert health(worker) == (False, "there was no heartbeat yet; the worker is starting")
    assert not collected(WorkerCollector(worker)).has("pgvec_worker_last_beat_timestamp_seconds")


def test_health_follows_the_heartbeat_through_an_outage(start: Start) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(closing(Server()))
        server.create()
        schema.initialize(Database(server.dsn))
        network = stack.enter_context(closing(Network()))
        proxy = stack.enter_context(closing(Proxy(network, server.port)))
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        process = start("work", "--lease", "2", "--metrics-port", str(port), dsn=server.dsn_at(proxy.port))
        wait_until(lambda: get(f"{url}/health").status == 200, 30, what="a worker that is well")
        assert re.fullmatch(r"the last heartbeat was \d\.\d s ago; the lease is 2 s\n", get(f"{url}/health").text)
        before = scrape(url)("pgvec_worker_last_beat_timestamp_seconds")
        proxy.cut()
        wait_until(lambda: get(f"{url}/health").status == 503, 30, what="a worker that is not")
        ill = get(f"{url}/health").text
        assert re.fullmatch(r"the last heartbeat was \d+\.\d s ago; the lease is 2 s: .*\n", ill), ill
        assert "refused" in ill or "closed" in ill or "reset" in ill, ill
        assert scrape(url)("pgvec_worker_waits") >= 0, "metrics are there all the time"
        proxy.heal()
        wait_until(lambda: get(f"{url}/health").status == 200, 30, what="a worker that is well again")
        assert scrape(url)("pgvec_worker_last_beat_timestamp_seconds") > before
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode == 0
        assert get(url).status == 0


# The command line


def test_port_0_is_any_free_one_and_the_log_says_which(bench: Bench, start: Start) -> None:
    worker = start("work", "--metrics-port", "0", dsn=bench.dsn)
    assert worker.stderr is not None
    line = next(line for line in worker.stderr if "metrics" in line)
    found = re.search(r" metrics are served url=(http://127\.0\.0\.1:\d+)/metrics\n", line)
    assert found is not None, line
    wait_until(lambda: get(f"{found[1]}/health").status == 200, 30, what="a heartbeat")
    scraped = scrape(found[1])
    assert scraped("process_resident_memory_bytes") > 10e6
    assert {"pgvec_worker_info", "pgvec_worker_stage_seconds_total"} <= scraped.kinds.keys()


@pytest.mark.parametrize("where", ["environment", "file"])
def test_port_and_address_are_settings(bench: Bench, start: Start, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    port = free_port()
    if where == "file":
        Path("pgvec.toml").write_text(f'metrics_port = {port}\nmetrics_host = "localhost"\n')
    else:
        monkeypatch.setenv("PGVEC_METRICS_PORT", str(port))
        monkeypatch.setenv("PGVEC_METRICS_HOST", "localhost")
    start("work", dsn=bench.dsn)
    wait_until(lambda: get(f"http://localhost:{port}/health").status == 200, 30, what="a heartbeat")


def test_each_process_has_a_port_and_one_that_is_started_again_has_its_own_again(bench: Bench, start: Start) -> None:
    port = _two_free_ports()
    urls = [f"http://127.0.0.1:{port + at}" for at in (0, 1)]
    work = start("work", "--processes", "2", "--metrics-port", str(port), dsn=bench.dsn)
    for url in urls:
        wait_until(lambda: get(f"{url}/health").status == 200, 60, what=f"a worker at {url}")  # noqa: B023
    born = scrape(urls[0])("process_start_time_seconds")
    pids = [pid for (pid,) in bench.sql("SELECT pid FROM pgvec.workers WHERE NOT gone ORDER BY id")]
    killed = next(pid for pid in pids if _listens(pid, port))
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: get(urls[0]).status == 0, what="a port without anybody")
    wait_until(lambda: get(f"{urls[0]}/health").status == 200, 60, what="a fresh process at the same port")
    assert scrape(urls[0])("process_start_time_seconds") > born
    work.terminate()
    work.communicate(timeout=30)


def test_a_process_that_begins_afresh_serves_at_the_same_port(
    bench: Bench, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests" / "recycling"), str(ROOT)]))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    worker = start("work", "--metrics-port", str(port), dsn=bench.dsn)
    wait_until(lambda: get(f"{url}/health").status == 200, 30, what="a heartbeat")
    (first,) = bench.sql("SELECT id FROM pgvec.workers")
    # A connection that is open meanwhile keeps the port from nobody.
    with socket.create_connection(("127.0.0.1", port)):
        worker.send_signal(signal.SIGUSR1)
        wait_until(lambda: bench.sql("SELECT id FROM pgvec.workers") not in ([], [first]), 30, what="a fresh worker")
    wait_until(lambda: get(f"{url}/health").status == 200, 30, what="a heartbeat at the same port")
    assert scrape(url)("pgvec_worker_lease_losses_total") == 0


def _refused(bench: Bench, *arguments: str) -> Ran:
    ran = run_pgvec("work", *arguments, dsn=bench.dsn)
    assert ran.code == 1, ran
    assert_one_line(ran)
    assert bench.value("SELECT count(*) FROM pgvec.workers") == 0
    return ran


def test_a_port_in_use_is_one_line_before_anything_begins(bench: Bench) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = str(other.getsockname()[1])
        said = f"metrics cannot be served at 127.0.0.1:{port}: the port is in use; choose another one"
        assert said in _refused(bench, "--metrics-port", port).err
        assert said in _refused(bench, "--processes", "2", "--metrics-port", port).err


def test_the_last_port_has_none_after_it(bench: Bench) -> None:
    assert "none above 65535" in _refused(bench, "--processes", "3", "--metrics-port", "65534").err


def test_an_address_that_is_not_this_machine_s_is_refused(bench: Bench) -> None:
    ran = _refused(bench, "--metrics-port", "0", "--metrics-host", "192.0.2.1")
    assert "192.0.2.1:0: that is no address of this machine; 0.0.0.0 stands for all of them" in ran.err


def test_without_a_port_nothing_of_prometheus_is_loaded(bench: Bench) -> None:
    fill(bench, 10)
    bench.enqueue("docs", "body")
    program = (
        "import sys\nfrom pgvec_queue.cli import run\n"
        "code = run(['work', '--drain'])\n"
        "print(code, [name for name in sys.modules if name.startswith(('prometheus', 'http.server'))])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PGVEC_DSN": bench.dsn},
        check=True,
    )
    assert ran.stdout == "0 []\n"


@needs_promtool
def test_promtool_has_nothing_to_say_against_a_worker(bench: Bench, start: Start) -> None:
    fill(bench, 300)
    bench.enqueue("docs", "body")
    bench.sql("ALTER TABLE docs_vectors ADD CHECK (id <> 7)")
    port = free_port()
    start("work", "--metrics-port", str(port), dsn=bench.dsn)
    wait_until(lambda: bench.progress("docs").state == "complete", 30, what="all rows")
    scraped = scrape(f"http://127.0.0.1:{port}")
    assert scraped("pgvec_worker_documents_failed_total", vectorizer="docs", error_class="SQLSTATE 23514") == 1
    assert {metric.name for metric in METRICS} - {"pgvec_worker_device_memory_bytes"} <= scraped.kinds.keys()
    assert_clean([scraped.text])


def _two_free_ports() -> int:
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def _listens(pid: int, port: int) -> bool:
    import psutil

    return any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in psutil.Process(pid).net_connections("inet")
    )
