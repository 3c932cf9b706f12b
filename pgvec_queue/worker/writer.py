"""The last stage: writes a job's slices in the order in which they were read, each in one transaction.

When the database refuses a document (a CHECK, a foreign key, a trigger of the user's), the slice is halved in key order
until the document is alone; it goes into quarantine and the rest is written. When most documents fail, it is not the
documents: see ``breaker``. When somebody has stolen the rest of a range, the slice that crosses its new end is cut
there and ends the job; what was read beyond is dropped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import psycopg

from pgvec_queue import quarantine, queue, writing
from pgvec_queue.database import is_write_conflict, kind_of, one_line
from pgvec_queue.errors import Kind
from pgvec_queue.log import get_logger, hidden
from pgvec_queue.queue import Claimer
from pgvec_queue.slices import Document, Embedded, Failure, Fate, Slice, Written, position
from pgvec_queue.worker.breaker import Breaker
from pgvec_queue.worker.link import Link
from pgvec_queue.worker.refusals import block, leave_to_others
from pgvec_queue.worker.stages import Channel
from pgvec_queue.worker.state import State
from pgvec_queue.worker.work import Run

log = get_logger("pgvec.worker")

_CONFLICT_TRIES = 5
_ANNOUNCE_SECONDS = 0.2
"""Between two announcements of a writer, at least. Whoever waits looks by itself as well."""


@dataclass(frozen=True, slots=True)
class Breakers:
    """What all writers of a worker know of how documents fare."""

    embedded: Breaker = field(default_factory=Breaker)
    accepted: Breaker = field(default_factory=Breaker)
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held from a failure's being counted to its being in quarantine: else one writer may take back what failed while
    another is about to quarantine more of it."""


