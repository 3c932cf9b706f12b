"""What real workers log: each event as docs/logs.md has it, in JSON and for people, and nothing that is secret."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgvec_queue import embedded, queue
from tests.commandline import PASSWORD
from tests.logs import of, parsed
from tests.support import Bench, pgvec, run_pgvec
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("isolated")

ROOT = Path(__file__).parents[2]
JSON = ("--log-format", "json")
KEY = "endpoint-key-that-nobody-should-see"
SECRETS = (PASSWORD, KEY)

Start = Callable[..., "Running"]


class Running:
    """A ``pgvec`` process whose lines are read as they come."""

    def __init__(self, *arguments: str) -> None:
        self.process = pgvec(*arguments)
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                self._lines.append(line)

    @property
    def said(self) -> str:
        return "".join(self._lines)

    def has_said(self, event: str) -> bool:
        return any(json.loads(line)["event"] == event for line in list(self._lines))

    def wait_for(self, event: str) -> None:
        wait_until(lambda: self.has_said(event), 30, what=f"{event!r} in the log")

    def end(self, number: signal.Signals | None = signal.SIGTERM) -> list[dict[str, Any]]:
        """Ends it in order, or waits for its end; returns its lines, each of them as documented, none with a secret."""
        if number is not None:
            self.process.send_signal(number)
        self.process.wait(60)
        self._reader.join()
        assert not [secret for secret in SECRETS if secret in self.said]
        return parsed(self.said)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def here(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A database with our schema that ``PGVEC_DSN`` names, with a password that nobody asks for."""
    monkeypatch.setenv("PGVEC_DSN", make_conninfo(bench.dsn, password=PASSWORD))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return bench


@pytest.fixture
def start(here: Bench) -> Iterator[Start]:
    """Starts ``pgvec work`` with JSON lines; what is left of it is killed at the end, its children included."""
    started: list[Running] = []

    def begin(*arguments: str) -> Running:
        started.append(Running("work", *JSON, *arguments))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
    for (pid,) in here.sql("SELECT pid FROM pgvec.workers WHERE NOT gone"):
        # The test itself may have stood in for a worker.
        if pid != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for one in started:
        one.kill()


def fill(bench: Bench, rows: int = 100, table: str = "docs", **options: Any) -> None:
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO {table} SELECT i, 'the text of document ' || i FROM generate_series(1, %s) i", rows)
    bench.enqueue(table, "body", **options)


def refuse(bench: Bench, *ids: int) -> None:
    """Has the destination refuse documents with an error that repeats their text."""
    bench.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no: %', NEW.chunk; END $$"
    )
    bench.sql(
        "CREATE TRIGGER refuse BEFORE INSERT ON docs_vectors FOR EACH ROW"
        f" WHEN (NEW.id IN ({', '.join(map(str, ids))})) EXECUTE FUNCTION refuse()"
    )


# A run


def test_a_run_tells_of_its_beginning_its_model_its_jobs_and_its_end(here: Bench) -> None:
    fill(here, rows_per_job=10)
    fill(here, 30, table="others")
    ran = run_pgvec("work", "--drain", *JSON, "--log-level", "debug")
    lines = parsed(ran.err)
    assert ran.code == 0
    assert [line["event"] for line in lines if line["level"] == "info"][:3] == [
        "worker is ready",
        "model is loading",
        "model is loaded",
    ]
    (ready,) = of(lines, "worker is ready")
    assert (ready["device"], ready["dtype"], ready["runtime"]) == ("auto", "auto", "auto")
    assert {line["worker"] for line in lines} == {ready["worker"]}
    (loaded,) = of(lines, "model is loaded")
    assert (loaded["model"], loaded["device"]) == ("hashing-8", "cpu")
    claimed = {line["job"]: line["vectorizer"] for line in of(lines, "job is claimed")}
    done = {line["job"]: line for line in of(lines, "job is done")}
    assert claimed.keys() == done.keys() == {job for (job,) in here.sql("SELECT id FROM pgvec.jobs")}
    assert all(claimed[job] == line["vectorizer"] for job, line in done.items())
    summed = {line["vectorizer"]: line for line in of(lines, "jobs are done")}
    assert len(of(lines, "jobs are done")) == 2
    for name, rows in (("docs", 100), ("others", 30)):
        of_it = [line for line in done.values() if line["vectorizer"] == name]
        assert (summed[name]["jobs"], summed[name]["rows"]) == (len(of_it), rows)
        assert sum(line["rows"] for line in of_it) == rows
        assert 0 < max(line["seconds"] for line in of_it) <= summed[name]["seconds"] + 0.1
    assert lines[-1]["event"] == "worker has left"


