"""Looks at the way to the database: is it encrypted, does a pooler stand in it, and whose clock is right."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg

from pgvec_queue.database import one_line, statement
from pgvec_queue.doctor.finding import Finding, error, note, ok, warning
from pgvec_queue.doctor.question import Examined, Question
from pgvec_queue.errors import DatabaseError
from pgvec_queue.route import finds_pooler, is_local

_ROUNDS = 5
_CLOCK_SECONDS = 5.0
VERIFIED = ("verify-ca", "verify-full")


def server(examined: Examined) -> Iterator[Finding]:
    """What answers, and whether it takes writes."""
    role, is_standby, is_read_only, _ = examined.row("session")
    number = examined.connection.info.server_version
    question = examined.question
    said = f"{question.where}, PostgreSQL {number // 10000}.{number % 10000} (from {question.origin})"
    if is_standby:
        yield error("database", f"{said}, a standby", "name the primary: workers write")
    elif is_read_only:
        remedy = f"ALTER ROLE {role} SET default_transaction_read_only = off, or the same for the database"
        yield error("database", f"{said}, whose transactions are read-only for {role}", remedy)
    else:
        yield ok("database", said)


def encryption(examined: Examined) -> Iterator[Finding]:
    """Whether what crosses the network can be read there."""
    info = examined.connection.info
    if is_local(examined.connection):
        yield ok("tls", "not needed: the connection stays on this machine")
        return
    encrypted, version, by_kerberos = examined.row("encryption")
    if examined.connection.pgconn.ssl_in_use:
        # What the server says is of the pooler's connection, where there is one.
        said = f"encrypted, {version}" if encrypted and version and not examined.pooled else "encrypted"
        if info.get_parameters().get("sslmode") in VERIFIED:
            yield ok("tls", said)
        else:
            yield note("tls", f"{said}; who answers is not verified", "add sslmode=verify-full and sslrootcert=system")
    elif by_kerberos:
        yield ok("tls", "encrypted by GSSAPI")
    else:
        yield warning(
            "tls",
            f"what goes to {info.host} crosses the network unencrypted, texts and all",
            "let the server offer TLS and add sslmode=verify-full; or trust the network",
        )


def pooler(examined: Examined) -> Iterator[Finding]:
    """Whether LISTEN gets through: a pooler in transaction mode gives a server connection to whoever is next."""
    if not examined.pooled:
        yield ok("pooler", "none stands between")
    elif not _is_shared(examined):
        yield ok("pooler", "one stands between, which keeps a server connection for each client")
    elif examined.question.settings.get("listen") is False:
        yield ok("pooler", "one in transaction mode stands between; LISTEN is off")
    elif examined.question.settings.get("direct_dsn"):
        yield ok("pooler", "one in transaction mode stands between; LISTEN goes past it (direct_dsn)")
    else:
        yield warning(
            "pooler",
            "one in transaction mode stands between, and what LISTEN waits for does not come through it",
            "start workers with --no-listen (PGVEC_LISTEN=false), or give --direct-dsn (PGVEC_DIRECT_DSN)",
        )


def _is_shared(examined: Examined) -> bool:
    """Whether another client gets the server connection that this one has just used and not left."""
    with examined.question.database.connect("doctor") as other:
        seen: set[int] = set()
        for _ in range(_ROUNDS):
            (mine,) = examined.row("backend")
            row = other.execute(statement("doctor", "backend")).fetchone()
            assert row is not None
            seen.add(mine)
            if row[0] in seen or len(seen) > 1:
                return True
    return False


def direct(examined: Examined) -> Iterator[Finding]:
    """Whether the way past a pooler leads to the same database."""
    from pgvec_queue.database import Database

    dsn = examined.question.settings.get("direct_dsn")
    if not dsn:
        return
    try:
        beside = Database(dsn)
        with beside.connect("doctor") as connection:
            if finds_pooler(connection):
                yield warning("direct_dsn", f"{beside.address} is a pooler as well", "name the server itself")
                return
            row = connection.execute(statement("doctor", "world")).fetchone()
    except DatabaseError as problem:
        yield error("direct_dsn", str(problem), "mend or remove it (PGVEC_DIRECT_DSN)")
        return
    except psycopg.Error as problem:
        yield error("direct_dsn", f"{beside.address}: {one_line(problem)}", "name the same database, past the pooler")
        return
    if row != examined.connection.execute(statement("doctor", "world")).fetchone():
        yield error("direct_dsn", f"{beside.address} is another database", "name the same database, past the pooler")
    else:
        yield ok("direct_dsn", beside.address)


def clock(examined: Examined) -> Iterator[Finding]:
    """How far this machine's clock is from the database's, which alone counts."""
    before = time.time()
    (there,) = examined.row("clock")
    apart = there - (before + time.time()) / 2
    if abs(apart) <= _CLOCK_SECONDS:
        yield ok("clock", "this machine's agrees with the database's")
    else:
        which = "ahead of" if apart < 0 else "behind"
        yield note("clock", f"this machine's is {abs(apart):,.0f} s {which} the database's, which alone counts")


def unreachable(question: Question, problem: DatabaseError) -> Finding:
    """The finding that there is no connection."""
    return error(
        "database", f"{problem} (from {question.origin})", "see that the server runs, and that the address is right"
    )
