"""The vectorizer: one definition of what becomes vectors, from which model, and where they go; and its row.

A definition never changes: `enqueue` with another one under the same name is refused. What steers it (paused, blocked,
priority) lives in other columns of the same row and is read where it is needed, never cached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.embedders import ModelSpec
from pgvec_queue.errors import DefinitionError

ROLES = ("key", "chunk_id", "chunk_index", "chunk", "embedding", "source_hash", "created_at")


@dataclass(frozen=True, slots=True)
class Roles:
    """Which column of the destination plays which role; None: the destination has no such column."""

    key: tuple[str, ...]
    embedding: str
    chunk_id: str | None = None
    chunk_index: str | None = None
    chunk: str | None = None
    source_hash: str | None = None
    created_at: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            role: list(value) if role == "key" else value
            for role in ROLES
            if (value := getattr(self, role)) is not None
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Roles:
        return cls(**{**value, "key": tuple(value["key"])})


@dataclass(frozen=True, slots=True)
class Vectorizer:
    """One definition, as its row in ``pgvec.vectorizers`` holds it."""

    id: int
    name: str
    source_schema: str
    source_table: str
    source_is_view: bool
    key_columns: tuple[str, ...]
    key_types: tuple[str, ...]
    """As ``format_type`` writes them, so that they can stand in a cast."""
    text_columns: tuple[str, ...]
    filter: str | None
    destination_kind: str
    """``table``: one row per chunk; ``column``: a vector column of the source."""
    destination_schema: str
    destination_table: str
    destination_roles: Roles
    destination_key_types: tuple[str, ...]
    destination_ordered: bool
    """A key range means the same rows in the source and in the destination."""
    destination_created: bool
    store: str
    embedder: str
    model: str
    revision: str | None
    endpoint: str | None
    tokenizer: str | None
    query_prompt: str | None
    document_prompt: str | None
    dimensions: int
    trust_remote_code: bool
    template: str | None
    chunk_size: int | None
    """Tokens, special tokens included; None: documents stay whole."""
    chunk_overlap: int | None
    too_long: str
    max_document_bytes: int
    rows_per_job: int
    priority: int
    sync: bool
    """Triggers of the source queue its changes; set once they are there."""
    partitions: int | None = None
    """Of the destination that was made for it, by hash of the key; None: one table, or somebody else's."""

    @property
    def spec(self) -> ModelSpec:
        """What a worker needs to load this vectorizer's model; equal for vectorizers that can share one."""
        return ModelSpec(
            embedder=self.embedder,
            model=self.model,
            revision=self.revision,
            endpoint=self.endpoint,
            query_prompt=self.query_prompt,
            document_prompt=self.document_prompt,
            dimensions=self.dimensions,
            trust_remote_code=self.trust_remote_code,
            tokenizer=self.tokenizer,
        )

    @property
    def into_column(self) -> bool:
        return self.destination_kind == "column"

    @property
    def source(self) -> str:
        return f"{self.source_schema}.{self.source_table}"

    @property
    def destination(self) -> str:
        return f"{self.destination_schema}.{self.destination_table}"

    @property
    def destination_label(self) -> str:
        """The destination, or the source with the column that it is there."""
        return f"{self.destination}.{self.destination_roles.embedding}" if self.into_column else self.destination


_COLUMNS = tuple(field.name for field in fields(Vectorizer))
COLUMNS = sql.SQL(", ").join(map(sql.Identifier, _COLUMNS))
"""Of its row, as `from_row` reads them: a client reads the row's times in some of the server's date styles only."""


def _statement(name: str) -> sql.Composed:
    return statement("vectorizer", name).format(columns=COLUMNS)


def from_row(row: dict[str, Any]) -> Vectorizer:
    """Returns the vectorizer of a row with `COLUMNS`."""
    values = {name: row[name] for name in _COLUMNS}
    for name in ("key_columns", "key_types", "text_columns", "destination_key_types"):
        values[name] = tuple(values[name])
    values["destination_roles"] = Roles.from_json(values["destination_roles"])
    return Vectorizer(**values)


def find(connection: Connection, name: str) -> Vectorizer | None:
    """Returns the vectorizer of that name, or None."""
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_statement("by_name"), {"name": name}).fetchone()
    return from_row(row) if row else None