def test_at_info_jobs_are_summed_up(here: Bench) -> None:
    fill(here, 500, rows_per_job=5)
    lines = parsed(run_pgvec("work", "--drain", *JSON).err)
    assert not of(lines, "job is claimed")
    assert not of(lines, "job is done")
    (summed,) = of(lines, "jobs are done")
    assert (summed["jobs"], summed["rows"]) == (101, 500)


def test_a_run_for_people_is_a_few_short_lines(here: Bench) -> None:
    fill(here)
    refuse(here, 7)
    ran = run_pgvec("work", "--drain")
    assert ran.code == 3
    clock = r"\d\d:\d\d:\d\d "
    expected = [
        clock + r"worker is ready worker=\d+ device=auto dtype=auto runtime=auto",
        clock + r"model is loading model=hashing-8",
        clock + r"model is loaded model=hashing-8 device=cpu dtype=float32 seconds=[\d.]+",
        clock + r"warning: document is quarantined vectorizer=docs job=\d+ key=7 error_class=\"SQLSTATE P0001\": no: …",
        clock + r"jobs are done vectorizer=docs jobs=1 rows=99 seconds=[\d.]+ rows_per_second=[\d.]+",
        clock + r"worker has left worker=\d+ seconds=[\d.]+ chunks_embedded=100",
        r"pgvec: docs: 1 document is in quarantine; see `pgvec failures docs`",
    ]
    assert len(ran.err.splitlines()) == len(expected), ran.err
    for line, pattern in zip(ran.err.splitlines(), expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_what_is_left_undone_is_told_in_json_as_well(here: Bench) -> None:
    fill(here)
    refuse(here, 7)
    ran = run_pgvec("work", "--drain", *JSON)
    assert ran.code == 3
    (left,) = of(parsed(ran.err), "vectorizer is not done")
    assert left["error"] == "docs: 1 document is in quarantine; see `pgvec failures docs`"


# Quarantine, and the text of documents


def test_a_document_in_quarantine_is_named_with_its_error_and_without_its_text(
    here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "nan=worthless")
    fill(here)
    here.sql("UPDATE docs SET body = 'a worthless document' WHERE id = 3")
    refuse(here, 7)
    lines = parsed(run_pgvec("work", "--drain", *JSON).err)
    found = {tuple(line["key"]): line for line in of(lines, "document is quarantined")}
    assert found.keys() == {("3",), ("7",)}
    assert {line["vectorizer"] for line in found.values()} == {"docs"}
    assert found[("3",)]["error_class"] == "NotFinite"
    assert (found[("7",)]["error_class"], found[("7",)]["error"]) == ("SQLSTATE P0001", "no: …")
    assert {line["level"] for line in found.values()} == {"warning"}
    assert not [line for line in lines if "the text of" in json.dumps(line)]


@pytest.mark.parametrize("asked", ["flag", "variable"])
def test_the_text_of_a_document_is_shown_where_that_is_asked_for(
    here: Bench, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    fill(here)
    refuse(here, 7)
    if asked == "variable":
        monkeypatch.setenv("PGVEC_LOG_TEXT", "1")
    lines = parsed(run_pgvec("work", "--drain", *JSON, *(["--log-text"] if asked == "flag" else [])).err)
    (line,) = of(lines, "document is quarantined")
    assert (line["error"], line["text"]) == ("no: the text of document 7", "the text of document 7")


def test_the_reason_of_a_block_repeats_no_text_either(here: Bench) -> None:
    fill(here)
    refuse(here, *range(1, 101))
    lines = parsed(run_pgvec("work", "--drain", *JSON).err)
    (line,) = of(lines, "vectorizer is blocked")
    assert line["vectorizer"] == "docs"
    assert line["error"].endswith("are refused by public.docs_vectors, the last one: no: …")
    assert "the text of document" in str(here.progress("docs").reason)
    assert "the text of" not in json.dumps(of(lines, "document is quarantined"))


def test_a_value_that_the_database_quotes_while_reading_is_not_logged(here: Bench) -> None:
    fill(here, where="body::bigint > 0")
    lines = parsed(run_pgvec("work", "--drain", *JSON).err)
    (line,) = of(lines, "vectorizer is blocked")
    assert line["error"] == 'reading public.docs: invalid input syntax for type bigint: "…"'


# Other workers


def test_reclaimed_jobs_are_told_of(here: Bench) -> None:
    fill(here)
    dead = here.register(lease=0.1)
    here.claim(dead)
    lines = parsed(run_pgvec("work", "--drain", "--lease", "1", *JSON).err)
    (line,) = of(lines, "jobs of workers that are gone are back in the queue")
    assert (line["workers"], line["jobs"], line["level"]) == (1, 1, "warning")


def test_a_stolen_job_is_told_of_by_thief_and_owner_and_each_line_names_its_process(
    here: Bench, monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "delay=0.005")
    fill(here, 1_500, rows_per_job=10_000)
    work = start("--drain", "--processes", "2", "--lease", "3")
    lines = work.end(None)
    stolen = of(lines, "job is stolen")
    cut = of(lines, "job is cut: somebody else does the rest")
    assert stolen
    assert cut
    assert {line["process"] for line in lines if line["event"] != "vectorizer is not done"} == {"1", "2"}
    assert {line["vectorizer"] for line in stolen + cut} == {"docs"}
    workers = {
        process: {line["worker"] for line in lines if line["process"] == process and "worker" in line}
        for process in "12"
    }
    assert [len(ids) for ids in workers.values()] == [1, 1]
    assert sum(line["rows"] for line in of(lines, "jobs are done")) >= 1_500


def test_a_lost_job_is_told_of(here: Bench, monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "delay=0.01")
    fill(here, 900)
    work = start()
    wait_until(lambda: here.progress("docs").rows_done, 30, what="the first rows")
    other = here.register()
    here.sql("UPDATE pgvec.jobs SET epoch = epoch + 1, worker_id = %s WHERE state = 'running'", other.worker)
    work.wait_for("job is lost; what was made for it is dropped")
    lines = work.end()
    (line,) = of(lines, "job is lost; what was made for it is dropped")
    assert (line["vectorizer"], line["job"]) == ("docs", here.value("SELECT id FROM pgvec.jobs"))


def test_a_worker_that_was_declared_gone_says_so_and_is_ready_again(here: Bench, start: Start) -> None:
    work = start("--lease", "1")
    work.wait_for("worker is ready")
    here.sql("UPDATE pgvec.workers SET gone = true")
    wait_until(lambda: here.value("SELECT count(*) FROM pgvec.workers WHERE NOT gone") == 1, 30)
    lines = work.end()
    (lost,) = of(lines, "lease is lost: declared gone, or the database is another; starting afresh")
    first, second = of(lines, "worker is ready")
    assert lost["worker"] == first["worker"] != second["worker"] == of(lines, "worker has left")[0]["worker"]


# What people do


@pytest.mark.parametrize(
    ("tell", "by"), [("signal", "a signal"), ("command", "pgvec workers stop"), ("supervisor", "its supervisor")]
)
def test_who_told_a_worker_to_leave_is_told(here: Bench, start: Start, tell: str, by: str) -> None:
    work = start(*(["--processes", "2"] if tell == "supervisor" else []))
    work.wait_for("worker is ready")
    if tell == "command":
        assert queue.stop_workers(here.connection, None) == 1
    lines = work.end(None if tell == "command" else signal.SIGTERM)
    assert work.process.returncode == 0
    assert {line["by"] for line in of(lines, "told to leave")} == {by}
    assert len(of(lines, "worker has left")) == len(of(lines, "worker is ready"))


def test_a_limit_that_is_crossed_and_kept_again_is_told_of_by_the_vectorizers_name(here: Bench, start: Start) -> None:
    fill(here)
    here.sql("UPDATE pgvec.vectorizers SET commit_time_limit = '1 microsecond'")
    work = start("--lease", "3")
    work.wait_for("limit is crossed; vectorizer waits")
    here.sql("UPDATE pgvec.vectorizers SET commit_time_limit = '1 hour'")
    work.wait_for("limit is kept again; vectorizer goes on")
    lines = work.end()
    assert {line["vectorizer"] for line in lines if line["event"].startswith("limit is ")} == {"docs"}
    assert "a small commit takes" in of(lines, "limit is crossed; vectorizer waits")[0]["error"]


def test_a_pause_is_told_of(here: Bench, monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "delay=0.01")
    fill(here, 900)
    work = start()
    wait_until(lambda: here.progress("docs").rows_done, 30, what="the first rows")
    here.sql("SELECT pgvec.pause('docs')")
    work.wait_for("vectorizer was stopped; its jobs are back in the queue")
    (line,) = of(work.end(), "vectorizer was stopped; its jobs are back in the queue")
    assert (line["vectorizer"], line["jobs"]) == ("docs", 1)


def test_a_destination_that_is_gone_blocks_and_says_so_once(here: Bench) -> None:
    fill(here)
    here.sql("DROP TABLE docs_vectors")
    ran = run_pgvec("work", "--drain", *JSON)
    assert ran.code == 1
    (line,) = of(parsed(ran.err), "vectorizer is blocked")
    assert (line["level"], line["vectorizer"]) == ("error", "docs")
    assert "does not exist" in line["error"]


# Trouble


def test_an_outage_is_one_line_for_each_who_waits_and_one_when_it_is_over(
    here: Bench, start: Start, administration: psycopg.Connection[tuple[Any, ...]]
) -> None:
    work = start("--lease", "3", "--log-level", "debug", "--debug")
    work.wait_for("worker is ready")
    name = here.value("SELECT current_database()")
    allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    administration.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
    try:
        administration.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> %s",
            [name, here.connection.info.backend_pid],
        )
        work.wait_for("waiting; it is tried again")
        wait_until(lambda: work.said.count("waiting; it is tried again") > 3, 30, what="several tries")
    finally:
        administration.execute(allow.format(sql.Identifier(name), sql.SQL("true")))
    work.wait_for("goes on after waiting")
    lines = work.end()
    warned = [line["what"] for line in of(lines, "waiting; it is tried again") if line["level"] == "warning"]
    assert warned
    assert len(warned) == len(set(warned))
    assert {line["what"] for line in of(lines, "goes on after waiting")} <= set(warned)


@contextmanager
def refusing_endpoint(status: int) -> Iterator[str]:
    """An endpoint that answers every request with a status, and repeats the key and the texts in what it says."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def do_POST(self) -> None:
            texts = json.loads(self.rfile.read(int(self.headers["content-length"])))["input"]
            said = f"{self.headers['authorization']} may not embed {texts}"
            body = json.dumps({"error": {"message": said}}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path / "tokenizer.json")


@pytest.mark.model
@pytest.mark.parametrize(
    ("status", "event"),
    [
        (401, "vectorizer is blocked"),
        (405, "vectorizer is blocked"),
        (503, "waiting; it is tried again"),
        (400, "document is quarantined"),
    ],
)
def test_a_broken_endpoint_is_told_of_without_key_and_text(
    here: Bench, monkeypatch: pytest.MonkeyPatch, start: Start, tokenizer: str, status: int, event: str
) -> None:
    monkeypatch.setenv("PGVEC_ENDPOINT_KEY", KEY)
    with refusing_endpoint(status) as url:
        fill(here, 3, model="fake", embedder="openai", endpoint=url, dimensions=4, tokenizer=tokenizer)
        work = start("--log-level", "debug", "--debug")
        work.wait_for(event)
        lines = work.end()
    (first, *_) = of(lines, event)
    assert f"answered {status}" in first["error"]
    assert "the text of" not in work.said


@pytest.mark.model
def test_an_endpoint_that_is_not_there_is_told_of_without_the_key(
    here: Bench, monkeypatch: pytest.MonkeyPatch, start: Start, tokenizer: str
) -> None:
    monkeypatch.setenv("PGVEC_ENDPOINT_KEY", KEY)
    url = "http://127.0.0.1:1/v1"
    fill(here, 3, model="fake", embedder="openai", endpoint=url, dimensions=4, tokenizer=tokenizer)
    work = start("--debug")
    work.wait_for("waiting; it is tried again")
    (line, *_) = of(work.end(), "waiting; it is tried again")
    assert (line["what"], "cannot be reached" in line["error"]) == ("the model", True)


def test_a_wrong_password_is_told_of_without_it(reachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Path(tempfile.mkdtemp(dir=reachable))
    base.chmod(0o711)
    server = embedded.Server(base / "postgres")
    try:
        dsn = server.listen("127.0.0.1").removeprefix("export PGVEC_DSN='").removesuffix("'")
        right = urlsplit(dsn).password
        assert right
        for arguments in ((), ("--debug",)):
            ran = run_pgvec("work", *JSON, *arguments, dsn=dsn.replace(right, PASSWORD))
            assert ran.code == 1
            assert "password authentication failed for user" in ran.err
            assert PASSWORD not in ran.err
            assert right not in ran.err
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        (line,) = parsed(run_pgvec("work", *JSON, dsn=dsn.replace(f":{right}@", "@")).err)
        assert line["event"] == "command has failed"
        assert PASSWORD not in line["error"]
    finally:
        server.stop()
        shutil.rmtree(base)


@pytest.mark.parametrize("arguments", [(), JSON, ("--processes", "2")], ids=" ".join)
def test_a_worker_whose_lines_nobody_reads_any_more_goes_on(here: Bench, arguments: tuple[str, ...]) -> None:
    fill(here, 10)
    with pgvec("work", "--log-level", "debug", *arguments) as work:
        assert work.stderr is not None
        assert work.stdout is not None
        try:
            assert "worker is ready" in work.stderr.readline()
            work.stderr.close()
            wait_until(lambda: here.progress("docs").state == "complete", 30, what="the end of the first table")
            fill(here, 10, table="others")
            wait_until(lambda: here.progress("others").state == "complete", 30, what="the end of the second table")
            work.terminate()
            assert work.wait(20) == 0
        finally:
            work.kill()
    assert here.value("SELECT count(*) FROM pgvec.workers") == 0
