"""Puts the gateway together: pool, routes, and what runs beside the requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

from pgvec_queue import __version__
from pgvec_queue.async_database import async_pool
from pgvec_queue.database import Database
from pgvec_queue.gateway.context import Context
from pgvec_queue.gateway.housekeeping import keep_house
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.gateway.notices import Notices
from pgvec_queue.gateway.overview import Overview, reader
from pgvec_queue.gateway.plans import Plans
from pgvec_queue.gateway.pressure import Pressure
from pgvec_queue.gateway.problems import Problem
from pgvec_queue.gateway.routes import (
    collections,
    dashboard,
    definitions,
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

PREFIX = "/api/v1"
"""Of all endpoints but ``/health``, ``/ready``, ``/metrics``, ``/dashboard`` and ``/docs``."""


def create_app(database: Database, limits: Limits | None = None) -> FastAPI:
    """Returns the ASGI application; connections are made when it starts, and closed when it ends."""
    chosen = limits or Limits()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        pool = async_pool(database, "gateway", size=chosen.pool_size, timeout=chosen.connection_seconds)
        notices = Notices(database)
        async with pool:
            watch = Watch(pool, notices)
            pressure = Pressure(chosen.queued_rows)
            context = app.state.context = Context(database, chosen, pool, notices, watch, pressure)
            house = asyncio.create_task(keep_house(pool, chosen.keep_tasks_days))
            shown = app.state.overview = Overview(reader(pool))
            plans = app.state.plans = Plans(database)
            try:
                async with shown.running():
                    yield
            finally:
                house.cancel()
                with suppress(asyncio.CancelledError):
                    await house
                await watch.close()
                await notices.close()
                await plans.close()
                await context.queries.close()

    app = FastAPI(title="pgvec-queue", version=__version__, lifespan=lifespan)
    app.include_router(health.router)
    app.include_router(dashboard.router)
    for module in (collections, definitions, overview, search, tasks, texts, vectorize, vectorizers, workers):
        app.include_router(module.router, prefix=PREFIX)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    return app


async def _problem(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, Problem)
    return _answer(error.status, error.title, error.detail, dict(error.headers or {}))


async def _invalid(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, RequestValidationError)
    return _answer(422, "The request is not right", "; ".join(map(_line, error.errors()[:5])), {})


def _line(error: dict[str, Any]) -> str:
    place: Sequence[Any] = error["loc"]
    return f"{'.'.join(map(str, place))}: {error['msg']}"


def _answer(status: int, title: str, detail: str | None, headers: dict[str, str]) -> Response:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    # ASCII alone: a name in a request may hold what no encoding has.
    return Response(json.dumps(body), status, headers, "application/problem+json")
