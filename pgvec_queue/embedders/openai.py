"""Asks an endpoint for vectors: OpenAI, or anything that answers ``POST {endpoint}/embeddings`` as OpenAI does.

A request carries up to 256 texts and 100,000 tokens. What fails for the moment is tried a few times within seconds;
then it is the caller's to back off. What a status says about the work at hand is one table, ``kind_of_status``.

Keys come from the environment and appear in no error. ``PGVEC_ENDPOINT_KEY`` goes to whatever endpoint a vectorizer
names. ``OPENAI_API_KEY`` goes to OpenAI alone: an endpoint is a column of the database, and whoever may write there must
not be able to send the key to a host of their choice.
"""

from __future__ import annotations

import base64
import binascii
import email.utils
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence

import httpx2
import numpy as np
import tenacity

from pgvec_queue.embedders import DeviceOptions, ModelInfo, ModelSpec, Tokenizer, Vectors
from pgvec_queue.errors import EmbedderError, Kind, SettingsError
from pgvec_queue.tokenizers import load_tokenizer

DEFAULT_ENDPOINT = "https://api.openai.com/v1"
_OPENAI_HOST = "api.openai.com"

# Dimensions of OpenAI's own models; all of them read at most 8,191 tokens of cl100k_base.
_KNOWN = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
_KNOWN_MAX_TOKENS = 8191
_KNOWN_TOKENIZER = "cl100k_base"
_SHORTENED_ON_REQUEST = "text-embedding-3-"

_BATCH_TEXTS = 256
_BATCH_TOKENS = 100_000
_MAX_BATCH_TOKENS = 300_000  # OpenAI's bound on a request
_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
_ATTEMPTS = 4
_LONGEST_WAIT = 5.0

_ROW_STATUSES = {400, 413, 422}
_PASSING_STATUSES = {408, 409, 425, 429}


def kind_of_status(status: int) -> Kind:
    """Returns whose fault an answer with this HTTP status is, for any status but success.

    Rejected inputs are the row's. Timeouts, conflicts, rate limits and all server errors pass. The rest (rights, wrong
    address, wrong method, redirects) fails for every text alike.
    """
    if status in _ROW_STATUSES:
        return Kind.ROW
    if status in _PASSING_STATUSES or status >= 500:
        return Kind.PASSING
    return Kind.VECTORIZER


def describe(spec: ModelSpec) -> ModelInfo:
    """Returns what the model is; asks the endpoint with one word where neither its name nor the spec says.

    Raises ``EmbedderError``, as the endpoint's answer has it, or ``VECTORIZER`` when more dimensions are asked for than
    the model has, or other ones than it can give.
    """
    dimensions = spec.dimensions
    own = _KNOWN.get(_short_name(spec))
    if dimensions is None and own is None:
        embedder = OpenAIEmbedder(spec, DeviceOptions())
        embedder.close()
        return embedder.info
    return _info(spec, own, dimensions)


