"""Vectors that a worker remembers, so that a text that comes again need not be embedded again.

Each loaded model has its own, which ends with it: another model, other prompts, another dtype or another device is
another model in memory, and whatever is loaded anew remembers nothing. Within it, a vector is found by a hash of what
the model was given (128 bits of BLAKE2b). All of them together stay within a number of bytes: the least recently used
entries go first, and before them what another model remembers.

Looking up and storing costs a few microseconds per chunk, which is more than some models take. So where its size was
not given, a cache is switched off when what it cost in a sample of look-ups is more than what its hits saved, both
measured, and tried again after a while. What is never stored: anything of a call that failed, or that returned NaN or
Inf.

Used by one thread at a time; ``look`` by any.
"""

from __future__ import annotations

import hashlib
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pgvec_queue.chunking import Chunk
from pgvec_queue.embedders import Embedder
from pgvec_queue.errors import SettingsError
from pgvec_queue.log import get_logger

log = get_logger("pgvec.worker")

DEFAULT_BYTES = 256 * 1024 * 1024
ENTRY_BYTES = 256
"""What an entry takes beside its vector: its key and its place in the order of use."""
SAMPLE = 20_000
"""Look-ups after which is judged whether it pays."""
HOPELESS = 2_000
"""Look-ups after which is judged whether it could pay at all, if all were hits."""
REST, LONGEST_REST = 200_000, 3_200_000
"""Chunks that go by before it is tried again; each time twice as many."""


@dataclass(frozen=True, slots=True)
class CacheLook:
    """What a cache holds and has done, at one moment."""

    chunks: int | None = None
    """Vectors in it; None: there is none, or it has been switched off."""
    bytes: int | None = None
    lookups: int = 0
    hits: int = 0


@dataclass(slots=True)
class _Sample:
    """What was measured since it was last judged whether the cache pays."""

    lookups: int = 0
    hits: int = 0
    seconds: float = 0.0
    """That looking up and storing took."""
    made: int = 0
    """Chunks that the model was given."""
    made_seconds: float = 0.0


@dataclass(slots=True)
class Found:
    """What a cache knows of some chunks: the vectors ``(m, d) float32`` of those at ``places``."""

    keys: list[bytes]
    places: list[int]
    vectors: NDArray[np.float32]


