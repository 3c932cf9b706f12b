"""Workers whose device is a clock, hundreds of them in one process: ``python -m pgvec_queue.bench.simulated``.

Each is a worker with an id, a heartbeat and connections of its own. Reader, writer, heartbeat, claims, pools and all
their pacing are the worker's, not copies of them; in the place of chunker and model stands a clock, which lets a slice
pass when a device of so many rows per second would be done with it, with one and the same vector for every document.

What it does not have: an indexer, a second writer and a watch over calls that hang.

The first line on standard input is ``Settings`` as JSON. Each further line asks for what was recorded since the line
before, and is answered with a line of JSON, ``Recorded``. When standard input ends, the workers leave.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from pgvec_queue import process, queue, schema
from pgvec_queue.chunking import Chunk
from pgvec_queue.database import Connection, Database
from pgvec_queue.embedders import DeviceOptions
from pgvec_queue.errors import PgvecError
from pgvec_queue.queue import Claimer, Job
from pgvec_queue.slices import Embedded
from pgvec_queue.worker.cache import Cache
from pgvec_queue.worker.heartbeat import Heartbeat
from pgvec_queue.worker.link import Link
from pgvec_queue.worker.measures import Measures
from pgvec_queue.worker.models import Models
from pgvec_queue.worker.options import DEFAULT_LEASE
from pgvec_queue.worker.reader import Reader
from pgvec_queue.worker.stages import Channel, Stage
from pgvec_queue.worker.state import State
from pgvec_queue.worker.work import Work
from pgvec_queue.worker.writer import Breakers, Writer

DIMENSIONS = 8
_SLICES_AHEAD = 4
_CATCH_UP = 1.0
"""Seconds of its work that a device makes up for at most, when its writer was slow: what would be waiting there."""
_CONNECTIONS = 2
"""Of reader and writer; the heartbeat has one of its own."""
_STACK = 512 * 1024
_LOOK = 0.2
_LEAVE_SECONDS = 10.0
_SWITCH_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Settings:
    """What one process is told."""

    dsn: str
    direct: str | None
    """For heartbeats that listen; None: they go the way of everything else, and do not."""
    names: Sequence[str]
    """Vectorizers."""
    workers: int
    rate: float
    """Rows per second of each worker's device."""
    lease: float = DEFAULT_LEASE


@dataclass(slots=True)
class Recorded:
    """What the workers of one process did since they were asked last. Lists hold one value for each time."""

    claims: list[float] = field(default_factory=list)
    """Milliseconds of the claims that got a job."""
    looks: list[float] = field(default_factory=list)
    """Milliseconds of those that found nothing."""
    beats: list[float] = field(default_factory=list)
    """Milliseconds from the beginning of a heartbeat to its commit."""
    late: list[float] = field(default_factory=list)
    """Seconds by which a heartbeat began later than a period after the one before."""
    writes: list[float] = field(default_factory=list)
    """Milliseconds of a slice's write."""
    lags: list[float] = field(default_factory=list)
    """Milliseconds by which a device's clock was served late: this process itself is behind then."""
    rows: int = 0
    """In the slices that a writer was done with."""
    lost: int = 0
    """Leases that were lost."""
    cpu: float = 0.0
    """Seconds of processor time that the process has taken since its start."""
    threads: int = 0
    failure: str | None = None
    """Why the workers can work no more."""


