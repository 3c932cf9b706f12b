"""Pausing, leaving and limits: running workers obey, nothing is lost, and no attempt is counted."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvec_queue import __version__, queue, schema, vectorizer
from pgvec_queue.database import Database
from pgvec_queue.errors import DefinitionError
from pgvec_queue.vectorizer import Changes, Vectorizer
from pgvec_queue.worker.replication import Replication
from tests.chaos.server import Server
from tests.commandline import CommandLine
from tests.support import Bench, pgvec
from tests.waiting import wait_until

RIGHT = {"missing": 0, "orphaned": 0, "stale": 0}
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(bench: Bench) -> Iterator[Start]:
    """Starts `pgvec work` whose embedder is a device of so many texts per second; ends what is left of them."""
    started: list[subprocess.Popen[str]] = []

    def work(*arguments: str, rate: float = 300, dsn: str | None = None, faults: str = "") -> subprocess.Popen[str]:
        environment = {"PGVEC_HASHING_FAULTS": f"rate={rate}{faults}"}
        process = pgvec("work", *arguments, dsn=dsn or bench.dsn, env=environment)
        started.append(process)
        return process

    yield work
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        process.communicate(timeout=30)


def _fill(bench: Bench, rows: int, name: str = "docs") -> None:
    bench.sql(f"CREATE TABLE {name} (id bigint PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO {name} SELECT i, 'document number ' || i FROM generate_series(1, %s) i", rows)


def _running(bench: Bench) -> int:
    return int(bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'running'"))


def _workers_at_it(bench: Bench) -> int:
    return int(bench.value("SELECT count(DISTINCT worker_id) FROM pgvec.jobs WHERE state = 'running'"))


def _done(bench: Bench, name: str = "docs") -> int:
    return bench.progress(name).rows_done


def _assert_whole(bench: Bench, vectorizer: Vectorizer, rows: int) -> None:
    wait_until(lambda: bench.progress(vectorizer.name).state == "complete", 60, what="the end")
    assert bench.wrong(vectorizer) == RIGHT
    assert _done(bench, vectorizer.name) == rows
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0


@pytest.mark.parametrize("listen", [True, False], ids=["told at once", "asking"])
def test_a_pause_is_obeyed_by_workers_in_the_middle_of_their_jobs(bench: Bench, start: Start, listen: bool) -> None:
    _fill(bench, 6_000)
    vectorizer_ = bench.enqueue("docs", "body", rows_per_job=2_000)
    for _ in range(3):
        start("--lease", "20", *(() if listen else ("--no-listen",)))
    wait_until(lambda: _workers_at_it(bench) == 3 and _done(bench) > 300, 30, what="three workers at it")
    vectorizer.steer(bench.connection, "docs", "pause")
    wait_until(lambda: _running(bench) == 0, 5, what="the jobs given back")
    paused_at = _done(bench)
    assert paused_at < 6_000
    one = bench.progress("docs")
    assert (one.state, one.reason) == ("paused", "paused; to go on: pgvec resume docs")
    # They live, and have not touched it since: a whole turn of another one's work later.
    _fill(bench, 500, "others")
    other = bench.enqueue("others", "body")
    _assert_whole(bench, other, 500)
    assert _done(bench) == paused_at
    vectorizer.steer(bench.connection, "docs", "resume")
    _assert_whole(bench, vectorizer_, 6_000)


def test_a_paused_job_goes_on_where_it_was(bench: Bench, start: Start) -> None:
    """What was embedded before the pause is not embedded again, but for what the model had at that moment."""
    _fill(bench, 1_500)
    bench.enqueue("docs", "body", rows_per_job=1_500)
    start()
    wait_until(lambda: _done(bench) > 300, 30, what="some progress")
    vectorizer.steer(bench.connection, "docs", "pause")
    wait_until(lambda: _running(bench) == 0, 5, what="the job given back")
    assert bench.value("SELECT checkpoint IS NOT NULL FROM pgvec.jobs")
    vectorizer.steer(bench.connection, "docs", "resume")
    wait_until(lambda: bench.progress("docs").state == "complete", 60, what="the end")
    assert bench.progress("docs").rows_embedded == 1_500


@pytest.mark.parametrize("action", ["cancel", "drop"])
def test_cancelled_and_dropped_ones_are_left_at_once(bench: Bench, start: Start, action: str) -> None:
    _fill(bench, 6_000)
    bench.enqueue("docs", "body", rows_per_job=6_000)
    start()
    wait_until(lambda: _done(bench) > 300, 30, what="some progress")
    vectorizer.steer(bench.connection, "docs", action)
    wait_until(lambda: _running(bench) == 0, 5, what="the job given back")
    written = bench.value("SELECT count(*) FROM docs_vectors")
    _fill(bench, 500, "others")
    _assert_whole(bench, bench.enqueue("others", "body"), 500)
    assert bench.value("SELECT count(*) FROM docs_vectors") == written < 6_000


@pytest.mark.parametrize("listen", [True, False], ids=["told at once", "asking"])
def test_changes_and_retries_go_before_the_rest_of_a_range_in_hand(bench: Bench, start: Start, listen: bool) -> None:
    _fill(bench, 20_000)
    bench.sql("UPDATE docs SET body = 'poison' WHERE id = 1")
    bench.enqueue("docs", "body", rows_per_job=20_000, sync=True)
    start("--lease", "20", *(() if listen else ("--no-listen",)), faults=";refuse=poison")
    wait_until(lambda: _done(bench) > 600 and bench.progress("docs").rows_failed == 1, 30, what="some progress")
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 2")
    changed = "SELECT count(*) FROM docs_vectors WHERE chunk = 'changed' AND id = 2"
    wait_until(lambda: bench.value(changed) == 1, 30, what="the change")
    with bench.connection.transaction():
        # Unseen by the triggers: it is the retry that brings it.
        bench.sql("SET LOCAL session_replication_role = replica")
        bench.sql("UPDATE docs SET body = 'healed' WHERE id = 1")
    assert bench.value("SELECT pgvec.retry('docs')") == 1
    wait_until(lambda: bench.progress("docs").rows_failed == 0, 30, what="the retry")
    wait_until(lambda: bench.value("SELECT count(*) FROM docs_vectors WHERE id = 1") == 1, 30, what="its vector")
    first = "SELECT state, attempts FROM pgvec.jobs WHERE kind = 'range' ORDER BY id LIMIT 1"
    assert bench.sql(first) == [("running", 0)]


def test_beside_a_range_that_runs_alone_nothing_else_is_begun(bench: Bench, start: Start) -> None:
    """What is in hand together with a document that kills its worker would be taken for a victim's cause."""
    _fill(bench, 10)
    bench.enqueue("docs", "body", sync=True)
    bench.sql("UPDATE pgvec.jobs SET alone = true")
    start(rate=2)
    wait_until(lambda: _done(bench) >= 1, 30, what="the first row")
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 1")
    changed = "SELECT created_at FROM docs_vectors WHERE id = 1 AND chunk = 'changed'"
    wait_until(lambda: bench.sql(changed) != [], 60, what="the change")
    assert bench.value("SELECT finished_at FROM pgvec.jobs WHERE kind = 'range' AND state = 'done'") <= bench.value(
        changed
    )


