"""Totals from a sample: exact where all was seen, and an interval that holds the truth where it was not."""

from __future__ import annotations

import numpy as np
import pytest

from pgvec_queue.estimate.documents import draw
from pgvec_queue.estimate.totals import Floats, Indexes, Interval, Population, Totals

PAGE_ROWS = 20


def _population(
    sizes: Floats, pages: Indexes | None = None, *, rows_error: float = 0.0, filtered: bool = False
) -> Population:
    """A table of pages of 20 rows of these sizes, of which those ``pages`` were read; all of them without."""
    every = np.arange(-(-len(sizes) // PAGE_ROWS))
    read = every if pages is None else pages
    rows = [np.arange(page * PAGE_ROWS, min((page + 1) * PAGE_ROWS, len(sizes))) for page in read]
    return Population(
        rows=float(len(sizes)),
        rows_error=rows_error,
        cluster_rows=np.array([len(some) for some in rows], np.float64),
        cluster=np.repeat(np.arange(len(read)), [len(some) for some in rows]),
        sizes=sizes[np.concatenate(rows)],
        complete=pages is None,
        filtered=filtered,
    )


def _holds(interval: Interval, truth: float) -> bool:
    return interval.low - 1e-6 <= truth <= interval.high + 1e-6


def test_where_all_was_read_every_number_is_exact() -> None:
    sizes = np.arange(1.0, 101.0)
    population = _population(sizes)
    totals = Totals(population, *draw(population.sizes, 200, np.random.default_rng(0)))
    assert totals.source_rows() == totals.selected() == Interval.exactly(100)
    assert totals.total(sizes * 3) == Interval.exactly(3 * 5050)
    assert totals.count(sizes > 90) == Interval.exactly(10)
    assert totals.count(sizes > 1000) == Interval.exactly(0)


def test_a_measure_that_follows_from_the_size_needs_few_documents() -> None:
    random = np.random.default_rng(1)
    sizes = random.lognormal(6, 1.5, 50_000)
    population = _population(sizes)
    drawn, chances = draw(population.sizes, 500, random)
    found = Totals(population, drawn, chances).total(population.sizes[drawn] / 4 + 2)
    truth = float(sizes.sum() / 4 + 2 * len(sizes))
    assert found.estimate == pytest.approx(truth, rel=1e-6)
    assert found.high / found.low < 1.02


def test_what_was_seen_in_no_document_is_not_said_to_be_nowhere() -> None:
    random = np.random.default_rng(2)
    population = _population(random.lognormal(6, 1, 10_000))
    drawn, chances = draw(population.sizes, 400, random)
    found = Totals(population, drawn, chances).count(np.zeros(len(drawn), bool))
    assert (found.estimate, found.low) == (0, 0)
    assert 25 < found.high < 250
    every = Totals(population, drawn, chances).count(np.ones(len(drawn), bool))
    assert every.high == every.estimate == 10_000
    assert every.low < 9_975


def test_large_documents_are_drawn_more_often_and_their_chances_are_told() -> None:
    random = np.random.default_rng(3)
    sizes = random.lognormal(6, 1.5, 20_000)
    drawn, chances = draw(sizes, 1_000, random)
    assert 850 < len(drawn) < 1_150
    assert sizes[drawn].mean() > 1.5 * sizes.mean()
    assert (1 / chances).sum() == pytest.approx(20_000, rel=0.15)
    assert chances.max() <= 1


def test_small_documents_count_as_much_as_large_ones_however_seldom_they_are_drawn() -> None:
    random = np.random.default_rng(8)
    sizes = random.lognormal(6, 1.5, 20_000)
    small = sizes < np.quantile(sizes, 0.3)
    population = _population(sizes)
    found = []
    for _ in range(30):
        drawn, chances = draw(sizes, 1_000, random)
        found.append(Totals(population, drawn, chances).count(small[drawn]).estimate)
    assert np.mean(found) == pytest.approx(small.sum(), rel=0.03)


def test_documents_beyond_a_budget_of_text_are_not_drawn() -> None:
    sizes = np.full(3_000, 1_000_000.0)
    drawn, _ = draw(sizes, 2_000, np.random.default_rng(4))
    assert 5 <= len(drawn) <= 45


@pytest.mark.parametrize("alike", [False, True], ids=["mixed pages", "pages that are alike within"])
@pytest.mark.parametrize("pages", [40, 200])
def test_intervals_hold_the_truth_nineteen_times_in_twenty(alike: bool, pages: int) -> None:
    random = np.random.default_rng(5)
    held = dict.fromkeys(("tokens", "chunks", "selected", "rare"), 0)
    rounds = 200
    for _ in range(rounds):
        sizes = random.lognormal(6, 1.2, 20 * 1_000)
        if alike:
            sizes *= np.repeat(random.lognormal(0, 0.7, 1_000), PAGE_ROWS)
        tokens = np.ceil(sizes / random.normal(4.5, 0.8, len(sizes)).clip(2))
        chunks = np.ceil(tokens / 128)
        chosen = np.repeat(random.random(1_000) < 0.6, PAGE_ROWS) if alike else random.random(len(sizes)) < 0.6
        rare = random.random(len(sizes)) < 0.01
        read = np.sort(random.choice(1_000, pages, replace=False))
        whole = _population(sizes, read)
        place = np.concatenate([np.arange(page * PAGE_ROWS, (page + 1) * PAGE_ROWS) for page in read])
        keep = chosen[place]
        place = place[keep]
        population = Population(
            whole.rows, 0.0, whole.cluster_rows, whole.cluster[keep], whole.sizes[keep], complete=False, filtered=True
        )
        drawn, chances = draw(population.sizes, 200, random)
        totals = Totals(population, drawn, chances)
        held["tokens"] += _holds(totals.total(tokens[place[drawn]]), tokens[chosen].sum())
        held["chunks"] += _holds(totals.total(chunks[place[drawn]]), chunks[chosen].sum())
        held["selected"] += _holds(totals.selected(), chosen.sum())
        held["rare"] += _holds(totals.count(rare[place[drawn]]), (rare & chosen).sum())
    assert min(held.values()) >= 0.9 * rounds, held


def test_not_knowing_how_many_rows_there_are_widens_every_interval() -> None:
    random = np.random.default_rng(6)
    sizes = random.lognormal(6, 1, 20_000)
    pages = np.sort(random.choice(1_000, 300, replace=False))
    found = []
    for error in (0.0, 2_000.0):
        population = _population(sizes, pages, rows_error=error)
        drawn, chances = draw(population.sizes, 500, np.random.default_rng(7))
        totals = Totals(population, drawn, chances)
        found.append([totals.total(population.sizes[drawn]), totals.selected()])
    for sure, unsure in zip(*found, strict=True):
        assert sure.estimate == pytest.approx(unsure.estimate)
        assert unsure.high / unsure.low > 1.2 * sure.high / sure.low


def test_errors_that_are_independent_add_up_as_squares() -> None:
    assert Interval(100, 50, 200).within(0) == Interval(100, 50, 200)
    wider = Interval(100, 90, 110).within(0.1)
    assert 85 < wider.low < 90
    assert 110 < wider.high < 115
    assert Interval.exactly(0).within(0.1) == Interval.exactly(0)
