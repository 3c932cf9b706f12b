"""What the stages of one worker share: why to stop, what is in flight, how fast it goes."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import tenacity

from pgvec_queue.database import one_line
from pgvec_queue.errors import EmbedderError, Kind, StalledError
from pgvec_queue.log import get_logger, hidden
from pgvec_queue.worker.busy import Busy
from pgvec_queue.worker.measures import HELD, Measures
from pgvec_queue.worker.rates import Rate
from pgvec_queue.worker.tally import Tally
from pgvec_queue.worker.watch import Watch
from pgvec_queue.worker.work import IndexRun, Run, Work

log = get_logger("pgvec.worker")

T = TypeVar("T")

_TOLD_FROM = 5.0
_TOLD_EVERY = 10.0
"""Seconds between two lines about the same trouble, at least."""
_HELD_LOOK = 0.1
_SMALL_FLEET = 8
"""Of so many workers all may ask at once."""
_SPREAD_PER_WORKER, _LONGEST_SPREAD = 0.005, 2.0
"""Seconds over which a larger fleet spreads its looks when somebody has added work."""
_VAIN_SHARE = 0.05
"""Seconds per worker between two looks of one that is told and finds nothing: about twenty a second of all together."""


class StoppedError(Exception):
    """The stage has to end: the worker was told to leave, or lost its lease."""


@dataclass(slots=True)
class _Trouble:
    began: float
    told: float | None = None
    """When the log last told of it."""


class State:
    """Shared by the stages of one session (one worker id); every field is safe to use from any thread."""

    def __init__(self, measures: Measures | None = None) -> None:
        """``measures`` are those of the process, which go on from session to session."""
        self.measures = measures or Measures()
        self.stopping = threading.Event()
        """Told to leave: claim nothing, finish the slice in hand."""
        self.aborted = threading.Event()
        """The lease is lost, the schema another one, or a stage failed: write nothing more."""
        self.lease_lost = threading.Event()
        self.outgrown = threading.Event()
        """The schema has become another one meanwhile: the session ends, and what it has in hand goes back."""
        self.revision = ""
        """Of the schema, when the session began."""
        self.drained = threading.Event()
        self.wake = threading.Event()
        """Something may be claimable."""
        self.news = threading.Event()
        """Somebody has said so since the reader last looked for live changes."""
        self.failure: BaseException | None = None
        self.stalled: str | None = None
        """The call that did not come back; the worker beats no more."""
        self.activity = "starting"
        self.fleet = 1
        """Workers that live, as the last heartbeat found them."""
        self.steered = threading.Event()
        """What people want of the vectorizers is known."""
        self.held: dict[int, str] = {}
        """Vectorizers that nothing is claimed or read of at present, and why: a limit is crossed."""
        self.rate_limits: dict[int, float] = {}
        """Rows per second that all workers together may read of a vectorizer's ranges, where there is a limit."""
        self.plenty = False
        """Many jobs are left for all workers, as this one has found: more are welcome."""
        self.near_end = False
        """Few jobs are left for all workers: what this one holds ahead, others will have to wait for."""
        self.waits: dict[str, str] = {}
        """Per stage, or per vectorizer that is left to others: what it waits for."""
        self.rests = threading.Event()
        """Nothing else can be claimed, and nothing is in hand: time to look for an index to build."""
        self.index: IndexRun | None = None
        """The index that this worker is building."""
        self.index_left: dict[int, str] = {}
        """Vectorizers whose index this worker cannot build, and why."""
        self.index_none = False
        """This worker can build none at all."""
        self.watch = Watch()
        self.busy = Busy()
        self.tally = Tally()
        self.worker: int | None = None
        """The id under which this session works, once it has one."""
        self._lock = threading.Lock()
        self._runs: list[Run] = []
        self._names: dict[int, str] = {}
        self._troubles: dict[str, _Trouble] = {}
        self._in_flight = 0
        self._rate = Rate()
        self._is_to_look = False
        self._is_told = False
        self._looked_in_vain: float | None = None
        """When it was told of work last and found none."""

    @property
    def ending(self) -> bool:
        return self.stopping.is_set() or self.aborted.is_set() or self.drained.is_set()

    def fail(self, error: BaseException) -> None:
        """Ends the session because of ``error``; the first one counts."""
        with self._lock:
            if self.failure is None:
                self.failure = error
        self.aborted.set()
        self.wake.set()

    def outgrow(self) -> None:
        """Ends the session because the schema has become another one; whether it fits is found out before the next."""
        self.outgrown.set()
        self.aborted.set()
        self.wake.set()

    def stall(self, what: str) -> None:
        """A call hangs: give up what is in hand, without giving it back, since it may be what killed the call."""
        self.stalled = what
        self.fail(StalledError(f"{what} did not come back; others take over when the lease runs out"))

    def begin(self, run: Run) -> None:
        with self._lock:
            self._runs = [r for r in self._runs if not r.dropped]
            self._runs.append(run)
            self._names[run.job.vectorizer_id] = run.fragments.vectorizer.name
            self._look_for_work()

    def end(self, run: Run) -> None:
        with self._lock:
            self._runs = [r for r in self._runs if r is not run]
            self._look_for_work()

    @property
    def jobs(self) -> list[int]:
        """The ids of the jobs in hand."""
        index = self.index
        with self._lock:
            return [run.job.id for run in self._runs] + ([index.job] if index else [])

    @property
    def jobs_in_hand(self) -> int:
        """How many jobs are in hand, but for those of which nothing more is done here."""
        with self._lock:
            return sum(not run.dropped for run in self._runs) + (self.index is not None)

    @property
    def vectorizers(self) -> list[int]:
        """The ids of those whose jobs are in hand."""
        with self._lock:
            return sorted({run.job.vectorizer_id for run in self._runs if not run.dropped})

    @property
    def watched(self) -> list[int]:
        """The ids of those whose jobs are in hand, that of the index which is being built among them."""
        index = self.index
        return sorted({*self.vectorizers, index.vectorizer_id}) if index else self.vectorizers

    def name_of(self, vectorizer_id: int) -> str | None:
        """The name of a vectorizer of which this worker has had a job."""
        with self._lock:
            return self._names.get(vectorizer_id)

    def wait_while_held(self, run: Run) -> bool:
        """Waits until no limit stands in the way of the run, or it is not to go on here; False where none did."""
        if run.job.vectorizer_id not in self.held:
            return False
        with self.measures.waiting(HELD):
            while run.job.vectorizer_id in self.held and run.begins and not self.ending:
                self.aborted.wait(_HELD_LOOK)
        return True

    def stop_vectorizer(self, vectorizer_id: int) -> None:
        """Begins nothing more of it."""
        with self._lock:
            for run in self._runs:
                if run.job.vectorizer_id == vectorizer_id:
                    run.stopped = True
        self.wake.set()

    def stop_index(self, vectorizer_id: int) -> None:
        """Ends the build of its index, if there is one."""
        index = self.index
        if index is not None and index.vectorizer_id == vectorizer_id:
            index.stopped = True

    def drop_vectorizer(self, vectorizer_id: int) -> None:
        with self._lock:
            for run in self._runs:
                if run.job.vectorizer_id == vectorizer_id:
                    run.dropped = True
            self._look_for_work()

    def _look_for_work(self) -> None:
        self.busy.has_work(any(not run.dropped for run in self._runs))

    def enter(self) -> None:
        """A slice was read."""
        with self._lock:
            self._in_flight += 1

    def leave(self) -> None:
        """A slice was written or given up."""
        with self._lock:
            self._in_flight -= 1
        self.wake.set()

    def give_up(self, work: Work) -> None:
        """A slice that was read is not going to be written."""
        self.measures.given_up(work.run.fragments.vectorizer.name)
        self.leave()

    def woken(self) -> None:
        """Somebody has added work. A large fleet does not ask for it all at once, nor all of it again and again."""
        self.news.set()
        if self.fleet <= _SMALL_FLEET:
            self.wake.set()
            return
        delay = self._spread()
        with self._lock:
            if self._is_to_look:
                return
            self._is_to_look = True
            if self._looked_in_vain is not None:
                # Somebody else had it; of what is told now, others are at it already.
                share = random.uniform(0.5, 1.5) * _VAIN_SHARE * self.fleet  # noqa: S311
                delay = max(delay, self._looked_in_vain + share - time.monotonic())
        self._look_in(delay, self._looks)

    def told_of_plenty(self) -> None:
        """Somebody has found more jobs than the workers that have one can do."""
        if self.fleet <= _SMALL_FLEET:
            self.wake.set()
        else:
            self._look_in(self._spread(), self.wake.set)

    def looked(self, *, in_vain: bool) -> None:
        """The queue was asked for a job."""
        with self._lock:
            if not in_vain:
                self._looked_in_vain = None
            elif self._is_told:
                self._looked_in_vain = time.monotonic()
            self._is_told = False

    def _spread(self) -> float:
        return random.uniform(0, min(self.fleet * _SPREAD_PER_WORKER, _LONGEST_SPREAD))  # noqa: S311

    def _looks(self) -> None:
        with self._lock:
            # Before it looks: what it is told meanwhile is another thing.
            self._is_to_look = False
            self._is_told = True
        self.wake.set()

    @staticmethod
    def _look_in(seconds: float, look: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, look)
        timer.daemon = True
        timer.start()

    def pause(self, seconds: float) -> None:
        """Waits before another try. Raises ``StoppedError`` as soon as the worker is to end."""
        deadline = time.monotonic() + seconds
        with self.measures.waiting(HELD):
            while (left := deadline - time.monotonic()) > 0:
                if self.stopping.is_set() or self.aborted.wait(min(left, 0.2)):
                    raise StoppedError

    def patiently(self, what: str, seconds: float, work: Callable[[], T], text: Callable[[], str] = lambda: "") -> T:
        """Runs what calls a model or its host; waits as long as that takes where it says that the fault will pass.

        A single call that takes longer than ``seconds`` is a stall. ``text`` is what the call is about, which an error
        may repeat and the log does not.
        """
        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=30)
        for attempt in tenacity.Retrying(
            wait=lambda call: max(_asked_for(call), backoff(call)),
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, EmbedderError) and e.kind is Kind.PASSING),
            sleep=self.pause,
            before_sleep=lambda call: self.tell("the model", call, text()),
            reraise=True,
        ):
            with attempt, self.watch.call(what, seconds, lambda: self.stall(what)):
                result = work()
        self.goes_on("the model")
        return result

    def tell(self, who: str, call: tenacity.RetryCallState, text: str = "") -> None:
        """Says in the log, and through the heartbeat in `status`, why something is tried again later."""
        error = call.outcome.exception() if call.outcome else None
        if error is not None and call.next_action is not None:
            self.waits[who] = f"{who}: {one_line(error)}{_until(call.next_action.sleep)}"
            self.told(who, hidden(one_line(error), text), call.next_action.sleep)

    def told(self, who: str, error: str, seconds: float) -> None:
        """Says in the log that something is tried again in so many seconds; of one trouble not with each try."""
        now = time.monotonic()
        with self._lock:
            trouble = self._troubles.setdefault(who, _Trouble(now))
            is_due = trouble.told is None or now - trouble.told >= _TOLD_EVERY
            trouble.told = now if is_due else trouble.told
        level = logging.WARNING if is_due else logging.DEBUG
        log.log(level, "waiting; it is tried again", what=who, seconds=round(seconds, 1), error=error)

    def goes_on(self, who: str) -> None:
        """What may have been tried several times has succeeded."""
        self.waits.pop(who, None)
        if who not in self._troubles:
            return
        with self._lock:
            trouble = self._troubles.pop(who, None)
        if trouble is not None:
            log.info("goes on after waiting", what=who, seconds=round(time.monotonic() - trouble.began, 1))

    @property
    def in_flight(self) -> int:
        with self._lock:
            return self._in_flight

    def measured(self, documents: float, seconds: float) -> None:
        """Takes in how long the device needed for a slice."""
        with self._lock:
            self._rate.add(documents, seconds)

    @property
    def documents_per_second(self) -> float:
        """Of the device alone; 0 until something was measured."""
        with self._lock:
            return self._rate.per_second


def _until(seconds: float) -> str:
    """When it is tried again, where that takes long enough for somebody to ask; in UTC, since others read it."""
    if seconds < _TOLD_FROM:
        return ""
    return f"; trying again at {datetime.now(UTC) + timedelta(seconds=seconds):%H:%M:%S} UTC"


def _asked_for(call: tenacity.RetryCallState) -> float:
    """Seconds that an endpoint asked to be left alone for."""
    error = call.outcome.exception() if call.outcome else None
    return (error.retry_after or 0.0) if isinstance(error, EmbedderError) else 0.0
