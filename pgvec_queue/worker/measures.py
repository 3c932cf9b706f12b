"""What a worker has done, counted as it goes: once per slice, call or wait, never per row.

Plain numbers under one lock, whether anybody asks for them or not: a few microseconds each. They outlive a session, so
a worker that registers afresh goes on counting; ``metrics`` makes Prometheus's metrics of them.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from pgvec_queue.database import stage
from pgvec_queue.slices import Written
from pgvec_queue.worker.cache import CacheLook

STAGES = ("reader", "chunker", "embedder", "writer", "writer-2")
WORKING, STARVED, BLOCKED, HELD = "working", "starved", "blocked", "held"
ACTIVITIES = (WORKING, STARVED, BLOCKED, HELD)
"""Of a stage: at work (the database and the model included), without anything to do, without room in the next stage,
waiting for a limit or before another try."""
BATCH_BOUNDS = (16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144)
"""Tokens of a batch, padding included: the upper bounds of the histogram's buckets."""
OTHER = "other"
_MOST_CLASSES = 50
"""Error classes that are told apart per vectorizer: a trigger of the user's may raise any SQLSTATE it likes."""


@dataclass(slots=True)
class Tally:
    """What was done of one vectorizer."""

    claims: int = 0
    steals: int = 0
    writes: int = 0
    slices_dropped: int = 0
    rows_right: int = 0
    rows_embedded: int = 0
    rows_unchanged: int = 0
    rows_wasted: int = 0
    chunks_written: int = 0
    chunks_kept: int = 0
    chunks_reused: int = 0
    chunks_cached: int = 0
    tokens: int = 0
    bytes_written: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Documents put into quarantine, by error class."""


@dataclass(frozen=True, slots=True)
class Counted:
    """All that was counted up to one moment."""

    tallies: Mapping[str, Tally]
    """By the vectorizer's name."""
    seconds: Mapping[tuple[str, str], float]
    """By stage and activity."""
    batches: Sequence[int]
    """Per bucket of ``BATCH_BOUNDS``, and of larger ones."""
    batch_tokens: int
    """Computed, padding included."""
    padding_tokens: int
    chunks_embedded: int
    """Given to the model, in calls that did not fail."""
    lease_losses: int


@dataclass(frozen=True, slots=True)
class Look:
    """A worker at one moment: what is true now, beside what was counted."""

    activity: str
    jobs: int
    slices: int
    """In hand, read and not yet written."""
    waits: int
    """Things that it waits for, such as an endpoint that is down."""
    busy: float | None
    device: str | None
    dtype: str | None
    runtime: str | None
    models: int
    model_bytes: int
    device_bytes: int | None
    """Held on the device by this process; None where that is not known."""
    loads: int
    cache: CacheLook
    peak_memory: int | None
    lease: float
    stalled: str | None
    """The call that does not come back."""
    schema: str | None
    """That it waits for a schema that its program works with, and why."""


class _Stopwatch:
    """How one stage spends its time: in one activity at each moment."""

    __slots__ = ("activity", "seconds", "since")

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self.activity: str | None = None
        self.since = 0.0

    def enter(self, activity: str | None, now: float) -> str | None:
        """Goes on with another activity, or none; returns the one before."""
        before = self.activity
        if before is not None:
            self.seconds[before] += now - self.since
        self.activity, self.since = activity, now
        return before


