"""How rows lie in a destination table: its columns in order, its indexes, and the options that move values out of rows.

Of a table that does not exist yet, as ``destination`` would make it; else as the catalog has it. A column that plays no
role counts where it gets a value: by its type, or as 16 bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pgvec_queue.catalog import Relation
from pgvec_queue.database import Connection, statement
from pgvec_queue.destination import TOAST_TARGET, keeps_vectors_in_rows
from pgvec_queue.estimate.documents import Drawn
from pgvec_queue.estimate.storage import Attribute, Bytes
from pgvec_queue.vectorizer import Vectorizer

HASH_BYTES = 16
_OTHER = "other"
_OTHER_BYTES = 16
_LONGEST_SHORT = 127
"""``pg_column_size`` of the longest value that is stored with a header of one byte."""
ELEMENT_BYTES = {"vector": 4, "halfvec": 2}
_OWN = {
    "chunk_id": Attribute("chunk_id", -1, "i", "x"),
    "chunk_index": Attribute("chunk_index", 4, "i", "p"),
    "chunk": Attribute("chunk", -1, "i", "x"),
    "embedding": Attribute("embedding", -1, "i", "e"),
    "source_hash": Attribute("source_hash", -1, "i", "x"),
    "created_at": Attribute("created_at", 8, "d", "p"),
}


@dataclass(frozen=True, slots=True)
class Table:
    """A destination table as far as its size depends on it."""

    attributes: Sequence[Attribute]
    indexes: Sequence[Sequence[Attribute]]
    """The columns of each B-tree index."""
    target: int
    """``toast_tuple_target``; 0: PostgreSQL's own."""
    fillfactor: int
    other_indexes: int = 0
    """Of other kinds than B-tree and HNSW, which grow as well."""


def of_vectorizer(connection: Connection, vectorizer: Vectorizer, existing: Relation | None) -> Table:
    """Returns the layout of the vectorizer's table, ``existing`` or still to be made."""
    key = _key_attributes(connection, vectorizer)
    if existing is not None:
        return _existing(connection, vectorizer, existing)
    roles = vectorizer.destination_roles
    own = [attribute for role, attribute in _OWN.items() if getattr(roles, role) is not None]
    unique = [[*key, _OWN["chunk_index"]]]
    if roles.chunk_id is not None:
        unique.append([_OWN["chunk_id"]])
    inline = keeps_vectors_in_rows(vectorizer.store, vectorizer.dimensions)
    return Table([*key, *own], unique, TOAST_TARGET if inline else 0, 100)


def of_new(key: Sequence[Attribute], store: str, dimensions: int) -> Table:
    """Returns the layout of the table that `enqueue` makes for a key of these columns."""
    own = [attribute for role, attribute in _OWN.items() if role != "chunk_id"]
    inline = keeps_vectors_in_rows(store, dimensions)
    return Table([*key, *own], [[*key, _OWN["chunk_index"]]], TOAST_TARGET if inline else 0, 100)


def _key_attributes(connection: Connection, vectorizer: Vectorizer) -> list[Attribute]:
    types = connection.execute(
        statement("estimate", "types"), {"types": list(vectorizer.destination_key_types)}
    ).fetchall()
    return [Attribute(f"key{i}", *found) for i, found in enumerate(types)]


def _existing(connection: Connection, vectorizer: Vectorizer, table: Relation) -> Table:
    roles = vectorizer.destination_roles
    named = {name: f"key{i}" for i, name in enumerate(roles.key)}
    named |= {name: role for role in _OWN if (name := getattr(roles, role)) is not None}
    found = connection.execute(statement("estimate", "attributes"), {"oid": table.oid}).fetchall()
    attributes = {
        name: Attribute(named.get(name, _OTHER), length, alignment, storage)
        for name, length, alignment, storage, filled in found
        if name in named or filled
    }
    options = connection.execute(statement("estimate", "options"), {"oid": table.oid}).fetchone()
    assert options is not None
    indexes = [row[0] for row in connection.execute(statement("estimate", "indexes"), {"oid": table.oid}).fetchall()]
    trees = [[attributes[name] for name in columns if name in attributes] for columns in indexes if columns]
    return Table([*attributes.values()], trees, options[0], options[1], len(indexes) - len(trees))


def widths(table: Table, vectorizer: Vectorizer, documents: Sequence[Drawn]) -> dict[str, Bytes]:
    """Returns the bytes of each chunk's values of varying length by role, without headers, ``(chunks,)`` each."""
    counts = [len(one.chunks) for one in documents]
    every = sum(counts)
    found = {
        "chunk": np.array([size for one in documents for size in one.chunks], np.float64),
        "embedding": np.full(every, 4.0 + ELEMENT_BYTES[vectorizer.store] * vectorizer.dimensions),
        "source_hash": np.full(every, float(HASH_BYTES)),
        _OTHER: np.full(every, float(_OTHER_BYTES)),
    }
    same_types = vectorizer.key_types == vectorizer.destination_key_types
    for attribute in table.attributes:
        if attribute.role.startswith("key"):
            place = int(attribute.role.removeprefix("key"))
            sizes = [_value_bytes(one.key_sizes[place], stored=same_types) if one.chunks else 0.0 for one in documents]
            found[attribute.role] = np.repeat(np.array(sizes, np.float64), counts)
    if any(attribute.role == "chunk_id" for attribute in table.attributes):
        found["chunk_id"] = np.array([*_chunk_ids(documents)], np.float64)
    return found


def _value_bytes(size: int, *, stored: bool) -> float:
    """Returns what ``pg_column_size`` tells of a value without the value's header."""
    return float(size - 1 if stored and size <= _LONGEST_SHORT else max(size - 4, 0))


def _chunk_ids(documents: Sequence[Drawn]) -> Iterator[float]:
    for one in documents:
        prefix = len("_".join(one.key).encode()) + 1
        yield from (float(prefix + len(str(index))) for index in range(len(one.chunks)))


def compressed_share(documents: Sequence[Drawn]) -> Bytes:
    """Returns which share of a text compression leaves, ``(chunks,)``: what it has left of the same text in the source.

    1 where the source keeps the text as it is, or did not have to compress it.
    """
    shares = [min(1.0, one.stored / one.size) if one.stored and one.size else 1.0 for one in documents]
    return np.repeat(np.array(shares, np.float64), [len(one.chunks) for one in documents])
