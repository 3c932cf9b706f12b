"""Users of the database: they change the sources all the time, some of them right where a worker is at work.

Each user is a thread with a connection and a seed of its own. One operation is one transaction; what was committed is
counted in rows. Users get in each other's way (deadlocks, lock timeouts, keys that exist already): that ends one
operation and is counted apart.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import psycopg
from psycopg import sql

from tests.chaos.server import Server
from tests.chaos.tables import POISON, TABLES, Connection, Key, Table, body, by_name

Operation = Callable[["User", Table], int]
Operations = Mapping[str, tuple[float, Operation]]
"""By name: how often, relative to the others, and what is done."""

_RUNNING = """
    SELECT v.name, j.kind, coalesce(j.checkpoint, j.lower_key), j.keys,
           CASE WHEN j.kind = 'keys' THEN coalesce(j.checkpoint[1]::int, 0) END
    FROM pgvec.jobs j JOIN pgvec.vectorizers v ON v.id = j.vectorizer_id
    WHERE j.state = 'running' AND j.kind <> 'sweep'"""
_BULK = 120
_CONFLICTS = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.LockNotAvailable,
    psycopg.errors.QueryCanceled,
    psycopg.errors.UniqueViolation,
)


class User:
    """One thread; ``changes`` and ``done`` are right once it has ended."""

    def __init__(
        self,
        server: Server,
        seed: str,
        per_second: float,
        poison: float,
        tables: Sequence[Table],
        operations: Operations,
    ) -> None:
        """``per_second`` counts operations, ``poison`` is the probability that a new text is poisonous."""
        self.changes = 0
        """Rows inserted, updated and deleted in committed transactions."""
        self.done: Counter[str] = Counter()
        """Operations by kind, and ``conflict``, ``lost connection``."""
        self.failure: BaseException | None = None
        self._server = server
        self._random = Random(seed)
        self._per_second = per_second
        self._poison = poison
        self._tables = tables
        self._operations = operations
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="user", daemon=True)
        self._connection: Connection | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self, timeout: float) -> None:
        """Waits for its end, if it was started."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise RuntimeError("a user does not end")

    def check(self) -> None:
        """Raises what ended it."""
        if self.failure is not None:
            raise RuntimeError(f"a user failed: {self.failure}") from self.failure

    @property
    def connection(self) -> Connection:
        assert self._connection is not None
        return self._connection

    def _run(self) -> None:
        names, weights = zip(*((name, weight) for name, (weight, _) in self._operations.items()), strict=True)
        try:
            while not self._stop.wait(self._random.expovariate(self._per_second)):
                name = self._random.choices(names, weights)[0]
                table = self._random.choice(self._tables)
                self._try(name, table)
        # A thread ends here; whoever looks after it raises its cause.
        except BaseException as error:  # noqa: BLE001
            self.failure = error
        finally:
            if self._connection is not None:
                self._connection.close()

    def _try(self, name: str, table: Table) -> None:
        _, operation = self._operations[name]
        changed = 0
        try:
            if self._connection is None or self._connection.closed:
                self._connection = self._server.connect(
                    application_name="user", options="-c lock_timeout=3s -c statement_timeout=30s"
                )
            with self.connection.transaction():
                changed = operation(self, table)
            self.changes += changed
            self.done[name] += 1
        except _CONFLICTS:
            self.done["conflict"] += 1
        # A roll-back that was asked for comes through as it is where the connection is lost meanwhile.
        except (psycopg.OperationalError, psycopg.Rollback):
            self.done["lost connection"] += 1
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _keys(self, table: Table, count: int = 1) -> list[Key]:
        return table.near(self.connection, table.new_key(self._random), count)

    def _body(self) -> str | None:
        if self._random.random() < 0.03:
            return self._random.choice((None, "", " \n"))
        return body(self._random, self._poison)

    def _execute(self, query: str, table: Table, parameters: Sequence[Any], keys: int = 1) -> int:
        text = sql.SQL(query).format(
            table=sql.Identifier(table.name), key=table.key, key_row=table.key_row, keys=table.values(keys)
        )
        return self.connection.execute(text, parameters).rowcount

    def insert(self, table: Table) -> int:
        count = self._random.choice((1, 1, 1, 2, 4))
        return sum(
            self._execute(
                "INSERT INTO {table} ({key}, body) SELECT k.*, %s::text FROM (VALUES {keys}) k ON CONFLICT DO NOTHING",
                table,
                [self._body(), *table.new_key(self._random)],
            )
            for _ in range(count)
        )

    def update_text(self, table: Table) -> int:
        return sum(self._set_body(table, key) for key in self._keys(table))

    def _set_body(self, table: Table, key: Key) -> int:
        return self._execute("UPDATE {table} SET body = %s WHERE {key_row} = {keys}", table, [self._body(), *key])

    def update_other(self, table: Table) -> int:
        keys = self._keys(table)
        return sum(
            self._execute("UPDATE {table} SET note = note + 1 WHERE {key_row} = {keys}", table, key) for key in keys
        )

    def delete(self, table: Table) -> int:
        keys = self._keys(table, self._random.choice((1, 1, 2, 3)))
        return sum(self._execute("DELETE FROM {table} WHERE {key_row} = {keys}", table, key) for key in keys)

    def change_key(self, table: Table) -> int:
        return sum(self._set_key(table, key, table.new_key(self._random)) for key in self._keys(table))

    def _set_key(self, table: Table, old: Key, new: Key) -> int:
        return self._execute(
            "UPDATE {table} SET ({key}) = (SELECT k.* FROM (VALUES {keys}) k) WHERE {key_row} = {keys}",
            table,
            [*new, *old],
        )

    def upsert(self, table: Table) -> int:
        keys = [*self._keys(table, 2), table.new_key(self._random)]
        return sum(
            self._execute(
                "INSERT INTO {table} ({key}, body) SELECT k.*, %s::text FROM (VALUES {keys}) k"
                " ON CONFLICT ({key}) DO UPDATE SET body = excluded.body",
                table,
                [self._body(), *key],
            )
            for key in keys
        )

    def bulk_text(self, table: Table) -> int:
        keys = self._keys(table, self._random.randrange(_BULK))
        if not keys:
            return 0
        # A text that kills costs a lease each time it is new: those are left as they are.
        return self._execute(
            "UPDATE {table} SET body = body || %s WHERE {key_row} IN (VALUES {keys}) AND body NOT LIKE %s",
            table,
            [f" {self._random.getrandbits(24):x}.", *(part for key in keys for part in key), f"%{POISON['kill']}%"],
            keys=len(keys),
        )

    def bulk_other(self, table: Table) -> int:
        keys = self._keys(table, self._random.randrange(_BULK))
        if not keys:
            return 0
        return self._execute(
            "UPDATE {table} SET note = note + 1 WHERE {key_row} IN (VALUES {keys})",
            table,
            [part for key in keys for part in key],
            keys=len(keys),
        )

    def hide(self, table: Table) -> int:
        """Rows leave what the filter selects, or come back."""
        if table.name != "docs":
            return self.update_other(table)
        keys = self._keys(table, 3)
        return sum(
            self._execute("UPDATE {table} SET hidden = NOT hidden WHERE {key_row} = {keys}", table, key) for key in keys
        )

    def rolled_back(self, table: Table) -> int:
        operation = self._random.choice((User.insert, User.update_text, User.delete, User.change_key, User.bulk_text))
        operation(self, table)
        raise psycopg.Rollback

    def savepoint(self, table: Table) -> int:
        """Something that stays, something that is taken back, and something else that stays."""
        changed = self.update_text(table)
        with self.connection.transaction(force_rollback=True):
            self.update_text(table)
            self.delete(table)
        return changed + self.insert(table)

    def truncate(self, table: Table) -> int:
        """Empties a table and fills it anew, in one transaction."""
        truncated = [one for one in self._tables if one.truncated]
        if not truncated:
            return self.update_other(table)
        table = self._random.choice(truncated)
        count = self.connection.execute(f"SELECT count(*) FROM {table.name}".encode()).fetchone()
        self._execute("TRUNCATE {table}", table, [])
        filled = sum(self.insert(table) for _ in range(self._random.randrange(table.rows)))
        return filled + (int(count[0]) if count else 0)

    def aim(self, _: Table) -> int:
        """Changes rows that some worker has just read, or is about to read."""
        running = [row for row in self.connection.execute(_RUNNING) if row[0] in {t.name for t in self._tables}]
        if not running:
            return 0
        name, kind, after, listed, position = self._random.choice(sorted(running, key=repr))
        table = by_name(name, self._tables)
        if kind == "keys":
            keys = [tuple(key) for key in listed[position:]]
        else:
            keys = table.near(self.connection, tuple(after), 40) if after else self._keys(table, 40)
        if not keys:
            return 0
        changed = 0
        for key in self._random.sample(keys, min(3, len(keys))):
            operation = self._random.randrange(8)
            if operation < 4:
                changed += self._set_body(table, key)
            elif operation == 4:
                changed += self._execute("DELETE FROM {table} WHERE {key_row} = {keys}", table, key)
            elif operation == 5:
                changed += self._set_key(table, key, table.new_key(self._random))
            elif operation == 6:
                changed += self._execute("UPDATE {table} SET note = note + 1 WHERE {key_row} = {keys}", table, key)
            else:
                changed += self._set_key(table, table.new_key(self._random), key)
        return changed


