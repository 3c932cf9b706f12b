"""Recall: which share of the nearest is found, where some are equally near."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvec_queue.recall import K, share_found

EXACT = [1.0, *(0.9 - i / 100 for i in range(K))]
SCORES = st.lists(st.integers(-1000, 1000).map(lambda n: n / 1000), min_size=2, max_size=40)


@pytest.mark.parametrize(
    ("through", "share"),
    [
        (EXACT, 1.0),
        ([], 0.0),
        (EXACT[:1], 0.0),
        (EXACT[1:], 1.0),
        (EXACT[:6], 0.5),
        ([*EXACT[:-1], 0.1], 0.9),
        ([1.0, *[EXACT[-1]] * K], 1.0),
        ([1.0, *[EXACT[-1] - 1e-3] * K], 0.0),
    ],
    ids=["all", "none", "only itself", "all but itself", "half", "one too far", "as near as the tenth", "all too far"],
)
def test_the_share_is_of_those_as_near_as_the_tenth_without_the_query_itself(
    through: list[float], share: float
) -> None:
    assert share_found(EXACT, through) == pytest.approx(share)


@given(scores=SCORES, data=st.data())
def test_what_is_not_found_lowers_it_by_its_part(scores: list[float], data: st.DataObject) -> None:
    """An index gives some of the vectors, in their order; what it misses is made up for by those further away."""
    everybody = [2.0, *sorted(scores, reverse=True)]
    exact = everybody[: K + 1]
    missed = data.draw(st.sets(st.integers(1, len(everybody) - 1)))
    through = [score for place, score in enumerate(everybody) if place not in missed][: K + 1]
    near = sum(score >= exact[-1] for score in through) - 1
    assert share_found(exact, through) == pytest.approx(min(near, len(exact) - 1) / (len(exact) - 1))
    assert share_found(exact, exact) == 1.0
