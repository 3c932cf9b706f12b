"""Text that fits: foreign text made harmless and cut by the cells that it takes, numbers in a few of them, bars."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from pgvec_queue.cli.texts import plain


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters that a terminal's encoding may not have."""

    done: str = "█"
    failed: str = "▒"
    left: str = "░"
    levels: str = "▁▂▃▄▅▆▇█"
    more: str = "…"
    times: str = "×"
    arrows: str = "↑↓"


ASCII = Glyphs(done="#", failed="x", left=".", levels=".:-=+*#@", more="~", times="x", arrows="jk")


def clean(text: str) -> str:
    """Returns ``text`` in one line, of which each character takes the cells that Rich says.

    Control and format characters are written out (they turn the direction of writing, join, or are not seen), what
    chooses between forms of a character is left out, and so are marks that are piled upon one character.
    """
    text = plain(text)
    if text.isascii():
        return text
    shown: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        if category in ("Mn", "Me"):
            marks += 1
            if marks > 2 or 0xFE00 <= ord(character) <= 0xFE0F:
                continue
        elif category in ("Cf", "Cn", "Co", "Cs"):
            shown.append(character.encode("unicode_escape").decode())
            continue
        else:
            marks = 0
        shown.append(character)
    return "".join(shown)


def fitted(text: str, width: int, more: str = "…") -> str:
    """Returns ``text``, which is clean, cut to at most ``width`` cells; what is cut ends in ``more``."""
    if cell_len(text) <= width:
        return text
    return _head(text, width - 1) + more if width > 0 else ""


def padded(text: str, width: int, *, right: bool = False, more: str = "…") -> str:
    """Returns ``text``, which is clean, in exactly ``width`` cells."""
    text = fitted(text, width, more)
    room = " " * (width - cell_len(text))
    return room + text if right else text + room


def wrapped(text: str, width: int, lines: int, more: str = "…") -> list[str]:
    """Returns ``text``, which is clean, in at most so many lines, broken between words where that can be."""
    found: list[str] = []
    rest = text
    while rest and len(found) < lines:
        if len(found) == lines - 1 or cell_len(rest) <= width:
            found.append(fitted(rest, width, more))
            break
        head = _head(rest, width)
        if rest[len(head)] != " " and " " in head.strip():
            head = head[: head.rindex(" ")]
        if not head:
            break
        found.append(head)
        rest = rest[len(head) :].lstrip(" ")
    return found


def _head(text: str, width: int) -> str:
    """Returns as much of the beginning of ``text`` as fits into ``width`` cells."""
    cells = 0
    for index, character in enumerate(text):
        cells += cell_len(character)
        if cells > width:
            return text[:index]
    return text


_UNITS = ((1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k"))


def count(number: int) -> str:
    """Returns a number in at most six cells (below 10^15), never rounded up: ``61.2M`` is at least that many."""
    if number < 100_000:
        return f"{number:,}"
    size, unit = next((size, unit) for size, unit in _UNITS if number >= size)
    places = 0 if number >= 100 * size else 1 if number >= 10 * size else 2
    return f"{number * 10**places // size / 10**places:,.{places}f}{unit}"


def speed(number: float) -> str:
    """Returns rows per second in a few cells; empty where nothing moves."""
    if number <= 0:
        return ""
    return f"{number:.1f}" if number < 10 else count(round(number))


def share(part: int, whole: int) -> str:
    """Returns a share such as ``61.2 %``; what is not the whole is not yet 100 %."""
    if part >= whole:
        return "100 %"
    return f"{min(100 * part / whole, 99.9):.1f} %"


def about(seconds: float) -> str:
    """Returns a time in one unit, such as ``45 s``, ``12 min``, ``5 h`` or ``3 d``."""
    for limit, size, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) / size:.0f} {unit}"
    return f"{seconds / 86_400:,.0f} d"


def between(low: float, high: float) -> str:
    """Returns a span of time, such as ``10 to 15 min``."""
    first, last = about(low), about(high)
    if first == last:
        return first
    number, unit = first.split(" ")
    return f"{number} to {last}" if last.endswith(f" {unit}") else f"{first} to {last}"


def bar(done: int, failed: int, total: int, width: int, glyphs: Glyphs) -> str:
    """Returns a bar of ``width`` cells; it is full only when all is done, and a single failure is seen."""
    if total <= 0:
        return (glyphs.done if width > 0 else "") * width
    full = min(math.floor(width * done / total), width)
    bad = min(math.ceil(width * failed / total), width - full) if failed > 0 else 0
    if done + failed < total and full + bad == width and width > 1:
        full -= 1 if full else 0
    return glyphs.done * full + glyphs.failed * bad + glyphs.left * (width - full - bad)


def sparkline(rates: Sequence[float], glyphs: Glyphs) -> str:
    """Returns one cell per rate, the highest of them as high as can be; blank where nothing was done."""
    top = max(rates, default=0.0)
    if top <= 0:
        return " " * len(rates)
    last = len(glyphs.levels) - 1
    return "".join(" " if rate <= 0 else glyphs.levels[min(round(last * rate / top), last)] for rate in rates)
