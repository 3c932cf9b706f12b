"""How many of the chunks are equal to another: an HNSW index keeps one element for up to ten equal vectors.

A sample shows few of the repetitions that there are: of a text that stands in two documents, both have to be drawn. So
each pair of equal chunks that is met stands for as many as the chance of meeting both says. How often such a text
stands in all documents remains unknown: as often as it was met, at least, and as often as its copies together stand
for, at most. The two give the bounds, their geometric mean the estimate.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from pgvec_queue.estimate_documents import Drawn
from pgvec_queue.estimate_totals import Floats, Interval

PER_ELEMENT = 10
_MOST_COPIES = 100
"""Of a text, that are looked at pair by pair."""
_MOST_REPEATED = 0.95


def distinct(documents: Sequence[Drawn], weights: Floats, scale: float, chunks: Interval) -> Interval:
    """Returns how many elements the chunks make.

    ``weights`` ``(n,)`` is how many documents of the first step each of the drawn stands for, and each of these for
    ``scale`` of the source.
    """
    copies: dict[int, list[int]] = defaultdict(list)
    for index, one in enumerate(documents):
        for mark in one.marks:
            copies[mark].append(index)
    fewest = most = 0.0
    for owners in copies.values():
        if len(owners) > 1:
            low, high = _repeated(owners, weights, scale)
            fewest, most = fewest + low, most + high
    most = min(most, _MOST_REPEATED * chunks.low)
    fewest = min(fewest, most)
    return Interval(chunks.estimate - math.sqrt(fewest * most), chunks.low - most, chunks.high - fewest)


def _repeated(owners: Sequence[int], weights: Floats, scale: float) -> tuple[float, float]:
    """Returns how many chunks a text saves that was met in these documents: at least, and at most."""
    met = owners[:_MOST_COPIES]
    pairs = sum(_pair(weights, scale, one, other) for one, other in combinations(met, 2))
    pairs *= (len(owners) / len(met)) ** 2
    standing_for = sum(float(weights[owner]) for owner in owners) * scale
    bounds = sorted(2 * pairs / times * _share(times) for times in (float(len(owners)), standing_for))
    return bounds[0], bounds[1]


def _pair(weights: Floats, scale: float, one: int, other: int) -> float:
    """How many pairs one stands for that was met; of one document, both are met or none."""
    together = float(weights[one]) * scale
    return together if one == other else together * float(weights[other]) * scale


def _share(times: float) -> float:
    """Of all copies but one, those that need no element of their own."""
    return (times - math.ceil(times / PER_ELEMENT)) / (times - 1) if times > 1 else 0.0
