"""Finds the chunks nearest to a query: one embedding, one statement, cosine similarity in [-1, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from pgvector import Vector
from psycopg import sql

from pgvec_queue.database import Connection, Versions, one_line, statement, transaction
from pgvec_queue.embedders import Embedder, Vectors
from pgvec_queue.errors import PgvecError
from pgvec_queue.fragments import Fragments, identifier
from pgvec_queue.vectorizer import Vectorizer


@dataclass(frozen=True, slots=True)
class Hit:
    """One chunk and its cosine similarity to the query."""

    key: list[str]
    chunk_index: int | None
    chunk: str | None
    score: float

    def as_json(self) -> dict[str, Any]:
        return {"key": self.key, "chunk_index": self.chunk_index, "score": round(self.score, 6), "chunk": self.chunk}


@dataclass(frozen=True, slots=True)
class Answer:
    """The hits above the threshold, best first, and the best score of all (None where nothing is embedded yet)."""

    hits: list[Hit]
    best_score: float | None


def search(
    connection: Connection,
    vectorizer: Vectorizer,
    versions: Versions,
    embedder: Embedder,
    query: str,
    *,
    limit: int = 10,
    threshold: float | None = None,
) -> Answer:
    """Embeds ``query`` with the vectorizer's model and returns the ``limit`` nearest chunks.

    Hits below ``threshold`` (cosine similarity) are left out. Raises ``PgvecError`` for a blank query, and when the
    destination is gone.
    """
    if not query.strip():
        raise PgvecError("the query is blank; give some text to look for")
    return nearest(connection, vectorizer, versions, embedder.embed_query(query), limit=limit, threshold=threshold)


def nearest(
    connection: Connection,
    vectorizer: Vectorizer,
    versions: Versions,
    vector: Vectors,
    *,
    limit: int,
    threshold: float | None,
) -> Answer:
    """Returns the chunks nearest to ``vector`` ``(dimensions,) float32``."""
    fragments = Fragments(vectorizer, versions.vector_schema)
    roles = vectorizer.destination_roles
    parts: dict[str, sql.Composable] = {
        "schema": sql.Identifier(versions.vector_schema),
        "type": sql.Identifier(versions.vector_schema, vectorizer.store),
        "chunk_index": identifier("d", roles.chunk_index) if roles.chunk_index else sql.SQL("NULL::int"),
        "chunk": identifier("d", roles.chunk) if roles.chunk else sql.NULL,
    }
    name = "chunks" if roles.chunk else "chunks_of_source"
    try:
        with transaction(connection, read_only=True):
            connection.execute(statement("search", "breadth"), {"limit": limit})
            rows = connection.execute(
                fragments.compose("search", name, **parts),
                {"query": Vector(vector).to_text(), "limit": limit},
            ).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise PgvecError(
            f"{vectorizer.destination} is not what it was: {one_line(error)}; put it back, or "
            f"`pgvec drop {vectorizer.name}` and enqueue again"
        ) from error
    hits = [Hit(*row) for row in rows]
    kept = [hit for hit in hits if threshold is None or hit.score >= threshold]
    return Answer(kept, hits[0].score if hits else None)