def test_workers_of_a_host_leave_when_they_are_told_to(bench: Bench, start: Start, cli: CommandLine) -> None:
    _fill(bench, 20_000)
    bench.enqueue("docs", "body", rows_per_job=2_000)
    workers = [start() for _ in range(2)]
    wait_until(lambda: _workers_at_it(bench) == 2, 30, what="two workers at it")
    ran = cli("workers", "stop", "another-host", "--dsn", bench.dsn)
    assert ran.code == 0
    assert ran.err == (
        f"pgvec: no worker of another-host is there to be told; there are workers on: {socket.gethostname()}\n"
    )
    ran = cli("workers", "stop", socket.gethostname(), "--dsn", bench.dsn)
    assert ran.out == f"2 workers of {socket.gethostname()} are leaving.\n"
    assert [worker.wait(15) for worker in workers] == [0, 0]
    assert bench.value("SELECT count(*) FROM pgvec.workers") == 0
    assert _running(bench) == 0
    assert bench.value("SELECT sum(attempts) FROM pgvec.jobs") == 0
    assert {kind for (kind,) in bench.sql("SELECT kind FROM pgvec.events")} == {"started", "left"}


@pytest.mark.parametrize(
    "arguments", [["stop"], ["stop", "here", "--all"], ["--all"], ["stop", "here", "--json"], ["start", "here"]]
)
def test_wrong_ways_to_tell_workers_tell_nobody(bench: Bench, cli: CommandLine, arguments: list[str]) -> None:
    bench.register()
    assert cli("workers", *arguments, "--dsn", bench.dsn).code == 2
    assert not bench.value("SELECT bool_or(leave) FROM pgvec.workers")


