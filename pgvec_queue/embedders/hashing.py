"""Vectors without a model: what a text hashes to, for testing and measuring everything around the model.

A vector depends on the text alone: not on the machine, the library versions, the batch it came in or its place there.
Equal texts have equal vectors and other texts have unrelated ones, so a search finds exactly the text that it was
given; there is no meaning in between. Lengths are counted in words, and there is no longest input.

How: 50 bits of the text's BLAKE2b pick one row from each of five tables of 1,024 rows, whose entries are -3, -1, 1 or 3
as SHAKE-256 gives them. The five rows are added and scaled to length one. A sum of five odd numbers is never zero, and
all sums and squares are integers that float32 holds exactly in any order of adding, so nothing can differ by rounding.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pgvec_queue.embedders import ModelInfo, ModelSpec, Vectors
from pgvec_queue.errors import EmbedderError, Kind
from pgvec_queue.tokenizers import Ids, Tokenizer, WordTokenizer

# The most that pgvector's type takes; 15² times this is below 2²⁴, which keeps the sum of squares exact in float32.
MAX_DIMENSIONS = 16_000
_TABLES = 5
_ROWS = 1024
_ROW_BITS = 10
# Sums are made in blocks that stay in the processor's cache.
_BLOCK_BYTES = 1 << 19


def describe(spec: ModelSpec) -> ModelInfo:
    """Returns what a model's name such as ``hashing-384`` says.

    Raises ``EmbedderError`` (kind ``VECTORIZER``) for another name, for dimensions outside 1 to 16,000, and for
    ``dimensions`` in the spec that contradict the name.
    """
    match = re.fullmatch(r"hashing-([0-9]{1,5})", spec.model)
    dimensions = int(match[1]) if match else 0
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise EmbedderError(
            f"the hashing embedder has no model '{spec.model}'; write hashing-<dimensions>, 1 to {MAX_DIMENSIONS:,}, "
            "such as hashing-384",
            Kind.VECTORIZER,
        )
    if spec.dimensions not in (None, dimensions):
        raise EmbedderError(
            f"model '{spec.model}' has {dimensions} dimensions, not {spec.dimensions}; "
            f"name it hashing-{spec.dimensions}, or leave the dimensions out",
            Kind.VECTORIZER,
        )
    return ModelInfo(
        dimensions=dimensions,
        max_tokens=None,
        revision=None,
        query_prompt=spec.query_prompt or "",
        document_prompt=spec.document_prompt or "",
    )


class HashingEmbedder:
    """Hashes texts to unit vectors; holds nothing but its tables."""

    device = "cpu"
    dtype = "float32"
    window_tokens = 1 << 18
    worn_out = False

    def __init__(self, spec: ModelSpec) -> None:
        """Raises as ``describe`` does."""
        self.info = describe(spec)
        self.tokenizer: Tokenizer = WordTokenizer()
        self._tables = _tables(self.info.dimensions)

    @property
    def memory_bytes(self) -> int:
        return self._tables.nbytes

    def embed_documents(
        self,
        texts: Sequence[str],
        tokens: Sequence[int],  # noqa: ARG002
        ids: Sequence[Ids | None] | None = None,  # noqa: ARG002
    ) -> Vectors:
        """Returns ``(n, dimensions) float32``; only ``texts`` makes a difference here."""
        return self._embed(texts, self.info.document_prompt)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Returns ``(n, dimensions) float32``."""
        return self._embed(texts, self.info.query_prompt)

    def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self.embed_queries([text])[0]
        return vector

    def close(self) -> None:
        """Nothing to give back: the tables are shared by all embedders of their dimensions."""

    def _embed(self, texts: Sequence[str], prompt: str) -> Vectors:
        dimensions = self.info.dimensions
        rows = _rows(texts, prompt)
        vectors = np.empty((len(texts), dimensions), np.float32)
        block = max(1, _BLOCK_BYTES // dimensions)
        total = np.empty((min(block, len(texts)), dimensions), np.int8)
        term = np.empty_like(total)
        for start in range(0, len(texts), block):
            part = rows[:, start : start + block]
            size = part.shape[1]
            # Bounds are certain, and any mode but "raise" writes straight into `out`.
            np.take(self._tables[0], part[0], axis=0, out=total[:size], mode="clip")
            for table in range(1, _TABLES):
                np.take(self._tables[table], part[table], axis=0, out=term[:size], mode="clip")
                total[:size] += term[:size]
            out = vectors[start : start + size]
            out[...] = total[:size]
            squares = np.einsum("ij,ij->i", out, out).astype(np.float64)
            out *= (1.0 / np.sqrt(squares)).astype(np.float32)[:, np.newaxis]
        return vectors


def _rows(texts: Sequence[str], prompt: str) -> NDArray[np.intp]:
    """Returns which row of each table each text picks, ``(tables, n)``."""
    blake2b = hashlib.blake2b
    digests = b"".join([blake2b((prompt + text).encode(), digest_size=8).digest() for text in texts])
    bits = np.frombuffer(digests, "<u8")
    shifts = np.arange(_TABLES, dtype=np.uint64)[:, np.newaxis] * np.uint64(_ROW_BITS)
    rows: NDArray[np.intp] = ((bits >> shifts) & np.uint64(_ROWS - 1)).astype(np.intp)
    return rows


@functools.lru_cache(maxsize=4)
def _tables(dimensions: int) -> NDArray[np.int8]:
    """Returns the tables, ``(tables, rows, dimensions)``; each byte of SHAKE-256 output gives four entries."""
    stream = hashlib.shake_256(b"pgvec-queue hashing embedder").digest(_TABLES * _ROWS * dimensions // 4)
    entries = np.empty((len(stream), 4), np.int8)
    for quarter in range(4):
        np.right_shift(np.frombuffer(stream, np.int8), 2 * quarter, out=entries[:, quarter])
    entries &= 3
    entries *= 2
    entries -= 3
    return entries.reshape(_TABLES, _ROWS, dimensions)
