"""One call of the model: which chunks it has to be given, and where the vectors of the others come from.

A chunk that its document had before keeps its vector; of identical ones in the call one is looked for in the worker's
cache, and given to the model where that does not know it. Each chunk is counted under the one of these that spared it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgvec_queue import copybuffer
from pgvec_queue.chunking import Chunk
from pgvec_queue.worker.cache import Found
from pgvec_queue.worker.windows import Ready


class Spared(NamedTuple):
    """Of one document's chunks, how many the model was not given, and why."""

    kept: int
    reused: int
    cached: int


class Call:
    """The chunks of some documents, on their way to their vectors."""

    def __init__(self, documents: Sequence[Ready]) -> None:
        self._documents = documents
        chunks = [chunk for _, cut, _ in documents for chunk in cut]
        places: dict[str, int] = {}
        self._place = [places.setdefault(chunk.input, len(places)) for chunk in chunks]
        """Of each chunk: which of the different inputs it has, in the order in which they come first."""
        self._count = len(places)
        self._kept = _kept(documents, self._place)
        self._known: Found | None = None
        self._found_at: set[int] = set()
        firsts = chunks if self._count == len(chunks) else _firsts(chunks, self._place)
        self._asked = [place for place in range(self._count) if place not in self._kept] if self._kept else None
        """The inputs that nothing of a document's own tells; None: all."""
        self.asked = firsts if self._asked is None else [firsts[place] for place in self._asked]
        """The chunks to look for in the cache, each different."""
        self.missing = self.asked
        """The chunks that the model has to be given."""

    def know(self, found: Found) -> list[int]:
        """Takes in what the cache knows of ``asked``; returns the places in it of what is ``missing`` still."""
        if not found.places:
            return list(range(len(self.asked)))
        known = set(found.places)
        left = [at for at in range(len(self.asked)) if at not in known]
        self.missing = [self.asked[at] for at in left]
        self._known = found
        self._found_at = {self._input(at) for at in known}
        return left

    def vectors(self, made: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the vectors of all chunks, ``(n, d) float32``, given those of ``missing``."""
        if self._known is None and not self._kept:
            return made if self._count == len(self._place) else made[self._place]
        vectors = np.empty((self._count, made.shape[1]), np.float32)
        new = [place for place in range(self._count) if place not in self._kept and place not in self._found_at]
        vectors[new] = made
        if self._known is not None:
            vectors[[self._input(at) for at in self._known.places]] = self._known.vectors
        for store in {store for _, store in self._kept.values()}:
            some = {place: vector for place, (vector, one) in self._kept.items() if one == store}
            vectors[list(some)] = copybuffer.vectors_of(list(some.values()), store)
        return vectors if self._count == len(self._place) else vectors[self._place]

    def spared(self) -> list[Spared] | None:
        """Returns for each document what the model was not given of it; None where that was nothing."""
        if self._known is None and not self._kept and self._count == len(self._place):
            return None
        spared = []
        highest = itertools.accumulate(self._place, max, initial=-1)
        chunks = zip(self._place, highest, strict=False)
        for _, cut, kept in self._documents:
            mine = kept.vectors if kept is not None else {}
            reused = cached = 0
            for at, (place, before) in enumerate(itertools.islice(chunks, len(cut))):
                if at in mine:
                    continue
                if place <= before or place in self._kept:
                    reused += 1
                elif place in self._found_at:
                    cached += 1
            spared.append(Spared(len(mine), reused, cached))
        return spared

    def _input(self, at: int) -> int:
        return at if self._asked is None else self._asked[at]


def _firsts(chunks: Sequence[Chunk], place: Sequence[int]) -> list[Chunk]:
    """Returns the first chunk of each input, in their order."""
    highest = itertools.accumulate(place, max, initial=-1)
    return [chunk for chunk, mine, before in zip(chunks, place, highest, strict=False) if mine > before]


def _kept(documents: Sequence[Ready], place: Sequence[int]) -> dict[int, tuple[bytes, str]]:
    """Returns the vectors that documents had before, by the place of their input, each with the type of its column."""
    found: dict[int, tuple[bytes, str]] = {}
    start = 0
    for _, cut, kept in documents:
        if kept is not None:
            for at, vector in kept.vectors.items():
                found[place[start + at]] = vector, kept.store
        start += len(cut)
    return found
