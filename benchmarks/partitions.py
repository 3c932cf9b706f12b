"""A destination in partitions against one table: written, changed, indexed and searched, in turns on the same server.

    python -m benchmarks.partitions [--rows 100000] [--partitions 16] [--dimensions 384] [--rounds 3]
        [--store vector] [--ef 40 --ef 100] [--queries 200] [--memory 64M]

The embedder is the hashing one, which costs a microsecond or two per row, so what is measured is the write path and the
index. Its vectors are as good as random: the worst that an HNSW index can meet, so that recall is lower than of real
texts. Searches run one after the other through `pgvec.search`, with everything in memory; recall is against exact
search. Memory is what the server process that builds has for itself at most, or shares with its parallel workers.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from benchmarks import common
from pgvec_queue import schema
from pgvec_queue.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvec_queue.database import Connection

_SEARCH = "SELECT key FROM pgvec.search({id}, %s::real[], max_hits => 10, exact => {exact}, ef_search => {ef})"
_LOOK = 0.1
_CHANGED = 10
"""Of so many rows one is changed for the second round of writing."""


@dataclass(frozen=True)
class Searched:
    """Searches at one ``ef_search``: milliseconds, and the share of the ten nearest that they found."""

    median: float
    slowest: float
    recall: float


@dataclass(frozen=True)
class Round:
    """What one destination took."""

    written: float
    """Rows a second of a backfill, by one worker from its start to its end."""
    rewritten: float
    """Rows a second of a run that finds one row of ten changed."""
    building: float
    """Seconds."""
    memory: float
    """MB at most of the process that builds, above what it had before."""
    size: int
    searched: dict[int, Searched]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--partitions", type=int, default=16)
    options.add_argument("--dimensions", type=int, default=384)
    options.add_argument("--store", choices=["vector", "halfvec"], default="vector")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--queries", type=int, default=200)
    options.add_argument("--ef", type=int, action="append", help="ef_search of the searches [default: 40, 100]")
    options.add_argument("--memory", default=None, help="of a build, at most, such as 64M [default: what it needs]")
    chosen = options.parse_args()
    chosen.ef = chosen.ef or [40, 100]
    ways = {"one": 1, "parts": chosen.partitions}
    found: dict[str, list[Round]] = {way: [] for way in ways}
    with common.cluster(shared_buffers="1GB", max_wal_size="8GB", maintenance_work_mem="2GB") as fresh:
        schema.initialize(Database(fresh.dsn))
        with psycopg.connect(fresh.dsn, autocommit=True) as connection:
            for number in range(chosen.rounds):
                for way in ways if number % 2 == 0 else [*ways][::-1]:
                    table = f"{way}{number}"
                    done = _round(fresh.dsn, connection, table, ways[way], chosen)
                    found[way].append(done)
                    print(f"{way}, round {number + 1}: {_told(done)}", flush=True)
                    connection.execute(f"DROP TABLE {table}, {table}_vectors".encode())
                    connection.execute("SELECT pgvec.drop_vectorizer(%s)", [table])
    print()
    print(
        f"{chosen.rows:,} rows of {chosen.dimensions} dimensions ({chosen.store}), medians of {chosen.rounds} rounds:"
    )
    print("| | one table | in partitions | ratio |\n|---|---|---|---|")
    for label, numbers in _lines(found["one"], found["parts"], chosen.ef):
        one, parts = (statistics.median(values) for values in numbers)
        print(f"| {label} | {one:,.4g} | {parts:,.4g} | {parts / one if one else float('nan'):.2f} |")
    return 0


def _lines(
    one: Sequence[Round], parts: Sequence[Round], efs: Sequence[int]
) -> Iterator[tuple[str, tuple[list[float], list[float]]]]:
    for label, name in (
        ("written, rows/s", "written"),
        ("one row of ten changed, rows/s", "rewritten"),
        ("index built, s", "building"),
        ("memory of the build, MB", "memory"),
        ("its size, bytes", "size"),
    ):
        yield label, ([getattr(x, name) for x in one], [getattr(x, name) for x in parts])
    for ef in efs:
        for label, name in (("p50, ms", "median"), ("p99, ms", "slowest"), ("recall@10", "recall")):
            yield (
                f"search at ef {ef}, {label}",
                ([getattr(x.searched[ef], name) for x in one], [getattr(x.searched[ef], name) for x in parts]),
            )


def _told(done: Round) -> str:
    searches = "; ".join(
        f"ef {ef}: p50 {one.median:.2f} ms, p99 {one.slowest:.2f} ms, recall@10 {one.recall:.3f}"
        for ef, one in done.searched.items()
    )
    return (
        f"{done.written:,.0f} rows/s, a tenth changed {done.rewritten:,.0f} rows/s; index {done.building:.1f} s, "
        f"{done.memory:.0f} MB of memory, {done.size / 2**20:.0f} MB; {searches}"
    )


def _round(dsn: str, connection: Connection, table: str, partitions: int, chosen: argparse.Namespace) -> Round:
    connection.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text NOT NULL)".encode())
    connection.execute(
        f"INSERT INTO {table} SELECT i, 'row ' || i || ' says ' || substr(md5(i::text), 1, 12)"
        f" FROM generate_series(1, {chosen.rows}) i".encode()
    )
    connection.execute(f"VACUUM ANALYZE {table}".encode())
    model = ("--model", f"hashing-{chosen.dimensions}", "--no-chunking", "--store", chosen.store, "--no-index")
    written = _load(dsn, table, chosen.rows, "--text", "body", *model, "--partitions", str(partitions))
    connection.execute(f"UPDATE {table} SET body = body || ' again' WHERE id % {_CHANGED} = 0".encode())
    connection.execute(f"VACUUM ANALYZE {table}".encode())
    rewritten = _load(dsn, table, chosen.rows)
    connection.execute(f"VACUUM ANALYZE {table}_vectors".encode())
    memory = ("--memory", chosen.memory, "--anyway") if chosen.memory else ()
    with _watched(dsn) as taken:
        ran = common.run(dsn, "index", table, *memory, "--seconds", "1")
    assert ran.code == 0
    row = connection.execute(
        "SELECT seconds, size_bytes, state FROM pgvec.index_status WHERE name = %s", [table]
    ).fetchone()
    assert row is not None
    assert row[2] == "built"
    return Round(written, rewritten, row[0], max(taken), row[1], _searches(connection, table, chosen))


def _load(dsn: str, table: str, rows: int, *options: str) -> float:
    """Returns rows a second of a worker that does what an `enqueue` has left."""
    assert common.run(dsn, "enqueue", table, *options).code == 0
    ran = common.run(dsn, "work", table, "--drain")
    assert ran.code == 0
    return rows / ran.seconds


@contextmanager
def _watched(dsn: str) -> Iterator[list[float]]:
    """Yields a list of what the building process has taken, in MB, above what it had when it was first seen."""
    taken = [0.0]
    done = threading.Event()

    def watch() -> None:
        first: dict[int, float] = {}
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not done.wait(_LOOK):
                for (pid,) in connection.execute("SELECT pid FROM pg_stat_progress_create_index").fetchall():
                    now = _memory(pid)
                    taken.append(now - first.setdefault(pid, now))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield taken
    finally:
        done.set()
        thread.join()


def _memory(pid: int) -> float:
    """Returns MB that a process has for itself, or shares with its parallel workers alone; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps").read_text()
    except OSError:
        return 0.0
    kilobytes = 0
    for mapping in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE):
        kinds = "Rss" if "/dev/shm/PostgreSQL." in mapping else "Private_Dirty|Private_Clean"
        kilobytes += sum(map(int, re.findall(rf"^(?:{kinds}): +([0-9]+) kB", mapping, re.MULTILINE)))
    return kilobytes / 1024


