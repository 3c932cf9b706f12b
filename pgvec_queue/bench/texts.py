"""Real text to measure models with: the docstrings of Python's standard library, as many as are wanted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from pgvec_queue import demo

_STRIDE = 4_999
"""A prime: steps of it come to every docstring once, and neighbours are from different modules."""


def documents() -> Iterator[str]:
    """Yields documents without end, no two alike, always the same ones in the same order.

    First every docstring of the library once, in an order that mixes its modules; then, for those who need more, each
    with another one or two below it, so that lengths stay as mixed as they are.
    """
    found = list({one.text: None for one in demo.docstrings()})
    count = len(found)
    order = [(i * _STRIDE) % count for i in range(count)] if count % _STRIDE else list(range(count))
    for index in order:
        yield found[index]
    for distance in itertools.count(1):
        for place, index in enumerate(order):
            others = [order[(place + distance * (1 + i)) % count] for i in range(1 + place % 2)]
            yield "\n\n".join(found[one] for one in (index, *others))
