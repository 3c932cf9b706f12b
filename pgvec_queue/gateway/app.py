"""Puts the gateway together: pool, routes, what stands before them, and what runs beside the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from typing import Any

from anyio import CapacityLimiter
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.process_collector import ProcessCollector

from pgvec_queue import __version__
from pgvec_queue.async_database import AsyncPool, async_pool
from pgvec_queue.database import Database
from pgvec_queue.embedders import DeviceOptions
from pgvec_queue.gateway import openapi, problems
from pgvec_queue.gateway.admission import Admission
from pgvec_queue.gateway.auth import Access, Tokens
from pgvec_queue.gateway.bodies import Bodies
from pgvec_queue.gateway.context import Context
from pgvec_queue.gateway.envelope import Envelope
from pgvec_queue.gateway.fitting import Fitting
from pgvec_queue.gateway.guards import Guards, Streams
from pgvec_queue.gateway.housekeeping import keep_house
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.gateway.metrics import Measures
from pgvec_queue.gateway.notices import Notices
from pgvec_queue.gateway.overview import Overview, reader
from pgvec_queue.gateway.plans import Plans
from pgvec_queue.gateway.preparing import prepare
from pgvec_queue.gateway.pressure import Pressure
from pgvec_queue.gateway.rates import Rates
from pgvec_queue.gateway.routes import (
    collections,
    dashboard,
    definitions,
    docs,
    health,
    overview,
    search,
    tasks,
    texts,
    vectorize,
    vectorizers,
    workers,
)
from pgvec_queue.gateway.watch import Watch
from pgvec_queue.metrics import QueueCollector
from pgvec_queue.queries import QueryEmbedder

PREFIX = "/api/v1"
"""Of all endpoints but ``/health``, ``/ready``, ``/metrics``, ``/dashboard`` and ``/docs``."""
_SCRAPES = 4
# What this program is given is sent nowhere, whatever the environment says.
_NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


class Gateway(FastAPI):
    """The ASGI application."""

    def openapi(self) -> dict[str, Any]:
        """Returns the OpenAPI document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi.complete(super().openapi())
        return self.openapi_schema


def create_app(
    database: Database, limits: Limits | None = None, access: Access | None = None, device: str = "auto"
) -> Gateway:
    """Returns the ASGI application; connections are made when it starts, and closed when it ends.

    ``device`` is where queries are embedded.
    """
    chosen = limits or Limits()
    pool = async_pool(database, "gateway", size=chosen.pool_size, timeout=chosen.connection_seconds)
    tokens = Tokens(pool, timeout=chosen.connection_seconds)
    fitting = Fitting()
    measures = Measures()
    measures.pool = lambda: _of_pool(pool)
    queue = QueueCollector(database)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with closing(queue):
            async with pool:
                notices = Notices(database)
                watch = Watch(pool, notices)
                queries = QueryEmbedder(DeviceOptions(device, runtime="torch"))
                context = Context(database, chosen, pool, notices, watch, Pressure(chosen.queued_rows), queries)
                app.state.context = context
                app.state.readiness = health.Readiness()
                app.state.scrapes = CapacityLimiter(_SCRAPES)
                shown = app.state.overview = Overview(reader(pool))
                plans = app.state.plans = Plans(database)
                house = [
                    asyncio.create_task(fitting.run(pool)),
                    asyncio.create_task(keep_house(pool, chosen.keep_tasks_days)),
                    asyncio.create_task(prepare(pool, queries)),
                ]
                try:
                    async with shown.running():
                        yield
                finally:
                    for task in house:
                        task.cancel()
                        with suppress(asyncio.CancelledError):
                            await task
                    await watch.close()
                    await notices.close()
                    await plans.close()
                    await context.queries.close()
                    await tokens.close()

    app = Gateway(
        title="pgvec-queue",
        version=__version__,
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    app.state.measures = measures
    app.state.streams = Streams(chosen.streams, measures)
    app.state.registry = CollectorRegistry()
    for collector in (queue, measures, ProcessCollector(registry=None)):
        app.state.registry.register(collector)
    problems.install(app)
    # The last one is the outermost.
    app.add_middleware(Guards, limits=chosen, streams=app.state.streams, measures=measures)
    app.add_middleware(Bodies, limits=chosen, measures=measures)
    app.add_middleware(
        Admission,
        access=access or Access(),
        tokens=tokens,
        rates=Rates(chosen.per_minute),
        fitting=fitting,
        measures=measures,
    )
    app.add_middleware(Envelope, measures=measures)
    for module in (health, docs, dashboard):
        app.include_router(module.router)
    for module in (collections, definitions, overview, search, tasks, texts, vectorize, vectorizers, workers):
        app.include_router(module.router, prefix=PREFIX)
    return app


def _of_pool(pool: AsyncPool) -> tuple[int, int]:
    found = pool.get_stats()
    return found.get("pool_size", 0), found.get("requests_waiting", 0)