class Writer:
    """Writes what comes through ``source``; a job that was lost is dropped whole."""

    def __init__(self, link: Link, state: State, source: Channel, claimer: Claimer, breakers: Breakers) -> None:
        self._link = link
        self._state = state
        self._source = source
        self._claimer = claimer
        self._member = claimer.member
        self._failing = breakers.lock
        self._embedded = breakers.embedded
        self._accepted = breakers.accepted
        self._measures = state.measures
        self._announced_at = 0.0

    def run(self) -> None:
        for work in self._source:
            with self._failing if any(item.failure is not None for item in work.embedded) else nullcontext():
                if work.run.dropped:
                    self._measures.given_up(work.run.fragments.vectorizer.name)
                    self._waste(work.run, work.embedded)
                elif not self._is_sick(work.run, work.embedded):
                    self._write(work.run, work.part, work.embedded)
            if work.part.last or work.run.dropped:
                self._state.end(work.run)
            self._state.leave()
            if work.part.job.kind == "keys" and not len(self._source):
                self._announce(work.part.job.vectorizer_id)

    def _is_sick(self, run: Run, embedded: Sequence[Embedded]) -> bool:
        """Takes in what the model made of a slice; where most fails, frees what was quarantined, and writes no more."""
        failed = [item.failure for item in embedded if item.failure is not None and item.failure.by_model]
        fates = [item.document.key if item.failure is not None and item.failure.by_model else None for item in embedded]
        vectorizer = run.job.vectorizer_id
        if not self._embedded.add(vectorizer, fates) or not failed:
            return False
        self._measures.given_up(run.fragments.vectorizer.name)
        reason = self._take_back(run, self._embedded, f"fail with this model here, the last one: {failed[-1].message}")
        text = " ".join(item.document.text or "" for item in embedded if item.failure is failed[-1])
        leave_to_others(self._link, self._state, self._claimer, run, reason, hidden(reason, text))
        return True

    def _take_back(self, run: Run, breaker: Breaker, why: str) -> str:
        """Frees the documents whose failures are not their own fault; returns what to say."""
        vectorizer = run.job.vectorizer_id
        failed, seen = breaker.trip(vectorizer)
        self._link.call(lambda connection: quarantine.retry(connection, vectorizer, keys=failed))
        return f"{len(failed)} of the last {seen} documents {why}"

    def _write(self, run: Run, part: Slice, embedded: Sequence[Embedded]) -> None:
        part = self._as_it_stands(run, part)
        self._waste(run, embedded[len(part.documents) :])
        embedded = embedded[: len(part.documents)]
        try:
            result = self._attempt(run, part, embedded)
        except psycopg.Error as error:
            if is_write_conflict(error) or kind_of(error) is Kind.ROW:
                self._write_halves(run, part, embedded, error)
            else:
                reason = f"writing {run.fragments.vectorizer.destination}: {one_line(error)}"
                self._block(run, reason)
            return
        if result.fate is Fate.LOST:
            self._after_loss(run, part, embedded)
        else:
            self._measures.written(run.fragments.vectorizer.name, result)
            run.job = result.job
            # What else was read of it lies beyond the end that it was given meanwhile.
            run.dropped |= part.last
            self._tell(run, part, result)
            self._accepted.add(run.job.vectorizer_id, (None for item in embedded if item.failure is None))

    def _attempt(self, run: Run, part: Slice, embedded: Sequence[Embedded]) -> Written:
        """Writes once, or a few times where our own writers were in each other's way."""
        for left in reversed(range(_CONFLICT_TRIES)):
            try:
                return self._link.call(
                    lambda connection: writing.write(
                        connection, run.fragments, part, embedded, self._member, read_to=run.read_to
                    )
                )
            except psycopg.Error as error:
                if not is_write_conflict(error) or not left:
                    raise
                log.info(
                    "write met a conflict; it is tried again",
                    vectorizer=run.fragments.vectorizer.name,
                    job=part.job.id,
                    error=one_line(error),
                )
        raise AssertionError("the last try raises")

    def _tell(self, run: Run, part: Slice, result: Written) -> None:
        """Says what a write has done: each document in quarantine, and the job's end."""
        name = run.fragments.vectorizer.name
        for item in result.quarantined:
            assert item.failure is not None
            log.warning(
                "document is quarantined",
                vectorizer=name,
                job=part.job.id,
                key=list(item.document.key),
                error_class=item.failure.error_class,
                error=item.failure.message,
                text=item.document.text,
            )
        run.rows += result.rows_embedded
        if part.last:
            seconds = round(time.monotonic() - run.began, 3)
            log.debug("job is done", vectorizer=name, job=part.job.id, rows=run.rows, seconds=seconds)
        self._state.tally.wrote(name, result.rows_embedded, begun=run.began, done=part.last)

    def _announce(self, vectorizer_id: int) -> None:
        """Lets gateways know that live changes are written: apart from the write, while there is nothing to write."""
        now = time.monotonic()
        if now - self._announced_at >= _ANNOUNCE_SECONDS:
            self._announced_at = now
            self._link.call(lambda connection: queue.announce(connection, vectorizer_id))

    def _write_halves(self, run: Run, part: Slice, embedded: Sequence[Embedded], error: psycopg.Error) -> None:
        if not embedded:
            reason = f"writing {run.fragments.vectorizer.destination}: {one_line(error)}"
            self._block(run, reason)
            return
        if len(embedded) == 1:
            if embedded[0].failure is not None:
                # Its chunks are not even written any more: what fails now is not the document's.
                self._block(run, one_line(error))
                return
            with self._failing:
                self._refused(run, part, embedded[0].document, error)
            return
        half = len(embedded) // 2
        first, second = _split(part, half)
        self._write(run, first, embedded[:half])
        if not run.dropped:
            self._write(run, second, embedded[half:])

    def _refused(self, run: Run, part: Slice, document: Document, error: psycopg.Error) -> None:
        """Quarantines a document that the database refuses; where most are refused, blocks the vectorizer instead."""
        if run.dropped:
            return
        failure = Failure(f"SQLSTATE {error.sqlstate}", one_line(error))
        if self._accepted.add(run.job.vectorizer_id, [document.key]):
            why = f"are refused by {run.fragments.vectorizer.destination}, the last one: {failure.message}"
            reason = self._take_back(run, self._accepted, why)
            self._block(run, reason, hidden(reason, document.text or ""))
            return
        self._write(run, part, [Embedded(document, failure=failure)])

    def _after_loss(self, run: Run, part: Slice, embedded: Sequence[Embedded]) -> None:
        """The fence refused: the write had been committed after all, or others have the job now, or the end of it."""
        now = self._link.call(lambda connection: queue.reread(connection, part.job, self._member))
        if now is not None and not part.last and now.checkpoint == part.checkpoint:
            run.job = now
        elif now is not None and now.checkpoint == part.job.checkpoint and now.upper_key != part.job.upper_key:
            log.info(
                "job is cut: somebody else does the rest", vectorizer=run.fragments.vectorizer.name, job=part.job.id
            )
            run.job = now
            self._write(run, part, embedded)
        else:
            log.info(
                "job is lost; what was made for it is dropped",
                vectorizer=run.fragments.vectorizer.name,
                job=part.job.id,
            )
            run.dropped = True
            self._measures.given_up(run.fragments.vectorizer.name)
            self._waste(run, embedded, refused=True)

    def _as_it_stands(self, run: Run, part: Slice) -> Slice:
        """The slice as it is to be written, its job as it was written last: others may have taken the end of it."""
        now = run.job
        part = replace(part, job=replace(part.job, rows=now.rows, rows_seen=now.rows_seen))
        if part.job.upper_key == now.upper_key:
            return part
        return self._link.call(lambda connection: writing.cut(connection, run.fragments, part, now.upper_key))

    def _block(self, run: Run, reason: str, shown: str | None = None) -> None:
        self._measures.given_up(run.fragments.vectorizer.name)
        block(self._link, self._state, self._member, run, reason, shown)

    def _waste(self, run: Run, embedded: Sequence[Embedded], *, refused: bool = False) -> None:
        vectorizer = run.job.vectorizer_id
        self._measures.wasted(run.fragments.vectorizer.name, sum([item.vectors is not None for item in embedded]))
        if refused or embedded:
            self._link.call(
                lambda connection: writing.count_waste(connection, vectorizer, embedded, self._member, refused=refused)
            )


def _split(part: Slice, half: int) -> tuple[Slice, Slice]:
    """Cuts a slice after its first ``half`` documents."""
    last = part.documents[half - 1]
    checkpoint = list(last.key)
    if part.job.kind == "keys":
        checkpoint = [str(position(part.job.checkpoint) + last.position)]
    first = replace(part, checkpoint=checkpoint, last=False, documents=part.documents[:half], selected=None)
    second = replace(part, job=replace(part.job, checkpoint=checkpoint), documents=part.documents[half:], selected=None)
    return first, second
