"""A worker's life: register, run the stages, leave in order; and start afresh when its lease was lost.

First signal: claim nothing, finish the slice in hand, release the rest, leave within seconds, whatever a model is at.
Second: stop at once; the lease runs out and others take over. Neither counts an attempt for any job.

A worker whose process has become unfit (a device that does not give memory back) is recycled: it leaves as on the first
signal, and whoever runs it begins afresh with a new process.

A worker that is too old or too new for the schema says so and waits, unless it is to drain. Where somebody upgrades the
schema beneath it, it goes on if its program works with that, else it gives back what it has and waits.
"""

from __future__ import annotations

import enum
import functools
import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg
import tenacity
from structlog.contextvars import bound_contextvars

from pgvec_queue import embedders, pending, process, quarantine, queue, schema
from pgvec_queue.database import Connection, Database, Pool, kind_of, one_line
from pgvec_queue.errors import DatabaseError, Kind, SchemaMissingError, SchemaOutdatedError
from pgvec_queue.log import get_logger
from pgvec_queue.pending import Pending
from pgvec_queue.queue import Claimer, Membership
from pgvec_queue.worker.cache import Cache
from pgvec_queue.worker.chunking import ChunkStage
from pgvec_queue.worker.embedding import EmbedStage
from pgvec_queue.worker.heartbeat import Heartbeat
from pgvec_queue.worker.indexing import Indexer
from pgvec_queue.worker.link import LONGEST_BACKOFF, Link
from pgvec_queue.worker.measures import Look, Measures
from pgvec_queue.worker.models import Models
from pgvec_queue.worker.options import WorkerOptions, check
from pgvec_queue.worker.reader import Reader
from pgvec_queue.worker.refusals import Block, block
from pgvec_queue.worker.stages import Channel, Fan, Stage
from pgvec_queue.worker.state import State, StoppedError
from pgvec_queue.worker.writer import Breakers, Writer

log = get_logger("pgvec.worker")

T = TypeVar("T")

LEAVE_SECONDS = 7.0
"""After being told to leave: longer than a slice may still take, shorter than a supervisor's patience."""
BY_SIGNAL, BY_COMMAND, BY_SUPERVISOR = "a signal", "pgvec workers stop", "its supervisor"
"""Who may tell a worker to leave."""
_SCHEMA_LOOK = (2.0, 5.0)
"""Seconds between looks at a schema that is not one for this program."""
_WRITERS = ("writer", "writer-2")
"""The second has a connection only while the first cannot keep up."""
_READ_AHEAD, _CUT_AHEAD, _WRITTEN_BEHIND = 2, 4, 6
"""Slices that wait to be cut, for the model, a second of its work each, and for the database."""


class Outcome(enum.Enum):
    """How a worker ended."""

    STOPPED = "stopped"
    COMPLETE = "complete"
    """Drained, and every row is done."""
    QUARANTINED = "quarantined"
    """Drained, and some documents are in quarantine."""
    BLOCKED = "blocked"
    """Drained as far as possible: a vectorizer is blocked, or its plan was stopped half-way."""
    RECYCLED = "recycled"
    """It has left in order so that a fresh process can go on."""


