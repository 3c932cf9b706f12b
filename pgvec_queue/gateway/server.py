"""The gateway's process: uvicorn, told what to listen at and when to leave.

First SIGTERM, SIGINT or SIGHUP: no new connections, streams end, requests in flight are answered, within seconds.
Second: it ends at once. What was accepted is in the database either way.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from pgvec_queue.gateway.app import Gateway
from pgvec_queue.gateway.connections import HEAD_BYTES, protocol
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.log import get_logger

log = get_logger("pgvec.gateway")

GRACE_SECONDS = 8
"""How long requests in flight may still take when the gateway leaves."""
KEEP_ALIVE_SECONDS = 15
BACKLOG = 1024
# Most of them wait for something: for the rest of a body, or for the next request.
_CONNECTIONS, _CONNECTIONS_PER_REQUEST = 1_000, 4
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Server(uvicorn.Server):
    """Serves one application at one socket."""

    def __init__(self, app: Gateway, limits: Limits, *, url: str = "", ready: Callable[[], None] | None = None) -> None:
        """``ready`` is called as soon as connections are answered."""
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol(limits),
                ws="none",
                lifespan="on",
                # Our own lines tell of requests; of uvicorn's, only what is an error.
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                # Whoever stands before us, the address of a client is the one that it comes from.
                proxy_headers=False,
                backlog=BACKLOG,
                limit_concurrency=max(_CONNECTIONS, limits.requests * _CONNECTIONS_PER_REQUEST),
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
                h11_max_incomplete_event_size=HEAD_BYTES,
            )
        )
        self._app = app
        self._url = url
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            log.info("gateway is ready", url=self._url)
            if self._ready is not None:
                self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("gateway is leaving")
        self._app.state.streams.end_all()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # uvicorn's own would send itself the signal again at the end, for another exit code.
        before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + number)
        self.should_exit = True
