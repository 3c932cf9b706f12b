"""The third stage: chunks become vectors; nothing of the database is open while it runs.

The model is given the chunks of several slices at once, about three seconds of its work (a third of one near the end of
all work), so that texts of like length meet in a batch, and identical ones once. It is not given those that a changed
document had before (see ``keeping``), nor those that this worker remembers (see ``cache``). A document that cannot be
embedded costs itself only: the call that it spoilt is made again in parts until it is alone, and it goes on to the
writer as a failure. Where a spoilt call is as dear as a good one, the next ones are small. An endpoint that is down is
waited for; a model that cannot work blocks its vectorizer; a call that does not come back ends the worker.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as NotYetError
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from numpy.typing import NDArray

from pgvec_queue.chunking import Chunk
from pgvec_queue.embedders import Embedder, ModelSpec
from pgvec_queue.errors import EmbedderError, Kind, PgvecError
from pgvec_queue.log import hidden
from pgvec_queue.slices import Embedded, Failure
from pgvec_queue.worker import windows
from pgvec_queue.worker.cache import Cache
from pgvec_queue.worker.call import Call, Spared
from pgvec_queue.worker.measures import STARVED
from pgvec_queue.worker.models import Models
from pgvec_queue.worker.rates import Rate
from pgvec_queue.worker.refusals import Block
from pgvec_queue.worker.stages import Channel, Fan
from pgvec_queue.worker.state import State, StoppedError
from pgvec_queue.worker.work import Work

LEAVE_WITHIN = 5.0
"""Seconds that what is in hand may go on after the worker was told to leave."""
WINDOW_SECONDS, WINDOW_AT_END = 3.0, 0.3
"""Of the device's work, in one call; the second where few jobs are left for all workers."""
_LEAST_WINDOW = 2_048
POOL_DIED = "a process that chunks has died, and its slice"
_PARTS = 8
"""Into which a spoilt call is divided: of two, most would be spoilt again."""
_CAREFUL_DOCUMENTS = 8
_CAREFUL_FOR = 2_000
"""Documents that are embedded so few at a time after a call was spoilt that cost as much as a good one."""
_DEAR, _DEAR_SECONDS = 0.3, 0.1
"""Of the time of a good call, or in seconds as long as that is not known."""


