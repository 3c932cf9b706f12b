"""What the model is given of texts whose vectors are known: repeated rows, a second run, changed documents.

    python -m benchmarks.twice [--rows 1000000] [--documents 1000] [--cache 256M] [--only rows|documents|cost]

Rows: 30 % of a table's rows repeat another one, in `near` one of the 100 before, in `far` any before. One worker
embeds it, then three do, each into a table of their own, then both again. What the embedder was given is counted by the
workers themselves, and held against the counters, the number of distinct texts, and that of texts that are new to
whoever remembers as many as fit into the cache. What is new to its job of 1,000 rows is what workers would be given
that share no two jobs in a row. Bars: near, one worker: exactly the distinct texts; three: 1.02 times
as many; again: none.

Documents: in each of 1,000 long ones, made of docstrings, one sentence becomes another. Counted are the chunks that
they then have, those that are new by their text, and those that the model was given. The bar: no more than are new.

Cost: rows that never repeat, with no cache, with one that is switched off by itself, and with one that stays on, in
turns.

Texts of rows go to the hashing embedder, documents to a real model and its tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import common
from pgvec_queue.bench import texts
from pgvec_queue.cli.types import Size
from pgvec_queue.database import Connection
from pgvec_queue.definition_options import DEFAULT_ROWS_PER_JOB
from pgvec_queue.embedders import DEFAULT_MODEL
from pgvec_queue.worker.cache import ENTRY_BYTES

REPEATED = 0.3
NEAR = 100
BAR = 1.02
MODEL = "hashing-384"
_DIMENSIONS = 384
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_SAVED = ("rows_unchanged", "chunks_written", "chunks_kept", "chunks_reused", "chunks_cached", "rows_wasted")


@dataclass(frozen=True)
class Ran:
    """What some workers have done together."""

    seconds: float
    embedded: int
    """Chunks that their embedders were given, as they count it themselves."""
    counted: dict[str, int]
    """By the counters of the vectorizer."""

    @property
    def accounted(self) -> int:
        """What the model was given, as the counters tell it."""
        saved = self.counted["chunks_kept"] + self.counted["chunks_reused"] + self.counted["chunks_cached"]
        return self.counted["chunks_written"] - saved


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--documents", type=int, default=1_000)
    options.add_argument("--docstrings", type=int, default=40, help="in each document")
    options.add_argument("--model", default=DEFAULT_MODEL, help="for the documents")
    options.add_argument("--cache", default="256M", help="of each worker")
    options.add_argument("--rounds", type=int, default=3, help="of the cost")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", choices=["rows", "documents", "cost"])
    chosen = options.parse_args()
    good = True
    with common.server() as (dsn, connection):
        if chosen.only in (None, "rows"):
            good &= _rows(dsn, connection, "near", chosen)
            good &= _rows(dsn, connection, "far", chosen)
        if chosen.only in (None, "documents"):
            good &= _documents(dsn, connection, chosen)
        if chosen.only in (None, "cost"):
            _cost(dsn, connection, chosen)
    return 0 if good else 1


def _rows(dsn: str, connection: Connection, table: str, chosen: argparse.Namespace) -> bool:
    rows = _repeating(chosen.rows, NEAR if table == "near" else None, random.Random(chosen.seed))
    _fill(connection, table, [f"row {text} says {text * 7919 % 1_000_003}" for text in rows])
    distinct = len(set(rows))
    room = int(Size().convert(chosen.cache, None, None)) // (4 * _DIMENSIONS + ENTRY_BYTES)
    new = _new_to_a_memory(rows, room)
    apart = len({(text, row // DEFAULT_ROWS_PER_JOB) for row, text in enumerate(rows)})
    print(
        f"{table}: {len(rows):,} rows, {distinct:,} distinct; new to a memory of {room:,}: {new:,}; "
        f"new to their job: {apart:,}"
    )
    good = True
    for workers in (1, 3):
        name = f"{table}_{workers}"
        enqueue = (
            "enqueue",
            table,
            "--name",
            name,
            "--into",
            name,
            "--text",
            "body",
            "--no-chunking",
            "--model",
            MODEL,
        )
        ran = _run(dsn, connection, enqueue, name, workers, chosen.cache)
        times = ran.embedded / distinct
        print(f"  {_workers(workers)}: embedded {ran.embedded:,}, {times:.4f} times the distinct, {_told(ran)}")
        good &= _adds_up(ran, connection, name, distinct)
        if table == "near":
            good &= ran.embedded == distinct if workers == 1 else times <= BAR
        again = _run(dsn, connection, enqueue, name, workers, chosen.cache)
        print(f"  {_workers(workers)} again: embedded {again.embedded:,}, {_told(again)}")
        good &= again.embedded == 0 and again.counted["rows_unchanged"] == len(rows)
    connection.execute(f"DROP TABLE {table}".encode())
    return good


def _repeating(rows: int, near: int | None, chance: random.Random) -> list[int]:
    """Returns the number of each row's text: 30 % have that of a row before, one of the ``near`` last or any."""
    made: list[int] = []
    for row in range(rows):
        if row and chance.random() < REPEATED:
            made.append(made[chance.randrange(max(0, row - near) if near else 0, row)])
        else:
            made.append(row)
    return made


def _new_to_a_memory(rows: Sequence[int], room: int) -> int:
    """Returns how many of the rows are new to whoever remembers the ``room`` texts that were used last."""
    known: OrderedDict[int, None] = OrderedDict()
    new = 0
    for text in rows:
        if text in known:
            known.move_to_end(text)
            continue
        new += 1
        known[text] = None
        if len(known) > room:
            known.popitem(last=False)
    return new


