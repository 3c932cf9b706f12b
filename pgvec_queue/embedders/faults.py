"""Delays and faults of the hashing embedder, for testing what everything around a model does when the model misbehaves.

``PGVEC_HASHING_FAULTS`` holds entries ``name=value`` separated by ``;``. ``delay`` is in seconds per text. ``rate`` is
in texts per second: a call sleeps for what is left of its time, as if a device of that speed did the work. The value of
every other entry is a word, and a document whose text contains it

- ``refuse``: makes the call fail with an ``EmbedderError`` of the row's kind, before the delay, as an endpoint does;
- ``nan``, ``inf``: gets a vector that begins with NaN or Inf;
- ``shape``: makes the whole call return one dimension too few;
- ``kill``: kills the process (SIGKILL);
- ``hang``: makes the call never return.

Queries are left alone. Without the variable nothing of this is loaded.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from pgvec_queue.embedders import Embedder, ModelInfo, Vectors
from pgvec_queue.errors import EmbedderError, Kind, SettingsError
from pgvec_queue.tokenizers import Ids, Tokenizer

VARIABLE = "PGVEC_HASHING_FAULTS"


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong: seconds per text, the word that brings about each fault, and how fast it is at best."""

    delay: float = 0.0
    refuse: str | None = None
    nan: str | None = None
    inf: str | None = None
    shape: str | None = None
    kill: str | None = None
    hang: str | None = None
    rate: float = math.inf
    """Texts per second, at most."""

    @classmethod
    def parse(cls, text: str) -> Faults:
        """Reads the variable's value. Raises ``SettingsError`` for what it cannot be."""
        known = [field.name for field in fields(cls)]
        found: dict[str, str] = {}
        for entry in filter(None, (part.strip() for part in text.split(";"))):
            name, separator, value = entry.partition("=")
            if not separator or not value or name not in known or name in found:
                raise SettingsError(
                    f"{VARIABLE}: {entry!r} cannot be used; write name=value, each name once, separated by ';': "
                    f"{', '.join(known)}"
                )
            found[name] = value
        return cls(delay=_seconds(found.pop("delay", "0")), rate=_rate(found.pop("rate", "inf")), **found)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        raise SettingsError(f"{VARIABLE}: delay={text} is no number of seconds; write one such as delay=0.002")
    return seconds


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    # Slower than one text a day is no device, and no wait that a thread could make.
    if not rate * 86_400 >= 1:
        raise SettingsError(f"{VARIABLE}: rate={text} is no number of texts per second; write one such as rate=500")
    return rate


class FaultyEmbedder:
    """Another embedder with faults."""

    def __init__(self, embedder: Embedder, faults: Faults) -> None:
        self._embedder = embedder
        self._faults = faults

    @property
    def info(self) -> ModelInfo:
        return self._embedder.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self._embedder.tokenizer

    @property
    def device(self) -> str:
        return self._embedder.device

    @property
    def dtype(self) -> str:
        return self._embedder.dtype

    @property
    def memory_bytes(self) -> int:
        return self._embedder.memory_bytes

    @property
    def window_tokens(self) -> int:
        return self._embedder.window_tokens

    @property
    def worn_out(self) -> bool:
        return self._embedder.worn_out

    def embed_documents(
        self, texts: Sequence[str], tokens: Sequence[int], ids: Sequence[Ids | None] | None = None
    ) -> Vectors:
        """Does as the embedder beneath, unless a text contains one of the words."""
        faults = self._faults
        started = time.monotonic()
        if _having(faults.refuse, texts):
            raise EmbedderError(f"a document contains the word {faults.refuse!r}", Kind.ROW)
        if faults.delay:
            # Not time.sleep, which fails in a process whose clock is changed by faketime.
            threading.Event().wait(faults.delay * len(texts))
        if _having(faults.kill, texts):
            os.kill(os.getpid(), signal.SIGKILL)
        if _having(faults.hang, texts):
            threading.Event().wait()
        vectors = self._embedder.embed_documents(texts, tokens, ids)
        vectors[_having(faults.nan, texts), 0] = np.nan
        vectors[_having(faults.inf, texts), 0] = np.inf
        threading.Event().wait(max(0.0, started + len(texts) / faults.rate - time.monotonic()))
        return vectors[:, 1:] if _having(faults.shape, texts) else vectors

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self._embedder.embed_queries(texts)

    def embed_query(self, text: str) -> Vectors:
        return self._embedder.embed_query(text)

    def close(self) -> None:
        self._embedder.close()


def _having(word: str | None, texts: Sequence[str]) -> list[int]:
    """Returns which of the texts contain the word."""
    return [i for i, text in enumerate(texts) if word in text] if word else []
