"""The sources: what they look like, how each is enqueued, and texts for them, poisonous ones among them.

Three shapes of key and all kinds of destination: ``docs`` (bigint, two text columns, a filter, chunks), ``places``
(uuid and text, whole documents, in partitions), ``cards`` (integer, a vector column of its own) and ``tags`` (small,
truncated now and then). Keys are drawn from a wide space, so that new ones fall between old ones.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

import psycopg
from psycopg import sql

MODEL = "hashing-16"
CHUNK_SIZE, CHUNK_OVERLAP = 12, 3
POISON = {name: f"poison{name}" for name in ("refuse", "nan", "inf", "shape", "kill")}
"""The words of the hashing embedder's faults."""
HARMLESS = ("refuse", "nan", "inf", "shape")
"""Faults that cost no process."""

_WORDS = [
    *("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "lagoon"),
    *("marsh", "north", "ocean", "pines", "quay", "ridge", "shore", "thorn", "upland", "vale", "willow", "zenith"),
]

Key = tuple[Any, ...]
Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Table:
    """A source table and its vectorizer, which has the same name."""

    name: str
    ddl: str
    key_columns: tuple[str, ...]
    key_types: tuple[str, ...]
    new_key: Callable[[Random], Key]
    enqueue: tuple[str, ...]
    """Arguments of ``pgvec enqueue`` after the table's name."""
    rows: int
    chunked: bool = False
    truncated: bool = False
    """Users empty it now and then."""

    @property
    def key(self) -> sql.Composed:
        return sql.SQL(", ").join(map(sql.Identifier, self.key_columns))

    @property
    def key_row(self) -> sql.Composed:
        return sql.SQL("({})").format(self.key)

    def values(self, count: int = 1) -> sql.Composed:
        """Returns placeholders for ``count`` keys: ``(%s::bigint), (%s::bigint)``."""
        one = sql.SQL("({})").format(
            sql.SQL(", ").join(sql.SQL("%s::{}").format(sql.SQL(name)) for name in self.key_types)
        )
        return sql.SQL(", ").join([one] * count)

    def near(self, connection: Connection, pivot: Key, count: int) -> list[Key]:
        """Returns up to ``count`` keys from ``pivot`` on, in order."""
        query = sql.SQL("SELECT {} FROM {} WHERE {} >= {} ORDER BY {} LIMIT %s").format(
            self.key, sql.Identifier(self.name), self.key_row, self.values(), self.key
        )
        return connection.execute(query, [*pivot, count]).fetchall()

    def fill(self, connection: Connection, random: Random, *, share: float, poison: float, killers: int = 0) -> None:
        """Inserts a share of the usual rows; a part of them is poisonous, and ``killers`` of them kill."""
        columns = sql.SQL("COPY {} ({}, body) FROM STDIN").format(sql.Identifier(self.name), self.key)
        keys = {self.new_key(random) for _ in range(round(self.rows * share))}
        with connection.cursor().copy(columns) as copy:
            for i, key in enumerate(sorted(keys)):
                text = f"{sentence(random)} {POISON['kill']}" if i % 100 == 0 and i < 100 * killers else None
                copy.write_row((*map(str, key), text or body(random, poison)))


def _bigint(random: Random) -> Key:
    return (random.randrange(1, 10**9),)


def _pair(random: Random) -> Key:
    return (uuid.UUID(int=random.getrandbits(128)), f"code {random.randrange(100):02}")


_HASHING = ("--embedder", "hashing", "--model", MODEL)

DOCS = Table(
    "docs",
    """CREATE TABLE docs (id bigint PRIMARY KEY, title text, body text, note int NOT NULL DEFAULT 0,
                          hidden boolean NOT NULL DEFAULT false)""",
    ("id",),
    ("bigint",),
    _bigint,
    (
        *("--text", "title", "--text", "body", "--where", "NOT hidden", "--rows-per-job", "200"),
        *("--chunk-size", str(CHUNK_SIZE), "--chunk-overlap", str(CHUNK_OVERLAP), *_HASHING),
    ),
    rows=4_000,
    chunked=True,
)
PLACES = Table(
    "places",
    """CREATE TABLE places (tenant uuid, code text, body text, note int NOT NULL DEFAULT 0,
                            PRIMARY KEY (tenant, code))""",
    ("tenant", "code"),
    ("uuid", "text"),
    _pair,
    ("--text", "body", "--rows-per-job", "150", "--no-chunking", "--partitions", "16", *_HASHING),
    rows=3_000,
)
CARDS = Table(
    "cards",
    """CREATE TABLE cards (id int PRIMARY KEY, body text, note int NOT NULL DEFAULT 0, embedding vector(16),
                           body_hash bytea)""",
    ("id",),
    ("int",),
    _bigint,
    (
        *("--text", "body", "--rows-per-job", "150", *_HASHING),
        *("--into-column", "embedding", "--column", "source_hash=body_hash"),
    ),
    rows=3_000,
)
TAGS = Table(
    "tags",
    "CREATE TABLE tags (id bigint PRIMARY KEY, body text, note int NOT NULL DEFAULT 0)",
    ("id",),
    ("bigint",),
    _bigint,
    ("--text", "body", "--rows-per-job", "50", "--no-chunking", *_HASHING),
    rows=200,
    truncated=True,
)
TABLES = (DOCS, PLACES, CARDS, TAGS)


def by_name(name: str, tables: Iterable[Table] = TABLES) -> Table:
    return next(table for table in tables if table.name == name)


def sentence(random: Random) -> str:
    """One that no other row is likely to have."""
    return f"{random.choice(_WORDS)} {random.getrandbits(40):x} {random.choice(_WORDS)}."


def body(random: Random, poison: float) -> str:
    """A text of one to a few sentences; poisonous with the given probability, without costing a process."""
    sentences = [sentence(random) for _ in range(random.choice((1, 2, 3, 5, 9)))]
    if random.random() < poison:
        sentences.insert(random.randrange(len(sentences) + 1), f"{POISON[random.choice(HARMLESS)]}.")
    return " ".join(sentences)


def faults(delay: float) -> str:
    """Returns the hashing embedder's faults with these words; ``delay`` in seconds per text."""
    return ";".join([f"delay={delay}", *(f"{name}={word}" for name, word in POISON.items())])
