"""The index on an existing destination's key, without which a slice would read the whole table."""

from __future__ import annotations

from psycopg import sql

from pgvec_queue.catalog import find_relation, has_leading_index, quoted_name
from pgvec_queue.database import Connection, statement, untimed
from pgvec_queue.errors import DefinitionError
from pgvec_queue.fragments import identifier, literal_sql
from pgvec_queue.vectorizer import Vectorizer


def make_index(connection: Connection, vectorizer: Vectorizer) -> None:
    """Builds an index on the destination's key where there is none, concurrently.

    Needs a direct connection in autocommit mode. Raises ``DefinitionError`` when somebody else builds one just now.
    """
    roles = vectorizer.destination_roles
    name = quoted_name(vectorizer.destination_schema, vectorizer.destination_table)
    table = find_relation(connection, name)
    if table is None:
        raise DefinitionError(
            f"the destination {vectorizer.destination} is gone; drop the vectorizer {vectorizer.name!r}"
        )
    if vectorizer.into_column or has_leading_index(connection, table, roles.key):
        return
    if connection.execute(statement("destination", "index_build"), {"oid": table.oid}).fetchone() is not None:
        raise DefinitionError(f"an index on {table.label} is being built already; try again when it is done")
    index = f"{table.name.encode()[:40].decode(errors='ignore')}_pgvec_{table.oid}"
    invalid = connection.execute(
        statement("destination", "drop_invalid_index"), {"oid": table.oid, "name": index}
    ).fetchone()
    with untimed(connection):
        connection.execute(statement("destination", "no_timeouts"))
        try:
            if invalid is not None:
                # A build that was cut short leaves an index that is maintained but never used.
                connection.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(literal_sql(invalid[0])), {})
            connection.execute(
                statement("destination", "create_index").format(
                    index=identifier(index),
                    destination=identifier(table.schema, table.name),
                    columns=sql.SQL(", ").join(map(identifier, roles.key)),
                ),
                {},
            )
        finally:
            connection.execute(statement("destination", "usual_timeouts"))
