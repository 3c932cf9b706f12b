"""Takes out of what is shown or logged what nobody should read there: secrets, and the text of documents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

SECRET_VARIABLES = ("PGVEC_ENDPOINT_KEY", "OPENAI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PGPASSWORD")
"""Environment variables whose values are secrets wherever they appear."""
_LEAST_SECRET = 8
"""Characters: a shorter value may be a word that stands anywhere, and hides behind the patterns only."""
_LEAST_PIECE = 8
"""Characters of a document's text in a row that are taken for its own."""

_MASK = "***"
_VALUE = r"""(?:'(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?|[^\s'"&,;}]+)"""
_PATTERNS = [
    # A password may hold a character that should have been written as %40, so all up to the last @ is one.
    (re.compile(r"(://[^\s/?#:@]*:)\S*@"), rf"\1{_MASK}@"),
    (re.compile(rf"([\w.-]*pass(?:word|wd|phrase)[\"']?\s*[=:]\s*){_VALUE}", re.IGNORECASE), rf"\1{_MASK}"),
    (
        re.compile(r"(authorization[\"']?\s*[=:]\s*[\"']?(?:[a-z]+\s+)?)[^\s\"',;}]+", re.IGNORECASE),
        rf"\1{_MASK}",
    ),
    (re.compile(r"(\bbearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1{_MASK}"),
    (
        re.compile(rf"([\w.-]*(?:api[-_]?key|access[-_]?token|endpoint_key)[\"']?\s*[=:]\s*){_VALUE}", re.IGNORECASE),
        rf"\1{_MASK}",
    ),
    (re.compile(r"\b(sk-|hf_|pgvec_api_)[\w-]{8,}"), rf"\1{_MASK}"),
]


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """Returns the values in the environment that are secrets, the longest first."""
    values = {environment.get(name, "").strip() for name in SECRET_VARIABLES}
    return sorted((value for value in values if len(value) >= _LEAST_SECRET), key=len, reverse=True)


def without_secrets(text: str, known: Iterable[str] = ()) -> str:
    """Returns ``text`` with ``***`` in place of passwords, keys and tokens, and of what is ``known`` to be one."""
    for value in known:
        text = text.replace(value, _MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def without_text(message: str, text: str) -> str:
    """Returns ``message`` in one line, with ``…`` in place of whatever it repeats of a document's ``text``.

    That is every eight characters in a row that the text holds too, however its lines are broken; of a shorter text,
    the whole of it as a word.
    """
    said, held = " ".join(message.split()), " ".join(text.split())
    if len(held) < _LEAST_PIECE:
        return re.sub(rf"(?<!\w){re.escape(held)}(?!\w)", "…", said) if held else said
    kept: list[str] = []
    at = 0
    while at < len(said):
        end = at + _LEAST_PIECE
        if end <= len(said) and said[at:end] in held:
            while end < len(said) and said[at : end + 1] in held:
                end += 1
            kept.append("…")
            at = end
        else:
            kept.append(said[at])
            at += 1
    return "".join(kept)