# Limits


def test_a_rate_is_kept_by_all_workers_together_and_live_changes_go_before(bench: Bench, start: Start) -> None:
    """With a row in a quarter of an hour, each worker's first slice is all that comes through."""
    _fill(bench, 400)
    made = bench.enqueue("docs", "body", rows_per_job=50, sync=True)
    vectorizer.alter(bench.connection, "docs", Changes(rows_per_second=0.001))
    for _ in range(2):
        start()
    wait_until(lambda: bench.value("SELECT count(*) FROM pgvec.pace") == 1, 30, what="the first row")
    bench.sql("UPDATE docs SET body = 'a live change' WHERE id > 390")
    wait_until(
        lambda: bench.value("SELECT count(*) FROM docs_vectors WHERE chunk = 'a live change'") == 10,
        30,
        what="the live changes",
    )
    assert bench.value("SELECT count(*) FROM docs_vectors WHERE chunk <> 'a live change'") == 1
    vectorizer.alter(bench.connection, "docs", Changes(rows_per_second=0))
    _assert_whole(bench, made, 400)


@given(st.lists(st.integers(1, 1_000), min_size=1, max_size=20), st.sampled_from([0.5, 100.0, 5_000.0]))
def test_slices_of_all_workers_wait_one_after_another(rows: list[int], limit: float) -> None:
    bench = test_slices_of_all_workers_wait_one_after_another.bench  # type: ignore[attr-defined]
    bench.sql("TRUNCATE pgvec.pace")
    vectorizer.alter(bench.connection, "docs", Changes(rows_per_second=limit))
    id_ = bench.value("SELECT id FROM pgvec.vectorizers")
    with bench.connection.transaction():
        waits = [queue.reserve(bench.connection, id_, count, most=1e9) for count in rows]
        left = queue.spent(bench.connection, id_)
    before = [sum(rows[:at]) / limit for at in range(len(rows))]
    # The clock goes on between the statements.
    assert all(
        wait is not None and wanted - 1 <= wait <= wanted + 0.001 for wait, wanted in zip(waits, before, strict=True)
    )
    assert sum(rows) / limit - 1 <= left <= sum(rows) / limit


@pytest.fixture(autouse=True)
def _database_of_the_property(request: pytest.FixtureRequest) -> None:
    if request.node.originalname == "test_slices_of_all_workers_wait_one_after_another":
        bench: Bench = request.getfixturevalue("bench")
        bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
        bench.define("docs", "body")
        test_slices_of_all_workers_wait_one_after_another.bench = bench  # type: ignore[attr-defined]


def test_nothing_is_claimed_while_commits_are_slow(bench: Bench, start: Start) -> None:
    _fill(bench, 2_000)
    made = bench.enqueue("docs", "body", rows_per_job=500)
    start()
    wait_until(lambda: _done(bench) > 100, 30, what="some progress")
    vectorizer.alter(bench.connection, "docs", Changes(commit_time=0.000_001))
    wait_until(lambda: _running(bench) == 0, 10, what="the job given back")
    reason = bench.progress("docs").reason
    assert reason is not None
    assert reason.startswith("a small commit takes ")
    assert bench.value("SELECT count(*) FROM pgvec.workers WHERE commit_seconds > 0") == 1
    vectorizer.alter(bench.connection, "docs", Changes(commit_time=0))
    _assert_whole(bench, made, 2_000)


