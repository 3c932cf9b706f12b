"""What is left to do, as a worker that drains asks before it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import psycopg
from psycopg.rows import class_row

from pgvec_queue.database import Connection, statement


@dataclass(frozen=True, slots=True)
class Pending:
    """What is left of one vectorizer, as far as a draining worker cares."""

    id: int
    name: str
    queued: bool
    running: bool
    planning: bool
    unplanned: bool
    blocked_reason: str | None
    paused: bool
    index_queued: bool = False
    index_running: bool = False

    @property
    def waits(self) -> bool:
        """Something will still become claimable or end by itself."""
        return self.blocked_reason is None and not self.paused and (self.queued or self.running or self.planning)

    @property
    def index_waits(self) -> bool:
        """Its index is being built, or is all that is left to do."""
        if self.blocked_reason is not None or self.paused:
            return False
        return self.index_running or (self.index_queued and not (self.queued or self.running or self.unplanned))


def pending(connection: Connection, names: Sequence[str] | None) -> list[Pending]:
    """Returns what is left of each vectorizer, or of those named."""
    with connection.cursor(row_factory=class_row(Pending)) as cursor:
        found = cursor.execute(
            statement("queue", "pending"), {"names": None if names is None else list(names)}
        ).fetchall()
    try:
        indexes = connection.execute(statement("queue", "pending_indexes")).fetchall()
    except psycopg.errors.InsufficientPrivilege:
        # Whoever may not look at them builds none either.
        return found
    jobs = {vectorizer: (queued, running) for vectorizer, queued, running in indexes}
    nothing = (False, False)
    return [
        replace(one, index_queued=jobs.get(one.id, nothing)[0], index_running=jobs.get(one.id, nothing)[1])
        for one in found
    ]