class EmbedStage:
    """Runs the model over each slice and checks what it returns."""

    def __init__(
        self,
        state: State,
        models: Models,
        source: Channel,
        out: Fan,
        block: Block,
        call_seconds: float,
        recycle: Callable[[], None],
        cache: Cache,
    ) -> None:
        """``recycle`` has the process replaced, where the device's memory does not come back."""
        self._recycle = recycle
        self._state = state
        self._models = models
        self._source = source
        self._out = out
        self._block = block
        self._call_seconds = call_seconds
        self._cache = cache
        self._given_tokens = 0
        self._given_seconds = 0.0
        """What the model was given so far, and how long it took."""
        self._careful: Counter[ModelSpec] = Counter()
        """Per model: for how many documents more."""
        self._rates: dict[ModelSpec, Rate] = {}
        """Tokens per second."""

    def run(self) -> None:
        for first in self._source:
            window = [first]
            done = 0
            try:
                self._state.wait_while_held(first.run)
                if first.run.begins and not self._state.stopping.is_set():
                    done = self._embed(window, self._gather(window))
            finally:
                for work in window:
                    if work.embedder is not None:
                        self._models.give_back(work.run.fragments.vectorizer.spec)
            if first.embedder is not None and first.embedder.worn_out:
                self._recycle()
            for work in window[:done]:
                self._out.put(work)
            for work in window[done:]:
                self._state.give_up(work)

    def _gather(self, window: list[Work]) -> list[list[windows.Prepared]]:
        """Adds slices of the same model that are ready to ``window``; returns the chunks of each of its documents."""
        prepared = [self._prepared(window[0])]
        embedder = window[0].embedder
        if embedder is None:
            return prepared
        room = self._window_tokens(window[0], embedder) - windows.tokens(prepared[0])

        def fits(work: Work) -> bool:
            # What is urgent does not wait for a whole window.
            alike = work.embedder is embedder and work.urgent == window[0].urgent
            alike = alike and work.run.job.batch_size == window[0].run.job.batch_size
            # A vector that a document had keeps the precision of its column, for texts like it as well.
            alike = alike and work.run.fragments.vectorizer.store == window[0].run.fragments.vectorizer.store
            return alike and work.cutting is not None and work.cutting.done()

        while room > 0 and (work := self._source.take_if(fits)) is not None:
            window.append(work)
            prepared.append(self._prepared(work))
            room -= windows.tokens(prepared[-1])
        return prepared

    def _prepared(self, work: Work) -> list[windows.Prepared]:
        """Returns the chunks of a slice's documents; none where it is to be given up, which is then arranged."""
        if work.cutting is None:
            return []
        try:
            with (
                self._state.watch.call("a tokenizer", self._call_seconds, lambda: self._state.stall("a tokenizer")),
                self._state.measures.waiting(STARVED),
            ):
                while True:
                    try:
                        return windows.prepare(work, work.cutting.result(0.2))
                    except NotYetError:
                        if self._state.aborted.is_set():
                            work.run.dropped = True
                            return []
        except BrokenProcessPool:
            # As if this process had died of it: the document that did it must not be tried for ever.
            self._state.stall(POOL_DIED)
        except PgvecError as error:
            self._block(work.run, str(error))
        work.run.dropped = True
        return []

    def _window_tokens(self, work: Work, embedder: Embedder) -> int:
        """How many tokens to pass in one call, once their rate is known about three seconds' worth."""
        measured = self._rates.get(work.run.fragments.vectorizer.spec)
        if measured is None:
            return embedder.window_tokens
        rate = measured.per_second
        if self._state.near_end:
            return min(embedder.window_tokens, max(1, int(rate * WINDOW_AT_END)))
        return min(embedder.window_tokens, max(_LEAST_WINDOW, int(rate * WINDOW_SECONDS)))

    def _embed(self, window: Sequence[Work], prepared: Sequence[Sequence[windows.Prepared]]) -> int:
        """Fills in the vectors; returns how many of the slices have all of theirs, from the first on."""
        embedder = window[0].embedder
        if embedder is None:
            return int(self._without_model(window[0]))
        tokens, seconds = self._given_tokens, self._given_seconds
        # Whatever is dropped from here on, the writer will find.
        pairs = [[] if work.run.dropped else some for work, some in zip(window, prepared, strict=True)]
        good = [(document, cut, kept) for some in pairs for document, cut, kept in some if not isinstance(cut, Failure)]
        spec = window[0].run.fragments.vectorizer.spec
        embedded: list[Embedded] = []
        try:
            for group in self._groups(spec, good, self._window_tokens(window[0], embedder)):
                embedded.extend(self._embed_group(embedder, spec, group, window[0].run.job.batch_size))
        except EmbedderError as error:
            shown = hidden(str(error), " ".join(document.text or "" for document, _, _ in good))
            for run in {id(work.run): work.run for work in window}.values():
                self._block(run, str(error), shown)
            return 0
        except StoppedError:
            pass
        self._measured(spec, embedded, self._given_tokens - tokens, self._given_seconds - seconds)
        return windows.hand_out(window, pairs, embedded)

    def _measured(self, spec: ModelSpec, embedded: Sequence[Embedded], tokens: int, seconds: float) -> None:
        """Takes in what the device was given of these documents: those whose vectors were known took it no time."""
        if tokens <= 0 or seconds <= 0:
            return
        held = sum([chunk.tokens for item in embedded for chunk in item.chunks])
        self._state.measured(len(embedded) * min(1.0, tokens / held) if held else len(embedded), seconds)
        self._rates.setdefault(spec, Rate()).add(tokens, seconds)

    def _without_model(self, work: Work) -> bool:
        if work.verdict is not None:
            work.embedded = [Embedded(document, failure=work.verdict) for document in work.part.documents]
        return not work.run.dropped and not self._state.stopping.is_set()

    def _groups(
        self, spec: ModelSpec, documents: Sequence[windows.Ready], tokens: int
    ) -> Iterator[Sequence[windows.Ready]]:
        """Yields the documents in groups short enough to be able to leave between them.

        Raises ``StoppedError`` once the worker was told to leave too long ago.
        """
        at = 0
        # Of like size: what is left over after full ones would fill no batch.
        held = sum([windows.tokens_of(cut, kept) for _, cut, kept in documents])
        even = max(1, held / max(1, round(held / tokens)))
        told_at: float | None = None
        while at < len(documents):
            if self._state.stopping.is_set():
                told_at = told_at or time.monotonic()
                if self._state.aborted.is_set() or time.monotonic() - told_at > LEAVE_WITHIN:
                    raise StoppedError
            careful = self._careful[spec] > 0
            group = windows.first_group(documents, at, even, _CAREFUL_DOCUMENTS if careful else len(documents))
            self._careful[spec] -= len(group) if careful else 0
            at += len(group)
            yield group

    def _embed_group(
        self, embedder: Embedder, spec: ModelSpec, documents: Sequence[windows.Ready], batch_size: int | None
    ) -> list[Embedded]:
        """Embeds documents in one call, or in calls of so many chunks; on an error of a row's kind, in parts, until one
        is alone.
        """
        started = time.monotonic()
        try:
            vectors, spared = self._vectors(embedder, spec, Call(documents), batch_size)
        except EmbedderError as error:
            if error.kind is not Kind.ROW:
                raise
            if len(documents) == 1:
                failure = Failure(type(error).__name__, str(error), by_model=True)
                return [Embedded(documents[0][0], failure=failure)]
            rate = self._state.documents_per_second
            if time.monotonic() - started > (_DEAR * len(documents) / rate if rate else _DEAR_SECONDS):
                self._careful[spec] = _CAREFUL_FOR
            size = -(-len(documents) // _PARTS)
            parts = (documents[start : start + size] for start in range(0, len(documents), size))
            return [item for part in parts for item in self._embed_group(embedder, spec, part, batch_size)]
        all_finite = bool(np.isfinite(vectors).all())
        embedded = []
        at = 0
        for number, (document, cut, _) in enumerate(documents):
            mine = slice(at, at + len(cut))
            at += len(cut)
            if all_finite or np.isfinite(vectors[mine]).all():
                truncated = any(chunk.truncated for chunk in cut)
                item = Embedded(document, cut, vectors[mine], truncated=truncated)
                if spared is not None:
                    item.kept, item.reused, item.cached = spared[number]
                embedded.append(item)
            else:
                failure = Failure("NotFinite", "the model returned NaN or Inf for this document", by_model=True)
                embedded.append(Embedded(document, failure=failure))
        return embedded

    def _vectors(
        self, embedder: Embedder, spec: ModelSpec, call: Call, batch_size: int | None
    ) -> tuple[NDArray[np.float32], list[Spared] | None]:
        """Returns ``(n, dimensions) float32``, and for each document what the model was not given of it, if any was."""
        found = self._cache.find(embedder, spec.model, call.asked)
        left = [] if found is None else call.know(found)
        seconds = self._given_seconds
        made = self._call(embedder, call.missing, batch_size)
        if found is not None:
            self._cache.add(embedder, found, left, made, self._given_seconds - seconds)
        return call.vectors(made), call.spared()

    def _call(self, embedder: Embedder, chunks: Sequence[Chunk], batch_size: int | None) -> NDArray[np.float32]:
        """Returns ``(n, dimensions) float32`` of chunks that are all different."""
        if not chunks:
            return np.empty((0, embedder.info.dimensions), np.float32)
        if batch_size is None:
            return self._call_once(embedder, chunks)
        vectors = np.empty((len(chunks), embedder.info.dimensions), np.float32)
        for part in windows.batches_of(chunks, batch_size):
            vectors[part] = self._call_once(embedder, [chunks[at] for at in part])
        return vectors

    def _call_once(self, embedder: Embedder, once: Sequence[Chunk]) -> NDArray[np.float32]:
        wanted = (len(once), embedder.info.dimensions)
        call = functools.partial(
            embedder.embed_documents, [c.input for c in once], [c.tokens for c in once], [c.ids for c in once]
        )
        # Emptied at once: what tries again is part of a cycle, which would keep the texts of many calls for a while.
        about = [once]
        try:
            vectors = self._state.patiently(
                "the model",
                self._call_seconds,
                functools.partial(self._on_device, call),
                lambda: " ".join(chunk.input for some in about for chunk in some),
            )
        finally:
            about.clear()
        self._given_tokens += sum([chunk.tokens for chunk in once])
        self._state.measures.batches(windows.batches(embedder, once), len(once))
        if vectors.shape != wanted:
            raise EmbedderError(f"the model returned vectors of shape {vectors.shape} instead of {wanted}", Kind.ROW)
        return vectors

    def _on_device(self, call: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        began = time.monotonic()
        with self._state.busy.working():
            vectors = call()
        self._given_seconds += time.monotonic() - began
        return vectors
