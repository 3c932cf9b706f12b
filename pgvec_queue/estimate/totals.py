"""From a sample to totals with an interval: what the rows that were looked at say of all of them.

Sampled in two steps. First whole clusters of rows (pages of a table, stretches of a view): of each row only the size of
its text is known. Then documents of these, large ones with a higher chance, which are read and cut. A measure of the
documents (chunks, tokens, bytes) is a straight line over the text's size, fitted to the documents, plus what they
deviate from it; so the many sizes known from the first step carry most of the estimate (the generalized regression
estimator in two phases: Särndal, Swensson and Wretman, "Model Assisted Survey Sampling", chapter 9).

The variance takes clusters as units, since neighbours are alike. Where all rows were in the first step it is that of
the documents alone; where all documents were read there is none, and the number is exact. Intervals are meant to hold
the truth 19 times in 20. They are of ratios, ``estimate * exp(±x)``, since sizes of texts have a long tail upwards;
those of counts are Wilson's, so that what was seen in no document is not said to be nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indexes = NDArray[np.intp]

_NORMAL = 1.96
"""Quantile of the normal distribution for 95 %."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A number, and between what it lies; all three the same where it is known exactly."""

    estimate: float
    low: float
    high: float

    @classmethod
    def exactly(cls, number: float) -> Interval:
        return cls(number, number, number)

    @property
    def is_exact(self) -> bool:
        return self.low == self.high

    def times(self, factor: float) -> Interval:
        return Interval(self.estimate * factor, self.low * factor, self.high * factor)

    def plus(self, other: Interval) -> Interval:
        """The sum of two that err together."""
        return Interval(self.estimate + other.estimate, self.low + other.low, self.high + other.high)

    def within(self, spread: float) -> Interval:
        """The same with another error, independent of its own: a factor of at most ``1 + spread`` either way."""
        if self.estimate <= 0 or spread <= 0:
            return self
        up = math.hypot(math.log(self.high / self.estimate), math.log1p(spread))
        if self.low <= 0:
            return Interval(self.estimate, 0.0, self.estimate * math.exp(up))
        down = math.hypot(math.log(self.estimate / self.low), math.log1p(spread))
        return Interval(self.estimate, self.estimate * math.exp(-down), self.estimate * math.exp(up))

    def clipped(self, low: float, high: float) -> Interval:
        """The same, with nothing outside of what is known to be possible."""
        return Interval(*(min(max(value, low), high) for value in (self.estimate, self.low, self.high)))


@dataclass(frozen=True, slots=True)
class Population:
    """The first step: ``m`` clusters, and the ``k`` selected rows in them."""

    rows: float
    """Rows of the whole source."""
    rows_error: float
    """Standard error of ``rows``; 0 where they were counted."""
    cluster_rows: Floats
    """Rows of each cluster, selected or not, ``(m,)``."""
    cluster: Indexes
    """Which cluster each selected row is in, ``(k,)``."""
    sizes: Floats
    """Bytes of each selected row's text, ``(k,)``."""
    complete: bool
    """The clusters are all there are."""
    filtered: bool
    """Not every row is selected by itself: there is a filter."""


