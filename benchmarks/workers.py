"""One worker against three, and one that is killed: the same chunks to the byte, and the vectors that the model makes.

    python -m benchmarks.workers [--documents 2000] [--hashing]

Prints what it compared; exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import common
from pgvec_queue import demo
from pgvec_queue.database import Connection

_ALL = "SELECT id, chunk_index, chunk, source_hash, embedding::text FROM docs_vectors ORDER BY 1, 2"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--documents", type=int, default=2_000)
    options.add_argument("--hashing", action="store_true", help="no model: the vectors too are compared to the byte")
    chosen = options.parse_args()
    with common.server() as (dsn, connection):
        documents = _fill(connection, chosen.documents)
        model = ["--model", "hashing-384"] if chosen.hashing else []
        common.run(dsn, "enqueue", "docs", "--text", "body", "--rows-per-job", "50", *model)
        seconds, one = _work(dsn, connection, 1)
        print(f"1 worker:  {documents} documents, {len(one)} chunks in {seconds:.1f} s, start-up included")
        _again(dsn, connection)
        seconds, three = _work(dsn, connection, 3)
        print(f"3 workers: {documents} documents, {len(three)} chunks in {seconds:.1f} s, start-up included")
        good = _compare(one, three, exact=chosen.hashing)
        good &= _present(connection, documents)
        _again(dsn, connection)
        good &= _killed(dsn, connection, one, exact=chosen.hashing)
        if not chosen.hashing:
            good &= _against_encode(one)
    return 0 if good else 1


def _fill(connection: Connection, count: int) -> int:
    found = list({d.name: d.text for d in demo.docstrings()}.values())
    step = max(len(found) / count, 1)
    chosen = [found[int(i * step)] for i in range(min(count, len(found)))]
    connection.execute("CREATE TABLE docs (id bigint PRIMARY KEY, body text NOT NULL)")
    with connection.cursor().copy("COPY docs FROM STDIN") as copy:
        for i, text in enumerate(chosen):
            copy.write_row((i, text))
    return len(chosen)


def _again(dsn: str, connection: Connection) -> None:
    connection.execute("TRUNCATE docs_vectors")
    common.run(dsn, "enqueue", "docs")


def _work(dsn: str, connection: Connection, count: int, *options: str) -> tuple[float, list[tuple[Any, ...]]]:
    started = time.monotonic()
    processes = [common.start(dsn, "work", "--drain", *options) for _ in range(count)]
    codes = [common.finish(process, started).code for process in processes]
    assert codes == [0] * count, codes
    return time.monotonic() - started, connection.execute(_ALL).fetchall()


def _compare(one: Sequence[tuple[Any, ...]], other: Sequence[tuple[Any, ...]], *, exact: bool) -> bool:
    same = [row[:4] for row in one] == [row[:4] for row in other]
    print(f"keys, chunk indexes, texts and hashes the same to the byte: {same}")
    if exact:
        vectors = [row[4] for row in one] == [row[4] for row in other]
        print(f"vectors the same to the byte: {vectors}")
        return same and vectors
    least = float(np.min(np.sum(_vectors(one) * _vectors(other), axis=1)))
    print(f"least cosine between the two runs' vectors: {least:.8f}")
    return same and least >= 0.99999


def _present(connection: Connection, documents: int) -> bool:
    row = connection.execute("SELECT count(DISTINCT id) FROM docs_vectors").fetchone()
    print(f"documents present: {row[0] if row else 0} of {documents}")
    return bool(row and row[0] == documents)


def _killed(dsn: str, connection: Connection, one: Sequence[tuple[Any, ...]], *, exact: bool) -> bool:
    """Kills a worker in the middle; another one completes what it left."""
    victim = common.start(dsn, "work", "--lease", "5")
    half = len(one) // (8 if exact else 3)
    while (row := connection.execute("SELECT count(*) FROM docs_vectors").fetchone()) and row[0] < half:
        time.sleep(0.02)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    row = connection.execute("SELECT count(*) FROM docs_vectors").fetchone()
    print(f"killed with SIGKILL at {row[0] if row else 0} chunks")
    seconds, rows = _work(dsn, connection, 1, "--lease", "5")
    print(f"another --drain ended after {seconds:.1f} s with {len(rows)} chunks")
    return _compare(one, rows, exact=exact)


def _vectors(rows: Sequence[tuple[Any, ...]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    vectors = np.array([np.fromstring(row[4][1:-1], sep=",") for row in rows])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _against_encode(rows: Sequence[tuple[Any, ...]]) -> bool:
    """Compares with what sentence-transformers itself makes of the stored chunks."""
    from sentence_transformers import SentenceTransformer

    from pgvec_queue.embedders import DEFAULT_MODEL, ModelSpec, model_files

    path = model_files.locate(ModelSpec("sentence-transformers", DEFAULT_MODEL), weights=True).path
    encoded = SentenceTransformer(str(path), device="cpu").encode([row[2] for row in rows], batch_size=16)
    encoded /= np.linalg.norm(encoded, axis=1, keepdims=True)
    least = float(np.min(np.sum(_vectors(rows) * encoded, axis=1)))
    print(f"least cosine of a stored vector with SentenceTransformer.encode of its chunk: {least:.8f}")
    return least >= 0.9999


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.SubprocessError as error:
        sys.exit(str(error))