def _documents(dsn: str, connection: Connection, chosen: argparse.Namespace) -> bool:
    chance = random.Random(chosen.seed)
    found = texts.documents()
    long = ["\n\n".join(next(found) for _ in range(chosen.docstrings)) for _ in range(chosen.documents)]
    sentences = [_SENTENCE.split(one) for one in long]
    _fill(connection, "documents", long)
    enqueue = ("enqueue", "documents", "--text", "body", "--model", chosen.model)
    first = _run(dsn, connection, enqueue, "documents", 1, "0")
    print(f"documents: {len(long):,} of {statistics.mean(map(len, long)):,.0f} characters; at first {_told(first)}")
    connection.execute("CREATE TABLE before AS SELECT id, chunk, embedding FROM documents_vectors")
    with connection.transaction(), connection.cursor() as cursor:
        for key, some in enumerate(sentences):
            at = chance.randrange(len(some))
            other = chance.choice(sentences[chance.randrange(len(sentences))])
            body = long[key].replace(some[at], other, 1)
            cursor.execute("UPDATE documents SET body = %s WHERE id = %s", (body, key))
    ran = _run(dsn, connection, enqueue, "documents", 1, "0")
    (there, new, altered) = connection.execute(
        # A text that a document has twice may have had two vectors, from calls of other company.
        "SELECT count(*), count(*) FILTER (WHERE b.vectors IS NULL),"
        "       count(*) FILTER (WHERE d.embedding <> ALL (b.vectors))"
        " FROM documents_vectors d"
        " LEFT JOIN (SELECT id, chunk, array_agg(embedding) AS vectors FROM before GROUP BY id, chunk) b"
        " USING (id, chunk)"
    ).fetchone() or (0, 0, 0)
    print(
        f"  a sentence changed in each: embedded {ran.embedded:,} of {there:,} chunks ({ran.embedded / there:.1%}), "
        f"{ran.embedded / len(long):.2f} a document; {new:,} are new by their text, {altered:,} kept ones have another "
        f"vector; {_told(ran)}"
    )
    return ran.embedded <= new and altered == 0


def _cost(dsn: str, connection: Connection, chosen: argparse.Namespace) -> None:
    rows = max(chosen.rows // 5, 1)
    _fill(connection, "cost", [f"row {row} says {row * 7919 % 1_000_003}" for row in range(rows)])
    seconds: dict[str, list[float]] = {"0": [], "auto": [], chosen.cache: []}
    for number in range(chosen.rounds):
        for cache, taken in seconds.items():
            name = f"cost_{number}_{len(taken)}_{cache}"
            enqueue = ("enqueue", "cost", "--name", name, "--into", name, "--text", "body", "--no-chunking")
            taken.append(_run(dsn, connection, (*enqueue, "--model", MODEL), name, 1, cache).seconds)
            connection.execute(f'DROP TABLE "{name}"'.encode())
    for cache, taken in seconds.items():
        median = statistics.median(taken)
        print(f"cost: {rows:,} rows that never repeat, --cache {cache}: {rows / median:,.0f} rows/s, start-up included")


def _fill(connection: Connection, table: str, bodies: Sequence[str]) -> None:
    connection.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text NOT NULL)".encode())
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy:
        for key, body in enumerate(bodies):
            copy.write_row((key, body))
    connection.execute(f"VACUUM ANALYZE {table}".encode())


def _run(dsn: str, connection: Connection, enqueue: Sequence[str], name: str, workers: int, cache: str) -> Ran:
    """Has so many workers bring the vectorizer up to date."""
    before = _counted(connection, name)
    environment = {**os.environ, "PGVEC_DSN": dsn, "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-m", "pgvec_queue", *enqueue], env=environment, check=True, stdout=subprocess.DEVNULL
    )
    work = ("work", name, "--drain", "--cache", cache, "--log-format", "json")
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pgvec_queue", *work], env=environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(workers)
    ]
    embedded = 0
    for process in processes:
        _, log = process.communicate()
        assert process.returncode == 0, log
        embedded += sum(
            line["chunks_embedded"] for line in map(json.loads, log.splitlines()) if line["event"] == "worker has left"
        )
    seconds = time.monotonic() - started
    after = _counted(connection, name)
    return Ran(seconds, embedded, {column: after[column] - before[column] for column in _SAVED})


def _counted(connection: Connection, name: str) -> dict[str, int]:
    columns = ", ".join(f"coalesce(sum({column}), 0)::bigint" for column in _SAVED)
    row = connection.execute(
        f"SELECT {columns} FROM pgvec.counters c JOIN pgvec.vectorizers v ON v.id = c.vectorizer_id"
        " WHERE v.name = %s".encode(),
        (name,),
    ).fetchone()
    return dict(zip(_SAVED, row or [0] * len(_SAVED), strict=True))


def _adds_up(ran: Ran, connection: Connection, name: str, distinct: int) -> bool:
    """Whether counters and workers say the same, and each text has one vector, and each vector one text."""
    counts = ", ".join(f"count(DISTINCT {what})" for what in ("chunk", "embedding", "(chunk, embedding)"))
    row = connection.execute(f"SELECT {counts} FROM {name}".encode()).fetchone()
    right = row == (distinct, distinct, distinct) and (ran.accounted == ran.embedded or ran.counted["rows_wasted"] > 0)
    if not right:
        print(f"  WRONG: {row} texts, vectors and pairs; {ran.accounted:,} by the counters, {ran.embedded:,} embedded")
    return right


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _told(ran: Ran) -> str:
    counts = ", ".join(f"{ran.counted[column]:,} {column}" for column in _SAVED if ran.counted[column])
    return f"{counts} in {ran.seconds:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
