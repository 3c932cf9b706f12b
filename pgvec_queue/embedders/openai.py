"""Asks an endpoint for vectors: OpenAI, or anything that answers ``POST {endpoint}/embeddings`` as OpenAI does.

A request carries up to 256 texts and 100,000 tokens, and a few are under way at a time: an endpoint's latency would
otherwise be most of what it takes. What fails for the moment is tried a few times within seconds;
then it is the caller's to back off. What a status says about the work at hand is one table, ``kind_of_status``.

Keys come from the environment and appear in no error. ``PGVEC_ENDPOINT_KEY`` (or the file that
``PGVEC_ENDPOINT_KEY_FILE`` names) goes to whatever endpoint a vectorizer names. ``OPENAI_API_KEY`` goes to OpenAI
alone: endpoints are read from the database, and whoever may write there must not be able to have that key sent to a
host of their choice.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from email.utils import parsedate_to_datetime

import httpx2
import numpy as np
import tenacity

from pgvec_queue import settings
from pgvec_queue.embedders import DeviceOptions, ModelInfo, ModelSpec, Vectors
from pgvec_queue.errors import EmbedderError, Kind, SettingsError
from pgvec_queue.tokenizers import Ids, Tokenizer, load_tokenizer

DEFAULT_ENDPOINT = "https://api.openai.com/v1"
_OPENAI_HOST = "api.openai.com"

# Dimensions of OpenAI's own models; all of them read at most 8,191 tokens of cl100k_base.
_KNOWN = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
_KNOWN_MAX_TOKENS = 8191
_KNOWN_TOKENIZER = "cl100k_base"
_SHORTENED_ON_REQUEST = "text-embedding-3-"

_REQUESTS = 4
"""Under way at a time."""
_BATCH_TEXTS = 256
_BATCH_TOKENS = 100_000
_MAX_BATCH_TOKENS = 300_000  # OpenAI's bound on a request
_TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
_ASKING = httpx2.Timeout(10.0)
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

    Raises ``EmbedderError``: as the endpoint answers, or ``VECTORIZER`` for dimensions that the model cannot give.
    """
    dimensions = _dimensions(spec)
    if dimensions is not None:
        return _info(spec, dimensions)
    embedder = OpenAIEmbedder(spec, DeviceOptions())
    embedder.close()
    return embedder.info


def ask(spec: ModelSpec) -> tuple[str, int]:
    """Asks the endpoint for its list of models, which costs nothing; returns its host and the status of its answer.

    Raises ``EmbedderError`` where it cannot be reached, or may not be asked without a key.
    """
    url = _url(DEFAULT_ENDPOINT if spec.endpoint is None else spec.endpoint)
    host, key = url.netloc.decode(), _key(url)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx2.Client(timeout=_ASKING, headers=headers) as client:
            return host, client.get(url.copy_with(path=url.path.removesuffix("embeddings") + "models")).status_code
    except httpx2.RequestError as error:
        detail = str(error).replace(key, "***") if key else str(error)
        message = f"endpoint {host} cannot be reached: {detail or type(error).__name__}"
        raise EmbedderError(message, Kind.PASSING) from error


def tokenizer_of(spec: ModelSpec) -> Tokenizer:
    """Returns the tokenizer that the spec names, or OpenAI's for its models.

    Raises ``EmbedderError`` (kind ``VECTORIZER``) when neither is known: an endpoint does not tell.
    """
    name = spec.tokenizer or (_KNOWN_TOKENIZER if _short_name(spec) in _KNOWN else None)
    if name is None:
        host = _url(DEFAULT_ENDPOINT if spec.endpoint is None else spec.endpoint).netloc.decode()
        raise EmbedderError(
            f"it is not known how model '{spec.model}' at {host} counts tokens; give --tokenizer "
            "with a tiktoken encoding, a HuggingFace model or a tokenizer.json",
            Kind.VECTORIZER,
        )
    return load_tokenizer(name)


