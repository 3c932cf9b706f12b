"""The second stage: lends each slice its model, and has its documents cut into chunks.

For a model on an accelerator several processes cut side by side, so that tokenizing does not hold it up; for others it
is done here, while the model is at earlier slices.
"""

from __future__ import annotations

import functools
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

from pgvec_queue import process
from pgvec_queue.cutting import Cut, CutterPool, cut, recipe_of
from pgvec_queue.embedders import Embedder
from pgvec_queue.errors import EmbedderError, PgvecError
from pgvec_queue.tokenizers import HuggingFaceTokenizer
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker.embedding import POOL_DIED
from pgvec_queue.worker.models import Models
from pgvec_queue.worker.refusals import Block
from pgvec_queue.worker.stages import Channel
from pgvec_queue.worker.state import State, StoppedError
from pgvec_queue.worker.work import Work

LOADING_SECONDS = 1_800.0
"""Longest that a model may take to load, its download included."""
_MOST_PROCESSES = 8


class ChunkStage:
    """Cuts the documents of each slice with the vectorizer's own tokenizer."""

    def __init__(
        self,
        state: State,
        models: Models,
        source: Channel,
        out: Channel,
        block: Block,
        call_seconds: float,
        processes: int | None = None,
    ) -> None:
        """``processes`` is how many cut beside this one; None: as many as suit the device of the model."""
        self._state = state
        self._models = models
        self._source = source
        self._out = out
        self._block = block
        self._call_seconds = call_seconds
        self._processes = processes
        self._pool: CutterPool | None = None

    def run(self) -> None:
        for work in self._source.towards(self._out):
            if not work.run.begins or self._state.stopping.is_set() or not self._prepare(work):
                self._state.give_up(work)
            else:
                self._out.put(work)

    def close(self) -> None:
        """Ends the processes; not before the next stage has what it waits for."""
        if self._pool is not None:
            self._pool.close()

    def _prepare(self, work: Work) -> bool:
        """Lends the model to the slice and has its documents cut; False where the model cannot be had."""
        if not work.part.documents or work.verdict is not None:
            return True
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
            work.cutting = self._cut(work, vectorizer, embedder)
        except PgvecError as error:
            self._models.give_back(vectorizer.spec)
            self._block(work.run, str(error))
            return False
        return True

    def _cut(self, work: Work, vectorizer: Vectorizer, embedder: Embedder) -> Future[list[Cut]]:
        recipe = recipe_of(vectorizer, embedder.info)
        tokenizer, documents = embedder.tokenizer, work.part.documents
        if self._processes is None:
            self._processes = _processes_for(embedder)
        if self._processes and isinstance(tokenizer, HuggingFaceTokenizer):
            if self._pool is None:
                self._pool = CutterPool(self._processes)
            try:
                return self._pool.submit(recipe, tokenizer, documents)
            except BrokenProcessPool:
                # As if this process had died: giving its jobs back would have the document that did it tried for ever.
                self._state.stall(POOL_DIED)
                raise StoppedError from None
        done: Future[list[Cut]] = Future()
        with self._state.watch.call("a tokenizer", self._call_seconds, lambda: self._state.stall("a tokenizer")):
            done.set_result(cut(recipe, tokenizer, documents))
        return done


def _processes_for(embedder: Embedder) -> int:
    """A processor has nothing to gain: its cores are the model's."""
    return processes_beside(1) if embedder.device.startswith(("cuda", "mps")) else 0


def processes_beside(workers: int) -> int:
    """Returns how many processes may cut beside each of so many workers on accelerators of this machine."""
    return max(1, min(_MOST_PROCESSES, process.cores() // workers - 2))
