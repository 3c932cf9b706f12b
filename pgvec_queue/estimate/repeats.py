"""How many of the chunks are equal to another: an HNSW index keeps one element for up to ten equal vectors.

What one document repeats is seen as a whole where it is drawn. Of a text that stands in two documents, both have to be
drawn to be noticed, so each such pair stands for as many as the chance of meeting both says. In how many documents such
a text stands remains unknown: in as many as it was met in, at least, and in as many as these together stand for, at
most. The two give the bounds, their geometric mean the estimate.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations

from pgvec_queue.estimate.documents import Drawn
from pgvec_queue.estimate.totals import Floats, Interval

PER_ELEMENT = 10
_MOST_COPIES = 100
"""Of a text, that are looked at pair by pair."""
_MOST_REPEATED = 0.95


def distinct(documents: Sequence[Drawn], weights: Floats, scale: float, chunks: Interval) -> Interval:
    """Returns how many elements the chunks make.

    ``weights`` ``(n,)`` is how many documents of the first step each of the drawn stands for, and each of these for
    ``scale`` of the source.
    """
    owners: dict[int, list[int]] = defaultdict(list)
    within = 0.0
    for index, one in enumerate(documents):
        own = Counter(one.marks)
        within += float(weights[index]) * scale * sum((times - 1) * _share(times) for times in own.values())
        for mark in own:
            owners[mark].append(index)
    fewest = most = 0.0
    for met in owners.values():
        if len(met) > 1:
            low, high = _repeated(met, weights, scale)
            fewest, most = fewest + low, most + high
    most = min(most, max(_MOST_REPEATED * chunks.low - within, 0.0))
    fewest = min(fewest, most)
    between = math.sqrt(fewest * most)
    return Interval(
        *(
            max(bound, 0.0)
            for bound in (chunks.estimate - within - between, chunks.low - within - most, chunks.high - within - fewest)
        )
    )


def _repeated(met: Sequence[int], weights: Floats, scale: float) -> tuple[float, float]:
    """Returns how many chunks a text saves that was met in these documents: at least, and at most."""
    some = met[:_MOST_COPIES]
    pairs = sum(float(weights[one] * weights[other]) * scale**2 for one, other in combinations(some, 2))
    pairs *= (len(met) / len(some)) ** 2
    standing_for = sum(float(weights[one]) for one in met) * scale
    bounds = sorted(2 * pairs / times * _share(times) for times in (float(len(met)), standing_for))
    return bounds[0], bounds[1]


def _share(times: float) -> float:
    """Of all copies but one, those that need no element of their own."""
    return (times - math.ceil(times / PER_ELEMENT)) / (times - 1) if times > 1 else 0.0
