"""Embeds queries for many callers of one event loop: what is asked at about the same time goes to the model together.

A model is loaded once, when it is first needed, in a thread of its own, in which it also embeds; a few are kept, least
recently used out first. What was embedded lately is remembered. A caller that gives up leaves the others alone, and a
text that the model refuses is refused to its own callers only. No more is loaded than the model needs: none of torch
where an endpoint embeds.

The first text to come waits ``WINDOW`` for others; those that come while the model is at work are its next batch.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pgvec_queue import embedders
from pgvec_queue.embedders import DeviceOptions, Embedder, ModelSpec, Vectors
from pgvec_queue.errors import EmbedderError, Kind, PgvecError
from pgvec_queue.log import get_logger

log = get_logger("pgvec.queries")

WINDOW = 0.002
"""Seconds that a text waits for others when the model is idle."""
BATCH = 64
"""Most texts of one call."""
_TRIAL = "ready"
"""Embedded to load a model."""

Waiting = asyncio.Future[Vectors]


class QueryEmbedder:
    """Queries to vectors, through models that it owns; all but the models' own work is done in one event loop."""

    def __init__(self, options: DeviceOptions | None = None, *, remembered: int = 10_000, models: int = 2) -> None:
        """``remembered`` bounds the vectors that are kept, ``models`` the models."""
        self._options = options or DeviceOptions(runtime="torch")
        self._remembered = remembered
        self._most_models = models
        self._known: OrderedDict[tuple[ModelSpec, str], Vectors] = OrderedDict()
        self._models: OrderedDict[ModelSpec, _Model] = OrderedDict()
        self._kept: frozenset[ModelSpec] = frozenset()
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    async def embed(self, spec: ModelSpec, text: str) -> Vectors:
        """Returns ``(dimensions,) float32``, not to be written to.

        Raises what ``embedders.load`` and ``embed_queries`` raise, ``EmbedderError`` for a vector that is none, and
        ``PgvecError`` once it is closed.
        """
        if self._closed:
            raise PgvecError("queries are embedded no more: the service is closing")
        key = (spec, text)
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        vector = await self._model(spec).embed(text)
        self._known[key] = vector
        self._known.move_to_end(key)
        while len(self._known) > self._remembered:
            self._known.popitem(last=False)
        return vector

    async def keep(self, specs: Iterable[ModelSpec]) -> None:
        """Loads these models ahead of need; beside the others, they stay until they are named no more.

        Raises what ``embed`` raises for the first that cannot be loaded.
        """
        self._kept = frozenset(specs)
        for spec in self._kept:
            if not self.has(spec) and not self._closed:
                await self._model(spec).embed(_TRIAL)

    def has(self, spec: ModelSpec) -> bool:
        """Whether this model is in memory."""
        return spec in self._models and self._models[spec].loaded

    async def close(self) -> None:
        """Lets the models end what they are at, refuses what is waiting, and gives their memory back."""
        self._closed = True
        for model in self._models.values():
            self._leave(model)
        self._models.clear()
        self._known.clear()
        await asyncio.gather(*self._leaving)

    @property
    def loaded(self) -> list[str]:
        """The models that are in memory, most recently used last."""
        return [spec.model for spec, model in self._models.items() if model.loaded]

    def _model(self, spec: ModelSpec) -> _Model:
        """Returns the model, used last, to be loaded with its first text; the one used longest ago may leave for it."""
        model = self._models.get(spec)
        if model is None:
            model = self._models[spec] = _Model(spec, self._options)
        self._models.move_to_end(spec)
        self._retire()
        return model

    def _retire(self) -> None:
        others = [spec for spec in self._models if spec not in self._kept]
        for spec in others[: max(0, len(others) - self._most_models)]:
            self._leave(self._models.pop(spec))

    def _leave(self, model: _Model) -> None:
        task = asyncio.get_running_loop().create_task(model.close(refuse=self._closed))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


class _Model:
    """One model: its thread, and the texts that wait for it."""

    def __init__(self, spec: ModelSpec, options: DeviceOptions) -> None:
        self._spec = spec
        self._options = options
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pgvec-queries")
        self._embedder: Embedder | None = None
        self._waiting: OrderedDict[str, list[Waiting]] = OrderedDict()
        self._work: asyncio.Task[None] | None = None

    @property
    def loaded(self) -> bool:
        return self._embedder is not None

    async def embed(self, text: str) -> Vectors:
        loop = asyncio.get_running_loop()
        waiting: Waiting = loop.create_future()
        self._waiting.setdefault(text, []).append(waiting)
        if self._work is None:
            self._work = loop.create_task(self._run())
        return await waiting

    async def close(self, *, refuse: bool) -> None:
        """Ends after the work in hand, or after all that waits unless ``refuse``."""
        if refuse:
            error = PgvecError("queries are embedded no more: the service is closing")
            for text in list(self._waiting):
                self._answer(self._waiting.pop(text), error)
        while self._work is not None:
            await asyncio.wait([self._work])
        if self._embedder is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._embedder.close)
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        try:
            if self._embedder is not None:
                await asyncio.sleep(WINDOW)
            while self._waiting:
                batch = {text: self._waiting.pop(text) for text in list(self._waiting)[:BATCH]}
                # Who has given up needs no answer.
                batch = {text: left for text, all_ in batch.items() if (left := [w for w in all_ if not w.done()])}
                if batch:
                    await self._embed_all(batch)
        finally:
            self._work = None

    async def _embed_all(self, batch: dict[str, list[Waiting]]) -> None:
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, list(batch))
        except Exception as error:  # noqa: BLE001 - whoever asked raises it
            if len(batch) > 1 and isinstance(error, EmbedderError) and error.kind is Kind.ROW:
                for text, waiting in batch.items():
                    await self._embed_all({text: waiting})
                return
            if not isinstance(error, PgvecError):
                log.error("queries could not be embedded", model=self._spec.model, error=str(error))
            for waiting in batch.values():
                self._answer(waiting, error)
            return
        for waiting, vector in zip(batch.values(), vectors, strict=True):
            self._answer(waiting, vector)

    def _embed(self, texts: Sequence[str]) -> list[Vectors]:
        """Runs in the thread; loads the model where it is not there yet."""
        if self._embedder is None:
            log.info("model is loading for queries", model=self._spec.model)
            self._embedder = embedders.load(self._spec, self._options)
        vectors = self._embedder.embed_queries(texts)
        if vectors.shape != (len(texts), self._embedder.info.dimensions) or not np.isfinite(vectors).all():
            raise EmbedderError(f"model '{self._spec.model}' gave no proper vector for the query", Kind.ROW)
        # Each by itself: a view would keep the whole batch in memory.
        own = [vector.copy() for vector in vectors]
        for vector in own:
            vector.setflags(write=False)
        return own

    @staticmethod
    def _answer(waiting: Sequence[Waiting], answer: Vectors | Exception) -> None:
        for one in waiting:
            if one.done():
                continue
            if isinstance(answer, Exception):
                one.set_exception(answer)
            else:
                one.set_result(answer)
