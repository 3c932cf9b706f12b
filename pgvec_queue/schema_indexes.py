"""Indexes on tables of the queue that may be large: made concurrently by `pgvec init`, so that nobody waits for them.

They are in ``sql/indexes.sql``, and are made after the migrations, each by itself and outside of any transaction. One
that somebody else is making at the time is left to them; what a build has left that was ended is dropped first.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

from pgvec_queue import resources
from pgvec_queue.database import Connection, statement, untimed
from pgvec_queue.errors import DatabaseError

FILE = "indexes"


def ddl() -> list[str]:
    """Returns the statements, for somebody else to run."""
    return list(resources.statements(FILE).values())


def complete(connection: Connection) -> None:
    """Makes those that are not there. Needs a connection in autocommit mode, past any pooler's timeouts.

    Raises ``DatabaseError`` where one cannot be made; the schema is complete without it, and the next `init` tries
    again.
    """
    for name, create in resources.statements(FILE).items():
        row = connection.execute(statement("schema", "index_state"), {"name": name}).fetchone()
        valid, building = row or (None, False)
        if valid or building:
            continue
        try:
            with untimed(connection):
                if valid is not None:
                    connection.execute(statement("schema", "drop_index").format(index=sql.Identifier("pgvec", name)))
                from pgvec_queue.log import get_logger

                log = get_logger("pgvec.schema")
                log.info("index of the queue is being built", index=name)
                connection.execute(sql.SQL(create))
        except psycopg.errors.DuplicateTable:
            # Somebody else began in this moment.
            continue
        except psycopg.Error as error:
            raise DatabaseError(
                f"the schema is upgraded, but its index {name} is not built: {error.diag.message_primary or error}; "
                "run `pgvec init` again"
            ) from error
