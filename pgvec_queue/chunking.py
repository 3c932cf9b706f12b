"""Cuts documents into chunks that the model surely reads in full.

Guarantees, for ``Chunker.chunks``: a chunk's input has at most ``size`` tokens of the embedder's own tokenizer, special
tokens, prompt and template included, and a chunk at most 16 characters per token; a chunk is a verbatim slice of its
document without whitespace at its ends; together the chunks hold every character of the document but whitespace, in
order; neighbours share at most ``overlap`` tokens, counted in the document; the same document gives the same chunks.
A chunk ends at a sentence end in the last three quarters of what fits, else at whitespace in the last half, else at a
word end, and inside a word only where one is longer than a chunk.
Does not guarantee that neighbours share anything: where no word fits into the overlap, they do not.

How: a document is tokenized once, and cuts are found from the tokens' offsets. Chunks that might have other tokens by
themselves than in the document (not between whitespace, or any with a byte-level tokenizer) are counted again, all in
one call, and those over the bound are cut smaller until none is left.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgvec_queue import boundaries
from pgvec_queue.embedders import Tokenizer
from pgvec_queue.errors import DefinitionError, EmbedderError, Kind
from pgvec_queue.template import Columns, Template
from pgvec_queue.tokenizers import GAPS, LONGEST_WORD

__all__ = ["Chunk", "Chunker", "DocumentTooLong", "Template"]

CHARACTERS_PER_TOKEN = 16
"""A tokenizer may make one unknown token of a word of any length; no chunk gets longer than this in characters."""

_NOT_COUNTED = -1


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document and what the embedder is given for it."""

    index: int
    text: str
    """A verbatim slice of the document."""
    tokens: int
    """Length of what the model reads: special tokens, the document prompt, and ``input``."""
    input: str
    """The text in its template, without the prompt, which the embedder puts before it."""
    truncated: bool = False
    """True where the rest of the document, or of the template's column values, was left out of ``input``."""
    start: int = 0
    """Where ``text`` begins in the document, in characters."""


