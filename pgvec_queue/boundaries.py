"""Where a text may be cut: at sentence ends, at word ends, and anywhere else but inside what looks like one character.

A cut at ``p`` falls between ``text[p - 1]`` and ``text[p]``. Guarantees: a sentence or word end has a word right before
it; no cut falls before a combining mark, a joiner, a control character, a skin tone or the second half of a flag, or
after a joiner, unless a unit alone is longer than what it is to be cut to.
Does not know words of scripts written without spaces (Han, Kana, Thai, Khmer, …): there, every character ends a word.
Does not tell an abbreviation's full stop from a sentence's.
"""

from __future__ import annotations

import re
import unicodedata

_CLOSING = "\"'”’»›)\\]}〉》」』】〕〗〙］｝）＂＇"
_TERMINATORS = ".!?…‼⁇⁈⁉؟۔।॥።։"
# These end a sentence whether or not whitespace follows.
_WIDE_TERMINATORS = "。！？｡．။។།"

# Thai to Khmer, New Tai Lue and Tai Tham, CJK with its punctuation, Yi, Javanese, CJK compatibility and wide forms,
# and the planes of rarer Kana and Han.
_UNSPACED = (
    "\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u2e80-\u312f\u3190-\ua4cf\ua980-\ua9df\uf900-\ufaff\ufe30-\ufe4f"
    "\uff00-\uffef\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
# In those scripts a line, and so a chunk, neither begins with these (closing punctuation, small Kana, repetition and
# length marks, Thai and Lao vowels that follow) nor ends with those (opening punctuation, vowels that come first).
_NOT_FIRST = (
    f"{_CLOSING}{_TERMINATORS}{_WIDE_TERMINATORS}"
    ",:;%、，・：；％‥々〻ゝゞヽヾーぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶｰ"
    "\u0e2f\u0e30\u0e32\u0e33\u0e45\u0e46\u0eb0\u0eb2\u0eb3\u0ec6\u0f0b"
)
_NOT_LAST = "\"'“‘«‹(\\[{〈《「『【〔〖〘［｛（＂＇\u0e40-\u0e44\u0ec0-\u0ec4"

# What fails most often comes first: these are tried at every character.
_BETWEEN = rf"(?:(?=[{_UNSPACED}])|(?<=[{_UNSPACED}]))(?=[^\s{_NOT_FIRST}])(?<![\s{_NOT_LAST}])"
_GAP = r"(?=\s)(?<=\S)"
_SENTENCE = (
    rf"[{_TERMINATORS}][{_CLOSING}]*(?=\s)"
    rf"|[{_WIDE_TERMINATORS}][{_CLOSING}]*(?=[^{_CLOSING}{_TERMINATORS}{_WIDE_TERMINATORS}０-９])"
    rf"|{_GAP}(?=[^\S\n]*\n[^\S\n]*\n|\u2029)"
)

_LAST_SENTENCE = re.compile(f"(?s:.*)(?:{_SENTENCE})")
_LAST_GAP = re.compile(f"(?s:.*){_GAP}")
_LAST_WORD = re.compile(f"(?s:.*)(?:{_GAP}|{_BETWEEN})")
_WORD_END = re.compile(f"{_GAP}|{_BETWEEN}")
_WORD_START = re.compile(rf"(?:(?<!\S)|{_BETWEEN})(?=\S)")
_NOT_SPACE = re.compile(r"\S")

_JOINER = "\u200d"


def next_text(text: str, start: int) -> int:
    """Returns the first place at or after ``start`` that is no whitespace; ``len(text)`` if there is none."""
    found = _NOT_SPACE.search(text, start)
    return found.start() if found else len(text)


def last_sentence_end(text: str, low: int, high: int) -> int | None:
    """Returns the last sentence end in ``low < p <= high < len(text)``; None if there is none."""
    return _last(_LAST_SENTENCE, text, low, high)


def last_gap(text: str, low: int, high: int) -> int | None:
    """Returns the last place in ``low < p <= high < len(text)`` where whitespace begins; None if there is none."""
    return _last(_LAST_GAP, text, low, high)


def last_word_end(text: str, low: int, high: int) -> int | None:
    """Returns the last word end in ``low < p <= high < len(text)``; None if there is none."""
    return _last(_LAST_WORD, text, low, high)


def first_word_end(text: str, low: int, high: int) -> int | None:
    """Returns the first word end in ``low < p <= high``; None if there is none."""
    for found in _WORD_END.finditer(text, low + 1, high + 1):
        if not _glued(text, found.start(), low):
            return found.start()
    return high if high == len(text) else None


def first_word_start(text: str, low: int, high: int) -> int | None:
    """Returns the first place in ``low <= p < high`` where a word begins, ``low > 0``; None if there is none."""
    for found in _WORD_START.finditer(text, low, high):
        if not _glued(text, found.start(), low):
            return found.start()
    return None


def last_unit_end(text: str, low: int, high: int) -> int:
    """Returns the last place in ``low < p <= high < len(text)`` between two characters as a reader sees them.

    Where there is none, ``high``: the unit is longer than the range.
    """
    for place in range(high, low, -1):
        if not _glued(text, place, low):
            return place
    return high


def _last(pattern: re.Pattern[str], text: str, low: int, high: int) -> int | None:
    while low < high:
        # One character further, since the patterns look at what follows.
        found = pattern.match(text, low + 1, high + 1)
        if found is None:
            return None
        if not _glued(text, found.end(), low):
            return found.end()
        high = found.end() - 1
    return None


def _glued(text: str, place: int, low: int) -> bool:
    """True inside a unit; a row of regional indicators is paired from ``low`` on."""
    before, after = text[place - 1], text[place]
    if before.isspace() or after.isspace():
        return False
    if before == _JOINER:
        return True
    if unicodedata.category(after) in ("Mn", "Mc", "Me", "Cf", "Cc"):
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\u1160" <= after <= "\u11ff":
        return True
    if not _is_regional(after):
        return False
    first = place
    while first > low and _is_regional(text[first - 1]):
        first -= 1
    return (place - first) % 2 == 1


def _is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
