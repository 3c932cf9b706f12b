"""Puts token ids into the tensors that a model's own preprocessing would have made of the texts.

What that makes is learnt from a few words once the model is loaded: which tensors there are, the padding's id and side,
what else goes with them. Where ours would differ in anything, ``learn`` says so, and the model is given texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgvec_queue.log import get_logger
from pgvec_queue.tokenizers import Ids, Tokenizer

log = get_logger("pgvec.embedders")

_PROBES = ("a", "a few more words, and 3 signs!", "words")
_KNOWN = {"input_ids", "attention_mask", "token_type_ids"}

Features = dict[str, Any]
"""What a model is called with: arrays, and what is no tensor as it is."""


class Inputs(Protocol):
    """Makes a batch's features."""

    def features(self, ids: Sequence[Ids], rows: int, length: int) -> Features:
        """Returns arrays of ``(rows, length)`` that hold ``ids``; rows beyond them are filled up."""


@dataclass(frozen=True, slots=True)
class PaddedInputs:
    """One row per text, padded."""

    names: frozenset[str]
    padding: int
    on_the_left: bool
    constant: Features

    def features(self, ids: Sequence[Ids], rows: int, length: int) -> Features:
        tokens = np.full((rows, length), self.padding, np.int64)
        mask = np.zeros((rows, length), np.int64)
        for row, own in enumerate(ids):
            place = slice(length - len(own), length) if self.on_the_left else slice(0, len(own))
            tokens[row, place] = own
            mask[row, place] = 1
        # A row without any token would be a division by zero.
        mask[len(ids) :, -1 if self.on_the_left else 0] = 1
        arrays: dict[str, NDArray[np.int64]] = {"input_ids": tokens, "attention_mask": mask}
        if "token_type_ids" in self.names:
            arrays["token_type_ids"] = np.zeros_like(tokens)
        return {**self.constant, **{name: arrays[name] for name in self.names}}


@dataclass(frozen=True, slots=True)
class PackedInputs:
    """All texts in one row without padding, for attention that knows where each begins; any shape is ignored."""

    collate: Any
    """transformers' own ``DataCollatorWithFlattening``."""
    first_position: int
    constant: Features

    def features(self, ids: Sequence[Ids], rows: int, length: int) -> Features:  # noqa: ARG002
        packed = dict(self.collate([{"input_ids": own.tolist()} for own in ids]))
        packed.pop("labels", None)
        if self.first_position:
            packed["position_ids"] = packed["position_ids"] + self.first_position
        arrays = {name: value.numpy() if hasattr(value, "numpy") else value for name, value in packed.items()}
        return {**self.constant, **arrays}


def learn(model: Any, tokenizer: Tokenizer, prompt: str) -> Inputs | None:
    """Returns how to make ``model``'s features of ids; None where it has to be given texts.

    ``model`` is a ``SentenceTransformer``, ``prompt`` what it puts before a document.
    """
    ids = tokenizer.inputs([prompt + text for text in _PROBES])
    if ids is None:
        return None
    wanted = dict(model.preprocess(list(_PROBES), prompt=prompt or None, task="document"))
    inputs = _guess(model, wanted)
    rows, length = len(_PROBES), max(map(len, ids))
    if inputs is None or not _equal(inputs.features(ids, rows, length), wanted):
        log.debug("model is given texts, since its inputs are not made of token ids alone")
        return None
    return inputs


def _guess(model: Any, wanted: Features) -> Inputs | None:
    constant = {name: value for name, value in wanted.items() if not hasattr(value, "shape")}
    names = wanted.keys() - constant.keys()
    if "attention_mask" in names and names <= _KNOWN:
        mask, tokens = wanted["attention_mask"].numpy(), wanted["input_ids"].numpy()
        unused = tokens[mask == 0]
        return PaddedInputs(frozenset(names), int(unused[0]), not mask[0, 0], constant) if len(unused) else None
    collate = getattr(model[0], "data_collator", None)
    if collate is None:
        return None
    # The collator itself says what is no tensor, such as the longest length.
    constant = {name: constant[name] for name in constant if name in ("modality", "prompt_length")}
    return PackedInputs(collate, int(getattr(model[0], "_flatten_position_offset", 0)), constant)


def _equal(ours: Features, wanted: Features) -> bool:
    return ours.keys() == wanted.keys() and all(
        np.array_equal(np.asarray(ours[name]), np.asarray(wanted[name])) for name in wanted
    )
