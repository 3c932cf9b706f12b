"""Sums up in the log how vectorizers get on: jobs may be done faster than anybody reads lines.

Each single job is told of at debug (see ``reader`` and ``writer``); at info a line per vectorizer tells what was done
since the last one in which a job has ended, at most every ten seconds, and at once where there is nothing left to do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pgvec_queue.log import get_logger

log = get_logger("pgvec.worker")

EVERY = 10.0
"""Seconds between two lines about one vectorizer, at least."""


@dataclass(slots=True)
class _Sum:
    began: float | None = None
    """When the first of this was begun; None: nothing was done since the last line."""
    wrote: float = 0.0
    """When the first of this was written."""
    told: float | None = None
    """When the last line was written."""
    jobs: int = 0
    rows: int = 0


class Tally:
    """What a worker has done of each vectorizer since it last told; safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` tells seconds that only ever grow."""
        self._clock = clock
        self._lock = threading.Lock()
        self._sums: dict[str, _Sum] = {}

    def wrote(self, vectorizer: str, rows: int, *, begun: float, done: bool) -> None:
        """Takes in a slice with so many rows embedded, of a job that was ``begun`` then and is ``done`` with it."""
        with self._lock:
            one = self._sums.setdefault(vectorizer, _Sum())
            if one.began is None:
                one.began = begun if one.told is None else max(begun, one.told)
                one.wrote = self._clock()
            one.rows += rows
            one.jobs += done
        self.tell()

    def tell(self, *, idle: bool = False, ending: bool = False) -> None:
        """Writes the lines that are due; ``idle``: nothing is left to do for now; ``ending``: this is the last call."""
        now = self._clock()
        with self._lock:
            due = [(name, one) for name, one in self._sums.items() if _is_due(one, now, idle=idle, ending=ending)]
            for name, one in due:
                assert one.began is not None
                seconds = max(now - one.began, 0.001)
                log.info(
                    "jobs are done",
                    vectorizer=name,
                    jobs=one.jobs,
                    rows=one.rows,
                    seconds=round(seconds, 3),
                    rows_per_second=round(one.rows / seconds, 1),
                )
                self._sums[name] = _Sum(told=now)


def _is_due(one: _Sum, now: float, *, idle: bool, ending: bool) -> bool:
    if one.began is None or not (one.jobs or ending):
        # The slices of a job that goes on are told of with its end, or with the worker's.
        return False
    if one.told is None:
        # Loading the model may have taken longer than that.
        return ending or idle or now - one.wrote >= EVERY
    return ending or (now - one.told >= EVERY and (idle or now - one.began >= EVERY))
