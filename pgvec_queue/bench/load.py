"""``load``: how much of a bare COPY's speed is left with everything that keeps a write right.

One worker with the hashing embedder, which costs next to nothing, turns documents of about 400 characters into vectors
of 384 dimensions, unchunked. Against it: one connection that copies the very same rows, from a binary buffer that is
ready in memory, into a table of the same columns with its primary key. The worker is started and warm before.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from psycopg import sql

from pgvec_queue.bench import DEFAULT_ROUNDS, Say, part
from pgvec_queue.bench.database import Arena, Place, arena
from pgvec_queue.bench.fleet import Fleet, fleet
from pgvec_queue.bench.part import Part
from pgvec_queue.bench.report import Figure, Report, ratios, report
from pgvec_queue.database import statement

MODEL = "hashing-384"
_DIMENSIONS = 384
_WARM_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class Options:
    """How much is loaded."""

    rows: int = 100_000
    """Per round and side."""
    rounds: int = DEFAULT_ROUNDS


def run(place: Place, options: Options, say: Say) -> Report:
    """Measures in a database of its own."""
    worker, bare = [], []
    with arena(place) as own:
        with fleet(own, [("--device", "cpu")]) as workers:
            warm(own, workers)
            for number in range(1, options.rounds + 1):
                say(f"round {number} of {options.rounds}: {options.rows:,} rows by a worker, and by COPY")
                loaded, rate = worker_rate(own, workers, options.rows, f"round_{number}")
                worker.append(rate)
                bare.append(_copy_rate(own, loaded, options.rows))
                loaded.drop()
        return report(
            own,
            "load",
            {**asdict(options), "dimensions": _DIMENSIONS, "workers": 1},
            [Figure("worker_rows_per_second", worker), Figure("copy_rows_per_second", bare)],
            [ratios("worker_to_copy", worker, bare)],
        )


def warm(own: Arena, workers: Fleet) -> None:
    """Has one worker load the embedder and find out how fast it is."""
    part.of_rows(own, "warm", _WARM_ROWS, model=MODEL, no_chunking=True).work(workers)


def worker_rate(own: Arena, workers: Fleet, rows: int, table: str) -> tuple[Part, float]:
    """Has the workers embed so many documents; returns what they made, and rows per second."""
    loaded = part.of_rows(own, table, rows, model=MODEL, no_chunking=True)
    return loaded, rows / loaded.work(workers).seconds


def _copy_rate(own: Arena, loaded: Part, rows: int) -> float:
    """Copies what the worker wrote into a bare table; returns rows per second."""
    bare = sql.Identifier("bare")
    vector = sql.SQL("{}({})").format(sql.Identifier(own.versions.vector_schema, "vector"), sql.Literal(_DIMENSIONS))
    with own.connection.cursor() as cursor:
        with cursor.copy(statement("bench", "read_bare").format(table=loaded.destination)) as copy:
            buffer = b"".join(copy)
        cursor.execute(statement("bench", "create_bare").format(table=bare, vector=vector))
        started = time.perf_counter()
        with cursor.copy(statement("bench", "copy_bare").format(table=bare)) as copy:
            copy.write(buffer)
        seconds = time.perf_counter() - started
        cursor.execute(sql.SQL("DROP TABLE {}").format(bare))
    return rows / seconds
