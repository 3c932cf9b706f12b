"""``/api/v1/workers``: who works, where, and at what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from psycopg.rows import dict_row
from pydantic import BaseModel, ConfigDict, Field

from pgvec_queue.async_database import async_transaction
from pgvec_queue.database import statement
from pgvec_queue.gateway.auth import requires
from pgvec_queue.gateway.context import Context, context_of

router = APIRouter(tags=["workers"])
In = Annotated[Context, Depends(context_of)]


class Worker(BaseModel):
    """One worker, as `pgvec workers --json` tells of it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"worker_id": 7, "host": "rack-1", "pid": 4711, "state": "working", "jobs": 2}]}
    )

    worker_id: int = Field(description="Its id; a worker that begins anew has another.")
    host: str
    pid: int
    version: str = Field(description="Of pgvec-queue.")
    state: str = Field(description="starting, idle, loading, working, stopping, or gone: its lease ran out.")
    device: str | None = Field(description="cpu, mps or cuda:N; null before a model is loaded.")
    dtype: str | None
    runtime: str | None = Field(description="What computes: torch or openvino.")
    models: list[str] = Field(description="In its memory.")
    vectorizers: list[str] | None = Field(description="Those that it works on; null: all.")
    since_beat_seconds: float = Field(description="Since it was heard of.")
    started_at: float = Field(description="When it registered, in seconds since 1970.")
    memory_bytes: int | None = Field(description="The most memory that its process has had.")
    jobs: int = Field(description="In its hands.")
    waiting_for: str | None = Field(description="Why it makes no progress at present.")
    busy: float | None = Field(description="Share, 0 to 1, of the last minute with a job in which its device worked.")
    rows_per_second: float = Field(description="Rows made right per second, of the last minute.")
    tokens_per_second: float
    vectorizer: str | None = Field(description="Of the job that it claimed first.")
    job_id: int | None
    job_kind: str | None = Field(description="range, keys or sweep.")
    checkpoint: str | None = Field(description="How far that job is committed.")
    leaving: bool = Field(description="It has been told to leave.")


class Workers(BaseModel):
    """All workers, by host and process, those that went within a day too."""

    workers: list[Worker]


@router.get("/workers", dependencies=[Depends(requires("read"))])
async def list_workers(context: In) -> Workers:
    """Every worker: where it runs, what it does, and when it was last heard of."""
    async with context.connection() as connection, async_transaction(connection, read_only=True):
        cursor = connection.cursor(row_factory=dict_row)
        await cursor.execute(statement("overview", "workers"))
        rows = await cursor.fetchall()
    return Workers(workers=[Worker(**row) for row in rows])
