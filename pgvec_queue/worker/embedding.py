"""The middle stages: documents become chunks, and chunks vectors; nothing of the database is open while they run.

A document that cannot be chunked or embedded costs itself only: the slice is halved until it is alone, and it goes on
to the writer as a failure. An endpoint that is down is waited for; a model that cannot work blocks its vectorizer.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pgvec_queue.chunking import Chunk, Chunker
from pgvec_queue.embedders import Embedder
from pgvec_queue.errors import EmbedderError, Kind, PgvecError
from pgvec_queue.slices import Document, Embedded, Failure
from pgvec_queue.template import Template
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker.models import Models
from pgvec_queue.worker.stages import Channel
from pgvec_queue.worker.state import Run, State, StoppedError, Work

log = logging.getLogger("pgvec.worker")

LEAVE_WITHIN = 5.0
"""Seconds that the slice in hand may go on after the worker was told to leave."""
_GROUP_TOKENS = 16_384

Block = Callable[[Run, str], None]


class ChunkStage:
    """Cuts the documents of each slice with the vectorizer's own tokenizer."""

    def __init__(self, state: State, models: Models, source: Channel, out: Channel, block: Block) -> None:
        self._state = state
        self._models = models
        self._source = source
        self._out = out
        self._block = block
        self._chunkers: dict[int, tuple[Embedder, Chunker]] = {}

    def run(self) -> None:
        for work in self._source:
            if work.run.dropped or self._state.stopping.is_set():
                self._state.leave()
                continue
            if work.part.documents and not self._prepare(work):
                self._state.leave()
                continue
            self._out.put(work)

    def _prepare(self, work: Work) -> bool:
        """Lends the model to the slice and chunks its documents; False where the model cannot be had."""
        vectorizer = work.run.fragments.vectorizer
        activity, self._state.activity = self._state.activity, "loading"
        try:
            # A missing package or device is this machine's fault, and ends the worker; somebody else may serve it.
            embedder = self._state.patiently(functools.partial(self._models.borrow, vectorizer.spec))
        except EmbedderError as error:
            self._block(work.run, str(error))
            return False
        finally:
            self._state.activity = activity
        work.embedder = embedder
        try:
            chunker = self._chunker(vectorizer, embedder)
            work.chunks = [self._chunk(chunker, vectorizer, embedder, document) for document in work.part.documents]
        except PgvecError as error:
            self._models.give_back(vectorizer.spec)
            self._block(work.run, str(error))
            return False
        return True

    def _chunker(self, vectorizer: Vectorizer, embedder: Embedder) -> Chunker:
        known = self._chunkers.get(vectorizer.id)
        if known is None or known[0] is not embedder:
            chunker = Chunker(
                embedder.tokenizer,
                vectorizer.chunk_size or embedder.info.max_tokens or 512,
                vectorizer.chunk_overlap or 0,
                Template.parse(vectorizer.template) if vectorizer.template else None,
                embedder.info.document_prompt,
            )
            known = self._chunkers[vectorizer.id] = (embedder, chunker)
        return known[1]

    @staticmethod
    def _chunk(
        chunker: Chunker, vectorizer: Vectorizer, embedder: Embedder, document: Document
    ) -> Sequence[Chunk] | Failure:
        if document.text is None:
            return Failure(
                "DocumentTooLarge", f"document has {document.size} bytes, the limit is {vectorizer.max_document_bytes}"
            )
        template = Template.parse(vectorizer.template) if vectorizer.template else None
        columns = dict(zip(template.columns, document.columns, strict=True)) if template else None
        try:
            if vectorizer.chunk_size is not None:
                return chunker.chunks(document.text, columns)
            whole = chunker.whole(
                document.text, columns, embedder.info.max_tokens, truncate=vectorizer.too_long == "truncate"
            )
        except EmbedderError as error:
            if error.kind is not Kind.ROW:
                raise
            return Failure(type(error).__name__, str(error))
        return [whole] if whole is not None else []


