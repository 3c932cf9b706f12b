"""The first stage: claims jobs, reads them slice by slice, and decides when a draining worker is done.

It claims only when there is room for another slice, so no job lies idle in a worker's hands. A slice is about a second
of the device's work, measured as the worker goes. A job that has cost two workers is read one document at a time, with
nothing else in hand; when that one has cost two more, it is not embedded again. With nothing to claim and nothing in
hand, it steals the tail of somebody else's job (see ``stealing``). When few jobs are left for all, it holds little
ahead: what is in its hands is what the others will have to wait for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import psycopg

from pgvec_queue import pending, queue, reading, stealing, vectorizer
from pgvec_queue.database import Connection, one_line, versions
from pgvec_queue.fragments import Fragments
from pgvec_queue.log import get_logger, hidden_data
from pgvec_queue.pending import Pending
from pgvec_queue.queue import Claimer
from pgvec_queue.slices import Failure, Slice
from pgvec_queue.worker.changes_look import ChangesLook
from pgvec_queue.worker.link import Link
from pgvec_queue.worker.measures import BLOCKED, HELD, STARVED
from pgvec_queue.worker.pacing import Pace
from pgvec_queue.worker.refusals import block
from pgvec_queue.worker.stages import Channel
from pgvec_queue.worker.state import State
from pgvec_queue.worker.work import Run, Work

log = get_logger("pgvec.worker")

SLICE_SECONDS, SLICE_AT_END = 1.0, 0.3
"""Of the device's work, in one slice; the second where few jobs are left for all workers."""
SLICE_BYTES = 8 * 1024 * 1024
"""Text in one slice, apart from its last document."""
VECTOR_BYTES = 64 * 1024 * 1024
"""About what the vectors of one slice may take."""
DEATHS = 2
"""Workers that a document may cost once it is alone."""
_STRAY_SECONDS = 1.0
_LOOK = 0.1
_END_LOOK, _END_LOOK_PER_WORKER = 1.0, 0.03
"""Seconds between looks at how much is left to claim; in a large fleet each looks the more seldom."""
_END_JOBS = 2
"""Per worker: with fewer to claim, the end is near."""
_HELD_AT_END = 3
"""Slices: one that the model is at, the next, and one that is being written."""
_FIRST_ROWS, _LEAST_ROWS, _MOST_ROWS = 32, 8, 2_000
_CHARACTERS_PER_TOKEN = 4
# All idle workers together ask about three times a second, so that a live change is seen in well under a second; the
# more there are, the more seldom each.
_IDLE_POLL = (0.3, 0.6)
_POLL_SHARE = 0.3
_DRAIN_POLL = (0.1, 0.3)


