"""Live changes: triggers on a source that turn every change into a list of keys, in the user's own transaction.

Guarantees: from the moment that ``install`` returns, a change of the text, of the key, of what the template shows or of
what the filter reads is queued when it commits, and not if it is rolled back; a TRUNCATE queues a sweep of the
destination. What is written straight into a partition is covered as well, if the partition was there at the last
`enqueue`; ``uncovered`` finds those that came later. A column that was renamed or dropped stops no statement of the
user's: the vectorizer is blocked instead, with the reason.

Not covered: partitions attached or detached, sessions with ``session_replication_role = replica``, disabled triggers;
`pgvec enqueue` or `pgvec verify --fix` makes up for those. Logical replication fires no such trigger at all, so a
subscriber is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgvec_queue.catalog import Relation, find_relation, quoted_name
from pgvec_queue.database import Connection, one_line, statement, transaction
from pgvec_queue.errors import DefinitionError
from pgvec_queue.locks import NOT_HAD, patiently
from pgvec_queue.template import Template
from pgvec_queue.vectorizer import Vectorizer

_LOCK_SECONDS = 2.0
_LOCK_TRIES = 15

_REFERENCING = {
    "insert": " REFERENCING NEW TABLE AS pgvec_new",
    "update": " REFERENCING OLD TABLE AS pgvec_old NEW TABLE AS pgvec_new",
    "delete": " REFERENCING OLD TABLE AS pgvec_old",
    "truncate": "",
}
# Types whose text is the same under every setting.
_PLAIN = frozenset(
    {"smallint", "integer", "bigint", "oid", "uuid", "text", "character varying", "character", "numeric"}
)
_EXACT = frozenset({"smallint", "integer", "bigint", "oid", "uuid"})
_TEXTS = frozenset({"text", "character varying"})


@dataclass(frozen=True, slots=True)
class Covered:
    """A table of the source and which of the wanted triggers it lacks."""

    schema: str
    table: str
    missing: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"{self.schema}.{self.table}"


def function_name(vectorizer_id: int) -> str:
    """The trigger function, in schema ``pgvec``, or in ``pgvec_sync`` where there are roles."""
    return f"sync_{vectorizer_id}"


def _function(connection: Connection, vectorizer_id: int) -> sql.Identifier:
    """The trigger function where it is, else where this session can make one."""
    return sql.Identifier(_function_schema(connection, vectorizer_id), function_name(vectorizer_id))


def _function_schema(connection: Connection, vectorizer_id: int) -> str:
    name = function_name(vectorizer_id)
    row = connection.execute(statement("sync", "function_schema"), {"function": name}).fetchone()
    assert row is not None
    return str(row[0])


def is_ours(name: str) -> bool:
    """True for the name of a trigger function."""
    return re.fullmatch("sync_[0-9]+", name) is not None


def _trigger_name(vectorizer_id: int, event: str) -> str:
    return f"pgvec_{function_name(vectorizer_id)}_{event}"


def check(connection: Connection, source: Relation, key: str, filter_: str | None) -> None:
    """Raises ``DefinitionError`` where changes of the source cannot be followed; ``key`` is a column of its key."""
    if source.kind not in ("r", "p"):
        raise DefinitionError(
            f"{source.label} is no table, so it can have no triggers for --sync; "
            "sync the table below it, or run `pgvec enqueue` on a schedule"
        )
    subscribed = connection.execute(statement("sync", "is_subscribed"), {"oid": source.oid}).fetchone()
    if subscribed and subscribed[0]:
        raise DefinitionError(
            f"{source.label} is filled by logical replication, which fires no such trigger; "
            "leave --sync out and run `pgvec verify --fix` on a schedule"
        )
    for schema, table, kind, _ in _tables(connection, source.oid, ()):
        if kind == "f":
            raise DefinitionError(
                f"{schema}.{table}, a part of {source.label}, is a foreign table, which can have no triggers for --sync"
            )
    _filter_columns(connection, source, key, filter_)


def install(connection: Connection, vectorizer: Vectorizer) -> list[str]:
    """Makes the function and the triggers that are missing, and says in the row that they are there.

    One short transaction per table, since each needs a lock that waits for the table's writers. Returns the tables that
    got triggers. Raises ``DefinitionError`` when a table stays locked, or as ``check`` does.
    """
    source = _source(connection, vectorizer)
    check(connection, source, vectorizer.key_columns[0], vectorizer.filter)
    _make_function(connection, source, vectorizer)
    made = []
    for covered in _covered(connection, source.oid, vectorizer.id):
        if covered.missing:
            _patiently(connection, covered.schema, covered.table, _creating(connection, covered, vectorizer.id))
            made.append(covered.label)
    with transaction(connection):
        connection.execute(statement("sync", "set_sync"), {"id": vectorizer.id, "sync": True})
    return made


def renew(connection: Connection, vectorizer: Vectorizer) -> None:
    """Makes the function anew, for the columns that the source has now; no table is locked.

    Raises ``DefinitionError`` where the filter reads a column that is gone.
    """
    _make_function(connection, _source(connection, vectorizer), vectorizer)


def _make_function(connection: Connection, source: Relation, vectorizer: Vectorizer) -> None:
    body = _body(connection, source, vectorizer)
    try:
        with transaction(connection):
            schema, name = _function_schema(connection, vectorizer.id), function_name(vectorizer.id)
            function = sql.Identifier(schema, name)
            there = connection.execute(
                statement("sync", "function_owner"), {"schema": schema, "function": name, "source": source.oid}
            ).fetchone()
            if there is not None and not (there[1] or there[2]):
                # Who owns it could give it another body, which would run as whoever writes the source.
                raise DefinitionError(
                    f"the function {schema}.{name} is there already and belongs to {there[0]}, and no trigger of "
                    f"{vectorizer.source} calls it; drop it, then run the same command again"
                )
            connection.execute(
                statement("sync", "create_function").format(
                    # Somebody else's that comes in this moment is not replaced: that would leave it theirs.
                    replace=sql.SQL("" if there is None else "OR REPLACE"),
                    function=function,
                    settings=sql.SQL("") if set(vectorizer.key_types) <= _PLAIN else statement("sync", "settings"),
                    body=sql.Literal(body),
                )
            )
            connection.execute(statement("sync", "shield_function").format(function=function))
    except psycopg.errors.DuplicateFunction as error:
        raise DefinitionError(
            f"somebody else made {function_name(vectorizer.id)} at the same time; run the same command again"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DefinitionError(
            f"you may not make the function that follows changes of {vectorizer.source}: {one_line(error)}; "
            "whoever enqueued it may, or for a new one a member of pgvec_enqueuer (docs/roles.md)"
        ) from error


def remove(connection: Connection, vectorizer_id: int) -> None:
    """Takes the triggers off all tables that have them, then the function away; nothing to do is no error.

    Raises ``DefinitionError`` when a table stays locked.
    """
    triggers = connection.execute(statement("sync", "triggers"), {"function": function_name(vectorizer_id)}).fetchall()
    _refuse_others(triggers)
    with transaction(connection):
        connection.execute(statement("sync", "set_sync"), {"id": vectorizer_id, "sync": False})
    for schema, table, trigger, *_ in triggers:
        _patiently(connection, schema, table, _dropping(connection, schema, table, trigger))
    with transaction(connection):
        connection.execute(statement("sync", "drop_function").format(function=_function(connection, vectorizer_id)))


def _refuse_others(triggers: Sequence[tuple[str, str, str, str, bool]]) -> None:
    """Raises ``DefinitionError`` where a trigger is on a table of somebody else's: before anything is taken away."""
    for schema, table, _, owner, may in triggers:
        if not may:
            raise DefinitionError(f"you may not drop the triggers of {schema}.{table}; its owner ({owner}) may")


