"""Waits for conditions, with a deadline, where no event can be set."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_POLL = 0.005


def wait_until(condition: Callable[[], object], timeout: float = 10.0, *, what: str = "the condition") -> None:
    """Returns as soon as ``condition()`` is true; fails the test when it is not within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        pause.wait(_POLL)