class Measures:
    """Counts for one worker process; safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` tells seconds that only ever grow."""
        self._clock = clock
        self._lock = threading.Lock()
        self._tallies: dict[str, Tally] = {}
        self._stopwatches = {name: _Stopwatch() for name in STAGES}
        self._batches = [0] * (len(BATCH_BOUNDS) + 1)
        self._batch_tokens = 0
        self._padding_tokens = 0
        self._chunks_embedded = 0
        self._lease_losses = 0
        self._beat: tuple[float, float] | None = None
        self.beat_error: str | None = None
        """Why the last heartbeat failed, if it did."""

    def claimed(self, vectorizer: str, *, stolen: bool) -> None:
        """A job came into this worker's hands, from the queue or from another worker."""
        with self._lock:
            tally = self._tally(vectorizer)
            tally.claims += not stolen
            tally.steals += stolen

    def written(self, vectorizer: str, result: Written) -> None:
        """A write was committed."""
        with self._lock:
            tally = self._tally(vectorizer)
            tally.writes += 1
            # Of live changes these are the documents gained, and more may have gone than come.
            tally.rows_right += max(result.rows_right, 0)
            tally.rows_embedded += result.rows_embedded
            tally.rows_unchanged += result.rows_unchanged
            tally.rows_wasted += result.rows_wasted
            tally.chunks_written += result.chunks_written
            tally.chunks_kept += result.chunks_kept
            tally.chunks_reused += result.chunks_reused
            tally.chunks_cached += result.chunks_cached
            tally.tokens += result.tokens
            tally.bytes_written += result.bytes_written
            for error_class in result.error_classes:
                known = error_class in tally.failures or len(tally.failures) < _MOST_CLASSES
                tally.failures[error_class if known else OTHER] += 1

    def given_up(self, vectorizer: str) -> None:
        """A slice that had been read is not going to be written here."""
        with self._lock:
            self._tally(vectorizer).slices_dropped += 1

    def wasted(self, vectorizer: str, rows: int) -> None:
        """Vectors were made in vain."""
        with self._lock:
            self._tally(vectorizer).rows_wasted += rows

    def batches(self, batches: Sequence[tuple[int, int]], chunks: int) -> None:
        """Takes in one call of the model with so many chunks: of each batch the tokens computed, padding included, and
        the tokens of texts.
        """
        with self._lock:
            self._chunks_embedded += chunks
            for computed, real in batches:
                self._batches[bisect_left(BATCH_BOUNDS, computed)] += 1
                self._batch_tokens += computed
                self._padding_tokens += computed - real

    def lost_lease(self) -> None:
        with self._lock:
            self._lease_losses += 1

    def beat(self, at: float) -> None:
        """A heartbeat that began at ``at``, by this object's clock, was committed."""
        self._beat = (at, time.time() - (self._clock() - at))
        self.beat_error = None

    @property
    def beat_age(self) -> float | None:
        """Seconds since the last successful heartbeat; None before the first."""
        beat = self._beat
        return None if beat is None else self._clock() - beat[0]

    @property
    def beat_time(self) -> float | None:
        """When that was, in seconds since 1970 by this machine's clock."""
        beat = self._beat
        return None if beat is None else beat[1]

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Put around the whole life of a stage: it works, unless it says that it waits."""
        watch = self._stopwatches.get(name)
        if watch is None:
            yield
            return
        self._enter(watch, WORKING)
        try:
            yield
        finally:
            self._enter(watch, None)

    @contextmanager
    def waiting(self, activity: str) -> Generator[None]:
        """Put around whatever the stage of this thread does instead of working."""
        watch = self._stopwatches.get(stage.get() or "")
        if watch is None or watch.activity is None:
            yield
            return
        before = self._enter(watch, activity)
        try:
            yield
        finally:
            self._enter(watch, before)

    def read(self) -> Counted:
        """Returns everything as it is now; no number is ever lower than in an earlier answer."""
        with self._lock:
            now = self._clock()
            seconds = {}
            for name, watch in self._stopwatches.items():
                for activity, spent in watch.seconds.items():
                    running = now - watch.since if watch.activity == activity else 0.0
                    seconds[name, activity] = spent + running
            return Counted(
                {name: replace(tally, failures=Counter(tally.failures)) for name, tally in self._tallies.items()},
                seconds,
                tuple(self._batches),
                self._batch_tokens,
                self._padding_tokens,
                self._chunks_embedded,
                self._lease_losses,
            )

    def _tally(self, vectorizer: str) -> Tally:
        tally = self._tallies.get(vectorizer)
        if tally is None:
            tally = self._tallies[vectorizer] = Tally()
        return tally

    def _enter(self, watch: _Stopwatch, activity: str | None) -> str | None:
        with self._lock:
            return watch.enter(activity, self._clock())
