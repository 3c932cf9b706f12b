"""The window of slices that the model is given at once: cut into groups, and its vectors handed out again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pgvec_queue.chunking import Chunk
from pgvec_queue.cutting import Cut
from pgvec_queue.embedders import Embedder
from pgvec_queue.embedders.batching import longest_first
from pgvec_queue.slices import Document, Embedded, Failure
from pgvec_queue.worker.work import Work

Ready = tuple[Document, Sequence[Chunk]]
"""A document with its chunks."""


def hand_out(window: Sequence[Work], pairs: Sequence[Sequence[tuple[Document, Cut]]], embedded: list[Embedded]) -> int:
    """Gives each slice what was made for it; returns how many have everything, from the first on."""
    at = 0
    for done, (work, some) in enumerate(zip(window, pairs, strict=True)):
        good = sum(not isinstance(cut, Failure) for _, cut in some)
        if at + good > len(embedded):
            return done
        results = iter(embedded[at : at + good])
        at += good
        work.embedded = [
            Embedded(document, failure=cut) if isinstance(cut, Failure) else next(results) for document, cut in some
        ]
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


def tokens(cuts: Sequence[Cut]) -> int:
    return sum([chunk.tokens for cut in cuts if not isinstance(cut, Failure) for chunk in cut])


def first_group(documents: Sequence[Ready], start: int, tokens: float, most: int) -> Sequence[Ready]:
    """The documents from ``start`` on that have at least so many tokens together, ``most`` of them at most."""
    held = 0
    for at, (_, cut) in enumerate(documents[start : start + most], start + 1):
        held += sum([chunk.tokens for chunk in cut])
        if held >= tokens:
            return documents[start:at]
    return documents[start : start + most]
