"""Back-pressure: how many rows of a collection wait, counted seldom and added up in between.

The count reads all queued jobs of the collection, so it is made once a second at most, and for a twentieth of the time
at most. What this gateway has accepted since is added; what others have is seen at the next count.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from pgvec_queue import tasks
from pgvec_queue.async_database import AsyncConnection
from pgvec_queue.collections import Collection
from pgvec_queue.gateway.problems import Problem

_EVERY_SECONDS, _AT_MOST_SECONDS = 1.0, 10.0
_SHARE = 0.05


@dataclass(slots=True)
class _Known:
    rows: int
    until: float


class Pressure:
    """Refuses texts for collections in which more than ``most`` rows wait."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[int, _Known] = {}

    async def check(self, connection: AsyncConnection, collection: Collection, texts: int) -> None:
        """Raises ``Problem`` 429 where these texts are too many; where nothing waits, none are."""
        now = time.monotonic()
        known = self._known.get(collection.vectorizer_id)
        if known is None or now >= known.until:
            # Until then the old number does for whoever comes while it is being counted.
            known = self._known.setdefault(collection.vectorizer_id, _Known(0, now))
            known.until = now + _AT_MOST_SECONDS
            try:
                known.rows = await tasks.waiting_rows(connection, collection)
            except BaseException:
                known.until = now
                raise
            took = time.monotonic() - now
            known.until = time.monotonic() + min(max(_EVERY_SECONDS, took / _SHARE), _AT_MOST_SECONDS)
        if known.rows and known.rows + texts > self._most:
            seconds = max(1, math.ceil(known.until - time.monotonic()))
            raise Problem(
                429,
                f"{known.rows:,} texts of {collection.name!r} wait to be embedded, and {self._most:,} may; "
                f"try again in {seconds} s, or start more workers",
                {"Retry-After": str(seconds)},
            )

    def accepted(self, collection: Collection, texts: int) -> None:
        """Adds texts that were accepted since the last count."""
        known = self._known.get(collection.vectorizer_id)
        if known is not None:
            known.rows += texts
