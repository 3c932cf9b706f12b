"""`pgvec dashboard` in a real terminal: its keys, what it leaves behind, and what it survives."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing

import psycopg
import pytest

from pgvec_queue import schema
from pgvec_queue.dashboard import watcher
from pgvec_queue.database import Database
from tests.chaos.server import Server
from tests.support import Bench, pgvec, run_pgvec
from tests.terminal import Session, shell
from tests.waiting import wait_until

OURS = (
    "SELECT pid FROM pg_stat_activity"
    " WHERE datname = current_database() AND starts_with(application_name, 'pgvec dashboard')"
)


@pytest.fixture
def docs(bench: Bench) -> Bench:
    """Two vectorizers with planned jobs, and nobody who works."""
    for name in ("articles", "docs"):
        bench.sql(f"CREATE TABLE {name} (id bigint PRIMARY KEY, body text)")
        bench.sql(f"INSERT INTO {name} SELECT i, 'document ' || i FROM generate_series(1, 100) i")
        bench.enqueue(name, "body")
    return bench


def paused(bench: Bench, name: str) -> bool:
    return bool(bench.value("SELECT paused FROM pgvec.vectorizers WHERE name = %s", name))


def fail(bench: Bench, *keys: str) -> None:
    """Puts documents of ``docs`` into quarantine."""
    bench.sql(
        "INSERT INTO pgvec.failures (vectorizer_id, key, source_hash, error_class, message, model)"
        " SELECT v.id, ARRAY[k], '\\x00', 'EmbedderError', 'no ' || k, 'm'"
        " FROM pgvec.vectorizers v, unnest(%s::text[]) k WHERE v.name = 'docs'",
        list(keys),
    )


def test_keys_steer_as_the_commands_do_and_the_terminal_is_left_as_it_was(docs: Bench) -> None:
    with Session(dsn=docs.dsn) as session:
        session.wait_for("articles", "docs", "no worker is running", "? help")
        assert session.screen.alternate
        assert not session.screen.cursor
        assert session.modes != session.modes_before
        session.press("p")
        session.wait_for("articles is paused")
        assert paused(docs, "articles")
        assert not paused(docs, "docs")
        session.press("r")
        session.wait_for("articles goes on")
        assert not paused(docs, "articles")
        session.press("\x1b[B")
        session.wait_for("> docs", "docs: 0 of 100 rows")
        session.press("p")
        session.wait_for("docs is paused", "> docs       paused")
        assert paused(docs, "docs")
        session.press("?")
        session.wait_for("choose a vectorizer", "Ctrl-Z")
        session.press(" ")
        session.wait_for("> docs")
        session.press("\t")
        session.wait_for("> articles")
        session.press("q")
        assert session.ended() == 0
        wait_until(session.is_as_before)


def test_failures_are_shown_and_tried_again_only_after_a_yes(docs: Bench) -> None:
    fail(docs, "7", "8")
    failed = "SELECT count(*) FROM pgvec.failures"
    with Session(dsn=docs.dsn) as session:
        session.wait_for("> articles")
        session.press("t")
        session.wait_for("articles has no document in quarantine")
        session.press("j")
        session.wait_for("2 × EmbedderError", "no 8")
        session.press("t")
        session.wait_for("2 documents are in quarantine; try those of docs again? y/n")
        session.press("n")
        session.wait_for("nothing was changed")
        assert docs.value(failed) == 2
        session.press("ty")
        session.wait_for("docs: 2 documents are queued again")
        assert docs.value(failed) == 0
        assert docs.value("SELECT sum(key_count) FROM pgvec.jobs WHERE kind = 'keys'") == 2
        session.press("q")
        assert session.ended() == 0


def test_a_key_that_fails_says_why_in_a_line(docs: Bench) -> None:
    with Session(dsn=docs.dsn) as session:
        session.wait_for("> articles")
        with psycopg.connect(docs.dsn) as holder:
            holder.execute("SELECT FROM pgvec.vectorizers FOR UPDATE")
            session.press("p")
            session.wait_for("pausing articles")
            session.wait_for("articles could not be paused: canceling statement due to lock timeout")
        session.press("p")
        session.wait_for("articles is paused")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0), (signal.SIGQUIT, 131)],
)
def test_a_signal_ends_it_and_the_terminal_is_left_as_it_was(docs: Bench, number: int, code: int) -> None:
    with Session(dsn=docs.dsn) as session:
        session.wait_for("> articles")
        session.process.send_signal(number)
        assert session.ended() == code
        wait_until(session.is_as_before)
        assert "Traceback" not in session.text


def test_ctrl_c_is_a_way_to_quit(docs: Bench) -> None:
    with Session(dsn=docs.dsn) as session:
        session.wait_for("> articles")
        session.press("\x03")
        assert session.ended() == 0
        wait_until(session.is_as_before)


def test_an_error_of_its_own_leaves_the_terminal_as_it_was_and_is_told_in_a_line(docs: Bench) -> None:
    """In the thread that reads, of which nobody would hear otherwise."""
    broken = "from pgvec_queue.dashboard import snapshot; snapshot._urgency = lambda worker: 1 / 0"
    docs.register()
    begin = f"{broken}; from pgvec_queue.cli import main; import sys; sys.argv = ['pgvec', 'dashboard']; main()"
    with Session(sys.executable, "-c", begin, dsn=docs.dsn) as session:
        assert session.ended() == 1
        wait_until(session.is_as_before)
        session.wait_for("pgvec: unexpected ZeroDivisionError: division by zero")


def test_a_closed_terminal_ends_it(docs: Bench) -> None:
    with Session(dsn=docs.dsn) as session:
        session.wait_for("> articles")
        session.hang_up()
        assert session.ended() == 129


def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(docs: Bench) -> None:
    command = shell(f"{sys.executable} -m pgvec_queue dashboard; echo STOPPED; read line; fg >/dev/null; echo ENDED $?")
    with Session(*command, dsn=docs.dsn) as session:
        session.wait_for("> articles")
        taken = session.modes
        session.press("\x1a")
        session.wait_for("STOPPED")
        assert session.is_as_before()
        session.press("\n")
        session.wait_for("> articles")
        assert session.modes == taken
        assert not session.screen.cursor
        session.press("p")
        session.wait_for("articles is paused")
        session.press("q")
        session.wait_for("ENDED 0")
        assert session.is_as_before()


def test_sigstop_and_sigcont_do_no_harm(docs: Bench) -> None:
    with Session(dsn=docs.dsn) as session:
        session.wait_for("> articles")
        taken = session.modes
        session.process.send_signal(signal.SIGSTOP)
        os.waitpid(session.process.pid, os.WUNTRACED)
        session.set_modes(session.modes_before)
        session.process.send_signal(signal.SIGCONT)
        wait_until(lambda: session.modes == taken)
        session.press("p")
        session.wait_for("articles is paused")
        session.press("q")
        assert session.ended() == 0
        wait_until(session.is_as_before)


def test_it_follows_the_size_of_the_window(docs: Bench) -> None:
    with Session(dsn=docs.dsn) as session:
        session.wait_for("> articles", "q quit")
        for width, height in ((200, 60), (40, 10), (120, 40)):
            session.resize(width, height)
            session.wait_for("> articles", "pgvec dashboard")
            wait_until(lambda height=height: "q quit" in session.screen.lines[height - 1])  # type: ignore[misc]
        session.resize(39, 10)
        session.wait_for("the window is too small: 39x10")
        session.resize(12, 2)
        session.wait_for("the window …")
        session.resize(80, 24)
        session.wait_for("> articles")
        session.press("q")
        assert session.ended() == 0


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as server:
        server.create()
        schema.initialize(Database(server.dsn))
        yield server


def test_it_survives_a_database_that_crashes_and_comes_back(server: Server) -> None:
    with ExitStack() as stack:
        bench = stack.enter_context(closing(Bench(server.dsn)))
        bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
        bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, 100) i")
        bench.enqueue("docs", "body")
        session = stack.enter_context(Session(dsn=server.dsn))
        session.wait_for("> docs")
        server.crash()
        session.wait_for("the database is lost since", "trying again", "as of", "docs: 0 of 100 rows")
        session.press("p")
        session.wait_for("docs could not be paused: there is no connection")
        session.press("?")
        session.wait_for("choose a vectorizer")
        session.press("x")
        server.start()
        wait_until(lambda: "the database is lost" not in session.text, 30)
        with closing(Bench(server.dsn)) as again:
            again.sql("SELECT pgvec.pause('docs')")
            session.wait_for("> docs       paused")
            assert len(again.sql(OURS)) == 1
        session.press("q")
        assert session.ended() == 0
        wait_until(session.is_as_before)


def test_keys_are_answered_while_the_database_does_not(docs: Bench) -> None:
    """The server's process is stopped: the connection is open, and nothing comes back."""
    with Session(dsn=docs.dsn) as session:
        session.wait_for("> articles")
        pid = docs.value(OURS)
        os.kill(pid, signal.SIGSTOP)
        try:
            session.wait_for("the database has not answered for")
            session.press("?")
            session.wait_for("choose a vectorizer", timeout=2)
            session.press("x")
            session.press("j")
            session.wait_for("> docs", timeout=2)
            session.press("p")
            session.wait_for("pausing docs", timeout=2)
            assert not paused(docs, "docs")
        finally:
            os.kill(pid, signal.SIGCONT)
        session.wait_for("docs is paused")
        assert paused(docs, "docs")
        session.press("q")
        assert session.ended() == 0


