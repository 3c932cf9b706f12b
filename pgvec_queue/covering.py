"""Tells whether stored chunks are pieces of a text that hold all of it, by whatever rule they were cut.

Whoever cut them: chunks that were made of this text by a splitter lie in it one after the other, each with text that
the one before it has not, and between them is nothing but white space, or what the splitter cut at and dropped.
Where a text repeats itself a chunk may lie in many places: then up to ``MOST`` of them are looked at, and beyond that
the answer may be no for chunks that are right, never yes for others. Knows nothing of tokens.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections.abc import Sequence

MOST = 1_000
"""Places in which one chunk is looked for."""


def covers(text: str, pieces: Sequence[str], dropped: Sequence[str] = ()) -> bool:
    """True where ``pieces``, in this order, are verbatim pieces of ``text`` that leave only white space out.

    Neighbours may overlap. ``dropped`` names what may be missing between them besides white space.
    """
    gap = _gap(tuple(dropped))
    # Where the last piece may start, in order, and for each place the first text that no piece has.
    starts, fresh = [-1], [_after(gap, text, 0)]
    for piece in pieces:
        next_starts, next_fresh = [], []
        beyond = fresh[-1] + len(piece)
        at = text.find(piece, starts[0] + 1, beyond) if piece else -1
        for _ in range(MOST):
            if at < 0:
                break
            # Of the places that leave no gap before this one, the first: of all it reaches least far.
            before = bisect_left(fresh, at)
            if starts[before] < at and fresh[before] < at + len(piece):
                next_starts.append(at)
                next_fresh.append(_after(gap, text, at + len(piece)))
            at = text.find(piece, at + 1, beyond)
        if not next_starts:
            return False
        starts, fresh = next_starts, next_fresh
    return fresh[-1] == len(text)


def in_order(text: str, pieces: Sequence[str]) -> list[str]:
    """Returns pieces whose order is not known in that of their first occurrence in ``text``."""
    return sorted(pieces, key=lambda piece: (text.find(piece), len(piece)))


@functools.lru_cache(maxsize=16)
def _gap(dropped: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("(?:" + "|".join([r"\s", *map(re.escape, filter(None, dropped))]) + ")*")


def _after(gap: re.Pattern[str], text: str, start: int) -> int:
    found = gap.match(text, start)
    assert found is not None
    return found.end()
