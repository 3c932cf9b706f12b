"""What turns texts into vectors: one protocol, one file per implementation.

``describe`` tells what a model is (dimensions, longest input, prompts) from its small files alone and loads no torch;
``load`` makes it ready to embed. A new kind of model host is one new module and one line in each of the two.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    # Every command knows what a model is; most of them have no use for numpy, which costs them a tenth of a second.
    import numpy as np
    from numpy.typing import NDArray

    from pgvec_queue.tokenizers import Ids, Tokenizer

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
KINDS = ("sentence-transformers", "openai", "hashing")

Vectors: TypeAlias = "NDArray[np.float32]"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a vectorizer records about its model: enough for any worker to load the very same one."""

    embedder: str
    """One of ``KINDS``."""
    model: str
    """A hub name, a local path, an endpoint's model name, or ``hashing-<dimensions>``."""
    revision: str | None = None
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible API, such as ``https://host/v1``."""
    query_prompt: str | None = None
    """Text put before a query; None: what the model itself says."""
    document_prompt: str | None = None
    dimensions: int | None = None
    """Asked-for dimensions; None: the model's own."""
    trust_remote_code: bool = False
    tokenizer: str | None = None
    """For endpoints: a tiktoken encoding or a HuggingFace tokenizer, by which lengths are counted."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model is, as far as planning needs it."""

    dimensions: int
    max_tokens: int | None
    """Longest input in tokens, special tokens included; None: no bound is known."""
    revision: str | None
    """The exact revision (a commit hash on a hub); None where there is no such thing."""
    query_prompt: str
    document_prompt: str


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How one worker wants to run models; never part of a vectorizer's definition."""

    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int | None = None
    """Tokens per device batch, padding included; None: what suits the device."""
    threads: int | None = None
    runtime: str = "auto"
    """What computes on a CPU: ``torch``, ``openvino``, or whichever is there and faster."""


class Embedder(Protocol):
    """A loaded model. Used by one thread at a time, except ``tokenizer``."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def device(self) -> str:
        """Where it runs, such as ``cpu``, ``cuda:0``, ``mps``, or an endpoint's host."""

    @property
    def dtype(self) -> str: ...

    @property
    def memory_bytes(self) -> int:
        """What it holds on its device, for the worker's budget of models."""

    @property
    def window_tokens(self) -> int:
        """Tokens that are worth passing in one call, so that texts of like length meet in a batch."""

    @property
    def worn_out(self) -> bool:
        """True when only a new process will give the device's memory back."""

    def embed_documents(
        self, texts: Sequence[str], tokens: Sequence[int], ids: Sequence[Ids | None] | None = None
    ) -> Vectors:
        """Returns ``(n, dimensions) float32`` in the order of ``texts``.

        ``tokens`` holds each text's length in tokens, ``ids`` what the tokenizer has made of it, prompt included, where
        that is known. Batches by itself: the caller passes what belongs together, not what fits the device.
        Raises ``EmbedderError`` with the kind of the fault; what it returns has not been checked for NaN or Inf.
        """

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Returns ``(n, dimensions) float32`` in the order of ``texts``; raises as ``embed_documents`` does."""

    def embed_query(self, text: str) -> Vectors:
        """Returns ``(dimensions,) float32``."""

    def close(self) -> None: ...


def describe(spec: ModelSpec) -> ModelInfo:
    """Returns what the model is without loading it.

    Raises ``EmbedderError`` (kind ``VECTORIZER``) when the model cannot be found or needs ``--dimensions``.
    """
    if spec.embedder == "hashing":
        from pgvec_queue.embedders import hashing

        return hashing.describe(spec)
    if spec.embedder == "openai":
        from pgvec_queue.embedders import openai

        return openai.describe(spec)
    from pgvec_queue.embedders import model_files

    return model_files.describe(spec)


def tokenizer_of(spec: ModelSpec) -> Tokenizer:
    """Returns the tokenizer by which the model's texts are measured, without loading torch where its files allow that.

    Raises ``MissingExtraError`` when a package for it is not installed, ``EmbedderError`` when it cannot be had here.
    """
    if spec.embedder == "hashing":
        from pgvec_queue.tokenizers import WordTokenizer

        return WordTokenizer()
    if spec.embedder == "openai":
        from pgvec_queue.embedders import openai

        return openai.tokenizer_of(spec)
    from pgvec_queue.embedders import model_files

    file = model_files.tokenizer_file(spec)
    if file is not None:
        from pgvec_queue.tokenizers import load_tokenizer

        return load_tokenizer(str(file))
    return load(spec, DeviceOptions(device="cpu", runtime="torch")).tokenizer


def check_device(options: DeviceOptions) -> None:
    """Raises ``SettingsError`` when the device asked for is not on this machine, ``MissingExtraError`` without torch.

    Loads torch, except for ``auto`` and ``cpu``, which are always there.
    """
    if options.device not in ("auto", "cpu"):
        from pgvec_queue.embedders import model_loading

        model_loading.find_device(options.device)


def load(spec: ModelSpec, options: DeviceOptions) -> Embedder:
    """Returns the model, ready to embed on the asked-for device.

    Raises ``MissingExtraError`` when the packages for it are not installed, ``SettingsError`` when the device is not
    there (this worker's own fault, so no reason to block the vectorizer for others), and ``EmbedderError`` when the
    model is missing or does not fit the spec (kind ``VECTORIZER``), or cannot be fetched just now (``PASSING``).
    """
    if spec.embedder == "hashing":
        from pgvec_queue.embedders import hashing

        embedder = hashing.HashingEmbedder(spec)
        if faults := os.environ.get("PGVEC_HASHING_FAULTS"):
            from pgvec_queue.embedders.faults import Faults, FaultyEmbedder

            return FaultyEmbedder(embedder, Faults.parse(faults))
        return embedder
    if spec.embedder == "openai":
        from pgvec_queue.embedders import openai

        return openai.OpenAIEmbedder(spec, options)
    from pgvec_queue.embedders import sentence_transformers

    return sentence_transformers.SentenceTransformersEmbedder(spec, options)
