"""A backfill whose index is built when all is embedded, against one into a table that has its index already.

    python -m benchmarks.index [--rows 50000] [--dimensions 384] [--rounds 2] [--processes 1]

The embedder is the hashing one, which costs a microsecond or two per row, so what is measured is the write path and the
index. Its vectors are as good as random: the worst that an HNSW index can meet, so that recall is lower than of real
texts. Both ways in turns, each into a fresh table of the same server.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import common
from pgvec_queue.database import Connection

_ABOUT = """
SELECT i.seconds, extract(epoch FROM i.recall_at - i.built_at)::float8, i.size_bytes, i.recall, i.recall_queries,
       (SELECT count(*) FROM {table}_vectors),
       (SELECT count(*) FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid JOIN pg_am a ON a.oid = c.relam
        WHERE x.indrelid = '{table}_vectors'::regclass AND a.amname = 'hnsw' AND x.indisvalid)
FROM pgvec.index_status i WHERE i.name = '{table}'
"""


@dataclass(frozen=True)
class Load:
    """One backfill. Times are in seconds."""

    seconds: float
    """From the enqueue to the end of a worker that drains, but for what it took to measure recall."""
    building: float
    """Of these, for the index by itself."""
    size: int
    recall: float
    queries: int


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--rows", type=int, default=50_000)
    options.add_argument("--dimensions", type=int, default=384)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--processes", type=int, default=1, help="of the worker")
    chosen = options.parse_args()
    ways: dict[str, Callable[[str, str, argparse.Namespace], float]] = {"deferred": _deferred, "live": _live}
    loads: dict[str, list[Load]] = {way: [] for way in ways}
    with common.server() as (dsn, connection):
        for number in range(chosen.rounds):
            for way, run in ways.items():
                table = f"{way}{number}"
                _fill(connection, table, chosen.rows)
                seconds = run(dsn, table, chosen)
                load = _look(connection, dsn, table, seconds, chosen.rows)
                loads[way].append(load)
                print(
                    f"{way}, round {number + 1}: {load.seconds:.1f} s"
                    + (f", of these {load.building:.1f} s for the index" if way == "deferred" else "")
                    + f"; {load.size / 2**20:.0f} MB, recall@10 {load.recall:.3f} by {load.queries} searches"
                )
                connection.execute(f"DROP TABLE {table}, {table}_vectors".encode())
                connection.execute("SELECT pgvec.drop_vectorizer(%s)", [table])
    medians = {way: statistics.median(load.seconds for load in several) for way, several in loads.items()}
    print(
        f"{chosen.rows:,} rows of {chosen.dimensions} dimensions: {medians['deferred']:.1f} s with the index deferred, "
        f"{medians['live']:.1f} s with it live: {medians['live'] / medians['deferred']:.1f} times"
    )
    return 0


def _fill(connection: Connection, table: str, rows: int) -> None:
    connection.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text NOT NULL)".encode())
    connection.execute(
        f"INSERT INTO {table} SELECT i, 'row ' || i || ' says ' || substr(md5(i::text), 1, 12)"
        f" FROM generate_series(1, {rows}) i".encode()
    )
    connection.execute(f"VACUUM ANALYZE {table}".encode())


def _enqueue(dsn: str, table: str, chosen: argparse.Namespace, index: str) -> float:
    model = f"hashing-{chosen.dimensions}"
    ran = common.run(dsn, "enqueue", table, "--text", "body", "--model", model, "--no-chunking", index)
    assert ran.code == 0
    return ran.seconds


def _work(dsn: str, table: str, chosen: argparse.Namespace) -> float:
    ran = common.run(dsn, "work", table, "--drain", "--processes", str(chosen.processes))
    assert ran.code == 0
    return ran.seconds


def _deferred(dsn: str, table: str, chosen: argparse.Namespace) -> float:
    """As by default: the worker builds the index at the end, and measures its recall."""
    return _enqueue(dsn, table, chosen, "--index") + _work(dsn, table, chosen)


def _live(dsn: str, table: str, chosen: argparse.Namespace) -> float:
    """The index is made on the empty table, and every vector inserted into it."""
    seconds = _enqueue(dsn, table, chosen, "--no-index")
    ran = common.run(dsn, "index", table)
    assert ran.code == 0
    return seconds + ran.seconds + _work(dsn, table, chosen)


def _look(connection: Connection, dsn: str, table: str, seconds: float, rows: int) -> Load:
    if table.startswith("live"):
        assert common.run(dsn, "index", table, "--recall").code == 0
    row = connection.execute(_ABOUT.format(table=table).encode()).fetchone()
    assert row is not None
    building, measuring, size, recall, queries, vectors, valid = row
    assert (vectors, valid) == (rows, 1)
    return Load(
        seconds - (0.0 if table.startswith("live") else measuring), building or 0.0, size, recall or 0.0, queries or 0
    )


if __name__ == "__main__":
    sys.exit(main())
