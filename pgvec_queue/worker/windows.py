"""The window of slices that the model is given at once: cut into groups, and its vectors handed out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgvec_queue import keeping
from pgvec_queue.chunking import Chunk
from pgvec_queue.cutting import Cut
from pgvec_queue.embedders import Embedder
from pgvec_queue.embedders.batching import longest_first
from pgvec_queue.slices import Document, Embedded, Failure, Old
from pgvec_queue.worker.work import Work


class Kept(NamedTuple):
    """What of a document's chunks was there before."""

    vectors: Mapping[int, bytes]
    """By the chunk's place among the document's, as pgvector sends them."""
    store: str
    tokens: int
    """Of the chunks that are left for the model."""


Ready = tuple[Document, Sequence[Chunk], Kept | None]
"""A document with its chunks."""
Prepared = tuple[Document, Cut, Kept | None]
"""A document with its chunks, or with the reason why it has none."""


def prepare(work: Work, cuts: Sequence[Cut]) -> list[Prepared]:
    """Returns the slice's documents, each with its chunks and the vectors that some of these have already."""
    old = work.part.old.vectors
    documents = work.part.documents
    if not old:
        return [(document, cut, None) for document, cut in zip(documents, cuts, strict=True)]
    fragments = work.run.fragments
    prepared: list[Prepared] = []
    for document, cut in zip(documents, cuts, strict=True):
        kept = None
        if not isinstance(cut, Failure) and (mine := old.get(document.key)):
            vectors = keeping.match(fragments, mine, cut)
            tokens = sum([chunk.tokens for place, chunk in enumerate(cut) if place not in vectors])
            kept = Kept(vectors, fragments.vectorizer.store, tokens) if vectors else None
        prepared.append((document, cut, kept))
    return prepared


def hand_out(window: Sequence[Work], pairs: Sequence[Sequence[Prepared]], embedded: list[Embedded]) -> int:
    """Gives each slice what was made for it; returns how many have everything, from the first on."""
    at = 0
    for done, (work, some) in enumerate(zip(window, pairs, strict=True)):
        good = sum(not isinstance(cut, Failure) for _, cut, _ in some)
        if at + good > len(embedded):
            return done
        results = iter(embedded[at : at + good])
        at += good
        work.embedded = [
            Embedded(document, failure=cut) if isinstance(cut, Failure) else next(results) for document, cut, _ in some
        ]
        # They are in its vectors now.
        work.part = replace(work.part, old=Old())
    return len(window)


def batches(embedder: Embedder, chunks: Sequence[Chunk]) -> list[tuple[int, int]]:
    """Returns the tokens, with padding and without, of each batch of the last call; without batches, of the call."""
    own: list[tuple[int, int]] | None = getattr(embedder, "last_batches", None)
    if own is not None:
        return own
    tokens = sum([chunk.tokens for chunk in chunks])
    return [(tokens, tokens)]


def batches_of(chunks: Sequence[Chunk], size: int) -> Iterator[NDArray[np.intp]]:
    """Yields which chunks make up each call of at most ``size`` chunks, those of like length together."""
    order = longest_first([chunk.tokens for chunk in chunks])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def tokens(prepared: Sequence[Prepared]) -> int:
    """Returns the tokens of what is left for the model."""
    return sum([tokens_of(cut, kept) for _, cut, kept in prepared if not isinstance(cut, Failure)])


def tokens_of(chunks: Sequence[Chunk], kept: Kept | None) -> int:
    return sum([chunk.tokens for chunk in chunks]) if kept is None else kept.tokens


def first_group(documents: Sequence[Ready], start: int, tokens: float, most: int) -> Sequence[Ready]:
    """The documents from ``start`` on that have at least so many tokens together, ``most`` of them at most."""
    held = 0
    for at, (_, cut, kept) in enumerate(documents[start : start + most], start + 1):
        held += tokens_of(cut, kept)
        if held >= tokens:
            return documents[start:at]
    return documents[start : start + most]
