"""Cuts texts, longest first, into batches by a budget of tokens, padding included.

Guarantees: every text is in one batch; a batch has at most the budget's tokens once it is padded, or one text. Where a
batch may have any shape, it ends where more padding would cost more than another batch does, so that padding is a few
percent. A device for which each new shape is dear gets a handful of fixed ones instead, and pays for it with padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Batch:
    """Some texts, and the shape ``(rows, length)`` to which they are padded."""

    indexes: NDArray[np.intp]
    """Which texts, ``(n,)`` with ``n <= rows``."""
    rows: int
    length: int
    """Tokens per row."""

    @property
    def tokens(self) -> int:
        """What the device computes, padding included."""
        return self.rows * self.length


class Shapes(Protocol):
    """Which shapes a device is given."""

    def length(self, longest: int) -> int:
        """Returns the tokens to which rows are padded whose longest has ``longest``."""

    def texts(self, lengths: NDArray[np.int64]) -> int:
        """Returns how many of the texts that fit a batch, longest first, are to be in it."""

    def rows(self, texts: int, most: int) -> int:
        """Returns the rows for ``texts`` texts where ``most`` fit the budget; at least ``texts``."""


@dataclass(frozen=True, slots=True)
class AnyShape:
    """Rows as long as the longest text, rounded up to a multiple, and as many as there are."""

    multiple: int = 1
    overhead: int = 32
    """What a batch costs besides its tokens, in tokens."""

    def texts(self, lengths: NDArray[np.int64]) -> int:
        count = np.arange(1, len(lengths) + 1)
        cost = (count * self.length(int(lengths[0])) + self.overhead) / np.cumsum(lengths)
        # Of equals the largest.
        return len(lengths) - int(np.argmin(cost[::-1]))

    def length(self, longest: int) -> int:
        return -(-longest // self.multiple) * self.multiple

    def rows(self, texts: int, most: int) -> int:  # noqa: ARG002
        return texts


@dataclass(frozen=True, slots=True)
class FixedShapes:
    """A handful of lengths, and for each always the same number of rows: what is missing is filled with empty rows."""

    lengths: tuple[int, ...] = (32, 64, 128, 192, 256, 384, 512)

    def texts(self, lengths: NDArray[np.int64]) -> int:
        return len(lengths)

    def length(self, longest: int) -> int:
        for length in self.lengths:
            if longest <= length:
                return length
        return -(-longest // self.lengths[-1]) * self.lengths[-1]

    def rows(self, texts: int, most: int) -> int:
        # A short rest is not blown up to a whole batch: a quarter, a half, or all.
        return next((part for part in (-(-most // 4), -(-most // 2)) if texts <= part), most)


def longest_first(lengths: Sequence[int]) -> NDArray[np.intp]:
    """Returns the order in which to embed texts: what needs the most memory comes before any work is done."""
    return np.argsort(np.asarray(lengths, np.int64), kind="stable")[::-1]


def first_batch(order: NDArray[np.intp], lengths: Sequence[int], budget: int, shapes: Shapes) -> Batch:
    """Returns the batch with which ``order``, longest first and not empty, begins."""
    length = shapes.length(max(1, int(lengths[order[0]])))
    most = max(1, budget // length)
    held = np.array([max(1, lengths[index]) for index in order[:most]], np.int64)
    indexes = order[: shapes.texts(held)]
    return Batch(indexes, shapes.rows(len(indexes), most), length)
