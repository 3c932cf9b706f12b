"""The stages of a worker, and the bounded queues between them; a stage ends by passing the end on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from structlog.contextvars import bind_contextvars

from pgvec_queue.database import stage
from pgvec_queue.log import get_logger
from pgvec_queue.worker.measures import BLOCKED, STARVED
from pgvec_queue.worker.state import State, StoppedError
from pgvec_queue.worker.work import Work

log = get_logger("pgvec.worker")

CHANNEL_BYTES = 32 * 1024 * 1024
"""Text and vectors that may wait between two stages."""
_BACKLOG = 2
_LOOK, _LOOK_FOR_ROOM = 0.2, 0.1


class Channel:
    """A queue of work between two stages, bounded by slices and by bytes; its end comes after all work.

    What is urgent goes before the rest and has room of its own, one slice at least; each of the two stays in order.
    """

    def __init__(self, state: State, slices: int, size: int = CHANNEL_BYTES) -> None:
        """Holds up to ``slices`` pieces of work of ``size`` bytes together; a larger one only by itself."""
        self._state = state
        self._slices = slices
        self._size = size
        self._changed = threading.Condition()
        self._held: deque[tuple[Work, int]] = deque()
        self._urgent: deque[tuple[Work, int]] = deque()
        self._bytes = 0
        self._ended = False

    def put(self, work: Work) -> None:
        """Waits for room. Raises ``StoppedError`` when the session was aborted meanwhile."""
        size = work.size
        lane = self._urgent if work.urgent else self._held
        with self._changed:
            if self._is_full(lane, size):
                with self._state.measures.waiting(BLOCKED):
                    self._wait_for_room(lane, size)
            lane.append((work, size))
            self._bytes += size
            self._changed.notify_all()

    def end(self) -> None:
        """Tells the next stage that nothing more comes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._held)

    def has_room(self, seconds: float = 0.0) -> bool:
        """Whether a small slice that is not urgent would be taken at once, or within so many seconds."""
        with self._changed:
            if seconds and self._is_full(self._held, 1):
                with self._state.measures.waiting(BLOCKED):
                    self._changed.wait(seconds)
            return not self._is_full(self._held, 1)

    def take_if(self, wanted: Callable[[Work], bool]) -> Work | None:
        """Returns the next work if it is there already and wanted."""
        with self._changed:
            lane = self._urgent or self._held
            if not lane or self._state.aborted.is_set() or not wanted(lane[0][0]):
                return None
            return self._take(lane)

    def __iter__(self) -> Iterator[Work]:
        """Yields work until its end; after an abort, nothing more."""
        return self.towards(None)

    def towards(self, out: Channel | None) -> Iterator[Work]:
        """Yields work until its end; after an abort, nothing more.

        What is not urgent is left here until ``out`` has room for it, so that it stands in nothing's way.
        """
        while not self._state.aborted.is_set():
            with self._changed:
                lane = self._urgent or self._held
                if not lane:
                    if self._ended:
                        return
                    with self._state.measures.waiting(STARVED):
                        self._changed.wait(_LOOK)
                    continue
                work = self._take(lane) if self._urgent or out is None or out.has_room() else None
            if work is not None:
                yield work
            elif out is not None:
                out.has_room(_LOOK_FOR_ROOM)

    def _is_full(self, lane: deque[tuple[Work, int]], size: int) -> bool:
        return bool(lane) and (len(lane) >= self._slices or self._bytes + size > self._size)

    def _wait_for_room(self, lane: deque[tuple[Work, int]], size: int) -> None:
        while self._is_full(lane, size):
            if self._state.aborted.is_set():
                raise StoppedError
            self._changed.wait(_LOOK)

    def _take(self, lane: deque[tuple[Work, int]]) -> Work:
        work, size = lane.popleft()
        self._bytes -= size
        self._changed.notify_all()
        return work


class Fan:
    """Hands work to several channels: that of one job to one of them, so that it stays in order.

    All goes to the first as long as that has no more than a slice waiting: one connection is enough for most models.
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._channels = channels

    def put(self, work: Work) -> None:
        """Waits for room. Raises ``StoppedError`` when the session was aborted meanwhile."""
        run = work.run
        if run.taker is None:
            waiting = [len(channel) for channel in self._channels]
            run.taker = 0 if waiting[0] < _BACKLOG else waiting.index(min(waiting))
        self._channels[run.taker].put(work)

    def end(self) -> None:
        """Tells all that nothing more comes."""
        for channel in self._channels:
            channel.end()


class Stage(threading.Thread):
    """Runs one stage; whatever goes wrong in it that nobody handled ends the session with its cause."""

    def __init__(self, name: str, state: State, body: Callable[[], None], out: Channel | Fan | None = None) -> None:
        super().__init__(name=f"pgvec-{name}", daemon=True)
        self._state = state
        self._body = body
        self._out = out
        self._stage = name

    def run(self) -> None:
        stage.set(self._stage)
        if self._state.worker is not None:
            bind_contextvars(worker=self._state.worker)
        try:
            with self._state.measures.stage(stage.get() or ""):
                self._body()
        except StoppedError:
            pass
        # A thread ends here, and the session with it.
        except BaseException as error:
            log.debug("stage has failed", stage=self._stage, exc_info=True)
            self._state.fail(error)
        finally:
            if self._out is not None:
                self._out.end()
