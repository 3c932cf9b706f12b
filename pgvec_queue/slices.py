"""What passes between the stages: a slice of a job, its documents, their vectors, and what a write made of them."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pgvec_queue.chunking import Chunk
from pgvec_queue.queue import Job, Key


# Neither these nor what is embedded of them is frozen: there are millions, and making one would take four times as
# long.
@dataclass(slots=True)
class Document:
    """One source row that needs vectors."""

    key: Key
    destination_key: bytes
    """The key's columns in the destination's types, each as length and value in PostgreSQL's binary format."""
    text: str | None
    """None when it is over the vectorizer's ``max_document_bytes``."""
    hash: bytes
    xmin: str | None
    size: int
    """Bytes of the text in the database's encoding."""
    columns: tuple[str | None, ...]
    """Values of the columns that the template names."""
    position: int
    """Its place in the list of a keys job, or among what was read of a range, from 1."""


@dataclass(frozen=True, slots=True)
class Old:
    """Vectors of the chunks that the destination holds of a slice's documents, as pgvector sends them."""

    vectors: Mapping[Key, Mapping[bytes, bytes]] = field(default_factory=dict)
    """Per document, by the first 16 bytes of SHA-256 of a chunk's text."""
    size: int = 0
    """Bytes that all of it takes, about."""


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a job: everything after ``job.checkpoint`` up to ``checkpoint``."""

    job: Job
    checkpoint: list[str] | None
    """What the job's checkpoint becomes; for a range without upper bound that is done, None."""
    last: bool
    """The job ends with this slice."""
    documents: list[Document]
    horizon: str
    """The oldest transaction that may have changed a row after it was read."""
    selected: int | None = None
    """Rows of the slice that the filter selected when it was read; None where they were not counted."""
    old: Old = field(default_factory=Old)

    @property
    def lower(self) -> list[str] | None:
        """Source keys (or, in a sweep, destination keys) of the slice lie after this one."""
        return self.job.checkpoint if self.job.checkpoint is not None else self.job.lower_key

    @property
    def upper(self) -> list[str] | None:
        return self.job.upper_key if self.last else self.checkpoint

    @property
    def keys(self) -> list[list[str]]:
        """The listed keys that a slice of a keys job covers."""
        assert self.job.keys is not None
        return self.job.keys[position(self.job.checkpoint) : position(self.checkpoint)]

    def after(self) -> Job:
        """The job as it stands once this slice is committed, except for the rows seen."""
        return replace(self.job, checkpoint=self.checkpoint, attempts=0)


def position(checkpoint: list[str] | None) -> int:
    """How many keys of a list are done at this checkpoint."""
    return int(checkpoint[0]) if checkpoint else 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a document goes into quarantine."""

    error_class: str
    message: str
    by_model: bool = False
    """The model refused it; what many of these mean is told apart from poison by ``worker.breaker``."""


@dataclass(slots=True)
class Embedded:
    """A document with its chunks and their vectors ``(n, d) float32``, or with the reason why it has none."""

    document: Document
    chunks: Sequence[Chunk] = ()
    vectors: NDArray[np.float32] | None = None
    failure: Failure | None = None
    truncated: bool = False
    kept: int = 0
    """Chunks whose text the document had before, with the vector that it had."""
    reused: int = 0
    """Chunks that took the vector of an identical one in the same call."""
    cached: int = 0
    """Chunks whose vector this worker remembered."""


class Fate(enum.Enum):
    """What became of a slice."""

    WRITTEN = "written"
    LOST = "lost"
    """The job is no longer as this worker knew it; nothing was written."""


@dataclass(slots=True)
class Written:
    """What one write did; the counters take it as it is."""

    fate: Fate
    job: Job
    """The job as it stands after the write."""
    rows_right: int = 0
    rows_embedded: int = 0
    rows_unchanged: int = 0
    """Rows selected for which there was nothing to do: as they were when they were embedded, or blank."""
    rows_wasted: int = 0
    """Rows embedded whose vectors were thrown away, since they had changed."""
    documents_lost: int = 0
    """Documents whose chunks were deleted, replaced ones included."""
    documents_gained: int = 0
    """Documents that have chunks or are in quarantine now, less those that had or were before."""
    chunks_written: int = 0
    chunks_deleted: int = 0
    chunks_kept: int = 0
    chunks_reused: int = 0
    chunks_cached: int = 0
    bytes_written: int = 0
    """Of chunks, keys and vectors, as they were sent."""
    tokens: int = 0
    truncated: int = 0
    requeued: int = 0
    failed: int = 0
    quarantined: Sequence[Embedded] = ()
    error_classes: list[str] = field(default_factory=list)
    """Of those that failed, one each."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the look at the source has decided for each document of the slice."""

    write: list[Embedded] = field(default_factory=list)
    fail: list[Embedded] = field(default_factory=list)
    gone: list[Key] = field(default_factory=list)
    requeue: list[Key] = field(default_factory=list)
    selected: int = 0
    """Rows of the slice that the filter selects now."""
    has_chunks: bool = True
    """The destination may hold chunks of the slice's rows."""
    has_failures: bool = True
    """The quarantine may hold some of them."""
