"""Tasks: what one request of texts to the gateway has become.

Guarantees: the task, its texts and their jobs are written in one transaction, so an accepted task is embedded whatever
happens to whoever accepted it; the same idempotency key makes one task. A task knows nothing by itself: what has become
of its texts is read from the collection, its vectors and the quarantine whenever somebody looks, and kept in its row
once it is finished. A text that was updated or deleted before it was embedded is superseded, and waited for no more.
"""

from __future__ import annotations

import functools
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ParamSpec, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from pgvec_queue.async_database import AsyncConnection, async_transaction
from pgvec_queue.collections import Collection, find
from pgvec_queue.database import statement
from pgvec_queue.errors import PgvecError

MOST_ERRORS = 100
"""Told with a status."""
STATES = ("queued", "running", "done", "failed", "cancelled")
_RESULT_BYTES = 8 * 1024 * 1024
_NUMBER_BYTES = 12
"""Of a vector's number in JSON."""
_LOOKED_AT = 50
"""Unfinished tasks that a list brings up to date."""
_PRUNED = 500
_P = ParamSpec("_P")
_T = TypeVar("_T")


class KeyReusedError(PgvecError):
    """An idempotency key has come before, with another request."""


@dataclass(frozen=True, slots=True)
class Request:
    """Texts that are to be embedded, checked."""

    ids: list[str]
    texts: list[str]
    metadata: list[str | None] | None
    """JSON objects, one per text; None: as it is, or empty."""
    batch_size: int | None
    digest: bytes
    """Of all that the client asked for."""
    token: int
    key: str | None


@dataclass(frozen=True, slots=True)
class Task:
    """A task as it stands."""

    id: uuid.UUID
    collection: str
    model: str
    vectorizer_id: int
    state: str
    texts: int
    done: int
    failed: int
    skipped: int
    superseded: int
    cancelled: int
    batch_size: int | None
    created_at: datetime
    finished_at: datetime | None
    seconds: float
    """From its beginning to its end, or until now."""
    reason: str | None
    """Why nothing moves, where that is plain."""

    @property
    def waiting(self) -> int:
        return self.texts - self.done - self.failed - self.skipped - self.superseded - self.cancelled

    @property
    def finished(self) -> bool:
        return self.finished_at is not None


@dataclass(frozen=True, slots=True)
class TextError:
    """A text of a task that is in quarantine."""

    ordinal: int
    id: str
    error_class: str
    message: str


@dataclass(frozen=True, slots=True)
class Vectors:
    """A page of a result."""

    items: list[str]
    """JSON objects."""
    last: tuple[int, int] | None
    """Ordinal and chunk of the last one."""
    more: bool
    """There may be more right now."""
    vectorizer_id: int = 0
    """Whose vectors they are."""


async def by_key(connection: AsyncConnection, token: int, key: str, digest: bytes) -> uuid.UUID | None:
    """Returns the task that the key made. Raises ``KeyReusedError`` where it made one of another request."""
    cursor = await connection.execute(statement("gateway", "by_key"), {"token": token, "key": key})
    row = await cursor.fetchone()
    if row is None:
        return None
    if bytes(row[1]) != digest:
        raise KeyReusedError("this Idempotency-Key has come with another request; take a new key for each request")
    return uuid.UUID(str(row[0]))


async def submit(connection: AsyncConnection, collection: Collection, request: Request) -> tuple[uuid.UUID, bool]:
    """Stores texts, jobs and task together; returns the task's id and whether it is new.

    Raises ``KeyReusedError``; ``psycopg.errors.UndefinedTable`` where the collection was dropped meanwhile.
    """
    task = uuid.uuid4()
    ids = request.ids or [f"{task}-{number}" for number in range(len(request.texts))]
    async with async_transaction(connection, statement_timeout=60):
        cursor = await connection.execute(
            statement("gateway", "insert_task"),
            {
                "id": task,
                "collection": collection.name,
                "vectorizer": collection.vectorizer_id,
                "token": request.token,
                "key": request.key,
                "digest": request.digest,
                "batch_size": request.batch_size,
                "count": len(request.texts),
            },
        )
        if await cursor.fetchone() is None:
            # Whoever was first has committed by now.
            assert request.key is not None
            found = await by_key(connection, request.token, request.key, request.digest)
            if found is None:
                raise KeyReusedError("the task of this Idempotency-Key was removed at this moment; try again")
            return found, False
        await connection.execute(statement("gateway", "bound_batches"), {"batch_size": request.batch_size})
        await connection.execute(
            collection.compose(
                "put_texts",
                set_metadata=sql.SQL("") if request.metadata is None else statement("gateway", "set_metadata"),
            ),
            {
                "ids": ids,
                "texts": request.texts,
                "metadata": request.metadata or [None] * len(ids),
                "task": task,
            },
        )
    return task, True


async def wake_workers(connection: AsyncConnection) -> None:
    """A hint to idle workers, apart from the transaction that has queued something."""
    await connection.execute(statement("gateway", "wake"))


