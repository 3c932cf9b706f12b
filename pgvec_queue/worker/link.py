"""A stage's way to the database: what passes is waited for, and a connection that has gone silent is severed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psycopg
import tenacity

from pgvec_queue.database import Connection, Pool, kind_of
from pgvec_queue.errors import Kind
from pgvec_queue.worker.state import State

T = TypeVar("T")

CALL_SECONDS = 150.0
"""Longest that one call of the database may take; each of its statements has a timeout of a minute at most."""
LONGEST_BACKOFF = 2.0
"""Seconds between tries to reach a database: it is to be back at work soon after it accepts connections again."""


class Link:
    """A stage's way to the database: a connection of the worker's pool, for as long as one call takes."""

    def __init__(self, pool: Pool, stage: str, state: State) -> None:
        self._pool = pool
        self._stage = stage
        self._state = state

    def call(self, work: Callable[[Connection], T]) -> T:
        """Runs ``work`` on a connection; passing errors back off and try again, anything else is raised.

        Raises ``StoppedError`` when the worker is to end before it succeeds.
        """
        for attempt in tenacity.Retrying(
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=LONGEST_BACKOFF),
            retry=tenacity.retry_if_exception(_passes),
            sleep=self._state.pause,
            before_sleep=lambda call: self._state.tell(self._stage, call),
            reraise=True,
        ):
            with (
                attempt,
                self._pool.connection() as connection,
                self._state.watch.database(f"the {self._stage}'s connection", CALL_SECONDS, connection),
            ):
                result = work(connection)
        self._state.goes_on(self._stage)
        return result


def _passes(error: BaseException) -> bool:
    return isinstance(error, psycopg.Error | OSError) and kind_of(error) is Kind.PASSING