class DocumentTooLong(EmbedderError):  # noqa: N818
    """A document that is to stay whole has more tokens than the model reads."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"document has {tokens} tokens, the model reads {limit}; use --too-long truncate to cut it, or chunk it",
            Kind.ROW,
        )
        self.tokens = tokens
        self.limit = limit


class _Frame(NamedTuple):
    """What surrounds every chunk of one document in its input."""

    before: str
    after: str
    tokens: int
    """Of the prompt, ``before``, ``after`` and the special tokens."""
    apart: bool
    """True when whitespace stands between it and the chunk, so that tokens can be added up."""
    truncated: bool = False


class _Range(NamedTuple):
    """A piece of the document, the tokens of its input, and how often what it comes from was cut again."""

    start: int
    end: int
    tokens: int = _NOT_COUNTED
    tries: int = 0


class Chunker:
    """Cuts the documents of one vectorizer; may be used by several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        size: int = 128,
        overlap: int = 20,
        template: Template | None = None,
        document_prompt: str = "",
    ) -> None:
        """Sizes are in tokens. Raises ``DefinitionError`` unless ``0 <= overlap < size``; see also ``check_room``."""
        if size < 1:
            raise DefinitionError(f"chunk size {size} is not positive; it is a number of tokens, such as 128")
        if not 0 <= overlap < size:
            raise DefinitionError(f"chunk overlap {overlap} must be at least 0 and less than the chunk size, {size}")
        self._tokenizer = tokenizer
        self._size = size
        self._overlap = overlap
        self._template = template
        self._prompt = document_prompt
        nothing = dict.fromkeys(template.columns) if template else {}
        self._bare = self._framed(*(template.sides(nothing) if template else ("", "")))

    def check_room(self, limit: int) -> None:
        """Raises ``DefinitionError`` unless half of ``limit`` tokens is left for the text where all columns are empty.

        ``limit`` is the chunk size, or for whole documents the model's longest input.
        """
        room = limit - self._bare.tokens
        if room < max(1, limit // 2):
            special = self._tokenizer.special_tokens
            raise DefinitionError(
                f"of {limit} tokens special ones take {special}, prompt and template {self._bare.tokens - special}, and"
                " less than half is left for the text; raise --chunk-size, or shorten the prompt or the template"
            )

    def chunks(self, document: str, columns: Columns | None = None) -> list[Chunk]:
        """Returns the document's chunks, in order; none when it is blank.

        ``columns`` holds the row's values for the template. Where they leave less than a quarter of ``size`` (or 8
        tokens) for the chunk, each value is cut, at a word end, to the same number of tokens, so that the chunk keeps
        half of ``size``; such chunks are marked truncated.
        Raises ``EmbedderError`` (kind ``ROW``) when a single character has more tokens than fit, ``DefinitionError`` as
        ``check_room`` does.
        """
        self.check_room(self._size)
        start = boundaries.next_text(document, 0)
        if start is None:
            return []
        end = len(document.rstrip())
        frame = self._frame(columns, self._size)
        layout = _Layout(document, self._tokenizer.spans(document))
        budget = max(1, self._size - frame.tokens)
        overlap = min(self._overlap, budget - 1)
        ranges = [
            self._measured(layout, frame, _Range(a, b))
            for a, b in layout.cover(start, end, end, budget, budget * CHARACTERS_PER_TOKEN, overlap)
        ]
        while unknown := [i for i, piece in enumerate(ranges) if piece.tokens == _NOT_COUNTED]:
            inputs = [frame.before + document[ranges[i].start : ranges[i].end] + frame.after for i in unknown]
            for i, tokens in zip(unknown, self._count(inputs), strict=True):
                ranges[i] = ranges[i]._replace(tokens=tokens)
            ranges = list(self._bounded(layout, frame, ranges))
        return [_chunk(i, document, piece, frame) for i, piece in enumerate(ranges)]

    def whole(
        self, document: str, columns: Columns | None, max_tokens: int | None, truncate: bool = False
    ) -> Chunk | None:
        """Returns the document as one chunk that the model reads in full; None when it is blank.

        ``max_tokens`` is the model's longest input, None where there is no bound. A document that is longer raises
        ``DocumentTooLong``, or with ``truncate`` is cut at the last word end that fits, and at 16 characters per token.
        Raises as ``chunks`` does otherwise.
        """
        start = boundaries.next_text(document, 0)
        if start is None:
            return None
        end = len(document.rstrip())
        frame = self._filled(columns)
        if max_tokens is not None:
            self.check_room(max_tokens)
            longest = max_tokens * CHARACTERS_PER_TOKEN
            # Most of a very long document need not be tokenized to see that it is too long.
            head = document[start : start + longest] if truncate and end - start > longest else ""
            if len(self._tokenizer.spans(head)) > max_tokens:
                return self._truncated(document, start, end, columns, max_tokens)
        tokens = self._count([frame.before + document[start:end] + frame.after])[0]
        if max_tokens is None or tokens <= max_tokens:
            return _chunk(0, document, _Range(start, end, tokens), frame)
        if not truncate:
            raise DocumentTooLong(tokens, max_tokens)
        return self._truncated(document, start, end, columns, max_tokens)

    def _truncated(self, document: str, start: int, end: int, columns: Columns | None, max_tokens: int) -> Chunk:
        frame = self._frame(columns, max_tokens)
        budget = max(1, max_tokens - frame.tokens)
        longest = min(end - start, budget * CHARACTERS_PER_TOKEN)
        layout = _Layout(document, self._tokenizer.spans(document[start : start + longest]) + start)
        piece = _Range(start, layout.prefix(start, end, budget, longest))
        while True:
            tokens = self._count([frame.before + document[start : piece.end] + frame.after])[0]
            if tokens <= max_tokens:
                return _chunk(0, document, piece._replace(tokens=tokens), frame._replace(truncated=True))
            budget, longest = layout.smaller(piece, tokens, max_tokens)
            piece = _Range(start, layout.prefix(start, piece.end, budget, longest), tries=piece.tries + 1)

    def _bounded(self, layout: _Layout, frame: _Frame, ranges: list[_Range]) -> Iterator[_Range]:
        """Yields the ranges, those over the bound replaced by smaller ones, which may have to be counted in turn."""
        for i, piece in enumerate(ranges):
            if piece.tokens <= self._size:
                yield piece
                continue
            budget, longest = layout.smaller(piece, piece.tokens, self._size)
            # The next range already holds the end of this one, as far as they overlap.
            following = ranges[i + 1].start if i + 1 < len(ranges) else piece.end
            needed = layout.text_end(piece.start, min(piece.end, following))
            overlap = min(self._overlap, budget - 1)
            for a, b in layout.cover(piece.start, piece.end, needed, budget, longest, overlap):
                yield self._measured(layout, frame, _Range(a, b, tries=piece.tries + 1))

    def _measured(self, layout: _Layout, frame: _Frame, piece: _Range) -> _Range:
        """Fills in the number of tokens where the document's own tokens surely tell it."""
        if self._tokenizer.splits_words or not frame.apart or not layout.stands_apart(piece.start, piece.end):
            return piece
        return piece._replace(tokens=frame.tokens + layout.tokens(piece.start, piece.end))

    def _count(self, inputs: list[str]) -> list[int]:
        return self._tokenizer.count([self._prompt + text for text in inputs])

    def _framed(self, before: str, after: str) -> _Frame:
        lead = self._prompt + before
        first, second = self._tokenizer.count([lead, after])
        apart = (not lead or lead[-1] in GAPS) and (not after or after[0] in GAPS)
        return _Frame(before, after, first + second - self._tokenizer.special_tokens, apart)

    def _filled(self, columns: Columns | None) -> _Frame:
        """Returns the frame with the row's column values as they are."""
        if self._template is None or not self._template.columns:
            return self._bare
        return self._framed(*self._template.sides(columns or {}))

    def _frame(self, columns: Columns | None, limit: int) -> _Frame:
        """Returns the frame with the row's column values, cut where they leave too little of ``limit`` tokens."""
        frame = self._filled(columns)
        if (
            self._template is None
            or frame is self._bare
            or limit - _weight(frame) >= min(limit // 2, max(8, limit // 4))
        ):
            return frame
        values = {name: (columns or {})[name] or "" for name in self._template.columns}
        spans = {name: self._tokenizer.spans(value) for name, value in values.items()}
        share = _share([len(spans[name]) for name in self._template.uses], limit - self._bare.tokens - limit // 2)
        while True:
            cut = {name: _prefix(value, spans[name], share) for name, value in values.items()}
            frame = self._framed(*self._template.sides(cut))._replace(truncated=True)
            excess = _weight(frame) - (limit - limit // 2)
            if excess <= 0 or share == 0:
                return frame
            share = max(0, share - max(1, excess // len(self._template.uses)))


class _Layout:
    """A document and where its tokens are; finds the places to cut it."""

    def __init__(self, text: str, spans: NDArray[np.int64]) -> None:
        self._text = text
        # Looked up one by one, as each cut depends on the one before: bisecting a view beats searchsorted at that.
        self._starts = spans[:, 0].data
        self._ends = spans[:, 1].data

    def cover(
        self, start: int, stop: int, needed: int, budget: int, longest: int, overlap: int
    ) -> Iterator[tuple[int, int]]:
        """Yields ranges from ``start`` on, none beyond ``stop``, that together reach at least ``needed``.

        Each holds at most ``budget`` tokens and ``longest`` characters, or one character; neighbours share at most
        ``overlap`` tokens. ``start`` is at text, ``stop`` and ``needed`` right behind some.
        """
        fresh = start
        while True:
            end = self._end(start, fresh, stop, budget, longest)
            yield start, end
            following = boundaries.next_text(self._text, end)
            if end >= needed or following is None:
                return
            fresh = following
            start = self._next_start(start, end, fresh, stop, budget, longest, overlap)

    def prefix(self, start: int, stop: int, budget: int, longest: int) -> int:
        """Returns the last word end up to ``stop`` that ``budget`` tokens and ``longest`` characters reach."""
        limit = self._limit(start, stop, budget, longest)
        if limit >= stop:
            return stop
        return boundaries.last_word_end(self._text, start, limit) or boundaries.last_unit_end(self._text, start, limit)

    def tokens(self, start: int, end: int) -> int:
        """Returns the number of tokens that lie in the range, if only in part."""
        return bisect_left(self._starts, end) - bisect_right(self._ends, start)

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

    def smaller(self, piece: _Range, tokens: int, limit: int) -> tuple[int, int]:
        """Returns the tokens and characters to cut a range to whose input has ``tokens`` instead of ``limit`` tokens.

        First by what it has too much; from then on by half, so that it soon ends: at one character, which raises
        ``EmbedderError`` (kind ``ROW``).
        """
        characters = piece.end - piece.start
        if characters == 1:
            raise EmbedderError(
                f"the character at position {piece.start + 1} of the document makes {tokens} tokens with what surrounds"
                f" it, and {limit} fit; raise --chunk-size",
                Kind.ROW,
            )
        inside = self.tokens(piece.start, piece.end)
        if piece.tries == 0:
            return max(1, inside - (tokens - limit)), characters - 1
        return max(1, inside // 2), characters // 2

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

    def _next_start(self, start: int, end: int, fresh: int, stop: int, budget: int, longest: int, overlap: int) -> int:
        """Returns where the range after ``start:end`` starts; ``fresh`` is the first text not covered yet."""
        if overlap == 0:
            return fresh
        first = bisect_left(self._starts, end) - overlap
        low = max(start + 1, end - overlap * CHARACTERS_PER_TOKEN, self._ends[first - 1] if first > 0 else 0)
        # The overlap may not crowd out the next word, nor half of a chunk of it where it is too long for one.
        reach = self._limit(fresh, stop, budget, longest)
        word = boundaries.first_word_end(self._text, fresh, reach) or fresh + longest
        first = bisect_left(self._starts, word) - budget
        fits = max(word - longest, self._ends[first - 1] if first > 0 else 0)
        if fits > fresh:
            fits = fresh + 1 + longest // 2 - longest
        return boundaries.first_word_start(self._text, max(low, fits), end) or fresh


def _chunk(index: int, document: str, piece: _Range, frame: _Frame) -> Chunk:
    text = document[piece.start : piece.end]
    return Chunk(index, text, piece.tokens, frame.before + text + frame.after, frame.truncated, piece.start)


def _weight(frame: _Frame) -> int:
    """Returns the tokens that a frame takes up; by its characters where a tokenizer made one of a very long word."""
    return max(frame.tokens, (len(frame.before) + len(frame.after)) // CHARACTERS_PER_TOKEN)


def _share(lengths: list[int], room: int) -> int:
    """Returns the largest number to which all lengths can be cut so that their sum is at most ``room``."""
    for i, length in enumerate(sorted(lengths)):
        share = room // (len(lengths) - i)
        if length > share:
            return share
        room -= length
    return max(lengths)


def _prefix(value: str, spans: NDArray[np.int64], tokens: int) -> str:
    """Returns the start of a column's value up to a word end, at most ``tokens`` long."""
    start = boundaries.next_text(value, 0)
    if tokens == 0 or start is None:
        return ""
    stop = len(value.rstrip())
    return value[: _Layout(value, spans).prefix(start, stop, tokens, tokens * CHARACTERS_PER_TOKEN)]
