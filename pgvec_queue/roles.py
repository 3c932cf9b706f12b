"""The group roles of ``pgvec init --roles``, and which command each of them may run: docs/roles.md.

None of them logs in: a DBA makes those who do members of one. ``sql/roles.sql`` says what each is granted; `pgvec init`
grants it again after each upgrade to the roles that this database has let in, so that what is new is theirs as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgvec_queue import resources
from pgvec_queue.database import Connection, Database, one_line, statement, transaction
from pgvec_queue.errors import DatabaseError
from pgvec_queue.locks import patiently

OWNER = "pgvec_owner"
WORKER = "pgvec_worker"
ENQUEUER = "pgvec_enqueuer"
READER = "pgvec_reader"
GATEWAY = "pgvec_gateway"

ROLES = (OWNER, WORKER, ENQUEUER, READER, GATEWAY)

COMMANDS: dict[str, str] = {
    **dict.fromkeys(("init", "uninstall", "api-token"), OWNER),
    **dict.fromkeys(("enqueue", "import-pgai", "index", "migrate-model"), ENQUEUER),
    **dict.fromkeys(("retry", "pause", "resume", "cancel", "drop", "alter"), ENQUEUER),
    **dict.fromkeys(("work", "workers"), WORKER),
    **dict.fromkeys(("status", "dashboard", "search", "failures", "exporter", "doctor"), READER),
    "verify": ENQUEUER,
    "serve": GATEWAY,
}
"""Who is meant to run what: the least role that may, which is named where somebody is refused."""

STEERING: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("pause", "resume", "cancel", "retry", "alter_vectorizer", "drop_vectorizer"), (OWNER, ENQUEUER)),
    **dict.fromkeys(("swap_models", "switch_model", "roll_back_model"), (OWNER, ENQUEUER)),
    **dict.fromkeys(("retry_documents", "stop_workers"), (OWNER, ENQUEUER, WORKER)),
}
"""Functions that change something, and who may call them; the others are for every role."""
_CALLED_BY_NOBODY = {"keep_definition"}


@dataclass(frozen=True, slots=True)
class SetUp:
    """What became of the roles, and what is left for somebody with more rights."""

    made: Sequence[str]
    granted: Sequence[str]
    missing: Sequence[str]
    """Roles that are not there and that this session may not make."""
    left: Sequence[str]
    """Statements for somebody who may run them, in their order."""
    remarks: Sequence[str] = ()


def script() -> str:
    """Returns all statements, for a DBA to run after those of the schema; they may be run again."""
    there = "EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL"
    create = "\n".join(f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN; {there}; END $$;" for role in ROLES)
    parts = [
        "-- The roles of pgvec-queue. First comes the schema: pgvec init, or what pgvec init --sql prints.",
        create,
        *(_text(name) for name in ("join_enqueuers", "keep_rights")),
        _handing_over(),
        *(_text(name) for name in ROLES),
        _sharing_functions(),
        _text("sync_schema"),
        "-- Whoever logs in becomes a member of one of them, such as: GRANT pgvec_worker TO somebody;",
    ]
    return "\n\n".join(parts) + "\n"


def present(connection: Connection) -> list[str]:
    """Returns the roles that this database's schema has let in; none where there is no schema."""
    return [name for (name,) in connection.execute(statement("roles", "present"), {"roles": list(ROLES)}).fetchall()]


def set_up(database: Database) -> SetUp:
    """Makes the roles that are missing, hands the schema to its owner, and grants each what its commands need.

    What this session may not do is left, as statements for somebody else; the roles that are there get their rights all
    the same. Raises ``DatabaseError`` where even that is refused.
    """
    for attempt in patiently(20, 0.2, 1.0):
        with attempt, database.connect("init") as connection:
            done = _set_up(connection)
    return done


def _set_up(connection: Connection) -> SetUp:
    with transaction(connection, statement_timeout=300, lock_timeout=10):
        connection.execute(statement("schema", "one_at_a_time"))
        made, left = _make(connection)
        missing = [name for (name,) in connection.execute(statement("roles", "missing"), {"roles": list(ROLES)})]
        remarks = []
        if OWNER not in missing:
            maker = connection.execute(statement("roles", "maker")).fetchone()
            if not _hand_over(connection, missing):
                left.extend(_to_hand_over(connection, maker[0] if maker else None, missing))
                whose = f"{maker[0]}'s" if maker else "yours"
                remarks.append(
                    f"the schema pgvec stays {whose}, and its upgrades with it; {OWNER} gets all rights on it"
                )
            elif maker:
                remarks.append(
                    f"the schema pgvec was {maker[0]}'s, who is a member of {OWNER} now and may do what they could; "
                    f"what they run goes on, and needs no more than {WORKER} or {ENQUEUER}"
                )
        there = [role for role in ROLES if role not in missing]
        try:
            grant(connection, there)
            _share_types(connection, there)
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                f"you may not grant rights on the schema pgvec: {one_line(error)}; its owner may, or a DBA runs what "
                "`pgvec init --roles --sql` prints"
            ) from error
        if not {ENQUEUER, GATEWAY} & set(missing):
            left.extend(_join(connection))
        return SetUp(made, there, missing, left, remarks)


