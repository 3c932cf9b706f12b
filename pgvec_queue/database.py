"""Connections to PostgreSQL, transactions as a pooler bears them, the named statements of ``sql/``, and what errors
mean.

Everything here works behind pgbouncer in transaction mode: no prepared statements, no session state (``SET LOCAL``
only), no session locks. Every transaction has a statement timeout and a lock timeout, and pins the settings on which
the canonical text of a key depends (ISO dates, UTC).
"""

from __future__ import annotations

import functools
import os
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from pgvec_queue import resources
from pgvec_queue.errors import DatabaseError, EmbedderError, Kind

Connection = psycopg.Connection[TupleRow]
Pool = ConnectionPool[Connection]

CONNECTION: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}
"""How each connection is opened, so that a pooler may stand between."""

stage: ContextVar[str | None] = ContextVar("stage", default=None)
"""What this thread does for a worker; shown in ``application_name`` while a pooled connection is in its hands."""

MINIMUM_SERVER = 140000
MINIMUM_PGVECTOR = (0, 7)

_DEFAULTS = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}


@dataclass(frozen=True, slots=True)
class Versions:
    """What the connected server is."""

    server: int
    """As PostgreSQL counts: 180004 for 18.4."""
    pgvector: str
    vector_schema: str
    """The schema that holds the extension's types and operators."""


class Database:
    """One database: makes connections and pools for it. Holds no connection itself."""

    def __init__(self, dsn: str) -> None:
        """``dsn`` is a libpq URI or conninfo, empty for libpq's own variables. Raises ``DatabaseError`` if
        unreadable.
        """
        try:
            given = conninfo_to_dict(dsn)
        except psycopg.ProgrammingError:
            # libpq's own message may quote a part of the string, and with it a password.
            raise DatabaseError(
                "the connection string cannot be read; write a URI such as postgresql://user@host/database, "
                "or 'host=… dbname=… user=…'"
            ) from None
        self._parameters: dict[str, Any] = {**_DEFAULTS, **given}

    def conninfo(self, stage: str) -> str:
        """Returns the connection string with an ``application_name`` that tells host and stage."""
        return make_conninfo(**{**self._parameters, "application_name": _application_name(stage)})

    @property
    def address(self) -> str:
        """Names the database for a person, without any secret."""
        host = self._parameters.get("host") or os.environ.get("PGHOST") or "the local socket"
        name = self._parameters.get("dbname") or os.environ.get("PGDATABASE") or ""
        port = self._parameters.get("port") or os.environ.get("PGPORT")
        return f"{name + ' at ' if name else ''}{host}{f':{port}' if port else ''}"

    def connect(self, stage: str) -> Connection:
        """Opens a connection in autocommit mode. Raises ``DatabaseError`` with libpq's reason in one line."""
        try:
            return psycopg.connect(self.conninfo(stage), cursor_factory=TimedCursor, **CONNECTION)
        except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
            told = self._without_files(one_line(error))
            raise DatabaseError(f"cannot connect to the database {self.address}: {told}{_tls_advice(told)}") from error

    def _without_files(self, text: str) -> str:
        """Says which parameter is meant where libpq names a file: where keys lie is nobody's business."""
        for parameter, variable in _FILES.items():
            path = self._parameters.get(parameter) or os.environ.get(variable)
            if path:
                text = text.replace(str(path), f"({parameter})")
        return text

    def pool(self, stage: str, *, size: int) -> Pool:
        """Returns an open pool of at most ``size`` connections, made when they are needed; whoever asked closes it."""
        return ConnectionPool(
            self.conninfo(stage),
            min_size=0,
            max_size=size,
            kwargs={"cursor_factory": TimedCursor, **CONNECTION},
            # Short: whoever asks tries again, and a pool that has given up is only woken by being asked.
            timeout=2.0,
            reconnect_timeout=1.0,
            open=True,
        )


_FILES = {
    "sslkey": "PGSSLKEY",
    "sslcert": "PGSSLCERT",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcrl": "PGSSLCRL",
    "passfile": "PGPASSFILE",
}

_TLS = {
    "does not match host name": "name the server in the DSN as its certificate does (hostaddr=… says where it is)",
    "certificate verify failed": "it was not signed by what sslrootcert names, or has expired",
    "certificate required": "the server wants to know who asks: give sslcert and sslkey",
    "unknown ca": "the server does not know who signed our certificate (sslcert)",
    "server does not support SSL": "let the server offer TLS; sslmode=prefer would go on without",
}


def _tls_advice(message: str) -> str:
    return next((f"; {advice}" for words, advice in _TLS.items() if words in message), "")


class TimedCursor(psycopg.Cursor[Any]):
    """Runs a statement that stands alone in a transaction of its own, since only there a timeout can be set for it.

    Behind a pooler a session's settings are whoever's had the connection before.
    """

    def execute(self, query: Any, params: Any = None, **options: Any) -> TimedCursor:
        if self.connection.info.transaction_status is not TransactionStatus.IDLE:
            super().execute(query, params, **options)
        else:
            with self.connection.transaction():
                # Not the settings for keys as well: what comes back is read when they are gone again.
                super().execute(statement("database", "timeouts"))
                super().execute(query, params, **options)
        return self


