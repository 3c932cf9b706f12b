"""``/api/v1/vectorizers``: how far each is, its documents in quarantine, and steering it."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any, Literal

import psycopg
from fastapi import APIRouter, Depends, Path, Query
from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.config import JsonDict

from pgvec_queue import progress
from pgvec_queue.async_database import AsyncConnection, async_transaction
from pgvec_queue.database import statement
from pgvec_queue.gateway.auth import requires
from pgvec_queue.gateway.context import Context, context_of
from pgvec_queue.gateway.problems import Problem

router = APIRouter(tags=["vectorizers"])
In = Annotated[Context, Depends(context_of)]
Name = Annotated[str, Path(description="The vectorizer's name.", examples=["articles"])]

MOST_FAILURES = 500
_EXAMPLE: JsonDict = {
    "name": "articles",
    "state": "active",
    "reason": None,
    "rows_total": 100000,
    "rows_done": 48800,
    "rows_failed": 3,
    "chunks": 61204,
    "jobs": {"queued": 45, "running": 8, "done": 48, "cancelled": 0},
    "rows_per_second": 604.0,
    "eta_seconds": 91.0,
    "eta_low_seconds": 73.0,
    "eta_high_seconds": 119.0,
}


class VectorizerProgress(BaseModel):
    """How far a vectorizer is: what `pgvec status --json` says."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: str
    state: Literal["active", "paused", "blocked", "cancelled", "complete"]
    reason: str | None = Field(description="Why nothing moves, and what to do; null: nothing is wrong.")
    rows_total: int = Field(description="Selected rows.")
    rows_done: int = Field(description="Rows whose chunks are right, those of blank text included.")
    rows_failed: int = Field(description="Rows in quarantine.")
    chunks: int = Field(description="In the destination.")
    tokens: int = Field(description="Embedded since it was made.")
    jobs: dict[str, int] = Field(description="By state: queued, running, done, cancelled.")
    rows_per_second: float = Field(description="Of the last minute.")
    rows_per_second_15m: float = Field(description="Of those of the last 15 minutes in which something moved.")
    chunks_per_second: float
    tokens_per_second: float
    eta_seconds: float | None = Field(description="Time left; null: nothing moves.")
    eta_low_seconds: float | None
    eta_high_seconds: float | None
    plan_complete: bool = Field(description="All jobs of the last enqueue are planned.")
    rows_embedded: int
    rows_truncated: int = Field(description="Rows that were cut to what the model reads.")
    rows_wasted: int = Field(description="Rows embedded whose vectors were thrown away.")
    chunks_reused: int = Field(description="Chunks that took the vector of an identical one.")
    bytes_written: int
    jobs_reclaimed: int = Field(description="Taken back from workers that were gone.")
    sync: bool = Field(description="Triggers of the source queue its changes.")
    lag_seconds: float | None = Field(description="Age of the oldest live change that is not in the destination.")
    priority: int = Field(description="Higher goes first.")
    rows_per_second_limit: float | None
    source: str
    destination: str
    model: str
    rows_unchanged: int = Field(description="Rows found as they were when they were embedded, and blank ones.")
    chunks_kept: int = Field(description="Chunks of changed documents that kept their vector.")
    chunks_cached: int = Field(description="Chunks whose vector a worker remembered.")
    rows_adopted: int = Field(description="Rows whose vectors were there before, and were taken over.")
    index: dict[str, JsonValue] | None = Field(
        description="The index on its vectors: state (unwanted, wanted, building, built, refused, missing), reason, "
        "share, size_bytes, recall; null: nothing was ever said of one."
    )


class Vectorizers(BaseModel):
    """All vectorizers, by name."""

    vectorizers: list[VectorizerProgress]


class Failure(BaseModel):
    """One document in quarantine."""

    key: list[str] = Field(description="Of its row in the source.", examples=[["4711"]])
    error_class: str
    message: str
    model: str
    attempts: int
    first_at: float = Field(description="Seconds since 1970.")
    last_at: float


class Failures(BaseModel):
    """A page of the quarantine, by key."""

    failures: list[Failure]
    next_cursor: str | None = Field(description="For the next page; null: this was the last.")


