"""Who is let in, by the head of a request alone: before its body is read, and before anything is done for it."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

import psycopg
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pgvec_queue.gateway import auth, problems
from pgvec_queue.gateway.auth import ANYBODY, IDENTITY, Access, Identity, Tokens
from pgvec_queue.gateway.fitting import Fitting
from pgvec_queue.gateway.metrics import Measures
from pgvec_queue.gateway.problems import Problem
from pgvec_queue.gateway.rates import Rates, network

PROBES = frozenset({"/health", "/ready"})
"""Asked by whoever watches over the process: always let in."""
_OPEN = frozenset({*PROBES, "/docs", "/docs.css", "/openapi.json", "/dashboard", "/favicon.ico"})
_METRICS = "/metrics"
_OPEN_BELOW = "/dashboard/"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OF_PROXIES = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class Admission:
    """Host, origin, token and rate; and whether the schema is one that anything can be done with."""

    def __init__(
        self, app: ASGIApp, *, access: Access, tokens: Tokens, rates: Rates, fitting: Fitting, measures: Measures
    ) -> None:
        self._app = app
        self._access = access
        self._tokens = tokens
        self._rates = rates
        self._fitting = fitting
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._admit(scope, Headers(scope=scope))
        except (Problem, psycopg.Error) as error:
            problem = problems.of(error)
            if problem is None:
                raise
            await problems.response(problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admit(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        self._check_origin(scope["method"], headers)
        if path in PROBES:
            return
        address = network((scope.get("client") or ("",))[0])
        token = auth.bearer_of(headers.get("authorization"))
        if path in _OPEN or path.startswith(_OPEN_BELOW):
            self._charge(address)
            self._check_host(headers)
            return
        # Metrics tell by themselves that the queue cannot be read.
        if self._fitting.trouble is not None and path != _METRICS:
            self._charge(address)
            raise problems.busy(self._fitting.trouble)
        identity = await self._identify(token, headers, address)
        self._charge(address if identity.token_id is None else f"token {identity.token_id}")
        scope[IDENTITY] = identity

    async def _identify(self, token: str | None, headers: Headers, address: str) -> Identity:
        if token is not None:
            # Whoever gives one is held to it, even where none is asked for.
            identity = await self._tokens.identify(token)
        elif self._access.asks_for_tokens(await self._tokens.there_are_any()):
            identity = None
        else:
            self._check_proxy(headers)
            self._check_host(headers)
            return ANYBODY
        if identity is None:
            # Guessing costs what any other request costs.
            self._charge(address)
            self._measures.rejected("token")
            raise auth.unauthorized(given=token is not None)
        return identity

    def _charge(self, client: str) -> None:
        wait = self._rates.take(client)
        if wait > 0:
            self._measures.rejected("rate")
            raise problems.busy("too many requests", status=429, seconds=wait)

    def _check_host(self, headers: Headers) -> None:
        host = host_of(headers.get("host", ""))
        if host in self._access.hosts or (not self._access.loopback and _is_address(host)):
            return
        self._measures.rejected("host")
        raise Problem(421, "the header Host names no host of this gateway; see pgvec serve --allowed-host")

    def _check_proxy(self, headers: Headers) -> None:
        """Whoever comes through a proxy is not on this machine, though the proxy is."""
        if self._access.allow_unauthenticated or not any(name in headers for name in _OF_PROXIES):
            return
        self._measures.rejected("proxy")
        raise Problem(
            403,
            "this came through a proxy, and no token is asked for yet; make one with `pgvec api-token create`, or "
            "start the gateway with --allow-unauthenticated",
        )

    def _check_origin(self, method: str, headers: Headers) -> None:
        """A page of another origin may not have anything changed, even where the browser asks nobody first."""
        if method in _SAFE:
            return
        site = headers.get("sec-fetch-site")
        if site is not None:
            same = site in ("same-origin", "none")
        else:
            origin = headers.get("origin")
            same = origin is None or _host_and_port(origin) == headers.get("host", "").lower()
        if not same:
            self._measures.rejected("origin")
            raise Problem(403, "requests from pages of another origin change nothing here")


def host_of(header: str) -> str:
    """Returns the host of a header ``Host``, without port and brackets."""
    value = header.strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].rstrip(".")


def _host_and_port(origin: str) -> str:
    """Returns host and port of an origin; empty where it is none, such as ``null``."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    """A name may be led anywhere by whoever owns it; an address is what it is."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
