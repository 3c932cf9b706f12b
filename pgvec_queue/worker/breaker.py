"""Tells a sick model from poison: where most documents fail alone, it is not the documents.

A driver that returns NaN, an endpoint that rejects everything, a destination with a constraint that nothing meets: each
would put a whole table into quarantine, one document at a time. When more than half of the last 200 documents of a
vectorizer have failed, the worker leaves that vectorizer to others, and takes back what it had quarantined of those.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

from pgvec_queue.queue import Key

WINDOW = 200
LEAST = 20
"""Documents without which nothing is said: a small table may well be bad for the greater part."""


class Breaker:
    """Remembers how the last documents of each vectorizer fared; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[int, deque[Key | None]] = {}

    def add(self, vectorizer_id: int, fates: Iterable[Key | None]) -> bool:
        """Takes in one entry per document, its key where it failed; True when most of the last ones have."""
        with self._lock:
            seen = self._seen.setdefault(vectorizer_id, deque(maxlen=WINDOW))
            seen.extend(fates)
            return len(seen) >= LEAST and sum(key is not None for key in seen) * 2 > len(seen)

    def trip(self, vectorizer_id: int) -> tuple[list[Key], int]:
        """Returns the keys that failed among the last documents, and of how many; then begins anew.

        Otherwise the first failure after whatever it was has been mended would trip it again.
        """
        with self._lock:
            seen = self._seen.pop(vectorizer_id, deque())
        return [key for key in seen if key is not None], len(seen)