class _Recorder:
    """Where all workers of the process record; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recorded = Recorded()

    def record(self, what: str, value: float) -> None:
        with self._lock:
            getattr(self._recorded, what).append(value)

    def count(self, what: str, number: int) -> None:
        with self._lock:
            setattr(self._recorded, what, getattr(self._recorded, what) + number)

    def fail(self, error: BaseException) -> None:
        with self._lock:
            self._recorded.failure = self._recorded.failure or f"{type(error).__name__}: {error}"

    def take(self) -> Recorded:
        """Returns what was recorded, and begins anew."""
        with self._lock:
            taken, self._recorded = self._recorded, Recorded(failure=self._recorded.failure)
        taken.cpu = time.process_time()
        taken.threads = threading.active_count()
        return taken


class _TimedClaimer(Claimer):
    recorder: _Recorder

    def claim(self, connection: Connection, **options: Any) -> Job | None:
        began = time.perf_counter()
        job = Claimer.claim(self, connection, **options)
        self.recorder.record("looks" if job is None else "claims", (time.perf_counter() - began) * 1000)
        return job


class _TimedHeartbeat(Heartbeat):
    recorder: _Recorder
    _began_at: float | None = None

    def _beat(self) -> dict[str, object]:
        now = time.monotonic()
        # Due a period after the last one began: of that which takes long, the next one is late.
        if self._began_at is not None:
            self.recorder.record("late", max(0.0, now - self._began_at - self.period))
        self._began_at = now
        return Heartbeat._beat(self)


class _TimedMeasures(Measures):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def beat(self, at: float) -> None:
        self._recorder.record("beats", (time.monotonic() - at) * 1000)
        super().beat(at)


class Device(Channel):
    """In the place of chunker and model: slices come out as a device of ``rate`` rows per second would be done."""

    def __init__(self, state: State, source: Channel, rate: float, recorder: _Recorder) -> None:
        super().__init__(state, _SLICES_AHEAD)
        self._source = source
        self._rate = rate
        self._recorder = recorder
        self._vectors = np.full((1, DIMENSIONS), DIMENSIONS**-0.5, np.float32)

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Work]:
        """Yields slices; until the next one is asked for, the one before is being written."""
        free_at = 0.0
        while True:
            waited = len(self._source) > 0
            work = next(iter(self._source), None)
            if work is None:
                return
            if not work.run.begins:
                self._state.give_up(work)
                continue
            now = time.monotonic()
            # What was there already, the device has begun while the slice before was written.
            free_at = max(free_at, now - _CATCH_UP) if waited else max(free_at, now)
            free_at += len(work.part.documents) / self._rate
            self._pass(work, free_at)
            began = time.perf_counter()
            yield work
            self._recorder.record("writes", (time.perf_counter() - began) * 1000)
            self._recorder.count("rows", len(work.part.documents))

    def _pass(self, work: Work, done_at: float) -> None:
        """Waits until the device is done with a slice."""
        documents = work.part.documents
        left = done_at - time.monotonic()
        if left > 0:
            self._state.aborted.wait(left)
            self._recorder.record("lags", max(0.0, time.monotonic() - done_at) * 1000)
        self._state.measured(len(documents), len(documents) / self._rate)
        work.embedded = [
            Embedded(one, (Chunk(0, one.text or "", 1, one.text or ""),), self._vectors) for one in documents
        ]


class SimulatedWorker:
    """One worker: registers, works, and begins afresh when it has lost its lease, until told to leave."""

    def __init__(self, settings: Settings, recorder: _Recorder) -> None:
        self._settings = settings
        self._recorder = recorder
        self._database = Database(settings.dsn)
        self._direct = Database(settings.direct) if settings.direct else self._database
        self._state = State()
        self._stages: list[Stage] = []
        self._end: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Begins a session under a new id."""
        settings, recorder = self._settings, self._recorder
        state = State(_TimedMeasures(recorder))
        with self._database.connect("worker") as connection:
            member = queue.register(connection, names=settings.names, lease=settings.lease)
            state.revision = schema.revision(connection)
        state.worker = member.worker
        # As of a worker that has had the model before: nobody is to wait for the first slices to be of the right size.
        state.measured(settings.rate, 1.0)
        pool = self._database.pool("worker", size=_CONNECTIONS)
        claimer = _TimedClaimer(member, settings.names)
        claimer.recorder = recorder
        read = Channel(state, _SLICES_AHEAD)
        reader = Reader(
            Link(pool, "reader", state), state, read, claimer, settings.names, lease=settings.lease, drain=False
        )
        device = Device(state, read, settings.rate, recorder)
        writer = Writer(Link(pool, "writer", state), state, device, claimer, Breakers())
        heartbeat = _TimedHeartbeat(
            self._direct,
            state,
            Models(DeviceOptions(), None),
            Cache(0),
            member,
            settings.lease,
            settings.direct is not None,
            leave=self.stop,
        )
        heartbeat.recorder = recorder
        self._state = state
        self._stages = [
            Stage("heartbeat", state, heartbeat.run),
            Stage("reader", state, reader.run, read),
            Stage("writer", state, writer.run),
        ]

        def end() -> None:
            heartbeat.stop()
            for stage in self._stages:
                stage.join(_LEAVE_SECONDS)
            pool.close(2)
            if not state.lease_lost.is_set():
                with self._database.connect("worker") as connection:
                    queue.leave(connection, member)

        self._end = end
        for stage in self._stages:
            stage.start()

    def look(self) -> None:
        """Begins afresh where the lease is lost. Raises what has ended a stage."""
        if self._state.failure is not None:
            raise self._state.failure
        if self._state.outgrown.is_set():
            raise PgvecError("the schema of the bench's database has become another one")
        if self._state.lease_lost.is_set():
            self._recorder.count("lost", 1)
            self._end()
            self.start()

    def stop(self) -> None:
        """Tells it to leave; ``end`` waits until it has."""
        self._state.stopping.set()
        self._state.wake.set()

    def end(self) -> None:
        self._end()


def main() -> int:
    given = json.loads(sys.stdin.readline())
    settings = Settings(**{one.name: given[one.name] for one in fields(Settings)})
    threading.stack_size(_STACK)
    recorder = _Recorder()
    workers = [SimulatedWorker(settings, recorder) for _ in range(settings.workers)]
    left = threading.Event()

    def look_after() -> None:
        try:
            for worker in workers:
                worker.start()
                if left.is_set():
                    return
            process.settle()
            # Hundreds of threads that ask for the interpreter a thousand times a second leave nothing of it.
            sys.setswitchinterval(_SWITCH_SECONDS)
            while not left.wait(_LOOK):
                for worker in workers:
                    worker.look()
        # The thread ends here, and whoever asks is told why.
        except BaseException as error:  # noqa: BLE001
            recorder.fail(error)

    keeper = threading.Thread(target=look_after)
    keeper.start()
    for _ in sys.stdin:
        sys.stdout.write(json.dumps(asdict(recorder.take())) + "\n")
        sys.stdout.flush()
    left.set()
    keeper.join()
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
