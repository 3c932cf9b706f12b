"""Notices calls that do not come back: of a model, a tokenizer, or over a connection whose other end has gone silent.

A hung call in C cannot be ended from outside, so what follows is the caller's to say: a connection is severed, and the
call fails as on any lost connection; a model's call makes the worker give up its life.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from pgvec_queue.database import Connection
from pgvec_queue.log import get_logger
from pgvec_queue.route import sever

log = get_logger("pgvec.worker")

_LOOK = 0.2


@dataclass(slots=True)
class _Call:
    what: str
    deadline: float
    overdue: Callable[[], None]
    severable: bool


class Watch:
    """Looks after the calls of one worker; ``run`` is the body of its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._next = 0
        self._stop = threading.Event()

    @contextmanager
    def call(
        self, what: str, seconds: float, overdue: Callable[[], None], *, severable: bool = False
    ) -> Generator[None]:
        """Calls ``overdue``, once and in the watch's thread, when the block takes longer than ``seconds``."""
        with self._lock:
            self._next += 1
            number = self._next
            self._calls[number] = _Call(what, time.monotonic() + seconds, overdue, severable)
        try:
            yield
        finally:
            with self._lock:
                self._calls.pop(number, None)

    def database(self, what: str, seconds: float, connection: Connection) -> AbstractContextManager[None]:
        """Watches a call over ``connection``, which is severed when it takes too long."""
        return self.call(what, seconds, lambda: sever(connection), severable=True)

    def sever_all(self) -> None:
        """Severs every connection that a call is waiting for: one of them has just shown that the network is cut."""
        self._end(lambda call: call.severable)

    def run(self) -> None:
        while not self._stop.wait(_LOOK):
            self._end(lambda call: call.deadline < time.monotonic())

    def stop(self) -> None:
        self._stop.set()

    def _end(self, chosen: Callable[[_Call], bool]) -> None:
        with self._lock:
            ended = [number for number, call in self._calls.items() if chosen(call)]
            calls = [self._calls.pop(number) for number in ended]
        for call in calls:
            log.warning("call does not come back; it is given up", what=call.what)
            call.overdue()
