"""Finds where the chunks of one document begin and end, from the offsets of its tokens.

Guarantees: ranges of at most so many of the document's tokens, or of one character where that has more, that hold all
its text, in order. Does not guarantee that a range has as many tokens by itself as it has in the document: counting
again, and cutting again what is over the bound, is the work of ``chunking``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pgvec_queue import boundaries
from pgvec_queue.tokenizers import GAPS, LONGEST_WORD

CHARACTERS_PER_TOKEN = 16
"""A tokenizer may make one unknown token of a word of any length; no chunk gets longer than this in characters."""


class Layout:
    """A document and where its tokens are; finds the places to cut it."""

    def __init__(self, text: str, spans: NDArray[np.int64]) -> None:
        self._text = text
        # Looked up one by one, as each cut depends on the one before: bisecting a view beats searchsorted at that.
        self._starts = spans[:, 0].data
        self._ends = spans[:, 1].data

    def cover(
        self, start: int, fresh: int, stop: int, needed: int, budget: int, longest: int, overlap: int
    ) -> Iterator[tuple[int, int]]:
        """Yields ranges from ``start`` on, none beyond ``stop``, that together reach at least ``needed``.

        Each holds at most ``budget`` tokens and ``longest`` characters, or one character, and text that no range before
        it holds, the first one that at ``fresh``; neighbours share at most ``overlap`` tokens.
        """
        while True:
            end = self._end(start, fresh, stop, budget, longest)
            yield start, end
            if end >= needed:
                return
            fresh = self.next_text(end)
            start = self.next_start(start, end, fresh, stop, budget, longest, overlap)

    def next_text(self, start: int) -> int:
        """Returns the first place at or after ``start`` that is no whitespace, or the end of the text."""
        return boundaries.next_text(self._text, start)

    def next_start(self, start: int, end: int, fresh: int, stop: int, budget: int, longest: int, overlap: int) -> int:
        """Returns where the range after ``start:end`` starts; ``fresh`` is the first text not covered yet."""
        if overlap == 0:
            return fresh
        word = boundaries.first_word_end(self._text, fresh, self._limit(fresh, stop, budget, longest))
        if word is None:  # it is longer than a chunk
            return fresh
        first = bisect_left(self._starts, end) - overlap
        reach = min(overlap * CHARACTERS_PER_TOKEN, longest // 2)
        low = max(start + 1, end - reach, self._ends[first - 1] if first > 0 else 0)
        # The overlap may not crowd out the next word.
        first = bisect_left(self._starts, word) - budget
        low = max(low, word - longest, self._ends[first - 1] if first > 0 else 0)
        return boundaries.first_word_start(self._text, low, end) or fresh

    def prefix(self, start: int, stop: int, budget: int, longest: int) -> int:
        """Returns the last word end up to ``stop`` that ``budget`` tokens and ``longest`` characters reach."""
        limit = self._limit(start, stop, budget, longest)
        if limit >= stop:
            return stop
        return boundaries.last_word_end(self._text, start, limit) or boundaries.last_unit_end(self._text, start, limit)

    def tokens(self, start: int, end: int) -> int:
        """Returns the number of tokens that lie in the range, if only in part."""
        first, beyond = self.within(start, end)
        return beyond - first

    def within(self, start: int, end: int) -> tuple[int, int]:
        """Returns the place of the first of these tokens, and that beyond the last."""
        return bisect_right(self._ends, start), bisect_left(self._starts, end)

    def stands_apart(self, start: int, end: int) -> bool:
        """True when words do not go on beyond the range, and none in it was cut by the tokenizer's pieces."""
        text = self._text
        return (
            (start == 0 or text[start - 1] in GAPS)
            and (end == len(text) or text[end] in GAPS)
            and end - start <= LONGEST_WORD
        )

    def text_end(self, start: int, end: int) -> int:
        """Returns ``end`` without the whitespace before it."""
        return start + len(self._text[start:end].rstrip())

    def _limit(self, start: int, stop: int, budget: int, longest: int) -> int:
        beyond = bisect_right(self._ends, start) + budget
        by_tokens = self._starts[beyond] if beyond < len(self._starts) else stop
        return max(start + 1, min(stop, start + longest, by_tokens))

    def _end(self, start: int, fresh: int, stop: int, budget: int, longest: int) -> int:
        """Returns where the range from ``start`` ends; it holds at least the character at ``fresh``."""
        limit = max(fresh + 1, self._limit(start, stop, budget, longest))
        if limit >= stop:
            return stop
        fits = limit - start
        return (
            boundaries.last_sentence_end(self._text, max(fresh, start + fits // 4), limit)
            or boundaries.last_gap(self._text, max(fresh, start + fits // 2), limit)
            or boundaries.last_word_end(self._text, fresh, limit)
            or boundaries.last_unit_end(self._text, fresh, limit)
        )