def remove_all(connection: Connection) -> None:
    """Takes all triggers of ours off all tables, whatever vectorizer they belonged to; the functions stay.

    Raises ``DefinitionError`` when a table stays locked.
    """
    triggers = connection.execute(statement("uninstall", "triggers")).fetchall()
    _refuse_others(triggers)
    with transaction(connection):
        connection.execute(statement("uninstall", "unfollow"))
    for schema, table, trigger, *_ in triggers:
        _patiently(connection, schema, table, _dropping(connection, schema, table, trigger))


def uncovered(connection: Connection, vectorizer: Vectorizer) -> list[str]:
    """Returns the tables of a synced source whose changes are not followed: partitions that came later, mostly."""
    source = find_relation(connection, quoted_name(vectorizer.source_schema, vectorizer.source_table))
    if source is None:
        return [vectorizer.source]
    return [covered.label for covered in _covered(connection, source.oid, vectorizer.id) if covered.missing]


def synced(connection: Connection) -> list[str]:
    """Returns the names of the vectorizers that follow live changes."""
    return [name for (name,) in connection.execute(statement("sync", "synced")).fetchall()]


def _source(connection: Connection, vectorizer: Vectorizer) -> Relation:
    found = find_relation(connection, quoted_name(vectorizer.source_schema, vectorizer.source_table))
    if found is None:
        raise DefinitionError(f"{vectorizer.source} is gone; drop the vectorizer {vectorizer.name!r}")
    return found