def _searches(connection: Connection, table: str, chosen: argparse.Namespace) -> dict[int, Searched]:
    row = connection.execute("SELECT id FROM pgvec.vectorizers WHERE name = %s", [table]).fetchone()
    assert row is not None
    ids = random.Random(0).sample(range(1, chosen.rows + 1), chosen.queries)
    # Between two vectors, so that no query is a vector that is there.
    queries = [
        vector
        for (vector,) in connection.execute(
            f"SELECT (a.embedding + b.embedding)::real[] FROM {table}_vectors a JOIN {table}_vectors b"
            f" ON b.id = a.id %% {chosen.rows} + 1 WHERE a.id = ANY (%s) ORDER BY a.id".encode(),
            [ids],
        )
    ]
    exact = [_keys(connection, row[0], query, "true", None) for query in queries]
    found = {}
    for ef in chosen.ef:
        for query in queries:
            _keys(connection, row[0], query, "false", ef)
        times, shares = [], []
        for query, nearest in zip(queries, exact, strict=True):
            began = time.perf_counter()
            keys = _keys(connection, row[0], query, "false", ef)
            times.append(1000 * (time.perf_counter() - began))
            shares.append(len(keys & nearest) / len(nearest))
        times.sort()
        found[ef] = Searched(statistics.median(times), times[-max(len(times) // 100, 1)], statistics.mean(shares))
    return found


def _keys(connection: Connection, one: int, query: object, exact: str, ef: int | None) -> set[str]:
    text = _SEARCH.format(id=one, exact=exact, ef="NULL" if ef is None else ef)
    return {key[0] for (key,) in connection.execute(text.encode(), [query])}


if __name__ == "__main__":
    sys.exit(main())
