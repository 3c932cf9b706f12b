"""Cuts the documents of a slice into chunks by a vectorizer's recipe, in this process or in others beside it.

Where a model runs faster than one process can chunk and tokenize, ``CutterPool`` has others do it. They load no torch,
ignore the signals by which the worker is told to leave, and end with it however it ends.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection as connections
from pathlib import Path

from pgvec_queue.chunking import Chunk, Chunker
from pgvec_queue.embedders import ModelInfo
from pgvec_queue.errors import EmbedderError, Kind
from pgvec_queue.slices import Document, Failure
from pgvec_queue.template import Template
from pgvec_queue.tokenizers import HuggingFaceTokenizer, Tokenizer, load_tokenizer
from pgvec_queue.vectorizer import Vectorizer

Cut = Sequence[Chunk] | Failure
"""What became of one document."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a vectorizer's documents are cut."""

    size: int | None
    """Tokens of a chunk; None: a document stays whole."""
    overlap: int
    template: str | None
    prompt: str
    max_tokens: int | None
    """The longest input of the model."""
    truncate: bool
    max_document_bytes: int


def recipe_of(vectorizer: Vectorizer, info: ModelInfo) -> Recipe:
    """Returns how the documents of ``vectorizer`` are cut for a model that is as ``info`` says."""
    return Recipe(
        size=vectorizer.chunk_size,
        overlap=vectorizer.chunk_overlap or 0,
        template=vectorizer.template,
        prompt=info.document_prompt,
        max_tokens=info.max_tokens,
        truncate=vectorizer.too_long == "truncate",
        max_document_bytes=vectorizer.max_document_bytes,
    )


def cut(recipe: Recipe, tokenizer: Tokenizer, documents: Sequence[Document]) -> list[Cut]:
    """Returns the chunks of each document, or why it has none.

    Raises ``DefinitionError`` and ``EmbedderError`` where it is not the document's fault.
    """
    chunker = _chunker(recipe, tokenizer)
    if recipe.size is None:
        return _whole(recipe, chunker, documents)
    return [_chunks(recipe, chunker, document) for document in documents]


@functools.lru_cache(maxsize=16)
def _chunker(recipe: Recipe, tokenizer: Tokenizer) -> Chunker:
    template = Template.parse(recipe.template) if recipe.template else None
    return Chunker(tokenizer, recipe.size or recipe.max_tokens or 512, recipe.overlap, template, recipe.prompt)


def _chunks(recipe: Recipe, chunker: Chunker, document: Document) -> Cut:
    if document.text is None:
        return _too_large(recipe, document)
    try:
        return chunker.chunks(document.text, _columns(chunker, document))
    except EmbedderError as error:
        if error.kind is not Kind.ROW:
            raise
        return Failure(type(error).__name__, str(error))


def _whole(recipe: Recipe, chunker: Chunker, documents: Sequence[Document]) -> list[Cut]:
    texts = [(one.text, _columns(chunker, one)) for one in documents if one.text is not None]
    found = iter(chunker.wholes(texts, recipe.max_tokens, recipe.truncate))
    cuts: list[Cut] = []
    for document in documents:
        whole = next(found) if document.text is not None else _too_large(recipe, document)
        if isinstance(whole, EmbedderError):
            whole = Failure(type(whole).__name__, str(whole))
        cuts.append(whole if isinstance(whole, Failure) else [whole] if whole is not None else [])
    return cuts


def _columns(chunker: Chunker, document: Document) -> dict[str, str | None] | None:
    return dict(zip(chunker.columns, document.columns, strict=True)) if chunker.columns else None


def _too_large(recipe: Recipe, document: Document) -> Failure:
    return Failure("DocumentTooLarge", f"document has {document.size} bytes, the limit is {recipe.max_document_bytes}")


class CutterPool:
    """Processes that cut slices side by side, in whatever order; whoever asked keeps the order."""

    def __init__(self, processes: int) -> None:
        # Not forked: this process has threads and, maybe, a device open.
        self._pool = ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), initializer=_outlive_signals_only
        )
        self._folder = tempfile.TemporaryDirectory(prefix="pgvec-")
        self._files: dict[int, tuple[HuggingFaceTokenizer, str]] = {}

    def submit(
        self, recipe: Recipe, tokenizer: HuggingFaceTokenizer, documents: Sequence[Document]
    ) -> Future[list[Cut]]:
        """Has a slice cut; the result is, and raises, what ``cut`` does, or ``BrokenProcessPool``."""
        return self._pool.submit(_cut_elsewhere, recipe, self._file(tokenizer), documents)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._folder.cleanup()

    def _file(self, tokenizer: HuggingFaceTokenizer) -> str:
        """Writes the tokenizer where the processes read it, once."""
        known = self._files.get(id(tokenizer))
        if known is None:
            definition = tokenizer.definition
            file = Path(self._folder.name, hashlib.sha256(definition.encode()).hexdigest()[:16] + ".json")
            file.write_text(definition)
            known = self._files[id(tokenizer)] = (tokenizer, str(file))
        return known[1]


def _cut_elsewhere(recipe: Recipe, file: str, documents: Sequence[Document]) -> list[Cut]:
    return cut(recipe, _tokenizer(file), documents)


@functools.lru_cache(maxsize=4)
def _tokenizer(file: str) -> Tokenizer:
    return load_tokenizer(file)


def _outlive_signals_only() -> None:
    """The worker finishes the slice in hand when it is told to leave; what it needs for that must not go first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The processes are the parallelism.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connections.wait([parent.sentinel])
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