class OpenAIEmbedder:
    """One endpoint's model, used by one thread."""

    dtype = "remote"
    memory_bytes = 0

    def __init__(
        self, spec: ModelSpec, options: DeviceOptions, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Connects to nothing yet, unless the dimensions have to be asked for; ``sleep`` takes seconds.

        Raises ``EmbedderError`` (kind ``VECTORIZER``) for an endpoint that is no URL, and ``SettingsError`` when
        OpenAI's key is not in the environment.
        """
        self._spec = spec
        self._budget = min(options.batch_tokens or _BATCH_TOKENS, _MAX_BATCH_TOKENS)
        self._sleep = sleep
        self._floats = False
        self._tokenizer: Tokenizer | None = None
        self._url = _url(spec.endpoint or DEFAULT_ENDPOINT)
        self.device = self._url.netloc.decode()
        self._key = _key(self._url)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.Client(timeout=_TIMEOUT, headers=headers)
        own = _KNOWN.get(_short_name(spec))
        if own is None and spec.dimensions is None:
            try:
                own = len(self._request(["dimensions"])[0])
            except EmbedderError:
                self.close()
                raise
        self.info = _info(spec, own, spec.dimensions)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the spec names, or OpenAI's for its models.

        Raises ``EmbedderError`` (kind ``VECTORIZER``) when neither is known: an endpoint does not tell.
        """
        if self._tokenizer is None:
            name = self._spec.tokenizer or (_KNOWN_TOKENIZER if _short_name(self._spec) in _KNOWN else None)
            if name is None:
                raise EmbedderError(
                    f"it is not known how model '{self._spec.model}' at {self.device} counts tokens; give --tokenizer "
                    "with a tiktoken encoding, a HuggingFace model or a tokenizer.json",
                    Kind.VECTORIZER,
                )
            self._tokenizer = load_tokenizer(name)
        return self._tokenizer

    def embed_documents(self, texts: Sequence[str], tokens: Sequence[int]) -> Vectors:
        """Returns ``(n, dimensions) float32`` in the order of ``texts``; raises ``EmbedderError``."""
        vectors = np.empty((len(texts), self.info.dimensions), np.float32)
        for start, stop in self._batches(tokens):
            vectors[start:stop] = self._embed([self.info.document_prompt + text for text in texts[start:stop]])
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Returns ``(dimensions,) float32``; raises ``EmbedderError``."""
        vector: Vectors = self._embed([self.info.query_prompt + text])[0]
        return vector

    def close(self) -> None:
        self._client.close()

    def _batches(self, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
        start = total = 0
        for index, count in enumerate(tokens):
            if index > start and (index - start == _BATCH_TEXTS or total + count > self._budget):
                yield start, index
                start, total = index, 0
            total += count
        if start < len(tokens):
            yield start, len(tokens)

    def _embed(self, texts: list[str]) -> Vectors:
        vectors = self._request(texts)
        for vector in vectors:
            if vector.shape != (self.info.dimensions,):
                raise EmbedderError(
                    f"model '{self._spec.model}' at {self.device} gives {len(vector)} dimensions, not "
                    f"{self.info.dimensions}; give --dimensions {len(vector)}, or another model",
                    Kind.VECTORIZER,
                )
        return np.stack(vectors)

    def _request(self, texts: list[str]) -> list[Vectors]:
        """Returns one vector per text; tries what fails for the moment again, some times and some seconds."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_worth_a_retry),
            wait=_wait,
            stop=tenacity.stop_after_attempt(_ATTEMPTS) | tenacity.stop_after_delay(_TIMEOUT.read or 0),
            sleep=self._sleep,
            reraise=True,
        )
        vectors: list[Vectors] = retrying(self._post, texts)
        return vectors

    def _post(self, texts: list[str]) -> list[Vectors]:
        body: dict[str, object] = {"model": self._spec.model, "input": texts}
        if self._spec.dimensions is not None and _short_name(self._spec).startswith(_SHORTENED_ON_REQUEST):
            body["dimensions"] = self._spec.dimensions
        body["encoding_format"] = "float" if self._floats else "base64"
        try:
            response = self._client.post(self._url, json=body)
        except httpx2.UnsupportedProtocol as error:
            raise EmbedderError(f"endpoint {self.device} cannot be asked: {error}", Kind.VECTORIZER) from error
        except httpx2.TransportError as error:
            detail = self._without_key(str(error)) or type(error).__name__
            raise EmbedderError(f"endpoint {self.device} cannot be reached: {detail}", Kind.PASSING) from error
        if not response.is_success:
            if not self._floats and response.status_code in _ROW_STATUSES and "encoding_format" in response.text:
                # Some servers know floats only, and say so about every request.
                self._floats = True
                return self._post(texts)
            raise self._refusal(response)
        try:
            return _vectors(response.content, len(texts))
        except (ValueError, TypeError, KeyError, binascii.Error) as error:
            raise EmbedderError(
                f"endpoint {self.device} gave an answer that is not one of an embeddings API: {error}", Kind.PASSING
            ) from error

    def _refusal(self, response: httpx2.Response) -> EmbedderError:
        status = response.status_code
        kind = kind_of_status(status)
        message = f"endpoint {self.device} answered {status}"
        if status in (401, 403):
            # Its words are left out: they tend to repeat the key.
            message += "; check the key in PGVEC_ENDPOINT_KEY (or OPENAI_API_KEY, for OpenAI) and what it may do"
        elif status == 404:
            message += f" for model '{self._spec.model}'; check the model and the endpoint, which mostly ends in /v1"
        elif detail := self._without_key(_detail(response)):
            message += f": {detail}"
        return EmbedderError(message, kind, retry_after=_retry_after(response.headers))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _info(spec: ModelSpec, own: int | None, asked: int | None) -> ModelInfo:
    name = _short_name(spec)
    dimensions = asked if asked is not None else own
    shortens = name.startswith(_SHORTENED_ON_REQUEST)
    if dimensions is None or dimensions < 1 or (own is not None and not (dimensions == own or shortens > (dimensions > own))):
        raise EmbedderError("", Kind.VECTORIZER)
    return ModelInfo(dimensions, None, None, "", "")
