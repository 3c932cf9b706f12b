"""Tasks: how far they are, what has come of them, and no more of them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from pgvec_queue import tasks
from pgvec_queue.async_database import AsyncConnection, async_transaction
from pgvec_queue.gateway import checks
from pgvec_queue.gateway.auth import requires
from pgvec_queue.gateway.context import Context, context_of
from pgvec_queue.gateway.problems import Problem
from pgvec_queue.tasks import Task

router = APIRouter(prefix="/tasks", tags=["tasks"])
In = Annotated[Context, Depends(context_of)]
TaskId = Annotated[uuid.UUID, Path(description="The task's id, from the answer that accepted the texts.")]
Reads = Depends(requires("read"))

HEARTBEAT_SECONDS = 15.0
_MOST = 1_000
_CURSOR = "Of the page before: its next."
_GONE: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such task."}}


class Counts(BaseModel):
    """What has become of the texts; together they are all of them."""

    waiting: int = Field(description="Not embedded yet.")
    done: int = Field(description="Embedded.")
    failed: int = Field(description="In quarantine; see errors.")
    skipped: int = Field(description="Without a vector, since they are blank.")
    superseded: int = Field(description="Updated or deleted before they were embedded.")
    cancelled: int = Field(description="Not embedded, since the task was cancelled.")


class TextProblem(BaseModel):
    """A text that could not be embedded."""

    ordinal: int = Field(description="Its place in the request, from 0.")
    id: str
    error: str = Field(description="The kind of the error.")
    message: str


class TaskStatus(BaseModel):
    """A task as it stands."""

    model_config = ConfigDict(protected_namespaces=())

    task_id: uuid.UUID
    state: Literal["queued", "running", "done", "failed", "cancelled"] = Field(
        description="failed: every text has been tried, and some are in quarantine."
    )
    reason: str | None = Field(None, description="Why nothing moves, where that is plain.")
    collection: str
    model: str
    batch_size: int | None = None
    texts: int
    counts: Counts
    progress: float = Field(description="0 to 1.")
    texts_per_second: float = Field(description="Embedded, from the request to the end or until now.")
    created_at: datetime
    finished_at: datetime | None = None
    errors: list[TextProblem] = Field(default=[], description=f"The first {tasks.MOST_ERRORS}.")
    links: dict[str, str]


class TaskList(BaseModel):
    """A page of tasks, newest first."""

    tasks: list[TaskStatus]
    next: str | None = Field(None, description="The cursor of the next page; none: this was the last.")


class Vector(BaseModel):
    """The vector of one chunk."""

    ordinal: int = Field(description="The text's place in the request, from 0.")
    id: str
    chunk_index: int
    chunk: str
    embedding: list[float]


class TaskResult(BaseModel):
    """A page of vectors, in the order of the request."""

    task_id: uuid.UUID
    state: str
    vectors: list[Vector]
    next: str | None = Field(
        None, description="The cursor of what comes next; none: there is no more. An unfinished task always has one."
    )


@router.get("", dependencies=[Reads])
async def list_tasks(
    gateway: In,
    state: Annotated[
        Literal["queued", "running", "done", "failed", "cancelled"] | None,
        Query(description="Only tasks in this state."),
    ] = None,
    collection: Annotated[str | None, Query(max_length=63, description="Only tasks of this collection.")] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST, description="The most tasks in a page.")] = 50,
    cursor: Annotated[str | None, Query(max_length=1_000, description=_CURSOR)] = None,
) -> TaskList:
    """Lists tasks, newest first; without the errors of single texts."""
    before = None
    if cursor is not None:
        time, id_ = checks.read_cursor(cursor, str, str)
        try:
            before = (datetime.fromisoformat(time).isoformat(), uuid.UUID(id_))
        except ValueError:
            raise checks.wrong("cursor is none that this endpoint has given; leave it out to begin anew") from None
    if collection is not None:
        checks.storable(collection, "collection")
    async with gateway.connection() as connection:
        found = await tasks.page(connection, state=state, collection=collection, before=before, limit=limit)
    last = found[-1] if len(found) == limit else None
    return TaskList(
        tasks=[_status(task) for task in found],
        next=None if last is None else checks.cursor(last.created_at.isoformat(), str(last.id)),
    )


@router.get("/{task_id}/status", dependencies=[Reads], responses=_GONE)
async def status(gateway: In, task_id: TaskId) -> TaskStatus:
    """Tells how far a task is."""
    async with gateway.connection() as connection:
        return await status_of(connection, task_id)


@router.get(
    "/{task_id}/result",
    dependencies=[Reads],
    response_model=TaskResult,
    responses={
        **_GONE,
        409: {"description": "The collection has been switched to another model since the page that gave the cursor."},
    },
)
async def result(
    gateway: In,
    task_id: TaskId,
    limit: Annotated[int, Query(ge=1, le=_MOST, description="A page of large vectors may be shorter.")] = 100,
    cursor: Annotated[str | None, Query(max_length=1_000, description=_CURSOR)] = None,
) -> Response:
    """Returns vectors in the order of the request, up to the first text that still waits.

    Follow `next` until there is none: each vector comes once, also while the task is running.
    """
    after, whose = (-1, -1), 0
    if cursor is not None:
        ordinal, chunk, whose = checks.read_cursor(cursor, int, int, int)
        after = (ordinal, chunk)
    async with gateway.connection() as connection:
        task = await _task(connection, task_id)
        found = await tasks.result(connection, task, after=after, limit=limit)
    if whose and found.vectorizer_id not in (0, whose):
        raise Problem(
            409,
            f"the collection {task.collection!r} has been switched to another model since the first page; read the "
            "result from its beginning again, without cursor",
        )
    last = found.last or after
    following = None if task.finished and not found.more else f'"{checks.cursor(*last, found.vectorizer_id)}"'
    # The vectors are JSON as they come from the database: reading and writing them again would take most of the time.
    body = (
        f'{{"task_id":"{task.id}","state":"{task.state}","vectors":[{",".join(found.items)}],'
        f'"next":{following or "null"}}}'
    )
    return Response(body, media_type="application/json")


@router.delete("/{task_id}", dependencies=[Depends(requires("write"))], responses=_GONE)
async def cancel(gateway: In, task_id: TaskId) -> TaskStatus:
    """Cancels a task: what is not embedded yet leaves the collection; what is, stays. Twice is as good as once."""
    async with gateway.connection() as connection:
        if await tasks.cancel(connection, task_id) is None:
            raise _unknown(task_id)
        return await status_of(connection, task_id)


@router.get(
    "/{task_id}/events",
    dependencies=[Reads],
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {}}, "description": "`status` events, and `end` after the last."},
        **_GONE,
    },
)
async def events(gateway: In, task_id: TaskId) -> StreamingResponse:
    """Streams the task's status: at once, then whenever it changes, until it has ended."""
    async with gateway.connection() as connection:
        first = await _task(connection, task_id)
    return StreamingResponse(
        _events(gateway, first),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(gateway: Context, task: Task) -> AsyncIterator[str]:
    shown: str | None = None
    async with gateway.watch.follow(task.id) as follower:
        current: Task | None = task
        while current is not None:
            event = _status(current).model_dump_json(exclude={"texts_per_second"})
            if event != shown:
                shown = event
                yield f"event: status\ndata: {_status(current).model_dump_json()}\n\n"
            if current.finished:
                break
            while True:
                try:
                    current = await asyncio.wait_for(follower.next(), HEARTBEAT_SECONDS)
                    break
                except TimeoutError:
                    yield ": still here\n\n"
    yield "event: end\ndata: {}\n\n"


async def follow_to_end(gateway: Context, id_: uuid.UUID, seconds: float) -> TaskStatus | None:
    """Waits for a task's end, so long at most; returns its last status, None where there was none."""
    seen: Task | None = None
    try:
        async with asyncio.timeout(seconds), gateway.watch.follow(id_) as follower:
            while (found := await follower.next()) is not None:
                seen = found
                if found.finished:
                    break
    except TimeoutError:
        pass
    if seen is None:
        return None
    async with gateway.connection() as connection:
        return await _with_errors(connection, seen)


async def status_of(connection: AsyncConnection, id_: uuid.UUID) -> TaskStatus:
    """Returns a task's status with its errors. Raises ``Problem`` 404."""
    return await _with_errors(connection, await _task(connection, id_))


async def _task(connection: AsyncConnection, id_: uuid.UUID) -> Task:
    found = await tasks.look(connection, [id_])
    if not found:
        raise _unknown(id_)
    return found[0]


async def _with_errors(connection: AsyncConnection, task: Task) -> TaskStatus:
    status = _status(task)
    if task.failed:
        async with async_transaction(connection, read_only=True):
            found = await tasks.errors(connection, task.id)
        status.errors = [
            TextProblem(ordinal=one.ordinal, id=one.id, error=one.error_class, message=one.message) for one in found
        ]
    return status


def _unknown(id_: uuid.UUID) -> Problem:
    return Problem(404, f"no task has the id {id_}; tasks are removed some days after their end")


def _status(task: Task) -> TaskStatus:
    base = f"/api/v1/tasks/{task.id}"
    return TaskStatus.model_validate(
        {
            "task_id": task.id,
            "state": task.state,
            "reason": task.reason,
            "collection": task.collection,
            "model": task.model,
            "batch_size": task.batch_size,
            "texts": task.texts,
            "counts": Counts(
                waiting=task.waiting,
                done=task.done,
                failed=task.failed,
                skipped=task.skipped,
                superseded=task.superseded,
                cancelled=task.cancelled,
            ),
            "progress": round(1 - task.waiting / task.texts, 4) if task.texts else 1.0,
            "texts_per_second": round(task.done / task.seconds, 3) if task.seconds > 0 else 0.0,
            "created_at": task.created_at,
            "finished_at": task.finished_at,
            "links": {name: f"{base}/{name}" for name in ("status", "result", "events")},
        }
    )
