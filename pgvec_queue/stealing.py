"""Steals the tail of a running job: an idle worker halves what is left of a range that somebody else works on.

The middle is found by the key's index, with nothing locked. Then, in one statement, the job's upper bound is lowered if
the job is as the thief has seen it, and what lies beyond becomes a job of the thief's. The owner learns of it from the
fence of its next write, which compares the bound (see ``worker.writer``): until then, and after, nobody writes the
other half but the thief. What is taken is what the owner has not read, as far as it has told; where that is too little,
what it has not written, if that would take it long enough for what it has in hand to be worth throwing away.

Does not steal from a job that has cost a worker or may just have done so, from lists of keys or from sweeps, nor where
too little would be gained; a range without an upper bound is halved like any other, and the thief's half has none then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import psycopg
from psycopg.rows import class_row

from pgvec_queue.database import Connection, one_line, statement, transaction
from pgvec_queue.fragments import Fragments
from pgvec_queue.log import get_logger
from pgvec_queue.queue import Claimer, Job, Membership

log = get_logger("pgvec.stealing")

LEAST_ROWS = 4
"""Fewer are not worth a job of their own."""
UNREAD_SECONDS, UNWRITTEN_SECONDS = 0.2, 0.4
"""What its owner would need for the rest that is halved: of what it has not read, and of what it has not written."""
LOADING_SECONDS = 5.0
"""The same where the thief would have to load the model first."""
_MOST_ROWS = 10_000
"""Rows that are looked at for the middle; of a longer rest, all beyond the middle of these is taken."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A running range of somebody else's, as a thief has seen it; ``take`` compares exactly this."""

    id: int
    vectorizer_id: int
    epoch: int
    lower_key: list[str] | None
    upper_key: list[str] | None
    checkpoint: list[str] | None
    read_to: list[str] | None
    """How far its owner has read; empty: all of it; None: it has not told."""
    documents_per_second: float | None
    """Of its owner's device."""
    priority: int
    model: str

    def rests(self) -> list[tuple[list[str] | None, float]]:
        """After which key something is left to halve, and how many seconds of its owner's that has to be."""
        unwritten = self.checkpoint if self.checkpoint is not None else self.lower_key
        if self.read_to is None:
            return [(unwritten, UNREAD_SECONDS)]
        unread = [(self.read_to, UNREAD_SECONDS)] if self.read_to else []
        return [*unread, (unwritten, UNWRITTEN_SECONDS)]


@dataclass(frozen=True, slots=True)
class Middle:
    """Where to cut."""

    key: list[str]
    rows: int | None
    """That lie beyond it; None where there are too many to count."""


@dataclass(slots=True)
class Thief:
    """Steals for one idle worker; looks at a job again only after that has moved.

    A source that cannot be looked at is left to the owners of its jobs, who will say why.
    """

    claimer: Claimer
    least_rows: int = LEAST_ROWS
    _left: dict[int, Victim] = field(default_factory=dict)
    """Of which there was too little to take."""

    def steal(
        self,
        connection: Connection,
        fragments_of: Callable[[int], Fragments | None],
        held: Collection[int] = (),
    ) -> Job | None:
        """Returns a job, claimed for this worker, or None when nothing is worth it; ``fragments_of`` a vectorizer.

        Nothing is stolen of the vectorizers in ``held``.
        """
        found = victims(connection, self.claimer, least_rows=self.least_rows, held=held)
        self._left = {victim.id: victim for victim in found if self._left.get(victim.id) == victim}
        for victim in found:
            if victim.id in self._left:
                continue
            self._left[victim.id] = victim
            fragments = fragments_of(victim.vectorizer_id)
            middle = fragments and self._middle(connection, fragments, victim)
            job = take(connection, victim, middle, self.claimer.member) if middle else None
            if job is not None:
                self.claimer.serves(victim.vectorizer_id, victim.priority, victim.model)
                return job
        return None

    def _middle(self, connection: Connection, fragments: Fragments, victim: Victim) -> Middle | None:
        seconds = 0.0 if self.claimer.has_used(victim.model) else LOADING_SECONDS
        try:
            return find_middle(connection, fragments, victim, least_rows=self.least_rows, least_seconds=seconds)
        except psycopg.Error as error:
            if connection.closed:
                raise
            log.info(
                "job is left to its owner", vectorizer=fragments.vectorizer.name, job=victim.id, error=one_line(error)
            )
            return None


def victims(
    connection: Connection, claimer: Claimer, *, least_rows: int = LEAST_ROWS, held: Collection[int] = ()
) -> list[Victim]:
    """Returns a few jobs that may be worth it, those first that will take their owners longest."""
    with connection.cursor(row_factory=class_row(Victim)) as cursor:
        return cursor.execute(
            statement("stealing", "victims"),
            {
                "worker": claimer.member.worker,
                "names": None if claimer.names is None else list(claimer.names),
                "refused": [*claimer.refused, *held],
                "least_rows": least_rows,
            },
        ).fetchall()


def find_middle(
    connection: Connection,
    fragments: Fragments,
    victim: Victim,
    *,
    least_rows: int = LEAST_ROWS,
    least_seconds: float = 0.0,
) -> Middle | None:
    """Looks for where to cut, by the key's index and with nothing locked; None where too little is left."""
    for lower, seconds in victim.rests():
        scope = fragments.bounds("s", lower=lower is not None, upper=victim.upper_key is not None)
        with transaction(connection, statement_timeout=10, read_only=True):
            connection.execute(statement("reading", "local_settings"), {"joins": "off"})
            row = connection.execute(
                fragments.compose("stealing", "middle", scope=scope),
                {"lower": lower, "upper": victim.upper_key, "most": _MOST_ROWS},
            ).fetchone()
        if row is None:
            continue
        rows, key = row
        needs = rows / victim.documents_per_second if victim.documents_per_second else math.inf
        if rows >= least_rows and needs >= max(seconds, least_seconds):
            return Middle(key, rows // 2 if rows < _MOST_ROWS else None)
    return None


def take(connection: Connection, victim: Victim, middle: Middle, member: Membership) -> Job | None:
    """Makes what lies beyond ``middle`` a job of ``member``'s; None where the victim is no longer as it was seen."""
    with transaction(connection), connection.cursor(row_factory=class_row(Job)) as cursor:
        return cursor.execute(
            statement("stealing", "take"),
            {
                "id": victim.id,
                "epoch": victim.epoch,
                "checkpoint": victim.checkpoint,
                "upper_key": victim.upper_key,
                "middle": middle.key,
                "rows": middle.rows,
                "worker": member.worker,
                "world": member.world,
            },
        ).fetchone()
