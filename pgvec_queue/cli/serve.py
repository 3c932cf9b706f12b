"""``pgvec serve``: the HTTP gateway, in the foreground."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, TypeVar

import click

from pgvec_queue import listening, roles
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.types import Text, setting
from pgvec_queue.errors import MissingExtraError, SchemaMissingError, SchemaOutdatedError, SettingsError
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.log import get_logger

F = TypeVar("F", bound=Callable[..., Any])

log = get_logger("pgvec.gateway")

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000

_LIMITS = {
    "body_bytes": ("SIZE", "Largest body of a request.  [default: 16M]"),
    "bodies_bytes": ("SIZE", "All bodies in memory; more get 503.  [default: 256M]"),
    "texts": ("N", "Texts in one request.  [default: 1000]"),
    "text_bytes": ("SIZE", "Largest text.  [default: 1M]"),
    "requests": ("N", "Requests at the same time; more get 503.  [default: 256]"),
    "streams": ("N", "Streams of events at the same time; more get 503.  [default: 64]"),
    "per_minute": ("N", "Requests of one token or address in a minute; more get 429.  [default: 6000]"),
    "request_seconds": ("SECONDS", "Longest that a request may take, streams aside.  [default: 30]"),
    "body_seconds": ("SECONDS", "Longest that a body may take to arrive.  [default: 20]"),
    "head_seconds": ("SECONDS", "Longest that the head of a request may take to arrive.  [default: 10]"),
    "unread_seconds": ("SECONDS", "Longest that an answer waits for its reader.  [default: 30]"),
    "connection_seconds": ("SECONDS", "Longest wait for a database connection, then 503.  [default: 5]"),
    "pool_size": ("N", "Connections to the database.  [default: 10]"),
    "queued_rows": ("N", "Texts of a collection that may wait; above it, new ones get 429.  [default: 1000000]"),
    "keep_tasks_days": ("DAYS", "How long an ended task is kept.  [default: 7]"),
}
"""How each limit is set on the command line; in the environment and the file it is gateway_<name>."""


def _limits(function: F) -> F:
    for name, (metavar, text) in reversed(_LIMITS.items()):
        option = setting(f"--{name.replace('_', '-')}", key=f"gateway_{name}", metavar=metavar, help=text)
        function = option(function)
    return function


@click.command()
@setting("--host", key="gateway_host", metavar="ADDRESS", help="Address to listen at.  [default: 127.0.0.1]")
@setting("--port", key="gateway_port", metavar="PORT", help="Port; 0: any that is free.  [default: 8000]")
@setting(
    "--model",
    "models",
    key="gateway_models",
    multiple=True,
    metavar="MODEL",
    help="A model that requests may name; may be given several times.  "
    "[default: sentence-transformers/all-MiniLM-L6-v2]",
)
@setting("--device", key="device", help="Where queries are embedded: auto, cpu, mps, cuda or cuda:N.  [default: auto]")
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    type=Text(),
    metavar="NAME",
    help="A name of this gateway that requests without a token may use; may be given several times.",
)
@click.option("--allow-unauthenticated", is_flag=True, help="Ask nobody for a token, whoever reaches the address.")
@_limits
@command
def serve(
    session: Session,
    *,
    host: str | None,
    port: int | None,
    models: tuple[str, ...],
    device: str | None,
    allowed_hosts: tuple[str, ...],
    allow_unauthenticated: bool,
    **limits: Any,
) -> None:
    """Serve the HTTP gateway until SIGINT or SIGTERM: texts in, answers out, and a page to watch.

    At 127.0.0.1 it asks for no token until the first one is made; at any other address it asks always. Tokens are
    made by pgvec api-token. A second signal ends it at once.
    """
    for package in ("fastapi", "uvicorn"):
        if find_spec(package) is None:
            raise MissingExtraError("the gateway", "gateway")
    chosen = replace(Limits(), **{name: value for name, value in limits.items() if value is not None})
    if models:
        chosen = replace(chosen, models=models)
    _serve(
        session,
        host or DEFAULT_HOST,
        DEFAULT_PORT if port is None else port,
        chosen,
        device or "auto",
        allowed_hosts,
        allow_unauthenticated,
    )


def _serve(
    session: Session,
    host: str,
    port: int,
    limits: Limits,
    device: str,
    allowed_hosts: tuple[str, ...],
    allow_unauthenticated: bool,
) -> None:
    from pgvec_queue.gateway.app import create_app
    from pgvec_queue.gateway.auth import Access
    from pgvec_queue.gateway.server import BACKLOG, Server

    connection = session.connect("gateway")
    fits = _fits(connection)
    if fits:
        roles.require_gateway(connection)
    try:
        found = listening.find(host, port)
        access = Access(
            loopback=listening.is_loopback(found),
            allow_unauthenticated=allow_unauthenticated,
            hosts=Access().hosts | {_bare(name) for name in (host, str(found[1][0]), *allowed_hosts)},
        )
        listener = listening.bind(found, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        where = f"the gateway cannot listen at {listening.named(host)}:{port}"
        raise SettingsError(f"{where}: {listening.reason(error)}") from error
    with listener:
        if allow_unauthenticated:
            log.warning("nobody is asked for a token (--allow-unauthenticated)")
        elif fits and not access.loopback:
            _warn_without_tokens(connection)
        connection.close()
        address, chosen = listener.getsockname()[:2]
        url = f"http://{listening.named(address)}:{chosen}"
        server = Server(
            create_app(session.database, limits, access, device),
            limits,
            url=url,
            # Whoever has asked for any port has to learn which it is.
            ready=None if port else lambda: click.echo(url),
        )
        server.run(sockets=[listener])


def _fits(connection: Any) -> bool:
    """Whether the schema is one for this program; the gateway serves all the same, and waits for it.

    Raises ``DatabaseError`` where there is none.
    """
    from pgvec_queue import schema
    from pgvec_queue.database import versions

    versions(connection)
    try:
        schema.require(connection)
    except SchemaMissingError:
        raise
    except SchemaOutdatedError:
        return False
    return True


def _warn_without_tokens(connection: Any) -> None:
    from pgvec_queue import api_tokens

    if not any(token.state == "valid" for token in api_tokens.listed(connection)):
        log.warning("there is no valid token; pgvec api-token create makes one")


def _bare(host: str) -> str:
    """Returns a host as it is compared: in lower case, without port and brackets."""
    from pgvec_queue.gateway.admission import host_of

    return host.lower() if host.count(":") > 1 and not host.startswith("[") else host_of(host)
