"""pgai's vectorizer: its SQL functions, and its worker in one process or several, through an endpoint that is free.

It speaks Ollama's API here, with which it was a third faster than with OpenAI's: it counts no tokens then, and does not
take the answer apart as a stream.

Its worker has no idle state to start from: with ``--once`` it works until the queue is empty, and ends. So its start-up
is taken out in two ways. Each process is held at its first look at the queue, by a lock on the queue's table, until all
of them wait there. And the time runs from its first commit to its last, over the rows of all commits but the first, so
that what it loads on its first call to the endpoint is out as well.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO

import psycopg
from psycopg import sql

from benchmarks.peers import databases, documents
from benchmarks.peers.endpoint import DIMENSIONS
from benchmarks.peers.environments import Environment, UnavailableError, last_line
from benchmarks.peers.rounds import RATE
from pgvec_queue.database import Connection
from pgvec_queue.embedded import Server

WITH_START = "rows/s, start-up included"
BEST_BATCH = 500
DEFAULT_BATCH = 50
STARTS = 3
"""How often its worker is started on a queue with a bad row."""
_DESTINATION = "docs_embeddings_store"
_VECTORIZER = """
SELECT ai.create_vectorizer('docs'::regclass, name => 'docs', loading => ai.loading_column('body'),
    embedding => {embedding}, chunking => ai.chunking_none(), destination => ai.destination_table('docs_embeddings'),
    processing => ai.processing_default(batch_size => {batch}), scheduling => ai.scheduling_none(),
    indexing => ai.indexing_none())
"""
_OLLAMA = "ai.embedding_ollama('free', {dimensions}, base_url => {url})"
_QUEUE = "SELECT queue_schema, queue_table FROM ai.vectorizer WHERE id = %s"
_WAITING = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
_START_SECONDS = 120
_RUN_SECONDS = 1_200


@dataclass(frozen=True, slots=True)
class Pgai:
    """pgai on one server, installed in an environment of its own; ``url`` is the endpoint's, without ``/v1``."""

    cluster: Server
    environment: Environment
    url: str

    def embed(self, texts: Sequence[str], processes: int) -> dict[str, float]:
        """Embeds texts with its worker in so many processes; returns rows per second, and with start-up."""
        with self._prepared(texts, BEST_BATCH) as (dsn, connection, vectorizer):
            began = databases.now(connection)
            self._work(dsn, connection, vectorizer, processes)
            made = databases.commits(connection, _DESTINATION)
            return {RATE: made.rate_after_first(len(texts)), WITH_START: made.rate_since(began)}

    def embed_with_a_bad_row(self, texts: Sequence[str]) -> dict[str, float]:
        """Starts its worker several times on texts of which one is refused; returns how many have a vector then."""
        with self._prepared(texts, DEFAULT_BATCH) as (dsn, connection, vectorizer):
            for _ in range(STARTS):
                with ExitStack() as stack:
                    self._start(stack, dsn, vectorizer, subprocess.DEVNULL).wait(_RUN_SECONDS)
            return {"good rows embedded": databases.commits(connection, _DESTINATION).rows}

    def queue(self, rows: int) -> dict[str, float]:
        """Has ``create_vectorizer`` queue the rows of a table; returns rows per second and bytes per row."""
        with databases.fresh(self.cluster) as dsn:
            self._install(dsn)
            with psycopg.connect(dsn, autocommit=True) as connection:
                documents.fill_short(connection, "docs", rows)
                began = databases.now(connection)
                vectorizer = self._create(connection, BEST_BATCH)
                ended = databases.now(connection)
                size = connection.execute("SELECT pg_total_relation_size(%s)", [_queue(connection, vectorizer)])
                [bytes_] = size.fetchone() or (0,)
                return {RATE: rows / (ended - began), "bytes of queue per row": bytes_ / rows}

    @contextmanager
    def _prepared(self, texts: Sequence[str], batch: int) -> Iterator[tuple[str, Connection, int]]:
        with databases.fresh(self.cluster) as dsn:
            self._install(dsn)
            with psycopg.connect(dsn, autocommit=True) as connection:
                documents.fill(connection, "docs", texts)
                yield dsn, connection, self._create(connection, batch)

    def _install(self, dsn: str) -> None:
        command = [self.environment.program("pgai"), "install", "--db-url", dsn]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"pgai install failed: {last_line(done.stderr)}")

    def _create(self, connection: Connection, batch: int) -> int:
        embedding = sql.SQL(_OLLAMA).format(dimensions=DIMENSIONS, url=self.url)
        row = connection.execute(sql.SQL(_VECTORIZER).format(embedding=embedding, batch=batch)).fetchone()
        assert row is not None
        return int(row[0])

    def _work(self, dsn: str, connection: Connection, vectorizer: int, processes: int) -> None:
        """Runs its worker until the queue is empty, in processes that begin together."""
        with tempfile.TemporaryFile() as log, ExitStack() as stack:
            with _held(dsn, connection, vectorizer) as waiting:
                started = [self._start(stack, dsn, vectorizer, log) for _ in range(processes)]
                databases.until(lambda: waiting() == processes or _has_ended(started), "workers", _START_SECONDS)
            for process in started:
                if process.wait(_RUN_SECONDS):
                    log.seek(0)
                    # The errors come first, then that there were some.
                    raise UnavailableError(f"its worker failed: {log.readline().decode().strip()}")

    def _start(self, stack: ExitStack, dsn: str, vectorizer: int, log: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """Starts one process of its worker, which does not outlive ``stack``."""
        command = [self.environment.program("pgai"), "vectorizer", "worker", "--db-url", dsn]
        options = ["--vectorizer-id", str(vectorizer), "--concurrency", "1", "--once", "--log-level", "ERROR"]
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
        stack.callback(_end, process)
        return process


@contextmanager
def _held(dsn: str, connection: Connection, vectorizer: int) -> Iterator[Callable[[], int]]:
    """Keeps everybody from the queue while inside; yields what tells how many wait for it."""
    queue = _queue(connection, vectorizer)

    def waiting() -> int:
        row = connection.execute(_WAITING, [queue]).fetchone()
        return int(row[0]) if row else 0

    with psycopg.connect(dsn) as holder:
        holder.execute(f"LOCK TABLE {queue} IN ACCESS EXCLUSIVE MODE".encode())
        yield waiting


def _queue(connection: Connection, vectorizer: int) -> str:
    row = connection.execute(_QUEUE, [vectorizer]).fetchone()
    assert row is not None
    return sql.Identifier(*row).as_string(connection)


def _has_ended(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    return any(process.poll() is not None for process in processes)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
