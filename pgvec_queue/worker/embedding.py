"""The middle stages: documents become chunks, and chunks vectors; nothing of the database is open while they run.

A document that cannot be chunked or embedded costs itself only: the call that it spoilt is made again in parts until
it is alone, and it goes on to the writer as a failure. Where a spoilt call is as dear as a good one, the next ones are
small. An endpoint that is down is waited for; a model that cannot work
blocks its vectorizer; a call that does not come back ends the worker.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
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
LOADING_SECONDS = 1_800.0
"""Longest that a model may take to load, its download included."""
_GROUP_TOKENS = 16_384
_PARTS = 8
"""Into which a spoilt call is divided: of two, most would be spoilt again."""
_CAREFUL_DOCUMENTS = 8
_CAREFUL_FOR = 2_000
"""Documents that are embedded so few at a time after a call was spoilt that cost as much as a good one."""
_DEAR, _DEAR_SECONDS = 0.3, 0.1
"""Of the time of a good call, or in seconds as long as that is not known."""

Block = Callable[[Run, str], None]
Cut = tuple[Document, Sequence[Chunk]]
"""A document with its chunks."""


class ChunkStage:
    """Cuts the documents of each slice with the vectorizer's own tokenizer."""

    def __init__(
        self, state: State, models: Models, source: Channel, out: Channel, block: Block, call_seconds: float
    ) -> None:
        self._state = state
        self._models = models
        self._source = source
        self._out = out
        self._block = block
        self._call_seconds = call_seconds
        self._chunkers: dict[int, tuple[Embedder, Chunker]] = {}

    def run(self) -> None:
        for work in self._source:
            if work.run.dropped or self._state.stopping.is_set():
                self._state.leave()
                continue
            if work.part.documents and work.verdict is None and not self._prepare(work):
                self._state.leave()
                continue
            self._out.put(work)

    def _prepare(self, work: Work) -> bool:
        """Lends the model to the slice and chunks its documents; False where the model cannot be had."""
        vectorizer = work.run.fragments.vectorizer
        activity, self._state.activity = self._state.activity, "loading"
        try:
            # A missing package or device is this machine's fault, and ends the worker; somebody else may serve it.
            embedder = self._state.patiently(
                f"loading {vectorizer.model}", LOADING_SECONDS, functools.partial(self._models.borrow, vectorizer.spec)
            )
        except EmbedderError as error:
            self._block(work.run, str(error))
            return False
        finally:
            self._state.activity = activity
        work.embedder = embedder
        try:
            chunker = self._chunker(vectorizer, embedder)
            for document in work.part.documents:
                with self._state.watch.call(
                    "a tokenizer", self._call_seconds, lambda: self._state.stall("a tokenizer")
                ):
                    work.chunks.append(self._chunk(chunker, vectorizer, embedder, document))
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

    def __init__(
        self, state: State, models: Models, source: Channel, out: Channel, block: Block, call_seconds: float
    ) -> None:
        self._state = state
        self._models = models
        self._source = source
        self._out = out
        self._block = block
        self._call_seconds = call_seconds
        self._careful: Counter[int] = Counter()
        """Per vectorizer: for how many documents more."""

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
        if work.verdict is not None:
            work.embedded = [Embedded(document, failure=work.verdict) for document in work.part.documents]
            return True
        if work.embedder is None:
            return True
        started = time.monotonic()
        pairs = list(zip(work.part.documents, work.chunks, strict=True))
        good = [(document, chunks) for document, chunks in pairs if not isinstance(chunks, Failure)]
        try:
            vectors = self._embed_all(work.embedder, work.run.job.vectorizer_id, good)
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

    def _embed_all(self, embedder: Embedder, vectorizer: int, documents: Sequence[Cut]) -> list[Embedded]:
        """Embeds documents in groups short enough to be able to leave between them."""
        embedded: list[Embedded] = []
        told_at: float | None = None
        while len(embedded) < len(documents):
            rest = documents[len(embedded) :]
            careful = self._careful[vectorizer] > 0
            group = _first_group(rest, self._group_tokens(embedder), _CAREFUL_DOCUMENTS if careful else len(rest))
            self._careful[vectorizer] -= len(group) if careful else 0
            embedded.extend(self._embed_group(embedder, vectorizer, group))
            if self._state.stopping.is_set():
                told_at = told_at or time.monotonic()
                if time.monotonic() - told_at > LEAVE_WITHIN:
                    raise StoppedError
        return embedded

    def _embed_group(self, embedder: Embedder, vectorizer: int, documents: Sequence[Cut]) -> list[Embedded]:
        """Embeds documents in one call; on an error of a row's kind, in parts, until it is alone."""
        started = time.monotonic()
        try:
            vectors = self._call(embedder, [chunk for _, cut in documents for chunk in cut])
        except EmbedderError as error:
            if error.kind is not Kind.ROW:
                raise
            if len(documents) == 1:
                failure = Failure(type(error).__name__, str(error), by_model=True)
                return [Embedded(documents[0][0], failure=failure)]
            rate = self._state.documents_per_second
            if time.monotonic() - started > (_DEAR * len(documents) / rate if rate else _DEAR_SECONDS):
                self._careful[vectorizer] = _CAREFUL_FOR
            size = -(-len(documents) // _PARTS)
            parts = (documents[start : start + size] for start in range(0, len(documents), size))
            return [item for part in parts for item in self._embed_group(embedder, vectorizer, part)]
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
                failure = Failure("NotFinite", "the model returned NaN or Inf for this document", by_model=True)
                embedded.append(Embedded(document, failure=failure))
        return embedded

    def _call(self, embedder: Embedder, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Returns ``(n, dimensions) float32``."""
        wanted = (len(chunks), embedder.info.dimensions)
        if not chunks:
            return np.empty(wanted, np.float32)
        texts, lengths = [c.input for c in chunks], [c.tokens for c in chunks]
        vectors = self._state.patiently(
            "the model", self._call_seconds, functools.partial(embedder.embed_documents, texts, lengths)
        )
        if vectors.shape != wanted:
            raise EmbedderError(f"the model returned vectors of shape {vectors.shape} instead of {wanted}", Kind.ROW)
        return vectors

    @staticmethod
    def _group_tokens(embedder: Embedder) -> int:
        # A remote endpoint batches by itself and is waited for anyway; a CPU gets through this in seconds.
        return _GROUP_TOKENS if embedder.device == "cpu" else 16 * _GROUP_TOKENS


def _first_group(documents: Sequence[Cut], tokens: int, most: int) -> Sequence[Cut]:
    """The first documents of about so many tokens together, at most ``most``; a longer one by itself."""
    held = 0
    for end, (_, cut) in enumerate(documents[:most]):
        held += sum(chunk.tokens for chunk in cut)
        if end and held > tokens:
            return documents[:end]
    return documents[:most]
