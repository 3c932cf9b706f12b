"""A million short rows, or many more, through the hashing embedder: rows per second, memory, and a second enqueue.

    python -m benchmarks.million [--rows 1000000] [--key uuid|bigint]
    python -m benchmarks.million --rows 10000000 --key bigint --store halfvec --processes 2 --every 20 --once

The embedder costs a microsecond or two per row, so what is measured is the queue and the write path. ``--every`` prints
how all of it grows meanwhile: rows per second, the destination, the job table, what counts the progress, the WAL, and
the resident memory of each worker process. ``--once`` leaves out the second and the third enqueue. What was written is
compared with the source by its hashes, and vectors of a sample with those that the embedder makes of their texts.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg

from benchmarks import common
from pgvec_queue.database import Connection
from pgvec_queue.embedders import ModelSpec
from pgvec_queue.embedders.hashing import HashingEmbedder

_WRONG = """
SELECT (SELECT count(*) FROM short s WHERE NOT EXISTS (SELECT FROM short_vectors d WHERE d.id = s.id)),
       (SELECT count(*) FROM short_vectors d WHERE NOT EXISTS (SELECT FROM short s WHERE s.id = d.id)),
       (SELECT count(*) FROM short s JOIN short_vectors d ON d.id = s.id
        WHERE d.source_hash <> substring(sha256(convert_to(s.body, 'UTF8')) FOR 16))
"""

_GROWTH = """
SELECT (SELECT coalesce(sum(rows_embedded), 0) FROM pgvec.counters),
       pg_table_size('short_vectors'), pg_indexes_size('short_vectors'),
       pg_table_size('pgvec.jobs'), pg_indexes_size('pgvec.jobs'),
       pg_total_relation_size('pgvec.counters') + pg_total_relation_size('pgvec.samples')
           + pg_total_relation_size('pgvec.minutes') + pg_total_relation_size('pgvec.workers'),
       (pg_current_wal_lsn() - %s::pg_lsn)::bigint