@contextmanager
def untimed(connection: Connection) -> Generator[None]:
    """Lets statements run outside a transaction and for any time: what may be in none, or takes hours."""
    timed, connection.cursor_factory = connection.cursor_factory, psycopg.Cursor
    try:
        yield
    finally:
        connection.cursor_factory = timed


def _application_name(stage: str) -> str:
    return f"pgvec {stage} @{socket.gethostname()}:{os.getpid()}"[:63]


@contextmanager
def transaction(
    connection: Connection, *, statement_timeout: float = 60.0, lock_timeout: float = 5.0, read_only: bool = False
) -> Generator[None]:
    """Runs a READ COMMITTED transaction with timeouts (seconds) and the settings that canonical keys depend on.

    On a connection that is read-only every transaction is.
    """
    doing = stage.get()
    with connection.transaction():
        connection.execute(
            statement("database", "transaction_settings"),
            {
                "statement_timeout": f"{round(statement_timeout * 1000)}ms",
                "lock_timeout": f"{round(lock_timeout * 1000)}ms",
                "read_only": "on" if read_only or connection.read_only else "off",
                "application_name": _application_name(doing) if doing else None,
            },
        )
        yield


@functools.cache
def statement(file: str, name: str) -> sql.SQL:
    """Returns the statement ``-- name: <name>`` of ``sql/<file>.sql``."""
    return sql.SQL(resources.statements(file)[name])


def versions(connection: Connection) -> Versions:
    """Reads and checks the versions of server and pgvector.

    Raises ``DatabaseError`` when the server is older than 14, or pgvector is missing or older than 0.7.
    """
    server = connection.info.server_version
    if server < MINIMUM_SERVER:
        raise DatabaseError(f"the server is PostgreSQL {server // 10000}; pgvec-queue needs 14 or later")
    row = connection.execute(statement("database", "pgvector")).fetchone()
    if row is None:
        raise DatabaseError("the database has no pgvector; run `pgvec init`, or CREATE EXTENSION vector as an owner")
    schema, version = row
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < MINIMUM_PGVECTOR:
        raise DatabaseError(
            f"pgvector is {version}; pgvec-queue needs 0.7 or later: install it, then ALTER EXTENSION vector UPDATE"
        )
    return Versions(server, version, schema)


# SQLSTATE by what it says of the work: classes, and whole codes that differ from theirs. Source: PostgreSQL's appendix
# A; tests/unit/test_error_kinds.py gives the reason for each.
_STATES = {
    Kind.ROW: ["09", "10", "20", "21", "22", "23", "27", "2F", "38", "39004", "44", "54", "P0"],
    Kind.PASSING: ["08", "25", "26", "40", "53", "55006", "55P03", "57", "58", "72", "HV001", "HV00N", "XX"],
    Kind.VECTORIZER: [
        *("02", "03", "0A", "0B", "0F", "0L", "0P", "0Z", "24", "28", "2B", "2D", "34", "39", "3B", "3D", "3F"),
        *("42", "55", "F0", "HV", "XX001", "XX002"),
    ],
}
_KIND_OF_STATE = {state: kind for kind, states in _STATES.items() for state in states}


def kind_of(error: BaseException) -> Kind:
    """Says whose fault an error is: the row's, a passing one, or the vectorizer's.

    An error without an SQLSTATE comes from the connection and passes.
    """
    if isinstance(error, EmbedderError):
        return error.kind
    if isinstance(error, psycopg.Error):
        code = error.sqlstate
        if code is None:
            # The second is the driver's own word for an answer that nobody waits for: the server has ended the session
            # of a client that was silent for too long inside a transaction, and a pooler has passed that on.
            lost = isinstance(error, psycopg.OperationalError | psycopg.InternalError)
            return Kind.PASSING if lost else Kind.ROW
        # A class that PostgreSQL does not have is one that a trigger of the user's chose for its RAISE.
        return _KIND_OF_STATE.get(code) or _KIND_OF_STATE.get(code[:2]) or Kind.ROW
    if isinstance(error, DatabaseError | OSError):
        return Kind.PASSING
    return Kind.VECTORIZER


def is_write_conflict(error: BaseException) -> bool:
    """True for what two of our own writers do to each other: unique violation, deadlock, serialization failure."""
    return isinstance(error, psycopg.Error) and error.sqlstate in ("23505", "40P01", "40001")


def one_line(error: BaseException) -> str:
    """Returns the first telling line of an error's message."""
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    lines = [line.strip() for line in (primary or str(error)).splitlines() if line.strip()]
    if primary and lines:
        return lines[0]
    # libpq tries every address of a host and lists them as "- host: …"; the last one tells as much as all of them.
    attempts = [line for line in lines if line.startswith("- ")]
    text = attempts[-1][2:] if attempts else (lines[0] if lines else type(error).__name__)
    return text.removeprefix("connection failed: ")
