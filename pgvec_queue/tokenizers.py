"""Tokenizers behind the one protocol by which texts are measured: HuggingFace's, tiktoken's, and plain words.

Guarantees: lengths are those of the untruncated text; one instance may be used by several threads; a long text is
worked through in pieces of at most ``PIECE`` characters, so a document costs 20 bytes per token and a few MB.
Does not guarantee that a text of more than ``PIECE`` characters has exactly the tokens that it would have in one go:
pieces are cut before whitespace, which changes a token or none, and inside words longer than ``LONGEST_WORD``.
Ids are kept, so that what is chunked need not be tokenized again for the model.

Neither ``tokenizers`` nor ``tiktoken`` is imported before it is needed.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pgvec_queue.errors import EmbedderError, Kind, MissingExtraError

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

GAPS = "\t\n\r \xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""Whitespace that ends a word for every tokenizer. Python's also has control characters (form feed, NEL, …): BERT drops
those before it looks for words, so that the words on both sides become one."""

PIECE = 65_536
LONGEST_WORD = PIECE // 2
"""Characters without one of ``GAPS`` that surely stay in one piece."""

_LAST_GAP = re.compile(rf"(?s:.*)(?=[{GAPS}])")
_WORD = re.compile(r"\S+")

# Normalizers that change no word because of what stands on the other side of a gap.
_WORDWISE_NORMALIZERS = {None, "BertNormalizer", "Lowercase", "StripAccents", "NFD"}
_WORDWISE_PRE_TOKENIZERS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_WORDWISE_MODELS = {"WordPiece", "WordLevel"}

Ids = NDArray[np.int32]
"""Token ids ``(n,) int32``."""


class Tokens(NamedTuple):
    """A text's tokens, in order, special tokens left out."""

    spans: NDArray[np.int64]
    """Character offsets ``(n, 2)``."""
    ids: Ids | None
    """None where no model of ours reads them."""


class Frame(NamedTuple):
    """The special tokens that a model wants before and after every input."""

    before: Ids
    after: Ids


class Tokenizer(Protocol):
    """Counts and locates a model's tokens. Must be usable from another thread than the embedder's, and hashable."""

    def __hash__(self) -> int: ...

    @property
    def special_tokens(self) -> int:
        """Tokens that the model adds to every input, such as [CLS] and [SEP]."""

    @property
    def splits_words(self) -> bool:
        """True when a text cut out at word ends may have other tokens than it had in its document (byte-level BPE)."""

    @property
    def frame(self) -> Frame | None:
        """The special tokens, by which ids of a text become a model's input; None where that is not known."""

    def encode(self, text: str) -> Tokens:
        """Returns the text's tokens.

        Works through long texts piece by piece, so memory grows by 20 bytes per token and no more.
        """

    def inputs(self, texts: Sequence[str]) -> list[Ids] | None:
        """Returns each text's ids, special tokens included, as the model would see them; None without a ``frame``."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns each text's number of tokens, special tokens included, as the model would see them untruncated."""


