"""The schema ``pgvec``: its migrations, its version, and the views and functions that each `pgvec init` makes anew.

``initialize`` may run twice, and by two people at once: it takes a transaction lock first and does all in one
transaction.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg import sql

from pgvec_queue import resources, roles
from pgvec_queue.database import Connection, Database, one_line, statement, versions
from pgvec_queue.errors import DatabaseError, SchemaOutdatedError

HEAD = "0008"
"""The revision that this program works with; a test holds it to the newest migration."""

_VIEW = re.compile(r"CREATE OR REPLACE VIEW pgvec\.(\w+)")

_OBJECT = re.compile(r"^ *CREATE (?:OR REPLACE )?(TABLE|VIEW|FUNCTION) pgvec\.(\w+)", re.MULTILINE)

_ALEMBIC = threading.Lock()
"""Alembic's context is one per process: two threads in it would use each other's connections."""


def initialize(database: Database) -> str:
    """Creates or upgrades extension and schema; returns the revision that it found (empty for none).

    Raises ``DatabaseError`` when the extension is missing and cannot be created, or the schema is newer than this
    program.
    """
    with database.connect("init") as connection:
        _ensure_extension(connection)
        found = revision(connection)
    if found > HEAD:
        raise _newer(found)
    _run_alembic(offline=None, database=database)
    return found


def ddl() -> str:
    """Returns the statements that ``initialize`` would run on an empty database, for somebody else to run."""
    output = io.StringIO()
    output.write("CREATE EXTENSION IF NOT EXISTS vector;\n\n")
    _run_alembic(offline=output, database=None)
    return output.getvalue()


def revision(connection: Connection) -> str:
    """Returns the schema's revision, empty when there is no schema."""
    if connection.execute(statement("schema", "version_table")).fetchone() is None:
        return ""
    row = connection.execute(statement("schema", "revision")).fetchone()
    return row[0] if row else ""


def names() -> set[tuple[str, str]]:
    """Returns kind (table, view or function) and name of all that ``initialize`` makes in the schema."""
    texts = [file.read_text("utf-8") for file in (resources.directory("alembic") / "versions").glob("*.sql")]
    for file in ("views", "control", "search_function"):
        texts.extend(resources.statements(file).values())
    made = {(kind.lower(), name) for text in texts for kind, name in _OBJECT.findall(text)}
    return made | {("table", "alembic_version")}


def require(connection: Connection) -> None:
    """Raises ``SchemaOutdatedError`` unless the schema is the one that this program works with."""
    check(revision(connection))


def check(found: str) -> None:
    """Raises ``SchemaOutdatedError`` unless a revision is the one that this program works with; empty: no schema."""
    if found == HEAD:
        return
    if found > HEAD:
        raise _newer(found)
    what = (
        f"the pgvec schema is at revision {found}, this program needs {HEAD}" if found else "there is no pgvec schema"
    )
    raise SchemaOutdatedError(f"{what}; run: pgvec init")


def run_migration(file: str) -> None:
    """Runs ``alembic/versions/<file>`` as it stands, or writes it out; called from a migration."""
    from alembic import op

    text = (resources.directory("alembic") / "versions" / file).read_text("utf-8")
    _execute(op.get_context(), text)


def configure_and_run() -> None:
    """The body of ``alembic/env.py``: migrations, then views and functions, in one transaction under a lock."""
    from alembic import context

    attributes = context.config.attributes
    options: dict[str, Any] = {"version_table": "alembic_version", "version_table_schema": "pgvec"}
    if attributes["offline"] is not None:
        context.configure(dialect_name="postgresql", output_buffer=attributes["offline"], as_sql=True, **options)
    else:
        context.configure(connection=attributes["connection"], **options)
    with context.begin_transaction():
        _execute(context.get_context(), resources.statements("schema")["prepare"])
        context.run_migrations()
        _make_views(context.get_context())
        for file in ("control", "search_function"):
            _execute_all(context.get_context(), resources.statements(file).values())
        _execute(context.get_context(), resources.statements("schema")["shield_triggers"])
        if attributes["offline"] is None:
            roles.renew(_driver_connection(context.get_context()))


