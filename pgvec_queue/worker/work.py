"""What passes through the stages: a job while it is in this worker's hands, and its slices."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from pgvec_queue.cutting import Cut
from pgvec_queue.embedders import Embedder
from pgvec_queue.fragments import Fragments
from pgvec_queue.queue import Job
from pgvec_queue.slices import Embedded, Failure, Slice


@dataclass(slots=True)
class Run:
    """One claimed job while it is in this worker's hands."""

    job: Job
    """As it stands after the last slice that was written."""
    fragments: Fragments
    dropped: bool = False
    """Nothing more of it may be read, embedded or written here."""
    stopped: bool = False
    """Nothing more of it is read or given to the model; what the model has is written if that takes no time."""
    taker: int | None = None
    """Which of several writers has its slices."""
    read_to: list[str] | None = None
    """How far a range has been read; empty: all of it is."""
    began: float = field(default_factory=time.monotonic)
    rows: int = 0
    """Embedded and written here."""

    @property
    def begins(self) -> bool:
        """Whether anything more of it may be read or given to the model here."""
        return not (self.dropped or self.stopped)


@dataclass(slots=True)
class IndexRun:
    """An index that this worker builds: a claimed job, which no stage has anything to do with."""

    job: int
    vectorizer_id: int
    epoch: int
    attempts: int
    """Workers that have died while they built it."""
    stopped: bool = False
    """Somebody has paused, cancelled or dropped its vectorizer."""


@dataclass(slots=True)
class Work:
    """A slice on its way through the stages."""

    run: Run
    part: Slice
    verdict: Failure | None = None
    """Why its documents are not to be embedded at all."""
    embedder: Embedder | None = None
    cutting: Future[list[Cut]] | None = None
    """Its documents' chunks, which another process may still be finding; None where there is nothing to embed."""
    embedded: list[Embedded] = field(default_factory=list)

    @property
    def urgent(self) -> bool:
        """Live changes, and what somebody wants tried again, go before ranges."""
        return self.run.job.kind == "keys"

    @property
    def size(self) -> int:
        """Bytes of its texts, of their chunks, and of their vectors, old and new."""
        texts = sum(document.size for document in self.part.documents if document.text is not None)
        vectors = sum(item.vectors.nbytes for item in self.embedded if item.vectors is not None)
        return texts * (2 if self.cutting else 1) + vectors + self.part.old.size
