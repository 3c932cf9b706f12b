"""Whether chunks are those of a text, by whatever rule they were cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgvec_queue.chunking import Chunker
from pgvec_queue.covering import covers, in_order
from pgvec_queue.tokenizers import WordTokenizer

_TEXTS = st.text(st.sampled_from("ab .\n|é"), max_size=60)


@given(_TEXTS, st.integers(1, 8), st.integers(0, 3))
@example("a a a a a a a a a", 4, 2)
def test_our_own_chunks_cover_their_text(text: str, size: int, overlap: int) -> None:
    chunks = Chunker(WordTokenizer(), size, min(overlap, size // 2)).chunks(text)
    assert covers(text, [chunk.text for chunk in chunks])


@given(st.lists(st.text(st.sampled_from("abc"), min_size=1, max_size=5), min_size=1, max_size=30), st.data())
def test_any_cut_at_words_with_any_overlap_covers(words: list[str], data: st.DataObject) -> None:
    pieces: list[str] = []
    start = end = 0
    while end < len(words):
        end = min(len(words), end + data.draw(st.integers(1, 4)))
        pieces.append(" ".join(words[start:end]))
        start = data.draw(st.integers(start + 1, end))
    assert covers(" ".join(words), pieces)


@given(_TEXTS, st.integers(1, 8), st.integers(0, 200), st.sampled_from("xyz"))
def test_a_text_that_has_changed_is_not_covered(text: str, size: int, place: int, letter: str) -> None:
    chunks = [chunk.text for chunk in Chunker(WordTokenizer(), size, 0).chunks(text)]
    at = place % (len(text) + 1)
    assert not covers(text[:at] + letter + text[at:], chunks)


@given(_TEXTS, st.integers(1, 4), st.integers(0, 200))
def test_no_chunk_can_be_missing_and_none_be_there_twice(text: str, size: int, which: int) -> None:
    # Letters that occur once, so that no chunk is another's.
    marked = re.sub(r"[a-zé]", lambda found: chr(0x4E00 + found.start()), text)
    chunks = [chunk.text for chunk in Chunker(WordTokenizer(), size, 0).chunks(marked)]
    if not chunks:
        return
    at = which % len(chunks)
    assert not covers(marked, chunks[:at] + chunks[at + 1 :])
    assert not covers(marked, [*chunks[:at], chunks[at], *chunks[at:]])


@pytest.mark.parametrize(
    ("text", "pieces", "covered"),
    [
        ("one two three", ["one two", "two three"], True),
        ("one two three", ["one two", "three"], True),
        ("one two three", ["one", "three"], False),
        ("one two three", ["two three", "one"], False),
        ("one two three", ["one two three", "two"], False),
        ("one two three", ["one two three", "two three"], False),
        ("one two three", ["one two", "three four"], False),
        ("one two", ["one two", ""], False),
        ("  one \n two\t", ["one", "two"], True),
        ("  one \n two\t", ["  one \n two\t"], True),
        ("A B A", ["A", "B", "A"], True),
        ("A B", ["A", "B", "A"], False),
        ("word " * 50, ["word " * 20, "word " * 20, "word " * 20], True),
        ("word " * 50, ["word " * 20, "word " * 20], False),
    ],
)
def test_examples(text: str, pieces: list[str], covered: bool) -> None:
    assert covers(text, pieces) is covered


def test_what_a_splitter_drops_may_be_missing_between_chunks() -> None:
    assert covers("one|two|three", ["one", "two|three"], ["|"])
    assert covers("one |\n two", ["one", "two"], ["|"])
    assert not covers("one|two|three", ["one", "two|three"])
    assert not covers("one|two|three", ["one", "three"], ["|"])


def test_a_text_of_one_letter_is_answered_in_time() -> None:
    assert not covers("a" * 100_000, ["a" * 800] * 200)
    assert covers("a" * 900, ["a" * 300] * 3)


def test_chunks_without_numbers_are_put_in_the_order_of_the_text() -> None:
    assert in_order("one two three", ["three", "one", "two"]) == ["one", "two", "three"]
