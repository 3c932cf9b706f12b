"""The stages of a worker, and the bounded queues between them; a stage ends by passing the end on."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator

from pgvec_queue.database import stage
from pgvec_queue.worker.state import State, StoppedError, Work

log = logging.getLogger("pgvec.worker")

_LOOK = 0.2


class Channel:
    """A bounded queue of work between two stages; the end is passed through it like a piece of work."""

    def __init__(self, state: State, size: int) -> None:
        self._state = state
        self._queue: queue.Queue[Work | None] = queue.Queue(size)

    def put(self, work: Work) -> None:
        """Waits for room. Raises ``StoppedError`` when the session was aborted meanwhile."""
        while True:
            try:
                self._queue.put(work, timeout=_LOOK)
                return
            except queue.Full:
                if self._state.aborted.is_set():
                    raise StoppedError from None

    def end(self) -> None:
        """Tells the next stage that nothing more comes."""
        while True:
            try:
                self._queue.put(None, timeout=_LOOK)
                return
            except queue.Full:
                if self._state.aborted.is_set():
                    # The next stage looks at the same event.
                    return

    def __iter__(self) -> Iterator[Work]:
        """Yields work until its end; after an abort, nothing more."""
        while not self._state.aborted.is_set():
            try:
                work = self._queue.get(timeout=_LOOK)
            except queue.Empty:
                continue
            if work is None:
                return
            yield work


class Stage(threading.Thread):
    """Runs one stage; whatever goes wrong in it that nobody handled ends the session with its cause."""

    def __init__(self, name: str, state: State, body: Callable[[], None], out: Channel | None = None) -> None:
        super().__init__(name=f"pgvec-{name}", daemon=True)
        self._state = state
        self._body = body
        self._out = out

    def run(self) -> None:
        stage.set(self.name.removeprefix("pgvec-"))
        try:
            self._body()
        except StoppedError:
            pass
        # A thread ends here, and the session with it.
        except BaseException as error:
            log.debug("stage %s failed", self.name, exc_info=True)
            self._state.fail(error)
        finally:
            if self._out is not None:
                self._out.end()
