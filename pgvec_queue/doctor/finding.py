"""What a check has found: how bad it is, in a sentence, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "note", "warning", "error"]
"""``error``: something would fail. ``warning``: it works, and badly. ``note``: good to know, or not to be known."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. Texts may come from the database: whoever prints them makes them plain."""

    level: Level
    check: str
    """What was looked at, in a word or two."""
    message: str
    remedy: str | None = None
    """What to do; nothing where nothing is wrong."""
    vectorizer: str | None = None
    """The one that it is about."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def ok(check: str, message: str, *, vectorizer: str | None = None) -> Finding:
    return Finding("ok", check, message, None, vectorizer)


def note(check: str, message: str, remedy: str | None = None, *, vectorizer: str | None = None) -> Finding:
    return Finding("note", check, message, remedy, vectorizer)


def warning(check: str, message: str, remedy: str, *, vectorizer: str | None = None) -> Finding:
    return Finding("warning", check, message, remedy, vectorizer)


def error(check: str, message: str, remedy: str, *, vectorizer: str | None = None) -> Finding:
    return Finding("error", check, message, remedy, vectorizer)


def size(count: float) -> str:
    """Returns bytes as a person reads them, such as ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def listed(names: list[str], most: int = 5) -> str:
    """Returns some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