def _tables(connection: Connection, oid: int, triggers: Sequence[str]) -> list[tuple[str, str, str, list[str]]]:
    return connection.execute(statement("sync", "tables"), {"oid": oid, "triggers": list(triggers)}).fetchall()


def _covered(connection: Connection, oid: int, vectorizer_id: int) -> Iterator[Covered]:
    names = {_trigger_name(vectorizer_id, event): event for event in _REFERENCING}
    for schema, table, _, there in _tables(connection, oid, list(names)):
        yield Covered(schema, table, tuple(event for name, event in names.items() if name not in there))


def _creating(connection: Connection, covered: Covered, vectorizer_id: int) -> Callable[[], None]:
    function = _function(connection, vectorizer_id)

    def create() -> None:
        for event in covered.missing:
            connection.execute(
                statement("sync", "create_trigger").format(
                    trigger=sql.Identifier(_trigger_name(vectorizer_id, event)),
                    event=sql.SQL(event.upper()),
                    table=sql.Identifier(covered.schema, covered.table),
                    referencing=sql.SQL(_REFERENCING[event]),
                    function=function,
                )
            )

    return create


def _dropping(connection: Connection, schema: str, table: str, trigger: str) -> Callable[[], None]:
    def drop() -> None:
        connection.execute(
            statement("sync", "drop_trigger").format(
                trigger=sql.Identifier(trigger), table=sql.Identifier(schema, table)
            )
        )

    return drop