def _once_more(function: Callable[_P, Awaitable[_T]]) -> Callable[_P, Awaitable[_T]]:
    """Does it again where the vectors are dropped after they were found: the collection has others by then."""

    @functools.wraps(function)
    async def twice(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await function(*args, **kwargs)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            return await function(*args, **kwargs)

    return twice


@_once_more
async def look(connection: AsyncConnection, ids: Sequence[uuid.UUID]) -> list[Task]:
    """Returns tasks as they are now, newest first; those that are gone are left out."""
    async with async_transaction(connection):
        await _refresh(connection, ids)
        return await _read(connection, ids)


async def errors(connection: AsyncConnection, id_: uuid.UUID) -> list[TextError]:
    """Returns the first of its texts that are in quarantine, in the order of the request."""
    async with connection.cursor(row_factory=class_row(TextError)) as cursor:
        await cursor.execute(statement("gateway", "errors"), {"id": id_, "limit": MOST_ERRORS})
        return await cursor.fetchall()


@_once_more
async def result(connection: AsyncConnection, task: Task, *, after: tuple[int, int], limit: int) -> Vectors:
    """Returns vectors in the order of the request, after (ordinal, chunk), up to the first text that still waits."""
    async with async_transaction(connection, read_only=True):
        # The collection may have been switched to another model since the task was looked at.
        found = await _by_collection(connection, [task.id])
        if not found:
            return Vectors([], None, more=False)
        collection = found[0][0]
        number_of = max(1, min(limit, _RESULT_BYTES // (collection.dimensions * _NUMBER_BYTES)))
        cursor = await connection.execute(
            _over_fates(collection, "result"),
            {
                "ids": [task.id],
                "id": task.id,
                "vectorizer": collection.vectorizer_id,
                "ordinal": after[0],
                "chunk": after[1],
                "limit": number_of,
                "bytes": _RESULT_BYTES,
            },
        )
        rows = await cursor.fetchall()
    if not rows:
        return Vectors([], None, more=False, vectorizer_id=collection.vectorizer_id)
    return Vectors(
        [row[2] for row in rows],
        (rows[-1][0], rows[-1][1]),
        more=rows[0][3] > len(rows) or len(rows) == number_of,
        vectorizer_id=collection.vectorizer_id,
    )


@_once_more
async def cancel(connection: AsyncConnection, id_: uuid.UUID) -> Task | None:
    """Embeds no more of a task; returns it as it is then. What has ended stays as it ended.

    Texts that it was the last to write and that are not embedded yet leave the collection.
    """
    async with async_transaction(connection):
        cursor = await connection.execute(statement("gateway", "lock_task"), {"id": id_})
        row = await cursor.fetchone()
        if row is None:
            return None
        if not row[0]:
            for collection, ids in await _by_collection(connection, [id_]):
                await connection.execute(
                    _over_fates(collection, "cancel"), {"ids": ids, "vectorizer": collection.vectorizer_id}
                )
                await _refresh(connection, ids)
        found = await _read(connection, [id_])
    return found[0] if found else None


@_once_more
async def page(
    connection: AsyncConnection,
    *,
    state: str | None,
    collection: str | None,
    before: tuple[str, uuid.UUID] | None,
    limit: int,
) -> list[Task]:
    """Returns tasks, newest first, from before (time, id) on."""
    async with async_transaction(connection):
        cursor = await connection.execute(statement("gateway", "newest_unfinished"), {"limit": _LOOKED_AT})
        await _refresh(connection, [row[0] for row in await cursor.fetchall()])
        cursor = await connection.execute(
            statement("gateway", "page_of_tasks"),
            {
                "before": before[0] if before else None,
                "id": before[1] if before else None,
                "state": state,
                "collection": collection,
                "limit": limit,
            },
        )
        return await _read(connection, [row[0] for row in await cursor.fetchall()])


async def housekeeping(connection: AsyncConnection, *, keep: float) -> None:
    """Looks at a few tasks that nobody asks for, and removes a few that ended ``keep`` seconds ago.

    Of several gateways at once, one does it.
    """
    async with async_transaction(connection, statement_timeout=60):
        cursor = await connection.execute(statement("gateway", "housekeeping_turn"))
        row = await cursor.fetchone()
        if row is None or not row[0]:
            return
        cursor = await connection.execute(statement("gateway", "longest_unseen"), {"limit": _LOOKED_AT})
        await _refresh(connection, [found for (found,) in await cursor.fetchall()])
        await connection.execute(statement("gateway", "prune_tasks"), {"keep": keep, "limit": _PRUNED})
        await connection.execute(statement("gateway", "prune_orphans"), {"limit": _PRUNED})


async def waiting_rows(connection: AsyncConnection, collection: Collection) -> int:
    """Returns how many rows wait in the queue; reads all its jobs."""
    cursor = await connection.execute(statement("gateway", "waiting"), {"vectorizer": collection.vectorizer_id})
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def _refresh(connection: AsyncConnection, ids: Sequence[uuid.UUID]) -> None:
    for collection, some in await _by_collection(connection, ids):
        await connection.execute(_over_fates(collection, "look"), {"ids": some, "vectorizer": collection.vectorizer_id})


async def _by_collection(
    connection: AsyncConnection, ids: Sequence[uuid.UUID]
) -> list[tuple[Collection, list[uuid.UUID]]]:
    if not ids:
        return []
    cursor = await connection.execute(statement("gateway", "vectorizers_of"), {"ids": list(ids)})
    of: dict[int, list[uuid.UUID]] = {}
    for task, vectorizer_id in await cursor.fetchall():
        of.setdefault(vectorizer_id, []).append(task)
    return [(one, of[one.vectorizer_id]) for one in await find(connection, vectorizers=list(of))] if of else []


async def _read(connection: AsyncConnection, ids: Sequence[uuid.UUID]) -> list[Task]:
    async with connection.cursor(row_factory=class_row(Task)) as cursor:
        await cursor.execute(statement("gateway", "tasks"), {"ids": list(ids)})
        return await cursor.fetchall()


def _over_fates(collection: Collection, name: str) -> sql.Composed:
    return collection.compose(name, fates=collection.compose("fates"))
