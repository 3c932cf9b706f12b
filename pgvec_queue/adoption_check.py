"""Whether vectors that are to be taken over are those of the model: some from all over the table are made anew.

Each sampled chunk is embedded as it is stored and, with a template, as the template shows it; where no text of chunks
is kept, the row's document is. All have to have a cosine of at least ``LEAST_COSINE`` with what is stored, in one of
these ways. Loads the model on this machine, and writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from psycopg import sql

from pgvec_queue import embedders
from pgvec_queue.adoption import NOTHING, Candidate, Rules, faults, parts, sides
from pgvec_queue.catalog import Relation, find_relation, has_leading_index, quoted_name
from pgvec_queue.chunking import Chunker
from pgvec_queue.database import Connection, Versions, statement, transaction
from pgvec_queue.embedders import DeviceOptions, Embedder, Vectors
from pgvec_queue.errors import DefinitionError
from pgvec_queue.fragments import Fragments
from pgvec_queue.template import Template
from pgvec_queue.vectorizer import Vectorizer

SAMPLE = 200
"""Vectors that are compared, at most."""
LEAST_COSINE = 0.999
_PAGES = 2_000
"""Of a large table, about so many are looked at."""
_CUT_ANEW = 50
"""Rows of the sample that are cut as ours would be, to see whether they are."""
_MOST_BYTES = 1 << 20
"""Of a document, for it to be in the sample."""


class NothingThereError(DefinitionError):
    """A destination holds no vectors at all; ``what`` says which, ``otherwise`` what to do then."""

    def __init__(self, what: str, otherwise: str) -> None:
        super().__init__(f"{what}; {otherwise}")
        self.what = what


@dataclass(frozen=True, slots=True)
class Checked:
    """What the sample shows of a destination whose vectors are those of the model."""

    rules: Rules
    compared: int
    least: float
    """The smallest cosine."""
    documents: int
    """Rows that the sampled vectors belong to."""
    left: Counter[str] = field(default_factory=Counter)
    """Of those, how many cannot be taken over, by reason."""
    recut: tuple[int, int] = (0, 0)
    """Of how many that can be the chunks are others than ours would be, and how many were looked at for that."""


class _Sampled(NamedTuple):
    key: list[str]
    chunk: str | None
    vector: list[float]
    row: Candidate | None
    """None where no selected row has that key, or its document is too large for a sample."""


def check(
    connection: Connection,
    vectorizer: Vectorizer,
    versions: Versions,
    *,
    excepted: sql.Composable = NOTHING,
    dropped: Sequence[str] = (),
    otherwise: str = "leave --adopt out to embed all rows anew",
) -> Checked:
    """Compares a sample of what the destination of a vectorizer holds, which need not be stored yet.

    ``otherwise`` says what to do where it fails. Raises ``NothingThereError`` where there are no vectors,
    ``DefinitionError`` where they are not the model's, and what ``embedders.load`` and ``embed_documents`` raise.
    """
    fragments = Fragments(vectorizer, versions.vector_schema)
    roles = vectorizer.destination_roles
    if roles.source_hash is None:
        raise DefinitionError(
            f"the vectorizer {vectorizer.name!r} was made without a column for the hash of a text; drop it "
            f"(`pgvec drop {vectorizer.name}`, its vectors stay), then run the same command again"
        )
    if not vectorizer.into_column and roles.chunk is None and vectorizer.chunk_size is not None:
        raise DefinitionError(
            f"{vectorizer.destination} has no column for the text of a chunk, by which chunks could be taken over; "
            "name it with --column chunk=NAME, or give --no-chunking where each row is a whole document"
        )
    destination = _destination(connection, vectorizer)
    indexed = vectorizer.into_column or has_leading_index(connection, destination, roles.key)
    sampled = _sample(connection, fragments, destination, excepted, indexed=indexed)
    if not sampled:
        raise NothingThereError(f"{_label(vectorizer)} holds no vectors that could be taken over", otherwise)
    embedder = embedders.load(vectorizer.spec, DeviceOptions(runtime="torch"))
    try:
        rules, compared, least = _compare(fragments, embedder, sampled, otherwise)
    finally:
        embedder.close()
    rules = Rules(rules.framed, rules.info, rules.tokenizer, dropped)
    rows = list({tuple(one.key): one.row for one in sampled if one.row is not None and indexed}.values())
    why = faults(fragments, rules, rows)
    fit = [row for row, fault in zip(rows, why, strict=True) if fault is None]
    left = Counter(fault for fault in why if fault is not None)
    return Checked(rules, compared, least, len(rows), left, _recut(fragments, rules, fit[:_CUT_ANEW]))


def _sample(
    connection: Connection,
    fragments: Fragments,
    destination: Relation,
    excepted: sql.Composable,
    *,
    indexed: bool,
) -> list[_Sampled]:
    vectorizer = fragments.vectorizer
    query = fragments.compose(
        "adoption",
        "sample_column" if vectorizer.into_column else "sample_chunks",
        key_from_destination=fragments.source_key_from_destination(),
        **parts(fragments, excepted=excepted, hashed=False, indexed=indexed),
    )
    sizes = connection.execute(statement("estimate", "relations"), {"oid": destination.oid}).fetchall()
    percent = min(100.0, 100.0 * _PAGES / max(sum(row[1] for row in sizes), 1))
    joins = "on" if vectorizer.destination_ordered else "off"
    while True:
        with transaction(connection, statement_timeout=300, read_only=True):
            connection.execute(statement("adoption", "local_settings"), {"joins": joins})
            found = connection.execute(
                query, {"percent": percent, "count": SAMPLE, "most_bytes": _MOST_BYTES}
            ).fetchall()
        if len(found) == SAMPLE or percent == 100:
            return [
                _Sampled(key, chunk, vector, None if rest[0] is None else Candidate(*rest))
                for key, chunk, vector, *rest in found
            ]
        percent = min(100.0, percent * 10)


def _destination(connection: Connection, vectorizer: Vectorizer) -> Relation:
    relation = find_relation(connection, quoted_name(vectorizer.destination_schema, vectorizer.destination_table))
    if relation is None:
        raise DefinitionError(f"the destination {vectorizer.destination} is gone")
    return relation


def _compare(
    fragments: Fragments, embedder: Embedder, sampled: Sequence[_Sampled], otherwise: str
) -> tuple[Rules, int, float]:
    """Returns in which way the vectors are those of the model, how many were compared, and the smallest cosine."""
    vectorizer = fragments.vectorizer
    kept = vectorizer.destination_roles.chunk is not None and not vectorizer.into_column
    ways = (True, False) if kept and vectorizer.template is not None else (kept,)
    best: tuple[int, int, float, str] | None = None
    for framed in ways:
        texts = [_text(fragments, one, framed) for one in sampled]
        cosines = _cosines(embedder, texts, sampled)
        known = [(cosine, one) for cosine, one in zip(cosines, sampled, strict=True) if cosine is not None]
        if not known:
            continue
        misses = sum(cosine < LEAST_COSINE for cosine, _ in known)
        worst, which = min(known, key=lambda pair: pair[0])
        if not misses:
            return Rules(framed, embedder.info, embedder.tokenizer), len(known), worst
        found = (misses, len(known), worst, ", ".join(which.key))
        if best is None or misses < best[0]:
            best = found
    if best is None:
        raise DefinitionError(
            f"none of the vectors of {_label(vectorizer)} can be compared: their texts are longer than "
            f"{vectorizer.model} reads, or their rows are gone; {otherwise}"
        )
    misses, count, worst, key = best
    raise DefinitionError(
        f"{_label(vectorizer)} holds other vectors than {vectorizer.model} makes: of {count} compared, {misses} "
        f"below a cosine of {LEAST_COSINE}, the least {worst:.4f} (key {key}); nothing was changed. If the model is "
        f"right, check prompts and template; {otherwise}"
    )


def _text(fragments: Fragments, one: _Sampled, framed: bool) -> str | None:
    """What the model would have read for a sampled vector; None where that is not known."""
    if framed:
        return one.chunk
    if one.row is None:
        # The chunk of a row that is gone needs none of its columns where there is no template.
        return one.chunk if fragments.vectorizer.template is None else None
    inside = one.chunk if fragments.vectorizer.destination_roles.chunk is not None else one.row.document
    if inside is None:
        return None
    before, after = sides(fragments, one.row.columns)
    return before + inside + after


def _cosines(embedder: Embedder, texts: Sequence[str | None], sampled: Sequence[_Sampled]) -> list[float | None]:
    """The cosine of each stored vector with that of its text; None where the model does not read the text in full.

    White space around a text may have been left out when it was embedded: the better of both counts.
    """
    best: list[float | None] = [None] * len(texts)
    asked = [(i, way) for i, text in enumerate(texts) if text for way in dict.fromkeys((text, text.strip())) if way]
    prompt, most = embedder.info.document_prompt, embedder.info.max_tokens
    tokens = embedder.tokenizer.count([prompt + way for _, way in asked]) if asked else []
    fits = [(i, way, count) for (i, way), count in zip(asked, tokens, strict=True) if most is None or count <= most]
    if not fits:
        return best
    vectors = embedder.embed_documents([way for _, way, _ in fits], [count for _, _, count in fits])
    for (i, _, _), vector in zip(fits, vectors, strict=True):
        cosine = _cosine(np.asarray(sampled[i].vector, np.float32), vector)
        best[i] = max(cosine, best[i] or -1.0)
    return best


def _cosine(one: Vectors, other: Vectors) -> float:
    if one.shape != other.shape:
        return -1.0
    with np.errstate(all="ignore"):
        cosine = float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
    return cosine if np.isfinite(cosine) else -1.0


def _recut(fragments: Fragments, rules: Rules, rows: Sequence[Candidate]) -> tuple[int, int]:
    """Returns how many rows we would cut otherwise than they are, and of how many."""
    vectorizer = fragments.vectorizer
    if vectorizer.chunk_size is None:
        return 0, 0
    template = Template.parse(vectorizer.template) if vectorizer.template else None
    chunker = Chunker(
        rules.tokenizer, vectorizer.chunk_size, vectorizer.chunk_overlap or 0, template, rules.info.document_prompt
    )
    others = 0
    for row in rows:
        columns = dict(zip(fragments.template_columns, row.columns, strict=True))
        ours = chunker.chunks(row.document or "", columns)
        others += [chunk.input if rules.framed else chunk.text for chunk in ours] != list(row.chunks or ())
    return others, len(rows)


def _label(vectorizer: Vectorizer) -> str:
    if vectorizer.into_column:
        return f"{vectorizer.destination}.{vectorizer.destination_roles.embedding}"
    return vectorizer.destination
