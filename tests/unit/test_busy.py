"""The share of its time that the device works, by a clock of the test's own."""

from __future__ import annotations

import pytest

from pgvec_queue.worker.busy import WINDOW_SECONDS, Busy


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def busy(clock: Clock) -> Busy:
    return Busy(clock)


def _work(busy: Busy, clock: Clock, worked: float, waited: float) -> None:
    with busy.working():
        clock.now += worked
    clock.now += waited


def test_nothing_is_said_before_there_was_work(busy: Busy, clock: Clock) -> None:
    clock.now += 10
    assert busy.share is None


def test_the_share_is_that_of_the_time_with_work_in_hand(busy: Busy, clock: Clock) -> None:
    busy.has_work(True)
    _work(busy, clock, 3, 1)
    assert busy.share == pytest.approx(0.75)


def test_time_without_work_does_not_count(busy: Busy, clock: Clock) -> None:
    busy.has_work(True)
    _work(busy, clock, 3, 1)
    busy.has_work(False)
    clock.now += 1_000
    assert busy.share == pytest.approx(0.75)
    _work(busy, clock, 5, 0)
    assert busy.share == pytest.approx(0.75), "a call that warms the device up is no work in hand"


def test_calls_side_by_side_count_once(busy: Busy, clock: Clock) -> None:
    busy.has_work(True)
    with busy.working():
        _work(busy, clock, 2, 0)
        clock.now += 1
    clock.now += 1
    assert busy.share == pytest.approx(0.75)


def test_a_call_that_is_still_running_counts(busy: Busy, clock: Clock) -> None:
    busy.has_work(True)
    with busy.working():
        clock.now += 30
        assert busy.share == 1


def test_a_call_that_fails_has_ended(busy: Busy, clock: Clock) -> None:
    busy.has_work(True)
    call = busy.working()
    call.__enter__()
    clock.now += 1
    assert not call.__exit__(ValueError, ValueError("no"), None)
    clock.now += 1
    assert busy.share == pytest.approx(0.5)


def test_what_is_longer_ago_than_the_window_is_forgotten(busy: Busy, clock: Clock) -> None:
    busy.has_work(True)
    for _ in range(200):
        _work(busy, clock, 0.1, 0.9)
    assert busy.share == pytest.approx(0.1)
    for _ in range(round(WINDOW_SECONDS)):
        _work(busy, clock, 0.9, 0.1)
    assert busy.share == pytest.approx(0.9, abs=0.02)
