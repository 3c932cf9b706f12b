"""Another model for a vectorizer: a second one over the same rows, filled beside the first, which then takes its name.

Guarantees: everything but the name belongs to a vectorizer's id (its model, its destination, its jobs, its triggers),
and a switch swaps two names in one UPDATE. So whoever resolves a name gets one whole vectorizer or the other: a search
never asks the vectors of one model with a query of the other. Until it is finished both are kept in sync, where the
first one was, and a rollback loses nothing.

Not guaranteed: that the new one is complete when it is switched. ``model_report.obstacles`` tells that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg
import tenacity
from psycopg import sql

from pgvec_queue import catalog, definition, definition_differences, progress, sync, vector_index, vectorizer
from pgvec_queue.catalog import find_relation, quoted_name
from pgvec_queue.database import Connection, Versions, one_line, statement, transaction
from pgvec_queue.definition import Defined, Options
from pgvec_queue.errors import DefinitionDiffersError, DefinitionError, PgvecError
from pgvec_queue.vectorizer import Vectorizer

OTHER = "@other"
"""Ends the name of the one that waits: the new one before the switch, the old one after it."""
_LONGEST_NAME = 190
_LONGEST_TABLE = 60
_LONGEST_COLUMN = 55
"""With room for a number, and for what the column of hashes is called."""
_LONGEST_SHORT = 30
_LOCK_SECONDS = 1.0
_LOCK_TRIES = 20

OF_THE_MODEL = ("revision", "query_prompt", "document_prompt", "dimensions", "tokenizer")
"""What another model has its own of."""


class NoMigrationError(PgvecError):
    """The vectorizer is on its way to no other model."""


class MigrationStateError(PgvecError):
    """It cannot be done now: it has been switched already, or not yet."""


@dataclass(frozen=True, slots=True)
class Migration:
    """Two vectorizers over the same rows, the old one and the new one."""

    old: Vectorizer
    new: Vectorizer
    created_at: datetime
    switched_at: datetime | None

    @property
    def reads(self) -> Vectorizer:
        """The one that searches find by the name that they know."""
        return self.old if self.switched_at is None else self.new

    @property
    def waits(self) -> Vectorizer:
        """The one beside it."""
        return self.new if self.switched_at is None else self.old


@dataclass(frozen=True, slots=True)
class Begun:
    """A migration that is there, and what its new vectorizer is."""

    migration: Migration
    defined: Defined
    limit: int | None
    """How many rows are still to be planned, where the old one has a part of them only."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What has become of a vectorizer that was given up, and of its destination."""

    name: str
    destination: str
    statement: str | None
    """What removes the destination, where it is still there."""
    why: str | None
    """Why it is."""


@dataclass(frozen=True, slots=True)
class Open:
    """An open migration, as it is shown beside others."""

    reads: str
    waits: str
    model: str
    """The new one."""
    switched: bool

    def as_json(self, name: str) -> dict[str, Any]:
        """Returns it as it is seen from one of the two."""
        return {
            "to": self.model,
            "beside": self.waits if name == self.reads else self.reads,
            "reads": name == self.reads,
            "switched": self.switched,
        }


def overview(connection: Connection) -> dict[str, Open]:
    """Returns all open migrations, each by both of its names."""
    found = [Open(*row) for row in connection.execute(statement("model_migration", "all")).fetchall()]
    return {name: one for one in found for name in (one.reads, one.waits)}


def find(connection: Connection, found: Vectorizer) -> Migration | None:
    """Returns the open migration that a vectorizer is a part of, or None."""
    row = connection.execute(statement("model_migration", "of"), {"id": found.id}).fetchone()
    if row is None:
        return None
    old_id, new_id, created_at, switched_at = row
    both = {one.id: one for one in vectorizer.by_ids(connection, [old_id, new_id])}
    if len(both) < 2:
        # Dropped at this moment; the row goes with it.
        return None
    return Migration(both[old_id], both[new_id], created_at, switched_at)


def get(connection: Connection, name: str) -> Migration:
    """Returns the open migration of the vectorizer of that name, whichever of the two it is.

    Raises ``DefinitionError`` where there is no such vectorizer, ``NoMigrationError`` where it is on its way nowhere.
    """
    found = find(connection, vectorizer.get(connection, name))
    if found is None:
        raise NoMigrationError(
            f"{name} is on its way to no other model; begin with: pgvec migrate-model {name} --model MODEL"
        )
    return found


