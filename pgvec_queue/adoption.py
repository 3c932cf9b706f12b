"""Takes over vectors that were there before: gives rows whose chunks are those of their present text its hash.

By that hash a row is known to be current, so nothing of it is embedded again. Chunks may be cut as they are: it is
enough that they are pieces of the text that together hold all of it (``covering``), numbered from 0, each read by the
model in full. Where the destination keeps no text of the chunks there is nothing to compare, and whoever adopts
promises that the vectors are those of the present text. That they are of the model at all is the sample's business
(``adoption_check``).

Slices of rows, each read in a short transaction, compared with nothing open, and written in another if text and chunks
are still the compared ones. What was taken over stays so, and another run goes on with the rest; what was not is
embedded like any other row. Nothing of the source is changed but the hash beside a vector column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from psycopg import sql

from pgvec_queue.catalog import quoted_name
from pgvec_queue.covering import covers, in_order
from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.embedders import ModelInfo
from pgvec_queue.fragments import Fragments, identifier
from pgvec_queue.queue import Key
from pgvec_queue.template import Template
from pgvec_queue.tokenizers import Tokenizer
from pgvec_queue.vectorizer import Vectorizer

ROWS = 1_000
"""Source rows that one slice looks through at most."""
BYTES = 4 << 20
"""Text of documents and chunks that one slice holds, about."""

CHANGED = "not the chunks of the present text"
INCOMPLETE = "a vector or a number missing"
LONG = "longer than the model reads, or than a document may be"
HELD = "changed or locked by somebody just then"

Progress = Callable[[int], None]
"""Called after each slice with the source rows looked through so far."""
NOTHING = sql.SQL("false")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the stored chunks of a vectorizer have to be."""

    framed: bool
    """They are stored as they were embedded, in the template."""
    info: ModelInfo
    tokenizer: Tokenizer
    dropped: Sequence[str] = ()
    """What whoever cut them may have left out between two, besides white space."""


@dataclass(slots=True)
class Adopted:
    """What was taken over, and what was not and why."""

    rows: int = 0
    left: Counter[str] = field(default_factory=Counter)


class Candidate(NamedTuple):
    """A source row with vectors of whose text nothing is known."""

    document: str | None
    """None when it is too large to be looked at."""
    columns: Sequence[str | None]
    """Values of the columns that the template names."""
    chunks: Sequence[str] | None
    """None: the destination keeps no text."""
    pieces: int
    complete: bool
    """Every one has a vector, and they are numbered from 0 where they have numbers."""


class _Slice(NamedTuple):
    end: list[str] | None
    last: bool
    keys: list[Key]
    hashes: list[bytes]
    digests: list[bytes | None]
    candidates: list[Candidate]
    rows: int


def vector_indexes(connection: Connection, vectorizer: Vectorizer) -> list[str]:
    """Returns the indexes on vectors of the destination, to which each row that is taken over is added once more."""
    table = quoted_name(vectorizer.destination_schema, vectorizer.destination_table)
    return [name for (name,) in connection.execute(statement("adoption", "vector_indexes"), {"table": table})]


def parts(
    fragments: Fragments, *, excepted: sql.Composable, hashed: bool = True, indexed: bool = True
) -> dict[str, sql.Composable]:
    """Returns what the statements of ``sql/adoption.sql`` need besides the vectorizer's own parts.

    ``excepted`` is a condition on ``s`` for rows that are left out. Without ``hashed`` the column of the hash need not
    be there; without ``indexed`` the chunks of a row are not looked up.
    """
    roles = fragments.vectorizer.destination_roles
    stored = identifier("d", roles.chunk) if roles.chunk else sql.SQL("NULL::text")
    place = sql.SQL("row_number() OVER (ORDER BY {})").format(
        identifier("d", roles.chunk_index) if roles.chunk_index else stored
    )
    held = "held_vector" if fragments.vectorizer.into_column else "held_chunks" if indexed else "held_unknown"
    return {
        "stored": stored,
        "excepted": sql.SQL("({})").format(excepted),
        "held": fragments.compose(
            "adoption",
            held,
            stored=stored,
            place=place,
            number=identifier("d", roles.chunk_index) if roles.chunk_index else sql.SQL("{} - 1").format(place),
            known_hash=identifier("d", roles.source_hash) if roles.source_hash and hashed else sql.SQL("NULL::bytea"),
        ),
    }


