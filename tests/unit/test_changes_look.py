"""When a worker that reads a range looks for live changes: soon in a small fleet, seldom each in a large one."""

from __future__ import annotations

import pytest

from pgvec_queue.worker.changes_look import ChangesLook


def looked(fleet: int, took: float = 0.001) -> ChangesLook:
    """One that has looked at 100 s."""
    look = ChangesLook()
    assert look.is_due(100.0, told=False)
    look.begins(100.0, fleet)
    look.took(100.0, 100.0 + took)
    return look


def test_a_worker_that_is_told_looks_half_a_second_after_the_look_before() -> None:
    look = looked(4)
    assert not look.is_due(100.4, told=True)
    assert look.is_due(100.5, told=True)
    assert not look.is_due(101.9, told=False)
    assert look.is_due(102.0, told=False)


@pytest.mark.parametrize("fleet", [1, 20, 100, 300, 1_000])
def test_all_of_a_fleet_together_look_about_ten_times_a_second(fleet: int) -> None:
    """Fifty times where they are told again and again."""
    look = looked(fleet)
    for told, most in ((False, 10.0), (True, 50.0)):
        apart = next(i / 100 for i in range(1, 100_000) if look.is_due(100 + i / 100, told=told))
        assert fleet / apart <= most
        assert apart <= 2.0 or fleet > 20


def test_a_look_that_takes_long_is_not_repeated_soon() -> None:
    look = looked(1, took=1.0)
    assert not look.is_due(149.9, told=True)
    assert not look.is_due(149.9, told=False)
    assert look.is_due(150.0, told=False)
