"""How one worker works, and whether it can begin here."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field

from pgvec_queue import schema, vectorizer
from pgvec_queue.database import Connection, Database, versions
from pgvec_queue.embedders import DeviceOptions
from pgvec_queue.errors import MissingExtraError

DEFAULT_LEASE = 30.0
DEFAULT_STALL = 600.0


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
    cache: int | None = None
    """Bytes of vectors to remember, 0: none; None: what is usual, as long as that pays."""
    pool_size: int = 3
    """Connections of its stages, apart from the heartbeat's own."""
    listen: bool = True
    """Wake on NOTIFY; off for a connection through a transaction-mode pooler, where polling does it alone."""
    tokenizers: int | None = None
    """Processes that chunk and tokenize beside this one; None: as many as suit the device."""
    stall: float = DEFAULT_STALL
    """Seconds after which a call of a model or a tokenizer is taken for hung."""


def check(database: Database, options: WorkerOptions) -> dict[int, str]:
    """Makes sure that a worker can begin here; returns the vectorizers whose model this installation cannot run.

    Raises ``PgvecError`` when the database cannot be used, the schema is outdated, a name is unknown, or packages are
    missing that every vectorizer needs. Whether the device is there is another question: answering it loads torch.
    """
    with database.connect("worker") as connection:
        versions(connection)
        schema.require(connection)
        for name in options.names or ():
            vectorizer.get(connection, name)
        return _cannot_serve(connection, options.names)


def _cannot_serve(connection: Connection, names: Sequence[str] | None) -> dict[int, str]:
    chosen = [
        one
        for name in (names or vectorizer.names(connection))
        if (one := vectorizer.find(connection, name)) is not None
    ]
    if importlib.util.find_spec("sentence_transformers") and importlib.util.find_spec("torch"):
        return {}
    refused = {one.id: one.name for one in chosen if one.embedder == "sentence-transformers"}
    if refused and len(refused) == len(chosen):
        raise MissingExtraError("`pgvec work` on sentence-transformers models", "worker")
    return refused
