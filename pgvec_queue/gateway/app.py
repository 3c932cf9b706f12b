"""Puts the gateway together: pool, routes, and what runs beside the requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from pgvec_queue import __version__
from pgvec_queue.async_database import async_pool
from pgvec_queue.database import Database
from pgvec_queue.gateway.context import Context
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.gateway.overview import Overview, reader
from pgvec_queue.gateway.plans import Plans
from pgvec_queue.gateway.routes import dashboard, definitions, health, overview, search, vectorizers, workers

PREFIX = "/api/v1"
"""Of all endpoints but ``/health``, ``/ready``, ``/metrics``, ``/dashboard`` and ``/docs``."""


def create_app(database: Database, limits: Limits | None = None) -> FastAPI:
    """Returns the ASGI application; connections are made when it starts, and closed when it ends."""
    chosen = limits or Limits()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = async_pool(database, "gateway", size=chosen.pool_size, timeout=chosen.connection_seconds)
        async with pool:
            context = app.state.context = Context(database, chosen, pool)
            shown = app.state.overview = Overview(reader(pool))
            plans = app.state.plans = Plans(database)
            try:
                async with shown.running():
                    yield
            finally:
                await plans.close()
                await context.queries.close()

    app = FastAPI(title="pgvec-queue", version=__version__, lifespan=lifespan)
    app.include_router(health.router)
    app.include_router(dashboard.router)
    for module in (overview, definitions, search, vectorizers, workers):
        app.include_router(module.router, prefix=PREFIX)
    return app