class HuggingFaceTokenizer:
    """A Rust ``tokenizers.Tokenizer``, as a private copy that neither truncates nor pads.

    Private, because transformers switches truncation on and off on the one that it shares with us.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtraError("a HuggingFace tokenizer", "endpoint") from error
        definition: str = tokenizer.to_str()
        self._tokenizer: Any = Tokenizer.from_str(definition)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special_tokens = int(self._tokenizer.num_special_tokens_to_add(False))
        self._frame = _frame(self._tokenizer, self._special_tokens)
        self._splits_words = not _works_by_words(json.loads(definition))

    @property
    def definition(self) -> str:
        """The tokenizer as the JSON of a ``tokenizer.json``."""
        definition: str = self._tokenizer.to_str()
        return definition

    @property
    def special_tokens(self) -> int:
        """Tokens that the tokenizer adds to every input."""
        return self._special_tokens

    @property
    def splits_words(self) -> bool:
        """False only for WordPiece and WordLevel on words between whitespace, as in BERT."""
        return self._splits_words

    @property
    def frame(self) -> Frame | None:
        """The special tokens around an input; None where the tokenizer puts some elsewhere."""
        return self._frame

    def encode(self, text: str) -> Tokens:
        """Returns the text's tokens; the spans of a byte-level tokenizer may share some characters."""
        ids: list[Ids] = []
        spans = _joined(self._spans_of_pieces(text, ids))
        return Tokens(spans, ids[0] if len(ids) == 1 else np.concatenate(ids) if ids else np.empty(0, np.int32))

    def inputs(self, texts: Sequence[str]) -> list[Ids] | None:
        """Returns each text's ids, special tokens included; None where the tokenizer has no ``frame``."""
        if self._frame is None:
            return None
        found = [np.empty(0, np.int32)] * len(texts)
        for i, encoding in self._encoded(texts):
            found[i] = np.array(encoding.ids, np.int32)
        for i, text in enumerate(texts):
            if len(text) > PIECE:
                parts = [np.array(self._piece(piece).ids, np.int32) for _, piece in _pieces(text)]
                found[i] = np.concatenate([self._frame.before, *parts, self._frame.after])
        return found

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns each text's number of tokens, special tokens included."""
        counts = [0] * len(texts)
        for i, encoding in self._encoded(texts):
            counts[i] = len(encoding)
        for i, text in enumerate(texts):
            if len(text) > PIECE:
                counts[i] = self._special_tokens + sum(len(self._piece(piece)) for _, piece in _pieces(text))
        return counts

    def _encoded(self, texts: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """Yields the encodings of the texts that are no longer than a piece, with their indexes."""
        for batch in _batches(texts):
            yield from zip(batch, self._tokenizer.encode_batch_fast([texts[i] for i in batch]), strict=True)

    def _piece(self, piece: str) -> Any:
        return self._tokenizer.encode_batch_fast([piece], add_special_tokens=False)[0]

    def _spans_of_pieces(self, text: str, ids: list[Ids]) -> Iterator[NDArray[np.int64]]:
        for start, piece in _pieces(text):
            encoding = self._tokenizer.encode(piece, add_special_tokens=False)
            ids.append(np.array(encoding.ids, np.int32))
            offsets = encoding.offsets
            flat = np.fromiter(itertools.chain.from_iterable(offsets), np.int64, 2 * len(offsets))
            flat += start
            yield flat.reshape(-1, 2)


class TiktokenTokenizer:
    """A ``tiktoken.Encoding``. Names of special tokens in a text count as ordinary text, as at an endpoint."""

    special_tokens = 0
    splits_words = True
    frame = None

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding: Any = encoding
        self._bytes = np.zeros(encoding.n_vocab, np.int64)
        for token in range(encoding.n_vocab):
            try:
                self._bytes[token] = len(encoding.decode_single_token_bytes(token))
            except KeyError:  # vocabularies have holes before their special tokens
                continue

    @classmethod
    def named(cls, name: str) -> TiktokenTokenizer | None:
        """Returns the tokenizer of an encoding (``cl100k_base``) or a model; None where tiktoken knows no such name.

        Raises ``EmbedderError`` (kind ``VECTORIZER``) when the encoding's file cannot be downloaded or read.
        """
        try:
            import tiktoken
        except ImportError as error:
            raise MissingExtraError(f"tokenizer {name!r}", "endpoint") from error
        encoding = name
        if name not in tiktoken.list_encoding_names():
            try:
                encoding = tiktoken.encoding_name_for_model(name)
            except KeyError:
                return None
        try:
            return cls(tiktoken.get_encoding(encoding))
        except (OSError, ValueError) as error:
            raise EmbedderError(
                f"tiktoken could not load its encoding {encoding!r} ({_first_line(error)}); it downloads it once:"
                " let this machine reach the internet, or set TIKTOKEN_CACHE_DIR to a copied cache",
                Kind.VECTORIZER,
            ) from error

    def encode(self, text: str) -> Tokens:
        """Returns the text's spans, which may share a character; endpoints are given texts, not ids."""
        return Tokens(_joined(self._spans_of_pieces(text)), None)

    def inputs(self, texts: Sequence[str]) -> None:
        """Returns None: endpoints are given texts."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns each text's number of tokens; there are no special ones."""
        return [sum(len(self._encoding.encode_ordinary(piece)) for _, piece in _pieces(text)) for text in texts]

    def _spans_of_pieces(self, text: str) -> Iterator[NDArray[np.int64]]:
        for start, piece in _pieces(text):
            lengths = self._bytes[np.array(self._encoding.encode_ordinary(piece), np.int64)]
            ends = np.cumsum(lengths)
            if piece.isascii():
                yield np.stack([ends - lengths + start, ends + start], axis=1)
                continue
            raw = np.frombuffer(piece.encode(), np.uint8)
            character = np.cumsum((raw & 0xC0) != 0x80) - 1 + start
            yield np.stack([character[ends - lengths], character[ends - 1] + 1], axis=1)


class WordTokenizer:
    """Counts words, the longest runs without whitespace; for the hashing embedder, which has no vocabulary."""

    special_tokens = 0
    splits_words = False
    frame = None

    def encode(self, text: str) -> Tokens:
        """Returns the spans of the text's words; they have no ids."""
        found = (offset for word in _WORD.finditer(text) for offset in word.span())
        return Tokens(np.fromiter(found, np.int64).reshape(-1, 2), None)

    def inputs(self, texts: Sequence[str]) -> None:
        """Returns None: words have no ids."""

    def count(self, texts: Sequence[str]) -> list[int]:
        """Returns each text's number of words."""
        return [len(text.split()) for text in texts]


def load_tokenizer(name: str) -> Tokenizer:
    """Returns the tokenizer by which an endpoint's inputs are measured.

    ``name`` is, in this order: a ``tokenizer.json`` or a folder that holds one; a tiktoken encoding or a model that
    tiktoken knows; a repository of the HuggingFace hub. Raises ``MissingExtraError`` when the library for it is not
    installed, ``EmbedderError`` (kind ``VECTORIZER``) when the name is none of these or cannot be read.
    """
    path = Path(name).expanduser()
    for file in (path, path / "tokenizer.json"):
        if file.is_file():
            return _from_file(file)
    if path.is_dir():
        raise EmbedderError(f"folder {name!r} holds no tokenizer.json; name a folder that does", Kind.VECTORIZER)
    if "/" not in name:
        known = TiktokenTokenizer.named(name)
        if known is not None:
            return known
    return _from_hub(name)


def _from_file(file: Path) -> HuggingFaceTokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(f"tokenizer {str(file)!r}", "endpoint") from error
    try:
        return HuggingFaceTokenizer(Tokenizer.from_file(str(file)))
    except Exception as error:  # the Rust library raises nothing more specific
        raise EmbedderError(
            f"{str(file)!r} cannot be read as a tokenizer.json ({_first_line(error)})", Kind.VECTORIZER
        ) from error


def _from_hub(name: str) -> HuggingFaceTokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError(f"tokenizer {name!r}", "endpoint") from error
    try:
        return HuggingFaceTokenizer(Tokenizer.from_pretrained(name))
    except Exception as error:  # the Rust library raises nothing more specific
        raise EmbedderError(
            f"tokenizer {name!r} cannot be found: there is no such file or folder, tiktoken knows no such encoding or"
            f" model, and the HuggingFace hub did not give it ({_first_line(error)})",
            Kind.VECTORIZER,
        ) from error


def _frame(tokenizer: Any, special_tokens: int) -> Frame | None:
    """Finds the special tokens around an input; None where they do not stand at its ends, or change with it."""
    encoding = tokenizer.encode("a")
    special, ids = encoding.special_tokens_mask, np.array(encoding.ids, np.int32)
    inner = [i for i, flag in enumerate(special) if not flag]
    if not inner or inner[-1] - inner[0] + 1 != len(inner) or len(ids) - len(inner) != special_tokens:
        return None
    return Frame(ids[: inner[0]], ids[inner[-1] + 1 :])


def _works_by_words(definition: dict[str, Any]) -> bool:
    """Tells from a ``tokenizer.json`` whether each word between two gaps surely has the same tokens in any text."""
    normalizer, pre_tokenizer = definition.get("normalizer"), definition.get("pre_tokenizer")
    return (
        definition["model"].get("type") in _WORDWISE_MODELS
        and (pre_tokenizer or {}).get("type") in _WORDWISE_PRE_TOKENIZERS
        and (normalizer or {}).get("type") in _WORDWISE_NORMALIZERS
        and not any(_WORD.fullmatch(token["content"]) is None for token in definition.get("added_tokens") or ())
    )


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Yields ``(start, piece)``; each ends before whitespace, or anywhere in a word longer than ``LONGEST_WORD``."""
    start = 0
    while len(text) - start > PIECE:
        gap = _LAST_GAP.match(text, start + PIECE - LONGEST_WORD, start + PIECE)
        end = gap.end() if gap else start + PIECE
        yield start, text[start:end]
        start = end
    if start < len(text):
        yield start, text[start:]


def _batches(texts: Sequence[str]) -> Iterator[list[int]]:
    """Yields the indexes of the texts of at most ``PIECE`` characters in groups of as many characters."""
    batch: list[int] = []
    characters = 0
    for i, text in enumerate(texts):
        if len(text) > PIECE:
            continue
        if batch and characters + len(text) > PIECE:
            yield batch
            batch, characters = [], 0
        batch.append(i)
        characters += len(text)
    if batch:
        yield batch


def _joined(parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Joins ``(n, 2)`` arrays in one that grows in place: a list of them and their sum would take twice the memory."""
    joined = np.empty((0, 2), np.int64)
    filled = 0
    for part in parts:
        if filled + len(part) > len(joined):
            joined.resize((max(filled + len(part), len(joined) * 9 // 8), 2), refcheck=False)
        joined[filled : filled + len(part)] = part
        filled += len(part)
    joined.resize((filled, 2), refcheck=False)
    return joined


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