def test_a_connection_that_stays_silent_is_given_up_for_a_new_one(docs: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(watcher._GIVEN_UP, "look", 0.5)
    watching = watcher.Watcher(docs.database, docs.database.connect("dashboard"), lambda: None)
    watching.start()
    pid = docs.value(OURS)
    try:
        wait_until(lambda: watching.picture.snapshot is not None)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: watching.look_after() or watching.picture.outage is not None)  # type: ignore[func-returns-value]
        wait_until(lambda: watching.picture.outage is None)
    finally:
        os.kill(pid, signal.SIGCONT)
        watching.stop()


def test_it_quits_while_the_database_does_not_answer(docs: Bench) -> None:
    with Session(dsn=docs.dsn) as session:
        session.wait_for("> articles")
        pid = docs.value(OURS)
        os.kill(pid, signal.SIGSTOP)
        try:
            session.wait_for("the database has not answered for")
            session.press("q")
            assert session.ended(5) == 0
            wait_until(session.is_as_before)
        finally:
            os.kill(pid, signal.SIGCONT)


def test_before_there_is_a_schema_or_a_vectorizer_it_says_what_to_do(database: str) -> None:
    with Session(dsn=database) as session:
        session.wait_for("there is no pgvec schema; run: pgvec init")
        session.press("p")
        schema.initialize(Database(database))
        session.wait_for("there is no vectorizer yet; make one with: pgvec enqueue")
        with closing(Bench(database)) as bench:
            bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
            bench.enqueue("docs", "body")
        session.wait_for("> docs")
        session.press("q")
        assert session.ended() == 0


