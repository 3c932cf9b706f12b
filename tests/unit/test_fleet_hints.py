"""When a worker looks for jobs since it was told of some: at once in a small fleet, not all together in a large one."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pgvec_queue.worker.state import State


class Timers:
    """Takes the place of ``threading.Timer``: what is set, and when it would go off."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set: list[tuple[float, Any]] = []
        timers = self

        class Timer:
            daemon = False

            def __init__(self, seconds: float, function: Any) -> None:
                self._what = (seconds, function)

            def start(self) -> None:
                timers.set.append(self._what)

        monkeypatch.setattr(threading, "Timer", Timer)

    def go_off(self) -> float:
        """Lets the only one go off; returns after how many seconds it would have."""
        ((seconds, function),) = self.set
        self.set.clear()
        function()
        return float(seconds)


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Timers:
    return Timers(monkeypatch)


def of_fleet(size: int) -> State:
    state = State()
    state.fleet = size
    return state


def test_in_a_small_fleet_all_look_at_once(timers: Timers) -> None:
    state = of_fleet(8)
    state.woken()
    assert state.wake.is_set()
    assert state.news.is_set()
    assert timers.set == []


def test_a_large_fleet_spreads_its_looks(timers: Timers) -> None:
    for size, most in ((100, 0.5), (1_000, 2.0)):
        state = of_fleet(size)
        state.woken()
        assert not state.wake.is_set()
        assert 0 <= timers.go_off() <= most
        assert state.wake.is_set()


def test_several_hints_before_a_look_are_one(timers: Timers) -> None:
    state = of_fleet(1_000)
    for _ in range(5):
        state.woken()
    assert len(timers.set) == 1


def test_a_hint_during_a_look_is_another_one(timers: Timers) -> None:
    state = of_fleet(1_000)
    state.woken()
    timers.go_off()
    state.woken()
    state.looked(in_vain=True)
    assert len(timers.set) == 1, "what it says may be too late for the look that was under way"


def test_whoever_was_told_and_found_nothing_waits_before_it_looks_again(timers: Timers) -> None:
    state = of_fleet(1_000)
    state.woken()
    timers.go_off()
    state.looked(in_vain=True)
    state.woken()
    assert 20 < timers.go_off() <= 75, "all together about twenty times a second"


def test_whoever_found_something_looks_soon_again(timers: Timers) -> None:
    state = of_fleet(1_000)
    for in_vain in (True, False):
        state.woken()
        timers.go_off()
        state.looked(in_vain=in_vain)
    state.woken()
    assert timers.go_off() <= 2.0


def test_a_poll_in_vain_delays_no_hint(timers: Timers) -> None:
    state = of_fleet(1_000)
    state.looked(in_vain=True)
    state.woken()
    assert timers.go_off() <= 2.0


def test_plenty_is_looked_for_soon_whatever_was_in_vain_before(timers: Timers) -> None:
    state = of_fleet(1_000)
    state.woken()
    timers.go_off()
    state.looked(in_vain=True)
    state.wake.clear()
    state.told_of_plenty()
    assert timers.go_off() <= 2.0
    assert state.wake.is_set()


def test_a_real_timer_wakes() -> None:
    state = of_fleet(9)
    began = time.monotonic()
    state.woken()
    assert state.wake.wait(5)
    assert time.monotonic() - began < 5
    assert isinstance(state.wake, threading.Event)
