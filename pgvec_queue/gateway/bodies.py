"""Bodies of requests: read whole before anybody waits for them, within bounds of size, time and memory, and only if
they are JSON that every part of the program can take.

What is refused here would be an error further in: NaN, lone surrogates, a depth that ends the interpreter's
patience. Further in, no connection is taken and no slot is held while a client is slow.
"""

from __future__ import annotations

import asyncio
import re

from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pgvec_queue.gateway import problems
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.gateway.metrics import Measures
from pgvec_queue.gateway.problems import Problem

_JSON = re.compile(r"application/(?:[\w.+-]+\+)?json", re.IGNORECASE)
_OVERFLOW = re.compile(rb"\d[eE]\+?\d{3}|\d{300}")


class _GoneError(Exception):
    """The client has left."""


class Bodies:
    """Reads the body of each request and hands it on whole."""

    def __init__(self, app: ASGIApp, *, limits: Limits, measures: Measures) -> None:
        self._app = app
        self._limits = limits
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if "content-length" not in headers and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            try:
                self._check_head(headers)
                async with asyncio.timeout(self._limits.body_seconds):
                    await self._read(receive, body)
                if body:
                    _check(headers, body)
            except TimeoutError:
                self._measures.rejected("slow")
                detail = f"the body did not arrive within {self._limits.body_seconds:g} s"
                await problems.response(Problem(408, detail))(scope, receive, send)
            except Problem as problem:
                await problems.response(problem)(scope, receive, send)
            except _GoneError:
                return
            else:
                await self._app(scope, _replay(bytes(body), receive), send)
        finally:
            self._measures.bodies_bytes -= len(body)

    def _check_head(self, headers: Headers) -> None:
        # What it is encoded with could make a thousand times as much of it.
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Problem(415, "send the body as it is, without Content-Encoding")
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self._limits.body_bytes:
            raise self._too_large()

    async def _read(self, receive: Receive, body: bytearray) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            part = message.get("body", b"")
            if len(body) + len(part) > self._limits.body_bytes:
                raise self._too_large()
            if self._measures.bodies_bytes + len(part) > self._limits.bodies_bytes:
                self._measures.rejected("memory")
                raise problems.busy("the gateway holds as much as it may; try again")
            body += part
            self._measures.bodies_bytes += len(part)
            if not message.get("more_body", False):
                return

    def _too_large(self) -> Problem:
        self._measures.rejected("body")
        return Problem(413, f"a body may have {self._limits.body_bytes:,} bytes")


def _check(headers: Headers, body: bytearray) -> None:
    """Raises ``Problem`` unless the body is JSON without what nothing further in can take."""
    if not _JSON.fullmatch(headers.get("content-type", "").partition(";")[0].strip()):
        raise Problem(415, "send JSON, with Content-Type: application/json")
    try:
        found = from_json(bytes(body), allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise Problem(400, f"the body is not valid JSON: {error}") from None
    if _OVERFLOW.search(body) and _has_infinity(found):
        raise Problem(400, "the body holds a number that is too large")


def _has_infinity(found: object) -> bool:
    """Looks for numbers that were too large for a float; JSON has no other way to say infinity."""
    left = [found]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, list):
            left += one
        elif isinstance(one, float) and one in (float("inf"), float("-inf")):
            return True
    return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a channel that gives the whole body, and then what the client does."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed
