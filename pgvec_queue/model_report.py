"""The two vectorizers of a migration side by side: coverage, recall, agreement, size, and what speaks against a switch.

Agreement is the mean share of the ten nearest documents that both find, each with its own model's vector of the query.
Its sample queries are given, or the first sentences of stored texts, which is kind to both models, since each query
then has its own text to find. Recall is that of each one's index, measured by stored vectors (``recall``).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from pgvec_queue import embedders, progress, recall, search, sync
from pgvec_queue.catalog import quoted_name
from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.embedders import DeviceOptions, Vectors
from pgvec_queue.errors import PgvecError
from pgvec_queue.fragments import Fragments, identifier
from pgvec_queue.model_migration import Migration
from pgvec_queue.progress import Progress
from pgvec_queue.vectorizer import Vectorizer

NEAREST = 10
QUERIES = 30
_QUERY_LENGTH = 200
_SMALL = 20_000
_RECALL_SECONDS = 30.0
"""For the searches of each side: over many millions of rows an exact one takes long."""
_CHANGES, _CHANGES_SHARE = 100, 0.001
"""So many more changes may wait for the new one than for the old one."""
_BYTES = {"vector": 4, "halfvec": 2}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two."""

    name: str
    model: str
    dimensions: int
    destination: str
    state: str
    reason: str | None
    rows_total: int
    rows_done: int
    rows_failed: int
    coverage: float
    """Share, 0 to 1, of its rows that are right, or in quarantine."""
    jobs_left: int
    """Of the backfill."""
    changes_waiting: int
    """Keys of live changes."""
    eta_seconds: float | None
    indexed: bool
    table_bytes: int
    """Of a vector column: what its vectors take."""
    index_bytes: int
    recall: float | None = None
    """None: there is no index, or exact searches take too long."""
    recall_queries: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """Both of them, and how they compare."""

    old: Side
    new: Side
    switched_at: str | None
    obstacles: list[str]
    """What speaks against a switch; empty after it."""
    agreement: float | None = None
    """None: nothing was asked."""
    queries: int = 0
    queries_from: str | None = None
    """``given`` or ``documents``."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def report(
    connection: Connection,
    migration: Migration,
    *,
    queries: Sequence[str] | None = None,
    sample: int = QUERIES,
    device: DeviceOptions | None = None,
) -> Report:
    """Reads how far both are, asks both the same questions, and keeps the result in the migration's row.

    Without ``queries``, ``sample`` stored texts give theirs; 0 asks nothing and loads no model. Raises what searches
    and models raise.
    """
    found = state(connection, migration)
    asked = list(queries) if queries else _sample(connection, migration.reads, sample) if sample else []
    if asked:
        found = _compare(connection, migration, found, asked, device or DeviceOptions(runtime="torch"))
        found = Report(
            **{name: getattr(found, name) for name in ("old", "new", "switched_at", "obstacles", "agreement")},
            queries=len(asked),
            queries_from="given" if queries else "documents",
        )
    with transaction(connection):
        connection.execute(
            statement("model_migration", "report"),
            {"old": migration.old.id, "new": migration.new.id, "report": Jsonb(found.as_json())},
        )
    return found


def state(connection: Connection, migration: Migration) -> Report:
    """Returns what can be told without a model; nothing is kept."""
    old, new = (_side(connection, one) for one in (migration.old, migration.new))
    return Report(
        old,
        new,
        migration.switched_at.isoformat() if migration.switched_at else None,
        [] if migration.switched_at else obstacles(connection, migration, old, new),
    )


def obstacles(connection: Connection, migration: Migration, old: Side, new: Side) -> list[str]:
    """Returns, a line each, why searches would be worse with the new one at this moment."""
    found = []
    if new.state not in ("active", "complete"):
        found.append(f"{new.name} is {new.state}{': ' + new.reason if new.reason else ''}")
    progress_of = progress.read(connection, new.name)
    if not (progress_of and progress_of[0].plan_complete):
        found.append(f"not all rows of {new.name} are planned; run the same `pgvec migrate-model` again")
    if new.jobs_left:
        jobs = "1 job" if new.jobs_left == 1 else f"{new.jobs_left:,} jobs"
        found.append(f"{jobs} of {new.name} {'is' if new.jobs_left == 1 else 'are'} not done")
    if new.coverage < old.coverage - _CHANGES_SHARE:
        found.append(f"{new.name} has {100 * new.coverage:.1f} % of its rows, {old.name} {100 * old.coverage:.1f} %")
    elif new.rows_done + new.rows_failed < (old.rows_done + old.rows_failed) * (1 - _CHANGES_SHARE) - _CHANGES:
        found.append(f"{new.name} has {new.rows_done:,} rows, {old.name} {old.rows_done:,}")
    if new.changes_waiting > old.changes_waiting + max(_CHANGES, _CHANGES_SHARE * new.rows_total):
        found.append(f"{new.changes_waiting:,} changes wait for {new.name}, {old.changes_waiting:,} for {old.name}")
    if new.rows_failed > old.rows_failed:
        found.append(
            f"{new.rows_failed:,} documents of {new.name} are in quarantine, {old.rows_failed:,} of {old.name}; "
            f"see `pgvec failures {new.name}`"
        )
    if old.indexed and not new.indexed:
        found.append(f"{old.destination} has an index on its vectors, {new.destination} has none; build it first")
    if migration.old.sync and not migration.new.sync:
        found.append(
            f"{old.name} follows live changes, {new.name} does not; `{_enqueue(migration.new)} --sync`, which also "
            "finds what has changed before"
        )
    late = sync.uncovered(connection, migration.new) if migration.new.sync else []
    if late:
        tables = late[0] if len(late) == 1 else f"{late[0]} and {len(late) - 1} more"
        found.append(
            f"{new.name} does not follow the changes of {tables}, which came later; `{_enqueue(migration.new)}`"
        )
    return found


def _enqueue(vectorizer: Vectorizer) -> str:
    return f"pgvec enqueue {shlex.quote(vectorizer.source)} --name {shlex.quote(vectorizer.name)}"


def _side(connection: Connection, vectorizer: Vectorizer) -> Side:
    found = progress.read(connection, vectorizer.name)
    if not found:
        raise PgvecError(f"{vectorizer.name} was dropped, renamed or switched at this moment; run the command again")
    row = connection.execute(statement("model_migration", "queue"), {"id": vectorizer.id}).fetchone()
    assert row is not None
    table_bytes, index_bytes = _sizes(connection, vectorizer, found[0])
    handled = found[0].rows_done + found[0].rows_failed
    return Side(
        name=vectorizer.name,
        model=vectorizer.model,
        dimensions=vectorizer.dimensions,
        destination=vectorizer.destination_label,
        state=found[0].state,
        reason=found[0].reason,
        rows_total=found[0].rows_total,
        rows_done=found[0].rows_done,
        rows_failed=found[0].rows_failed,
        coverage=min(handled / found[0].rows_total, 1.0) if found[0].rows_total else 1.0,
        jobs_left=row[0],
        changes_waiting=row[1],
        eta_seconds=found[0].eta_seconds,
        indexed=is_indexed(connection, vectorizer),
        table_bytes=table_bytes,
        index_bytes=index_bytes,
    )


def is_indexed(connection: Connection, vectorizer: Vectorizer) -> bool:
    """Whether there is a valid HNSW or IVFFlat index on its vectors."""
    row = connection.execute(
        _over(vectorizer, "indexed"), {"embedding": vectorizer.destination_roles.embedding}
    ).fetchone()
    return bool(row and row[0])


def _sizes(connection: Connection, vectorizer: Vectorizer, found: Progress) -> tuple[int, int]:
    row = connection.execute(
        _over(vectorizer, "sizes"), {"embedding": vectorizer.destination_roles.embedding}
    ).fetchone()
    table, indexes, own_indexes = row or (0, 0, 0)
    if vectorizer.into_column:
        return found.rows_done * (_BYTES[vectorizer.store] * vectorizer.dimensions + 8), own_indexes
    return table, indexes


def _over(vectorizer: Vectorizer, name: str) -> sql.Composed:
    table = quoted_name(vectorizer.destination_schema, vectorizer.destination_table)
    # As in `fragments.identifier`: the statement runs with parameters.
    return statement("model_migration", name).format(destination=sql.Literal(table.replace("%", "%%")))


def _sample(connection: Connection, vectorizer: Vectorizer, count: int) -> list[str]:
    """Returns first sentences of stored texts."""
    chunk = vectorizer.destination_roles.chunk
    if chunk is not None:
        schema, table = vectorizer.destination_schema, vectorizer.destination_table
        text: sql.Composable = identifier("s", chunk)
        there: sql.Composable = sql.SQL("true")
    else:
        schema, table = vectorizer.source_schema, vectorizer.source_table
        # Neither has to do with vectors, whose schema is left out.
        text, there = Fragments(vectorizer, "").document, Fragments(vectorizer, "").selected
    rows = sum(one.chunks for one in progress.read(connection, vectorizer.name))
    pages: sql.Composable = sql.SQL("")
    if rows > _SMALL and not (chunk is None and vectorizer.source_is_view):
        percent = sql.Literal(min(100.0, 100.0 * _SMALL / rows))
        pages = statement("model_migration", "sample_pages").format(percent=percent)
    with transaction(connection, read_only=True):
        found = connection.execute(
            statement("model_migration", "sample").format(
                text=text, table=identifier(schema, table), pages=pages, there=there
            ),
            {"count": count},
        ).fetchall()
    return [first_sentence(text) for (text,) in found]


def first_sentence(text: str) -> str:
    """Returns what a text begins with, up to the end of a sentence or of a line, 200 characters at most."""
    text = " ".join(text.split()).replace("\0", "")
    found = re.match(r".{20,}?(?:[.!?](?=\s)|[。！？])", text)
    return (found[0] if found else text)[:_QUERY_LENGTH]


def _compare(
    connection: Connection, migration: Migration, found: Report, queries: list[str], device: DeviceOptions
) -> Report:
    """Asks both, one after the other, so that one model is in memory at a time."""
    sides, keys = [], []
    for vectorizer, side in ((migration.old, found.old), (migration.new, found.new)):
        vectors = _embed(vectorizer, queries, device)
        keys.append([_nearest(connection, vectorizer, *one) for one in zip(queries, vectors, strict=True)])
        if side.indexed:
            measured = recall.measure(connection, vectorizer, seconds=_RECALL_SECONDS, queries=len(queries))
            share = None if measured.share is None else round(measured.share, 4)
            side = replace(side, recall=share, recall_queries=measured.queries)
        sides.append(side)
    shares = [len(one & other) / max(len(one), len(other)) for one, other in zip(*keys, strict=True) if one or other]
    agreement = round(sum(shares) / len(shares), 4) if shares else None
    return Report(sides[0], sides[1], found.switched_at, found.obstacles, agreement)


def _embed(vectorizer: Vectorizer, queries: list[str], device: DeviceOptions) -> Vectors:
    embedder = embedders.load(vectorizer.spec, device)
    try:
        return embedder.embed_queries(queries)
    finally:
        embedder.close()


def _nearest(connection: Connection, vectorizer: Vectorizer, query: str, vector: Vectors) -> set[tuple[str, ...]]:
    request = search.Search(query, limit=NEAREST)
    return {tuple(hit.key) for hit in search.nearest(connection, vectorizer, request, vector).hits}
