"""From what a user asked for to a vectorizer: every check that can be made before the first row is read.

Raises ``DefinitionError`` with one line for whatever does not fit. A second `enqueue` under the same name is compared
with the stored definition and refused where it differs, naming the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgvec_queue import (
    access,
    catalog,
    definition_differences,
    destination,
    destination_checks,
    destination_index,
    embedders,
    source_checks,
    sync,
    vector_index,
    vectorizer,
)
from pgvec_queue.catalog import Column, Relation
from pgvec_queue.database import Connection, Versions, one_line, statement, transaction
from pgvec_queue.definition_options import DEFAULT_CHUNK_OVERLAP, DEFAULT_CHUNK_SIZE, DEFAULT_ROWS_PER_JOB, Options
from pgvec_queue.errors import DefinitionError
from pgvec_queue.template import Template
from pgvec_queue.vectorizer import ROLES, Vectorizer

__all__ = [
    "DEFAULT_CHUNK_OVERLAP",
    "DEFAULT_CHUNK_SIZE",
    "DEFAULT_ROWS_PER_JOB",
    "Defined",
    "Options",
    "define",
    "propose",
]


@dataclass(frozen=True, slots=True)
class Defined:
    """A vectorizer, whether it is new, and what the user should know about it."""

    vectorizer: Vectorizer
    new: bool
    remarks: Sequence[str] = ()


def define(
    connection: Connection, options: Options, versions: Versions, *, also: Callable[[Vectorizer], None] | None = None
) -> Defined:
    """Finds the vectorizer that ``options`` ask for, or checks, makes and stores a new one with its destination.

    ``also`` is called with a new one in the transaction in which it is stored. Raises ``DefinitionError`` when anything
    does not fit, or a stored definition differs.
    """
    source = catalog.get_relation(connection, options.source)
    known = vectorizer.find(connection, options.name or source.name)
    if known is not None:
        definition_differences.refuse(connection, known, options, source)
        connection.execute(
            statement("vectorizer", "steering"),
            {"id": known.id, "rows_per_job": options.rows_per_job, "priority": options.priority},
        )
        stored, remarks = known, []
    else:
        proposed, where_to = _propose(connection, options, source, versions)
        stored, remarks = _store(connection, proposed, where_to, also), list(where_to.remarks)
    # A build that was stopped, or an index that was dropped, is made up for.
    destination_index.make_index(connection, stored)
    remarks.extend(access.share(connection, stored))
    remarks.extend(_follow(connection, stored, options.sync))
    remarks.extend(vector_index.follow(connection, stored, options.index, default=known is None and options.index_new))
    return Defined(vectorizer.get(connection, stored.name), new=known is None, remarks=remarks)


def _follow(connection: Connection, stored: Vectorizer, wanted: bool | None) -> Iterator[str]:
    """Makes the triggers that live changes need, those of new partitions too, or takes them away.

    Before anything is planned: what is changed after that, and before its range is read, is then in a list as well.
    """
    if wanted is False:
        if stored.sync:
            sync.remove(connection, stored.id)
            yield f"{stored.name} follows live changes no longer"
    elif wanted or stored.sync:
        made = sync.install(connection, stored)
        if made:
            tables = made[0] if len(made) == 1 else f"{made[0]} and {len(made) - 1} of its partitions"
            yield f"triggers on {tables} queue every change from now on"


def propose(connection: Connection, options: Options, versions: Versions) -> Vectorizer:
    """Checks what ``define`` would, and returns what it would store; nothing is made."""
    source = catalog.get_relation(connection, options.source)
    known = vectorizer.find(connection, options.name or source.name)
    if known is not None:
        definition_differences.refuse(connection, known, options, source)
        return known
    return _propose(connection, options, source, versions)[0]


def _propose(
    connection: Connection, options: Options, source: Relation, versions: Versions
) -> tuple[Vectorizer, destination.Destination]:
    source_checks.check_schema(source)
    if not options.text:
        raise DefinitionError(
            f"no vectorizer is called {options.name or source.name!r} yet; say what to embed: --text COLUMN"
        )
    text = source_checks.text_columns(source, options.text)
    key = source_checks.key_columns(connection, source, options.key)
    source_checks.check_filter(connection, source, options.where)
    if options.sync:
        sync.check(connection, source, key[0].attname, options.where)
    for column in Template.parse(options.template).columns if options.template else ():
        if column not in source.columns:
            raise DefinitionError(
                f"{source.label} has no column {column!r} (--template); it has: {', '.join(source.columns)}"
            )
    info = embedders.describe(options.spec)
    chunk_size, chunk_overlap = _chunking(options, info)
    store = options.store or "vector"
    most = destination_checks.MOST_DIMENSIONS if options.index is False else vector_index.most_dimensions(store)
    if info.dimensions > most:
        raise DefinitionError(
            f"{info.dimensions} dimensions "
            + (
                f"do not fit: {store} takes {most} at most"
                if options.index is False
                else f"cannot be indexed: HNSW takes {most} at most; --no-index does without one, up to "
                f"{destination_checks.MOST_DIMENSIONS}"
            )
            + "; or ask for fewer with --dimensions"
        )
    where_to = _destination(connection, options, source, key, store, info.dimensions, versions)
    proposed = Vectorizer(
        id=0,
        name=options.name or source.name,
        source_schema=source.schema,
        source_table=source.name,
        source_is_view=not source.has_xmin,
        key_columns=tuple(c.attname for c in key),
        key_types=tuple(c.base_type for c in key),
        text_columns=tuple(text),
        filter=options.where,
        destination_kind=where_to.kind,
        destination_schema=where_to.schema,
        destination_table=where_to.table,
        destination_roles=where_to.roles,
        destination_key_types=where_to.key_types,
        destination_ordered=where_to.ordered,
        destination_created=where_to.created,
        store=store,
        embedder=options.resolved_embedder,
        model=options.resolved_model,
        revision=options.revision or info.revision,
        endpoint=options.endpoint,
        tokenizer=options.tokenizer,
        query_prompt=info.query_prompt if options.query_prompt is None else options.query_prompt,
        document_prompt=info.document_prompt if options.document_prompt is None else options.document_prompt,
        dimensions=info.dimensions,
        trust_remote_code=options.trust_remote_code,
        template=options.template,
        chunk_size=chunk_size,
        chunk_overlap=chunk_overlap,
        too_long=options.too_long or "quarantine",
        max_document_bytes=10 * 1024 * 1024,
        rows_per_job=options.rows_per_job or DEFAULT_ROWS_PER_JOB,
        priority=options.priority or 0,
        sync=False,
        partitions=options.partitions if where_to.partitioned else None,
    )
    return proposed, where_to


def _store(
    connection: Connection,
    proposed: Vectorizer,
    where_to: destination.Destination,
    also: Callable[[Vectorizer], None] | None,
) -> Vectorizer:
    try:
        base = 0
        if not where_to.created:
            # Before anything is locked: a column that is added takes a lock that nobody reads beside.
            with transaction(connection, statement_timeout=600, read_only=True):
                base = _count_chunks(connection, proposed)
        with transaction(connection, lock_timeout=5):
            destination.make(connection, where_to)
            stored = vectorizer.insert(connection, proposed, chunks_base=base)
            if also is not None:
                also(stored)
            return stored
    except psycopg.errors.UniqueViolation:
        raise DefinitionError(
            f"somebody else has just made the vectorizer {proposed.name!r}; run the same command again"
        ) from None
    except (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject) as error:
        # The second is a type of that name, that of a table included which somebody makes at this moment.
        raise DefinitionError(
            f"the destination {where_to.schema}.{where_to.table} cannot be made: {one_line(error)}; "
            "name another one with --into"
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        raise DefinitionError(
            f"{where_to.schema}.{where_to.table} is locked by somebody else; try again when it is free"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DefinitionError(
            f"you may not make the destination {where_to.schema}.{where_to.table}: {one_line(error)}"
        ) from error


def _count_chunks(connection: Connection, proposed: Vectorizer) -> int:
    table = sql.Identifier(proposed.destination_schema, proposed.destination_table)
    name = "count_vectors" if proposed.into_column else "count"
    row = connection.execute(
        statement("destination", name).format(
            destination=table, embedding=sql.Identifier(proposed.destination_roles.embedding)
        )
    ).fetchone()
    return int(row[0]) if row else 0


def _chunking(options: Options, info: embedders.ModelInfo) -> tuple[int | None, int | None]:
    if not options.chunked:
        return None, None
    size = options.chunk_size or DEFAULT_CHUNK_SIZE
    overlap = DEFAULT_CHUNK_OVERLAP if options.chunk_overlap is None else options.chunk_overlap
    if info.max_tokens is not None and size > info.max_tokens:
        raise DefinitionError(
            f"--chunk-size {size} is more than the {info.max_tokens} tokens that {options.resolved_model} reads"
        )
    if options.chunk_overlap is None:
        overlap = min(overlap, size // 4)
    if overlap * 2 > size:
        raise DefinitionError(f"--chunk-overlap {overlap} is more than half of --chunk-size {size}")
    return size, overlap


def _destination(
    connection: Connection,
    options: Options,
    source: Relation,
    key: Sequence[Column],
    store: str,
    dimensions: int,
    versions: Versions,
) -> destination.Destination:
    unknown = sorted(set(options.columns) - set(ROLES))
    if unknown:
        raise DefinitionError(f"--column {unknown[0]}=… names no role; roles are {', '.join(ROLES)}")
    if options.into_column is not None and options.partitions is not None:
        raise DefinitionError(
            f"--into-column {options.into_column} keeps the vectors in {source.label}, which stays as it is; "
            "leave --partitions out"
        )
    if options.into_column is not None:
        found = destination.resolve_column(
            source,
            key,
            column=options.into_column,
            column_map=options.columns,
            store=store,
            dimensions=dimensions,
            vector_schema=versions.vector_schema,
            adopt=options.adopt,
        )
    else:
        found = destination.resolve_table(
            connection,
            source,
            key,
            into=options.into,
            column_map=options.columns,
            store=store,
            dimensions=dimensions,
            vector_schema=versions.vector_schema,
            chunked=options.chunked,
            adopt=options.adopt,
            partitions=options.partitions,
        )
    taken = connection.execute(
        statement("catalog", "destination_taken"),
        {
            "schema": found.schema,
            "table": found.table,
            "kind": found.kind,
            "embedding": found.roles.embedding,
            "source_hash": found.roles.source_hash,
        },
    ).fetchone()
    if taken is not None:
        what = f"column {found.roles.embedding} of " if found.kind == "column" else ""
        raise DefinitionError(
            f"the {what}destination {found.schema}.{found.table} belongs to the vectorizer {taken[0]!r}; "
            "name another one with --into or --into-column"
        )
    return found
