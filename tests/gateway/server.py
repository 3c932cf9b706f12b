"""What tests of texts and tasks share: a gateway in a thread, or as a process that can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from pgvec_queue.database import Database
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.worker import Worker, WorkerOptions
from tests.gateway import serving as gateway
from tests.waiting import wait_until

MODEL = "hashing-8"
API = "/api/v1"


@contextmanager
def serving(dsn: str, **limits: Any) -> Iterator[httpx2.Client]:
    """A gateway in a thread of this process; yields a client of it."""
    limits.setdefault("models", (MODEL,))
    with gateway.serving(dsn, Limits(**limits)) as served:
        served.client.timeout = 60
        yield served.client


class Process:
    """A gateway as a process of its own."""

    def __init__(self, dsn: str) -> None:
        self.port = free_port()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pgvec_queue", "serve", "--port", str(self.port), "--model", MODEL],
            env={**os.environ, "PGVEC_DSN": dsn},
        )
        wait_until(self._answers, 30, what="the gateway's start")

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        assert self._process.poll() is None
        try:
            with self.client() as client:
                return client.get("/health").status_code == 200
        except httpx2.TransportError:
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def working(dsn: str, **options: Any) -> Iterator[None]:
    """A worker in a thread."""
    worker = Worker(Database(dsn), WorkerOptions(**options))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()


def post(client: httpx2.Client, texts: list[str], **more: Any) -> httpx2.Response:
    """Posts texts to be embedded; ``params`` and ``headers`` are the request's, all else is the body's."""
    parameters, headers = more.pop("params", {}), more.pop("headers", {})
    return client.post(f"{API}/vectorize", json={"texts": texts, **more}, params=parameters, headers=headers)


def accepted(client: httpx2.Client, texts: list[str], **more: Any) -> dict[str, Any]:
    """Posts texts, which have to be accepted; returns the task."""
    answer = post(client, texts, **more)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def status(client: httpx2.Client, task: str) -> dict[str, Any]:
    answer = client.get(f"{API}/tasks/{task}/status")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ended(client: httpx2.Client, task: str, timeout: float = 30) -> dict[str, Any]:
    """Waits for a task's end; returns its status."""
    wait_until(lambda: status(client, task)["finished_at"], timeout, what=f"the end of task {task}")
    return status(client, task)


def vectors(client: httpx2.Client, task: str, limit: int = 100) -> list[dict[str, Any]]:
    """Returns all vectors of a task that has ended, page by page."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        parameters = {"limit": str(limit), **({"cursor": cursor} if cursor else {})}
        answer = client.get(f"{API}/tasks/{task}/result", params=parameters)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found.extend(page["vectors"])
        cursor = page["next"]
        if cursor is None:
            return found
