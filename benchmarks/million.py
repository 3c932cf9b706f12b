"""A million short rows through the hashing embedder: rows per second, peak memory, and what a second enqueue costs.

    python -m benchmarks.million [--rows 1000000] [--key uuid|bigint]

The embedder costs a microsecond or two per row, so what is measured is the queue and the write path.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks import common
from pgvec_queue.database import Connection

_WRONG = """
SELECT (SELECT count(*) FROM short s WHERE NOT EXISTS (SELECT FROM short_vectors d WHERE d.id = s.id)),
       (SELECT count(*) FROM short_vectors d WHERE NOT EXISTS (SELECT FROM short s WHERE s.id = d.id)),
       (SELECT count(*) FROM short s JOIN short_vectors d ON d.id = s.id
        WHERE d.source_hash <> substring(sha256(convert_to(s.body, 'UTF8')) FOR 16))
"""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--key", choices=["uuid", "bigint"], default="uuid")
    chosen = options.parse_args()
    with common.server() as (dsn, connection):
        _fill(connection, chosen.rows, chosen.key)
        _enqueue(dsn, "enqueue")
        _work(dsn, connection, "work", chosen.rows)
        _enqueue(dsn, "enqueue again")
        _work(dsn, connection, "work again", 0)
        _change(connection, chosen.key)
        _enqueue(dsn, "enqueue after 1,000 inserts, 1,000 changes and 1,000 deletes")
        embedded = _work(dsn, connection, "work", 2_000)
        missing, orphaned, stale = connection.execute(_WRONG).fetchone() or (1, 1, 1)
        print(f"missing {missing}, orphaned {orphaned}, stale {stale}")
    return 0 if embedded == 2_000 and not (missing or orphaned or stale) else 1


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


def _enqueue(dsn: str, what: str) -> None:
    ran = common.run(dsn, "enqueue", "short", "--text", "body", "--model", "hashing-384", "--no-chunking")
    assert ran.code == 0
    print(f"{what}: {ran.seconds:.1f} s")


def _embedded(connection: Connection) -> int:
    row = connection.execute("SELECT coalesce(sum(rows_embedded), 0) FROM pgvec.counters").fetchone()
    return int(row[0]) if row else 0


def _work(dsn: str, connection: Connection, what: str, expected: int) -> int:
    before = _embedded(connection)
    started = time.monotonic()
    ran = common.run(dsn, "work", "--drain")
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