class Reader:
    """Feeds ``out`` until the worker is told to leave, or, when draining, until nothing is left to wait for."""

    def __init__(
        self,
        link: Link,
        state: State,
        out: Channel,
        claimer: Claimer,
        names: Sequence[str] | None,
        *,
        lease: float,
        drain: bool,
    ) -> None:
        """``lease`` is in seconds."""
        self._link = link
        self._state = state
        self._out = out
        self._pace = Pace(link, state)
        self._lease = lease
        self._strays_at = time.monotonic() + lease
        self._end_look_at = 0.0
        self._changes = ChangesLook()
        self._names = names
        self._drain = drain
        self.claimer = claimer
        self._thief = stealing.Thief(claimer)
        self._fragments: dict[int, Fragments] = {}
        self._document_bytes: dict[int, float] = {}
        """Per vectorizer: how large the documents of its last slice were on average."""

    def run(self) -> None:
        with self._state.measures.waiting(HELD):
            while not self._state.steered.wait(_LOOK) and not self._state.ending:
                pass
        while not self._state.ending:
            self._state.wake.clear()
            if time.monotonic() >= self._strays_at:
                self._give_back_strays()
            run = self._claim()
            self._state.looked(in_vain=run is None)
            if run is not None:
                self._state.activity = "working"
                self._read_job(run)
            elif self._state.in_flight == 0 and self._drain and self._is_drained():
                self._state.drained.set()
            else:
                self._wait()

    def _claim(self) -> Run | None:
        rows = self._rows()
        idle = self._state.in_flight == 0
        job = self._claiming(
            lambda connection: self.claimer.claim(connection, keys=rows, idle=idle, held=[*self._state.held])
        )
        stolen = job is None and idle and self.claimer.ranges_run
        if stolen:
            job = self._claiming(self._steal)
        if job is None:
            return None
        fragments = self._fragments.get(job.vectorizer_id)
        if fragments is None:
            fragments = self._link.call(lambda connection: self._fragments_of(connection, job.vectorizer_id))
        if fragments is None:
            log.warning("vectorizer of a job was dropped", job=job.id)
            return None
        return self._begin(job, fragments, stolen=stolen)

    def _begin(self, job: queue.Job, fragments: Fragments, *, stolen: bool) -> Run:
        run = Run(job, fragments)
        self._state.begin(run)
        log.debug("job is claimed", vectorizer=fragments.vectorizer.name, job=job.id, kind=job.kind)
        self._state.measures.claimed(fragments.vectorizer.name, stolen=stolen)
        return run

    def _claiming(self, claim: Callable[[Connection], queue.Job | None]) -> queue.Job | None:
        tries = 0

        def attempt(connection: Connection) -> queue.Job | None:
            nonlocal tries
            tries += 1
            return claim(connection)

        job = self._link.call(attempt)
        if tries > 1:
            # One that we did not hear of may have been committed, or be so in a moment.
            self._strays_at = min(self._strays_at, time.monotonic() + _STRAY_SECONDS)
        return job

    def _give_back_strays(self) -> None:
        """Gives back what was claimed unheard; again and again, since a server process that hung may commit late."""
        self._strays_at = time.monotonic() + self._lease
        count = self._link.call(
            lambda connection: queue.release_strays(connection, self.claimer.member, self._state.jobs)
        )
        if count:
            log.warning("jobs claimed on a connection that broke are back in the queue", jobs=count)

    def _steal(self, connection: Connection) -> queue.Job | None:
        job = self._thief.steal(
            connection, lambda vectorizer: self._fragments_of(connection, vectorizer), [*self._state.held]
        )
        if job is not None:
            name = self._fragments[job.vectorizer_id].vectorizer.name
            log.info("job is stolen", vectorizer=name, job=job.id, rows=job.rows)
        return job

    def _fragments_of(self, connection: Connection, vectorizer_id: int) -> Fragments | None:
        known = self._fragments.get(vectorizer_id) or _load_fragments(connection, vectorizer_id)
        if known is not None:
            self._fragments[vectorizer_id] = known
        return known

    def _read_job(self, run: Run) -> None:
        job = run.job
        alone = 0
        while run.begins and not self._state.ending:
            if job.kind == "range":
                if not job.alone:
                    self._read_changes(run)
                if not self._out.has_room(_LOOK):
                    continue
            if job.alone and not self._nothing_in_hand():
                continue
            if self._holds_enough() or self._state.wait_while_held(run):
                continue
            if not self._pace.has_room(run):
                self._hand_back(run)
                return
            # Somebody may have taken the rest meanwhile, as the writer has found.
            job = replace(job, upper_key=run.job.upper_key)
            try:
                part = self._link.call(self._reading(run, job))
            except psycopg.Error as error:
                # Reading touches no single document: what fails here fails for the whole vectorizer.
                self._block(run, error)
                return
            if part.documents:
                sizes = [document.size for document in part.documents]
                self._document_bytes[job.vectorizer_id] = sum(sizes) / len(sizes)
            verdict = self._verdict(job) if job.alone and part.documents else None
            alone += job.alone
            if verdict is not None or alone > _MOST_ROWS:
                # Whatever it was that killed is in quarantine now, or lies behind: it was in one slice.
                part = replace(part, job=replace(part.job, alone=False))
            if job.kind == "range":
                run.read_to = [] if part.last else part.checkpoint
            work = Work(run, part, verdict)
            if not self._pace.keep(run, len(part.documents)):
                self._state.measures.given_up(run.fragments.vectorizer.name)
                self._hand_back(run)
                return
            self._state.enter()
            self._out.put(work)
            if part.last:
                break
            job = part.after()
        if alone:
            # Whatever is claimed next is not to be counted as this one's victim.
            while not self._nothing_in_hand() and not self._state.ending:
                pass

    def _read_changes(self, run: Run) -> None:
        """Reads what is listed of the run's vectorizer, now and then: a range may take an hour.

        Beside one that runs alone nothing may be in hand.
        """
        now = time.monotonic()
        if not self._changes.is_due(now, told=self._state.news.is_set()):
            return
        self._changes.begins(now, self._state.fleet)
        self._state.news.clear()
        vectorizer, keys = run.job.vectorizer_id, self._rows()
        if vectorizer in self._state.held or not run.begins:
            return
        job = self._claiming(lambda connection: self.claimer.claim_keys(connection, vectorizer, keys=keys))
        self._changes.took(now, time.monotonic())
        if job is not None:
            self._read_job(self._begin(job, run.fragments, stolen=False))

    def _hand_back(self, run: Run) -> None:
        """Gives the job back when what is in hand of it is written: others have use of this worker meanwhile."""
        while not self._nothing_in_hand():
            if self._state.ending:
                return
        if not run.dropped:
            self._link.call(lambda connection: queue.release(connection, self.claimer.member, job=run.job.id))
            log.debug("job is given back", vectorizer=run.fragments.vectorizer.name, job=run.job.id)
            self._state.end(run)

    def _verdict(self, job: queue.Job) -> Failure | None:
        """Why the next document of a job that runs alone is not tried again; None: it is, and the job says so."""
        if job.attempts >= DEATHS:
            return Failure(
                "WorkerDied", f"{job.attempts} worker processes ended while they had this document alone in hand"
            )
        self._link.call(lambda connection: queue.take_in_hand(connection, job, self.claimer.member))
        return None

    def _nothing_in_hand(self) -> bool:
        """Waits a moment for the slices in hand to be written; True when there is none."""
        if self._state.in_flight:
            self._state.wake.clear()
            with self._state.measures.waiting(BLOCKED):
                self._state.wake.wait(0.1)
        return self._state.in_flight == 0

    def _holds_enough(self) -> bool:
        """Near the end, waits a moment for slices in hand to be written; True when there are enough of them."""
        now = time.monotonic()
        if now >= self._end_look_at:
            self._end_look_at = now + max(_END_LOOK, _END_LOOK_PER_WORKER * self._state.fleet)
            most = _END_JOBS * self._state.fleet
            ahead = queue.Ahead(near_end=False, plenty=False)
            if self._state.fleet > 1:
                ahead = self._link.call(lambda connection: self.claimer.look_ahead(connection, most=most))
            self._state.near_end, self._state.plenty = ahead.near_end, ahead.plenty
        if self._state.near_end and self._state.in_flight >= _HELD_AT_END:
            self._state.wake.clear()
            if self._state.in_flight >= _HELD_AT_END:
                self._state.wake.wait(0.1)
        return self._state.near_end and self._state.in_flight >= _HELD_AT_END

    def _reading(self, run: Run, job: queue.Job) -> Callable[[Connection], Slice]:
        size = _most_bytes(run.fragments)
        rows = min(self._rows(), _most_rows(run.fragments))
        known = self._document_bytes.get(job.vectorizer_id)
        if known:
            # What does not fit into the slice would be read and hashed for nothing.
            rows = min(rows, max(_LEAST_ROWS, round(1.5 * size / known)))
        limit = self._state.rate_limits.get(job.vectorizer_id)
        if limit and job.kind == "range":
            rows = min(rows, max(1, round(limit * SLICE_SECONDS)))
        if job.alone:
            rows = 1
        return lambda connection: reading.read(connection, run.fragments, job, rows=rows, max_bytes=size)

    def _rows(self) -> int:
        rate = self._state.documents_per_second
        seconds, least = (SLICE_AT_END, 1) if self._state.near_end else (SLICE_SECONDS, _LEAST_ROWS)
        return min(max(round(rate * seconds), least), _MOST_ROWS) if rate else _FIRST_ROWS

    def _block(self, run: Run, error: psycopg.Error) -> None:
        reason = f"reading {run.fragments.vectorizer.source}: {one_line(error)}"
        shown = hidden_data(reason) if (error.sqlstate or "").startswith("22") else reason
        block(self._link, self._state, self.claimer.member, run, reason, shown)

    def _wait(self) -> None:
        if self._state.in_flight == 0:
            self._state.activity = "idle"
            self._state.plenty = False
            self._state.tally.tell(idle=True)
            self._state.rests.set()
        low, high = _DRAIN_POLL if self._drain else _IDLE_POLL
        share = _POLL_SHARE * self._state.fleet
        seconds = random.uniform(max(low, share / 2), max(high, share * 3 / 2))  # noqa: S311 - jitter
        with self._state.measures.waiting(STARVED):
            woken = self._state.wake.wait(seconds)
        if woken:
            self.claimer.look_again()

    def _is_drained(self) -> bool:
        return not any(
            (one.waits and one.id not in self.claimer.refused)
            or (
                one.index_waits
                and not self._state.index_none
                and (one.index_running or one.id not in self._state.index_left)
            )
            for one in self.pending()
        )

    def pending(self) -> list[Pending]:
        return self._link.call(lambda connection: pending.pending(connection, self._names))


def _load_fragments(connection: Connection, vectorizer_id: int) -> Fragments | None:
    found = vectorizer.by_ids(connection, [vectorizer_id])
    return Fragments(found[0], versions(connection).vector_schema) if found else None


def _most_rows(fragments: Fragments) -> int:
    """How many documents' vectors fit into a slice, one each."""
    return max(_LEAST_ROWS, VECTOR_BYTES // (4 * fragments.vectorizer.dimensions))


def _most_bytes(fragments: Fragments) -> int:
    """How much text may be in a slice for its vectors to fit as well."""
    vectorizer = fragments.vectorizer
    if vectorizer.chunk_size is None:
        return SLICE_BYTES
    return min(SLICE_BYTES, _most_rows(fragments) * vectorizer.chunk_size * _CHARACTERS_PER_TOKEN)
