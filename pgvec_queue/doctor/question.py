"""What the doctor is asked about: a database, the settings that workers here would have, and what may be tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pgvec_queue.database import Connection, Database, statement
from pgvec_queue.vectorizer import Vectorizer


@dataclass(frozen=True, slots=True)
class Question:
    """Everything that comes from whoever asks."""

    database: Database
    directory: Path | None
    """Of an embedded server; None for any other."""
    origin: str
    """Who named the database."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those that are not at their defaults, converted."""
    device: str | None = None
    """The device to look at; None: only where a vectorizer has a model of this machine."""
    probe_endpoint: bool = False
    """Have each endpoint make one tiny embedding."""

    @property
    def where(self) -> str:
        return f"embedded server in {self.directory}" if self.directory else self.database.address

    @property
    def per_worker(self) -> int:
        """Connections that a worker process has at most: its stages', and the heartbeat's."""
        return int(self.settings.get("pool_size") or 3) + 1


@dataclass(frozen=True, slots=True)
class Examined:
    """The question with what was found out first."""

    question: Question
    connection: Connection
    vectorizers: list[Vectorizer]
    """Empty without our schema, or without the right to read it."""
    pooled: bool = False
    """A pooler stands between."""

    def row(self, name: str, **parameters: Any) -> tuple[Any, ...]:
        """Returns the first row of a statement of ``sql/doctor.sql``, which always has one."""
        found = self.connection.execute(statement("doctor", name), parameters or None).fetchone()
        assert found is not None
        return found

    def rows(self, name: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(statement("doctor", name), parameters or None).fetchall()
