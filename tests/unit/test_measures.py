"""What a worker counts, by a clock of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast

import pytest

from pgvec_queue.database import stage
from pgvec_queue.queue import Job
from pgvec_queue.slices import Fate, Written
from pgvec_queue.worker.measures import (
    ACTIVITIES,
    BATCH_BOUNDS,
    BLOCKED,
    HELD,
    OTHER,
    STAGES,
    STARVED,
    WORKING,
    Measures,
)


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
def measures(clock: Clock) -> Measures:
    return Measures(clock)


@pytest.fixture
def as_reader() -> Iterator[None]:
    """This thread is the reader."""
    token = stage.set("reader")
    yield
    stage.reset(token)


def written(**numbers: object) -> Written:
    return Written(Fate.WRITTEN, cast(Job, None), **numbers)  # type: ignore[arg-type]


def reader(measures: Measures) -> list[float]:
    """The reader's seconds, in the order of the activities."""
    seconds = measures.read().seconds
    return [seconds["reader", activity] for activity in ACTIVITIES]


def test_writes_add_up_by_vectorizer(measures: Measures) -> None:
    for _ in range(3):
        measures.written("a", written(rows_right=5, rows_embedded=4, rows_wasted=1, chunks_written=9, tokens=70))
    measures.written("b", written(bytes_written=1_000, chunks_reused=2))
    tallies = measures.read().tallies
    a, b = tallies["a"], tallies["b"]
    assert (a.writes, a.rows_right, a.rows_embedded, a.rows_wasted, a.chunks_written, a.tokens) == (
        3,
        15,
        12,
        3,
        27,
        210,
    )
    assert (b.writes, b.bytes_written, b.chunks_reused, b.tokens) == (1, 1_000, 2, 0)


def test_a_counter_never_falls_though_live_changes_may_take_more_rows_away_than_they_bring(measures: Measures) -> None:
    measures.written("a", written(rows_right=5))
    measures.written("a", written(rows_right=-3))
    assert measures.read().tallies["a"].rows_right == 5


def test_error_classes_are_bounded(measures: Measures) -> None:
    for number in range(200):
        measures.written("a", written(error_classes=[f"SQLSTATE {number:05}", "NotFinite"]))
    failures = measures.read().tallies["a"].failures
    assert failures["NotFinite"] == 200
    assert failures.total() == 400
    assert len(failures) == 51
    assert failures[OTHER] == 400 - 200 - 49


def test_what_was_read_does_not_change_any_more(measures: Measures) -> None:
    measures.written("a", written(tokens=1, error_classes=["NotFinite"]))
    read = measures.read()
    measures.written("a", written(tokens=1, error_classes=["NotFinite"]))
    assert (read.tallies["a"].tokens, read.tallies["a"].failures["NotFinite"]) == (1, 1)


def test_claims_thefts_and_what_was_given_up_are_told_apart(measures: Measures) -> None:
    measures.claimed("a", stolen=False)
    measures.claimed("a", stolen=True)
    measures.claimed("a", stolen=False)
    measures.given_up("a")
    measures.wasted("a", 7)
    tally = measures.read().tallies["a"]
    assert (tally.claims, tally.steals, tally.slices_dropped, tally.rows_wasted) == (2, 1, 1, 7)


def test_batches_fall_into_buckets_by_their_tokens_with_padding(measures: Measures) -> None:
    measures.batches([(16, 16), (17, 10), (1_024, 1_000), (1_000_000, 900_000)], 40)
    read = measures.read()
    assert len(read.batches) == len(BATCH_BOUNDS) + 1
    assert dict(zip([*BATCH_BOUNDS, 0], read.batches, strict=True)) == {
        **dict.fromkeys([*BATCH_BOUNDS], 0),
        16: 1,
        64: 1,
        1_024: 1,
        0: 1,
    }
    assert (read.batch_tokens, read.padding_tokens) == (1_001_057, 100_031)
    assert read.chunks_embedded == 40


@pytest.mark.usefixtures("as_reader")
def test_a_stage_works_unless_it_says_that_it_waits(measures: Measures, clock: Clock) -> None:
    with measures.stage("reader"):
        clock.now += 3
        with measures.waiting(STARVED):
            clock.now += 5
        clock.now += 1
        with measures.waiting(BLOCKED):
            clock.now += 7
            with measures.waiting(HELD):
                clock.now += 2
            clock.now += 1
    clock.now += 1_000
    assert reader(measures) == [4, 5, 8, 2]
    assert sum(measures.read().seconds.values()) == 19, "other stages have spent nothing"


@pytest.mark.usefixtures("as_reader")
def test_what_is_still_going_on_counts_and_no_number_ever_falls(measures: Measures, clock: Clock) -> None:
    with measures.stage("reader"), measures.waiting(STARVED):
        clock.now += 60
        assert reader(measures) == [0, 60, 0, 0]
        clock.now += 1
    assert reader(measures) == [0, 61, 0, 0]


@pytest.mark.usefixtures("as_reader")
def test_a_stage_that_fails_while_it_waits_has_ended(measures: Measures, clock: Clock) -> None:
    def fail() -> None:
        with measures.stage("reader"), measures.waiting(BLOCKED):
            clock.now += 2
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    clock.now += 10
    assert reader(measures) == [0, 0, 2, 0]


def test_waits_of_a_thread_that_is_no_stage_count_nowhere(measures: Measures, clock: Clock) -> None:
    with measures.stage("heartbeat"), measures.waiting(STARVED):
        clock.now += 5
    assert set(measures.read().seconds) == {(name, activity) for name in STAGES for activity in ACTIVITIES}
    assert sum(measures.read().seconds.values()) == 0


def test_stages_side_by_side_have_times_of_their_own(measures: Measures, clock: Clock) -> None:
    inside, over = threading.Barrier(2), threading.Barrier(2)

    def write() -> None:
        stage.set("writer")
        with measures.stage("writer"), measures.waiting(STARVED):
            inside.wait(10)
            over.wait(10)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    token = stage.set("reader")
    with measures.stage("reader"):
        inside.wait(10)
        clock.now += 4
        over.wait(10)
    stage.reset(token)
    thread.join(10)
    seconds = measures.read().seconds
    assert (seconds["reader", WORKING], seconds["writer", STARVED], seconds["writer", WORKING]) == (4, 4, 0)


def test_the_age_of_a_heartbeat_counts_from_its_beginning(measures: Measures, clock: Clock) -> None:
    assert (measures.beat_age, measures.beat_time) == (None, None)
    measures.beat_error = "connection refused"
    measures.beat(99.0)
    clock.now += 4
    assert measures.beat_age == 5
    assert measures.beat_error is None
