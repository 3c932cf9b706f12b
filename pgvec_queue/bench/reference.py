"""What a worker is compared with: the plain library, and the model's forward pass with nothing around it.

Both run in the bench's own process, on the worker's device, in its dtype, with as many threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgvec_queue.embedders import ModelSpec, model_files, model_loading, openvino
from pgvec_queue.errors import MissingExtraError

_SIZES = {"cpu": (8, 16, 32, 64, 128), "other": (8, 16, 32, 64, 128, 256, 512, 1_024)}
_BUDGETS = {"cpu": (512, 1_024, 2_048, 4_096), "other": (8_192, 16_384, 32_768, 65_536)}
_TRIES = 2


@dataclass(frozen=True, slots=True)
class Batches:
    """Tensors that lie ready on the device, and which share of their tokens is padding."""

    features: Sequence[dict[str, Any]]
    padding: float


class Reference:
    """The model as sentence-transformers loads it."""

    def __init__(self, spec: ModelSpec, device: str, dtype: str, threads: int, runtime: str) -> None:
        """``encode`` is always torch's; the forward pass has the worker's ``runtime``.

        Raises ``MissingExtraError`` without the packages, and what ``model_files.locate`` raises.
        """
        try:
            import sentence_transformers
            import torch
            import transformers
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"bench encode ({error})", "worker") from error
        model_loading.hush(transformers)
        torch.set_num_threads(threads)
        self._torch = torch
        self._on = "cpu" if device == "cpu" else "other"
        path = model_files.locate(spec, weights=True).path

        def model() -> Any:
            loaded = sentence_transformers.SentenceTransformer(
                str(path), device=device, trust_remote_code=spec.trust_remote_code
            )
            return loaded.to(getattr(torch, dtype)).eval()

        self._model = self._bare = model()
        if runtime == "openvino":
            self._bare = model()
            names = {name for name, value in self._tokenized(["names"]).items() if isinstance(value, torch.Tensor)}
            openvino.Swap(torch, self._bare, frozenset(names), threads).settle()

    def best_batch_size(self, texts: Sequence[str]) -> int:
        """Returns the batch size with which ``encode`` is fastest on these texts."""
        return _fastest(_SIZES[self._on], lambda size: self.encode(texts, size))

    def best_batch_tokens(self, texts: Sequence[str]) -> int:
        """Returns the tokens per batch with which the forward pass is fastest on these texts."""
        ready = {budget: self.prepare(texts, budget) for budget in _BUDGETS[self._on]}
        return _fastest(list(ready), lambda budget: self.forward(ready[budget]))

    def encode(self, texts: Sequence[str], batch_size: int) -> float:
        """Has ``SentenceTransformer`` encode the texts as a script would; returns seconds."""
        started = time.perf_counter()
        self._model.encode_document(list(texts), batch_size=batch_size, show_progress_bar=False)
        return time.perf_counter() - started

    def encode_padding(self, texts: Sequence[str], batch_size: int) -> float:
        """Returns the share of padding in ``encode``'s batches, which it sorts by the length of the texts."""
        lengths = self._lengths(texts)
        order = np.argsort([-len(text) for text in texts], kind="stable")
        return _padding([lengths[order[i : i + batch_size]] for i in range(0, len(order), batch_size)])

    def prepare(self, texts: Sequence[str], batch_tokens: int) -> Batches:
        """Tokenizes the texts into length-sorted batches of so many tokens, and puts them on the device."""
        lengths = self._lengths(texts)
        order = np.argsort(-lengths, kind="stable")
        features, sizes = [], []
        start = 0
        while start < len(order):
            batch = order[start : start + max(1, batch_tokens // int(lengths[order[start]]))]
            features.append(self._features([texts[i] for i in batch]))
            sizes.append(lengths[batch])
            start += len(batch)
        return Batches(features, _padding(sizes))

    def forward(self, batches: Batches) -> float:
        """Runs the model over ready tensors and fetches the vectors; returns seconds."""
        torch = self._torch
        started = time.perf_counter()
        with torch.inference_mode():
            done = [self._bare(dict(features))["sentence_embedding"] for features in batches.features]
            torch.cat(done).float().cpu()
        return time.perf_counter() - started

    def _lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Returns each text's tokens, special ones included, as the model reads it."""
        counted: list[NDArray[np.int64]] = []
        for start in range(0, len(texts), 1_024):
            mask = self._tokenized(texts[start : start + 1_024])["attention_mask"]
            counted.append(mask.sum(1).numpy().astype(np.int64))
        return np.concatenate(counted)

    def _features(self, texts: Sequence[str]) -> dict[str, Any]:
        return {
            name: value.to(self._model.device) if isinstance(value, self._torch.Tensor) else value
            for name, value in self._tokenized(texts).items()
        }

    def _tokenized(self, texts: Sequence[str]) -> dict[str, Any]:
        # Its name since sentence-transformers 5.3; the old one warns.
        tokenize = getattr(self._model, "preprocess", None) or self._model.tokenize
        return dict(tokenize(list(texts)))


def _fastest(choices: Sequence[int], run: Callable[[int], float]) -> int:
    """Returns the choice with the shortest run, of some in turns."""
    shortest = dict.fromkeys(choices, float("inf"))
    for _ in range(_TRIES):
        for choice in choices:
            shortest[choice] = min(shortest[choice], run(choice))
    return min(shortest, key=shortest.__getitem__)


def _padding(batches: Sequence[NDArray[np.int64]]) -> float:
    """Returns the share of padding where each batch is as long as its longest text."""
    computed = sum(len(lengths) * int(lengths.max()) for lengths in batches)
    return 1 - sum(int(lengths.sum()) for lengths in batches) / computed