def renew(connection: Connection) -> None:
    """Grants again what each role needs, to those that this database has let in; nothing without roles.

    What a hand other than the owner's may not grant stays as it is.
    """
    there = present(connection)
    if there:
        grant(connection, there)


def grant(connection: Connection, there: Sequence[str]) -> None:
    """Gives each role that is there its rights on the schema, and those who enqueue a place for trigger functions."""
    for role in ROLES:
        if role in there:
            connection.execute(_text(role).encode())
    connection.execute(_sharing_functions().encode())
    if ENQUEUER in there:
        if not _value(connection, "has_sync_schema"):
            try:
                with connection.transaction():
                    connection.execute(statement("roles", "create_sync_schema"))
            except psycopg.errors.InsufficientPrivilege:
                # Then live changes need somebody who may create in the schema pgvec.
                return
        connection.execute(statement("roles", "sync_schema"))


def require_gateway(connection: Connection) -> None:
    """Raises ``DatabaseError`` where there are roles and this one is no gateway's: it would answer with errors."""
    if present(connection) and not _value(connection, "may_serve"):
        raise DatabaseError(
            f"{_current_user(connection)} may not write the gateway's tables; a member of {GATEWAY} may (docs/roles.md)"
        )


def _make(connection: Connection) -> tuple[list[str], list[str]]:
    """Makes what is missing; returns the names, and the statements that are left."""
    made, left = [], []
    for (name,) in connection.execute(statement("roles", "missing"), {"roles": list(ROLES)}).fetchall():
        query = statement("roles", "create").format(role=sql.Identifier(name))
        try:
            with connection.transaction():
                connection.execute(query)
            made.append(name)
        except psycopg.errors.InsufficientPrivilege:
            left.append(f"CREATE ROLE {name} NOLOGIN")
        except (psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            # Somebody else made it at this moment.
            pass
    return made, left


def _hand_over(connection: Connection, missing: Sequence[str]) -> bool:
    """Makes the role the owner of schema, tables, views and functions, and lets nobody lose what runs already.

    False, and nothing is changed, where this session may not.
    """
    if ENQUEUER in missing:
        # For whom a trigger acts could not become one.
        return False
    try:
        with connection.transaction():
            is_member, *_ = connection.execute(statement("roles", "may_own")).fetchone() or (False,)
            if not is_member:
                connection.execute(statement("roles", "join_owners"))
            connection.execute(_text("keep_rights").encode())
            connection.execute(_handing_over().encode())
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def _to_hand_over(connection: Connection, maker: str | None, missing: Sequence[str]) -> list[str]:
    """The statements after which this session could hand over."""
    left = [_text("join_owners").replace("CURRENT_USER", _current_user(connection))]
    if maker:
        left.append(f"GRANT {OWNER} TO {maker}")
    if ENQUEUER not in missing:
        left.extend(query for (query,) in connection.execute(statement("roles", "keeping")).fetchall())
    return left


def _handing_over() -> str:
    return _text("hand_over").replace("{names}", _array(sorted({name for _, name in resources.objects()})))


def _sharing_functions() -> str:
    functions = {name for kind, name in resources.objects() if kind == "function"} - _CALLED_BY_NOBODY
    may = [(function, role) for function in sorted(functions) for role in STEERING.get(function, ROLES)]
    query = _text("share_functions").replace("{steering}", _array(STEERING))
    return query.replace("{functions}", _array(name for name, _ in may)).replace("{callers}", _array(r for _, r in may))


def _array(names: Iterable[str]) -> str:
    return "ARRAY[{}]".format(", ".join(f"'{name}'" for name in names))


def _join(connection: Connection) -> list[str]:
    """Makes a gateway an enqueuer as well; returns the statement where this session may not."""
    if _value(connection, "gateway_enqueues"):
        return []
    try:
        with connection.transaction():
            connection.execute(statement("roles", "join_enqueuers"))
    except psycopg.errors.InsufficientPrivilege:
        return [resources.statements("roles")["join_enqueuers"].splitlines()[-1]]
    return []


def _share_types(connection: Connection, there: Sequence[str]) -> None:
    row = connection.execute(statement("database", "pgvector")).fetchone()
    if row is None:
        return
    for role in there:
        lacks = connection.execute(statement("roles", "lacks_schema"), {"role": role, "schema": row[0]}).fetchone()
        if lacks and lacks[0]:
            connection.execute(
                statement("roles", "share_types").format(schema=sql.Identifier(row[0]), role=sql.Identifier(role))
            )


def _value(connection: Connection, name: str) -> bool:
    row = connection.execute(statement("roles", name)).fetchone()
    return bool(row and row[0])


def _current_user(connection: Connection) -> str:
    row = connection.execute(statement("roles", "current_user")).fetchone()
    assert row is not None
    return str(row[0])


def _text(name: str) -> str:
    return resources.statements("roles")[name] + ";"
