"""How soon running workers obey, how good the time left is, and how soon a limit holds.

    python -m benchmarks.steering obey [--workers 3] [--rounds 5]
    python -m benchmarks.steering eta [--seconds 300]
    python -m benchmarks.steering lag [--rounds 3]

``obey``: from `pause` to the last commit and to the last job given back, from `retry` to the beginning of what was in
quarantine, and from `workers stop` to the workers' saying that they leave, while workers run whose embedder sleeps as a
device would; bar: 2 s. ``eta``: a run of so many seconds, looked at every ten; after the first minute the time left may
be 15 % off, rows done never go down and never pass the total. ``lag``: a real standby whose replay is paused: from
crossing the bound to the last claim, and from falling below it to the next; bar: 2 s.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import psycopg

from benchmarks import common
from pgvec_queue import progress, schema, vectorizer
from pgvec_queue.database import Connection, Database
from pgvec_queue.vectorizer import Changes

OBEY_BAR, ETA_BAR = 2.0, 0.15
_LOOK = 0.02
_LATE = 60.0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("measure", choices=["obey", "eta", "lag"])
    options.add_argument("--workers", type=int, default=3)
    options.add_argument("--rate", type=float, default=300.0, help="rows per second of a worker")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=300.0)
    chosen = options.parse_args()
    if chosen.measure == "lag":
        return _lag(chosen.rate, chosen.rounds)
    with common.server() as (dsn, connection):
        if chosen.measure == "obey":
            return _obey(dsn, connection, chosen.workers, chosen.rate, chosen.rounds)
        return _eta(dsn, connection, chosen.workers, chosen.rate, chosen.seconds)


def _fill(connection: Connection, dsn: str, rows: int) -> None:
    connection.execute("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    connection.execute("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, %s) i", (rows,))
    connection.execute("VACUUM ANALYZE docs")
    assert common.run(dsn, "enqueue", "docs", "--text", "body", "--model", "hashing-384", "--no-chunking").code == 0


@contextmanager
def _workers(
    dsn: str, count: int, rate: float, *arguments: str, faults: str = ""
) -> Iterator[list[subprocess.Popen[bytes]]]:
    environment = {**os.environ, "PGVEC_DSN": dsn, "PGVEC_HASHING_FAULTS": f"rate={rate}{faults}"}
    command = [sys.executable, "-m", "pgvec_queue", "work", *arguments]
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)


def _wait(what: str, condition: Callable[[], bool]) -> float:
    """Returns how many seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > _LATE:
            raise TimeoutError(f"{what} took longer than {_LATE:.0f} s")
        time.sleep(_LOOK)
    return time.monotonic() - began