def begin(connection: Connection, name: str, given: Mapping[str, Any], versions: Versions) -> Begun:
    """Makes the second vectorizer, or finds the one that was made for the same; its jobs are not planned yet.

    ``given`` is what shall be otherwise, by the names of ``Options``. Raises ``DefinitionError`` where nothing would be
    otherwise, another migration is open, or the new definition does not fit.
    """
    old, open_, options = _wanted(connection, name, given)
    limit = _rows_left(connection, old, options.name) if vectorizer.is_limited(connection, old.id) else None

    def begun(new: Vectorizer) -> None:
        connection.execute(statement("model_migration", "begin"), {"old": old.id, "new": new.id})

    try:
        # Stored together: at no moment there are two that a search without a name could mean.
        defined = definition.define(connection, options, versions, also=begun)
    except DefinitionDiffersError as error:
        raise _other_target(name, open_, options, error) from error
    with transaction(connection):
        begun(defined.vectorizer)
        if defined.new:
            vector_index.want_alike(connection, defined.vectorizer, old)
    made = find(connection, old)
    if made is None or made.new.id != defined.vectorizer.id or made.old.id != old.id:
        raise DefinitionError(
            f"somebody else has begun to migrate {name} at this moment; `pgvec migrate-model {name}` shows it"
        )
    return Begun(made, replace(defined, vectorizer=made.new), limit)


def propose(connection: Connection, name: str, given: Mapping[str, Any], versions: Versions) -> Vectorizer:
    """Checks what ``begin`` would, and returns the vectorizer that it would make; nothing is made."""
    _, open_, options = _wanted(connection, name, given)
    try:
        return definition.propose(connection, options, versions)
    except DefinitionDiffersError as error:
        raise _other_target(name, open_, options, error) from error


def switch(connection: Connection, migration: Migration) -> None:
    """Swaps the two names: from now on the name means the new vectorizer. Raises ``MigrationStateError``."""
    _swap(connection, "switch", migration)


def roll_back(connection: Connection, migration: Migration) -> None:
    """Swaps them back. Raises ``MigrationStateError`` when nothing was switched."""
    _swap(connection, "roll_back", migration)


def finish(connection: Connection, migration: Migration, *, keep_destination: bool = False) -> Removed:
    """Drops the old vectorizer and, where we have made it and nothing depends on it, its destination.

    Raises ``MigrationStateError`` before the switch, ``PgvecError`` when a table stays locked.
    """
    return _remove(connection, migration, migration.old, keep_destination=keep_destination)


def abandon(connection: Connection, migration: Migration, *, keep_destination: bool = False) -> Removed:
    """Drops the new vectorizer, before the switch, as ``finish`` drops the old one after it."""
    return _remove(connection, migration, migration.new, keep_destination=keep_destination)


def _swap(connection: Connection, action: str, migration: Migration) -> None:
    try:
        for attempt in _patiently():
            with attempt, transaction(connection):
                connection.execute(statement("model_migration", action), {"name": migration.reads.name})
    except (psycopg.errors.NoDataFound, psycopg.errors.ObjectNotInPrerequisiteState) as error:
        raise MigrationStateError(one_line(error)) from error
    except psycopg.errors.LockNotAvailable as error:
        raise PgvecError(
            "somebody keeps pgvec.vectorizers or pgvec.tasks locked; nothing was changed, try again"
        ) from error


