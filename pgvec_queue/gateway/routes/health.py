"""``/health``: the process serves. ``/ready``: database, schema and queue are fit for it. ``/metrics``: for Prometheus.

Whoever asks for readiness at the same time, or within a second, shares one look at the database.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated

import anyio.to_thread
import psycopg
from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import BaseModel, ConfigDict, Field

from pgvec_queue import __version__
from pgvec_queue.async_database import async_transaction
from pgvec_queue.database import one_line, statement
from pgvec_queue.errors import SchemaOutdatedError
from pgvec_queue.exposition import CONTENT_TYPE
from pgvec_queue.gateway.auth import requires
from pgvec_queue.gateway.context import Context, context_of
from pgvec_queue.gateway.fitting import require_schema
from pgvec_queue.gateway.problems import busy
from pgvec_queue.log import get_logger

log = get_logger("pgvec.gateway")

router = APIRouter(tags=["health"])
In = Annotated[Context, Depends(context_of)]

_FRESH = 1.0
_PATIENCE = 3.0


class Health(BaseModel):
    """That the process serves."""

    model_config = ConfigDict(json_schema_extra={"example": {"status": "ok", "version": "0.7.0"}})

    status: str = Field(description="Always ok.")
    version: str = Field(description="Of the gateway.")


class Ready(BaseModel):
    """That requests can be done."""

    model_config = ConfigDict(json_schema_extra={"example": {"status": "ready", "revision": "0008"}})

    status: str = Field(description="Always ready.")
    revision: str = Field(description="Of the schema pgvec.")


class Readiness:
    """Looks whether the database can be used, at most once a second."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._until = 0.0
        self._trouble: str | None = None
        self._told: str | None = None
        self.revision = ""
        """Of the schema, as it was seen last."""

    async def trouble(self, context: Context) -> str | None:
        """Returns why requests cannot be done; None where they can."""
        async with self._lock:
            if time.monotonic() >= self._until:
                self._trouble = await self._look(context)
                self._until = time.monotonic() + _FRESH
                self._tell()
            return self._trouble

    async def _look(self, context: Context) -> str | None:
        try:
            async with asyncio.timeout(_PATIENCE), context.connection() as connection:
                self.revision = await require_schema(connection)
                async with async_transaction(connection, read_only=True):
                    row = await (await connection.execute(statement("health", "queue"))).fetchone()
        except TimeoutError:
            return "the database does not answer"
        except SchemaOutdatedError as error:
            return str(error)
        except psycopg.Error as error:
            if error.sqlstate is None:
                return "the database cannot be reached"
            return f"the queue cannot be read: {one_line(error)}"
        standby, allowed, _ = row or (False, False, False)
        if standby:
            return "the database is a standby, which takes no writes"
        return None if allowed else "the role of the gateway may not write to pgvec.jobs"

    def _tell(self) -> None:
        if self._trouble != self._told and self._trouble is not None:
            log.warning("gateway is not ready", error=self._trouble)
        elif self._trouble != self._told:
            log.info("gateway is ready again")
        self._told = self._trouble


def readiness_of(request: Request) -> Readiness:
    """What the gateway knows of it: a dependency of the endpoint."""
    found = request.app.state.readiness
    assert isinstance(found, Readiness)
    return found


@router.get("/health", summary="Whether the process serves")
async def health() -> Health:
    """The process serves; whether its database does is `/ready`."""
    return Health(status="ok", version=__version__)


@router.get(
    "/ready",
    summary="Whether requests can be done",
    responses={503: {"description": "They cannot; `detail` says why."}},
)
async def ready(context: In, readiness: Annotated[Readiness, Depends(readiness_of)]) -> Ready:
    """The database answers and takes writes, the schema is one that this program works with, the queue can be read."""
    trouble = await readiness.trouble(context)
    if trouble is not None:
        raise busy(trouble)
    return Ready(status="ready", revision=readiness.revision)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    dependencies=[Depends(requires("read"))],
    response_class=Response,
    responses={200: {"description": "Of the queue and of this gateway.", "content": {"text/plain": {}}}},
)
async def metrics(request: Request) -> Response:
    """The metrics of the whole queue, as of `pgvec exporter`, and the gateway's own, in Prometheus's text format.

    While the queue cannot be read, `pgvec_up` is 0.
    """
    registry: CollectorRegistry = request.app.state.registry
    text = await anyio.to_thread.run_sync(partial(generate_latest, registry), limiter=request.app.state.scrapes)
    return Response(text, headers={"Content-Type": CONTENT_TYPE})
