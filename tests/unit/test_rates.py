"""How fast a device is taken to be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvec_queue.worker.rates import Rate


def test_a_rate_is_unknown_then_what_was_seen_and_follows_within_seconds() -> None:
    rate = Rate()
    assert rate.per_second == 0
    rate.add(0, 1)
    rate.add(1, 0)
    assert rate.per_second == 0
    rate.add(300, 3)
    assert rate.per_second == pytest.approx(100)
    for _ in range(10):
        rate.add(1_000, 1)
    assert rate.per_second == pytest.approx(1_000, rel=0.05)


@given(calls=st.lists(st.floats(0.001, 0.02), max_size=20))
def test_short_calls_weigh_little(calls: list[float]) -> None:
    """Ten times slower, as a single text is on a fast device."""
    rate = Rate()
    for _ in range(5):
        rate.add(3_000, 1)
    for seconds in calls:
        rate.add(300 * seconds, seconds)
    assert rate.per_second > 2_500