def _value(connection: Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    return int(row[0] or 0) if row else 0


def _wait_for_rows(connection: Connection, rows: float) -> float:
    """Waits until more than so many rows are written; returns how many seconds it took."""
    before = _value(connection, _WRITTEN)
    return _wait("some progress", lambda: _value(connection, _WRITTEN) > before + rows)


_RUNNING = "SELECT count(DISTINCT worker_id) FROM pgvec.jobs WHERE state = 'running'"
_WRITTEN = "SELECT sum(rows_right) FROM pgvec.counters"
_LISTED = "SELECT count(*) FROM pgvec.jobs WHERE kind = 'keys' AND state = 'queued'"
_STAYING = "SELECT count(*) FROM pgvec.workers WHERE state <> 'stopping'"
_REFUSED = "SELECT count(*) FROM pgvec.failures"


def _obey(dsn: str, connection: Connection, workers: int, rate: float, rounds: int) -> int:
    _fill(connection, dsn, round(workers * rate * 40 * rounds))
    # They are read first, and refused.
    connection.execute("UPDATE docs SET body = 'poison' WHERE id <= %s", (rounds,))
    released, wrote, retried, written_after = [], [], [], []
    with _workers(dsn, workers, rate, faults=";refuse=poison") as processes:
        for number in range(1, rounds + 1):
            _wait("the workers' beginning", lambda: _value(connection, _RUNNING) == workers)
            _wait_for_rows(connection, workers * rate)
            vectorizer.steer(connection, "docs", "pause")
            began = last = time.monotonic()
            written = _value(connection, _WRITTEN)
            while _value(connection, _RUNNING) or time.monotonic() - last < 1:
                if (now := _value(connection, _WRITTEN)) != written:
                    written, last = now, time.monotonic()
                if not _value(connection, _RUNNING) and len(released) < number:
                    released.append(time.monotonic() - began)
                time.sleep(_LOOK)
            wrote.append(last - began)
            print(f"round {number}: jobs back after {released[-1]:.2f} s, last rows written after {wrote[-1]:.2f} s")
            vectorizer.steer(connection, "docs", "resume")
        for number in range(1, rounds + 1):
            _wait("the refused rows", lambda: _value(connection, _REFUSED) == rounds - len(retried))
            connection.execute("UPDATE docs SET body = 'good now' WHERE id = %s", (number,))
            connection.execute("SELECT pgvec.retry('docs')")
            began = time.monotonic()
            _wait("the claim", lambda: not _value(connection, _LISTED))
            retried.append(time.monotonic() - began)
            _wait(
                "its vector", lambda n=number: _value(connection, f"SELECT count(*) FROM docs_vectors WHERE id = {n}")
            )
            written_after.append(time.monotonic() - began)
        print("tried again on demand, begun after", ", ".join(f"{one:.2f} s" for one in retried))
        print("and written after", ", ".join(f"{one:.2f} s" for one in written_after))
        _wait("the workers", lambda: _value(connection, _RUNNING) == workers)
        connection.execute("SELECT pgvec.stop_workers(NULL)")
        began = time.monotonic()
        leaving = _wait("the workers", lambda: not _value(connection, _STAYING))
        _wait("the jobs", lambda: _value(connection, _RUNNING) == 0)
        given_back = time.monotonic() - began
        codes = [process.wait(30) for process in processes]
        left = time.monotonic() - began
        print(f"told to leave: they say so after {leaving:.2f} s, jobs back after {given_back:.2f} s,")
        print(f"all left after {left:.2f} s, exit codes {codes}")
    attempts = _value(connection, "SELECT sum(attempts) FROM pgvec.jobs")
    worst = max(*released, *wrote, *retried, leaving)
    print(f"worst {worst:.2f} s; bar {OBEY_BAR} s: {'kept' if worst <= OBEY_BAR else 'missed'}; attempts {attempts}")
    return 0 if worst <= OBEY_BAR and not attempts else 1


def _eta(dsn: str, connection: Connection, workers: int, rate: float, seconds: float) -> int:
    _fill(connection, dsn, round(workers * rate * seconds))
    seen: list[tuple[float, progress.Progress]] = []
    with _workers(dsn, workers, rate):
        began: float | None = None
        while True:
            one = progress.read(connection, "docs")[0]
            if began is None and one.rows_done:
                began = time.monotonic()
            if one.state == "complete":
                break
            if began is not None and time.monotonic() - began >= 10 * len(seen):
                seen.append((time.monotonic() - began, one))
            time.sleep(_LOOK)
        assert began is not None
        took = time.monotonic() - began
    worst = 0.0
    for at, one in seen:
        left = took - at
        error = (one.eta_seconds - left) / left if one.eta_seconds is not None and left > 0 else None
        within = (
            one.eta_low_seconds is not None
            and one.eta_high_seconds is not None
            and one.eta_low_seconds <= left <= one.eta_high_seconds
        )
        told = "nothing" if error is None else f"{one.eta_seconds:.0f} s ({error:+.1%}{'' if within else ', outside'})"
        print(f"{at:5.0f} s: {one.rows_done:,} of {one.rows_total:,}; left {left:.0f} s, said {told}")
        if at >= 60 and left >= 10 and error is not None:
            worst = max(worst, abs(error))
    done = [one.rows_done for _, one in seen]
    steady = done == sorted(done) and all(one.rows_done <= one.rows_total for _, one in seen)
    print(f"took {took:.0f} s; worst error after the first minute {worst:.1%} (bar {ETA_BAR:.0%}); steady: {steady}")
    return 0 if worst <= ETA_BAR and steady else 1


def _lag(rate: float, rounds: int) -> int:
    # It has a cluster with a standby, as the tests for failover have.
    from tests.chaos.server import Server

    bound = 2.0
    stopped, went_on = [], []
    with ExitStack() as stack:
        primary, standby = (stack.enter_context(closing(Server())) for _ in range(2))
        primary.create()
        schema.initialize(Database(primary.dsn))
        standby.create_standby(primary)
        # Plain: VACUUM runs in no transaction.
        connection, behind = (stack.enter_context(psycopg.connect(s.dsn, autocommit=True)) for s in (primary, standby))
        _fill(connection, primary.dsn, round(rate * 60 * rounds))
        vectorizer.alter(connection, "docs", Changes(replication_lag=bound))
        with _workers(primary.dsn, 1, rate):
            for number in range(1, rounds + 1):
                _wait("the worker's beginning", lambda: _value(connection, _RUNNING) == 1)
                _wait_for_rows(connection, 3 * rate)
                behind.execute("SELECT pg_wal_replay_pause()")
                crossed = time.monotonic() + bound
                written, last = _value(connection, _WRITTEN), time.monotonic()
                # What is in hand waits for two seconds, and goes back then.
                while _value(connection, _RUNNING):
                    if (now := _value(connection, _WRITTEN)) != written:
                        written, last = now, time.monotonic()
                    time.sleep(_LOOK)
                stopped.append(last - crossed)
                reason = progress.read(connection, "docs")[0].reason
                behind.execute("SELECT pg_wal_replay_resume()")
                went_on.append(_wait_for_rows(connection, 0))
                print(
                    f"round {number}: the last rows {stopped[-1]:.2f} s after the bound was crossed; "
                    f"the next {went_on[-1]:.2f} s after the standby went on; `status` said: {reason}"
                )
    worst = max(stopped)
    print(
        f"worst {worst:.2f} s, median {statistics.median(stopped):.2f} s; bar {OBEY_BAR} s: "
        f"{'kept' if worst <= OBEY_BAR else 'missed'}"
    )
    return 0 if worst <= OBEY_BAR else 1


if __name__ == "__main__":
    sys.exit(main())