def _patiently(connection: Connection, schema: str, table: str, change: Callable[[], None]) -> None:
    """Runs a change of a table in a transaction that waits for its lock only shortly, and tries again.

    While it waits, every statement on the table queues up behind it.
    """
    try:
        for attempt in patiently(_LOCK_TRIES, 0.2, 1.0):
            with attempt, transaction(connection, lock_timeout=_LOCK_SECONDS):
                change()
    except NOT_HAD as error:
        raise DefinitionError(
            f"the triggers of {schema}.{table} cannot be changed: a transaction that writes it stays open"
            f"{_held(connection, schema, table)}; end it, then run the same command again"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise DefinitionError(
            f"you may not change the triggers of {schema}.{table}: {one_line(error)}; its owner may"
        ) from error


def _held(connection: Connection, schema: str, table: str) -> str:
    relation = find_relation(connection, quoted_name(schema, table))
    if relation is None:
        return ""
    row = connection.execute(statement("sync", "holders"), {"oid": relation.oid}).fetchone()
    return f" ({row[0]})" if row and row[0] else ""


def _filter_columns(connection: Connection, source: Relation, key: str, filter_: str | None) -> set[str | None]:
    """Which columns the filter reads; None among them: the whole row.

    Raises ``DefinitionError`` for a filter that is not immutable over the row's own columns.
    """
    if filter_ is None:
        return set()
    columns: set[str | None] = set()
    try:
        with connection.transaction(force_rollback=True), transaction(connection):
            connection.execute(
                statement("sync", "filter_table").format(source=sql.Identifier(source.schema, source.name))
            )
            connection.execute(
                statement("sync", "filter_index").format(key=sql.Identifier(key), selected=sql.SQL(f"({filter_}\n)"))
            )
            columns.update(name for (name,) in connection.execute(statement("sync", "filter_columns")).fetchall())
    except psycopg.Error as error:
        raise DefinitionError(
            f"--where {filter_!r} cannot be used with --sync, which needs a condition on the row's own columns that "
            f"always gives the same answer: {one_line(error)}"
        ) from error
    return columns


def _body(connection: Connection, source: Relation, vectorizer: Vectorizer) -> str:
    """The trigger function's source for this vectorizer."""
    old, new = sql.Identifier("pgvec_o"), sql.Identifier("pgvec_n")
    keys = vectorizer.key_columns
    names = [f"pgvec_key{i}" for i in range(len(keys))]
    watched = _watched(connection, source, vectorizer)

    def column(alias: sql.Identifier, name: str) -> sql.Composed:
        return sql.SQL("{}.{}").format(alias, sql.Identifier(name))

    def comparable(alias: sql.Identifier, name: str) -> sql.Composable:
        # An operator of an extension's type is not on the function's search path; its text tells at least as much.
        own = column(alias, name)
        return own if source.columns[name].type_schema == "pg_catalog" else sql.SQL("{}::text").format(own)

    def listed(parts: Sequence[sql.Composable]) -> sql.Composed:
        return sql.SQL(", ").join(parts)

    return (
        statement("sync", "body")
        .format(
            id=sql.Literal(vectorizer.id),
            keys=listed([sql.SQL("{}::text").format(column(sql.Identifier("pgvec_k"), name)) for name in names]),
            new_keys=listed([_as(column(new, key), name) for key, name in zip(keys, names, strict=True)]),
            old_keys=listed([_as(column(old, key), name) for key, name in zip(keys, names, strict=True)]),
            either_keys=listed(
                [
                    _as(sql.SQL("coalesce({}, {})").format(column(new, key), column(old, key)), name)
                    for key, name in zip(keys, names, strict=True)
                ]
            ),
            same_key=sql.SQL(" AND ").join(
                sql.SQL("{} = {}").format(comparable(old, key), comparable(new, key)) for key in keys
            ),
            no_old=sql.SQL("{} IS NULL").format(column(old, keys[0])),
            no_new=sql.SQL("{} IS NULL").format(column(new, keys[0])),
            changed=_changed(source, watched),
        )
        .as_string(connection)
    )


def _changed(source: Relation, watched: Sequence[str]) -> sql.Composed:
    """The condition that a row is another than before, in the columns that matter."""
    old, new = "pgvec_o", "pgvec_n"
    conditions = []
    rest = []
    for name in watched:
        if source.columns[name].base_type in _TEXTS:
            # Half the price of comparing records.
            parts = {"old": sql.Identifier(old, name), "new": sql.Identifier(new, name)}
            conditions.append(statement("sync", "text_changed").format(**parts))
        else:
            rest.append(name)
    if rest:
        lists = {
            side: sql.SQL(", ").join(sql.Identifier(alias, name) for name in rest)
            for side, alias in (("old", old), ("new", new))
        }
        conditions.append(statement("sync", "values_changed").format(**lists))
    return sql.SQL(" OR ").join(conditions) if conditions else sql.Composed([sql.SQL("false")])


def _as(value: sql.Composable, name: str) -> sql.Composed:
    return sql.SQL("{} AS {}").format(value, sql.Identifier(name))


def _watched(connection: Connection, source: Relation, vectorizer: Vectorizer) -> list[str]:
    """The columns whose change matters, compared byte by byte.

    Raises ``DefinitionError`` when the filter of a vector column reads what the worker itself writes there.
    """
    read = _filter_columns(connection, source, vectorizer.key_columns[0], vectorizer.filter)
    shown = Template.parse(vectorizer.template).columns if vectorizer.template else ()
    # Where a key of these types is equal to another, it is the same.
    keys = (name for name in vectorizer.key_columns if source.columns[name].base_type not in _EXACT)
    wanted = {*keys, *vectorizer.text_columns, *shown, *(name for name in read if name is not None)}
    roles = vectorizer.destination_roles
    own = {roles.embedding, roles.source_hash} if vectorizer.into_column else set()
    if own & wanted:
        raise DefinitionError(
            f"--where reads {', '.join(sorted(str(name) for name in own & wanted))}, which the worker writes: with "
            "--sync each vector would be a change that undoes itself"
        )
    virtual = {name for (name,) in connection.execute(statement("sync", "virtual_columns"), {"oid": source.oid})}
    if wanted & virtual or None in read:
        return [name for name in source.columns if name not in virtual | own]
    return [name for name in source.columns if name in wanted]