class EmbedStage:
    """Runs the model over each slice and checks what it returns."""

    def __init__(self, state: State, models: Models, source: Channel, out: Channel, block: Block) -> None:
        self._state = state
        self._models = models
        self._source = source
        self._out = out
        self._block = block

    def run(self) -> None:
        for work in self._source:
            spec = work.run.fragments.vectorizer.spec
            try:
                done = not work.run.dropped and not self._state.stopping.is_set() and self._embed(work)
            finally:
                if work.embedder is not None:
                    self._models.give_back(spec)
            if done:
                self._out.put(work)
            else:
                self._state.leave()

    def _embed(self, work: Work) -> bool:
        """Fills in the slice's vectors; False where it has to be given up."""
        if work.embedder is None:
            return True
        started = time.monotonic()
        pairs = list(zip(work.part.documents, work.chunks, strict=True))
        good = [(document, chunks) for document, chunks in pairs if not isinstance(chunks, Failure)]
        try:
            vectors = self._embed_documents(work.embedder, good)
        except EmbedderError as error:
            self._block(work.run, str(error))
            return False
        except StoppedError:
            return False
        results = iter(vectors)
        work.embedded = [
            Embedded(document, failure=chunks) if isinstance(chunks, Failure) else next(results)
            for document, chunks in pairs
        ]
        self._state.measured(len(good), time.monotonic() - started)
        return True

    def _embed_documents(
        self, embedder: Embedder, documents: Sequence[tuple[Document, Sequence[Chunk]]]
    ) -> list[Embedded]:
        """Embeds documents together; on an error of a row's kind, in halves, until it is alone."""
        chunks = [chunk for _, cut in documents for chunk in cut]
        try:
            vectors = self._embed_chunks(embedder, chunks)
        except EmbedderError as error:
            if error.kind is not Kind.ROW:
                raise
            if len(documents) == 1:
                return [Embedded(documents[0][0], failure=Failure(type(error).__name__, str(error)))]
            half = len(documents) // 2
            return [
                *self._embed_documents(embedder, documents[:half]),
                *self._embed_documents(embedder, documents[half:]),
            ]
        all_finite = bool(np.isfinite(vectors).all())
        embedded = []
        at = 0
        for document, cut in documents:
            mine = vectors[at : at + len(cut)]
            at += len(cut)
            if all_finite or np.isfinite(mine).all():
                truncated = any(chunk.truncated for chunk in cut)
                embedded.append(Embedded(document, cut, mine, truncated=truncated))
            else:
                failure = Failure("NotFinite", "the model returned NaN or Inf for this document")
                embedded.append(Embedded(document, failure=failure))
        return embedded

    def _embed_chunks(self, embedder: Embedder, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Returns ``(n, dimensions) float32``, in groups short enough to be able to leave between them."""
        dimensions = embedder.info.dimensions
        parts = [np.empty((0, dimensions), np.float32)]
        start = 0
        told_at: float | None = None
        while start < len(chunks):
            end = start
            tokens = 0
            while end < len(chunks) and (end == start or tokens + chunks[end].tokens <= self._group_tokens(embedder)):
                tokens += chunks[end].tokens
                end += 1
            group = chunks[start:end]
            texts, lengths = [c.input for c in group], [c.tokens for c in group]
            vectors = self._state.patiently(functools.partial(embedder.embed_documents, texts, lengths))
            if vectors.shape != (len(group), dimensions):
                raise EmbedderError(
                    f"the model returned vectors of shape {vectors.shape} instead of {(len(group), dimensions)}",
                    Kind.ROW,
                )
            parts.append(vectors)
            start = end
            if self._state.stopping.is_set():
                told_at = told_at or time.monotonic()
                if time.monotonic() - told_at > LEAVE_WITHIN:
                    raise StoppedError
        return np.concatenate(parts)

    @staticmethod
    def _group_tokens(embedder: Embedder) -> int:
        # A remote endpoint batches by itself and is waited for anyway; a CPU gets through this in seconds.
        return _GROUP_TOKENS if embedder.device == "cpu" else 16 * _GROUP_TOKENS
