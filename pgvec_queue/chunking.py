"""Cuts documents into chunks that the model surely reads in full.

Guarantees, for ``Chunker.chunks``: a chunk's input has at most ``size`` tokens of the embedder's own tokenizer, special
tokens, prompt and template included, and a chunk at most 16 characters per token; a chunk is a verbatim slice of its
document without whitespace at its ends; together the chunks hold every character of the document but whitespace, in
order; neighbours share at most ``overlap`` tokens, counted in the document; the same document gives the same chunks.
A chunk ends at a sentence end in the last three quarters of what fits, else at whitespace in the last half, else at a
word end, and inside a word only where one is longer than a chunk.
Does not guarantee that neighbours share anything: where no word fits into the overlap, they do not.

How: a document is tokenized once, cuts are found from the tokens' offsets, and a chunk's input is put together from the
document's own token ids, so that the model need not tokenize it again. Chunks that might have other tokens by
themselves than in the document (not between whitespace, or any with a byte-level tokenizer) are counted again, all in
one call, and those over the bound are cut smaller until none is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgvec_queue import boundaries
from pgvec_queue.errors import DefinitionError, EmbedderError, Kind
from pgvec_queue.layout import CHARACTERS_PER_TOKEN, Layout
from pgvec_queue.template import Columns, Template
from pgvec_queue.tokenizers import GAPS, Ids, Tokenizer, Tokens

__all__ = ["Chunk", "Chunker", "DocumentTooLong", "Template"]

_NOT_COUNTED = -1


# Not frozen: making one, of which there are millions, would cost several times as much.
@dataclass(slots=True)
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
    ids: Ids | None = field(default=None, compare=False)
    """What the model reads, ``(tokens,) int32``; None where the tokenizer gives no ids."""


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
    lead: Ids | None = None
    """What the model reads before the chunk, special tokens included."""
    tail: Ids | None = None
    truncated: bool = False

    @property
    def weight(self) -> int:
        """The tokens that it takes up; by its characters where a tokenizer made one of a very long word."""
        return max(self.tokens, -(-(len(self.before) + len(self.after)) // CHARACTERS_PER_TOKEN))

    def room(self, limit: int) -> tuple[int, int]:
        """Returns the tokens and characters that it leaves of ``limit`` tokens, at least one."""
        return max(1, limit - self.tokens), max(1, limit - self.weight) * CHARACTERS_PER_TOKEN


class _Range(NamedTuple):
    """A piece of the document, the tokens of its input, and how often what it comes from was cut again."""

    start: int
    end: int
    tokens: int = _NOT_COUNTED
    tries: int = 0
    ids: Ids | None = None
    """Of its input; not set yet where they are the document's own."""


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

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns whose values the template wants."""
        return self._template.columns if self._template else ()

    def check_room(self, limit: int) -> None:
        """Raises ``DefinitionError`` unless half of ``limit`` tokens is left for the text where all columns are empty.

        ``limit`` is the chunk size, or for whole documents the model's longest input.
        """
        room = limit - self._bare.tokens
        if room < _half(limit):
            special = self._tokenizer.special_tokens
            raise DefinitionError(
                f"of {limit} tokens special ones take {special}, prompt and template {self._bare.tokens - special}, and"
                " less than half is left for the text; raise --chunk-size, or shorten the prompt or the template"
            )

    def chunks(self, document: str, columns: Columns | None = None) -> list[Chunk]:
        """Returns the document's chunks, in order; none when it is blank.

        ``columns`` holds the row's values for the template. Where they leave less than a quarter of ``size`` for the
        chunk, or than 8 tokens, each value is cut, at a word end, to the same number of tokens, so that the chunk keeps
        half of ``size``; such chunks are marked truncated.
        Raises ``EmbedderError`` (kind ``ROW``) when a single character has more tokens than fit, ``DefinitionError`` as
        ``check_room`` does.
        """
        self.check_room(self._size)
        start = boundaries.next_text(document, 0)
        if start == len(document):
            return []
        end = len(document.rstrip())
        frame = self._frame(columns, self._size)
        found = self._tokenizer.encode(document)
        layout = Layout(document, found.spans)
        budget, longest = frame.room(self._size)
        ranges = [
            self._measured(layout, frame, _Range(a, b))
            for a, b in layout.cover(start, start, end, end, budget, longest, self._overlap)
        ]
        while unknown := [i for i, piece in enumerate(ranges) if piece.tokens == _NOT_COUNTED]:
            inputs = [frame.before + document[ranges[i].start : ranges[i].end] + frame.after for i in unknown]
            for i, (tokens, ids) in zip(unknown, self._measure(inputs), strict=True):
                ranges[i] = ranges[i]._replace(tokens=tokens, ids=ids)
            ranges = list(self._bounded(layout, frame, ranges))
        return [_chunk(i, document, _with_ids(piece, layout, found, frame), frame) for i, piece in enumerate(ranges)]

    def whole(
        self, document: str, columns: Columns | None, max_tokens: int | None, truncate: bool = False
    ) -> Chunk | None:
        """Returns the document as one chunk that the model reads in full; None when it is blank.

        ``max_tokens`` is the model's longest input, None where there is no bound. A document that is longer raises
        ``DocumentTooLong``, or with ``truncate`` is cut at the last word end that fits, and at 16 characters per token.
        Raises as ``chunks`` does otherwise.
        """
        (chunk,) = self.wholes([(document, columns)], max_tokens, truncate)
        if isinstance(chunk, DocumentTooLong):
            raise chunk
        return chunk

    def wholes(
        self, documents: Sequence[tuple[str, Columns | None]], max_tokens: int | None, truncate: bool = False
    ) -> list[Chunk | DocumentTooLong | None]:
        """Returns for each of the documents, with its columns, what ``whole`` returns, or the error about its length.

        They are tokenized together, on all cores where the tokenizer does that. Raises as ``whole`` does otherwise.
        """
        if max_tokens is not None:
            self.check_room(max_tokens)
        found: list[Chunk | DocumentTooLong | None] = [None] * len(documents)
        waiting: list[tuple[int, int, int, _Frame]] = []
        inputs: list[str] = []
        for i, (document, columns) in enumerate(documents):
            start = boundaries.next_text(document, 0)
            if start == len(document):
                continue
            end = len(document.rstrip())
            if max_tokens is not None and truncate and self._surely_longer(document, start, end, max_tokens):
                found[i] = self._truncated(document, start, end, columns, max_tokens)
                continue
            frame = self._frame(columns, None)
            inputs.append(frame.before + document[start:end] + frame.after)
            waiting.append((i, start, end, frame))
        for (i, start, end, frame), (tokens, ids) in zip(waiting, self._measure(inputs), strict=True):
            document, columns = documents[i]
            if max_tokens is None or tokens <= max_tokens:
                found[i] = _chunk(0, document, _Range(start, end, tokens, ids=ids), frame)
            elif truncate:
                found[i] = self._truncated(document, start, end, columns, max_tokens)
            else:
                found[i] = DocumentTooLong(tokens, max_tokens)
        return found

    def _surely_longer(self, document: str, start: int, end: int, max_tokens: int) -> bool:
        """Tells from the head of a long document alone that it has too many tokens, where its words allow that."""
        longest = max_tokens * CHARACTERS_PER_TOKEN
        if end - start <= longest:
            return False
        head = document[start : start + longest]
        # A word that breaks off can have more tokens than in one piece, where that would be an unknown one.
        whole_words = head[: max(head.rfind(" "), head.rfind("\n"), 0)]
        return len(self._tokenizer.encode(whole_words).spans) > max_tokens

    def _truncated(self, document: str, start: int, end: int, columns: Columns | None, max_tokens: int) -> Chunk:
        frame = self._frame(columns, max_tokens)
        budget, longest = frame.room(max_tokens)
        layout = Layout(document, self._tokenizer.encode(document[start : min(end, start + longest)]).spans + start)
        piece = _Range(start, layout.prefix(start, end, budget, longest))
        while True:
            tokens, ids = self._measure([frame.before + document[start : piece.end] + frame.after])[0]
            if tokens <= max_tokens:
                return _chunk(0, document, piece._replace(tokens=tokens, ids=ids), frame._replace(truncated=True))
            budget, longest = _smaller(layout, piece, tokens - frame.tokens, max_tokens - frame.tokens)
            piece = _Range(start, layout.prefix(start, piece.end, budget, longest), tries=piece.tries + 1)

    def _bounded(self, layout: Layout, frame: _Frame, ranges: list[_Range]) -> Iterator[_Range]:
        """Yields the ranges, those over the bound replaced by smaller ones, which may have to be counted in turn."""
        last: _Range | None = None
        for i, piece in enumerate(ranges):
            if piece.tokens <= self._size:
                last = piece
                yield piece
                continue
            following = ranges[i + 1].start if i + 1 < len(ranges) else piece.end
            for smaller in self._cut_again(layout, frame, piece, last, following):
                last = smaller
                yield smaller

    def _cut_again(
        self, layout: Layout, frame: _Frame, piece: _Range, before: _Range | None, following: int
    ) -> Iterator[_Range]:
        """Yields what replaces a range that is over the bound.

        ``before`` is the range before it, ``following`` the start of the one after it, which holds the end of this one
        as far as they overlap.
        """
        budget, longest = _smaller(layout, piece, piece.tokens - frame.tokens, self._size - frame.tokens)
        overlap = min(self._overlap, budget // 2)
        start = fresh = piece.start
        if before is not None:
            fresh = layout.next_text(before.end)
            if following <= fresh:
                return
            start = layout.next_start(before.start, before.end, fresh, piece.end, budget, longest, overlap)
        needed = layout.text_end(piece.start, min(piece.end, following))
        for a, b in layout.cover(start, fresh, piece.end, needed, budget, longest, overlap):
            yield self._measured(layout, frame, _Range(a, b, tries=piece.tries + 1))

    def _measured(self, layout: Layout, frame: _Frame, piece: _Range) -> _Range:
        """Fills in the number of tokens where the document's own tokens surely tell it."""
        if self._tokenizer.splits_words or not frame.apart or not layout.stands_apart(piece.start, piece.end):
            return piece
        return piece._replace(tokens=frame.tokens + layout.tokens(piece.start, piece.end))

    def _measure(self, inputs: list[str]) -> list[tuple[int, Ids | None]]:
        """Returns each input's number of tokens and, where the tokenizer gives them, their ids."""
        texts = [self._prompt + text for text in inputs]
        found = self._tokenizer.inputs(texts)
        if found is None:
            return [(tokens, None) for tokens in self._tokenizer.count(texts)]
        return [(len(ids), ids) for ids in found]

    def _framed(self, before: str, after: str) -> _Frame:
        lead = self._prompt + before
        apart = (not lead or lead[-1] in GAPS) and (not after or after[0] in GAPS)
        special, found = self._tokenizer.frame, self._tokenizer.inputs([lead, after])
        if special is None or found is None:
            first, second = self._tokenizer.count([lead, after])
            return _Frame(before, after, first + second - self._tokenizer.special_tokens, apart)
        head, tail = found[0][: len(found[0]) - len(special.after)], found[1][len(special.before) :]
        return _Frame(before, after, len(head) + len(tail), apart, head, tail)

    def _frame(self, columns: Columns | None, limit: int | None) -> _Frame:
        """Returns the frame with the row's column values, cut where they leave too little of ``limit`` tokens."""
        template = self._template
        if template is None or not template.columns:
            return self._bare
        frame = self._framed(*template.sides(columns or {}))
        if limit is None or limit - frame.weight >= min(_half(limit), max(8, limit // 4)):
            return frame
        values = {name: (columns or {})[name] or "" for name in template.columns}
        spans = {name: self._tokenizer.encode(value).spans for name, value in values.items()}
        share = _share([len(spans[name]) for name in template.uses], limit - self._bare.tokens - _half(limit))
        while True:
            cut = {name: _prefix(value, spans[name], share) for name, value in values.items()}
            frame = self._framed(*template.sides(cut))._replace(truncated=True)
            excess = frame.weight - (limit - _half(limit))
            if excess <= 0 or share == 0:
                return frame
            share = max(0, share - max(1, excess // len(template.uses)))


def _chunk(index: int, document: str, piece: _Range, frame: _Frame) -> Chunk:
    text = document[piece.start : piece.end]
    return Chunk(index, text, piece.tokens, frame.before + text + frame.after, frame.truncated, piece.start, piece.ids)


def _with_ids(piece: _Range, layout: Layout, found: Tokens, frame: _Frame) -> _Range:
    """Fills in the ids of a range that was not counted by itself: it has the document's own."""
    if piece.ids is not None or found.ids is None or frame.lead is None or frame.tail is None:
        return piece
    own = found.ids[slice(*layout.within(piece.start, piece.end))]
    return piece._replace(ids=np.concatenate([frame.lead, own, frame.tail]))


def _half(limit: int) -> int:
    return max(1, limit // 2)


def _smaller(layout: Layout, piece: _Range, tokens: int, limit: int) -> tuple[int, int]:
    """Returns the tokens, as the document has them, and the characters to cut a range to.

    By itself it has ``tokens`` instead of ``limit`` tokens: it is first cut in that proportion, from then on by half,
    so that it soon ends: at one character, which raises ``EmbedderError`` (kind ``ROW``).
    """
    characters = piece.end - piece.start
    if characters == 1:
        raise EmbedderError(
            f"the character at position {piece.start + 1} of the document makes {tokens} tokens, and {limit} fit;"
            " raise --chunk-size",
            Kind.ROW,
        )
    inside = layout.tokens(piece.start, piece.end)
    if piece.tries == 0:
        return max(1, inside * limit // tokens), characters - 1
    return max(1, inside // 2), characters // 2


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
    if tokens == 0 or start == len(value):
        return ""
    stop = len(value.rstrip())
    return value[: Layout(value, spans).prefix(start, stop, tokens, tokens * CHARACTERS_PER_TOKEN)]
