"""Runs sentence-transformers models on this machine's own accelerator.

Texts are sorted by length and cut into batches by a token budget, padding included, so that little padding is computed
and short texts come many at a time. When the device runs out of memory, the budget is halved for as long as the model
stays loaded, and the same texts are tried again; a text that does not fit alone is that row's error. An error of the
device itself, such as a failed CUDA kernel, is passed on as it is: the process cannot use the device any more.

Vectors are what the model makes of them: with its prompts, at its own length, normalized where it normalizes. A model
that normalizes and is truncated is normalized again afterwards, since the shorter vectors would have any length.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pgvec_queue.embedders import DeviceOptions, ModelInfo, ModelSpec, Vectors, model_files
from pgvec_queue.errors import EmbedderError, Kind, MissingExtraError, SettingsError
from pgvec_queue.tokenizers import Tokenizer

logger = logging.getLogger(__name__)

# Tokens per batch, padding included. On a CPU 512 to 2,048 are alike with MiniLM, and 4,096 is 15 % slower.
_BATCH_TOKENS = {"cpu": 1024, "cuda": 32_768, "mps": 8192}
_DTYPES = ("float32", "float16", "bfloat16")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class SentenceTransformersEmbedder:
    """A loaded model on one device; one thread embeds, while another may use the tokenizer."""

    def __init__(self, spec: ModelSpec, options: DeviceOptions) -> None:
        """Loads the model.

        Raises ``MissingExtraError`` when torch or sentence-transformers is not installed, ``SettingsError`` when the
        device is not on this machine, and ``EmbedderError`` when the model cannot be had, must not be loaded, or does
        not fit the spec (kind ``VECTORIZER``), or when the hub or the device's memory fails just now (``PASSING``).
        """
        try:
            import torch
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"the sentence-transformers embedder ({error})", "worker") from error
        self._torch = torch
        self.device = _device(torch, options.device)
        dtype = _dtype(self.device, options.dtype)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self._budget = options.batch_tokens or _BATCH_TOKENS[self.device.partition(":")[0]]
        files = model_files.locate(spec, weights=True)
        habits = model_files.read_habits(spec, files.path)
        self._model = _load(torch, spec, str(files.path), self.device, dtype)
        self.dtype = str(next(self._model.parameters()).dtype).removeprefix("torch.")
        self._model.prompts.update(query=habits.query_prompt, document=habits.document_prompt)
        self._model.default_prompt_name = None
        self._model.truncate_dim = None
        self._renormalize = False
        # A first run tells the dimensions whatever the model consists of, and warms the device up.
        own = int(self._encode(["dimensions"]).shape[1])
        dimensions = model_files.fit_dimensions(spec, own, habits.truncation)
        if dimensions < own:
            self._model.truncate_dim = dimensions
            self._renormalize = type(list(self._model)[-1]).__name__ == "Normalize"
        self.tokenizer: Tokenizer = _tokenizer(spec, self._model)
        self.info = ModelInfo(
            dimensions=dimensions,
            max_tokens=_limit(self._model.max_seq_length),
            revision=files.revision,
            query_prompt=habits.query_prompt,
            document_prompt=habits.document_prompt,
        )

    @property
    def batch_tokens(self) -> int:
        """Tokens per batch, padding included; less than at first once the device has run out of memory."""
        return self._budget

    @property
    def memory_bytes(self) -> int:
        held = [*self._model.parameters(), *self._model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def embed_documents(self, texts: Sequence[str], tokens: Sequence[int]) -> Vectors:
        """Returns ``(n, dimensions) float32`` in the order of ``texts``.

        Raises ``EmbedderError`` (kind ``ROW``) when the model fails on these texts, or on one of them alone for want
        of memory.
        """
        vectors = np.empty((len(texts), self.info.dimensions), np.float32)
        # Longest first: the batch that needs the most memory comes before any work is done.
        order = np.argsort(np.asarray(tokens, np.int64), kind="stable")[::-1]
        done: list[Any] = []
        start = 0
        while start < len(order):
            longest = max(1, int(tokens[order[start]]))
            batch = [texts[index] for index in order[start : start + max(1, self._budget // longest)]]
            part = self._attempt(batch, longest)
            if part is not None:
                done.append(part)
                start += len(batch)
        if done:
            vectors[order] = self._torch.cat(done).float().cpu().numpy()
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Returns ``(dimensions,) float32``; raises as ``embed_documents`` does."""
        vector: Vectors = self._attempt([text], self.tokenizer.count([text])[0], query=True)[0].float().cpu().numpy()
        return vector

    def close(self) -> None:
        """Gives the model's memory back to the device."""
        self._model = None
        self._release()

    def _attempt(self, batch: list[str], longest: int, *, query: bool = False) -> Any:
        """Returns the batch's vectors on the device; None when it must be cut smaller, which has then been arranged."""
        try:
            return self._encode(batch, query=query)
        except Exception as error:
            if _is_device_failure(self._torch, error):
                raise
            reason = _first_line(error)
            if not _is_out_of_memory(self._torch, error):
                raise EmbedderError(f"the model failed on {len(batch)} texts: {reason}", Kind.ROW) from error
        # Only now: within the handler the traceback would still hold the batch's tensors.
        self._release()
        if len(batch) == 1:
            raise EmbedderError(
                f"a text of {longest} tokens alone does not fit the memory of {self.device}: {reason}", Kind.ROW
            )
        self._budget = max(1, len(batch) * longest // 2)
        logger.warning(
            "%s is out of memory at %d tokens a batch; going on with %d",
            self.device,
            len(batch) * longest,
            self._budget,
        )
        return None

    def _encode(self, texts: list[str], *, query: bool = False) -> Any:
        """Returns ``(n, dimensions)`` as a tensor on the device, so that the next batch is prepared meanwhile."""
        encode = self._model.encode_query if query else self._model.encode_document
        return encode(
            texts,
            batch_size=len(texts),
            show_progress_bar=False,
            convert_to_tensor=True,
            normalize_embeddings=self._renormalize,
        )

    def _release(self) -> None:
        if self.device.startswith("cuda"):
            self._torch.cuda.empty_cache()
        elif self.device == "mps":
            self._torch.mps.empty_cache()


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
