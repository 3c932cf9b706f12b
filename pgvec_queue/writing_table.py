"""Step 4 of a write for a table of chunks: delete what is old, binary COPY what is new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgvec_queue import copybuffer
from pgvec_queue.database import Connection
from pgvec_queue.fragments import Fragments, identifier
from pgvec_queue.queue import Key
from pgvec_queue.slices import Embedded, Plan, Slice, Written

_TOGETHER = 64
"""Vectors that are put into PostgreSQL's format at once, about."""


def write_table(connection: Connection, fragments: Fragments, part: Slice, plan: Plan, result: Written) -> None:
    """Makes the destination hold exactly the planned chunks for the slice's keys; counts into ``result``."""
    replaced = [item.document.key for item in (*plan.write, *plan.fail)]
    ordered_range = part.job.kind == "range" and fragments.vectorizer.destination_ordered
    if not plan.has_chunks:
        pass
    elif ordered_range:
        result.chunks_deleted += _delete_orphans(connection, fragments, part)
        _delete_listed(connection, fragments, replaced, part, result)
    else:
        _delete_listed(connection, fragments, [*replaced, *plan.gone], None, result)
    if plan.write:
        result.bytes_written += _copy(connection, fragments, plan.write)
        result.chunks_written += sum([len(item.chunks) for item in plan.write])


def _delete_orphans(connection: Connection, fragments: Fragments, part: Slice) -> int:
    lower, upper = part.lower is not None, part.upper is not None
    return connection.execute(
        fragments.compose(
            "writing",
            "delete_orphans",
            destination_scope=fragments.bounds("d", lower=lower, upper=upper),
        ),
        {"lower": part.lower, "upper": part.upper},
    ).rowcount


def _delete_listed(
    connection: Connection, fragments: Fragments, keys: Sequence[Key], within: Slice | None, result: Written
) -> None:
    """Deletes the chunks of ``keys``; ``within`` bounds the search where keys are ordered alike."""
    if not keys:
        return
    lower = within.lower if within else None
    upper = within.upper if within else None
    row = connection.execute(
        fragments.compose(
            "writing",
            "delete_listed",
            listed=fragments.listed(),
            listed_is_destination=fragments.listed_is("d"),
            destination_scope=fragments.bounds("d", lower=lower is not None, upper=upper is not None),
        ),
        {**fragments.key_lists(keys), "lower": lower, "upper": upper},
    ).fetchone()
    assert row is not None
    chunks, documents = row
    result.chunks_deleted += chunks
    result.documents_lost += documents


def _copy(connection: Connection, fragments: Fragments, items: Sequence[Embedded]) -> int:
    """Returns how many bytes were sent."""
    roles = fragments.vectorizer.destination_roles
    columns = [*roles.key]
    columns.extend(
        name
        for name in (roles.chunk_id, roles.chunk_index, roles.chunk, roles.embedding, roles.source_hash)
        if name is not None
    )
    # COPY takes no parameters, so names need no doubled percent signs here.
    statement_ = (
        fragments.compose("writing", "copy", columns=sql.SQL(", ").join(identifier(name) for name in columns))
        .as_string(connection)
        .replace("%%", "%")
    )
    with connection.cursor() as cursor, cursor.copy(statement_.encode()) as copy:
        size = 0
        for block in copybuffer.rows(len(columns), _lines(fragments, items)):
            size += len(block)
            copy.write(block)
    return size


def _lines(fragments: Fragments, items: Sequence[Embedded]) -> Iterator[list[bytes]]:
    roles = fragments.vectorizer.destination_roles
    vectors = _vector_fields(fragments, items)
    for item in items:
        document = item.document
        prefix = "_".join(document.key)
        hash_field = copybuffer.field(document.hash)
        for chunk in item.chunks:
            line = [document.destination_key]
            if roles.chunk_id is not None:
                line.append(copybuffer.text_field(f"{prefix}_{chunk.index}"))
            if roles.chunk_index is not None:
                line.append(copybuffer.int4_field(chunk.index))
            if roles.chunk is not None:
                line.append(copybuffer.text_field(chunk.text))
            line.append(next(vectors))
            if roles.source_hash is not None:
                line.append(hash_field)
            yield line


def _vector_fields(fragments: Fragments, items: Sequence[Embedded]) -> Iterator[bytes]:
    """Yields one field per chunk; a few dozen at a time, since all of a large document's would be there three times."""
    store = fragments.vectorizer.store
    small: list[NDArray[np.float32]] = []
    count = 0
    for vectors in (item.vectors for item in items if item.vectors is not None):
        if len(vectors) < _TOGETHER:
            small.append(vectors)
            count += len(vectors)
        if small and (count >= _TOGETHER or len(vectors) >= _TOGETHER):
            yield from copybuffer.vector_fields(np.concatenate(small), store)
            small, count = [], 0
        if len(vectors) >= _TOGETHER:
            for start in range(0, len(vectors), _TOGETHER):
                yield from copybuffer.vector_fields(vectors[start : start + _TOGETHER], store)
    if small:
        yield from copybuffer.vector_fields(np.concatenate(small), store)
