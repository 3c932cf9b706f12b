"""Live changes: how soon a change is a vector, and what following changes costs the user's statement.

    python -m benchmarks.freshness [--updates 200] [--rounds 5]

Freshness: one idle ``pgvec work`` with the hashing embedder; single-row updates at random intervals; from the return of
COMMIT until another connection, which looks every 5 ms, sees the vector of the new text. Bar: p95 of 1 s.

Cost: an UPDATE of the text of 20,000 rows, and single-row updates, on three tables with the same rows: without a
trigger, with an empty statement trigger with transition tables, and followed (``enqueue --sync``); in sessions of their
own that begin with the one or with the other, in turn, without a worker beside. What is timed is the UPDATE, which is
when such triggers run, not the COMMIT. Bars: 2 times, and 0.2 ms for a single row.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import time

import psycopg

from benchmarks import common
from pgvec_queue.database import Connection

BAR_SECONDS = 1.0
BAR_TIMES = 2.0
BAR_MS = 0.2
_LOOK = 0.005
_GIVE_UP = 30.0
_ROWS = 100_000
_BULK = 20_000
_SINGLE = 200
_FRESH = """
SELECT EXISTS (SELECT FROM {0}_vectors v JOIN {0} s ON v.id = s.id
               WHERE s.id = %s AND s.body = %s AND v.source_hash = substring(sha256(convert_to(%s, 'UTF8')) FOR 16))
"""
_EMPTY_TRIGGER = """
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER nothing AFTER UPDATE ON empty_trigger REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
FOR EACH STATEMENT EXECUTE FUNCTION nothing();
"""
VARIANTS = ("no_trigger", "empty_trigger", "followed")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--updates", type=int, default=200)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    with common.server() as (dsn, _), psycopg.connect(dsn, autocommit=True) as connection:
        good = _freshness(dsn, connection, chosen.updates)
        good &= _cost(dsn, connection, chosen.rounds)
    return 0 if good else 1


def _freshness(dsn: str, connection: Connection, updates: int) -> bool:
    _fill(connection, "docs", 10_000)
    _follow(dsn, "docs")
    assert common.run(dsn, "work", "--drain").code == 0
    worker = common.start(dsn, "work")
    try:
        _until_idle(connection)
        times = [_one_change(connection, number) for number in range(updates)]
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait()
    p95 = statistics.quantiles(times, n=20)[-1]
    print(
        f"freshness of {updates} single-row updates, from commit to visible vector: "
        f"p50 {statistics.median(times):.2f} s, p95 {p95:.2f} s, max {max(times):.2f} s; "
        f"bar: p95 of {BAR_SECONDS} s: {'kept' if p95 <= BAR_SECONDS else 'missed'}"
    )
    return p95 <= BAR_SECONDS


def _one_change(connection: Connection, number: int) -> float:
    time.sleep(random.uniform(0.0, 2.0))
    key, body = random.randint(1, 10_000), f"changed for the {number}th time, {random.random()}"
    connection.execute("UPDATE docs SET body = %s WHERE id = %s", [body, key])
    committed = time.monotonic()
    while connection.execute(_FRESH.format("docs").encode(), [key, body, body]).fetchone() != (True,):
        assert time.monotonic() < committed + _GIVE_UP, f"no vector of {body!r} in {_GIVE_UP} s"
        time.sleep(_LOOK)
    return time.monotonic() - committed


def _until_idle(connection: Connection) -> None:
    deadline = time.monotonic() + 60
    while connection.execute("SELECT count(*) FROM pgvec.workers WHERE state = 'idle'").fetchone() != (1,):
        assert time.monotonic() < deadline, "the worker does not become idle"
        time.sleep(0.1)


def _cost(dsn: str, connection: Connection, rounds: int) -> bool:
    for table in VARIANTS:
        _fill(connection, table, _ROWS)
    connection.execute(_EMPTY_TRIGGER)
    _follow(dsn, "followed")
    bulk: dict[str, list[float]] = {table: [] for table in VARIANTS}
    single: dict[str, list[float]] = {table: [] for table in VARIANTS}
    print(f"UPDATE of {_BULK:,} rows and of one, ms, by the session's order (medians of {rounds} sessions)")
    good = True
    for bulk_first in (False, True):
        for times in (*bulk.values(), *single.values()):
            times.clear()
        for _ in range(rounds):
            for table in VARIANTS:
                connection.execute(f"VACUUM {table}".encode())
                _session(dsn, table, bulk[table], single[table], bulk_first=bulk_first)
        good &= _report("bulk first" if bulk_first else "single rows first", bulk, single)
    return good


def _session(dsn: str, table: str, bulk: list[float], single: list[float], *, bulk_first: bool) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for is_bulk in (bulk_first, not bulk_first):
            if is_bulk:
                first = random.randrange(_ROWS - _BULK)
                bulk.append(_update(connection, table, first, first + _BULK))
            else:
                keys = random.sample(range(1, _ROWS), _SINGLE)
                single.append(statistics.median(_update(connection, table, key, key + 1) for key in keys))


def _update(connection: Connection, table: str, first: int, end: int) -> float:
    query = f"UPDATE {table} SET body = md5(random()::text) || substr(body, 33) WHERE id >= %s AND id < %s".encode()
    with connection.transaction():
        connection.execute("SELECT")
        began = time.perf_counter()
        connection.execute(query, [first, end])
        return time.perf_counter() - began


def _report(order: str, bulk: dict[str, list[float]], single: dict[str, list[float]]) -> bool:
    many = {table: statistics.median(times) * 1000 for table, times in bulk.items()}
    one = {table: statistics.median(times) * 1000 for table, times in single.items()}
    base, alone = many["no_trigger"], one["no_trigger"]
    for table in VARIANTS:
        print(
            f"  {order:17} {table:13}: {_BULK:,} rows {many[table]:7.1f} ({many[table] / base:.2f} times), "
            f"one row {one[table]:.3f} ({one[table] - alone:+.3f})"
        )
    good = many["followed"] <= BAR_TIMES * base and one["followed"] - alone <= BAR_MS
    print(f"  {order}: bars of {BAR_TIMES} times and {BAR_MS} ms: {'kept' if good else 'missed'}")
    return good


def _fill(connection: Connection, table: str, rows: int) -> None:
    connection.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text NOT NULL)".encode())
    connection.execute(
        f"INSERT INTO {table} SELECT i, repeat(md5(i::text), 6) FROM generate_series(1, {rows}) i".encode()
    )
    connection.execute(f"VACUUM ANALYZE {table}".encode())


def _follow(dsn: str, table: str) -> None:
    model = ("--model", "hashing-384", "--no-chunking")
    assert common.run(dsn, "enqueue", table, "--text", "body", *model, "--sync").code == 0


if __name__ == "__main__":
    sys.exit(main())
