"""The second step of an estimate: documents drawn from the first, read, and cut as a worker would cut them.

Large documents are drawn with a higher chance, by the root of their size: they hold most of the tokens, and take as
long to tokenize. They are read by their keys in short transactions, a few megabytes at a time; nothing is open in the
database while they are cut. What would not be embedded (blank, unchanged, in quarantine) is not fetched.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from psycopg import sql

from pgvec_queue.cutting import Recipe, cut
from pgvec_queue.database import Connection, statement
from pgvec_queue.estimate.survey import Survey, reading
from pgvec_queue.estimate.totals import Floats, Indexes
from pgvec_queue.fragments import Fragments, identifier
from pgvec_queue.queue import Key
from pgvec_queue.slices import Document, Failure
from pgvec_queue.tokenizers import Tokenizer

TEXT_BYTES = 24 * 1024 * 1024
"""About what is read and cut in all; less is drawn where documents are large."""
_BATCH_ROWS, _BATCH_BYTES = 500, 4 * 1024 * 1024
_FEWEST = 20
"""Documents that are read however large they are."""


class State(enum.Enum):
    """What would happen to a row."""

    NEW = "new"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    BLANK = "blank"
    QUARANTINED = "quarantined"
    """It is in quarantine with the text that it has, and would not be tried."""
    GONE = "gone"
    """It was deleted, or its key changed, while the sample was taken."""


@dataclass(slots=True)
class Drawn:
    """One document: what it is, and its chunks where it would be embedded."""

    key: Key
    state: State
    key_sizes: Sequence[int] = ()
    """Bytes of each column of the key in the destination, as ``pg_column_size`` tells them."""
    size: int = 0
    stored: int = 0
    """Bytes that its text takes in the source, compressed or not."""
    chunks: list[int] = field(default_factory=list)
    """Bytes of each chunk's text."""
    marks: list[int] = field(default_factory=list)
    """A number for what the model is given for each chunk; the same for the same."""
    tokens: int = 0
    too_long: bool = False
    """It would go to quarantine for its length."""
    failed: bool = False
    """It would go to quarantine, for whatever reason."""
    truncated: bool = False

    @property
    def is_to_do(self) -> bool:
        return self.state in (State.NEW, State.CHANGED)


def draw(sizes: Floats, wanted: int, random: np.random.Generator) -> tuple[Indexes, Floats]:
    """Draws about ``wanted`` documents; returns which, and the chance that each of these had.

    ``sizes`` ``(k,)`` are in bytes. All are taken where there are no more.
    """
    mean = float(sizes.mean()) if len(sizes) else 0.0
    if len(sizes) <= wanted and sizes.sum() <= TEXT_BYTES:
        return np.arange(len(sizes)), np.ones(len(sizes))
    weights = np.sqrt(sizes + max(mean, 1.0))
    chances = _chances(weights, min(wanted, len(sizes)))
    heavy = float((chances * sizes).sum())
    while heavy > TEXT_BYTES and chances.sum() > 1:
        chances = _chances(weights, max(1.0, float(chances.sum()) * 0.9 * TEXT_BYTES / heavy))
        heavy = float((chances * sizes).sum())
        if chances.sum() <= _FEWEST:
            break
    drawn = np.flatnonzero(random.random(len(sizes)) < chances)
    return drawn, chances[drawn]


def _chances(weights: Floats, wanted: float) -> Floats:
    """Probabilities in proportion to ``weights``, none over 1, that add up to ``wanted``."""
    chances: Floats = np.minimum(weights * (wanted / weights.sum()), 1.0)
    for _ in range(20):
        certain = chances >= 1.0
        left = wanted - certain.sum()
        rest = float(weights[~certain].sum())
        if left <= 0 or not rest:
            break
        scaled = np.where(certain, 1.0, np.minimum(weights * (left / rest), 1.0))
        if np.allclose(scaled, chances):
            break
        chances = scaled
    return chances


