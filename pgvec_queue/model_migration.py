"""Another model for a vectorizer: two vectorizers over the same rows, of which one is to take the other's name.

Guarantees: everything but the name belongs to a vectorizer's id (its model, its destination, its jobs, its triggers),
and a switch swaps two names in one UPDATE. So whoever resolves a name gets one whole vectorizer or the other: a search
never asks the vectors of one model with a query of the other. Until it is finished both are kept in sync, where the
first one was, and a rollback loses nothing. How it begins: ``model_migration_begin``; how it ends:
``model_migration_end``.

Not guaranteed: that the new one is complete when it is switched. ``model_report.obstacles`` tells that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from pgvec_queue import vectorizer
from pgvec_queue.database import Connection, one_line, statement, transaction
from pgvec_queue.errors import PgvecError
from pgvec_queue.locks import NOT_HAD, patiently
from pgvec_queue.vectorizer import Vectorizer

_LOCK_TRIES = 20


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


def switch(connection: Connection, migration: Migration) -> None:
    """Swaps the two names: from now on the name means the new vectorizer. Raises ``MigrationStateError``."""
    _swap(connection, "switch", migration)


def roll_back(connection: Connection, migration: Migration) -> None:
    """Swaps them back. Raises ``MigrationStateError`` when nothing was switched."""
    _swap(connection, "roll_back", migration)


def _swap(connection: Connection, action: str, migration: Migration) -> None:
    try:
        for attempt in patiently(_LOCK_TRIES, 0.1, 0.5):
            with attempt, transaction(connection):
                connection.execute(statement("model_migration", action), {"name": migration.reads.name})
    except (psycopg.errors.NoDataFound, psycopg.errors.ObjectNotInPrerequisiteState) as error:
        raise MigrationStateError(one_line(error)) from error
    except NOT_HAD as error:
        raise PgvecError(
            "somebody keeps pgvec.vectorizers or pgvec.tasks locked; nothing was changed, try again"
        ) from error