"""
_SAMPLE = "SELECT chunk, embedding::text FROM short_vectors TABLESAMPLE SYSTEM (%s) REPEATABLE (1) LIMIT 5000"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--key", choices=["uuid", "bigint"], default="uuid")
    options.add_argument("--dimensions", type=int, default=384)
    options.add_argument("--store", choices=["vector", "halfvec"], default="vector")
    options.add_argument("--processes", type=int, default=1, help="of the worker")
    options.add_argument("--every", type=float, help="seconds between looks at how all of it grows")
    options.add_argument("--once", action="store_true", help="no second and third enqueue")
    chosen = options.parse_args()
    with common.server() as (dsn, connection):
        _fill(connection, chosen.rows, chosen.key)
        _enqueue(dsn, "enqueue", chosen)
        with _looking(dsn, chosen.every):
            embedded = _work(dsn, connection, "work", chosen.rows, chosen)
        good = embedded == chosen.rows
        if not chosen.once:
            _enqueue(dsn, "enqueue again", chosen)
            _work(dsn, connection, "work again", 0, chosen)
            _change(connection, chosen.key)
            _enqueue(dsn, "enqueue after 1,000 inserts, 1,000 changes and 1,000 deletes", chosen)
            good &= _work(dsn, connection, "work", 2_000, chosen) == 2_000
        missing, orphaned, stale = connection.execute(_WRONG).fetchone() or (1, 1, 1)
        print(f"missing {missing}, orphaned {orphaned}, stale {stale}")
        good &= _vectors_are_right(connection, chosen)
    return 0 if good and not (missing or orphaned or stale) else 1


@contextmanager
def _looking(dsn: str, every: float | None) -> Iterator[None]:
    """Prints how all of it grows, while inside."""
    ended = threading.Event()
    thread = threading.Thread(target=_look, args=(dsn, every or 0.0, ended))
    if every:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if every:
            thread.join()


def _look(dsn: str, every: float, ended: threading.Event) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        began = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
        assert began is not None
        print("seconds |      rows   rows/s | table    index | jobs   index | progress |     WAL | memory of each, MB")
        started, before, at = time.monotonic(), 0, time.monotonic()
        while True:
            last = ended.wait(every)
            row = connection.execute(_GROWTH, [began[0]]).fetchone()
            assert row is not None
            now = time.monotonic()
            rows, table, index, jobs, jobs_index, progress, wal = map(int, row)
            rate = (rows - before) / (now - at)
            memory = " ".join(f"{size:.0f}" for size in _memory(connection))
            print(
                f"{now - started:7.0f} | {rows:10,} {rate:7,.0f} | {table / 1e6:6,.0f} {index / 1e6:6,.0f} |"
                f" {jobs / 1e6:5.1f} {jobs_index / 1e6:5.1f} | {progress / 1e6:8.2f} | {wal / 1e6:7,.0f} | {memory}",
                flush=True,
            )
            before, at = rows, now
            if last:
                return


def _memory(connection: psycopg.Connection[tuple[int, ...]]) -> list[float]:
    """Returns the resident memory of each worker process, in MB; they are of this machine."""
    found = []
    for (pid,) in connection.execute("SELECT pid FROM pgvec.workers WHERE NOT gone ORDER BY id"):
        status = Path(f"/proc/{pid}/status")
        try:
            lines = [line for line in status.read_text().splitlines() if line.startswith("VmRSS")]
        except OSError:
            continue
        found.append(int(lines[0].split()[1]) / 1024)
    return found


def _vectors_are_right(connection: Connection, chosen: argparse.Namespace) -> bool:
    """Compares vectors of a sample with those of their texts."""
    share = min(100.0, 100 * 20_000 / chosen.rows)
    rows = connection.execute(_SAMPLE, [share]).fetchall()
    made = HashingEmbedder(ModelSpec("hashing", f"hashing-{chosen.dimensions}")).embed_queries(
        [text for text, _ in rows]
    )
    stored = np.array([np.fromstring(vector[1:-1], sep=",") for _, vector in rows])
    least = float(np.min(np.sum(made * stored, axis=1))) if rows else 0.0
    print(f"least cosine of {len(rows):,} stored vectors with those of their texts: {least:.5f}")
    return least > 0.999


def _fill(connection: Connection, rows: int, key: str) -> None:
    kind = "uuid PRIMARY KEY DEFAULT gen_random_uuid()" if key == "uuid" else "bigint PRIMARY KEY"
    value = "gen_random_uuid()" if key == "uuid" else "2 * i"
    connection.execute(f"CREATE TABLE short (id {kind}, body text NOT NULL)".encode())
    connection.execute(
        f"INSERT INTO short SELECT {value}, 'row ' || i || ' says ' || substr(md5(i::text), 1, 12)"
        f" FROM generate_series(1, {rows}) i".encode()
    )
    connection.execute("VACUUM ANALYZE short")


def _change(connection: Connection, key: str) -> None:
    some = "SELECT id FROM short ORDER BY md5(id::text) LIMIT 1000 OFFSET {}"
    connection.execute(f"UPDATE short SET body = body || ' changed' WHERE id IN ({some.format(0)})".encode())
    connection.execute(f"DELETE FROM short WHERE id IN ({some.format(1000)})".encode())
    value = "gen_random_uuid()" if key == "uuid" else "1 + 2 * (hashint4(i) & 524287)"
    connection.execute(
        f"INSERT INTO short SELECT {value}, 'new ' || i FROM generate_series(1, 1100) i ON CONFLICT DO NOTHING".encode()
    )
    connection.execute("DELETE FROM short WHERE id IN (SELECT id FROM short WHERE body LIKE 'new %' OFFSET 1000)")


def _enqueue(dsn: str, what: str, chosen: argparse.Namespace) -> None:
    model = ["--model", f"hashing-{chosen.dimensions}", "--store", chosen.store]
    ran = common.run(dsn, "enqueue", "short", "--text", "body", *model, "--no-chunking", "--no-index")
    assert ran.code == 0
    print(f"{what}: {ran.seconds:.1f} s")


def _embedded(connection: Connection) -> int:
    row = connection.execute("SELECT coalesce(sum(rows_embedded), 0) FROM pgvec.counters").fetchone()
    return int(row[0]) if row else 0


def _work(dsn: str, connection: Connection, what: str, expected: int, chosen: argparse.Namespace) -> int:
    before = _embedded(connection)
    started = time.monotonic()
    ran = common.run(dsn, "work", "--drain", "--processes", str(chosen.processes))
    assert ran.code == 0
    done = _embedded(connection) - before
    seconds = time.monotonic() - started
    rate = f", {done / seconds:,.0f} rows/s" if expected else ""
    print(
        f"{what}: {done:,} rows embedded in {seconds:.1f} s{rate}, "
        f"worker's CPU {ran.cpu:.1f} s, its peak memory {ran.peak:.0f} MB"
    )
    return done


if __name__ == "__main__":
    sys.exit(main())
