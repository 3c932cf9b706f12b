"""A gateway for a test: uvicorn in a thread, at a free port, over the test's database."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import psycopg

from pgvec_queue import listening
from pgvec_queue.database import Database
from pgvec_queue.gateway.app import Gateway, create_app
from pgvec_queue.gateway.auth import Access
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.gateway.server import BACKLOG, Server
from tests.support import Bench


@dataclass
class Served:
    """A running gateway, and a client of it."""

    app: Gateway
    server: Server
    host: str
    port: int
    client: httpx2.Client

    @property
    def url(self) -> str:
        return f"http://{listening.named(self.host)}:{self.port}"

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.client.get(path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> httpx2.Response:
        return self.client.post(path, json=json, **options)


@contextmanager
def serving(
    dsn: str,
    limits: Limits | None = None,
    access: Access | None = None,
    *,
    app: Gateway | None = None,
    change: Callable[[Gateway], None] | None = None,
    port: int = 0,
) -> Iterator[Served]:
    """Serves while inside; ``app`` takes the place of one with the routes that there are, ``change`` may add to it."""
    limits = limits or Limits()
    app = app or create_app(Database(dsn), limits, access)
    if change is not None:
        change(app)
    listener = listening.bind(listening.find("127.0.0.1", port), backlog=BACKLOG)
    host, port = listener.getsockname()[:2]
    ready = threading.Event()
    server = Server(app, limits, ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="gateway")
    thread.start()
    try:
        assert ready.wait(20), "the gateway did not start"
        with httpx2.Client(base_url=f"http://{host}:{port}", timeout=30, trust_env=False) as client:
            yield Served(app, server, host, port, client)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive(), "the gateway did not end"


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
