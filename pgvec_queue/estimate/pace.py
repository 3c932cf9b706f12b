"""How long a backfill takes: by what workers did with the same model lately, or by what their devices do now."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from pgvec_queue.database import Connection, statement
from pgvec_queue.estimate.totals import Interval
from pgvec_queue.vectorizer import Vectorizer

_LEAST_SPREAD, _FEW_SPREAD, _DEVICE_SPREAD = 0.1, 0.25, 0.5
_FEW_MINUTES = 3


@dataclass(frozen=True, slots=True)
class Pace:
    """What all workers together do in a second."""

    tokens: float | None
    documents: float | None
    """Where no tokens were counted: of devices alone, without what is around them."""
    spread: float
    """By how much it may be off, as a share of it."""
    workers: int
    rows: float | None
    """Rows made right in a second; None where only devices are known."""

    def seconds(self, tokens: Interval, documents: Interval) -> Interval:
        """Returns how long so much work takes if they go on like that."""
        if self.tokens:
            return tokens.times(1 / self.tokens).within(self.spread)
        assert self.documents
        return documents.times(1 / self.documents).within(self.spread)


def of_model(connection: Connection, vectorizer: Vectorizer) -> Pace | None:
    """Returns the pace of the workers that ran the vectorizer's model within a day; None where there were none.

    It is that of the last 60 minutes in which any of them did something. Minutes differ, and the rate is as sure as
    their mean.
    """
    model = {"embedder": vectorizer.embedder, "model": vectorizer.model, "endpoint": vectorizer.endpoint}
    minutes = connection.execute(statement("estimate", "paces"), model).fetchall()
    if minutes:
        tokens, seconds = sum(minute[2] for minute in minutes), sum(minute[3] for minute in minutes)
        rates = [minute[2] / minute[3] for minute in minutes if minute[3] >= 20]
        spread = _FEW_SPREAD
        if len(rates) >= _FEW_MINUTES:
            spread = max(2 * statistics.stdev(rates) / math.sqrt(len(rates)) * seconds / tokens, _LEAST_SPREAD)
        workers = {worker for minute in minutes for worker in minute[4]}
        return Pace(tokens / seconds, None, spread, len(workers), sum(minute[0] for minute in minutes) / seconds)
    row = connection.execute(statement("estimate", "devices"), {"model": vectorizer.model}).fetchone()
    if row and row[1]:
        return Pace(None, row[1], _DEVICE_SPREAD, row[0], None)
    return None