def test_workers_are_scrolled(docs: Bench) -> None:
    docs.sql(
        "INSERT INTO pgvec.workers (host, pid, version, lease, state)"
        " SELECT 'host-' || to_char(i, 'FM000'), i, '1', '1 hour', 'idle' FROM generate_series(1, 60) i"
    )
    with Session(dsn=docs.dsn) as session:
        session.wait_for("host-001:1 ", "more")
        assert "host-060" not in session.text
        session.press("w\x1b[B\x1b[B")
        session.wait_for("> worker", "2 before these, and")
        assert "host-001" not in session.text
        session.press("\x1b[F")
        session.wait_for("host-060:60", "before these")
        session.press("\x1b[H")
        session.wait_for("host-001:1 ")
        session.press("\x1b[6~")
        wait_until(lambda: "host-001" not in session.text)
        session.press("\x1b[5~w\x1b[B")
        session.wait_for("host-001:1 ", "> docs")
        session.press("q")
        assert session.ended() == 0


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {}], ids=["no colour", "colour"])
def test_nothing_is_told_by_colour_alone(docs: Bench, environment: dict[str, str]) -> None:
    docs.sql("UPDATE pgvec.vectorizers SET blocked_reason = 'the table is gone' WHERE name = 'docs'")
    docs.sql("INSERT INTO pgvec.workers (host, pid, version, lease, gone) VALUES ('mac', 1, '1', '1 hour', true)")
    with Session(dsn=docs.dsn, env=environment) as session:
        session.wait_for("! docs       BLOCKED", "the table is", "! mac:1", "GONE")
        session.press("q")
        assert session.ended() == 0
    assert session.screen.styled
    assert session.screen.coloured is not bool(environment)


