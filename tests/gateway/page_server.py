"""A gateway for tests: the application behind a real uvicorn, in a thread, at a free port."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import psycopg
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from pgvec_queue.database import Database
from pgvec_queue.gateway.app import create_app
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.gateway.problems import Problem
from tests.support import Bench
from tests.waiting import wait_until


class Served:
    """A running gateway: its address, its application, and a client for it."""

    def __init__(self, app: FastAPI, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.app = app
        self.url = f"http://127.0.0.1:{port}"
        self.loop = loop
        self.client = httpx2.Client(base_url=self.url, timeout=30)

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.client.get(path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> httpx2.Response:
        return self.client.post(path, json=json, **options)


@contextmanager
def serving(
    dsn: str, limits: Limits | None = None, change: Callable[[FastAPI], None] | None = None, port: int = 0
) -> Iterator[Served]:
    """Serves the database until the block ends; ``change`` may add to the application before it begins."""
    app = create_app(Database(dsn), limits)
    if Problem not in app.exception_handlers:

        @app.exception_handler(Problem)
        async def answer(request: Request, problem: Problem) -> JSONResponse:
            content = {"title": problem.title, "status": problem.status, "detail": problem.detail}
            return JSONResponse(content, problem.status, problem.headers, "application/problem+json")

    if change is not None:
        change(app)
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, lifespan="on")
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="gateway")
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), what="the gateway's start")
        served = Served(app, listener.getsockname()[1], loops[0])
        with served.client:
            yield served
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def closed(bench: Bench) -> Iterator[None]:
    """Lets nobody connect to the test's database, and ends the gateway's connections, until the block ends."""
    name = bench.connection.info.dbname
    statement = 'ALTER DATABASE "{}" ALLOW_CONNECTIONS {}'
    with psycopg.connect(bench.dsn.replace(name, "postgres"), autocommit=True) as connection:
        connection.execute(statement.format(name, "false").encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = %s AND application_name LIKE 'pgvec gateway%%'",
            [name],
        )
        try:
            yield
        finally:
            connection.execute(statement.format(name, "true").encode())
