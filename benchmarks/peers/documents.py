"""The texts that everybody embeds: made of words for what is to be many, docstrings for what a model shall read."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

from pgvec_queue import demo
from pgvec_queue.database import Connection

CHARACTERS = 400
"""About the length of a made text."""
POISON = "POISON"
"""The endpoint refuses a request with a text that has this word."""
_TEXT = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out so up said "
    "what its about than into them can only other time new some could these two may first then do any like my now "
    "over such our man me even most made after also did many off before must well back through years much where "
    "your way down should because long each just state those people too mr how little good world make very year "
    "still see own work men day table index query vector worker database document sentence embedding hardware "
    "accelerator transaction checkpoint"
)


def fill(connection: Connection, table: str, texts: Sequence[str]) -> None:
    """Makes a table ``(id bigint, body text)`` of these texts, with ids from 1, vacuumed and analyzed."""
    connection.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text NOT NULL)".encode())
    with connection.cursor().copy(f"COPY {table} (id, body) FROM STDIN".encode()) as copy:
        for row in enumerate(texts, 1):
            copy.write_row(row)
    connection.execute(f"VACUUM ANALYZE {table}".encode())


@functools.lru_cache(maxsize=2)
def made(count: int) -> Sequence[str]:
    """Returns texts of about ``CHARACTERS`` characters, each another, the same in every run."""
    source, choice = random.Random(count), _TEXT.split()
    words = CHARACTERS // 5
    return [f"{number} {' '.join(source.choices(choice, k=words))}" for number in range(count)]


def with_one_bad(count: int) -> Sequence[str]:
    """Returns made texts of which the middle one is refused."""
    texts = list(made(count))
    texts[count // 2] += f" {POISON}"
    return texts


@functools.lru_cache(maxsize=2)
def docstrings(count: int) -> Sequence[str]:
    """Returns docstrings spread over Python's standard library."""
    found = list({one.name: one.text for one in demo.docstrings()}.values())
    step = max(len(found) / count, 1)
    return [found[int(i * step)] for i in range(min(count, len(found)))]


def fill_short(connection: Connection, table: str, rows: int) -> None:
    """Makes such a table of very short texts, for what only looks at the keys."""
    connection.execute(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text NOT NULL)".encode())
    connection.execute(f"INSERT INTO {table} SELECT i, 'row ' || i FROM generate_series(1, {rows}) i".encode())
    connection.execute(f"VACUUM ANALYZE {table}".encode())
