"""A worker's life: register, run the stages, leave in order; and start afresh when its lease was lost.

First signal: claim nothing, finish the slice in hand, release the rest, leave within seconds. Second: stop at once; the
lease runs out and others take over. Neither counts an attempt for any job.
"""

from __future__ import annotations

import enum
import functools
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psycopg

from pgvec_queue import embedders, queue, schema, vectorizer
from pgvec_queue.database import Database, Pool, versions
from pgvec_queue.embedders import DeviceOptions
from pgvec_queue.errors import DatabaseError, MissingExtraError
from pgvec_queue.queue import Pending
from pgvec_queue.worker import reader as reading_stage
from pgvec_queue.worker.embedding import ChunkStage, EmbedStage
from pgvec_queue.worker.heartbeat import Heartbeat
from pgvec_queue.worker.models import Models
from pgvec_queue.worker.reader import Reader
from pgvec_queue.worker.stages import Channel, Stage
from pgvec_queue.worker.state import Link, Run, State
from pgvec_queue.worker.writer import Writer

log = logging.getLogger("pgvec.worker")

DEFAULT_LEASE = 30.0
_SLICES_AHEAD = 2


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How one worker works; nothing of it belongs to a vectorizer."""

    names: Sequence[str] | None = None
    """Vectorizers to work on; None: all."""
    device: DeviceOptions = field(default_factory=DeviceOptions)
    drain: bool = False
    """End when nothing is left to claim or to wait for."""
    lease: float = DEFAULT_LEASE
    """Seconds without a heartbeat after which others take over."""
    memory: int | None = None
    """Bytes that loaded models may hold; None: no bound."""
    pool_size: int = 3
    """Connections of its stages, apart from the heartbeat's own."""
    listen: bool = True
    """Wake on NOTIFY; off for a connection through a transaction-mode pooler, where polling does it alone."""


class Outcome(enum.Enum):
    """How a worker ended."""

    STOPPED = "stopped"
    COMPLETE = "complete"
    """Drained, and every row is done."""
    QUARANTINED = "quarantined"
    """Drained, and some documents are in quarantine."""
    BLOCKED = "blocked"
    """Drained as far as possible: a vectorizer is blocked, or its plan was stopped half-way."""


class Worker:
    """One worker process; ``run`` returns when it was stopped or has drained."""

    def __init__(self, database: Database, options: WorkerOptions) -> None:
        self._database = database
        self._options = options
        self._models = Models(options.device, options.memory)
        self._told_to_stop = False
        self._state: State | None = None

    def stop(self) -> None:
        """Asks the worker to leave; safe to call from a signal handler and from any thread."""
        self._told_to_stop = True
        state = self._state
        if state is not None:
            state.stopping.set()
            state.wake.set()

    def run(self) -> Outcome:
        """Works until stopped, or until nothing is left when draining.

        Raises ``PgvecError`` when the database cannot be used, the schema is outdated, or this machine lacks what every
        vectorizer needs; anything unexpected that ended a stage is raised as it is.
        """
        embedders.check_device(self._options.device)
        with self._database.connect("worker") as connection:
            versions(connection)
            schema.require(connection)
            for name in self._options.names or ():
                vectorizer.get(connection, name)
            refused = self._cannot_serve(connection)
        try:
            while True:
                state = State()
                self._state = state
                if self._told_to_stop:
                    return Outcome.STOPPED
                self._session(state, refused)
                if state.failure is not None:
                    raise state.failure
                if not state.lease_lost.is_set() or self._told_to_stop:
                    break
        finally:
            self._models.close()
        return Outcome.STOPPED if self._told_to_stop else self._outcome()

    def _cannot_serve(self, connection: psycopg.Connection) -> set[int]:
        """Vectorizers whose model this installation cannot run; raises ``MissingExtraError`` when that is all of
        them.
        """
        chosen = [
            one
            for name in (self._options.names or vectorizer.names(connection))
            if (one := vectorizer.find(connection, name)) is not None
        ]
        if importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("torch"):
            return set()
        refused = {one.id: one.name for one in chosen if one.embedder == "sentence-transformers"}
        if refused and len(refused) == len(chosen):
            raise MissingExtraError("`pgvec work` on sentence-transformers models", "worker")
        for name in refused.values():
            log.warning("%s is left to other workers: pip install 'pgvec-queue[worker]' to serve it here", name)
        return set(refused)

    def _session(self, state: State, refused: set[int]) -> None:
        """Works under one worker id until told to stop, drained, or the lease is lost."""
        options = self._options
        with self._database.connect("worker") as connection:
            worker = queue.register(connection, names=options.names, lease=options.lease)
        log.info("worker %d is ready", worker)
        heartbeat = Heartbeat(self._database, state, self._models, worker, options.lease, options.listen)
        beating = Stage("heartbeat", state, heartbeat.run)
        beating.start()
        pool = self._database.pool("worker", size=options.pool_size)
        stages = self._stages(state, pool, worker, refused)
        for stage in stages:
            stage.start()
        try:
            for stage in stages:
                while stage.is_alive():
                    stage.join(0.5)
                    if state.aborted.is_set() and not _ends(stage):
                        # A stage that hangs in a call after an abort can write nothing: the fence refuses it.
                        break
        finally:
            heartbeat.stop()
            beating.join(5)
            pool.close()
        if not state.lease_lost.is_set():
            self._leave(worker)

    def _stages(self, state: State, pool: Pool, worker: int, refused: set[int]) -> list[Stage]:
        options = self._options
        read, chunked, embedded = Channel(state, 1), Channel(state, _SLICES_AHEAD), Channel(state, _SLICES_AHEAD)

        def blocker(stage: str) -> Callable[[Run, str], None]:
            return functools.partial(reading_stage.block, Link(pool, stage, state), state, worker)

        reader = Reader(Link(pool, "reader", state), state, read, worker, options.names, drain=options.drain)
        reader.claimer.refused.update(refused)
        writer = Writer(Link(pool, "writer", state), state, embedded, worker)
        return [
            Stage("reader", state, reader.run, read),
            Stage("chunker", state, ChunkStage(state, self._models, read, chunked, blocker("chunker")).run, chunked),
            Stage(
                "embedder", state, EmbedStage(state, self._models, chunked, embedded, blocker("embedder")).run, embedded
            ),
            Stage("writer", state, writer.run),
        ]

    def _leave(self, worker: int) -> None:
        try:
            with self._database.connect("worker") as connection:
                queue.leave(connection, worker)
                queue.notify(connection)
        except (psycopg.Error, DatabaseError) as error:
            log.warning("could not give the jobs back (%s); others take over when the lease runs out", error)

    def _outcome(self) -> Outcome:
        with self._database.connect("worker") as connection:
            left = queue.pending(connection, self._options.names)
            failed = any(queue.failures(connection, one.id) for one in left if not one.paused)
        if any(_is_stuck(one) for one in left):
            return Outcome.BLOCKED
        return Outcome.QUARANTINED if failed else Outcome.COMPLETE


def _ends(stage: Stage) -> bool:
    stage.join(10)
    return not stage.is_alive()


def _is_stuck(one: Pending) -> bool:
    return one.blocked_reason is not None or (one.unplanned and not one.planning and not one.paused)
