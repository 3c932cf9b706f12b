"""Compares sources and destinations at the end of a run: loads the vectors that the present texts have, then lets
``check.sql`` do the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgvec_queue.chunking import Chunker
from pgvec_queue.embedders import ModelSpec
from pgvec_queue.embedders.hashing import HashingEmbedder
from tests.chaos.server import Server
from tests.chaos.tables import CHUNK_OVERLAP, CHUNK_SIZE, MODEL, Connection, by_name

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
KINDS = ("lost", "duplicate", "stale", "orphaned", "poison missed", "poison false")


@dataclass(frozen=True)
class Checked:
    """What the check found."""

    rows: int
    wanted: int
    """Rows that are to be embedded: selected and not blank."""
    chunks: int
    """Vectors that are there."""
    poison: int
    quarantined: int
    unfinished: int
    """Jobs that are still queued or running."""
    problems: Counter[str]
    """By kind, one of ``KINDS``."""
    details: list[str]
    """One line per problem, the first few hundred."""

    @property
    def right(self) -> bool:
        return not self.problems and not self.unfinished


def check(server: Server) -> Checked:
    """Checks all tables; nobody may be at work."""
    statements = _statements()
    with server.connect() as connection:
        connection.execute("SET enable_nestloop = off")
        for name in ("documents", "held", "quarantined"):
            connection.execute(statements[name].encode())
        _load_expected(connection)
        connection.execute(statements["problems"].encode())
        problems = connection.execute(statements["found"].encode()).fetchall()
        totals = connection.execute(statements["totals"].encode()).fetchone()
        unfinished = connection.execute(statements["unfinished"].encode()).fetchone()
    assert totals is not None
    assert unfinished is not None
    counted = Counter(str(row[0]) for row in problems)
    rows, wanted, chunks, poison, quarantined = totals
    details = [" | ".join(map(str, row)) for row in problems[:300]]
    return Checked(rows, wanted, chunks, poison, quarantined, unfinished[0], counted, details)


def _statements() -> dict[str, str]:
    parts = _NAME.split((Path(__file__).parent / "check.sql").read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _load_expected(connection: Connection) -> None:
    connection.execute(
        "CREATE TEMP TABLE chaos_expected (source text, key text, chunk_index int, embedding vector)",
    )
    documents = connection.execute("SELECT source, key, document FROM chaos_documents WHERE wanted").fetchall()
    with connection.cursor().copy("COPY chaos_expected FROM STDIN") as copy:
        for source, key, document in documents:
            for index, vector in enumerate(_vectors(by_name(source).chunked, document)):
                copy.write_row((source, key, index, vector))
    connection.execute("ANALYZE chaos_expected")


_EMBEDDER = HashingEmbedder(ModelSpec("hashing", MODEL))
_CHUNKER = Chunker(_EMBEDDER.tokenizer, CHUNK_SIZE, CHUNK_OVERLAP, None, "")


def _vectors(chunked: bool, document: str) -> Iterator[str]:
    """Yields the vector of each chunk as pgvector reads it."""
    whole = _CHUNKER.whole(document, None, None)
    chunks = _CHUNKER.chunks(document) if chunked else [whole] if whole else []
    texts = [chunk.input for chunk in chunks]
    for vector in _EMBEDDER.embed_documents(texts, [0] * len(texts)):
        yield "[" + ",".join(np.format_float_positional(value, unique=True) for value in vector) + "]"