def test_a_dumb_terminal_gets_plain_pictures_one_below_the_other(docs: Bench) -> None:
    with Session(dsn=docs.dsn, env={"TERM": "dumb"}) as session:
        session.wait_for("> articles")
        session.press("p")
        session.wait_for("articles is paused")
        session.press("q")
        assert session.ended() == 0
        assert not session.screen.styled
        assert session.screen.pictures == 0
        wait_until(session.is_as_before)


def test_an_encoding_without_blocks_gets_letters(docs: Bench) -> None:
    with Session(dsn=docs.dsn, env={"PYTHONIOENCODING": "ascii"}) as session:
        session.wait_for("> articles", "........", "no work")
        session.press("q")
        assert session.ended() == 0
        assert session.text.isascii()


def test_where_there_is_no_terminal_it_says_what_to_use_instead(docs: Bench) -> None:
    line = "pgvec: the dashboard needs a terminal; elsewhere use `pgvec status --watch`\n"
    ran = run_pgvec("dashboard", dsn=docs.dsn)
    assert (ran.code, ran.out, ran.err) == (2, "", line)
    ours, theirs = pty.openpty()
    half = subprocess.run(
        [sys.executable, "-m", "pgvec_queue", "dashboard"], stdin=theirs, capture_output=True, text=True, check=False
    )
    os.close(ours)
    os.close(theirs)
    assert (half.returncode, half.stdout, half.stderr) == (2, "", line)


def test_a_database_that_cannot_be_reached_at_the_start_is_an_error_like_anywhere_else(bench: Bench) -> None:
    with Session(dsn="host=127.0.0.1 port=1 dbname=nowhere") as session:
        assert session.ended() == 1
        session.wait_for("pgvec: cannot connect to the database nowhere at 127.0.0.1:1")
        assert session.is_as_before()


def test_a_hostile_name_stays_in_its_place(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs VALUES (1, 'text')")
    bench.enqueue("docs", "body")
    bench.sql("UPDATE pgvec.vectorizers SET name = %s", "\x1b[2J\x1b]0;mine\x07\n[red]名前\u202e" + "long " * 50)
    with Session(dsn=bench.dsn, size=(100, 24)) as session:
        session.wait_for(r"> \x1b[2J\x1b]0;mine\x07 [red]", "active")
        session.press("p")
        session.wait_for("paused")
        session.press("q")
        assert session.ended() == 0


def test_a_running_worker_is_shown_with_what_it_does(docs: Bench) -> None:
    # For a minute, so that it is still at work when the first vectorizer's rate is shown.
    docs.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(101, 600) i")
    docs.enqueue("docs", "body", rows_per_job=20)
    worker = pgvec("work", "--lease", "5", dsn=docs.dsn, env={"PGVEC_HASHING_FAULTS": "rate=10"})
    try:
        with Session(dsn=docs.dsn, size=(120, 30)) as session:
            session.wait_for(f":{worker.pid}", "working", "job", "rows/s in the last 15 min", timeout=60)
            worker.kill()
            worker.wait()
            session.wait_for(f"! {os.uname().nodename}:{worker.pid}", "GONE", timeout=30)
            session.press("q")
            assert session.ended() == 0
    finally:
        worker.kill()
        worker.communicate()