class OpenAIEmbedder:
    """One endpoint's model, used by one thread."""

    dtype = "remote"
    memory_bytes = 0
    window_tokens = 1 << 18
    worn_out = False

    def __init__(self, spec: ModelSpec, options: DeviceOptions, *, sleep: Callable[[float], None] = time.sleep) -> None:
        """Connects to nothing yet, unless the dimensions have to be asked for; ``sleep`` takes seconds.

        Raises ``EmbedderError``: as ``describe`` does, and (kind ``VECTORIZER``) for an endpoint that is no URL or
        OpenAI's key missing in the environment.
        """
        dimensions = _dimensions(spec)
        self._spec = spec
        self._budget = min(options.batch_tokens or _BATCH_TOKENS, _MAX_BATCH_TOKENS)
        self._sleep = sleep
        self._floats = False
        self._tokenizer: Tokenizer | None = None
        self.last_batches: list[tuple[int, int]] = []
        """Of the last call: tokens of each request, twice, since nothing is padded here."""
        self._url = _url(DEFAULT_ENDPOINT if spec.endpoint is None else spec.endpoint)
        self.device = self._url.netloc.decode()
        self._key = _key(self._url)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.Client(timeout=_TIMEOUT, headers=headers)
        self._senders = ThreadPoolExecutor(_REQUESTS, thread_name_prefix="pgvec-request")
        if dimensions is None:
            try:
                dimensions = len(self._request(["dimensions"])[0])
            except EmbedderError:
                self.close()
                raise
        self.info = _info(spec, dimensions)

    @property
    def tokenizer(self) -> Tokenizer:
        """As ``tokenizer_of`` returns it."""
        if self._tokenizer is None:
            self._tokenizer = tokenizer_of(self._spec)
        return self._tokenizer

    def embed_documents(
        self,
        texts: Sequence[str],
        tokens: Sequence[int],
        ids: Sequence[Ids | None] | None = None,  # noqa: ARG002
    ) -> Vectors:
        """Returns ``(n, dimensions) float32`` in the order of ``texts``; raises ``EmbedderError``."""
        vectors = np.empty((len(texts), self.info.dimensions), np.float32)

        def embed(batch: tuple[int, int]) -> None:
            start, stop = batch
            vectors[start:stop] = self._embed([self.info.document_prompt + text for text in texts[start:stop]])

        batches = list(self._batches(tokens))
        sizes = [sum(tokens[start:stop]) for start, stop in batches]
        self.last_batches = list(zip(sizes, sizes, strict=True))
        if len(batches) == 1:
            embed(batches[0])
            return vectors
        asked = [self._senders.submit(embed, batch) for batch in batches]
        try:
            for one in asked:
                one.result()
        finally:
            # What one request makes vain need not be asked for any more.
            for one in asked:
                one.cancel()
            wait(asked)
        return vectors

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Returns ``(n, dimensions) float32`` in the order of ``texts``; raises ``EmbedderError``."""
        vectors = np.empty((len(texts), self.info.dimensions), np.float32)
        # No text has more tokens than bytes.
        for start, stop in self._batches([len((self.info.query_prompt + text).encode()) for text in texts]):
            vectors[start:stop] = self._embed([self.info.query_prompt + text for text in texts[start:stop]])
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Returns ``(dimensions,) float32``; raises ``EmbedderError``."""
        vector: Vectors = self.embed_queries([text])[0]
        return vector

    def close(self) -> None:
        self._senders.shutdown(cancel_futures=True)
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
            if len(vector) != self.info.dimensions:
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
        except httpx2.RequestError as error:
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
        except (ValueError, TypeError, KeyError) as error:
            raise EmbedderError(
                f"endpoint {self.device} gave no proper embeddings: {type(error).__name__}: {error}", Kind.PASSING
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


def _short_name(spec: ModelSpec) -> str:
    """Returns the model's name without the vendor that routers put before it."""
    return spec.model.rpartition("/")[2]


def _dimensions(spec: ModelSpec) -> int | None:
    """Returns the dimensions that the model's name or the spec tells; None when the endpoint has to be asked."""
    own, asked = _KNOWN.get(_short_name(spec)), spec.dimensions
    if asked is None:
        return own
    shortened = own is not None and asked < own and _short_name(spec).startswith(_SHORTENED_ON_REQUEST)
    if asked < 1 or not (own is None or asked == own or shortened):
        raise EmbedderError(
            f"model '{spec.model}' cannot give {asked} dimensions" + (f"; it has {own}" if own else ""), Kind.VECTORIZER
        )
    return asked


def _info(spec: ModelSpec, dimensions: int) -> ModelInfo:
    return ModelInfo(
        dimensions=dimensions,
        max_tokens=_KNOWN_MAX_TOKENS if _short_name(spec) in _KNOWN else None,
        revision=None,
        query_prompt=spec.query_prompt or "",
        document_prompt=spec.document_prompt or "",
    )


def _url(endpoint: str) -> httpx2.URL:
    """Returns where embeddings are asked for; a query in the endpoint, such as an API version, stays."""
    try:
        url = httpx2.URL(endpoint)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    # The text is not repeated in errors: it may hold a password, and is refused for it.
    if url.scheme not in ("http", "https") or not url.host:
        raise EmbedderError("the endpoint is no URL; give one such as https://host/v1", Kind.VECTORIZER)
    if url.userinfo:
        raise EmbedderError(
            f"the endpoint at {url.host} has a user or password in its URL; give the key in PGVEC_ENDPOINT_KEY instead",
            Kind.VECTORIZER,
        )
    return url.copy_with(path=url.path.rstrip("/") + "/embeddings")


def _key(url: httpx2.URL) -> str | None:
    """Returns the key for this endpoint; None where it needs none."""
    try:
        key = settings.secret("endpoint_key", os.environ)[0].strip()
    except SettingsError as error:
        raise EmbedderError(str(error), Kind.VECTORIZER) from error
    if url.host == _OPENAI_HOST:
        if url.scheme == "https":
            key = key or os.environ.get("OPENAI_API_KEY", "").strip()
        if not key:
            raise EmbedderError("OpenAI needs a key; set OPENAI_API_KEY in the worker's environment", Kind.VECTORIZER)
    return key or None


def _is_worth_a_retry(error: BaseException) -> bool:
    """True for what may be over in seconds; a longer wait is the caller's, who has other work."""
    return isinstance(error, EmbedderError) and error.kind is Kind.PASSING and (error.retry_after or 0) <= _LONGEST_WAIT


def _wait(state: tenacity.RetryCallState) -> float:
    """Returns the seconds that the endpoint asked for, else a random time that doubles with each attempt."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, EmbedderError) and error.retry_after is not None:
        return error.retry_after
    return tenacity.wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT)(state)


def _retry_after(headers: httpx2.Headers) -> float | None:
    """Returns the header's seconds; a date counts from the endpoint's own clock."""
    value = headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):
        return None
    return max(0.0, wait.total_seconds())


def _detail(response: httpx2.Response) -> str:
    """Returns in a line what the endpoint says is wrong."""
    try:
        answer = response.json()
    except ValueError:
        answer = response.text
    while isinstance(answer, dict):
        answer = next((answer[name] for name in ("error", "message", "detail") if name in answer), "")
    return " ".join(str(answer).split())[:200]


def _vectors(content: bytes, count: int) -> list[Vectors]:
    """Returns the answer's vectors in the order of the texts, by their index.

    Raises ``ValueError``, ``TypeError`` or ``KeyError`` for anything but one vector for each of ``count`` texts.
    """
    data = json.loads(content)["data"]
    vectors = {int(item["index"]): _vector(item["embedding"]) for item in data}
    if len(data) != count or vectors.keys() != set(range(count)):
        raise ValueError(f"{len(data)} vectors for {count} texts, or not numbered as they are")
    return [vectors[index] for index in range(count)]


def _vector(embedding: object) -> Vectors:
    """Returns one embedding, from base64 of little-endian float32 or from a list; null becomes NaN."""
    if isinstance(embedding, str):
        vector = np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
    else:
        with np.errstate(over="ignore"):
            vector = np.asarray(embedding, np.float64).astype(np.float32)
    if vector.ndim != 1 or not len(vector):
        raise ValueError("an embedding is no list of numbers")
    return vector
