"""Rows per second of `pgvec verify`: a million rows of some 400 characters, with the hash present.

    python -m benchmarks.verify [--rows 1000000] [--runs 5]

Runs alternate between a destination that is right, one with a difference in every hundredth row, and the bare reading
and hashing of the source, which no comparison can do without.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks import common
from pgvec_queue import definition
from pgvec_queue.database import Connection, versions
from pgvec_queue.fragments import Fragments
from pgvec_queue.verify import verify

_HASH_ALL = "SELECT count(pgvec.source_hash(body)) FROM docs WHERE NOT pgvec.is_blank(body)"
_FILL = """
INSERT INTO docs SELECT i, left(repeat(md5(i::text) || ' ', 13), 400) FROM generate_series(1, {rows}) i;
INSERT INTO docs_vectors (id, chunk_index, chunk, embedding, source_hash)
SELECT id, 0, body, (SELECT array_agg(0.05)::vector FROM generate_series(1, 384)), pgvec.source_hash(body) FROM docs;
"""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--runs", type=int, default=5)
    chosen = options.parse_args()
    with common.server() as (_, connection):
        fragments = _fill(connection, chosen.rows)
        # One core: what is measured is work, not the number of processes.
        connection.execute("SET max_parallel_workers_per_gather = 0")
        connection.execute(_HASH_ALL.encode())
        rates: dict[str, list[float]] = {"right": [], "1 % stale": [], "reading and hashing alone": []}
        for _ in range(chosen.runs):
            rates["right"].append(_rate(chosen.rows, lambda: _expect(connection, fragments, 0)))
            connection.execute("UPDATE docs_vectors SET source_hash = '\\x00' WHERE id % 100 = 0")
            rates["1 % stale"].append(_rate(chosen.rows, lambda: _expect(connection, fragments, chosen.rows // 100)))
            _restore(connection)
            rates["reading and hashing alone"].append(
                _rate(chosen.rows, lambda: connection.execute(_HASH_ALL.encode()).fetchone())
            )
    for what, found in rates.items():
        print(f"{what}: median {statistics.median(found):,.0f} rows/s, {min(found):,.0f} to {max(found):,.0f}")
    return 0


def _fill(connection: Connection, rows: int) -> Fragments:
    connection.execute("CREATE TABLE docs (id bigint PRIMARY KEY, body text NOT NULL)")
    vectorizer = definition.define(
        connection,
        definition.Options(source="docs", text=("body",), model="hashing-384"),
        versions(connection),
    ).vectorizer
    connection.execute(_FILL.format(rows=rows).encode())
    for table in ("docs", "docs_vectors"):
        connection.execute(f"VACUUM ANALYZE {table}".encode())
    return Fragments(vectorizer, versions(connection).vector_schema)


def _restore(connection: Connection) -> None:
    connection.execute(
        "UPDATE docs_vectors d SET source_hash = pgvec.source_hash(s.body) FROM docs s"
        " WHERE s.id = d.id AND s.id % 100 = 0"
    )
    connection.execute("VACUUM docs_vectors")


def _expect(connection: Connection, fragments: Fragments, stale: int) -> None:
    verified = verify(connection, fragments)
    assert (verified.missing, verified.stale, verified.orphaned) == (0, stale, 0), verified


def _rate(rows: int, run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return rows / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