def _run_alembic(*, offline: io.StringIO | None, database: Database | None) -> None:
    # Alembic brings SQLAlchemy, which costs a quarter of a second that no other command should pay.
    from alembic.config import Config

    from alembic import command

    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", str(resources.directory("alembic")))
    config.set_main_option("path_separator", "os")
    config.attributes["offline"] = offline
    if database is None:
        with _ALEMBIC:
            command.upgrade(config, "head", sql=True)
        return

    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    conninfo = database.conninfo("init")
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(conninfo, prepare_threshold=None), poolclass=NullPool
    )
    try:
        with _ALEMBIC, engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except (psycopg.Error, DBAPIError) as error:
        # What Alembic runs by itself fails in SQLAlchemy's wrapping.
        cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
        raise DatabaseError(f"the schema cannot be created or upgraded: {one_line(cause)}") from error
    finally:
        engine.dispose()


def _execute_all(context: Any, texts: Iterable[str]) -> None:
    for text in texts:
        _execute(context, text)


def _execute(context: Any, text: str) -> None:
    """Runs several statements through the driver: SQLAlchemy would read % and : in them as its own."""
    if context.as_sql:
        context.impl.static_output(text.strip().rstrip(";") + ";\n")
        return
    with context.connection.connection.cursor() as cursor:
        cursor.execute(text)


def _driver_connection(context: Any) -> Connection:
    """psycopg's own connection below SQLAlchemy's, in the same transaction."""
    found: Connection = context.connection.connection.dbapi_connection
    return found


def _make_views(context: Any) -> None:
    """Replaces the views; where columns were others they go first, all, and the rights on them come back."""
    created = list(resources.statements("views").values())
    if context.as_sql:
        _execute_all(context, created)
        return
    connection = _driver_connection(context)
    try:
        with connection.transaction():
            _execute_all(context, created)
        return
    except psycopg.errors.InvalidTableDefinition:
        names = [found[1] for text in created if (found := _VIEW.search(text))]
    rights = connection.execute(statement("schema", "rights"), {"names": names}).fetchall()
    try:
        connection.execute(
            statement("schema", "drop_views").format(
                views=sql.SQL(", ").join(sql.Identifier("pgvec", name) for name in names)
            )
        )
    except psycopg.errors.DependentObjectsStillExist as error:
        users = (error.diag.message_detail or "").splitlines()[0].strip()
        raise DatabaseError(
            f"views of ours have other columns in this version, and a view of somebody's needs the old ones ({users}); "
            "drop that, run `pgvec init` again, and make it anew"
        ) from error
    _execute_all(context, created)
    for name, right, grantee, grantable in rights:
        connection.execute(
            statement("schema", "grant").format(
                right=sql.SQL(right),
                view=sql.Identifier("pgvec", name),
                grantee=sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee),
                option=sql.SQL("WITH GRANT OPTION" if grantable else ""),
            )
        )


def _ensure_extension(connection: Connection) -> None:
    if connection.execute(statement("database", "pgvector")).fetchone() is None:
        try:
            _create_extension(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                "pgvector is not in this database and you may not add it; ask an owner to run: CREATE EXTENSION vector"
            ) from error
        except (psycopg.errors.UndefinedFile, psycopg.errors.FeatureNotSupported) as error:
            raise DatabaseError(
                "the server has no pgvector; install it there (0.7 or later), or use your provider's image with it"
            ) from error
        except psycopg.errors.UniqueViolation:
            # Somebody else created it in this moment; that it is there is all that counts.
            pass
    versions(connection)


def _create_extension(connection: Connection) -> None:
    try:
        connection.execute(statement("schema", "create_extension"))
    except psycopg.errors.InvalidSchemaName:
        # The search path names no schema to put it into.
        connection.execute(statement("schema", "create_extension_in_public"))


def _newer(found: str) -> SchemaOutdatedError:
    return SchemaOutdatedError(
        f"the pgvec schema is at revision {found}, newer than this program's {HEAD}; upgrade pgvec-queue"
    )
