"""Pieces of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([*_<>\[\]#$|{}\\])")
_OPTION = re.compile(r"(?<![\w-])(--[a-z][\w-]*)")


def code(text: str) -> str:
    """Returns a code span, whatever is in it."""
    ticks = "`" * (1 + max((len(found) for found in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}" if text else ""


def prose(text: str) -> str:
    """Returns text as it stands: what Markdown would read as its own is escaped, but for code between backticks."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        parts = [text.replace("`", "\\`")]
    return "".join(f"`{part}`" if at % 2 else _escaped(part) for at, part in enumerate(parts))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of cells that are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _escaped(text: str) -> str:
    parts = _OPTION.split(text)
    return "".join(f"`{part}`" if at % 2 else _SPECIAL.sub(r"\\\1", part) for at, part in enumerate(parts))


def _cell(text: str) -> str:
    # Within a code span too, a bar ends the cell unless a backslash is before it.
    return re.sub(r"(?<!\\)\|", r"\\|", text.replace("\n", " "))
