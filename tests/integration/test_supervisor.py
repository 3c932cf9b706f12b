"""Several worker processes of one ``pgvec work``: they share the work, leave together, and are started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgvec_queue.worker import Outcome, Worker, WorkerOptions
from tests.commandline import CommandLine
from tests.integration.test_cli import on_terminal
from tests.support import Bench, pgvec
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("isolated")

ROOT = Path(__file__).parents[2]
RECYCLING = ROOT / "tests" / "recycling"

TORCH = """
class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
class backends:
    class mps:
        is_available = staticmethod(lambda: False)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def here(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A database with our schema that ``PGVEC_DSN`` names, and a model that takes 2 ms for a document."""
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "delay=0.002;kill=poison;hang=endless")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return bench


@pytest.fixture
def start(bench: Bench) -> Iterator[Start]:
    """Starts ``pgvec`` as a process of its own; what is left of it is killed at the end, its children included."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        started.append(pgvec(*arguments))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
    for pid in pids(bench):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in started:
        process.communicate()


def fill(bench: Bench, rows: int = 1_000, rows_per_job: int = 20) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, %s) i", rows)
    bench.enqueue("docs", "body", rows_per_job=rows_per_job)


def pids(bench: Bench) -> set[int]:
    """The worker processes that are registered."""
    return {pid for (pid,) in bench.sql("SELECT pid FROM pgvec.workers WHERE NOT gone")}


def busy(bench: Bench) -> set[int]:
    """The worker processes that have a job."""
    return {
        pid
        for (pid,) in bench.sql(
            "SELECT DISTINCT w.pid FROM pgvec.workers w JOIN pgvec.jobs j ON j.worker_id = w.id AND j.state = 'running'"
            " WHERE NOT w.gone"
        )
    }


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # An orphan that has ended stays until whoever inherited it looks.
    return Path(f"/proc/{pid}/stat").exists() and " Z " in Path(f"/proc/{pid}/stat").read_text()


def in_order(bench: Bench) -> None:
    """Asserts that nobody holds a job and that leaving has cost none an attempt."""
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'running'") == 0
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0
    assert bench.value("SELECT count(*) FROM pgvec.workers") == 0


def complete(bench: Bench) -> None:
    """Asserts that each of 1,000 documents has its vector, once."""
    assert bench.sql("SELECT count(*), count(DISTINCT id) FROM docs_vectors") == [(1_000, 1_000)]
    assert bench.sql("SELECT DISTINCT state FROM pgvec.jobs") == [("done",)]


def ready(said: str) -> list[str]:
    """The names of the processes that began to work, as the log tells of them."""
    return re.findall(r"\[(.*)\] worker is ready worker=\d+ ", said)