class Totals:
    """Estimates totals over all selected rows from the documents that were drawn of a ``Population``."""

    def __init__(self, population: Population, drawn: Indexes, chances: Floats) -> None:
        """``drawn`` are indexes of selected rows ``(n,)``, ``chances`` their probabilities of having been drawn."""
        self._population = population
        self._drawn = drawn
        self._weights = 1.0 / chances
        self._second = (1.0 - chances) * self._weights**2
        clusters = len(population.cluster_rows)
        self._rows = population.cluster_rows
        self._selected = np.bincount(population.cluster, minlength=clusters).astype(np.float64)
        seen = float(self._rows.sum())
        self._scale = population.rows / seen if seen else 0.0
        self._share = 1.0 if population.complete or not seen else min(1.0, seen / max(population.rows, 1.0))
        mean = float(population.sizes.mean()) if len(population.sizes) else 1.0
        # Rows without any text are known to have none of anything, and would bend the line.
        empty = (population.sizes == 0).astype(np.float64)
        self._lines = np.stack([1.0 - empty, population.sizes / max(mean, 1.0), empty], axis=1)

    @property
    def documents(self) -> int:
        """How many were drawn."""
        return len(self._drawn)

    @property
    def scale(self) -> float:
        """Rows of the source for each that was looked at."""
        return self._scale

    def source_rows(self) -> Interval:
        """Rows of the source, whatever the filter says of them."""
        rows, error = self._population.rows, self._population.rows_error
        if not error:
            return Interval.exactly(rows)
        return _around(rows, error, math.inf).clipped(float(self._rows.sum()), math.inf)

    def selected(self) -> Interval:
        """How many rows the filter selects."""
        population = self._population
        seen = len(population.sizes)
        if self._counted:
            return Interval.exactly(float(seen))
        if seen == self._rows.sum() and not population.filtered:
            return self.source_rows()
        total, first, _ = self._project(np.ones(seen), np.zeros(0), self._rows)
        return self._proportion(total, first, self.source_rows(), seen, float(len(self._rows)), len(self._rows) - 1)

    def count(self, matches: NDArray[np.bool_]) -> Interval:
        """How many selected rows are like the drawn ones for which ``matches`` ``(n,)`` is true."""
        seen = int(matches.sum())
        if self._all_read:
            return Interval.exactly(float(seen))
        if not self.documents:
            return Interval(0.0, 0.0, self.selected().high)
        fitted, deviations = self._fit(matches.astype(np.float64))
        total, first, second = self._project(fitted, deviations, self._selected)
        # Kish's effective size of a sample with unequal weights; neighbours may all be alike.
        alike = float(self._weights.sum()) ** 2 / float((self._weights**2).sum())
        if self._share < 1.0:
            alike = min(alike, float(len(np.unique(self._population.cluster[self._drawn]))))
        freedom = self._freedom(first, second)
        return self._proportion(total, first + second, self.selected(), seen, alike, freedom)

    def total(self, values: Floats) -> Interval:
        """The sum over all selected rows of what ``values`` ``(n,)`` holds for the drawn ones, none of it negative."""
        seen = float(values.sum())
        if self._all_read or not seen:
            return Interval.exactly(seen)
        fitted, deviations = self._fit(values)
        total, first, second = self._project(fitted, deviations, self._rows)
        total = max(total, seen)
        # One document among those not read may be unlike all that were, by as much as a usual one has.
        unlike = (total / self.documents) ** 2
        unsure = (total * self._population.rows_error / max(self._population.rows, 1.0)) ** 2
        error = math.sqrt(first + second + unlike + unsure)
        return _around(total, error, self._freedom(first, second)).clipped(seen, math.inf)

    @property
    def _counted(self) -> bool:
        """Every row of the source was in the first step."""
        return self._share >= 1.0 and not self._population.rows_error

    @property
    def _all_read(self) -> bool:
        return self._counted and len(self._drawn) == len(self._population.sizes)

    def _freedom(self, first: float, second: float) -> int:
        """Degrees of freedom of the step that most of the error comes from."""
        return len(self._rows) - 1 if first > second else self.documents - 2

    def _fit(self, values: Floats) -> tuple[Floats, Floats]:
        """Returns the line's value for every selected row, and by how much the drawn ones deviate from it."""
        root = np.sqrt(self._weights)
        found, *_ = np.linalg.lstsq(self._lines[self._drawn] * root[:, None], values * root, rcond=None)
        fitted = self._lines @ found
        return fitted, values - fitted[self._drawn]

    def _project(self, fitted: Floats, deviations: Floats, base: Floats) -> tuple[float, float, float]:
        """Returns the total over the whole source, and the variances that the two steps give it.

        ``base`` is what each cluster's part is in proportion to, ``(m,)``.
        """
        clusters = len(self._rows)
        parts = np.bincount(self._population.cluster, fitted, minlength=clusters)
        first = second = 0.0
        if len(deviations):
            of_drawn = self._population.cluster[self._drawn]
            parts = parts + np.bincount(of_drawn, self._weights * deviations, minlength=clusters)
            lost = len(deviations) / max(len(deviations) - 2, 1)
            second = self._scale**2 * self._share * lost * float((self._second * deviations**2).sum())
        total = float(parts.sum())
        if self._share < 1.0:
            unexplained = parts - total / max(float(base.sum()), 1.0) * base
            lost = clusters / max(clusters - 1, 1)
            first = self._scale**2 * (1.0 - self._share) * lost * float((unexplained**2).sum())
        return total * self._scale, first, second

    @staticmethod
    def _proportion(total: float, variance: float, of: Interval, seen: int, alike: float, freedom: int) -> Interval:
        """A count out of ``of``; ``alike`` is how many draws the sample is worth where it shows no variance."""
        if of.estimate <= 0:
            return Interval(0.0, 0.0, of.high)
        share = min(max(total / of.estimate, 0.0), 1.0)
        # Of what was all looked at nothing is left that could be otherwise.
        draws = alike / max(1.0 - min(alike / of.estimate, 1.0), 1e-9)
        if 0.0 < share < 1.0:
            spread = share * (1.0 - share) * of.estimate**2
            # As in ``total``: one row among those not read may be unlike all that were.
            most = max(draws, spread / (of.estimate / alike) ** 2)
            draws = min(spread / variance, most) if variance > 0 else most
        found = _wilson(share, draws, _student(freedom)).times(of.estimate)
        return found.within(of.high / of.estimate - 1.0).clipped(float(seen), max(of.high, float(seen)))


def _around(estimate: float, error: float, freedom: float) -> Interval:
    """An interval of ratios around a positive number with this standard error."""
    if estimate <= 0:
        return Interval.exactly(estimate)
    reach = min(_student(freedom) * error / estimate, 20.0)
    return Interval(estimate, estimate * math.exp(-reach), estimate * math.exp(reach))


def _wilson(share: float, draws: float, quantile: float) -> Interval:
    """Wilson's interval of a proportion."""
    square = quantile**2 / draws
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    low = max(middle - half, 0.0) if share > 0 else 0.0
    return Interval(share, low, min(middle + half, 1.0) if share < 1 else 1.0)


def _student(freedom: float) -> float:
    """Student's quantile for 95 %, by the first terms of its expansion (Abramowitz and Stegun, 26.7.5)."""
    z, n = _NORMAL, max(freedom, 2.0)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
