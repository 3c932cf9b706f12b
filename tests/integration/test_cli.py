"""The command line against a real database: the whole way, what each command prints, and every error in one line."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pgvec_queue import embedded, embedded_programs, schema
from tests.commandline import PASSWORD, CommandLine, assert_one_line
from tests.support import Bench, pgvec, run_pgvec
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("isolated")

RIGHT = {"missing": 0, "orphaned": 0, "stale": 0}
MODEL = ("--model", "hashing-8")
STATUS_FIELDS = {
    "name",
    "state",
    "reason",
    "rows_total",
    "rows_done",
    "rows_failed",
    "chunks",
    "jobs",
    "rows_per_second",
    "chunks_per_second",
    "eta_seconds",
}

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def here(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A database with our schema that ``PGVEC_DSN`` names."""
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)
    return bench


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts ``pgvec`` as a process of its own; what is left of it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        started.append(pgvec(*arguments))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def fill(bench: Bench, rows: int = 10, table: str = "docs") -> None:
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO {table} SELECT i, 'document number ' || i FROM generate_series(1, %s) i", rows)


def slow(bench: Bench) -> None:
    """Makes every write to the destination take a while, as a distant or busy server would."""
    bench.sql(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END $$"
    )
    bench.sql("CREATE TRIGGER wait AFTER INSERT ON docs_vectors FOR EACH STATEMENT EXECUTE FUNCTION wait()")


def put_chunk(bench: Bench, dimensions: int) -> None:
    """Something to find, without a model."""
    columns = "id, chunk_index, chunk, embedding, source_hash"
    bench.sql(
        f"INSERT INTO docs_vectors ({columns}) VALUES (1, 0, 'x', array_fill(1, ARRAY[%s])::vector, '')", dimensions
    )


def status(cli: CommandLine, *names: str) -> list[dict[str, Any]]:
    ran = cli("status", "--json", *names)
    assert (ran.code, ran.err) == (0, "")
    return [json.loads(line) for line in ran.out.splitlines()]


# The whole way