def test_nothing_is_claimed_while_a_standby_is_far_behind() -> None:
    with ExitStack() as stack:
        primary, standby = (stack.enter_context(closing(Server())) for _ in range(2))
        primary.create()
        schema.initialize(Database(primary.dsn))
        standby.create_standby(primary)
        bench, behind = (stack.enter_context(closing(Bench(server.dsn))) for server in (primary, standby))
        _fill(bench, 3_000)
        made = bench.enqueue("docs", "body", rows_per_job=500)
        vectorizer.alter(bench.connection, "docs", Changes(replication_lag=1.5))
        worker = pgvec("work", dsn=primary.dsn, env={"PGVEC_HASHING_FAULTS": "rate=300"})
        try:
            wait_until(lambda: _done(bench) > 100, 30, what="some progress beside a standby that follows")
            behind.sql("SELECT pg_wal_replay_pause()")
            wait_until(lambda: _running(bench) == 0, 15, what="the job given back")
            reason = bench.progress("docs").reason
            assert reason is not None
            assert reason.startswith("a standby is ")
            assert reason.endswith(" s behind; the limit is 1.5 s")
            assert _done(bench) < 3_000
            behind.sql("SELECT pg_wal_replay_resume()")
            _assert_whole(bench, made, 3_000)
        finally:
            worker.terminate()
            worker.communicate(timeout=30)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=30))
def test_a_standby_is_behind_for_as_long_as_it_lacks_what_the_server_had(steps: list[tuple[int, int]]) -> None:
    """Against the plain definition: since when the server has been further than the standby is now."""
    replication = Replication()
    position = replayed = 0.0
    history: list[tuple[float, float]] = []
    for now, (written, applied) in enumerate(steps):
        position += written
        replayed = min(position, replayed + applied)
        history.append((position, float(now)))
        replication._seen.append((position, float(now)))
        further = [seen_at for seen, seen_at in history if seen > replayed]
        assert replication.lag(replayed, float(now)) == (now - further[0] if further else 0.0)


# SQL's own face, events, and what is kept of the past


def test_each_command_is_a_function_too(bench: Bench) -> None:
    _fill(bench, 10)
    bench.enqueue("docs", "body")
    for action, state in (("pause", "paused"), ("resume", "active"), ("cancel", "cancelled"), ("resume", "active")):
        bench.sql(f"SELECT pgvec.{action}('docs')")
        assert bench.progress("docs").state == state
    bench.sql("SELECT pgvec.alter_vectorizer('docs', new_name => 'texts', priority => 3, rows_per_second_limit => 10)")
    one = bench.progress("texts")
    assert (one.priority, one.rows_per_second_limit) == (3, 10)
    bench.sql("SELECT pgvec.alter_vectorizer('texts', rows_per_second_limit => 0)")
    assert bench.progress("texts").rows_per_second_limit is None
    assert bench.value("SELECT pgvec.retry('texts')") == 0
    assert bench.value("SELECT pgvec.stop_workers()") == 0
    with pytest.raises(psycopg.errors.NoDataFound, match="no vectorizer is called 'docs'; there are: texts"):
        bench.sql("SELECT pgvec.pause('docs')")
    bench.sql("SELECT pgvec.drop_vectorizer('texts')")
    assert bench.sql("SELECT FROM pgvec.progress") == []
    with pytest.raises(psycopg.errors.NoDataFound, match="there is none yet"):
        bench.sql("SELECT pgvec.pause('texts')")
    kinds = [kind for (kind,) in bench.sql("SELECT kind FROM pgvec.events ORDER BY id")]
    assert kinds == ["paused", "resumed", "cancelled", "resumed", "altered", "altered", "dropped"]


def test_dropping_in_sql_takes_the_triggers_as_well(bench: Bench) -> None:
    _fill(bench, 10)
    bench.enqueue("docs", "body", sync=True)
    bench.sql("SELECT pgvec.drop_vectorizer('docs')")
    assert bench.sql("SELECT FROM pg_trigger WHERE NOT tgisinternal AND tgname LIKE 'pgvec_%'") == []
    assert (
        bench.sql("SELECT FROM pg_proc WHERE pronamespace = 'pgvec'::regnamespace AND proname LIKE %s", "sync%") == []
    )
    bench.sql("UPDATE docs SET body = 'nobody follows this'")


@pytest.mark.parametrize(("callers", "within"), [("70ms", "70ms"), ("0", "5s")])
def test_a_drop_waits_for_locks_as_long_as_its_caller_says(bench: Bench, callers: str, within: str) -> None:
    _fill(bench, 1)
    bench.enqueue("docs", "body", sync=True)
    bench.sql("CREATE TABLE seen (lock_timeout text)")
    bench.sql(
        "CREATE FUNCTION public.look() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.seen VALUES (current_setting('lock_timeout')); RETURN OLD; END $$"
    )
    bench.sql("CREATE TRIGGER look BEFORE DELETE ON pgvec.vectorizers FOR EACH ROW EXECUTE FUNCTION public.look()")
    with psycopg.connect(bench.dsn) as connection:
        connection.execute("SELECT set_config('lock_timeout', %s, true)", [callers])
        connection.execute("SELECT pgvec.drop_vectorizer('docs')")
        assert connection.execute("SHOW lock_timeout").fetchone() == (callers,)
    assert bench.sql("SELECT lock_timeout FROM seen") == [(within,)]


def test_alter_refuses_what_cannot_be(bench: Bench, cli: CommandLine) -> None:
    _fill(bench, 1)
    for name in ("docs", "texts"):
        bench.enqueue("docs", "body", name=name, into=f"{name}_vectors")
    with pytest.raises(DefinitionError, match="another vectorizer is called 'texts'"):
        vectorizer.alter(bench.connection, "docs", Changes(new_name="texts"))
    for arguments, said in (
        ([], "nothing to change was named"),
        (["--priority", "x"], "not a valid integer"),
        (["--rows-per-second", "-1"], "not in the range"),
        (["--name", " "], "it is empty"),
    ):
        ran = cli("alter", "docs", *arguments, "--dsn", bench.dsn)
        assert (ran.code, said in ran.err) == (2, True), ran
    ran = cli("alter", "nothing", "--priority", "1", "--dsn", bench.dsn)
    assert (ran.code, "no vectorizer is called 'nothing'; there are: docs, texts" in ran.err) == (1, True)
    ran = cli("alter", "docs", "--name", "renamed", "--priority", "7", "--dsn", bench.dsn)
    assert (ran.code, ran.out) == (0, "renamed is altered.\n")
    assert bench.progress("renamed").priority == 7


def test_a_lock_that_a_stranger_holds_is_the_reason(bench: Bench, start: Start) -> None:
    _fill(bench, 100)
    made = bench.enqueue("docs", "body")
    with psycopg.connect(bench.dsn, application_name="somebody's report") as stranger:
        stranger.execute("LOCK TABLE docs_vectors IN SHARE MODE")
        start()
        pid = stranger.info.backend_pid

        def told() -> bool:
            return f"somebody's report (pid {pid}) holds a lock" in (bench.progress("docs").reason or "")

        wait_until(told, 30, what="the reason")
    _assert_whole(bench, made, 100)


def test_workers_that_are_all_too_old_are_the_reason(bench: Bench) -> None:
    _fill(bench, 10)
    bench.enqueue("docs", "body")
    assert bench.progress("docs").reason == "no worker is running"
    add = "INSERT INTO pgvec.workers (host, pid, version, lease) VALUES ('a', 1, %s, '1 hour')"
    for version in ("0.3.0", "0.3.1rc1", "0.2"):
        bench.sql(add, version)
    told = "all workers that run are too old for this schema (pgvec-queue 0.2, 0.3.0, 0.3.1rc1); upgrade them"
    assert bench.progress("docs").reason == told
    for version in (__version__, "0.10.0", "1", "unknown"):
        bench.sql(add, version)
        assert bench.progress("docs").reason is None, version
        bench.sql("DELETE FROM pgvec.workers WHERE version = %s", version)
    assert bench.progress("docs").reason == told


