"""What the dashboard shows of real states of a database, compared with text files in ``tests/snapshots``.

``PGVEC_TEST_REWRITE=1`` writes the files anew. What differs from run to run is made steady first: times, rates that
depend on them, and hosts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from rich.cells import cell_len

from pgvec_queue.dashboard import snapshot
from pgvec_queue.dashboard.app import describe
from pgvec_queue.dashboard.screen import frame
from pgvec_queue.dashboard.snapshot import Snapshot
from pgvec_queue.dashboard.state import State
from pgvec_queue.dashboard.watcher import Outage
from pgvec_queue.database import Database, one_line
from pgvec_queue.progress import Progress
from tests.support import Bench

DIRECTORY = Path(__file__).resolve().parent.parent / "snapshots"
REWRITE = bool(os.environ.get("PGVEC_TEST_REWRITE"))
SIZES = [(80, 24), (120, 40), (200, 60)]
ADDRESS = "shop at db.example"


def compare(name: str, state: State) -> None:
    """Holds the frames of a state, in each size, to their files."""
    for width, height in SIZES:
        lines = [line.plain.rstrip() for line in frame(state, width, height).lines]
        assert len(lines) == height
        assert max(map(cell_len, lines)) <= width
        text = "\n".join(lines) + "\n"
        file = DIRECTORY / f"{name}-{width}x{height}.txt"
        if REWRITE:
            DIRECTORY.mkdir(exist_ok=True)
            file.write_text(text, "utf-8")
        assert text == file.read_text("utf-8"), f"{file.name}; PGVEC_TEST_REWRITE=1 writes it anew\n{text}"


def read(bench: Bench, chosen: str | None = None, *, fastest: float = 90.0) -> Snapshot:
    with bench.database.connect("test") as connection:
        return steady(snapshot.read(connection, chosen), fastest)


def steady(seen: Snapshot, fastest: float = 90.0) -> Snapshot:
    top = max((one.rows_per_second for one in seen.workers), default=0.0) or 1.0
    minutes = (0.0, 0.0, 40.0, 80.0, 120.0, 160.0, 200.0, 200.0, 190.0, 200.0, 100.0, 0.0, 150.0, 200.0, 200.0)
    return replace(
        seen,
        vectorizers=tuple(map(_steady_progress, seen.vectorizers)),
        minutes={one.name: minutes for one in seen.vectorizers if one.rows_per_second_15m},
        workers=tuple(
            replace(
                one,
                since_beat=float(round(one.since_beat, -1)),
                rows_per_second=float(round(one.rows_per_second * fastest / top)),
            )
            for one in seen.workers
        ),
        failures=tuple(replace(one, ago=20.0) for one in seen.failures),
        events=tuple(
            replace(
                one,
                ago=3.0 * number,
                host=one.host and "host-1",
                message=one.message and re.sub(r"\d+$", "1001", one.message) if one.host else one.message,
            )
            for number, one in enumerate(seen.events)
        ),
    )


def _steady_progress(one: Progress) -> Progress:
    def moving(value: Any, steadily: float) -> Any:
        return steadily if value else value

    return replace(
        one,
        rows_per_second=moving(one.rows_per_second, 207.0),
        rows_per_second_15m=moving(one.rows_per_second_15m, 174.0),
        chunks_per_second=moving(one.chunks_per_second, 207.0),
        tokens_per_second=moving(one.tokens_per_second, 4_140.0),
        eta_seconds=moving(one.eta_seconds, 995.0),
        eta_low_seconds=moving(one.eta_low_seconds, 840.0),
        eta_high_seconds=moving(one.eta_high_seconds, 1_220.0),
    )


def shown(seen: Snapshot, **more: object) -> State:
    return replace(State(ADDRESS, seen, clock="18:04:05"), **more)  # type: ignore[arg-type]


def table(bench: Bench, name: str, rows: int) -> None:
    bench.sql(f"CREATE TABLE {name} (id bigint PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO {name} SELECT i, 'document number ' || i FROM generate_series(1, {rows}) i")


def run_in_the_middle(bench: Bench) -> None:
    """Three workers have done two jobs each, and have committed a part of their third."""
    table(bench, "docs", 10_000)
    table(bench, "articles", 300)
    docs = bench.enqueue("docs", "body", rows_per_job=1_000)
    articles = bench.enqueue("articles", "body", priority=1)
    members = [bench.register() for _ in range(3)]
    job = bench.claim(members[0])
    part = bench.read(articles, job)
    bench.write(articles, part, bench.embed(articles, part), members[0])
    for _ in range(2):
        for member in members:
            job = bench.claim(member)
            part = bench.read(docs, job, rows=2_000)
            bench.write(docs, part, bench.embed(docs, part), member)
    for member in members:
        part = bench.read(docs, bench.claim(member), rows=300)
        bench.write(docs, part, bench.embed(docs, part), member)
    bench.sql(
        "UPDATE pgvec.workers SET host = 'host-' || id, pid = 1000 + id, state = 'working', dtype = 'float32',"
        " device = CASE id WHEN 3 THEN 'mps' ELSE 'cuda:' || id - 1 END, busy = 0.99 - id / 10.0,"
        " beat_at = clock_timestamp() - interval '10 seconds'"
    )
    bench.sql("DELETE FROM pgvec.samples")
    bench.sql(
        "INSERT INTO pgvec.samples (vectorizer_id, worker_id, at, rows, chunks, tokens)"
        " SELECT v.id, w.id, clock_timestamp() - interval '49.6 seconds', w.id * 50, w.id * 50, w.id * 900"
        " FROM pgvec.vectorizers v, pgvec.workers w WHERE v.name = 'docs'"
    )


def test_before_there_is_anything(database: str, bench: Bench) -> None:
    compare("asking", State(ADDRESS))
    with Database(database).connect("test") as connection:
        bare = snapshot.read(connection)
    assert bare == Snapshot(hint="there is no pgvec schema; run: pgvec init")
    compare("no-schema", shown(bare))
    compare("nothing", shown(read(bench)))


def test_a_run_in_the_middle(bench: Bench) -> None:
    run_in_the_middle(bench)
    seen = read(bench, "docs")
    (docs,) = (one for one in seen.vectorizers if one.name == "docs")
    assert (docs.rows_done, docs.rows_total, docs.jobs["running"]) == (6_900, 10_000, 3)
    compare("middle", shown(seen, chosen="docs"))
    compare("help", shown(seen, chosen="docs", help=True))
    compare("question", shown(seen, chosen="docs", question="2 documents are in quarantine; try those of docs again?"))


def test_two_hundred_workers(bench: Bench) -> None:
    table(bench, "docs", 10_000)
    bench.enqueue("docs", "body", rows_per_job=50)
    bench.sql(
        "INSERT INTO pgvec.workers (host, pid, version, device, state, lease, gone, busy, waiting_for, beat_at)"
        " SELECT 'host-' || to_char(i, 'FM000'), 1000 + i, '1',"
        "        CASE i %% 4 WHEN 0 THEN 'mps' ELSE 'cuda:' || i %% 4 END,"
        "        CASE WHEN i %% 50 = 9 THEN 'idle' ELSE 'working' END, '30 seconds', i IN (77, 144), 0.5 + i / 500.0,"
        "        CASE WHEN i = 120 THEN 'the model: endpoint answers 503' END,"
        "        clock_timestamp() - CASE WHEN i IN (77, 144) THEN interval '60 s' ELSE interval '0 s' END"
        " FROM generate_series(1, %s) i",
        200,
    )
    bench.sql(
        "UPDATE pgvec.jobs j SET state = 'running', worker_id = j.id, epoch = 1,"
        " checkpoint = ARRAY[(50 * j.id - 25)::text], claimed_at = clock_timestamp() - make_interval(secs => j.id)"
        " WHERE j.id <= 190 AND j.id %% 50 <> %s",
        9,
    )
    bench.sql(
        "INSERT INTO pgvec.samples (vectorizer_id, worker_id, at, rows, chunks, tokens)"
        " SELECT 1, i, clock_timestamp() - interval '49.9 seconds', i * 100, i * 100, i * 2000"
        " FROM generate_series(1, 190) i WHERE i %% 50 <> %s",
        9,
    )
    seen = read(bench, fastest=380.0)
    assert [one.host for one in seen.workers[:4]] == ["host-144", "host-077", "host-120", "host-190"]
    assert seen.workers[0].state == "gone"
    compare("workers", shown(seen))
    compare("workers-scrolled", shown(seen, scrolling=True, offset=150))


def test_a_blocked_one_and_a_paused_one_with_failures(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "refuse=number 7")
    for name in ("articles", "docs", "notes"):
        table(bench, name, 200)
    bench.enqueue("articles", "body", rows_per_job=50)
    bench.enqueue("docs", "body", rows_per_job=50, priority=1)
    bench.enqueue("notes", "body", rows_per_job=50, priority=2)
    bench.sql("DROP TABLE notes")
    bench.drain(names=["notes"])
    bench.drain(names=["docs"])
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(201, 500) i")
    bench.enqueue("docs", "body", rows_per_job=50)
    bench.sql("SELECT pgvec.pause('docs')")
    seen = read(bench, "docs")
    assert [one.state for one in seen.vectorizers] == ["active", "paused", "blocked"]
    compare("paused", shown(seen, chosen="docs", message="docs is paused"))
    compare("blocked", shown(read(bench, "notes"), chosen="notes"))


def test_a_database_that_is_lost(bench: Bench) -> None:
    run_in_the_middle(bench)
    connection = bench.database.connect("test")
    seen = steady(snapshot.read(connection, "docs"))
    bench.sql("SELECT pg_terminate_backend(%s)", connection.info.backend_pid)
    with pytest.raises(psycopg.OperationalError) as error:
        snapshot.read(connection, "docs")
    assert connection.closed
    outage = Outage(since=100.0, clock="18:04:07", lost=True, reason=one_line(error.value), again_at=139.0)
    compare("lost", shown(seen, chosen="docs", trouble=describe(outage, 135.0)))


def test_the_minutes_are_those_of_the_view_and_the_one_that_has_just_begun_is_left_out(bench: Bench) -> None:
    table(bench, "docs", 10)
    bench.enqueue("docs", "body")
    second: Callable[[], float] = lambda: float(bench.value("SELECT extract(second FROM clock_timestamp())"))  # noqa: E731
    while True:
        before = second()
        bench.sql("TRUNCATE pgvec.minutes, pgvec.samples")
        bench.sql(
            "INSERT INTO pgvec.minutes"
            " (vectorizer_id, worker_id, minute, began_at, ended_at, rows, chunks, tokens, bytes)"
            " SELECT 1, 1, minute, minute, minute + interval '1 minute', 60 * i, 0, 0, 0 FROM generate_series(1, %s) i,"
            " LATERAL (SELECT date_trunc('minute', clock_timestamp()) - make_interval(mins => i) AS minute) m",
            15,
        )
        bench.sql(
            "INSERT INTO pgvec.samples (vectorizer_id, worker_id, at, rows)"
            " VALUES (1, 1, date_trunc('minute', clock_timestamp()), %s)",
            60,
        )
        with bench.database.connect("test") as connection:
            rates = snapshot.read(connection).minutes["docs"]
        # Not in the moment in which a minute ends, or has lasted long enough.
        if (before < 20) == (second() < 20) and before <= second():
            break
    whole = [float(i) for i in range(15, 0, -1)]
    assert [round(rate, 6) for rate in rates[:14]] == (whole if before < 20 else whole[1:])[:14]
    if before < 20:
        assert rates[14] == pytest.approx(1)
    else:
        assert rates[14] == pytest.approx(60 / before, rel=0.3)


def test_a_look_reads_no_queue_and_no_source(bench: Bench) -> None:
    """Of a hundred thousand queued jobs it touches a handful, also to find that another vectorizer has none of them."""
    for name in ("docs", "notes"):
        table(bench, name, 10)
        bench.enqueue(name, "body")
    bench.drain(names=["notes"])
    bench.sql(
        "INSERT INTO pgvec.jobs (vectorizer_id, kind, lower_key, upper_key, rows)"
        " SELECT 1, 'range', ARRAY[i::text], ARRAY[(i + 1)::text], 1 FROM generate_series(1, %s) i",
        100_000,
    )
    bench.sql(
        "UPDATE pgvec.jobs SET state = 'running', worker_id = 1, claimed_at = now()"
        " WHERE state = 'queued' AND id <= %s",
        20,
    )
    bench.sql("ANALYZE pgvec.jobs")
    with bench.database.connect("test") as connection, connection.transaction():
        # What other processes read for this one is counted as theirs.
        connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
        seen = snapshot.read(connection, "docs")
        assert [one.state for one in seen.vectorizers] == ["active", "complete"]
        read_of_jobs, read_of_source = (
            connection.execute(
                "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relname = %s",
                [name],
            ).fetchone()
            for name in ("jobs", "docs")
        )
    assert read_of_jobs is not None
    assert read_of_jobs[0] < 500
    assert read_of_source == (0,)