@dataclass(slots=True)
class _Shelf:
    """What is remembered of one loaded model."""

    owner: weakref.ref[Embedder]
    model: str
    slab: NDArray[np.float32]
    """One row per entry; the system gives it memory as its rows are written first."""
    rows: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """The row of each key, the least recently used first."""
    sample: _Sample = field(default_factory=_Sample)
    chunk_seconds: float | None = None
    """What the model takes per chunk."""
    rest: int = REST
    resting: int = 0
    """Chunks that have to go by before it is used again."""

    @property
    def entry(self) -> int:
        """Bytes per entry."""
        return int(self.slab.shape[1]) * self.slab.itemsize + ENTRY_BYTES

    @property
    def held(self) -> int:
        """Bytes of all entries."""
        return len(self.rows) * self.entry

    def add(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        capacity = len(self.slab)
        keys, vectors = keys[-capacity:], vectors[-capacity:]
        at = []
        for key in keys:
            row = self.rows.get(key)
            if row is None:
                row = len(self.rows) if len(self.rows) < capacity else self.rows.popitem(last=False)[1]
            self.rows[key] = row
            at.append(row)
        self.slab[at] = vectors


class Cache:
    """The vectors that one worker process remembers."""

    def __init__(
        self, size: int | None = None, *, clock: Callable[[], float] = time.perf_counter, sample: int = SAMPLE
    ) -> None:
        """``size`` is in bytes, 0 for no cache at all; None: as much as is usual, as long as it pays.

        ``clock`` tells seconds.
        """
        self._size = DEFAULT_BYTES if size is None else size
        self._always = size is not None
        self._clock = clock
        self._sample = sample
        self._shelves: OrderedDict[int, _Shelf] = OrderedDict()
        """By the identity of the embedder, the least recently used first."""
        self._lookups = self._hits = 0
        self.look = CacheLook(0, 0) if self._size else CacheLook()

    def find(self, embedder: Embedder, model: str, chunks: Sequence[Chunk]) -> Found | None:
        """Returns what is known of the chunks for this very embedder; None while nothing is remembered of it."""
        shelf = self._shelf(embedder, model)
        if shelf is None or not chunks:
            return None
        if shelf.resting:
            shelf.resting = max(shelf.resting - len(chunks), 0)
            return None
        began = self._clock()
        blake2b = hashlib.blake2b
        keys = [blake2b(chunk.input.encode(), digest_size=16).digest() for chunk in chunks]
        rows = shelf.rows
        places = [place for place, key in enumerate(keys) if key in rows] if rows else []
        at = []
        for place in places:
            key = keys[place]
            rows.move_to_end(key)
            at.append(rows[key])
        found = Found(keys, places, shelf.slab[at])
        shelf.sample.lookups += len(keys)
        shelf.sample.hits += len(places)
        shelf.sample.seconds += self._clock() - began
        self._lookups += len(keys)
        self._hits += len(places)
        self._told()
        return found

    def add(
        self, embedder: Embedder, found: Found, places: Sequence[int], vectors: NDArray[np.float32], seconds: float
    ) -> None:
        """Remembers what the model made of the chunks at ``places``, ``(n, d) float32``, in so many seconds."""
        shelf = self._shelves.get(id(embedder))
        if shelf is None:
            return
        if len(places):
            began = self._clock()
            if np.isfinite(vectors).all():
                self._make_room(shelf, len(places))
                shelf.add([found.keys[place] for place in places], vectors)
            shelf.sample.seconds += self._clock() - began
            shelf.sample.made += len(places)
            shelf.sample.made_seconds += seconds
            shelf.chunk_seconds = shelf.sample.made_seconds / shelf.sample.made
        if not self._always:
            self._judge(shelf)
        self._told()

    def _shelf(self, embedder: Embedder, model: str) -> _Shelf | None:
        shelf = self._shelves.get(id(embedder))
        if shelf is not None and shelf.owner() is embedder:
            self._shelves.move_to_end(id(embedder))
            return shelf
        for dead in [key for key, one in self._shelves.items() if key == id(embedder) or one.owner() is None]:
            del self._shelves[dead]
        dimensions = embedder.info.dimensions
        rows = self._size // (4 * dimensions + ENTRY_BYTES)
        if not rows:
            return None
        try:
            slab = np.empty((rows, dimensions), np.float32)
        except MemoryError as error:
            raise SettingsError(
                f"there is no room for a cache of {self._size:,} bytes; give less with --cache"
            ) from error
        shelf = self._shelves[id(embedder)] = _Shelf(weakref.ref(embedder), model, slab)
        return shelf

    def _make_room(self, shelf: _Shelf, entries: int) -> None:
        """Drops what other models have, the least recently used first, where this one needs their room."""
        wanted = min(len(shelf.rows) + entries, len(shelf.slab)) * shelf.entry
        for key, other in list(self._shelves.items()):
            held = sum(one.held for one in self._shelves.values() if one is not shelf)
            if held + wanted <= self._size:
                return
            if other is not shelf:
                self._empty(self._shelves[key])

    @staticmethod
    def _empty(shelf: _Shelf) -> None:
        shelf.rows.clear()
        # What was written to is given back.
        shelf.slab = np.empty_like(shelf.slab)

    def _judge(self, shelf: _Shelf) -> None:
        """Switches the cache of a model off where it costs more than it saves."""
        sample = shelf.sample
        if shelf.chunk_seconds is None or sample.lookups < min(HOPELESS, self._sample):
            return
        most = sample.lookups * shelf.chunk_seconds
        saved = sample.hits * shelf.chunk_seconds
        if sample.lookups < self._sample and sample.seconds < most:
            return
        shelf.sample = _Sample()
        if sample.seconds <= saved:
            shelf.rest = REST
            return
        self._empty(shelf)
        shelf.resting, shelf.rest = shelf.rest, min(2 * shelf.rest, LONGEST_REST)
        log.info(
            "cache is switched off for a while: it does not pay",
            model=shelf.model,
            lookups=sample.lookups,
            hits=sample.hits,
            cost_seconds=round(sample.seconds, 4),
            saved_seconds=round(saved, 4),
        )

    def _told(self) -> None:
        working = [shelf for shelf in self._shelves.values() if not shelf.resting]
        if working or not self._shelves:
            chunks, size = sum(len(shelf.rows) for shelf in working), sum(shelf.held for shelf in working)
            self.look = CacheLook(chunks, size, self._lookups, self._hits)
        else:
            self.look = CacheLook(None, None, self._lookups, self._hits)
