"""What surrounds every request: its id, its line in the log, its place in the metrics, the headers of its answer, and
an answer even where the program has failed.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
import uuid
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from pgvec_queue.database import one_line
from pgvec_queue.gateway import problems
from pgvec_queue.gateway.auth import IDENTITY, Identity
from pgvec_queue.gateway.metrics import Measures
from pgvec_queue.gateway.problems import Problem
from pgvec_queue.log import get_logger, hidden_data

log = get_logger("pgvec.gateway")

QUIET = frozenset({"/health", "/ready", "/metrics"})
"""Asked for all the time: their lines are for debugging."""
GONE = 499
"""No answer, since the client has gone; as nginx counts it."""
_HARMLESS = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_PACKAGE = str(Path(__file__).parents[1])

_API_POLICY = "default-src 'none'; frame-ancestors 'none'"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Envelope:
    """The outermost layer of the gateway."""

    def __init__(self, app: ASGIApp, *, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _HARMLESS.fullmatch(given) else uuid.uuid4().hex
        token = problems.request_id.set(name)
        try:
            with bound_contextvars(request_id=name):
                await self._serve(scope, receive, send, name)
        finally:
            problems.request_id.reset(token)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, name: str) -> None:
        began = time.monotonic()
        status = GONE
        streams = False

        async def sending(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                streams = headers.get("content-type", "").startswith("text/event-stream")
                _complete(headers, name)
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception as error:  # noqa: BLE001 - the request ends here, and with it nothing else
            _tell(error, scope)
            if status == GONE:
                failed = Problem(500, "the gateway has failed; its log says more")
                await problems.response(failed)(scope, receive, sending)
        finally:
            seconds = time.monotonic() - began
            route = template(scope)
            self._measures.served(route, scope["method"], status, None if streams else seconds)
            _log(scope, route, status, seconds)


def template(scope: Scope) -> str:
    """Returns the route with the names of its parameters in place of their values; ``none`` where there is none."""
    path = getattr(scope.get("route"), "path", None)
    if not isinstance(path, str):
        return "none"
    # What a router was included under is not in its routes' paths.
    parts, own = scope["path"].split("/"), path.split("/")
    before = parts[: len(parts) - len(own) + 1]
    return "/".join(before) + path


def _complete(headers: MutableHeaders, name: str) -> None:
    headers["X-Request-ID"] = name
    page = headers.get("content-type", "").startswith("text/html")
    headers.setdefault("Content-Security-Policy", _PAGE_POLICY if page else _API_POLICY)
    headers.setdefault("Cache-Control", "no-store")
    for header, value in _HEADERS.items():
        headers.setdefault(header, value)


def _log(scope: Scope, route: str, status: int, seconds: float) -> None:
    identity = scope.get(IDENTITY)
    address = (scope.get("client") or ("",))[0]
    who = identity.name if isinstance(identity, Identity) and identity.name else address
    method = scope["method"][:16]
    took = round(seconds, 4)
    if scope["path"] in QUIET:
        log.debug("request is served", method=method, path=route, status=status, seconds=took, who=who)
    else:
        log.info("request is served", method=method, path=route, status=status, seconds=took, who=who)


def _tell(error: Exception, scope: Scope) -> None:
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_PACKAGE)]
    log.error(
        "request has failed",
        method=scope["method"][:16],
        path=template(scope),
        error_class=type(error).__name__,
        where=f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else None,
        error=hidden_data(one_line(error)),
        exc_info=log.isEnabledFor(logging.DEBUG),
    )
