"""Moving in from pgai: what `pgvec import-pgai` embeds anew, and whether a search finds the same before and after.

    python -m benchmarks.import_pgai [--rows 5000] [--model hashing-384] [--json]

pgai 0.12.1, installed for it, embeds docstrings of Python's standard library in chunks of 400 characters, through an
endpoint with the named model behind it (sentence-transformers/all-MiniLM-L6-v2 takes some minutes). Then its vectorizer
is imported, a worker of ours drains the queue, one row is changed, and the statement that `import-pgai` prints is run.
Exit code 1 where a vector was embedded anew, or a search found something else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import platformdirs
import psycopg

from benchmarks import common
from benchmarks.peers import databases, documents, environments, model_endpoint
from benchmarks.peers.pgai_program import Program
from pgvec_queue import embedders, progress, schema, search, vectorizer
from pgvec_queue.database import Connection, Database
from pgvec_queue.embedders import DeviceOptions, Embedder

QUERIES = [
    *("read a file line by line", "open a network socket", "parse a date from a string", "compress data with zlib"),
    *("start a thread", "wait for a subprocess to end", "encode an object as JSON", "walk a directory tree"),
    *("match a regular expression", "format a traceback", "send an email", "sort a list by a key"),
    *("a temporary file that is deleted", "compute a hash of bytes", "convert a colour", "schedule a callback later"),
    *("arguments of the command line", "the mean of some numbers", "an XML element tree", "copy an object deeply"),
]
NEAREST = 10
_CREATE = """
SELECT ai.create_vectorizer('docs'::regclass, name => 'docs', loading => ai.loading_column('body'),
    embedding => ai.embedding_ollama('a-model', {dimensions}, base_url => '{url}'),
    chunking => ai.chunking_recursive_character_text_splitter(400, 100),
    formatting => ai.formatting_python_template('$chunk'), processing => ai.processing_default(batch_size => 500))
"""
_STORE = "docs_embedding_store"

Found = list[list[tuple[float, str, int]]]
"""Per query, the chunks that are nearest: cosine, key and number."""


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rows", type=int, default=5_000)
    options.add_argument("--model", default="hashing-384")
    options.add_argument("--json", action="store_true")
    options.add_argument(
        "--scratch", type=Path, default=platformdirs.user_cache_path("pgvec-queue", appauthor=False) / "peers"
    )
    chosen = options.parse_args()
    environment = environments.provide(chosen.scratch, "pgai")
    with (
        common.cluster(**databases.SETTINGS) as cluster,
        databases.fresh(cluster) as dsn,
        psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as connection,
        model_endpoint.running(chosen.model) as endpoint,
    ):
        figures = _run(connection, dsn, Program(environment, dsn), endpoint, chosen.rows, chosen.model)
    good = not figures["embedded anew"] and figures["searches equal"] == figures["searches"]
    good = good and figures["rows embedded after one changed"] == 1
    if chosen.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name + ':':52}{value:,}" if isinstance(value, int) else f"{name + ':':52}{value}")
    return 0 if good else 1


def _run(
    connection: Connection, dsn: str, program: Program, endpoint: model_endpoint.Endpoint, rows: int, model: str
) -> dict[str, Any]:
    program.install()
    documents.fill(connection, "docs", documents.docstrings(rows))
    spec = _spec(model)
    connection.execute(_CREATE.format(dimensions=embedders.describe(spec).dimensions, url=endpoint.url).encode())
    began = time.monotonic()
    program.work()
    figures: dict[str, Any] = {
        "rows": connection.execute("SELECT count(*) FROM docs").fetchone()[0],  # type: ignore[index]
        "chunks that pgai made": _chunks(connection),
        "seconds that it took": round(time.monotonic() - began, 1),
    }
    schema.initialize(Database(dsn))
    embedder = embedders.load(spec, DeviceOptions(runtime="torch"))
    before = _by_sql(connection, embedder)
    asked = len(endpoint.texts)

    began = time.monotonic()
    imported = _pgvec(dsn, "import-pgai", "docs", "--model", model)
    figures["seconds of the import"] = round(time.monotonic() - began, 1)
    _pgvec(dsn, "work", "--drain")
    [now] = progress.read(connection)
    figures |= {
        "rows taken over": now.rows_adopted,
        "embedded anew": now.rows_embedded,
        "texts asked of the endpoint since": len(endpoint.texts) - asked,
        "searches": len(QUERIES),
        "searches equal": _equal(before, _by_pgvec(connection, embedder)),
    }

    connection.execute("UPDATE docs SET body = 'Reads the moon line by line.' WHERE id = 17")
    _pgvec(dsn, "work", "--drain")
    [now] = progress.read(connection)
    figures["rows embedded after one changed"] = now.rows_embedded
    removal = imported.splitlines()[-1]
    connection.execute(removal.encode())
    connection.execute("DELETE FROM docs WHERE id = 18")
    _pgvec(dsn, "work", "--drain")
    verified = json.loads(_pgvec(dsn, "verify", "docs", "--json"))
    figures |= {
        "its statement": removal,
        "differences after that (`pgvec verify`)": verified["missing"] + verified["stale"] + verified["orphaned"],
        "triggers of pgai that are left": connection.execute(
            "SELECT count(*) FROM pg_trigger WHERE tgname LIKE '%vectorizer_src_trg%'"
        ).fetchone()[0],  # type: ignore[index]
    }
    embedder.close()
    return figures


def _spec(model: str) -> embedders.ModelSpec:
    return embedders.ModelSpec("hashing" if model.startswith("hashing-") else "sentence-transformers", model)


def _chunks(connection: Connection) -> int:
    row = connection.execute(f"SELECT count(*) FROM {_STORE}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def _by_sql(connection: Connection, embedder: Embedder) -> Found:
    """What a user of pgai asks: the nearest of its table."""
    query = (
        f"SELECT 1 - (embedding <=> %(vector)s::text::vector), id::text, chunk_seq FROM {_STORE}"
        f" ORDER BY embedding <=> %(vector)s::text::vector LIMIT {NEAREST}"
    )
    return [
        connection.execute(query.encode(), {"vector": str(vector.tolist())}).fetchall()
        for vector in embedder.embed_queries(QUERIES)
    ]


def _by_pgvec(connection: Connection, embedder: Embedder) -> Found:
    found = vectorizer.get(connection, "docs")
    answers = [
        search.search(connection, found, embedder, search.Search(query, limit=NEAREST, all_chunks=True))
        for query in QUERIES
    ]
    return [[(hit.score or 0.0, ", ".join(hit.key), hit.chunk_index or 0) for hit in answer.hits] for answer in answers]


def _equal(one: Found, other: Found) -> int:
    """Returns for how many queries the same was found; of chunks with the same cosine any may come last."""

    def seen(hits: list[tuple[float, str, int]]) -> tuple[list[float], set[tuple[str, int]]]:
        scores = [round(score, 5) for score, *_ in hits]
        return scores, {
            (key, number) for score, (_, key, number) in zip(scores, hits, strict=True) if score > scores[-1]
        }

    return sum(seen(before) == seen(after) for before, after in zip(one, other, strict=True))


def _pgvec(dsn: str, *arguments: str) -> str:
    """Runs the command line; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "pgvec_queue", *arguments, "--dsn", dsn], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"pgvec {arguments[0]} failed")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
