"""Time of a slice as an existing destination grows: keys of another type, no hash, a million rows already there.

    python -m benchmarks.flat [--rows 1000000]

The tables are those of docs/destinations.md: a bigint key in the source, its text in the destination.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np

from benchmarks import common
from pgvec_queue import definition, queue, reading, writing
from pgvec_queue.chunking import Chunk
from pgvec_queue.database import Connection, versions
from pgvec_queue.fragments import Fragments
from pgvec_queue.planner import Planner
from pgvec_queue.slices import Embedded
from pgvec_queue.vectorizer import Vectorizer

_TABLES = """
CREATE SCHEMA fda_data;
CREATE TABLE fda_data.event_mdr_text (id bigint PRIMARY KEY, text text);
CREATE TABLE event_text_vectors (id serial PRIMARY KEY, fulltext_id text NOT NULL, chunk_id text UNIQUE,
    text_chunk text, embedding vector(384), created_at timestamptz DEFAULT now());
"""
_SLICES = 40
_ROWS = 200


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--rows", type=int, default=1_000_000)
    chosen = options.parse_args()
    with common.server() as (_, connection):
        connection.execute(_TABLES.encode())
        vectorizer = _define(connection)
        print("destination rows | median ms per slice of 200 documents: read, write")
        for held in (0, chosen.rows // 10, chosen.rows):
            _grow(connection, held)
            read, write = _measure(connection, vectorizer, held)
            print(f"{held:16,} | {read:6.1f} {write:6.1f}")
    return 0


def _define(connection: Connection) -> Vectorizer:
    return definition.define(
        connection,
        definition.Options(
            source="fda_data.event_mdr_text",
            text=("text",),
            into="event_text_vectors",
            columns={"key": ["fulltext_id"], "chunk": ["text_chunk"]},
            model="hashing-384",
        ),
        versions(connection),
    ).vectorizer


def _grow(connection: Connection, rows: int) -> None:
    """Fills source and destination up to ``rows``; their keys lie below those that are measured."""
    connection.execute(
        "INSERT INTO fda_data.event_mdr_text"
        " SELECT i, 'held ' || i FROM generate_series(1, %s) i ON CONFLICT DO NOTHING",
        (rows,),
    )
    connection.execute(
        "INSERT INTO event_text_vectors (fulltext_id, chunk_id, text_chunk, embedding)"
        " SELECT i::text, i || '_0', 'held ' || i, (SELECT array_agg(0.05)::vector FROM generate_series(1, 384))"
        " FROM generate_series(1, %s) i ON CONFLICT DO NOTHING",
        (rows,),
    )


def _measure(connection: Connection, vectorizer: Vectorizer, held: int) -> tuple[float, float]:
    fragments = Fragments(vectorizer, "public")
    connection.execute("DELETE FROM pgvec.jobs")
    connection.execute("DELETE FROM fda_data.event_mdr_text WHERE id > 10000000")
    connection.execute(
        "INSERT INTO fda_data.event_mdr_text SELECT 10000000 + i, 'to be measured ' || i FROM generate_series(1, %s) i",
        (_SLICES * _ROWS,),
    )
    Planner(connection, fragments).plan()
    connection.execute("DELETE FROM pgvec.jobs WHERE coalesce(upper_key[1]::bigint, 10000001) <= 10000000")
    worker = queue.register(connection, names=None, lease=600)
    claimer = queue.Claimer(worker, None)
    vector = np.full((1, 384), 0.05, np.float32)
    reads: list[float] = []
    writes: list[float] = []
    while (job := claimer.claim(connection)) is not None:
        while True:
            started = time.perf_counter()
            part = reading.read(connection, fragments, job, rows=_ROWS, max_bytes=1 << 22)
            middle = time.perf_counter()
            embedded = [Embedded(d, [Chunk(0, d.text or "", 4, d.text or "")], vector) for d in part.documents]
            written = writing.write(connection, fragments, part, embedded, worker)
            if part.documents:
                reads.append(middle - started)
                writes.append(time.perf_counter() - middle)
            if part.last:
                break
            job = written.job
    connection.execute("DELETE FROM event_text_vectors WHERE length(fulltext_id) = 8")
    assert len(reads) >= _SLICES // 2, held
    return statistics.median(reads) * 1000, statistics.median(writes) * 1000


if __name__ == "__main__":
    sys.exit(main())
