"""What a changed document's chunks were: those whose text is still there keep the vectors that they have.

A vector belongs to what the model was given, which the stored text of a chunk tells only where the template names no
column of the row. So nothing is kept with such a template, in a column of the source, and where the destination stores
no text or no hash; and of a table that was there before the vectorizer, only chunks that were written since: what was
there may come from another model.

What is read is bounded by bytes; the rest of a larger document is embedded again. Between the read and the write
anything may happen to these rows: a vector belongs to its text, wherever that stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from pgvec_queue import copybuffer
from pgvec_queue.chunking import Chunk
from pgvec_queue.database import Connection
from pgvec_queue.fragments import Fragments
from pgvec_queue.slices import Document, Old

OLD_BYTES = 32 * 1024 * 1024
"""Of vectors that are read for one slice."""
_BESIDE = 200
"""Bytes that a vector takes beside its elements: its hash, and its place in a table of Python's."""


def read(connection: Connection, fragments: Fragments, documents: Sequence[Document]) -> Old:
    """Returns the vectors of the chunks that the destination holds of these documents, as pgvector sends them."""
    most = OLD_BYTES // (_size(fragments) + _BESIDE)
    with connection.cursor(binary=True) as cursor:
        rows = cursor.execute(
            fragments.compose(
                "reading",
                "old_chunks",
                listed=fragments.listed(),
                listed_is_destination=fragments.listed_is("d"),
                made_here=fragments.made_here,
            ),
            {**fragments.key_lists([document.key for document in documents]), "most": most},
        ).fetchall()
    vectors: dict[tuple[str, ...], dict[bytes, bytes]] = {}
    for position, hash_, vector in rows:
        vectors.setdefault(documents[position - 1].key, {})[hash_] = vector
    return Old(vectors, len(rows) * (_size(fragments) + _BESIDE))


def match(fragments: Fragments, old: Mapping[bytes, bytes], chunks: Sequence[Chunk]) -> dict[int, bytes]:
    """Returns the vectors of those chunks that were there before, by their place in ``chunks``."""
    size = _size(fragments)
    kept = {}
    for place, chunk in enumerate(chunks):
        vector = old.get(hashlib.sha256(chunk.text.encode()).digest()[:16])
        if vector is not None and len(vector) == size:
            kept[place] = vector
    return kept


def _size(fragments: Fragments) -> int:
    return copybuffer.vector_size(fragments.vectorizer.dimensions, fragments.vectorizer.store)
