"""How much of its time the device works: the share of the time with a job in hand in which a call of it was running.

Of the last minute of such time; an idle worker keeps the share of its last minute of work. A device that waits for the
database, for a tokenizer or for its model to be loaded does not work, though there is work: that time lowers the share.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager

WINDOW_SECONDS = 60.0
_STEP_SECONDS = 1.0


class Busy:
    """Two stopwatches, safe to use from any thread: one for work in hand, one for the device beside it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` tells seconds that only ever grow."""
        self._clock = clock
        self._lock = threading.Lock()
        self._at = clock()
        self._has_work = False
        self._calls = 0
        self._in_hand = 0.0
        self._worked = 0.0
        self._marks: deque[tuple[float, float]] = deque([(0.0, 0.0)])
        """Both stopwatches as they stood: the first at the beginning of the window."""

    def has_work(self, has_work: bool) -> None:
        """Says from now on whether there is anything for the device to do."""
        with self._lock:
            self._advance()
            self._has_work = has_work

    @contextmanager
    def working(self) -> Generator[None]:
        """Put around each call of the device; calls side by side count once."""
        self._count_call(1)
        try:
            yield
        finally:
            self._count_call(-1)

    @property
    def share(self) -> float | None:
        """From 0 to 1; None as long as there was nothing to do."""
        with self._lock:
            self._advance()
            in_hand, worked = self._marks[0]
            elapsed = self._in_hand - in_hand
            return (self._worked - worked) / elapsed if elapsed > 0 else None

    def _count_call(self, change: int) -> None:
        with self._lock:
            self._advance()
            self._calls += change

    def _advance(self) -> None:
        """Lets both stopwatches run up to now, and moves the window."""
        now = self._clock()
        if self._has_work:
            self._in_hand += now - self._at
            self._worked += now - self._at if self._calls else 0.0
        self._at = now
        if self._in_hand - self._marks[-1][0] >= _STEP_SECONDS:
            self._marks.append((self._in_hand, self._worked))
        while len(self._marks) > 1 and self._in_hand - self._marks[1][0] >= WINDOW_SECONDS:
            self._marks.popleft()
