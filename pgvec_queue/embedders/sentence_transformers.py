"""Runs sentence-transformers models on this machine's own accelerator.

A model is given the token ids that the chunker has found already, in batches cut by tokens from texts sorted by
length; one whose inputs are not made of ids alone is given texts. When the device runs out of memory, the batches'
budget is halved and remembered, and the same texts are tried again; a text that does not fit alone is that row's error.
An error of the device itself, such as a failed CUDA kernel, is passed on as it is: the process cannot use the device
any more.

Vectors are what the model makes of them: with its prompts, at its own length, normalized where it normalizes. A model
that normalizes and is truncated is normalized again afterwards, since the shorter vectors would have any length.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pgvec_queue import process
from pgvec_queue.embedders import DeviceOptions, ModelInfo, ModelSpec, Vectors, model_files, model_inputs, tuning
from pgvec_queue.embedders.batching import Batch, first_batch, longest_first
from pgvec_queue.embedders.devices import Device, Fetch, open_device
from pgvec_queue.errors import EmbedderError, Kind, MissingExtraError, SettingsError
from pgvec_queue.tokenizers import Ids, Tokenizer

logger = logging.getLogger(__name__)

WINDOW_BATCHES = 16
"""Batches' worth of texts that are sorted by length together."""
_DTYPES = ("float32", "float16", "bfloat16")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_USUAL_TOKENS = 96
"""Length of the texts on which a device is measured."""


