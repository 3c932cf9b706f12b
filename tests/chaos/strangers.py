"""What others do to the same server: idle connections, transactions that stay open, locked rows, ended backends."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import psycopg
from psycopg import sql

from tests.chaos.server import Server
from tests.chaos.tables import TABLES, Connection

IDLE = 300
"""Connections that do nothing."""


class Stranger:
    """Connections that somebody holds until ``leave``; a server that goes down ends them earlier."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connections: list[Connection] = []

    def idle(self, count: int = IDLE) -> None:
        for _ in range(count):
            self._connect()

    def hold_snapshot(self) -> None:
        """A transaction that sees the database as it is now, for as long as it stays."""
        connection = self._connect()
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT count(*) FROM docs")

    def hold_rows(self, random: Random) -> None:
        """A transaction that has changed some rows of each table and keeps them locked."""
        connection = self._connect()
        connection.execute("BEGIN")
        connection.execute("SET LOCAL lock_timeout = '2s'")
        for table in TABLES:
            for key in table.near(connection, table.new_key(random), 5):
                query = sql.SQL("UPDATE {} SET note = note + 1 WHERE {} = {}").format(
                    sql.Identifier(table.name), table.key_row, table.values()
                )
                connection.execute(query, key)

    def leave(self) -> None:
        for connection in self._connections:
            with suppress(psycopg.Error):
                connection.close()
        self._connections.clear()

    def _connect(self) -> Connection:
        connection = self._server.connect(application_name="stranger", connect_timeout=5)
        self._connections.append(connection)
        return connection


def end_a_backend(server: Server, random: Random) -> str | None:
    """Ends one of our own connections at the server, as an administrator would; returns whose it was."""
    with server.connect(connect_timeout=5) as connection:
        found = connection.execute(
            "SELECT pid, application_name FROM pg_stat_activity WHERE application_name LIKE 'pgvec%' ORDER BY pid"
        ).fetchall()
        if not found:
            return None
        pid, name = random.choice(found)
        connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        return str(name)
