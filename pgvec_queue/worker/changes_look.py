"""When a worker that reads a range looks for live changes of the same vectorizer, which overtake it.

As soon as it is told of some, else every two seconds. In a large fleet each looks the more seldom, so that all together
ask a bounded number of times a second: one that finds the list is enough, and whoever claims its next job looks for
lists first anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

_APART, _APART_PER_WORKER = 0.5, 0.02
"""Seconds between looks, at least."""
_UNTOLD, _UNTOLD_PER_WORKER = 2.0, 0.1
"""Seconds between looks as long as nobody told of any."""
_SHARE = 0.02
"""Of the time, at most, that goes into these looks."""


@dataclass(slots=True)
class ChangesLook:
    """The looks of one worker. Times are in seconds, of one monotonic clock."""

    _told_at: float = 0.0
    _untold_at: float = 0.0

    def is_due(self, now: float, *, told: bool) -> bool:
        """Whether to look now; ``told``: somebody said that something has changed."""
        return now >= (self._told_at if told else self._untold_at)

    def begins(self, now: float, fleet: int) -> None:
        """Takes down that a look begins, in a fleet of so many workers."""
        self._told_at = now + max(_APART, _APART_PER_WORKER * fleet)
        self._untold_at = max(self._told_at, now + max(_UNTOLD, _UNTOLD_PER_WORKER * fleet))

    def took(self, began: float, now: float) -> None:
        """Takes down what it took: under an old snapshot the queue's index may hold entries of many finished lists."""
        self._told_at = max(self._told_at, began + (now - began) / _SHARE)
        self._untold_at = max(self._untold_at, self._told_at)
