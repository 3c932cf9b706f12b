"""Connections of clients that take their time: uvicorn's HTTP protocol, and clocks for what it waits for without one.

A head that does not arrive, the rest of a body whose answer was given already, and an answer that nobody reads each
have a time, after which the connection is cut. Idle connections between two requests have uvicorn's own clock.
"""

from __future__ import annotations

import asyncio
import socket
from typing import ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from pgvec_queue.gateway.limits import Limits

HEAD_BYTES = 16 * 1024
"""Of a request line and its headers."""


class PatientProtocol(H11Protocol):
    """One connection."""

    head_seconds: ClassVar[float] = Limits().head_seconds
    unread_seconds: ClassVar[float] = Limits().unread_seconds
    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        kernel = transport.get_extra_info("socket")
        if kernel is not None and kernel.family != socket.AF_UNIX:
            # asyncio does it only for sockets that were made with a protocol's number. Head and body of an answer are
            # two writes: otherwise the second waits for the client's delayed acknowledgement of the first, 40 ms.
            kernel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A client that has vanished is seen by the system, even while only a heartbeat is sent to it.
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                kernel.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(self.unread_seconds * 1000))
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._forget_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.unread_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_unread()

    def _watch(self) -> None:
        """Has a clock run while the client is to send something, and nothing else is being waited for."""
        answering = self.cycle is not None and not self.cycle.response_complete
        idle = self.timeout_keep_alive_task is not None
        if answering or idle or self.transport.is_closing():
            self._forget_head()
        elif self._head is None:
            self._head = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


def protocol(limits: Limits) -> type[PatientProtocol]:
    """Returns the protocol with the times of these limits."""
    times = {"head_seconds": limits.head_seconds, "unread_seconds": limits.unread_seconds}
    return type("PatientProtocol", (PatientProtocol,), times)
