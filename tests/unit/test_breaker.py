"""When a model is held for sick, and that the next judgement begins anew."""

from __future__ import annotations

from pgvec_queue.worker.breaker import LEAST, WINDOW, Breaker


def test_more_than_half_of_the_last_documents_have_to_fail() -> None:
    breaker = Breaker()
    assert not breaker.add(1, [("a",)] * (LEAST - 1)), "too few to say anything"
    assert not Breaker().add(1, [*[None] * 10, *[("a",)] * 10]), "half is not most"
    assert breaker.add(1, [("a",)])
    assert not breaker.add(2, [None]), "another vectorizer"
    assert not breaker.add(1, [None] * WINDOW), "only the last ones count"


def test_after_it_has_tripped_the_next_failure_does_not_trip_it_again() -> None:
    breaker = Breaker()
    assert breaker.add(1, [(str(i),) for i in range(LEAST)])
    assert breaker.trip(1) == ([(str(i),) for i in range(LEAST)], LEAST)
    assert not breaker.add(1, [("again",)])