def faults(fragments: Fragments, rules: Rules, candidates: Sequence[Candidate]) -> list[str | None]:
    """Returns why each row cannot be taken over as it is; None where it can."""
    found: list[str | None] = []
    inputs: list[str] = []
    owners: list[int] = []
    most = rules.info.max_tokens
    cut_in_silence = fragments.vectorizer.chunk_size is not None or fragments.vectorizer.too_long != "truncate"
    for i, candidate in enumerate(candidates):
        read = _read(fragments, rules, candidate)
        found.append(read if isinstance(read, str) else None)
        if most is None or isinstance(read, str) or not cut_in_silence:
            continue
        for text in read:
            # No text has more tokens than bytes.
            if len((rules.info.document_prompt + text).encode()) + rules.tokenizer.special_tokens > most:
                inputs.append(rules.info.document_prompt + text)
                owners.append(i)
    if most is not None:
        for i, tokens in zip(owners, rules.tokenizer.count(inputs) if inputs else (), strict=True):
            if tokens > most:
                found[i] = LONG
    return found


def _read(fragments: Fragments, rules: Rules, candidate: Candidate) -> list[str] | str:
    """Returns what the model has read of the row, or why that is not its present text."""
    document = candidate.document
    if document is None:
        return LONG
    whole = fragments.vectorizer.chunk_size is None
    if not candidate.complete or (whole and candidate.pieces != 1):
        return INCOMPLETE
    before, after = sides(fragments, candidate.columns)
    roles = fragments.vectorizer.destination_roles
    if roles.chunk is None or fragments.vectorizer.into_column:
        return [before + document + after]
    if candidate.chunks is None or len(candidate.chunks) != candidate.pieces:
        return CHANGED
    pieces = list(candidate.chunks)
    if rules.framed:
        if not all(_is_framed(piece, before, after) for piece in pieces):
            return CHANGED
        pieces = [piece[len(before) : len(piece) - len(after)] for piece in pieces]
    if roles.chunk_index is None:
        pieces = in_order(document, pieces)
    if not covers(document, pieces, rules.dropped):
        return CHANGED
    return [before + piece + after for piece in pieces]


def _is_framed(piece: str, before: str, after: str) -> bool:
    return len(piece) >= len(before) + len(after) and piece.startswith(before) and piece.endswith(after)


def sides(fragments: Fragments, columns: Sequence[str | None]) -> tuple[str, str]:
    """Returns what the template puts before and after each chunk of a row."""
    text = fragments.vectorizer.template
    if text is None:
        return "", ""
    return Template.parse(text).sides(dict(zip(fragments.template_columns, columns, strict=True)))


def adopt(
    connection: Connection,
    fragments: Fragments,
    rules: Rules,
    *,
    excepted: sql.Composable = NOTHING,
    progress: Progress | None = None,
) -> Adopted:
    """Takes over all that can be; needs a connection in autocommit mode.

    Raises what psycopg raises; what was taken over until then stays so.
    """
    own = parts(fragments, excepted=excepted)
    adopted = Adopted()
    lower: list[str] | None = None
    rows = 0
    while True:
        part = _next(connection, fragments, own, lower)
        why = faults(fragments, rules, part.candidates)
        fit = [i for i, fault in enumerate(why) if fault is None]
        taken = _take_over(connection, fragments, own, part, fit) if fit else 0
        adopted.rows += taken
        adopted.left.update(fault for fault in why if fault is not None)
        if taken < len(fit):
            adopted.left[HELD] += len(fit) - taken
        rows += part.rows
        if progress is not None:
            progress(rows)
        if part.last:
            return adopted
        lower = part.end


