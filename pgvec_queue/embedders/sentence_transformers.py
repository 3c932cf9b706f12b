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

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pgvec_queue import process
from pgvec_queue.embedders import (
    DeviceOptions,
    ModelInfo,
    ModelSpec,
    Vectors,
    model_files,
    model_inputs,
    model_loading,
    openvino,
    tuning,
)
from pgvec_queue.embedders.batching import AnyShape, Batch, first_batch, longest_first
from pgvec_queue.embedders.devices import Device, Fetch, open_device
from pgvec_queue.errors import EmbedderError, Kind, MissingExtraError, SettingsError
from pgvec_queue.log import get_logger
from pgvec_queue.tokenizers import Ids, Tokenizer

log = get_logger("pgvec.embedders")

WINDOW_BATCHES = 32
"""Batches' worth of texts that are sorted by length together."""
_USUAL_TOKENS = 96
"""Length of the texts on which a device is measured."""
_LONG_TOKENS = 512
"""Of the longest text by which two runtimes are compared."""
SAME = 0.999
"""Cosine that the vectors of two runtimes must have at least."""
_PROBES = ("a", "a few more words, and 3 signs!")
_TORCH, _OPENVINO = 1, 2


class SentenceTransformersEmbedder:
    """A loaded model on one device; one thread embeds, while another may use the tokenizer."""

    def __init__(self, spec: ModelSpec, options: DeviceOptions, memory: tuning.Memory | None = None) -> None:
        """Loads the model, and measures what suits the device where ``memory`` does not know it yet.

        Raises ``MissingExtraError`` when torch, sentence-transformers or the runtime asked for is not installed,
        ``SettingsError`` when the device is not on this machine or the runtime cannot run the model, and
        ``EmbedderError`` when the model cannot be had, must not be loaded, or does not fit the spec (kind
        ``VECTORIZER``), or when the hub or the device's memory fails just now (``PASSING``).
        """
        try:
            import torch
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"the sentence-transformers embedder ({error})", "worker") from error
        self._torch = torch
        self._memory = memory or tuning.Memory()
        self.device = model_loading.torch_device(torch, options.device)
        dtype = model_loading.torch_dtype(self.device, options.dtype)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        files = model_files.locate(spec, weights=True)
        habits = model_files.read_habits(spec, files.path)
        self._model = model_loading.load(torch, spec, str(files.path), self.device, dtype)
        self._model.eval()
        self._on: Device = open_device(torch, self.device)
        self.dtype = str(next(self._model.parameters()).dtype).removeprefix("torch.")
        held = [*self._model.parameters(), *self._model.buffers()]
        self.memory_bytes = sum(tensor.numel() * tensor.element_size() for tensor in held)
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
        self.tokenizer: Tokenizer = model_loading.own_tokenizer(spec, self._model)
        self.info = ModelInfo(
            dimensions=self._dimensions,
            max_tokens=model_loading.longest_input(self._model.max_seq_length),
            revision=files.revision,
            query_prompt=habits.query_prompt,
            document_prompt=habits.document_prompt,
        )
        self._inputs = model_inputs.learn(self._model, self.tokenizer, self.info.document_prompt)
        self._budget = options.batch_tokens or self._on.batch_tokens
        self._real_tokens = self._computed_tokens = 0
        self.last_batches: list[tuple[int, int]] = []
        """Of the last call: tokens of each batch, with and without padding."""
        self._key = f"{spec.model} {self.dtype} on {self._on.hardware}: "
        self.runtime = "torch"
        self._choose_threads(options)
        self._choose_runtime(spec, options)
        self._choose_budget(options)

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
    def device_bytes(self) -> int | None:
        """Memory of the device that this process holds; None on a CPU."""
        return self._on.held_bytes

    @property
    def padding(self) -> float | None:
        """Share of the tokens computed so far that were padding."""
        return 1 - self._real_tokens / self._computed_tokens if self._computed_tokens else None

    def embed_documents(
        self, texts: Sequence[str], tokens: Sequence[int], ids: Sequence[Ids | None] | None = None
    ) -> Vectors:
        """Returns ``(n, dimensions) float32`` in the order of ``texts``.

        Raises ``EmbedderError`` (kind ``ROW``) when the model fails on these texts, or on one of them alone for want
        of memory.
        """
        vectors = np.empty((len(texts), self._dimensions), np.float32)
        order = longest_first(tokens)
        self.last_batches = []
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
            real = sum(tokens[index] for index in batch.indexes)
            self.last_batches.append((batch.tokens, real))
            self._real_tokens += real
            self._computed_tokens += batch.tokens
            self._on.tidy()
        if late is not None:
            vectors[late[0].indexes] = late[1]()[: len(late[0].indexes)]
        return vectors

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Returns ``(n, dimensions) float32`` in the order of ``texts``; raises as ``embed_documents`` does."""
        vectors = np.empty((len(texts), self._dimensions), np.float32)
        tokens = self.tokenizer.count(texts)
        order = longest_first(tokens)
        while len(order):
            batch = first_batch(order, tokens, self._budget, AnyShape())
            result = self._attempt(batch, texts, None, query=True)
            if result is None:
                continue
            vectors[batch.indexes] = result.float().cpu().numpy()
            order = order[len(batch.indexes) :]
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Returns ``(dimensions,) float32``; raises as ``embed_documents`` does."""
        vector: Vectors = self.embed_queries([text])[0]
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
                return self._encode_queries([texts[index] for index in batch.indexes])
            return self._run(self._features(batch, texts, ids))
        except Exception as error:
            if model_loading.is_device_failure(self._torch, error):
                raise
            reason = model_loading.first_line(error)
            if not model_loading.is_out_of_memory(self._torch, error):
                raise EmbedderError(f"the model failed on {len(batch.indexes)} texts: {reason}", Kind.ROW) from error
        # Only now: within the handler the traceback would still hold the batch's tensors.
        self._on.release()
        if batch.rows == 1:
            raise EmbedderError(
                f"a text of {batch.length} tokens alone does not fit the memory of {self.device}: {reason}", Kind.ROW
            )
        self._budget = max(1, batch.tokens // 2)
        self._memory.put(self._key + self._budget_of, self._budget)
        log.warning(
            "device is out of memory; going on with smaller batches",
            device=self.device,
            tokens=batch.tokens,
            budget=self._budget,
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

    def _encode_queries(self, texts: list[str]) -> Any:
        return self._model.encode_query(
            texts,
            batch_size=len(texts),
            show_progress_bar=False,
            convert_to_tensor=True,
            normalize_embeddings=self._renormalize,
        )

    def _choose_threads(self, options: DeviceOptions) -> None:
        """Takes as many threads as are fastest, measured or remembered; what was asked for stays."""
        if self.device != "cpu" or options.threads is not None or self._inputs is None:
            return
        present = self._torch.get_num_threads()
        most = process.cores()
        self._torch.set_num_threads(
            self._remembered("threads", {present, most, max(1, most // 2)}, present, self._rate_with_threads)
        )

    def _choose_runtime(self, spec: ModelSpec, options: DeviceOptions) -> None:
        """Puts OpenVINO in torch's place where it is asked for, or where it is there and faster."""
        if options.runtime == "torch":
            return
        asked = options.runtime == "openvino"
        fits = self.device == "cpu" and self.dtype == "float32"
        if not asked and not (fits and openvino.is_installed()):
            return
        if not fits:
            raise SettingsError(
                f"OpenVINO runs models in float32 on the CPU, not in {self.dtype} on {self.device}; "
                "leave --runtime out, or give --device cpu --dtype float32"
            )
        name = self._key + "runtime"
        if not asked and self._memory.get(name) == _TORCH:
            return
        try:
            swap = self._swap()
        except openvino.UnsupportedError as error:
            if asked:
                raise SettingsError(f"OpenVINO cannot run {spec.model} ({error}); leave --runtime out") from error
            log.info("model stays with torch, since OpenVINO cannot run it", model=spec.model, error=str(error))
            self._memory.put(name, _TORCH)
            return

        def rate(runtime: int) -> float:
            swap.use() if runtime == _OPENVINO else swap.restore()
            return self._rate(self._budget)

        chosen = _OPENVINO if asked else self._remembered("runtime", {_TORCH, _OPENVINO}, _TORCH, rate)
        if chosen == _OPENVINO:
            swap.settle()
            self.runtime = "openvino"
        else:
            swap.restore()

    def _swap(self) -> openvino.Swap:
        """Returns the transformer as OpenVINO has it, once it is known to make the same vectors.

        Raises ``openvino.UnsupportedError`` where it does not.
        """
        ids = self.tokenizer.inputs(_PROBES)
        if ids is None or not isinstance(self._inputs, model_inputs.PaddedInputs):
            raise openvino.UnsupportedError("its inputs are not made of padded token ids alone")
        longest = min(self.info.max_tokens or _LONG_TOKENS, _LONG_TOKENS)
        ids = [one[:longest] for one in (*ids, np.resize(ids[-1], _USUAL_TOKENS), np.resize(ids[-1], longest))]
        texts = [""] * len(ids)
        batch = Batch(np.arange(len(ids)), len(ids), max(map(len, ids)))
        expected = self._run(self._features(batch, texts, ids))
        swap = openvino.Swap(self._torch, self._model, self._inputs.names, self._torch.get_num_threads())
        found = self._run(self._features(batch, texts, ids))
        least = float(self._torch.nn.functional.cosine_similarity(expected, found).min())
        if not least >= SAME:
            swap.restore()
            raise openvino.UnsupportedError(f"its vectors have a cosine of {least:.4f} with torch's")
        return swap

    def _choose_budget(self, options: DeviceOptions) -> None:
        """Takes batches of the size that is fastest, measured or remembered; what was asked for stays."""
        if options.batch_tokens is None and self._inputs is not None:
            self._budget = self._remembered(self._budget_of, {*self._on.candidates}, self._budget, self._rate)

    @property
    def _budget_of(self) -> str:
        return "batch tokens" if self.runtime == "torch" else f"batch tokens by {self.runtime}"

    def _remembered(self, what: str, candidates: set[int], present: int, measure: tuning.Measure) -> int:
        name = self._key + what
        known = self._memory.get(name)
        if known is None:
            known = tuning.choose([*candidates], present, measure)
            log.debug("setting is measured", device=self.device, setting=what, value=known)
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
            if not model_loading.is_out_of_memory(self._torch, error):
                raise
            return 0.0
        finally:
            self._on.tidy()
        return rows * length / (time.perf_counter() - began)
