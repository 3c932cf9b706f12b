"""How many requests are answered at the same time, for how long, and how many streams of events are open.

A request that is a stream gives its place back when it begins to stream: it is counted with the streams from then on,
and no clock runs for it. Streams end when the gateway does, in order: with the end of their answer.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgvec_queue.gateway import problems
from pgvec_queue.gateway.admission import PROBES
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.gateway.metrics import Measures


class _NoRoomError(Exception):
    """There is no room for another stream."""


class Streams:
    """The open streams of one gateway."""

    def __init__(self, most: int, measures: Measures) -> None:
        self._most = most
        self._measures = measures
        self._open: set[asyncio.Timeout] = set()
        self._ending = False

    def begin(self, stream: asyncio.Timeout) -> None:
        """Lets it run without a time limit. Raises where there are too many, or the gateway ends."""
        if self._ending or len(self._open) >= self._most:
            raise _NoRoomError
        stream.reschedule(None)
        self._open.add(stream)
        self._measures.streams = len(self._open)

    def ended(self, stream: asyncio.Timeout) -> None:
        self._open.discard(stream)
        self._measures.streams = len(self._open)

    def end_all(self) -> None:
        """Ends them and lets no other begin."""
        self._ending = True
        now = asyncio.get_running_loop().time()
        for stream in self._open:
            stream.reschedule(now)


class Guards:
    """Takes a place for each request."""

    def __init__(self, app: ASGIApp, *, limits: Limits, streams: Streams, measures: Measures) -> None:
        self._app = app
        self._limits = limits
        self._streams = streams
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        if self._measures.in_flight >= self._limits.requests:
            self._measures.rejected("busy")
            problem = problems.busy("the gateway is busy with other requests", seconds=1)
            await problems.response(problem)(scope, receive, send)
            return
        await _Place(self._app, self._limits, self._streams, self._measures).serve(scope, receive, send)


class _Place:
    """The place of one request."""

    def __init__(self, app: ASGIApp, limits: Limits, streams: Streams, measures: Measures) -> None:
        self._app = app
        self._limits = limits
        self._streams = streams
        self._measures = measures
        self._started = False
        self._streaming = False

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._measures.in_flight += 1
        deadline = asyncio.timeout(self._limits.request_seconds)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                if Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream"):
                    self._streams.begin(deadline)
                    self._streaming = True
                    self._measures.in_flight -= 1
                self._started = True
            await send(message)

        try:
            async with deadline:
                await self._app(scope, receive, sending)
        except _NoRoomError:
            self._measures.rejected("streams")
            await problems.response(problems.busy("too many streams are open"))(scope, receive, send)
        except TimeoutError:
            if not deadline.expired():
                raise
            await self._stop(scope, receive, send)
        finally:
            if self._streaming:
                self._streams.ended(deadline)
            else:
                self._measures.in_flight -= 1

    async def _stop(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._streaming:
            # The end of a stream is one like any other; the client may begin it again elsewhere.
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif not self._started:
            self._measures.rejected("timeout")
            detail = f"it took longer than {self._limits.request_seconds:g} s"
            await problems.response(problems.busy(detail, status=504))(scope, receive, send)
