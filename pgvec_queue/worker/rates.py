"""How fast a device is: a mean over its last seconds at work, in which a short call counts little."""

from __future__ import annotations

_KEPT = 0.7
"""Of what was measured, after another second of work."""


class Rate:
    """An amount per second; not locked."""

    def __init__(self) -> None:
        self._amount = 0.0
        self._seconds = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """Takes in how long so much took."""
        if amount <= 0 or seconds <= 0:
            return
        kept = _KEPT**seconds
        self._amount = kept * self._amount + amount
        self._seconds = kept * self._seconds + seconds

    @property
    def per_second(self) -> float:
        """0 until something was measured."""
        return self._amount / self._seconds if self._seconds else 0.0
