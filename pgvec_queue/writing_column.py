"""Step 4 of a write for a vector column of the source: update the rows whose text is still the one that was embedded.

No advisory lock is needed: each row is locked for the update, and a row that somebody else holds is left for later, so
that a user's open transaction never makes a worker wait.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql

from pgvec_queue import copybuffer
from pgvec_queue.database import Connection, statement
from pgvec_queue.fragments import Fragments, identifier
from pgvec_queue.queue import Key
from pgvec_queue.slices import Embedded, Plan, Slice, Written


def write_column(
    connection: Connection, fragments: Fragments, part: Slice, plan: Plan, result: Written
) -> tuple[list[Key], list[Key]]:
    """Updates the planned rows and clears those that must have no vector.

    Returns the keys that have to wait, since somebody holds their rows: those to update, and those to clear.
    """
    to_clear = _clear(connection, fragments, part, plan, result)
    if not plan.write:
        return [], to_clear
    keys = [item.document.key for item in plan.write]
    had_vector = {
        keys[ordinal - 1]: had
        for ordinal, had in connection.execute(
            fragments.compose(
                "writing", "lock_rows", listed=fragments.listed(), listed_is_source=fragments.listed_is("s")
            ),
            fragments.key_lists(keys),
        )
    }
    updated, size = _update(connection, fragments, [item for item in plan.write if item.document.key in had_vector])
    result.bytes_written += size
    result.chunks_written += len(updated)
    replaced = sum(had_vector[key] for key in updated)
    result.chunks_deleted += replaced
    result.documents_lost += replaced
    return [item.document.key for item in plan.write if item.document.key not in updated], to_clear


def _update(connection: Connection, fragments: Fragments, items: Sequence[Embedded]) -> tuple[set[Key], int]:
    """Returns the keys whose rows have their vectors now, and how many bytes were sent."""
    if not items:
        return set(), 0
    roles = fragments.vectorizer.destination_roles
    keys = [item.document.key for item in items]
    set_hash = (
        sql.SQL(", {} = u.pgvec_hash").format(identifier(roles.source_hash)) if roles.source_hash else sql.SQL("")
    )
    vector_type = f"{sql.Identifier(fragments.vector_schema).as_string(None)}.{fragments.vectorizer.store}"
    query = fragments.compose(
        "writing",
        "update_rows",
        set_hash=set_hash,
        # %b: the server takes the parameter's type from the cast, and its value in binary.
        listed=fragments.listed(extra=(f"vector::{vector_type}", "hash::bytea"), binary=("vector",)),
        listed_is_source=fragments.listed_is("s"),
    )
    row = connection.execute(
        statement("writing", "vector_oid"), {"schema": fragments.vector_schema, "type": fragments.vectorizer.store}
    ).fetchone()
    assert row is not None
    vectors = copybuffer.array(
        [
            field
            for item in items
            if item.vectors is not None
            for field in copybuffer.vector_fields(item.vectors, fragments.vectorizer.store)
        ],
        row[0],
    )
    updated = connection.execute(
        query,
        {
            **fragments.key_lists(keys),
            "vector": copybuffer.Raw(vectors),
            "hash": [item.document.hash for item in items],
        },
    )
    return {keys[ordinal - 1] for (ordinal,) in updated}, len(vectors)


def _clear(connection: Connection, fragments: Fragments, part: Slice, plan: Plan, result: Written) -> list[Key]:
    """Takes the vectors of what has failed, is blank or no longer selected; returns those that somebody holds."""
    roles = fragments.vectorizer.destination_roles
    parts = {
        "clear_hash": sql.SQL(", {} = NULL").format(identifier(roles.source_hash))
        if roles.source_hash
        else sql.SQL(""),
        "is_stale": _same_key(fragments, "stale"),
        "is_held": _same_key(fragments, "held"),
    }
    rows: list[tuple[list[str], bool]] = []
    listed = [item.document.key for item in plan.fail]
    if part.job.kind == "range":
        scope = fragments.bounds("s", lower=part.lower is not None, upper=part.upper is not None)
        rows += connection.execute(
            fragments.compose("writing", "clear_range", scope=scope, **parts),
            {"lower": part.lower, "upper": part.upper},
        ).fetchall()
    else:
        listed.extend(plan.gone)
    if listed:
        rows += connection.execute(
            fragments.compose(
                "writing",
                "clear_listed",
                listed=fragments.listed(),
                listed_is_source=fragments.listed_is("s"),
                **parts,
            ),
            fragments.key_lists(listed),
        ).fetchall()
    cleared = sum(taken for _, taken in rows)
    result.chunks_deleted += cleared
    result.documents_lost += cleared
    return [tuple(key) for key, taken in rows if not taken]


def _same_key(fragments: Fragments, other: str) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(identifier("s", name), identifier(other, name))
        for name in fragments.vectorizer.key_columns
    )
