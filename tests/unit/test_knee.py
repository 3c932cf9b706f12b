"""Where a fleet stops scaling, and which reason is given."""

from __future__ import annotations

from dataclasses import replace

from pgvec_queue.bench import knee
from pgvec_queue.bench.knee import CLIENT, Step

GOOD = Step(10, share=1.0, claim_p99_ms=9.0, late_share=0.0, lost=0, server_cores=0.1, simulator_cores=0.1)
SLOW = replace(GOOD, workers=100, share=0.5)


def why(step: Step, cores: int = 8) -> str:
    found = knee.find([step], cores)
    assert found is not None
    return found.why


def test_a_fleet_that_keeps_the_bars_has_no_knee() -> None:
    assert knee.find([GOOD, replace(GOOD, workers=1_000)], 8) is None
    assert knee.find([], 8) is None


def test_the_knee_is_the_smallest_size_that_misses_a_bar() -> None:
    found = knee.find([replace(GOOD, workers=1_000, lost=3), SLOW, GOOD], 8)
    assert found is not None
    assert (found.workers, found.missed) == (100, ["50% of what the devices could do"])
    assert found.text.startswith("the knee is at 100 workers: 50% of what the devices could do; ")


def test_every_bar_is_named_that_is_missed() -> None:
    found = knee.find([replace(GOOD, claim_p99_ms=250.0, late_share=0.02, lost=1)], 8)
    assert found is not None
    assert found.missed == [
        "a claim takes 250 ms (p99)",
        "2.0% of the heartbeats begin more than 1 s late",
        "1 leases were lost",
    ]


def test_full_processors_come_before_every_other_reason() -> None:
    full = replace(SLOW, server_cores=1.2, pooler_cores=0.2, simulator_cores=0.5, waiting=50, lag_p99_ms=500.0)
    said = why(full, cores=2)
    assert said == "this machine's 2 cores are full: the database 1.20, pgbouncer 0.20, the simulated workers 0.50"


def test_the_poolers_one_thread_may_be_what_is_full() -> None:
    assert why(replace(SLOW, pooler_cores=0.95)).startswith("pgbouncer's one thread is full")


def test_late_simulated_workers_are_no_fault_of_the_database() -> None:
    assert "themselves are late, by 300 ms" in why(replace(SLOW, lag_p99_ms=300.0, waiting=9))
    assert "themselves are late" in why(replace(SLOW, busiest_core=0.9))
    said = why(replace(SLOW, waits={CLIENT: 30.0, "CPU": 1.0}, waiting=9))
    assert said.startswith("most transactions wait for the simulated workers' next statement")


def test_a_pool_that_is_too_small_is_named() -> None:
    assert why(replace(SLOW, waiting=70, waits={"CPU": 3.0})).startswith("70 clients of pgbouncer wait")


def test_else_it_is_what_sessions_wait_for() -> None:
    step = replace(SLOW, waits={"LWLock:WALWrite": 5.0, "CPU": 4.0, "IO:WalSync": 2.0})
    assert why(step) == "sessions of the server wait for LWLock:WALWrite 5.0, IO:WalSync 2.0"
    assert why(SLOW) == "nothing that was looked at is full"


def test_workers_per_core_are_those_of_the_largest_fleet_that_keeps_the_bars() -> None:
    kept = replace(GOOD, workers=300, server_cores=1.5)
    assert knee.workers_per_core([GOOD, kept, replace(SLOW, workers=1_000, server_cores=0.5)]) == (200, kept)
    assert knee.workers_per_core([SLOW]) is None
    assert knee.workers_per_core([replace(GOOD, server_cores=None)]) is None
