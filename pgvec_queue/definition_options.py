"""What `enqueue` was asked for, as it was said, with the defaults that need no look at the model or the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pgvec_queue import embedders
from pgvec_queue.errors import DefinitionError

DEFAULT_CHUNK_SIZE = 128
DEFAULT_CHUNK_OVERLAP = 20
DEFAULT_ROWS_PER_JOB = 1_000
MOST_PARTITIONS = 256
"""A search looks into each of them, and locks it and its indexes."""
MIGRATED = (
    *("model", "revision", "embedder", "endpoint", "tokenizer", "query_prompt", "document_prompt", "dimensions"),
    *("trust_remote_code", "template", "chunk_size", "chunk_overlap", "no_chunking", "too_long", "store"),
    *("into", "into_column", "partitions"),
)
"""The options that `pgvec migrate-model` takes: they need new vectors, of the same rows and texts."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `enqueue` was asked for; None: not said."""

    source: str
    text: Sequence[str] = ()
    name: str | None = None
    key: Sequence[str] = ()
    where: str | None = None
    into: str | None = None
    into_column: str | None = None
    partitions: int | None = None
    """Of a destination that is made, by hash of the key; 1: one table."""
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    model: str | None = None
    revision: str | None = None
    embedder: str | None = None
    endpoint: str | None = None
    tokenizer: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    dimensions: int | None = None
    trust_remote_code: bool = False
    template: str | None = None
    chunk_size: int | None = None
    chunk_overlap: int | None = None
    no_chunking: bool = False
    too_long: str | None = None
    store: str | None = None
    rows_per_job: int | None = None
    priority: int | None = None
    sync: bool | None = None
    adopt: bool = False
    """Take over the vectors that the destination has."""
    index: bool | None = None
    """Whether an index on the vectors is wanted; None: as it is."""
    index_new: bool = False
    """Whether one is wanted for a vectorizer that is new, where ``index`` does not say."""

    @property
    def chunked(self) -> bool:
        return not self.no_chunking and self.into_column is None

    @property
    def resolved_embedder(self) -> str:
        """The embedder asked for, else the one that model or endpoint imply."""
        if self.embedder is not None:
            return self.embedder
        if self.endpoint is not None:
            return "openai"
        return "hashing" if (self.model or "").startswith("hashing-") else "sentence-transformers"

    @property
    def resolved_model(self) -> str:
        if self.model is not None:
            return self.model
        if self.resolved_embedder == "openai":
            raise DefinitionError("an endpoint needs --model, the name it knows the model by")
        return "hashing-384" if self.resolved_embedder == "hashing" else embedders.DEFAULT_MODEL

    @property
    def spec(self) -> embedders.ModelSpec:
        return embedders.ModelSpec(
            embedder=self.resolved_embedder,
            model=self.resolved_model,
            revision=self.revision,
            endpoint=self.endpoint,
            query_prompt=self.query_prompt,
            document_prompt=self.document_prompt,
            dimensions=self.dimensions,
            trust_remote_code=self.trust_remote_code,
            tokenizer=self.tokenizer,
        )