OPERATIONS: Operations = {
    "insert": (20, User.insert),
    "update text": (20, User.update_text),
    "update other": (8, User.update_other),
    "delete": (12, User.delete),
    "change key": (6, User.change_key),
    "upsert": (6, User.upsert),
    "bulk text": (2.5, User.bulk_text),
    "bulk other": (1, User.bulk_other),
    "hide": (3, User.hide),
    "rolled back": (5, User.rolled_back),
    "savepoint": (5, User.savepoint),
    "truncate": (0.15, User.truncate),
    "aim": (15, User.aim),
}


class Users:
    """All users of a run."""

    def __init__(
        self,
        server: Server,
        seed: int,
        *,
        count: int,
        per_second: float,
        poison: float,
        tables: Sequence[Table] = TABLES,
        operations: Operations = OPERATIONS,
    ) -> None:
        self._users = [User(server, f"{seed}/user/{i}", per_second, poison, tables, operations) for i in range(count)]

    def start(self) -> None:
        for user in self._users:
            user.start()

    def stop(self) -> None:
        """Lets each finish the operation in hand; raises where one has failed."""
        self.close()
        self.check()

    def check(self) -> None:
        for user in self._users:
            user.check()

    def close(self) -> None:
        for user in self._users:
            user.stop()
        for user in self._users:
            user.join(60)

    @property
    def changes(self) -> int:
        return sum(user.changes for user in self._users)

    @property
    def done(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for user in self._users:
            total += user.done
        return total