def _patiently() -> tenacity.Retrying:
    """Tries again where a lock could not be had shortly, so that nobody queues up behind the wait for it."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)),
        stop=tenacity.stop_after_attempt(_LOCK_TRIES),
        wait=tenacity.wait_random(0.1, 0.5),
        reraise=True,
    )


def _wanted(
    connection: Connection, name: str, given: Mapping[str, Any]
) -> tuple[Vectorizer, Migration | None, Options]:
    """Returns the old vectorizer, the migration that is open, and what the new one is to be."""
    found = vectorizer.get(connection, name)
    open_ = find(connection, found)
    if open_ is not None and open_.switched_at is not None:
        raise DefinitionError(
            f"{open_.new.name} was switched to {open_.new.model}, and {open_.old.name} still has {open_.old.model}; "
            f"end that first: pgvec migrate-model {open_.new.name} --finish, or --rollback"
        )
    old = found if open_ is None else open_.old
    source = catalog.get_relation(connection, quoted_name(old.source_schema, old.source_table))
    options = replace(_options(old, given), index_new=vector_index.is_wanted(connection, old))
    _refuse_the_same(connection, old, options, source)
    if open_ is not None:
        return old, open_, replace(options, name=open_.new.name, **_where_it_is(open_.new, options))
    options = replace(options, name=_other_name(old.name), rows_per_job=old.rows_per_job, priority=old.priority)
    half_made = vectorizer.find(connection, options.name or "")
    if half_made is not None:
        # Somebody has made it by hand, or a migration was ended by dropping the old one.
        return old, None, replace(options, **_where_it_is(half_made, options))
    return old, None, replace(options, **_where_to(connection, old, options, source))


def _options(old: Vectorizer, given: Mapping[str, Any]) -> Options:
    """Returns the old definition with what is given in its place; what belongs to the model goes with it."""
    kept: dict[str, Any] = {
        "template": old.template,
        "chunk_size": old.chunk_size,
        "chunk_overlap": old.chunk_overlap,
        "no_chunking": old.chunk_size is None,
        "too_long": old.too_long,
        "store": old.store,
        "embedder": old.embedder,
        "endpoint": old.endpoint,
        "model": old.model,
        "trust_remote_code": old.trust_remote_code,
    } | {name: getattr(old, name) for name in OF_THE_MODEL}
    if given.get("model") not in (None, old.model) or given.get("embedder") not in (None, old.embedder):
        kept |= dict.fromkeys(OF_THE_MODEL) | {"trust_remote_code": False}
        if old.embedder != "openai" or given.get("embedder") not in (None, "openai"):
            kept |= {"embedder": None, "endpoint": None}
    elif "revision" in given:
        kept["trust_remote_code"] = False
    if given.get("chunk_size") is not None:
        kept["no_chunking"] = False
        if old.chunk_overlap is not None and 2 * old.chunk_overlap > given["chunk_size"]:
            kept["chunk_overlap"] = None
    if given.get("no_chunking") or given.get("into_column") is not None:
        kept |= {"no_chunking": True, "chunk_size": None, "chunk_overlap": None}
    roles = old.destination_roles.as_json()
    return Options(
        source=quoted_name(old.source_schema, old.source_table),
        text=old.text_columns,
        key=old.key_columns,
        where=old.filter,
        columns={}
        if old.into_column or given.get("into_column")
        else {role: names if isinstance(names, list) else [names] for role, names in roles.items()},
        sync=old.sync or None,
        **(kept | dict(given)),
    )


def _refuse_the_same(connection: Connection, old: Vectorizer, options: Options, source: catalog.Relation) -> None:
    """Raises ``DefinitionError`` where the vectors would be the ones that there are, and in the same place."""
    if options.into is not None or options.into_column is not None:
        return
    column = old.destination_roles.embedding if old.into_column else None
    try:
        definition_differences.refuse(
            connection, old, replace(options, name=old.name, into_column=column, columns={}), source
        )
    except DefinitionDiffersError:
        return
    raise DefinitionError(
        f"{old.name} is embedded with {old.model} as it is, in the same way; say what shall be otherwise: --model MODEL"
    )


def _where_it_is(new: Vectorizer, options: Options) -> dict[str, Any]:
    """Where the new vectors go already, unless another place was asked for."""
    if options.into is not None or options.into_column is not None:
        return {}
    if new.into_column:
        return {"into_column": new.destination_roles.embedding, "columns": {}}
    return {"into": None}


def _where_to(connection: Connection, old: Vectorizer, options: Options, source: catalog.Relation) -> dict[str, Any]:
    """A place for the new vectors beside the old ones, whose name nothing has."""
    if options.into is not None or options.into_column is not None:
        return {}
    short = _short(options.resolved_model)
    if old.into_column:
        # Without the old model's name, which an earlier migration has put there.
        column = re.sub(f"_{_short(old.model)}(_[0-9]+)?$", "", old.destination_roles.embedding) or "embedding"
        names = _numbered(column, short, _LONGEST_COLUMN)
        return {
            "into_column": next(
                one for one in names if one not in source.columns and f"{one}_hash" not in source.columns
            )
        }
    usual = f"{old.source_table}_vectors"
    given = re.sub(f"_{_short(old.model)}(_[0-9]+)?$", "", old.destination_table) or usual
    base = usual if old.destination_table.startswith(usual) else given
    schema = old.destination_schema
    names = _numbered(base, short, _LONGEST_TABLE)
    free = next(one for one in names if find_relation(connection, quoted_name(schema, one)) is None)
    return {"into": quoted_name(schema, free)}


def _short(model: str) -> str:
    """Returns a model's name as a part of a table's."""
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1]
    return re.sub("[^a-z0-9]+", "_", last.lower()).strip("_")[:_LONGEST_SHORT].strip("_") or "model"


def _numbered(base: str, short: str, longest: int) -> Iterator[str]:
    room = longest - len(short) - 1
    stem = f"{base.encode()[:room].decode(errors='ignore')}_{short}"
    yield stem
    number = 2
    while True:
        yield f"{stem}_{number}"
        number += 1


def _other_name(name: str) -> str:
    return name[:_LONGEST_NAME] + OTHER


def _other_target(
    name: str, open_: Migration | None, options: Options, error: DefinitionDiffersError
) -> DefinitionError:
    if open_ is None:
        return DefinitionError(
            f"the name {options.name}, which the new vectorizer would have, belongs to one with another definition; "
            f"drop that, or rename it: pgvec alter {options.name} --name NEW"
        )
    return DefinitionError(
        f"{name} is on its way to {open_.new.model} already, in {open_.new.name}, and what is asked for now differs "
        f"({str(error).partition(': ')[2].partition(';')[0]}); give that up first: "
        f"pgvec migrate-model {open_.old.name} --abandon"
    )


def _rows_left(connection: Connection, old: Vectorizer, name: str | None) -> int:
    """How many rows the new one still lacks of those that `enqueue --limit` has selected for the old one."""
    selected = sum(one.rows_total for one in progress.read(connection, old.name))
    return max(selected - sum(one.rows_total for one in progress.read(connection, name)), 0)


def _remove(connection: Connection, migration: Migration, dropped: Vectorizer, *, keep_destination: bool) -> Removed:
    stays = migration.new if dropped.id == migration.old.id else migration.old
    removal = _removal(dropped)
    why: str | None = None
    if keep_destination:
        why = "as asked for"
    elif not dropped.destination_created:
        why = "it was there before"
    try:
        for attempt in _patiently():
            with attempt:
                name, refused = _remove_once(connection, migration, dropped, stays, None if why else removal)
    except psycopg.errors.LockNotAvailable as error:
        raise PgvecError(
            f"{dropped.name} cannot be dropped: {dropped.source} or {dropped.destination} stays locked; nothing was "
            "changed, try again when the transactions that use them have ended"
        ) from error
    why = why or refused
    shown = removal.as_string(connection) if why else None
    return Removed(name, dropped.destination_label, shown, why)


def _remove_once(
    connection: Connection, migration: Migration, dropped: Vectorizer, stays: Vectorizer, removal: sql.Composed | None
) -> tuple[str, str | None]:
    """Does it all in one short transaction; returns the name that was dropped and why the destination is still there.

    The vectorizer and its destination go together: whoever still searches there finds neither, and looks for the name
    again.
    """
    refused = None
    with transaction(connection, statement_timeout=600, lock_timeout=_LOCK_SECONDS):
        row = connection.execute(
            statement("model_migration", "lock"),
            {"old": migration.old.id, "new": migration.new.id, "dropped": dropped.id},
        ).fetchone()
        if row is None:
            raise MigrationStateError("the migration has been ended by somebody else; see `pgvec status`")
        _, _, switched, name = row
        if switched != (dropped.id == migration.old.id):
            raise MigrationStateError(
                f"{name} is what is searched now, and cannot be dropped like this"
                if switched
                else f"nothing was switched, and {name} is what is searched; switch first, or give up with --abandon"
            )
        connection.execute(statement("model_migration", "lock_jobs"), {"id": dropped.id})
        connection.execute(statement("vectorizer", "drop"), {"name": name})
        if removal is not None:
            refused = _drop_destination(connection, removal)
        if stays.sync and dropped.into_column and refused is None and removal is not None:
            # Its triggers may compare whole rows, and name the columns that are gone.
            sync.install(connection, stays)
        connection.execute(
            statement("model_migration", "finished"),
            {
                "kind": "migration finished" if switched else "migration given up",
                "id": stays.id,
                "message": f"{name}, {dropped.model}, is dropped",
            },
        )
    return name, refused


def _drop_destination(connection: Connection, removal: sql.Composed) -> str | None:
    """Drops it, unless something depends on it or it is somebody else's; returns the reason then."""
    try:
        with connection.transaction():
            connection.execute(removal)
    except psycopg.errors.DependentObjectsStillExist as error:
        users = [line.strip() for line in (error.diag.message_detail or "").splitlines() if line.strip()]
        return users[0] if users else "something depends on it"
    except psycopg.errors.InsufficientPrivilege as error:
        return one_line(error)
    return None


def _removal(dropped: Vectorizer) -> sql.Composed:
    destination = sql.Identifier(dropped.destination_schema, dropped.destination_table)
    if not dropped.into_column:
        return statement("model_migration", "drop_table").format(destination=destination)
    roles = dropped.destination_roles
    columns = [name for name in (roles.embedding, roles.source_hash) if name is not None]
    return statement("model_migration", "drop_columns").format(
        destination=destination,
        columns=sql.SQL(", ").join(
            statement("model_migration", "drop_column").format(column=sql.Identifier(name)) for name in columns
        ),
    )