def test_minutes_are_summed_up_and_folded_without_a_loss(bench: Bench) -> None:
    _fill(bench, 1)
    id_ = bench.enqueue("docs", "body").id
    bench.sql(
        "INSERT INTO pgvec.samples (vectorizer_id, worker_id, at, rows, chunks, tokens, bytes)"
        " SELECT %s, w, date_bin('10 seconds', clock_timestamp(), '2000-01-01') - i * interval '10 seconds', 1, 2, 3, 4"
        " FROM generate_series(0, 59) i, generate_series(1, 3) w",
        id_,
    )
    wanted = (180, 360, 540, 720)
    total = "SELECT sum(rows), sum(chunks), sum(tokens), sum(bytes) FROM pgvec.throughput"
    assert bench.sql(total) == [wanted]
    queue.housekeeping(bench.connection)
    assert bench.value("SELECT count(*) FROM pgvec.minutes") >= 3 * 8
    assert bench.sql(total) == [wanted]
    per_minute = bench.sql("SELECT minute, sum(rows) FROM pgvec.throughput GROUP BY 1 ORDER BY 1")
    assert {rows for _, rows in per_minute[1:-1]} == {18}
    bench.sql("UPDATE pgvec.minutes SET minute = minute - interval '25 hours'")
    bench.sql("DELETE FROM pgvec.samples")
    left = bench.sql(total)
    queue.housekeeping(bench.connection)
    assert bench.sql(total) == left
    assert {worker for (worker,) in bench.sql("SELECT worker_id FROM pgvec.minutes")} == {0}
    bench.sql("UPDATE pgvec.minutes SET minute = minute - interval '7 days'")
    queue.housekeeping(bench.connection)
    assert bench.sql("SELECT FROM pgvec.minutes") == []


def test_events_are_kept_in_bounds(bench: Bench) -> None:
    bench.sql("INSERT INTO pgvec.events (kind) SELECT 'paused' FROM generate_series(1, 10100)")
    bench.sql("UPDATE pgvec.events SET at = at - interval '8 days' WHERE id > 10090")
    queue.housekeeping(bench.connection)
    assert bench.value("SELECT count(*) FROM pgvec.events") == 9_990


def test_the_time_left_follows_the_last_minutes(bench: Bench) -> None:
    """A steady rate gives the rest divided by it, whatever the first minute was; a worker that has left soon counts."""
    _fill(bench, 1)
    id_ = bench.enqueue("docs", "body").id
    bench.register()
    bench.sql("UPDATE pgvec.vectorizers SET rows_planned = 100000 WHERE id = %s", id_)

    def samples(per_bin: str) -> None:
        bench.sql("DELETE FROM pgvec.samples")
        bench.sql(
            "INSERT INTO pgvec.samples (vectorizer_id, worker_id, at, rows)"
            " SELECT %s, 1, date_bin('10 seconds', clock_timestamp(), '2000-01-01') - i * interval '10 seconds',"
            f" {per_bin} FROM generate_series(1, 60) i",
            id_,
        )

    samples("100")
    one = bench.progress("docs")
    assert one.eta_seconds is not None
    assert one.eta_low_seconds is not None
    assert one.eta_high_seconds is not None
    assert one.eta_seconds == pytest.approx(10_000, rel=0.06)
    assert one.eta_low_seconds < 10_000 < one.eta_high_seconds
    samples("CASE WHEN i < 18 THEN 50 ELSE 100 END")
    halved = bench.progress("docs").eta_seconds
    assert halved is not None
    assert 12_000 < halved < 20_000
    # A pause is no slow work.
    samples("CASE WHEN i BETWEEN 14 AND 40 THEN 0 ELSE 100 END")
    bench.sql("DELETE FROM pgvec.samples WHERE rows = 0")
    after_a_pause = bench.progress("docs").eta_seconds
    assert after_a_pause == pytest.approx(10_000, rel=0.15)


def test_any_vectorizer_is_steered_from_sql_and_leaves_an_event_only_where_something_changed(bench: Bench) -> None:
    for name in ("first", "second"):
        bench.sql(f"CREATE TABLE {name} (id bigint PRIMARY KEY, body text)")
        bench.enqueue(name, "body")
    for function, kind in (("pause", "paused"), ("cancel", "cancelled"), ("resume", "resumed")):
        for _ in range(2):
            bench.sql(f"SELECT pgvec.{function}(%s)", "second")
        assert bench.value("SELECT count(*) FROM pgvec.recent_events WHERE kind = %s", kind) == 1
        assert bench.value("SELECT vectorizer FROM pgvec.recent_events WHERE kind = %s", kind) == "second"
