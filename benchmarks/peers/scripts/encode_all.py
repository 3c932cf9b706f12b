"""What most people write first: read all rows, ``model.encode``, ``executemany``.

    python -m benchmarks.peers.scripts.encode_all DSN

Embeds ``docs (id, body)`` into a table of its own. The model is loaded and warm before the time begins; prints the
seconds from the first read to the commit.
"""

from __future__ import annotations

import sys
import time

import psycopg
from pgvector.psycopg import register_vector
from sentence_transformers import SentenceTransformer

from pgvec_queue.embedders import DEFAULT_MODEL, ModelSpec, model_files

_BATCH = 32


def main(dsn: str) -> None:
    model = SentenceTransformer(str(model_files.locate(ModelSpec("sentence-transformers", DEFAULT_MODEL)).path))
    model.encode(["a text that makes it warm"] * _BATCH, batch_size=_BATCH)
    with psycopg.connect(dsn) as connection:
        register_vector(connection)
        connection.execute("CREATE TABLE plain_vectors (id bigint PRIMARY KEY, embedding vector(384))")
        connection.commit()
        began = time.perf_counter()
        rows = connection.execute("SELECT id, body FROM docs ORDER BY id").fetchall()
        vectors = model.encode([body for _, body in rows], batch_size=_BATCH)
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO plain_vectors VALUES (%s, %s)",
                [(id_, vector) for (id_, _), vector in zip(rows, vectors, strict=True)],
            )
        connection.commit()
        print(time.perf_counter() - began)


if __name__ == "__main__":
    main(sys.argv[1])
