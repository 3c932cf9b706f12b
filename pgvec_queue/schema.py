"""The schema ``pgvec``: its migrations, its version, and the views and functions that each `pgvec init` makes anew.

``initialize`` may run twice, by two people at once, and beside workers and users: it takes a transaction lock first,
does all in one transaction, waits for a table no longer than ``_LOCK_SECONDS``, and then lets go of all and tries anew.

A program works with the schema of its own revision, ``HEAD``, and with later ones as long as these say so: each
migration names the oldest revision whose programs work with what it makes (``pgvec.oldest_program()``). Workers of
older programs are sent off in the transaction that makes it so, with the fence that any lost lease has: what they have
in hand goes on with others.
"""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterable
from typing import Any

import psycopg
from psycopg import sql

from pgvec_queue import resources, roles, schema_indexes
from pgvec_queue.database import Connection, Database, one_line, statement, versions
from pgvec_queue.errors import DatabaseError, SchemaMissingError, SchemaOutdatedError
from pgvec_queue.locks import NOT_HAD, is_not_had, patiently

HEAD = "0008"
"""The revision that this program is made for; a test holds it to the newest migration."""

_LOCK_SECONDS = 0.4
_LOCK_TRIES = 60
_LOCK_PAUSES = (0.5, 1.5)
"""For a lock on a table of the queue, everybody else waits that long behind; between two tries they catch up."""

_VIEW = re.compile(r"CREATE OR REPLACE VIEW pgvec\.(\w+)")

_ALEMBIC = threading.Lock()
"""Alembic's context is one per process: two threads in it would use each other's connections."""


def initialize(database: Database) -> str:
    """Creates or upgrades extension and schema; returns the revision that it found (empty for none).

    Raises ``DatabaseError`` when the extension is missing and cannot be created, the schema is newer than this
    program, or a table stays locked.
    """
    with database.connect("init") as connection:
        _ensure_extension(connection)
        found = revision(connection)
    if found > HEAD:
        raise _newer(found)
    began = time.monotonic()
    told = False
    try:
        for attempt in patiently(_LOCK_TRIES, *_LOCK_PAUSES):
            with attempt:
                try:
                    _run_alembic(offline=None, database=database)
                except NOT_HAD as error:
                    if not told:
                        # Every command knows the schema, and few of them log.
                        from pgvec_queue.log import get_logger

                        log = get_logger("pgvec.schema")
                        log.warning("schema is in use by others; it is tried again", error=one_line(error))
                    told = True
                    raise
    except NOT_HAD as error:
        waited = f"for {time.monotonic() - began:.0f} s"
        raise DatabaseError(
            f"the schema is not upgraded, and is as it was: {waited} its tables were locked by "
            f"{_in_the_way(database) or 'others'}; end that, then run `pgvec init` again"
        ) from error
    with database.connect("init") as connection:
        connection.execute(resources.statements("schema")["as_owner"].encode())
        try:
            schema_indexes.complete(connection)
        finally:
            # A pooler may give the connection to somebody else.
            if not connection.broken:
                connection.execute("RESET ROLE")
    return found


def ddl() -> str:
    """Returns the statements that ``initialize`` would run on an empty database, for somebody else to run."""
    output = io.StringIO()
    output.write("CREATE EXTENSION IF NOT EXISTS vector;\n\n")
    _run_alembic(offline=output, database=None)
    output.writelines(f"\n{create};\n" for create in schema_indexes.ddl())
    return output.getvalue()


def revision(connection: Connection) -> str:
    """Returns the schema's revision, empty when there is no schema."""
    if connection.execute(statement("schema", "version_table")).fetchone() is None:
        return ""
    row = connection.execute(statement("schema", "revision")).fetchone()
    return row[0] if row else ""


def names() -> set[tuple[str, str]]:
    """Returns kind (table, view or function) and name of all that ``initialize`` makes in the schema."""
    return resources.objects()


def require(connection: Connection, *, exactly: bool = False) -> str:
    """Returns the schema's revision, where this program works with it; ``exactly``: where it is made for it.

    Raises ``SchemaOutdatedError`` elsewhere.
    """
    found = revision(connection)
    oldest = None
    if found > HEAD and not exactly:
        try:
            row = connection.execute(statement("schema", "oldest_program")).fetchone()
        except psycopg.errors.UndefinedFunction:
            row = None
        oldest = row[0] if row else None
    check(found, oldest)
    return found


def check(found: str, oldest_program: str | None = None) -> None:
    """Raises ``SchemaOutdatedError`` unless this program works with the revision ``found``; empty: there is no schema.

    ``oldest_program`` is what a schema says that is newer than this program: since which revision programs work with
    it.
    """
    if found == HEAD:
        return
    if not found:
        raise SchemaMissingError("there is no pgvec schema; run: pgvec init")
    if found < HEAD:
        raise SchemaOutdatedError(
            f"the pgvec schema is at revision {found}, this program needs {HEAD}; run: pgvec init"
        )
    if oldest_program is None or oldest_program > HEAD:
        raise _newer(found)


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
        running = context.get_context()
        _execute(running, resources.statements("schema")["prepare"])
        if not running.as_sql:
            _driver(running).execute(statement("schema", "patience"), {"lock": f"{_LOCK_SECONDS * 1000:.0f}ms"})
        context.run_migrations()
        head = context.script.get_revision("head")
        made = statement("schema", "make_oldest_program").format(oldest=sql.Literal(head.module.oldest_program))
        _execute(running, made.as_string())
        _make_views(running)
        for file in ("control", "search_function"):
            _execute_all(running, resources.statements(file).values())
        _execute(running, resources.statements("schema")["shield_triggers"])
        if not running.as_sql:
            roles.renew(_driver(running))
            _execute(running, resources.statements("schema")["send_off"])


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
        if isinstance(cause, NOT_HAD):
            raise cause from None
        if is_not_had(cause):
            raise psycopg.errors.LockNotAvailable(one_line(cause)) from cause
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


def _driver(context: Any) -> psycopg.Connection[Any]:
    """The driver's own connection, in the middle of the transaction."""
    connection: psycopg.Connection[Any] = context.connection.connection.dbapi_connection
    return connection


def _make_views(context: Any) -> None:
    """Replaces the views; where columns were others they go first, all, and the rights on them come back."""
    created = list(resources.statements("views").values())
    if context.as_sql:
        _execute_all(context, created)
        return
    connection = _driver(context)
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


def _in_the_way(database: Database) -> str:
    with database.connect("init") as connection:
        return ", ".join(who for (who,) in connection.execute(statement("schema", "in_the_way")))


def _newer(found: str) -> SchemaOutdatedError:
    return SchemaOutdatedError(
        f"the pgvec schema is at revision {found}, newer than this program's {HEAD}; upgrade pgvec-queue"
    )
