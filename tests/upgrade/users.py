"""Users who change the source and search it, all the time, while versions come and go; every error of theirs counts."""

from __future__ import annotations

import threading
from collections import Counter
from random import Random
from types import TracebackType

import psycopg

from pgvec_queue.database import one_line

SOURCE = "CREATE TABLE docs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL)"

_OPERATIONS = {
    "insert": "INSERT INTO docs (body) SELECT 'text ' || %(n)s || ' of ' || i FROM generate_series(1, 10) i",
    "update": "UPDATE docs SET body = 'changed ' || %(n)s || ' ' || id WHERE id %% 101 = %(n)s %% 101",
    "delete": "DELETE FROM docs WHERE id %% 997 = %(n)s %% 997",
    "search": "SELECT count(*) FROM pgvec.vectorizers v, pgvec.search(v.id, %(vector)s::real[]) WHERE v.name = 'docs'",
}
_WEIGHTS = {"insert": 4, "update": 4, "delete": 1, "search": 6}
VECTOR = "{1,0,0,0,0,0,0,0}"


class User(threading.Thread):
    """One of them, from the beginning of the block to its end; ``done`` and ``failures`` are right after it."""

    def __init__(self, dsn: str, seed: int, *, pause: float = 0.02) -> None:
        """``pause`` is in seconds, between two operations."""
        super().__init__(name=f"user-{seed}", daemon=True)
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self._dsn = dsn
        self._random = Random(seed)
        self._pause = pause
        self._over = threading.Event()

    def run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True, application_name="user") as connection:
            while not self._over.wait(self._pause):
                [operation] = self._random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
                values = {"n": self._random.randrange(1 << 30), "vector": VECTOR}
                try:
                    connection.execute(_OPERATIONS[operation].encode(), values)
                except psycopg.Error as error:
                    self.failures.append(f"{operation}: {one_line(error)}")
                else:
                    self.done[operation] += 1

    def __enter__(self) -> User:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self.join(60)