class SentenceTransformersEmbedder:
    """A loaded model on one device; one thread embeds, while another may use the tokenizer."""

    def __init__(self, spec: ModelSpec, options: DeviceOptions, memory: tuning.Memory | None = None) -> None:
        """Loads the model, and measures what suits the device where ``memory`` does not know it yet.

        Raises ``MissingExtraError`` when torch or sentence-transformers is not installed, ``SettingsError`` when the
        device is not on this machine, and ``EmbedderError`` when the model cannot be had, must not be loaded, or does
        not fit the spec (kind ``VECTORIZER``), or when the hub or the device's memory fails just now (``PASSING``).
        """
        try:
            import torch
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"the sentence-transformers embedder ({error})", "worker") from error
        self._torch = torch
        self._memory = memory or tuning.Memory()
        self.device = _device(torch, options.device)
        dtype = _dtype(self.device, options.dtype)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        files = model_files.locate(spec, weights=True)
        habits = model_files.read_habits(spec, files.path)
        self._model = _load(torch, spec, str(files.path), self.device, dtype)
        self._model.eval()
        self._on: Device = open_device(torch, self.device)
        self.dtype = str(next(self._model.parameters()).dtype).removeprefix("torch.")
        self._model.prompts.update(query=habits.query_prompt, document=habits.document_prompt)
        self._model.default_prompt_name = None
        self._model.truncate_dim = None
        self._renormalize = False
        # A first run tells the dimensions whatever the model consists of, and warms the device up.
        own = int(self._model.encode_query(["dimensions"], convert_to_tensor=True, show_progress_bar=False).shape[1])
        self._dimensions = model_files.fit_dimensions(spec, own, habits.truncation)
        if self._dimensions < own:
            self._model.truncate_dim = self._dimensions
            self._renormalize = type(list(self._model)[-1]).__name__ == "Normalize"
        self.tokenizer: Tokenizer = _tokenizer(spec, self._model)
        self.info = ModelInfo(
            dimensions=self._dimensions,
            max_tokens=_limit(self._model.max_seq_length),
            revision=files.revision,
            query_prompt=habits.query_prompt,
            document_prompt=habits.document_prompt,
        )
        self._inputs = model_inputs.learn(self._model, self.tokenizer, self.info.document_prompt)
        self._budget = options.batch_tokens or self._on.batch_tokens
        self._key = f"{spec.model} {self.dtype} on {self._on.hardware}:"
        self._tune(options)

    @property
    def batch_tokens(self) -> int:
        """Tokens per batch, padding included; less than at first once the device has run out of memory."""
        return self._budget

    @property
    def window_tokens(self) -> int:
        return WINDOW_BATCHES * self._budget

    @property
    def worn_out(self) -> bool:
        return self._on.worn_out

    @property
    def memory_bytes(self) -> int:
        held = [*self._model.parameters(), *self._model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def embed_documents(
        self, texts: Sequence[str], tokens: Sequence[int], ids: Sequence[Ids | None] | None = None
    ) -> Vectors:
        """Returns ``(n, dimensions) float32`` in the order of ``texts``.

        Raises ``EmbedderError`` (kind ``ROW``) when the model fails on these texts, or on one of them alone for want
        of memory.
        """
        vectors = np.empty((len(texts), self._dimensions), np.float32)
        order = longest_first(tokens)
        late: tuple[Batch, Fetch] | None = None
        while len(order):
            batch = first_batch(order, tokens, self._budget, self._on.shapes)
            result = self._attempt(batch, texts, ids)
            if result is None:
                continue
            # The device is at the next batch already while this one's result comes back.
            if late is not None:
                vectors[late[0].indexes] = late[1]()[: len(late[0].indexes)]
            late = (batch, self._on.fetch(result))
            order = order[len(batch.indexes) :]
            self._on.tidy()
        if late is not None:
            vectors[late[0].indexes] = late[1]()[: len(late[0].indexes)]
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Returns ``(dimensions,) float32``; raises as ``embed_documents`` does."""
        batch = Batch(np.zeros(1, np.intp), 1, self.tokenizer.count([text])[0])
        vector: Vectors = self._attempt(batch, [text], None, query=True)[0].float().cpu().numpy()
        return vector

    def close(self) -> None:
        """Gives the model's memory back to the device."""
        self._model = None
        self._on.release()

    def _attempt(
        self, batch: Batch, texts: Sequence[str], ids: Sequence[Ids | None] | None, *, query: bool = False
    ) -> Any:
        """Returns the batch's vectors on the device; None when it must be cut smaller, which has then been arranged."""
        try:
            if query:
                return self._encode_query(texts[0])
            return self._run(self._features(batch, texts, ids))
        except Exception as error:
            if _is_device_failure(self._torch, error):
                raise
            reason = _first_line(error)
            if not _is_out_of_memory(self._torch, error):
                raise EmbedderError(f"the model failed on {len(batch.indexes)} texts: {reason}", Kind.ROW) from error
        # Only now: within the handler the traceback would still hold the batch's tensors.
        self._on.release()
        if batch.rows == 1:
            raise EmbedderError(
                f"a text of {batch.length} tokens alone does not fit the memory of {self.device}: {reason}", Kind.ROW
            )
        self._budget = max(1, batch.tokens // 2)
        self._memory.put(f"{self._key} batch tokens", self._budget)
        logger.warning(
            "%s is out of memory at %d tokens a batch; going on with %d",
            self.device,
            batch.tokens,
            self._budget,
        )
        return None

    def _features(self, batch: Batch, texts: Sequence[str], ids: Sequence[Ids | None] | None) -> model_inputs.Features:
        own = [one for index in batch.indexes if ids is not None and (one := ids[index]) is not None]
        limit = self.info.max_tokens or batch.length
        if self._inputs is None or len(own) < len(batch.indexes) or max(map(len, own)) > limit:
            features: model_inputs.Features = self._model.preprocess(
                [texts[index] for index in batch.indexes], prompt=self.info.document_prompt or None, task="document"
            )
            return {name: value.to(self.device) if hasattr(value, "to") else value for name, value in features.items()}
        arrays = self._inputs.features(own, batch.rows, min(batch.length, limit))
        return {
            name: self._on.upload(value) if isinstance(value, np.ndarray) else value for name, value in arrays.items()
        }

    def _run(self, features: model_inputs.Features) -> Any:
        """Returns ``(rows, dimensions)`` as a tensor on the device, which may still be at work on it."""
        with self._torch.inference_mode():
            vectors = self._model(features, task="document")["sentence_embedding"][:, : self._dimensions]
            return self._torch.nn.functional.normalize(vectors, dim=1) if self._renormalize else vectors

    def _encode_query(self, text: str) -> Any:
        return self._model.encode_query(
            [text], show_progress_bar=False, convert_to_tensor=True, normalize_embeddings=self._renormalize
        )

    def _tune(self, options: DeviceOptions) -> None:
        """Chooses threads and tokens per batch by measurement, or as remembered; what was asked for stays."""
        if self._inputs is None:
            return
        if self.device == "cpu" and options.threads is None:
            present = self._torch.get_num_threads()
            most = process.cores()
            self._torch.set_num_threads(
                self._remembered("threads", {present, most, max(1, most // 2)}, present, self._rate_with_threads)
            )
        if options.batch_tokens is None:
            self._budget = self._remembered("batch tokens", {*self._on.candidates}, self._budget, self._rate)

    def _remembered(self, what: str, candidates: set[int], present: int, measure: tuning.Measure) -> int:
        name = f"{self._key} {what}"
        known = self._memory.get(name)
        if known is None:
            known = tuning.choose([*candidates], present, measure)
            logger.info("%s: %d %s, as measured", self.device, known, what)
            self._memory.put(name, known)
        return known

    def _rate_with_threads(self, threads: int) -> float:
        self._torch.set_num_threads(threads)
        return self._rate(self._budget)

    def _rate(self, batch_tokens: int) -> float:
        """Returns the tokens per second of one batch of so many tokens; 0 where it does not fit the memory."""
        length = min(_USUAL_TOKENS, self.info.max_tokens or _USUAL_TOKENS)
        one = np.resize(self.tokenizer.inputs(["the quick brown fox "])[0], length)  # type: ignore[index]
        rows = max(1, batch_tokens // length)
        batch = Batch(np.arange(rows), rows, length)
        began = time.perf_counter()
        try:
            self._on.fetch(self._run(self._features(batch, [""] * rows, [one] * rows)))()
        except Exception as error:
            if not _is_out_of_memory(self._torch, error):
                raise
            return 0.0
        finally:
            self._on.tidy()
        return rows * length / (time.perf_counter() - began)


def find_device(asked: str) -> str:
    """Returns the device that ``asked`` means here; raises as the embedder does when it is not there."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the sentence-transformers embedder ({error})", "worker") from error
    return _device(torch, asked)


def _device(torch: Any, asked: str) -> str:
    """Returns the torch device for ``--device``; one that is asked for and not there is an error, never replaced."""
    cuda_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if asked == "auto":
        asked = "cuda" if cuda_devices else "mps" if has_mps else "cpu"
    kind, _, number = asked.partition(":")
    if asked == "cpu" or (asked == "mps" and has_mps):
        return asked
    if kind == "cuda" and (asked == "cuda" or number.isdecimal()):
        if int(number or 0) < cuda_devices:
            return f"cuda:{int(number or 0)}"
        why = "this torch is built without CUDA" if torch.version.cuda is None else f"torch sees {cuda_devices} of them"
        raise SettingsError(f"device '{asked}' is not on this machine ({why}); choose another --device, or auto")
    if asked == "mps":
        raise SettingsError("device 'mps' is not on this machine; choose another --device, or auto")
    raise SettingsError(f"there is no device '{asked}'; give --device auto, cpu, mps, cuda or cuda:N")


def _dtype(device: str, asked: str) -> str:
    if asked == "auto":
        return "float32" if device == "cpu" else "float16"
    if asked not in _DTYPES:
        raise SettingsError(f"there is no dtype '{asked}'; give --dtype auto, {', '.join(_DTYPES)}")
    return asked


def _load(torch: Any, spec: ModelSpec, path: str, device: str, dtype: str) -> Any:
    """Returns the ``SentenceTransformer`` below ``path``, ready on the device."""
    try:
        import sentence_transformers
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the sentence-transformers embedder ({error})", "worker") from error
    _hush(transformers)
    # The old name still works in new versions, but not the other way round.
    modern = int(transformers.__version__.partition(".")[0]) >= 5
    model_kwargs: dict[str, object] = {"dtype" if modern else "torch_dtype": getattr(torch, dtype)}
    if not spec.trust_remote_code:
        model_kwargs["use_safetensors"] = True
    try:
        model = sentence_transformers.SentenceTransformer(
            path,
            device=device,
            trust_remote_code=spec.trust_remote_code,
            # All files are there; only a trusted model may name code that lies in another repository.
            local_files_only=not spec.trust_remote_code,
            model_kwargs=model_kwargs,
        )
    except Exception as error:
        if _is_out_of_memory(torch, error):
            raise EmbedderError(
                f"model '{spec.model}' does not fit the memory of {device} now", Kind.PASSING
            ) from error
        raise EmbedderError(f"model '{spec.model}' {_why_not_loaded(error)}", Kind.VECTORIZER) from error
    if next(model.parameters()).dtype != getattr(torch, dtype):
        # Not every kind of module heeds the keyword: a table of static embeddings does not.
        model.to(getattr(torch, dtype))
    return model


def _why_not_loaded(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return model_files.OWN_CODE
    if isinstance(error, ImportError):
        return f"needs a Python package that is not installed: {_first_line(error)}"
    return f"cannot be loaded ({_first_line(error)}); check that it is a sentence-transformers model"


def _hush(transformers: Any) -> None:
    """Keeps the libraries' bars and notices off stderr, unless somebody is looking for a fault."""
    if not logger.isEnabledFor(logging.DEBUG):
        transformers.utils.logging.disable_progress_bar()
        for name in ("sentence_transformers", "transformers", "huggingface_hub"):
            logging.getLogger(name).setLevel(logging.ERROR)


def _tokenizer(spec: ModelSpec, model: Any) -> Tokenizer:
    """Returns a private copy of the model's tokenizer: every call of the model changes its own."""
    import tokenizers

    from pgvec_queue.tokenizers import HuggingFaceTokenizer

    own = getattr(model, "tokenizer", None)
    backend = own if isinstance(own, tokenizers.Tokenizer) else getattr(own, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise EmbedderError(
            f"model '{spec.model}' has no fast tokenizer, which is needed to find where chunks may be cut; "
            "choose a model that has a tokenizer.json",
            Kind.VECTORIZER,
        )
    return HuggingFaceTokenizer(backend)


def _limit(longest: float | None) -> int | None:
    return None if longest is None or not math.isfinite(longest) or longest >= model_files.NO_LIMIT else int(longest)


def _is_out_of_memory(torch: Any, error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    )


def _is_device_failure(torch: Any, error: Exception) -> bool:
    """True for errors after which the process cannot use the device again; only newer versions of torch tell them."""
    failure = getattr(torch, "AcceleratorError", ())
    return isinstance(error, failure) and not _is_out_of_memory(torch, error)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