def get(connection: Connection, name: str) -> Vectorizer:
    """Returns the vectorizer of that name. Raises ``DefinitionError`` that lists the ones there are."""
    found = find(connection, name)
    if found is not None:
        return found
    there = names(connection)
    hint = f"there are: {', '.join(there)}" if there else "there is none yet; make one with `pgvec enqueue`"
    raise DefinitionError(f"no vectorizer is called {name!r}; {hint}")


def halt(connection: Connection, vectorizer: Vectorizer) -> str | None:
    """Returns why workers leave it alone until it is resumed, as the rest of "it is"; None where they do not."""
    row = connection.execute(statement("vectorizer", "halt"), {"id": vectorizer.id}).fetchone()
    return row[0] if row else None


def by_ids(connection: Connection, ids: Sequence[int]) -> list[Vectorizer]:
    """Returns the vectorizers of these ids that still exist."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(_statement("by_ids"), {"ids": list(ids)}).fetchall()
    return [from_row(row) for row in rows]


def names(connection: Connection) -> list[str]:
    return [name for (name,) in connection.execute(statement("vectorizer", "names")).fetchall()]


def insert(connection: Connection, vectorizer: Vectorizer, *, chunks_base: int) -> Vectorizer:
    """Stores a new definition and returns it with its id; ``chunks_base`` is what its destination already holds.

    Raises ``psycopg.errors.UniqueViolation`` when the name is taken.
    """
    values: dict[str, Any] = {
        name: list(value) if isinstance(value := getattr(vectorizer, name), tuple) else value for name in _COLUMNS
    }
    values["destination_roles"] = Jsonb(vectorizer.destination_roles.as_json())
    values["chunks_base"] = chunks_base
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(_statement("insert"), values).fetchone()
    assert row is not None
    return from_row(row)


def steer(connection: Connection, name: str, action: str) -> None:
    """Pauses, resumes, cancels or drops a vectorizer: ``pause``, ``resume``, ``cancel`` or ``drop``.

    All but the last set flags of its row, never anything of its jobs; workers obey within two seconds. Raises
    ``DefinitionError`` when there is no such vectorizer.
    """
    get(connection, name)
    with transaction(connection, statement_timeout=600):
        connection.execute(statement("vectorizer", action), {"name": name})


def retry(connection: Connection, name: str, error_class: str | None = None) -> int:
    """Takes its documents out of quarantine (all, or those of one error class) and queues them; returns how many.

    Raises ``DefinitionError`` when there is no such vectorizer.
    """
    get(connection, name)
    with transaction(connection, statement_timeout=300):
        row = connection.execute(
            statement("vectorizer", "retry"), {"name": name, "error_class": error_class}
        ).fetchone()
    return int(row[0]) if row else 0


def is_limited(connection: Connection, vectorizer_id: int) -> bool:
    """Whether `enqueue --limit` has selected a part of its rows."""
    row = connection.execute(statement("vectorizer", "is_limited"), {"id": vectorizer_id}).fetchone()
    return bool(row and row[0])


@dataclass(frozen=True, slots=True)
class Changes:
    """What of a vectorizer can change without a new vector; None: as it is. A limit of 0 takes it away."""

    new_name: str | None = None
    priority: int | None = None
    rows_per_job: int | None = None
    rows_per_second: float | None = None
    """Of ranges, by all workers together."""
    replication_lag: float | None = None
    """Seconds that a standby may be behind for work to go on."""
    commit_time: float | None = None
    """Seconds that a small commit may take for work to go on."""


def alter(connection: Connection, name: str, changes: Changes) -> None:
    """Changes what needs no new vectors; workers obey within two seconds.

    Raises ``DefinitionError`` when there is no such vectorizer, or the new name is taken.
    """
    get(connection, name)
    try:
        with transaction(connection):
            connection.execute(statement("vectorizer", "alter"), {"name": name, **asdict(changes)})
    except psycopg.errors.UniqueViolation:
        raise DefinitionError(f"another vectorizer is called {changes.new_name!r}") from None


def block(connection: Connection, vectorizer_id: int, reason: str) -> None:
    """Stops all work of a vectorizer, with the reason that `status` shows, until `resume` or the next `enqueue`."""
    connection.execute(statement("vectorizer", "block"), {"id": vectorizer_id, "reason": reason})