class Documents:
    """Reads the drawn documents of one vectorizer."""

    def __init__(self, connection: Connection, fragments: Fragments, *, destination_exists: bool) -> None:
        self._connection = connection
        self._fragments = fragments
        self._vectorizer = fragments.vectorizer
        self._query = _query(fragments, destination_exists=destination_exists)

    def read(
        self, survey: Survey, drawn: Indexes, recipe: Recipe | None, tokenizer: Tokenizer | None
    ) -> Iterator[Drawn]:
        """Yields the drawn documents in order, cut where there is something to cut them with.

        Raises as ``cut`` does where it is not a document's fault.
        """
        sizes = survey.population.sizes
        for batch in _batches(drawn, sizes):
            found = self._fetch([survey.keys[index] for index in batch])
            if recipe is not None and tokenizer is not None:
                _cut(recipe, tokenizer, found)
            yield from (one for one, _ in found)

    def _fetch(self, keys: Sequence[Key]) -> list[tuple[Drawn, Document]]:
        with reading(self._connection):
            rows: dict[int, Sequence[Any]] = {
                position: rest
                for position, *rest in self._connection.execute(
                    self._query,
                    {**self._fragments.key_lists(keys), "max_bytes": self._vectorizer.max_document_bytes},
                )
            }
        found = []
        for position, key in enumerate(keys, 1):
            row = rows.get(position)
            if row is None:
                found.append((Drawn(key, State.GONE), Document(key, b"", "", b"", None, 0, (), position)))
                continue
            state, size, text, columns, key_sizes, stored = row
            one = Drawn(key, State(state), key_sizes, size or 0, stored or 0)
            found.append((one, Document(key, b"", text, b"", None, one.size, tuple(columns), position)))
        return found


def _query(fragments: Fragments, *, destination_exists: bool) -> sql.Composed:
    vectorizer = fragments.vectorizer
    held: sql.Composable = sql.SQL("(SELECT true FROM {} d WHERE {} LIMIT 1) IS NOT NULL").format(
        fragments.destination, fragments.matches_destination
    )
    if vectorizer.into_column:
        held = sql.SQL("{} IS NOT NULL").format(identifier("s", vectorizer.destination_roles.embedding))
    blank = sql.SQL("pgvec.is_blank({})").format(fragments.document)
    state = statement("estimate", "state" if destination_exists else "state_without_destination").format(
        blank=blank,
        quarantined=fragments.quarantined,
        **({"current": fragments.current, "held": held} if destination_exists else {}),
    )
    return fragments.compose(
        "estimate",
        "documents",
        state=state,
        key_sizes=sql.SQL(", ").join(
            sql.SQL("pg_column_size({}::{})").format(key, cast_to)
            for key, cast_to in zip(fragments.source_key, fragments.destination_casts, strict=True)
        ),
        stored=sql.SQL(" + ").join(
            sql.SQL("coalesce(pg_column_size({}), 0)").format(identifier("s", name)) for name in vectorizer.text_columns
        ),
        listed=fragments.listed(),
        listed_is_source=fragments.listed_is("s"),
    )


def _batches(drawn: Indexes, sizes: Floats) -> Iterator[list[int]]:
    batch: list[int] = []
    held = 0.0
    for index in drawn.tolist():
        if batch and (len(batch) >= _BATCH_ROWS or held + sizes[index] > _BATCH_BYTES):
            yield batch
            batch, held = [], 0.0
        batch.append(index)
        held += float(sizes[index])
    if batch:
        yield batch


def _cut(recipe: Recipe, tokenizer: Tokenizer, found: Sequence[tuple[Drawn, Document]]) -> None:
    """Fills in what a worker would make of the documents."""
    todo = [(one, document) for one, document in found if one.is_to_do]
    for (one, _), chunks in zip(todo, cut(recipe, tokenizer, [document for _, document in todo]), strict=True):
        if isinstance(chunks, Failure):
            one.failed = True
            one.too_long = chunks.error_class in ("DocumentTooLong", "DocumentTooLarge")
            continue
        one.chunks = [len(chunk.text.encode()) for chunk in chunks]
        one.marks = [hash(chunk.input) for chunk in chunks]
        one.tokens = sum(chunk.tokens for chunk in chunks)
        one.truncated = any(chunk.truncated for chunk in chunks)
