"""Makes vectorizers on request: the checks and the destination while the request waits, the plan after that.

Each runs in a thread with a connection of its own, since both may take long and are written for a plain connection; a
few at a time, more are refused. A plan commits as it goes: one that ends with the gateway leaves valid jobs, says so in
``status``, and goes on when the same is asked for again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg

from pgvec_queue import definition, schema
from pgvec_queue.database import Connection, Database, one_line, versions
from pgvec_queue.definition import Defined, Options
from pgvec_queue.errors import PgvecError
from pgvec_queue.fragments import Fragments
from pgvec_queue.log import get_logger
from pgvec_queue.planner import Planner

log = get_logger("pgvec.gateway")

MOST = 2
"""Vectorizers that are made, or planned, at the same time."""
_LEAVE_SECONDS = 5.0

Tell = Callable[[Defined | Exception], None]


class StoppedError(PgvecError):
    """The gateway ends, and with it what it was planning."""


class Plans:
    """The vectorizers that one gateway is making. Belongs to one event loop."""

    def __init__(self, database: Database, *, most: int = MOST) -> None:
        self._database = database
        self._most = most
        self._stop = threading.Event()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()

    @property
    def full(self) -> bool:
        """As many are being made as may at a time."""
        with self._lock:
            return len(self._threads) >= self._most

    def begin(self, options: Options) -> asyncio.Future[Defined]:
        """Begins to make a vectorizer; the future is done once it is there, and planning goes on after that.

        It fails with what kept the vectorizer from being made. To be called where it is not ``full``.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Defined] = loop.create_future()

        def settle(result: Defined | Exception) -> None:
            if future.done():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
                # Where nobody waits any more, it has been logged.
                future.exception()
            else:
                future.set_result(result)

        def run() -> None:
            try:
                self._make(options, lambda result: _call(loop, settle, result))
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        # A daemon, since an index that a destination lacks may take hours; the server builds it without us as well.
        thread = threading.Thread(target=run, name="pgvec-plan", daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()
        return future

    async def close(self) -> None:
        """Ends what is being planned, between two transactions."""
        self._stop.set()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            await asyncio.to_thread(thread.join, _LEAVE_SECONDS)

    def _make(self, options: Options, tell: Tell) -> None:
        told = False
        try:
            with self._database.connect("gateway plan") as connection:
                found = versions(connection)
                schema.require(connection)
                defined = definition.define(connection, options, found)
                told = True
                tell(defined)
                self._plan(connection, Fragments(defined.vectorizer, found.vector_schema))
        except (psycopg.Error, PgvecError, OSError) as error:
            # A plan that somebody else has taken over, or that ends with us, is no error either.
            log.warning("vectorizer is not planned to its end", source=options.source, error=one_line(error))
            if not told:
                tell(error)
        except Exception as error:  # the thread ends here
            log.exception("vectorizer is not made", source=options.source, error=str(error))
            if not told:
                tell(error)

    def _plan(self, connection: Connection, fragments: Fragments) -> None:
        def go_on(_jobs: int, _rows: int) -> None:
            if self._stop.is_set():
                raise StoppedError("the gateway ends; ask for the same again to go on")

        planned = Planner(connection, fragments, go_on).plan()
        log.info("vectorizer is planned", vectorizer=fragments.vectorizer.name, jobs=planned.jobs, rows=planned.rows)


def _call(loop: asyncio.AbstractEventLoop, settle: Tell, result: Defined | Exception) -> None:
    # The loop may have ended, with its gateway.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(settle, result)