class Worker:
    """One worker process; ``run`` returns when it was stopped or has drained."""

    def __init__(self, database: Database, options: WorkerOptions, *, direct: Database | None = None) -> None:
        """``direct`` is the same database without a pooler between, for the heartbeat and its LISTEN."""
        self._database = database
        self._direct = direct or database
        self._options = options
        self.hung = False
        """A call was left behind that nothing can end: the process should not wait for its threads."""
        self._models = Models(options.device, options.memory)
        self._cache = Cache(options.cache)
        self.measures = Measures()
        self.stopped = False
        """It was told to leave for good."""
        self._recycled = False
        self._told_by: str | None = None
        self._leaving_told = False
        self._left_to_others = False
        self._has_begun = False
        self._state: State | None = None
        self._schema: str | None = None
        """Why it waits for the schema, if it does."""

    def stop(self, by: str = BY_SIGNAL) -> None:
        """Asks the worker to leave; safe to call from a signal handler and from any thread.

        ``by`` says for the log who asks.
        """
        self._told_by = self._told_by or by
        self.stopped = True
        self._end_session()

    def recycle(self) -> None:
        """Asks the worker to leave so that a fresh process can go on; safe to call from any thread."""
        self._recycled = True
        self._end_session()

    def look(self) -> Look:
        """Returns what the worker is at, now; safe to call from any thread."""
        state, embedder = self._state, self._models.latest
        return Look(
            activity="starting" if state is None else "stopping" if state.stopping.is_set() else state.activity,
            jobs=state.jobs_in_hand if state else 0,
            slices=state.in_flight if state else 0,
            waits=len(state.waits) if state else 0,
            busy=state.busy.share if state else None,
            device=embedder.device if embedder else None,
            dtype=embedder.dtype if embedder else None,
            runtime=getattr(embedder, "runtime", None),
            models=len(self._models.names),
            model_bytes=self._models.memory_bytes,
            device_bytes=getattr(embedder, "device_bytes", None),
            loads=self._models.loads,
            cache=self._cache.look,
            peak_memory=process.peak_memory(),
            lease=self._options.lease,
            stalled=state.stalled if state else None,
            schema=self._schema,
        )

    @property
    def _leaving(self) -> Outcome | None:
        """As what it has to leave, if it has to; being stopped goes before."""
        if self.stopped:
            return Outcome.STOPPED
        return Outcome.RECYCLED if self._recycled else None

    def _end_session(self) -> None:
        state = self._state
        if state is not None:
            state.stopping.set()
            state.wake.set()

    def run(self) -> Outcome:
        """Works until stopped or recycled, or until nothing is left when draining.

        Waits for a schema that its program works with. Raises ``PgvecError`` when the database cannot be used, there is
        no schema, draining is asked for and it is not one for this program, or this machine lacks what every vectorizer
        needs; anything unexpected that ended a stage is raised as it is.
        """
        embedders.check_device(self._options.device)
        refused: dict[int, str] | None = None
        try:
            while True:
                state = State(self.measures)
                self._state = state
                if self._leaving:
                    return self._leaving
                try:
                    self._await_schema(state)
                    if refused is None:
                        refused = self._refused_here()
                    if refused is None:
                        continue
                    self._session(state, dict.fromkeys(refused, "packages are missing"))
                except StoppedError:
                    return self._leaving or Outcome.STOPPED
                if state.lease_lost.is_set():
                    self.measures.lost_lease()
                if state.failure is not None and not self._is_outgrown(state, state.failure):
                    raise state.failure
                if not (state.lease_lost.is_set() or state.outgrown.is_set()) or self._leaving:
                    break
        finally:
            if not self.hung:
                self._models.close()
        return self._leaving or self._outcome()

    def _refused_here(self) -> dict[int, str] | None:
        """As ``_refused``; None where the schema was upgraded in this moment, and is waited for."""
        try:
            return self._refused()
        except SchemaMissingError:
            raise
        except SchemaOutdatedError:
            if self._options.drain:
                raise
            return None

    def _refused(self) -> dict[int, str]:
        """Makes sure that the worker can begin; returns the vectorizers that it cannot serve here."""
        refused = check(self._database, self._options)
        for name in refused.values():
            log.warning(
                "vectorizer is left to other workers",
                vectorizer=name,
                error="packages are missing; to serve it here: pip install 'pgvec-queue[worker]'",
            )
        return refused

    def _await_schema(self, state: State) -> None:
        """Returns when the program works with the schema, and takes down which that is.

        Raises ``SchemaOutdatedError`` where it does not and is not waited for; ``StoppedError`` when told to leave.
        """

        def look(connection: Connection) -> tuple[str, SchemaOutdatedError | None]:
            try:
                return schema.require(connection), None
            except SchemaOutdatedError as error:
                return "", error

        told: str | None = None
        try:
            while True:
                state.revision, error = self._patiently(state, "looking at the schema", look)
                if error is None:
                    break
                if self._options.drain or isinstance(error, SchemaMissingError):
                    raise error
                self._schema = f"waiting for the schema: {error}"
                # From here on an outage is waited for as well.
                self._has_begun = True
                if str(error) != told:
                    log.warning("waiting for a schema that this program works with", error=str(error))
                told = str(error)
                state.pause(random.uniform(*_SCHEMA_LOOK))  # noqa: S311 - jitter
        finally:
            self._schema = None
        if told is not None:
            log.info("schema is there; the worker begins", revision=state.revision)

    def _is_outgrown(self, state: State, failure: BaseException) -> bool:
        """Whether a session has failed in the database while the schema became another one."""
        if state.outgrown.is_set():
            return True
        if not isinstance(failure, psycopg.Error) or kind_of(failure) is Kind.PASSING:
            return False
        # Where there is none any more, the failure says it.
        looking = State(self.measures)
        self._state = looking
        try:
            found = "" if self._leaving else self._patiently(looking, "looking at the schema", schema.revision)
        except StoppedError:
            return True
        if found not in ("", state.revision):
            log.info("schema was upgraded; the worker begins afresh", error=one_line(failure))
            state.outgrown.set()
        return state.outgrown.is_set()

    def _session(self, state: State, refused: dict[int, str]) -> None:
        """Works under one worker id until told to stop, drained, the lease is lost, or the schema is another one."""
        options = self._options
        member = self._patiently(
            state, "registering", lambda c: queue.register(c, names=options.names, lease=options.lease)
        )
        self._has_begun = True
        state.worker = member.worker
        with bound_contextvars(worker=member.worker):
            self._attend(state, member, refused)

    def _attend(self, state: State, member: Membership, refused: dict[int, str]) -> None:
        """Runs the heartbeat and the stages until they have ended."""
        options, asked = self._options, self._options.device
        began = time.monotonic()
        log.info("worker is ready", worker=member.worker, device=asked.device, dtype=asked.dtype, runtime=asked.runtime)
        heartbeat = Heartbeat(
            self._direct,
            state,
            self._models,
            self._cache,
            member,
            options.lease,
            options.listen,
            leave=functools.partial(self.stop, BY_COMMAND),
        )
        watching = Stage("watch", state, state.watch.run)
        beating = Stage("heartbeat", state, heartbeat.run)
        pool = self._database.pool("worker", size=options.pool_size)
        claimer = Claimer(member, options.names, dict(refused))
        stages, chunker = self._stages(state, pool, claimer)
        for stage in (watching, beating, *stages):
            stage.start()
        try:
            self._join(state, stages)
        finally:
            self._tell_of_leaving(state)
            state.tally.tell(ending=True)
            heartbeat.stop()
            beating.join(5)
            pool.close(2)
            chunker.close()
            state.watch.stop()
        self._left_to_others = claimer.refused.keys() > refused.keys()
        if not state.lease_lost.is_set() and state.stalled is None:
            self._leave(member)
            log.info(
                "worker has left",
                worker=member.worker,
                seconds=round(time.monotonic() - began, 1),
                chunks_embedded=self.measures.read().chunks_embedded,
            )

    def _patiently(self, state: State, what: str, work: Callable[[Connection], T]) -> T:
        """Runs ``work`` on a connection of its own; once this worker has begun, an outage is waited for.

        Raises ``StoppedError`` when told to leave meanwhile.
        """
        for attempt in tenacity.Retrying(
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=LONGEST_BACKOFF),
            retry=tenacity.retry_if_exception(
                lambda error: (
                    self._has_begun
                    and isinstance(error, psycopg.Error | DatabaseError)
                    and kind_of(error) is Kind.PASSING
                )
            ),
            sleep=state.pause,
            before_sleep=lambda call: state.tell(what, call),
            reraise=True,
        ):
            with attempt, self._database.connect("worker") as connection:
                result = work(connection)
        state.goes_on(what)
        return result

    def _join(self, state: State, stages: Sequence[Stage]) -> None:
        """Waits for the stages to end, and leaves behind what hangs: it can write nothing, the fence refuses it."""
        told_at: float | None = None
        for stage in stages:
            while stage.is_alive():
                stage.join(0.1)
                self._tell_of_leaving(state)
                afresh = state.lease_lost.is_set() or state.outgrown.is_set()
                if afresh and not state.stopping.is_set() and state.stalled is None:
                    # The next session needs the model that this stage is still using.
                    continue
                if state.stopping.is_set() or state.aborted.is_set():
                    told_at = told_at or time.monotonic()
                if state.stalled is not None or (told_at and time.monotonic() - told_at > LEAVE_SECONDS):
                    state.aborted.set()
                    self.hung = True
                    break

    def _tell_of_leaving(self, state: State) -> None:
        """A signal's handler may not log, so that is done here."""
        if state.stopping.is_set() and not self._leaving_told:
            self._leaving_told = True
            log.info("told to leave", by=self._told_by or "its device")

    def _stages(self, state: State, pool: Pool, claimer: Claimer) -> tuple[list[Stage], ChunkStage]:
        options = self._options
        read, chunked = Channel(state, _READ_AHEAD), Channel(state, _CUT_AHEAD)
        embedded = [Channel(state, _WRITTEN_BEHIND) for _ in _WRITERS]
        fan = Fan(embedded)

        def blocker(stage: str) -> Block:
            return functools.partial(block, Link(pool, stage, state), state, claimer.member)

        reader = Reader(
            Link(pool, "reader", state), state, read, claimer, options.names, lease=options.lease, drain=options.drain
        )
        chunker = ChunkStage(state, self._models, read, chunked, blocker("chunker"), options.stall, options.tokenizers)
        embedder = EmbedStage(
            state,
            self._models,
            chunked,
            fan,
            blocker("embedder"),
            options.stall,
            recycle=self.recycle,
            cache=self._cache,
        )
        breakers = Breakers()
        writers = [
            (name, Writer(Link(pool, name, state), state, source, claimer, breakers))
            for name, source in zip(_WRITERS, embedded, strict=True)
        ]
        indexer = Indexer(
            Link(pool, "indexer", state), state, claimer.member, self._direct, options.names, drain=options.drain
        )
        stages = [
            Stage("reader", state, reader.run, read),
            Stage("chunker", state, chunker.run, chunked),
            Stage("embedder", state, embedder.run, fan),
            *(Stage(name, state, writer.run) for name, writer in writers),
            Stage("indexer", state, indexer.run),
        ]
        return stages, chunker

    def _leave(self, member: Membership) -> None:
        try:
            with self._database.connect("worker") as connection:
                queue.leave(connection, member)
                queue.notify(connection)
        except (psycopg.Error, DatabaseError) as error:
            log.warning("jobs could not be given back; others take over when the lease runs out", error=one_line(error))

    def _outcome(self) -> Outcome:
        def look(connection: Connection) -> tuple[list[Pending], bool]:
            left = pending.pending(connection, self._options.names)
            return left, any(quarantine.failures(connection, one.id) for one in left if not one.paused)

        if self._left_to_others:
            return Outcome.BLOCKED
        left, failed = self._patiently(State(), "looking at what is left", look)
        if any(_is_stuck(one) for one in left):
            return Outcome.BLOCKED
        return Outcome.QUARANTINED if failed else Outcome.COMPLETE


def _is_stuck(one: Pending) -> bool:
    return one.blocked_reason is not None or (one.unplanned and not one.planning and not one.paused)
