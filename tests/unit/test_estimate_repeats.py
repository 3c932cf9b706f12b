"""How many chunks are equal is told from the pairs that a sample shows."""

from __future__ import annotations

import numpy as np
import pytest

from pgvec_queue.estimate.documents import Drawn, State
from pgvec_queue.estimate.repeats import distinct
from pgvec_queue.estimate.totals import Interval


def _documents(*marks: list[int]) -> list[Drawn]:
    return [Drawn((str(i),), State.NEW, marks=own) for i, own in enumerate(marks)]


def test_where_all_was_read_equal_chunks_are_counted_ten_to_an_element() -> None:
    documents = _documents([1, 2], [1, 3], [4, 4, 4], [5], *[[6]] * 25)
    found = distinct(documents, np.ones(len(documents)), 1.0, Interval.exactly(33))
    assert found.low == pytest.approx(found.high)
    assert found.estimate == pytest.approx(1 + 1 + 1 + 1 + 1 + 3)


def test_without_a_repetition_each_chunk_has_its_own() -> None:
    found = distinct(_documents([1], [2], [3]), np.full(3, 4.0), 1.0, Interval(12, 10, 15))
    assert found == Interval(12, 10, 15)


@pytest.mark.parametrize("copies", [2, 5])
def test_a_sample_bounds_what_it_cannot_see(copies: int) -> None:
    random = np.random.default_rng(copies)
    marks = np.arange(20_000) // copies
    # A third of all texts stand several times.
    marks = np.where(np.arange(20_000) < 7_000, marks, np.arange(20_000) + 100_000)
    truth = len(np.unique(marks))
    drawn = np.flatnonzero(random.random(20_000) < 0.2)
    documents = _documents(*[[int(marks[index])] for index in drawn])
    found = distinct(documents, np.full(len(drawn), 5.0), 1.0, Interval.exactly(20_000))
    assert found.low <= truth * 1.01
    assert truth <= found.high
    assert found.low < found.estimate < found.high