def commands(process: subprocess.Popen[str]) -> list[list[str]]:
    """The command lines of a process's children."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "ppid=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [line.split()[1:] for line in listed if line.split()[0] == str(process.pid)]


def worked(bench: Bench) -> int:
    """How many of the workers that are there have written something."""
    count: int = bench.value(
        "SELECT count(*) FROM pgvec.counters c JOIN pgvec.workers w ON w.id = c.worker_id WHERE c.jobs_done > 0"
    )
    return count


# All is done


def test_two_processes_share_a_drain(here: Bench, start: Start) -> None:
    fill(here)
    drain = start("work", "--drain", "--processes", "2")
    wait_until(lambda: worked(here) == 2, 30, what="two workers with something done")
    assert drain.pid not in pids(here)
    out, err = drain.communicate(timeout=60)
    assert (drain.returncode, out) == (0, "")
    complete(here)
    in_order(here)
    assert sorted(ready(err)) == ["1", "2"]
    assert "Traceback" not in err


def test_documents_in_quarantine_are_told_of_once(here: Bench, start: Start) -> None:
    fill(here, 200)
    here.sql("ALTER TABLE docs_vectors ADD CHECK (id NOT IN (17, 150))")
    drain = start("work", "--drain", "--processes", "2")
    _, err = drain.communicate(timeout=60)
    assert drain.returncode == 3
    assert err.count("pgvec: docs: 2 documents are in quarantine; see `pgvec failures docs`") == 1


def test_a_blocked_vectorizer_is_told_of_once(here: Bench, start: Start) -> None:
    fill(here, 200)
    here.sql("DROP TABLE docs_vectors")
    drain = start("work", "--drain", "--processes", "2")
    _, err = drain.communicate(timeout=60)
    assert drain.returncode == 1
    assert err.count("then run `pgvec resume docs`") == 1


def test_one_process_has_no_supervisor(here: Bench, start: Start) -> None:
    fill(here)
    drain = start("work", "--drain", "--processes", "1")
    wait_until(lambda: busy(here) == {drain.pid}, 30, what="the worker in this very process")
    drain.terminate()
    assert drain.wait(20) == 0


def test_the_number_of_processes_is_a_setting(
    here: Bench, start: Start, monkeypatch: pytest.MonkeyPatch, cli: CommandLine
) -> None:
    fill(here)
    Path("pgvec.toml").write_text("processes = 2")
    work = start("work")
    wait_until(lambda: len(pids(here)) == 2, 30, what="two workers")
    assert work.pid not in pids(here)
    work.terminate()
    assert work.wait(20) == 0
    monkeypatch.setenv("PGVEC_PROCESSES", "1")
    assert "processes = 1 (from PGVEC_PROCESSES)" in cli("doctor").out


def test_each_cuda_device_gets_a_worker(
    here: Bench, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    (tmp_path / "nvidia-smi").touch(0o700)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    fill(here)
    drain = start("work", "--drain")
    _, err = drain.communicate(timeout=60)
    assert drain.returncode == 0, err
    assert sorted(ready(err)) == ["cuda:0", "cuda:1"]
    complete(here)


# What the processes are told


def test_processes_get_what_was_said_and_no_address_in_their_command_line(
    here: Bench, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(here)
    monkeypatch.setenv("PGVEC_DSN", "host=127.0.0.1 port=1")
    work = start(
        *("work", "--dsn", here.dsn, "--direct-dsn", here.dsn, "--processes", "2", "--device", "cpu", "--lease", "7"),
        *("--no-listen", "--log-format", "json", "--memory", "3T", "--debug", "docs"),
    )
    wait_until(lambda: len(busy(here)) == 2, 30, what="two busy workers")
    assert here.sql("SELECT DISTINCT lease::text FROM pgvec.workers") == [("00:00:07",)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    told = commands(work)
    assert len(told) == 2
    for arguments in told:
        assert arguments[arguments.index("work") :] == [
            *("work", "--device", "cpu", "--threads", str(max(1, cores // 2)), "--lease", "7.0", "--memory"),
            *(str(3 * 2**40), "--no-listen", "--log-format", "json", "--debug", "--", "docs"),
        ]
    work.terminate()
    _, err = work.communicate(timeout=20)
    assert work.returncode == 0
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert {event["process"] for event in events if event["event"].endswith("is ready")} == {"1", "2"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nothing"], "no vectorizer is called 'nothing'"),
        (["--dsn", "host=127.0.0.1 port=1"], "cannot connect to the database"),
        (["--direct-dsn", "nonsense"], "the connection string cannot be read"),
        pytest.param(["--device", "cuda:99"], "cuda:99", marks=pytest.mark.model),
    ],
    ids=["name", "database", "direct", "device"],
)
def test_what_would_be_wrong_with_all_is_said_once(
    here: Bench, cli: CommandLine, arguments: list[str], reason: str
) -> None:
    fill(here, 10)
    assert reason in cli.refused("work", "--processes", "3", *arguments)


def test_an_outdated_schema_is_said_once(cli: CommandLine, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_DSN", database)
    assert "pgvec init" in cli.refused("work", "--processes", "3")


# Leaving


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_one_signal_has_all_leave_in_order(here: Bench, start: Start, number: signal.Signals) -> None:
    fill(here, 5_000)
    work = start("work", "--processes", "2")
    wait_until(lambda: len(busy(here)) == 2 and here.progress("docs").rows_done, 30, what="two busy workers")
    both = busy(here)
    work.send_signal(number)
    out, err = work.communicate(timeout=20)
    assert (work.returncode, out) == (0, "")
    assert err.count("pgvec: finishing the slice in hand; once more to stop at once\n") == 1
    assert "Traceback" not in err
    assert 0 < here.progress("docs").rows_done < 5_000
    in_order(here)
    assert all(gone(pid) for pid in both)


def test_a_service_manager_that_signals_all_of_them_is_not_taken_for_impatient(here: Bench, start: Start) -> None:
    fill(here, 5_000)
    work = start("work", "--processes", "2")
    wait_until(lambda: len(busy(here)) == 2, 30, what="two busy workers")
    for pid in (work.pid, *busy(here)):
        os.kill(pid, signal.SIGTERM)
    work.communicate(timeout=20)
    assert work.returncode == 0
    in_order(here)


def test_a_second_signal_ends_all_at_once(here: Bench, start: Start) -> None:
    fill(here, 200)
    work = start("work", "--processes", "2")
    with here.connection.transaction():
        here.sql("LOCK TABLE docs_vectors")
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'docs_vectors'::regclass"
        with psycopg.connect(here.dsn, autocommit=True) as other:
            wait_until(lambda: other.execute(waiting.encode()).fetchall() == [(2,)], 30, what="two writes that wait")
        both = pids(here)
        work.send_signal(signal.SIGINT)
        assert work.stderr is not None
        for line in work.stderr:
            if "once more to stop at once" in line:
                break
        assert work.poll() is None
        work.send_signal(signal.SIGINT)
        assert work.wait(2) == 130
        assert len(both) == 2
        wait_until(lambda: all(gone(pid) for pid in both), 2, what="the end of both")
    assert here.value("SELECT count(*) FROM docs_vectors") == 0


def test_processes_leave_in_order_when_their_supervisor_was_killed(here: Bench, start: Start) -> None:
    fill(here, 5_000)
    work = start("work", "--processes", "2")
    wait_until(lambda: len(busy(here)) == 2, 30, what="two busy workers")
    both = busy(here)
    work.kill()
    wait_until(lambda: all(gone(pid) for pid in both), 20, what="the end of both")
    in_order(here)


# Starting again


def test_a_killed_process_is_started_again_and_all_is_done(here: Bench, start: Start) -> None:
    fill(here)
    drain = start("work", "--drain", "--processes", "2", "--lease", "2")
    wait_until(lambda: len(busy(here)) == 2, 30, what="two busy workers")
    os.kill(max(busy(here)), signal.SIGKILL)
    _, err = drain.communicate(timeout=60)
    assert drain.returncode == 0, err
    assert (
        len(re.findall(r"\[[12]\] warning: process is to be started again seconds=1\.0: was killed by SIGKILL\n", err))
        == 1
    )
    assert len(ready(err)) == 3
    complete(here)


def test_a_document_that_kills_its_process_ends_in_quarantine_and_not_the_drain(here: Bench, start: Start) -> None:
    fill(here, 100)
    here.sql("UPDATE docs SET body = 'poison' WHERE id = 50")
    drain = start("work", "--drain", "--processes", "2", "--lease", "1")
    _, err = drain.communicate(timeout=120)
    assert drain.returncode == 3, err
    assert here.sql("SELECT key, error_class FROM pgvec.failures") == [(["50"], "WorkerDied")]
    assert here.value("SELECT count(*) FROM docs_vectors") == 99


def test_a_process_whose_model_hangs_is_replaced(here: Bench, start: Start) -> None:
    fill(here, 100)
    here.sql("UPDATE docs SET body = 'endless' WHERE id = 50")
    work = start("work", "--processes", "2", "--lease", "1", "--stall", "5")
    hung = re.compile(r"\[[12]\] warning: process is to be started again seconds=\S+: died with exit code 70\n")
    assert work.stderr is not None
    assert any(hung.search(line) for line in work.stderr)
    here.sql("UPDATE docs SET body = 'mended' WHERE id = 50")
    wait_until(lambda: here.progress("docs").state == "complete", 30, what="the end of the work")
    work.terminate()
    work.communicate(timeout=30)
    assert work.returncode == 0


def test_a_process_that_dies_in_an_outage_comes_back_after_it(
    here: Bench, start: Start, administration: psycopg.Connection[tuple[Any, ...]]
) -> None:
    fill(here)
    drain = start("work", "--drain", "--processes", "2", "--lease", "2")
    wait_until(lambda: len(busy(here)) == 2, 30, what="two busy workers")
    name = psycopg.sql.Identifier(here.value("SELECT current_database()"))
    administration.execute(psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
    os.kill(min(busy(here)), signal.SIGKILL)
    assert drain.stderr is not None
    assert any("died with exit code 70" in line for line in drain.stderr)
    administration.execute(psycopg.sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
    _, err = drain.communicate(timeout=60)
    assert drain.returncode == 0, err
    assert len(ready(err)) == 1
    complete(here)


# Recycling


@contextmanager
def recycled_when(worker: Worker, condition: Callable[[], object]) -> Iterator[None]:
    """Recycles a worker from another thread, as a device would, once a condition is true."""

    def recycle() -> None:
        wait_until(condition, 30)
        worker.recycle()

    thread = threading.Thread(target=recycle)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_recycled_worker_leaves_in_order_and_a_fresh_one_goes_on(here: Bench) -> None:
    fill(here)
    worker = Worker(here.database, WorkerOptions(drain=True))
    with recycled_when(worker, lambda: here.progress("docs").rows_done > 0):
        assert worker.run() is Outcome.RECYCLED
    assert 0 < here.progress("docs").rows_done < 1_000
    in_order(here)
    assert here.drain() is Outcome.COMPLETE
    complete(here)


def test_who_was_told_to_stop_is_not_recycled(here: Bench) -> None:
    worker = Worker(here.database, WorkerOptions())
    worker.stop()
    worker.recycle()
    assert worker.run() is Outcome.STOPPED
    worker = Worker(here.database, WorkerOptions())
    worker.recycle()
    worker.stop()
    assert worker.run() is Outcome.STOPPED


@pytest.fixture
def recyclable(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGUSR1 recycles the worker of a process."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(RECYCLING), str(ROOT)]))


@pytest.mark.usefixtures("recyclable")
def test_a_supervised_process_begins_afresh_at_once(here: Bench, start: Start) -> None:
    fill(here)
    drain = start("work", "--drain", "--processes", "2")
    wait_until(lambda: len(busy(here)) == 2, 30, what="two busy workers")
    os.kill(min(busy(here)), signal.SIGUSR1)
    _, err = drain.communicate(timeout=60)
    assert drain.returncode == 0, err
    assert len(re.findall(r"\[[12]\] process begins afresh\n", err)) == 1
    assert "started again" not in err
    assert len(ready(err)) == 3
    complete(here)
    in_order(here)


@pytest.mark.usefixtures("recyclable")
def test_a_worker_without_a_supervisor_begins_afresh_in_its_own_place(here: Bench, start: Start) -> None:
    fill(here)
    drain = start("work", "--drain", "--log-format", "json")
    wait_until(lambda: busy(here) == {drain.pid} and here.progress("docs").rows_done, 30, what="a busy worker")
    drain.send_signal(signal.SIGUSR1)
    _, err = drain.communicate(timeout=60)
    assert drain.returncode == 0, err
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert [event for event in events if re.search("ready|afresh", event)] == [
        "worker is ready",
        "process begins afresh",
        "worker is ready",
    ]
    complete(here)
    in_order(here)


@pytest.mark.usefixtures("recyclable")
def test_a_worker_that_began_afresh_obeys_signals(here: Bench, start: Start) -> None:
    fill(here, 5_000)
    work = start("work")
    wait_until(lambda: busy(here) == {work.pid}, 30, what="a busy worker")
    (first,) = here.sql("SELECT id FROM pgvec.workers")
    work.send_signal(signal.SIGUSR1)
    wait_until(lambda: busy(here) and here.sql("SELECT id FROM pgvec.workers") != [first], 30, what="a fresh worker")
    work.terminate()
    _, err = work.communicate(timeout=20)
    assert work.returncode == 0
    assert err.count("finishing the slice in hand") == 1
    in_order(here)


# On a terminal


def test_the_progress_of_several_processes_is_one_bar(here: Bench) -> None:
    fill(here, 2_000)
    here.sql("ALTER TABLE docs_vectors ADD CHECK (id % 100 <> 7)")
    code, out, shown = on_terminal("work", "--drain", "--processes", "2", size=(24, 200))
    assert (code, out) == (3, "")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    lines = re.split(r"[\r\n]+", plain)
    bars = [line for line in lines if "of 2,000 rows" in line]
    assert "2,000 of 2,000 rows" in bars[-1]
    assert all(re.fullmatch(r"docs +[━╸╺ ]+ [\d,]+ of 2,000 rows.*(left|active|complete) *", bar) for bar in bars), bars
    # What the processes say stands above it.
    said = [line for line in lines if re.search(r"\[[12]\] ", line)]
    assert all(re.match(r"\d\d:\d\d:\d\d \[[12]\] ", line) for line in said), said
    # A narrow terminal breaks the rest off.
    assert sum(" document is quarantined " in line for line in said) == 20