class Retry(BaseModel):
    """Which documents to try again."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"error_class": "TooLongError"}]})

    error_class: str | None = Field(None, description="Those of this error class; null: all.", max_length=1_000)


class Retried(BaseModel):
    """What became of it."""

    documents: int = Field(description="Taken out of quarantine and queued.")


READ = [Depends(requires("read"))]
ADMIN = [Depends(requires("admin"))]
NAMED: dict[int | str, dict[str, Any]] = {404: {"description": "There is no vectorizer of that name."}}


@router.get("/vectorizers", dependencies=READ)
async def list_vectorizers(context: In) -> Vectorizers:
    """Every vectorizer: how far it is, how fast, when it ends, and why nothing moves."""
    return Vectorizers(vectorizers=await _progress(context, None))


@router.get("/vectorizers/{name:path}/failures", dependencies=READ, responses=NAMED)
async def list_failures(
    context: In,
    name: Name,
    limit: Annotated[int, Query(ge=1, le=MOST_FAILURES, description="Documents in the page.")] = 100,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.", max_length=16_384)] = None,
    error_class: Annotated[str | None, Query(description="Only those of this class.", max_length=1_000)] = None,
) -> Failures:
    """The documents in quarantine, by key, a page at a time."""
    _refuse_nul(error_class)
    after = None if cursor is None else _decoded(cursor)
    async with context.connection() as connection, async_transaction(connection, read_only=True):
        found = connection.cursor(row_factory=dict_row)
        await found.execute(
            statement("overview", "failures_page"),
            {
                "id": await _id(connection, name),
                "after": after,
                "error_class": error_class,
                # One more tells whether there is another page.
                "limit": limit + 1,
            },
        )
        rows = await found.fetchall()
    more = len(rows) > limit
    page = [Failure(**row) for row in rows[:limit]]
    return Failures(failures=page, next_cursor=_encoded(page[-1].key) if more else None)


@router.post("/vectorizers/{name:path}/pause", dependencies=ADMIN, responses=NAMED)
async def pause(context: In, name: Name) -> VectorizerProgress:
    """Workers claim no more of its jobs, and give back the ones they have, within two seconds."""
    return await _steered(context, name, "pause")


@router.post("/vectorizers/{name:path}/resume", dependencies=ADMIN, responses=NAMED)
async def resume(context: In, name: Name) -> VectorizerProgress:
    """Lets it go on after a pause, a block or a cancellation."""
    return await _steered(context, name, "resume")


@router.post("/vectorizers/{name:path}/retry", dependencies=ADMIN, responses=NAMED)
async def retry(context: In, name: Name, which: Retry | None = None) -> Retried:
    """Takes documents out of quarantine, all or those of one error class, and queues them."""
    error_class = which.error_class if which else None
    _refuse_nul(error_class)
    seconds = context.limits.request_seconds
    async with context.connection() as connection, async_transaction(connection, statement_timeout=seconds):
        await _id(connection, name)
        ran = await connection.execute(statement("vectorizer", "retry"), {"name": name, "error_class": error_class})
        row = await ran.fetchone()
    return Retried(documents=row[0] if row else 0)


@router.get("/vectorizers/{name:path}", dependencies=READ, responses=NAMED)
async def show_vectorizer(context: In, name: Name) -> VectorizerProgress:
    """One vectorizer: how far it is, how fast, when it ends, and why nothing moves."""
    return await _one(context, name)


async def _progress(context: Context, name: str | None) -> list[VectorizerProgress]:
    async with context.connection() as connection, async_transaction(connection, read_only=True):
        cursor = connection.cursor(row_factory=dict_row)
        await cursor.execute(statement("progress", "progress"), {"name": name})
        rows = await cursor.fetchall()
    return [VectorizerProgress(**one.as_json()) for one in progress.from_rows(rows)]


async def _one(context: Context, name: str) -> VectorizerProgress:
    found = [] if "\0" in name else await _progress(context, name)
    if not found:
        raise unknown(name)
    return found[0]


async def _steered(context: Context, name: str, action: Literal["pause", "resume"]) -> VectorizerProgress:
    try:
        async with context.connection() as connection, async_transaction(connection):
            await _id(connection, name)
            await connection.execute(statement("vectorizer", action), {"name": name})
    except psycopg.errors.LockNotAvailable:
        raise Problem(503, f"somebody has the row of {name!r} locked; try again", {"Retry-After": "5"}) from None
    return await _one(context, name)


async def _id(connection: AsyncConnection, name: str) -> int:
    """Returns the vectorizer's id. Raises ``Problem`` 404 where there is none of that name."""
    if "\0" not in name:
        cursor = await connection.execute(statement("overview", "vectorizer_id"), {"name": name})
        row = await cursor.fetchone()
        if row is not None:
            return int(row[0])
    raise unknown(name)


def unknown(name: str) -> Problem:
    return Problem(404, f"no vectorizer is called {name!r}")


def _refuse_nul(text: str | None) -> None:
    if text is not None and "\0" in text:
        raise Problem(422, "PostgreSQL's text holds no NUL; leave it out")


def _encoded(key: list[str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(key, ensure_ascii=False).encode()).decode().rstrip("=")


def _decoded(cursor: str) -> list[str]:
    """Returns the key that a cursor stands for. Raises ``Problem`` 422 for what is none of ours."""
    try:
        found: Any = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        found = None
    if not (isinstance(found, list) and found and all(isinstance(part, str) and _storable(part) for part in found)):
        raise Problem(422, "the cursor is not one that a page before has given")
    return found


def _storable(text: str) -> bool:
    """Whether PostgreSQL's text can hold it: no NUL, and no half of a surrogate pair."""
    return "\0" not in text and text.encode("utf-8", "ignore").decode() == text
