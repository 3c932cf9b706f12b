"""How far standbys are behind, by this process's own clock and what it has seen of the server's WAL.

The server's own figure stands still when a standby has stopped applying what it gets, which is when it is wanted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from pgvec_queue.database import Connection, statement
from pgvec_queue.log import get_logger

log = get_logger("pgvec.worker")

_KEPT = 4_096


@dataclass(slots=True)
class Replication:
    """Looks, now and then, at where the standbys are; a lag is as exact as the looks are frequent."""

    _seen: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """Positions of the server, in bytes of WAL, and when (in seconds) they were seen; oldest first."""
    _told: bool = False

    def look(self, connection: Connection, now: float) -> float | None:
        """Returns the seconds that the slowest standby is behind; None where there is none, or none may be seen."""
        row = connection.execute(statement("queue", "replication")).fetchone()
        assert row is not None
        position, replayed, hidden = row
        if hidden and not self._told:
            self._told = True
            log.warning(
                "no limit on the lag of standbys holds", error="their positions may not be seen; GRANT pg_monitor"
            )
        self._seen.append((position, now))
        return None if replayed is None else self.lag(replayed, now)

    def lag(self, replayed: float, now: float) -> float:
        """Returns for how long a standby at ``replayed`` has been short of what the server had."""
        while self._seen and self._seen[0][0] <= replayed:
            self._seen.popleft()
        return now - self._seen[0][1] if self._seen else 0.0