def _next(
    connection: Connection, fragments: Fragments, own: dict[str, sql.Composable], lower: list[str] | None
) -> _Slice:
    """Reads the rows of the next slice that may be taken over."""
    joins = "on" if fragments.vectorizer.destination_ordered else "off"
    has_lower = lower is not None
    with transaction(connection, statement_timeout=300, read_only=True):
        connection.execute(statement("reading", "local_settings"), {"joins": joins})
        window = connection.execute(
            fragments.compose("adoption", "window", scope=fragments.bounds("s", lower=has_lower, upper=False)),
            {"lower": lower, "rows": ROWS},
        ).fetchone()
        upper = window[0] if window else None
        found = connection.execute(
            fragments.compose(
                "adoption",
                "candidates",
                scope=fragments.bounds("s", lower=has_lower, upper=upper is not None),
                **own,
            ),
            {
                "lower": lower,
                "upper": upper,
                "rows": ROWS,
                "bytes": BYTES,
                "max_bytes": fragments.vectorizer.max_document_bytes,
            },
        ).fetchall()
    # What did not fit is read with the next slice.
    full = sum(row[8] for row in found) > BYTES
    end, last = (list(found[-1][0]), False) if full else (upper, upper is None)
    return _Slice(
        end=end,
        last=last,
        keys=[tuple(row[0]) for row in found],
        hashes=[row[1] for row in found],
        digests=[row[7] for row in found],
        candidates=[Candidate(*row[2:7]) for row in found],
        rows=len(found) if full or upper is None else ROWS,
    )


def _take_over(
    connection: Connection,
    fragments: Fragments,
    own: dict[str, sql.Composable],
    part: _Slice,
    fit: Sequence[int],
) -> int:
    """Writes the hashes of those that fit, and counts them; returns how many were still as they were read."""
    vectorizer = fragments.vectorizer
    keys = [part.keys[i] for i in fit]
    hashes = [part.hashes[i] for i in fit]
    joins = "on" if vectorizer.destination_ordered else "off"
    with transaction(connection, statement_timeout=300, lock_timeout=30):
        connection.execute(statement("reading", "local_settings"), {"joins": joins})
        if vectorizer.into_column:
            taken = _take_over_column(connection, fragments, keys, hashes)
        else:
            # Beside no writer: each holds it shared, or alone.
            connection.execute(statement("writing", "lock_exclusive"), {"vectorizer": vectorizer.id})
            taken = len(
                connection.execute(
                    fragments.compose(
                        "adoption",
                        "take_over",
                        listed=fragments.listed(extra=("hash::bytea", "digest::bytea")),
                        listed_is_source=fragments.listed_is("s"),
                        listed_is_destination=fragments.listed_is("d"),
                        **own,
                    ),
                    {**fragments.key_lists(keys), "hash": hashes, "digest": [part.digests[i] for i in fit]},
                ).fetchall()
            )
        connection.execute(statement("adoption", "count"), {"id": vectorizer.id, "rows": taken})
    return taken


def _take_over_column(
    connection: Connection, fragments: Fragments, keys: Sequence[Key], hashes: Sequence[bytes]
) -> int:
    """Leaves out rows that somebody else holds, so that nobody waits."""
    held = connection.execute(
        fragments.compose("writing", "lock_rows", listed=fragments.listed(), listed_is_source=fragments.listed_is("s")),
        fragments.key_lists(keys),
    ).fetchall()
    free = [ordinal - 1 for ordinal, _ in held]
    return connection.execute(
        fragments.compose(
            "adoption",
            "take_over_column",
            listed=fragments.listed(extra=("hash::bytea",)),
            listed_is_source=fragments.listed_is("s"),
        ),
        {**fragments.key_lists([keys[i] for i in free]), "hash": [hashes[i] for i in free]},
    ).rowcount