def test_from_an_empty_database_to_an_answer(cli: CommandLine, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_DSN", database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
        connection.execute("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 10) i")
    assert cli("init").out == f"The schema pgvec was created (revision {schema.HEAD}).\n"
    assert cli("init").out == f"The schema pgvec is up to date (revision {schema.HEAD}).\n"
    planned = cli("enqueue", "docs", "--text", "body", *MODEL)
    assert planned.code == 0
    assert planned.out == "docs: 10 rows in 1 jobs, public.docs -> public.docs_vectors, hashing-8, 8 dimensions\n"
    assert "pgvec work" in planned.err
    worked = cli("work", "--drain")
    assert (worked.code, worked.out) == (0, "")
    found = cli("search", "docs", "document number 7", "--limit", "1")
    assert found.out == "1.000  7, chunk 0\n       document number 7\n"
    assert (found.code, found.err) == (0, "")


def test_the_ddl_that_init_prints_makes_what_init_makes(
    cli: CommandLine, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = cli("init", "--sql", "--dsn", "host=127.0.0.1 port=1")
    assert (printed.code, printed.err) == (0, "")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(printed.out.encode())
    monkeypatch.setenv("PGVEC_DSN", database)
    assert "up to date" in cli("init").out
    assert cli("status").code == 0


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(cli: CommandLine, here: Bench) -> None:
    fill(here)
    ran = cli("enqueue", "docs", "--text", "body", *MODEL, "--where", "id > 3", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[:9] == [
        "name:        docs",
        "source:      public.docs",
        "key:         id bigint",
        "text:        body",
        "where:       id > 3",
        "destination: public.docs_vectors (new)",
        "model:       hashing-8 (hashing), 8 dimensions as vector",
        "chunks:      128 tokens, overlap 20",
        "sync:        none: run enqueue again",
    ]
    assert lines[9:16] == [
        "rows in the source:       10",
        "rows selected:            7",
        "rows blank:               0",
        "rows to embed:            7",
        "chunks:                   7",
        "tokens:                   21",
        "jobs:                     1",
    ]
    assert here.value("SELECT count(*) FROM pgvec.vectorizers") == 0
    assert here.value("SELECT to_regclass('docs_vectors')") is None


def test_enqueue_again_adds_what_is_new_and_a_difference_is_refused(cli: CommandLine, here: Bench) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    cli("work", "--drain")
    here.sql("INSERT INTO docs VALUES (11, 'document number 11')")
    assert cli("enqueue", "docs").out.startswith("docs: 11 rows in 1 jobs")
    assert cli("work", "--drain").code == 0
    assert here.value("SELECT count(*) FROM docs_vectors") == 11
    line = cli.refused("enqueue", "docs", "--text", "body", "--model", "hashing-16")
    assert "--model was hashing-8, now it is hashing-16" in line


@pytest.mark.parametrize("name", ["default", "a.b.c"])
def test_enqueue_again_takes_the_name_where_no_table_is_called_so(cli: CommandLine, here: Bench, name: str) -> None:
    here.sql('CREATE SCHEMA "Shop"')
    fill(here, table='"Shop"."Docs"')
    cli("enqueue", "Shop.Docs", "--text", "body", *MODEL, "--name", name)
    assert cli("work", "--drain").code == 0
    told = cli("enqueue", name, "--dry-run").out.splitlines()
    assert told[:2] == [f"name:        {name}", "source:      Shop.Docs"]
    assert cli("enqueue", name).out.startswith(f"{name}: 10 rows in 1 jobs, Shop.Docs -> ")
    line = cli.refused("enqueue", name, "--text", "body", "--model", "hashing-16")
    assert "--model was hashing-8, now it is hashing-16" in line
    assert repr(name) in cli.refused("enqueue", name, "--text", "body", "--name", "other")


def test_enqueue_takes_a_table_before_a_vectorizer_of_that_name(cli: CommandLine, here: Bench) -> None:
    fill(here)
    fill(here, table="others")
    cli("enqueue", "docs", "--text", "body", *MODEL, "--name", "others")
    assert "'others' is over public.docs, not public.others" in cli.refused("enqueue", "others")


def test_status_tells_people_how_far_it_is_and_why_nothing_moves(cli: CommandLine, here: Bench) -> None:
    none = cli("status")
    assert (none.code, none.out) == (0, "")
    assert none.err == "pgvec: there is no vectorizer yet; make one with `pgvec enqueue`\n"
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    header, row, reason = cli("status").out.splitlines()
    assert " ".join(header.split()) == "name state rows done failed chunks jobs left rate left"
    assert " ".join(row.split()) == "docs active 10 0 (0.0 %) 0 0 1"
    assert reason == "docs: no worker is running"
    cli("work", "--drain")
    assert " ".join(cli("status", "docs").out.splitlines()[1].split()) == "docs complete 10 10 (100 %) 0 10 0"


def test_status_tells_scripts_what_was_promised(cli: CommandLine, here: Bench) -> None:
    assert status(cli) == []
    fill(here)
    fill(here, table="others")
    cli("enqueue", "docs", "--text", "body", *MODEL)
    cli("enqueue", "others", "--text", "body", *MODEL)
    (found,) = status(cli, "docs")
    assert found.keys() >= STATUS_FIELDS
    assert (found["name"], found["state"], found["reason"]) == ("docs", "active", "no worker is running")
    assert (found["rows_total"], found["rows_done"], found["rows_failed"], found["chunks"]) == (10, 0, 0, 0)
    assert found["jobs"] == {"queued": 1, "running": 0, "done": 0, "cancelled": 0}
    assert found["eta_seconds"] is None
    cli("work", "--drain", "docs")
    done, untouched = status(cli)
    assert (done["state"], done["reason"], done["rows_done"], done["chunks"]) == ("complete", None, 10, 10)
    assert done["jobs"]["done"] == 1
    assert (untouched["name"], untouched["rows_done"]) == ("others", 0)


def test_one_line_stays_one_line_whatever_names_and_reasons_hold(cli: CommandLine, here: Bench) -> None:
    fill(here)
    name = "[bold]x[/] [/y] :smile: " + "long " * 40 + "."
    cli("enqueue", "docs", "--text", "body", *MODEL, "--name", name)
    here.sql("UPDATE pgvec.vectorizers SET blocked_reason = E'no [/z]\\n\\x1b[31mred', blocked_at = now()")
    _, row, reason = cli("status").out.splitlines()
    assert row.startswith(name)
    assert reason == name + r": no [/z] \x1b[31mred"
    assert status(cli)[0]["reason"] == "no [/z]\n\x1b[31mred"


def test_pause_resume_cancel_and_drop(cli: CommandLine, here: Bench) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    for command, state in (("pause", "paused"), ("resume", "active"), ("cancel", "cancelled"), ("resume", "active")):
        ran = cli(command, "docs", *(["--yes"] if command == "cancel" else []))
        assert (ran.code, ran.err) == (0, "")
        assert ran.out.startswith("docs ")
        assert status(cli)[0]["state"] == state
    cli("work", "--drain")
    ran = cli("drop", "docs", "--yes")
    assert (ran.code, ran.out, ran.err) == (0, "docs is dropped; public.docs_vectors stays as it is.\n", "")
    assert status(cli) == []
    assert here.value("SELECT count(*) FROM docs_vectors") == 10
    assert here.value("SELECT count(*) FROM pgvec.jobs") == 0


def test_enqueue_of_one_that_is_halted_says_how_it_goes_on(cli: CommandLine, here: Bench) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    cli("pause", "docs")
    ran = cli("enqueue", "docs")
    assert (ran.code, ran.err) == (0, "pgvec: docs is paused; to have it go on, run: pgvec resume docs\n")
    cli("resume", "docs")
    assert "start `pgvec work`" in cli("enqueue", "docs").err
    # As a worker may that meets the first jobs while the last are planned.
    here.sql(
        "CREATE FUNCTION block() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN NEW.blocked_reason := 'no such model'; RETURN NEW; END $$"
    )
    here.sql("CREATE TRIGGER block BEFORE UPDATE ON pgvec.vectorizers FOR EACH ROW EXECUTE FUNCTION block()")
    line = cli("enqueue", "docs").err
    assert line == "pgvec: docs is blocked: no such model; to have it go on, run: pgvec resume docs\n"


@pytest.mark.parametrize("command", ["cancel", "drop"])
def test_what_loses_something_is_refused_without_a_terminal_unless_it_was_confirmed(
    cli: CommandLine, here: Bench, command: str
) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    assert "Give --yes" in cli.misused(command, "docs")
    assert status(cli)[0]["state"] == "active"


# Workers


def test_a_drain_that_leaves_documents_in_quarantine_exits_with_3(cli: CommandLine, here: Bench) -> None:
    fill(here)
    assert cli("enqueue", "docs", "--text", "body", *MODEL, "--no-chunking").code == 0
    here.sql("ALTER TABLE docs_vectors ADD CHECK (chunk NOT LIKE '%% 7')")
    here.sql("UPDATE docs SET body = repeat('long ', 30) WHERE id = 9")
    here.sql("UPDATE pgvec.vectorizers SET max_document_bytes = 100")
    ran = cli("work", "--drain")
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.endswith("pgvec: docs: 2 documents are in quarantine; see `pgvec failures docs`\n")
    assert status(cli)[0]["rows_failed"] == 2
    lines = [line.split("\t") for line in sorted(cli("failures", "docs").out.splitlines())]
    assert [(key, kind) for key, kind, _ in lines] == [("7", "SQLSTATE 23514"), ("9", "DocumentTooLarge")]
    assert "violates check constraint" in lines[0][2]
    assert "150 bytes, the limit is 100" in lines[1][2]
    rows = [json.loads(line) for line in cli("failures", "docs", "--json").out.splitlines()]
    assert sorted((row["key"], row["error_class"]) for row in rows) == [
        (["7"], "SQLSTATE 23514"),
        (["9"], "DocumentTooLarge"),
    ]
    assert {row["model"] for row in rows} == {"hashing-8"}


def test_a_failure_stays_in_its_line(cli: CommandLine, here: Bench) -> None:
    fill(here, 1)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    assert cli("failures", "docs").err == "pgvec: docs has no document in quarantine\n"
    assert cli("retry", "docs").out == "docs: 0 documents are queued again.\n"
    here.sql("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE E'two\\twords \\x1b[31m'; END $$")
    here.sql("CREATE TRIGGER no BEFORE INSERT ON docs_vectors FOR EACH ROW EXECUTE FUNCTION no()")
    assert cli("work", "--drain").code == 3
    assert cli("failures", "docs").out == "1\tSQLSTATE P0001\ttwo words \\x1b[31m\n"


def test_retry_takes_documents_out_of_quarantine_by_their_class(cli: CommandLine, here: Bench) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    here.sql("ALTER TABLE docs_vectors ADD CONSTRAINT short CHECK (length(chunk) < 19)")
    here.sql("UPDATE docs SET body = body || ' and more' WHERE id < 3")
    assert cli("work", "--drain").code == 3
    here.sql("ALTER TABLE docs_vectors DROP CONSTRAINT short")
    none = cli("retry", "docs", "--error", "Other")
    assert none.out == "docs: 0 documents are queued again (of error class Other).\n"
    ran = cli("retry", "docs", "--error", "SQLSTATE 23514")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "docs: 2 documents are queued again (of error class SQLSTATE 23514).\n"
    assert cli("work", "--drain").code == 0
    assert here.value("SELECT count(*) FROM docs_vectors") == 10


def test_a_drain_that_meets_a_blocked_vectorizer_exits_with_1_and_says_what_to_do(
    cli: CommandLine, here: Bench
) -> None:
    fill(here)
    fill(here, table="others")
    cli("enqueue", "docs", "--text", "body", *MODEL)
    cli("enqueue", "others", "--text", "body", *MODEL)
    here.sql("DROP TABLE docs")
    ran = cli("work", "--drain")
    assert (ran.code, ran.out) == (1, "")
    last = ran.err.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("pgvec: docs is blocked: reading public.docs: relation")
    assert last.endswith("; mend that, then run `pgvec resume docs`")
    assert {one["name"]: one["state"] for one in status(cli)} == {"docs": "blocked", "others": "complete"}
    assert cli("work", "--drain", "others").err.count("blocked") == 0


def test_a_drain_passes_over_what_is_paused_and_says_so(cli: CommandLine, here: Bench) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    cli("pause", "docs")
    ran = cli("work", "--drain")
    assert ran.code == 0
    assert ran.err.endswith("pgvec: docs is paused; `pgvec resume docs` lets it go on\n")


def test_logs_can_be_json(cli: CommandLine, here: Bench) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    events = [json.loads(line) for line in cli("work", "--drain", "--log-format", "json").err.splitlines()]
    assert {event["level"] for event in events} == {"info"}
    assert ("model is loading", "hashing-8") in {(event["event"], event.get("model")) for event in events}
    assert cli("work", "--drain", "--log-level", "warning").err == ""


def test_sigterm_gives_the_jobs_back_and_ends_in_order(here: Bench, cli: CommandLine, start: Start) -> None:
    fill(here, 5_000)
    cli("enqueue", "docs", "--text", "body", *MODEL, "--rows-per-job", "50")
    slow(here)
    worker = start("work")
    wait_until(lambda: here.progress("docs").rows_done, 30, what="the first rows")
    (listed,) = [json.loads(line) for line in cli("workers", "--json").out.splitlines()]
    assert listed["pid"] == worker.pid
    assert cli("workers").out.splitlines()[1].split()[2] == str(worker.pid)
    worker.send_signal(signal.SIGTERM)
    out, err = worker.communicate(timeout=10)
    assert (worker.returncode, out) == (0, "")
    assert "pgvec: finishing the slice in hand; once more to stop at once\n" in err
    assert "Traceback" not in err
    assert 0 < here.progress("docs").rows_done < 5_000
    assert here.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'running'") == 0
    assert here.value("SELECT sum(attempts) FROM pgvec.jobs") == 0
    assert here.value("SELECT count(*) FROM pgvec.workers") == 0
    assert cli("workers").err == "pgvec: no worker is running; start one with `pgvec work`\n"


def test_a_second_sigint_ends_at_once(here: Bench, cli: CommandLine, start: Start) -> None:
    fill(here, 100)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    worker = start("work")
    with here.connection.transaction():
        here.sql("LOCK TABLE docs_vectors")
        wait_until(
            lambda: here.value(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'docs_vectors'::regclass"
            ),
            30,
            what="the write that waits",
        )
        worker.send_signal(signal.SIGINT)
        assert worker.stderr is not None
        for line in worker.stderr:
            if "once more to stop at once" in line:
                break
        assert worker.poll() is None
        worker.send_signal(signal.SIGINT)
        assert worker.wait(2) == 130
    assert here.value("SELECT count(*) FROM docs_vectors") == 0


def test_what_a_killed_worker_had_is_done_by_others_without_a_gap_and_nothing_twice(
    here: Bench, cli: CommandLine, start: Start
) -> None:
    fill(here, 2_000)
    cli("enqueue", "docs", "--text", "body", *MODEL, "--rows-per-job", "25")
    slow(here)
    workers = [start("work", "--lease", "2") for _ in range(2)]
    busy = (
        "SELECT count(DISTINCT w.pid) FROM pgvec.workers w JOIN pgvec.jobs j ON j.worker_id = w.id"
        " WHERE j.state = 'running' AND w.pid = ANY (%s)"
    )
    wait_until(lambda: here.value(busy, [w.pid for w in workers]) == 2, 30, what="two busy workers")
    workers[0].kill()
    workers[0].wait()
    third = start("work", "--drain", "--lease", "2")
    _, err = third.communicate(timeout=60)
    assert third.returncode == 0, err
    workers[1].terminate()
    assert workers[1].wait(10) == 0
    assert here.value("SELECT count(*) FROM docs_vectors") == 2_000
    assert here.value("SELECT count(DISTINCT id) FROM docs_vectors") == 2_000
    assert here.sql("SELECT DISTINCT state FROM pgvec.jobs") == [("done",)]
    assert here.value("SELECT sum(attempts) FROM pgvec.jobs") >= 1
    assert status(cli)[0]["rows_done"] == 2_000


# Search


@pytest.fixture
def answers(here: Bench, cli: CommandLine) -> Bench:
    """Ten documents with their vectors."""
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    assert cli("work", "--drain").code == 0
    return here


def test_search_prints_json_best_first_and_no_more_than_asked_for(cli: CommandLine, answers: Bench) -> None:
    ran = cli("search", "docs", "document number 3", "--json", "--limit", "4")
    assert (ran.code, ran.err) == (0, "")
    hits = [json.loads(line) for line in ran.out.splitlines()]
    assert len(hits) == 4
    assert hits[0] == {"key": ["3"], "chunk_index": 0, "score": 1.0, "chunk": "document number 3"}
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    assert len(cli("search", "docs", "x", "--json").out.splitlines()) == 10


def test_a_threshold_that_nothing_reaches_says_the_best_score(cli: CommandLine, answers: Bench) -> None:
    ran = cli("search", "docs", "document number 3", "--threshold", "0.999")
    assert ran.out.startswith("1.000  3, chunk 0\n")
    ran = cli("search", "docs", "something else", "--threshold", "0.999")
    assert (ran.code, ran.out) == (0, "")
    assert re.fullmatch(r"pgvec: nothing reaches 0\.999; the best score was -?0\.\d{3}\n", ran.err)


def test_an_index_does_not_cut_the_number_of_hits(cli: CommandLine, here: Bench) -> None:
    fill(here, 3_000)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    cli("work", "--drain")
    here.sql("CREATE INDEX ON docs_vectors USING hnsw (embedding vector_cosine_ops)")
    here.sql("ANALYZE docs_vectors")
    here.sql("ALTER TABLE docs_vectors ALTER embedding SET STORAGE EXTERNAL")
    plan = here.sql("EXPLAIN SELECT id FROM docs_vectors ORDER BY embedding <=> '[1,2,3,4,5,6,7,8]' LIMIT 100")
    assert "Index Scan" in str(plan), "the number of hits would prove nothing"
    assert len(cli("search", "docs", "x", "--json", "--limit", "100").out.splitlines()) == 100


def test_an_empty_destination_is_said_to_be_empty(cli: CommandLine, here: Bench) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    ran = cli("search", "docs", "anything")
    assert (ran.code, ran.out, ran.err) == (0, "", "pgvec: docs has no vectors yet; see `pgvec status docs`\n")


def test_an_empty_destination_is_looked_for_before_a_model_is_loaded(cli: CommandLine, here: Bench) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", "--model", "nobody/nothing", "--dimensions", "8")
    ran = cli("search", "docs", "anything")
    assert (ran.code, ran.out, ran.err) == (0, "", "pgvec: docs has no vectors yet; see `pgvec status docs`\n")
    put_chunk(here, 8)
    assert "nobody/nothing" in cli.refused("search", "docs", "anything")


def test_a_destination_that_is_gone_is_named(cli: CommandLine, answers: Bench) -> None:
    answers.sql("DROP TABLE docs_vectors")
    line = cli.refused("search", "docs", "anything")
    assert line.startswith("public.docs_vectors is not what it was")
    assert "pgvec drop docs" in line


def test_a_destination_without_text_answers_with_the_documents(cli: CommandLine, here: Bench) -> None:
    fill(here)
    here.sql("CREATE TABLE bare (id bigint PRIMARY KEY, embedding vector(8))")
    cli("enqueue", "docs", "--text", "body", *MODEL, "--no-chunking", "--into", "bare", "--name", "bare")
    cli("enqueue", "docs", "--text", "body", *MODEL, "--into-column", "v", "--name", "column")
    assert cli("work", "--drain").code == 0
    for name in ("bare", "column"):
        assert cli("search", name, "document number 4", "--limit", "1").out == "1.000  4\n       document number 4\n"
        (hit,) = cli("search", name, "document number 4", "--limit", "1", "--json").out.splitlines()
        assert json.loads(hit) == {"key": ["4"], "chunk_index": None, "score": 1.0, "chunk": "document number 4"}


def test_search_looks_for_words_alone_and_with_vectors(cli: CommandLine, answers: Bench) -> None:
    words = cli("search", "docs", "number 3", "--text-only", "--limit", "1")
    assert (words.code, words.out, words.err) == (0, "  -    3, chunk 0\n       document number 3\n", "")
    nothing = cli("search", "docs", "elephant", "--text-only", "--threshold", "0.5")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "pgvec: no text has any of these words\n")
    ran = cli("search", "docs", "document number 3", "--hybrid", "--json", "--language", "simple", "--exact")
    hits = [json.loads(line) for line in ran.out.splitlines()]
    assert hits[0] == {"key": ["3"], "chunk_index": 0, "score": 1.0, "chunk": "document number 3", "fused": 0.032787}
    assert len(hits) == 10
    assert "exclude each other" in cli.misused("search", "docs", "x", "--hybrid", "--text-only")
    assert 'text search configuration "klingon" does not exist' in cli.refused(
        "search", "docs", "x", "--language", "klingon"
    )


def test_search_goes_on_after_a_page_and_says_where_it_ends(cli: CommandLine, answers: Bench) -> None:
    whole = cli("search", "docs", "x", "--json").out.splitlines()
    pages = [
        cli("search", "docs", "x", "--json", "--limit", "4", "--offset", at).out.splitlines() for at in ("0", "4", "8")
    ]
    assert [hit for page in pages for hit in page] == whole
    beyond = cli("search", "docs", "x", "--offset", "10")
    assert beyond.out == ""
    assert beyond.err.startswith("pgvec: there are no more than 10 hits; the best score was ")


def test_search_shows_neighbours_all_chunks_and_metadata(cli: CommandLine, here: Bench) -> None:
    here.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text, metadata jsonb)")
    here.sql("INSERT INTO docs VALUES (1, 'one two three. four five six. seven eight nine.', '{\"lang\": \"en\"}')")
    here.sql("INSERT INTO docs VALUES (2, 'something else', '{\"lang\": \"de\"}')")
    cli("enqueue", "docs", "--text", "body", *MODEL, "--chunk-size", "4", "--chunk-overlap", "0")
    cli("work", "--drain")
    shown = cli("search", "docs", "four five six.", "--neighbours", "1", "--filter", '{"lang": "en"}')
    assert shown.out == ("1.000  1, chunk 1\n       one two three.\n       four five six.\n       seven eight nine.\n")
    hits = [
        json.loads(line)
        for line in cli(
            "search", "docs", "four five six.", "--all-chunks", "--filter", '{"lang": "en"}', "--json"
        ).out.splitlines()
    ]
    assert sorted(hit["chunk_index"] for hit in hits) == [0, 1, 2]
    assert hits[0]["metadata"] == {"lang": "en"}
    assert "no text that the filter lets through" in cli("search", "docs", "x", "--filter", '{"lang": "fr"}').err
    for wrong in ("en", "[1]", '{"a": NaN}', ""):
        assert "is no JSON object" in cli.misused("search", "docs", "x", "--filter", wrong)


def test_a_long_text_is_cut_after_four_lines_and_a_strange_one_stays_text(cli: CommandLine, here: Bench) -> None:
    here.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    here.sql("INSERT INTO docs VALUES (1, repeat('word ', 200)), (2, E'[bold]b[/] [/x] :smile: \\x1b[31m \\t\\n end')")
    cli("enqueue", "docs", "--text", "body", *MODEL, "--no-chunking")
    cli("work", "--drain")
    first = cli("search", "docs", "word " * 199 + "word", "--limit", "1").out.splitlines()
    assert len(first) == 5
    assert first[4].endswith(" ...")
    assert max(map(len, first)) <= 100
    for hit in (cli("search", "docs", "x").out,):
        assert "       [bold]b[/] [/x] :smile: \\x1b[31m end\n" in hit


# Output


def test_output_that_is_no_terminal_is_plain_whatever_the_environment_asks_for(
    cli: CommandLine, here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("FORCE_COLOR", "1"),
        ("CLICOLOR_FORCE", "1"),
        ("TTY_COMPATIBLE", "1"),
        ("TERM", "xterm-256color"),
    ):
        monkeypatch.setenv(name, value)
    fill(here)
    here.sql("UPDATE docs SET body = 'naïve 世界' WHERE id = 5")
    for arguments in (
        ["enqueue", "docs", "--text", "body", *MODEL, "--dry-run"],
        ["enqueue", "docs", "--text", "body", *MODEL],
        ["status"],
        ["work", "--drain"],
        ["status"],
        ["status", "--json"],
        ["workers"],
        ["search", "docs", "document number 3", "--limit", "1"],
        ["search", "docs", "naïve 世界", "--limit", "1", "--json"],
        ["failures", "docs"],
        ["doctor"],
        ["init"],
    ):
        ran = cli(*arguments)
        assert ran.code == 0, arguments
        assert "\x1b" not in ran.out + ran.err, arguments
        assert "\r" not in ran.out + ran.err, arguments
        assert ran.out.isascii(), arguments


def test_text_that_the_terminal_cannot_show_is_escaped(here: Bench, cli: CommandLine) -> None:
    here.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    here.sql("INSERT INTO docs VALUES (1, 'naïve 世界')")
    cli("enqueue", "docs", "--text", "body", *MODEL)
    cli("work", "--drain")
    ran = run_pgvec("search", "docs", "query", env={"PYTHONIOENCODING": "ascii"})
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith("       na\\xefve \\u4e16\\u754c\n")


@pytest.mark.parametrize("command", ["status", "work --drain", "search docs x"])
def test_closed_outputs_fail_no_command(here: Bench, cli: CommandLine, command: str) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    subprocess.run(["sh", "-c", f'exec "$0" -m pgvec_queue {command} >&- 2>&-', sys.executable], check=True)


def on_terminal(*arguments: str, size: tuple[int, int] = (24, 80)) -> tuple[int, str, str]:
    """Runs ``pgvec`` with stderr, and stdin, at a terminal; returns exit code, stdout and what the terminal got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-m", "pgvec_queue", *arguments],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        try:
            while part := os.read(ours, 65_536):
                shown += part
        except OSError:
            # Linux reports the end of a terminal as an error.
            pass
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    return process.returncode, out.decode(), shown.decode()


def test_a_drain_on_a_terminal_shows_how_far_it_is(here: Bench, cli: CommandLine) -> None:
    fill(here, 2_000)
    cli(
        "enqueue",
        "docs",
        "--text",
        "body",
        *MODEL,
        "--rows-per-job",
        "100",
        "--name",
        "a rather long name " * 3 + "[/x]",
    )
    slow(here)
    code, out, shown = on_terminal("work", "--drain")
    assert (code, out) == (0, "")
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    bars = [line for line in re.split(r"[\r\n]+", plain) if "of 2,000 rows" in line]
    assert any(re.search(r"a rather .*… .* of 2,000 rows +[\d,.]+ rows/s +\d+ s left", bar) for bar in bars)
    assert "2,000 of 2,000 rows" in bars[-1]
    assert "complete" in bars[-1]
    assert max(map(len, bars)) <= 80


def test_status_fits_a_narrow_terminal(here: Bench, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    here.sql("UPDATE pgvec.vectorizers SET rows_planned = 123456789")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    ran = subprocess.run(
        [sys.executable, "-m", "pgvec_queue", "status"], stdout=theirs, env={**os.environ, "TERM": "dumb"}, check=True
    )
    os.close(theirs)
    assert ran.returncode == 0
    header, row, reason = os.read(ours, 65_536).decode().splitlines()
    os.close(ours)
    assert header.split() == ["name", "state", "rows", "done", "failed", "rate", "left"]
    assert row.split() == ["docs", "active", "123,456,789", "0.0", "%", "0"]
    assert reason == "docs: no worker is running"


def test_a_question_on_a_terminal_takes_no_for_an_answer(here: Bench, cli: CommandLine) -> None:
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    for answer, code, left in (("n", 1, 1), ("y", 0, 0)):
        ours, theirs = pty.openpty()
        os.write(ours, f"{answer}\n".encode())
        process = subprocess.Popen(
            [sys.executable, "-m", "pgvec_queue", "drop", "docs"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        _, err = process.communicate(timeout=30)
        os.close(ours)
        os.close(theirs)
        assert process.returncode == code
        assert "Drop the vectorizer docs? public.docs_vectors stays as it is. [y/N]: " in err
        assert err.endswith("pgvec: nothing was changed\n") == bool(left)
        assert here.value("SELECT count(*) FROM pgvec.vectorizers") == left


# Errors


NOWHERE = f"postgresql://me:{PASSWORD}@127.0.0.1:1/shop"


@pytest.mark.parametrize(
    ("dsn", "reason"),
    [
        (
            NOWHERE,
            'cannot connect to the database shop at 127.0.0.1:1: .*"127.0.0.1", port 1 failed: Connection refused',
        ),
        (f"postgresql://me:{PASSWORD}@nowhere.invalid/shop", "shop at nowhere.invalid: failed to resolve host"),
        (f"postgresql://me:{PASSWORD}@127.0.0.1:99999/shop", 'invalid port number: "99999"'),
        (f"postgresql://me:x@{PASSWORD}@127.0.0.1:port/shop", "cannot be read"),
        (f"postgresql://me:x/{PASSWORD}@127.0.0.1:1/shop", "cannot be read"),
        (f"postgresql://me:{PASSWORD}@[::1/shop", "cannot be read"),
        (f"postgresql://me:%zz{PASSWORD}@127.0.0.1/shop", "cannot be read; write a URI such as"),
        (f"postgresql://me:{PASSWORD}@127.0.0.1/shop?colour=red", "cannot be read; write a URI such as"),
        (f"host=127.0.0.1 password={PASSWORD} colour=red", "cannot be read; write a URI such as"),
        (f"host=127.0.0.1 password=two {PASSWORD}", "cannot be read; write a URI such as"),
        (f"host=127.0.0.1 port=abc password={PASSWORD}", 'invalid integer value "abc" for connection option "port"'),
        (f"host=127.0.0.1 port=1 connect_timeout=abc password={PASSWORD}", "bad value for connect_timeout"),
        (f"host=/nowhere password={PASSWORD}", "cannot connect to the database .*/nowhere"),
        ("service=nowhere", 'service "nowhere" not found'),
        ("shop", "cannot be read; write a URI such as"),
        ("", "--dsn is empty"),
        ("embedded:data", "write embedded:///absolute/directory"),
    ],
)
def test_a_database_that_cannot_be_had_is_one_line_without_a_password(cli: CommandLine, dsn: str, reason: str) -> None:
    assert re.search(reason, cli.refused("status", "--dsn", dsn))
    # What is wrong with the address itself the doctor says like everybody else; the rest is a finding.
    ran = cli("doctor", "--dsn", dsn)
    assert ran.code == 1
    assert re.search(reason, ran.out + ran.err)
    assert PASSWORD not in ran.out + ran.err


@pytest.mark.parametrize(
    "command",
    [
        ["init"],
        ["enqueue", "docs", "--text", "body"],
        ["work"],
        ["work", "--drain"],
        ["status"],
        ["search", "docs", "query"],
        ["verify", "docs"],
        ["failures", "docs"],
        ["retry", "docs"],
        ["pause", "docs"],
        ["resume", "docs"],
        ["cancel", "docs", "--yes"],
        ["drop", "docs", "--yes"],
        ["workers"],
        ["demo", "--documents", "1"],
    ],
    ids=" ".join,
)
def test_every_command_says_in_one_line_that_the_database_is_away(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("PGVEC_DSN", NOWHERE)
    ran = cli(*command)
    assert ran.code == 1
    assert PASSWORD not in ran.out + ran.err
    assert "Traceback" not in ran.err
    # The demo says first what it does.
    lines = [line for line in ran.err.splitlines() if not line.startswith("Reading the docstrings")]
    assert [line[:58] for line in lines] == ["pgvec: cannot connect to the database shop at 127.0.0.1:1:"]


def test_debug_shows_the_traceback_and_still_no_password() -> None:
    ran = run_pgvec("status", "--debug", dsn=NOWHERE)
    assert ran.code == 1
    assert ran.err.startswith("Traceback (most recent call last):")
    assert ran.err.splitlines()[-1].startswith("pgvec_queue.errors.DatabaseError: cannot connect")
    assert PASSWORD not in ran.out + ran.err


def test_a_process_that_fails_prints_one_line() -> None:
    assert_one_line(run_pgvec("status", dsn=NOWHERE))


def test_what_the_server_refuses_is_one_line(cli: CommandLine, database: str) -> None:
    parts = conninfo_to_dict(database)
    where = f"host={parts['host']} port={parts['port']}"
    assert 'database "nowhere" does not exist' in cli.refused(
        "status", "--dsn", f"{where} user=postgres dbname=nowhere"
    )
    assert 'role "nobody"' in cli.refused("status", "--dsn", f"{where} user=nobody dbname={parts['dbname']}")
    bare = f"{where} user=postgres dbname=template1"
    assert "the database has no pgvector; run `pgvec init`" in cli.refused("status", "--dsn", bare)


@pytest.mark.parametrize(
    "command",
    [
        "enqueue docs --text body",
        "work",
        "status",
        "search docs x",
        "failures docs",
        "retry docs",
        "pause docs",
        "resume docs",
        "cancel docs --yes",
        "drop docs --yes",
        "workers",
    ],
)
def test_a_database_without_our_schema_says_how_to_make_it(
    cli: CommandLine, database: str, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("PGVEC_DSN", database)
    assert cli.refused(*command.split()) == "there is no pgvec schema; run: pgvec init"


def test_a_schema_from_another_version_is_refused_by_name(cli: CommandLine, here: Bench) -> None:
    here.upgrade_to("9999")
    for command in ("status", "work --drain", "work --drain --processes 2", "init"):
        line = cli.refused(*command.split())
        assert line.startswith("the pgvec schema is at revision 9999, newer than this program's")
        assert line.endswith("; upgrade pgvec-queue")


@pytest.mark.parametrize(
    "command",
    [
        "work {}",
        "work --drain {}",
        "status {}",
        "search {} x",
        "failures {}",
        "retry {}",
        "pause {}",
        "resume {}",
        "cancel {}",
        "drop {}",
    ],
)
def test_an_unknown_vectorizer_is_named_with_those_there_are(cli: CommandLine, here: Bench, command: str) -> None:
    arguments = command.split()
    at = arguments.index("{}")
    line = cli.refused(*arguments[:at], "dogs", *arguments[at + 1 :])
    assert line == "no vectorizer is called 'dogs'; there is none yet; make one with `pgvec enqueue`"
    fill(here)
    cli("enqueue", "docs", "--text", "body", *MODEL)
    line = cli.refused(*arguments[:at], "dogs\n\x1b[31m", *arguments[at + 1 :])
    assert line == r"no vectorizer is called 'dogs\n\x1b[31m'; there are: docs"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["dosc", "--text", "body"], "there is no table or view 'dosc' in this database; name it as schema.table"),
        (
            ["letters", "--text", "body"],
            "there is no table or view 'letters' in this database; did you mean old.letters?",
        ),
        (["a.b.c", "--text", "body"], "'a.b.c' is no table's name"),
        (["docs"], "no vectorizer is called 'docs' yet; say what to embed: --text COLUMN"),
        (["docs", "--text", "bdoy"], "public.docs has no column 'bdoy' (--text); it has: id, body"),
        (["docs", "--text", "id"], "public.docs.id is bigint, not text"),
        (["docs", "--text", "body", "--key", "no"], "public.docs has no column 'no' (--key)"),
        (["docs", "--text", "body", "--where", "nope > 3"], 'column "nope" does not exist'),
        (["docs", "--text", "body", "--where", "true); DROP TABLE docs; --"], "--where"),
        (["docs", "--text", "body", "--template", "nothing"], "has $chunk 0 times"),
        (["docs", "--text", "body", "--into", "docs"], "public.docs is the source itself"),
        (["docs", "--text", "body", "--into", "x" * 64], "is longer than 63 bytes"),
        (["docs", "--text", "body", "--chunk-size", "10", "--chunk-overlap", "9"], "more than half of --chunk-size 10"),
        (["docs", "--text", "body", "--model", "hashing-0"], "the hashing embedder has no model 'hashing-0'"),
        (["docs", "--text", "body", "--dimensions", "9"], "model 'hashing-8' has 8 dimensions, not 9"),
        (
            ["docs", "--text", "body", "--model", "nobody/nothing"],
            "there is no model 'nobody/nothing' on this machine, and its name may be wrong: it is not in this",
        ),
        (
            ["docs", "--text", "body", "--model", "/nowhere"],
            "may be wrong: it is a directory that is not on this machine; give --dimensions if workers have it",
        ),
        (
            ["docs", "--text", "body", "--model", ".", "--revision", "x"],
            "dimensions of model '.' here: it is a directory, and a directory has no revisions; leave --revision out",
        ),
        (["docs", "--text", "body", "--model", "."], "model '.' here: its files do not say; give --dimensions"),
        (
            ["docs", "--text", "body", "--model", "m", "--endpoint", f"http://:{PASSWORD}@127.0.0.1/v1"],
            "has a user or password",
        ),
    ],
)
def test_a_definition_that_does_not_fit_is_one_line(
    cli: CommandLine, here: Bench, arguments: list[str], reason: str
) -> None:
    fill(here)
    here.sql("CREATE SCHEMA old")
    fill(here, table="old.letters")
    model = MODEL if "--text" in arguments and "--model" not in arguments else ()
    assert reason in cli.refused("enqueue", *arguments, *model)
    assert here.value("SELECT count(*) FROM pgvec.vectorizers") == 0
    assert here.value("SELECT count(*) FROM docs") == 10


@pytest.mark.model
def test_a_device_that_is_not_there_ends_the_command_and_blocks_nobody_elses_work(
    here: Bench, cli: CommandLine
) -> None:
    fill(here)
    assert cli("enqueue", "docs", "--text", "body").code == 0
    put_chunk(here, 384)
    assert "cuda:99" in cli.refused("search", "docs", "query", "--device", "cuda:99")
    worked = cli("work", "--drain", "--device", "cuda:99")
    assert (worked.code, worked.out) == (1, "")
    last = worked.err.splitlines()[-1]
    assert last.startswith("pgvec: ")
    assert "cuda:99" in last
    assert "Traceback" not in worked.err
    assert status(cli)[0]["state"] == "active"
    assert here.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'queued' AND attempts = 0") == 1


# Settings


def test_a_flag_comes_before_the_environment_the_file_and_the_default(
    cli: CommandLine, here: Bench, monkeypatch: pytest.MonkeyPatch, isolated: Path
) -> None:
    fill(here)

    def model(*flags: str) -> str:
        proposed = cli("enqueue", "docs", "--text", "body", "--dry-run", *flags)
        return proposed.out.split("model:")[1].split()[0]

    users = isolated / "home" / "config" / "pgvec-queue" / "pgvec.toml"
    users.parent.mkdir(parents=True)
    assert model() == "sentence-transformers/all-MiniLM-L6-v2"
    users.write_text("model = 'hashing-1'")
    assert model() == "hashing-1"
    Path("pgvec.toml").write_text("model = 'hashing-2'")
    assert model() == "hashing-2"
    monkeypatch.setenv("PGVEC_MODEL", "hashing-3")
    assert model() == "hashing-3"
    assert model("--model", "hashing-4") == "hashing-4"


def test_a_lease_and_a_chunk_size_follow_the_same_order(
    cli: CommandLine, here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(here)
    Path("pgvec.toml").write_text("chunk_size = 40\nsearch_limit = 2\nthreshold = -1")
    assert "40 tokens" in cli("enqueue", "docs", "--text", "body", *MODEL, "--dry-run").out
    monkeypatch.setenv("PGVEC_CHUNK_SIZE", "41")
    assert "41 tokens" in cli("enqueue", "docs", "--text", "body", *MODEL, "--dry-run").out
    cli("enqueue", "docs", "--text", "body", *MODEL, "--chunk-size", "42")
    assert here.value("SELECT chunk_size FROM pgvec.vectorizers") == 42
    cli("work", "--drain")
    assert len(cli("search", "docs", "x", "--json").out.splitlines()) == 2
    monkeypatch.setenv("PGVEC_SEARCH_LIMIT", "3")
    assert len(cli("search", "docs", "x", "--json").out.splitlines()) == 3
    assert len(cli("search", "docs", "x", "--json", "--limit", "4").out.splitlines()) == 4


def test_the_database_follows_the_same_order_and_doctor_says_who_named_it(
    cli: CommandLine, here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named_by(*flags: str) -> str:
        ran = cli("doctor", *flags)
        assert (ran.code, ran.err) == (0, ""), ran
        assert PASSWORD not in ran.out
        return ran.out.splitlines()[0].rpartition("(from ")[2].rstrip(")")

    parts = conninfo_to_dict(here.dsn)
    with_password = f"{here.dsn}&password={PASSWORD}"
    file = Path("pgvec.toml").absolute()
    file.write_text(f"dsn = '{with_password}'")
    monkeypatch.setenv("PGVEC_DSN", with_password)
    assert named_by("--dsn", with_password) == "--dsn"
    assert named_by() == "PGVEC_DSN"
    monkeypatch.delenv("PGVEC_DSN")
    assert named_by() == str(file)
    file.unlink()
    for name, value in (("PGHOST", "host"), ("PGPORT", "port"), ("PGUSER", "user"), ("PGDATABASE", "dbname")):
        monkeypatch.setenv(name, str(parts[value]))
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert named_by() == "PGHOST, PGPORT, PGDATABASE, PGUSER"
    assert cli("status").err == "pgvec: there is no vectorizer yet; make one with `pgvec enqueue`\n"


def test_doctor_says_where_each_setting_came_from_and_shows_no_password(
    cli: CommandLine, here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGVEC_INDEX")
    assert cli("doctor").out.splitlines()[-1] == "settings: all at their defaults"
    file = Path("pgvec.toml").absolute()
    file.write_text(f"model = 'hashing-8'\nlease = 5\nendpoint = 'https://u:{PASSWORD}@host/v1'")
    monkeypatch.setenv("PGVEC_LEASE", "7")
    ran = cli("doctor")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert re.match(r"ok +database +test_\w+ at .*, PostgreSQL \d+\.\d+ \(from PGVEC_DSN\)", lines[0])
    assert lines[-4:] == [
        f"model = hashing-8 (from {file})",
        f"endpoint = https://u:***@host/v1 (from {file})",
        "lease = 7 (from PGVEC_LEASE)",
        "settings: all others at their defaults",
    ]


def test_doctor_waits_for_a_schema_that_is_being_made(database: str, start: Start, cli: CommandLine) -> None:
    waiting = start("doctor", "--wait", "60", "--dsn", database)
    with psycopg.connect(database, autocommit=True) as connection:
        wait_until(
            lambda: (
                connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgvec doctor%'"
                    " AND datname = current_database()"
                ).fetchone()
                != (0,)
            ),
            30,
            what="a first look",
        )
    assert cli("init", "--dsn", database).code == 0
    out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, err) == (0, "")
    assert out.startswith("ok       database ")


# The embedded server


@pytest.fixture(scope="module")
def local(reachable: Path) -> Iterator[Path]:
    """The directory of a stopped server, of the name that it has by default."""
    base = Path(tempfile.mkdtemp(dir=reachable))
    base.chmod(0o711)
    directory = base / "postgres"
    with embedded.use(directory):
        pass
    yield directory
    embedded.Server(directory).stop()
    shutil.rmtree(base)


def test_without_a_database_the_embedded_server_is_used_and_named(
    cli: CommandLine, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_programs, "SYSTEM_DIRECTORY", local.parent)
    monkeypatch.setattr("platformdirs.user_data_path", lambda *_, **__: local.parent)
    first = f"pgvec: no database is named (--dsn, PGVEC_DSN, PG*); using the embedded server in {local}\n"
    ran = cli("doctor")
    assert (ran.code, ran.err) == (1, first)
    assert "there is no pgvec schema; run: pgvec init\n" in ran.out
    ran = cli("init")
    assert (ran.code, ran.err) == (0, first)
    ran = cli("doctor", "--dsn", f"embedded://{local}")
    assert (ran.code, ran.err) == (0, "")
    assert re.match(rf"ok +database +embedded server in {local}, PostgreSQL ", ran.out)
    assert "(from --dsn)" in ran.out
    assert not embedded.Server(local).running()


def test_db_means_the_server_that_the_dsn_names(cli: CommandLine, local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_DSN", f"embedded://{local}")
    assert (
        cli.refused("db", "uri") == f"the server in {local} is not running; start it with: pgvec db start --dir {local}"
    )
    started = cli("db", "start")
    assert (started.code, started.out) == (0, embedded.Server(local).dsn + "\n")
    assert started.err.endswith(f"pgvec db stop --dir {local}\n")
    assert cli("db", "uri").out == started.out
    assert cli("init").code == 0
    assert embedded.Server(local).running(), "a command must not stop what `db start` left running"
    assert "has stopped" in cli("db", "stop").err


def test_sigterm_ends_any_command_and_the_embedded_server_with_it(local: Path, start: Start) -> None:
    with embedded.use(local) as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS pgvec CASCADE")
    waiting = start("doctor", "--wait", "600", "--dsn", f"embedded://{local}")
    server = embedded.Server(local)
    wait_until(server.running, 30, what="the server")
    waiting.terminate()
    out, err = waiting.communicate(timeout=30)
    assert (waiting.returncode, out, err) == (143, "", "")
    assert not server.running()


def test_a_wrong_password_is_one_line_and_the_right_one_is_shown_nowhere(
    cli: CommandLine, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with embedded.use(local):
        cli("init", "--dsn", f"embedded://{local}")
    try:
        printed = cli("db", "start", "--dir", str(local), "--listen", "127.0.0.1").out
        dsn = printed.strip().removeprefix("export PGVEC_DSN='").removesuffix("'")
        right = urlsplit(dsn).password
        assert right
        line = cli.refused("status", "--dsn", dsn.replace(right, PASSWORD))
        assert 'password authentication failed for user "pgvec"' in line
        assert "no password supplied" in cli.refused("status", "--dsn", dsn.replace(f":{right}@", "@"))
        examined = cli("doctor", "--dsn", dsn.replace(right, PASSWORD))
        assert (examined.code, examined.err) == (1, "")
        assert 'password authentication failed for user "pgvec"' in examined.out
        assert PASSWORD not in examined.out
        monkeypatch.setenv("PGVEC_DSN", dsn)
        for command in ("doctor", "status", "init", "workers"):
            ran = cli(command)
            assert ran.code == 0
            assert right not in ran.out + ran.err
        ran = run_pgvec("enqueue", "nowhere", "--text", "x", "--debug", "--log-level", "debug")
        assert ran.err.startswith("Traceback")
        assert right not in ran.out + ran.err
    finally:
        embedded.Server(local).stop()
