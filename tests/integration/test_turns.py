"""Which vectorizer a worker serves: the highest priority, in turns of a minute per model, and nobody starves."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgvec_queue.queue import TURN_SECONDS, Claimer
from tests.support import Bench

ROWS = 40


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Server:
    """A worker that claims a job at a time, each of one second, and finishes it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.clock = Clock()
        self._claimer = Claimer(bench.register(), None, clock=self.clock)

    def serve(self, jobs: int = 1) -> list[str]:
        """Claims so many jobs; returns whose they were."""
        return [self._serve() for _ in range(jobs)]

    def _serve(self) -> str:
        job = self._claimer.claim(self._bench.connection)
        assert job is not None
        self._bench.sql("UPDATE pgvec.jobs SET state = 'done', worker_id = NULL WHERE id = %s", job.id)
        self.clock.now += 1
        return str(self._bench.value("SELECT name FROM pgvec.vectorizers WHERE id = %s", job.vectorizer_id))


def _enqueue(bench: Bench, name: str, model: str, priority: int = 0, jobs: int = 300) -> None:
    if not bench.sql("SELECT FROM pg_tables WHERE tablename = 'docs'"):
        bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    vectorizer = bench.define("docs", "body", name=name, into=f"{name}_vectors", model=model, priority=priority)
    bench.sql(
        "INSERT INTO pgvec.jobs (vectorizer_id, kind, rows) SELECT %s, 'range', 1 FROM generate_series(1, %s)",
        vectorizer.vectorizer.id,
        jobs,
    )


def test_vectorizers_that_share_a_model_take_turns_with_each_job(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        _enqueue(bench, name, "hashing-8")
    assert Server(bench).serve(6) == ["a", "b", "c", "a", "b", "c"]


def test_another_model_is_taken_up_after_a_minute_for_what_was_served_longest_ago(bench: Bench) -> None:
    _enqueue(bench, "a", "hashing-8")
    _enqueue(bench, "b", "hashing-16")
    _enqueue(bench, "c", "hashing-32")
    turn = round(TURN_SECONDS)
    expected = [name for name in ("a", "b", "c", "a") for _ in range(turn)]
    assert Server(bench).serve(4 * turn) == expected


def test_a_model_is_left_before_its_time_only_when_nothing_is_left_for_it(bench: Bench) -> None:
    _enqueue(bench, "a", "hashing-8", jobs=3)
    _enqueue(bench, "b", "hashing-16")
    assert Server(bench).serve(5) == ["a", "a", "a", "b", "b"]


def test_who_has_had_a_turn_and_is_alone_goes_on_until_somebody_comes(bench: Bench) -> None:
    _enqueue(bench, "a", "hashing-8")
    server = Server(bench)
    assert set(server.serve(2 * round(TURN_SECONDS))) == {"a"}
    _enqueue(bench, "b", "hashing-16")
    assert server.serve(2) == ["b", "b"]


def test_what_is_urgent_goes_first_and_spoils_nobody_s_turn(bench: Bench) -> None:
    _enqueue(bench, "a", "hashing-8")
    _enqueue(bench, "b", "hashing-16")
    server = Server(bench)
    assert server.serve(2) == ["a", "a"]
    _enqueue(bench, "urgent", "hashing-32", priority=1, jobs=2)
    assert server.serve(4) == ["urgent", "urgent", "a", "a"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    queues=st.lists(
        st.tuples(st.sampled_from(("hashing-8", "hashing-16", "hashing-32")), st.integers(0, 1)),
        min_size=2,
        max_size=5,
    )
)
def test_nothing_of_the_highest_priority_starves(bench: Bench, queues: list[tuple[str, int]]) -> None:
    """Within a turn per model each vectorizer has had a job, and those of a lower priority none."""
    bench.sql("TRUNCATE pgvec.vectorizers, pgvec.jobs")
    bench.sql("DROP TABLE IF EXISTS docs CASCADE")
    for i in range(5):
        bench.sql(f"DROP TABLE IF EXISTS v{i}_vectors")
    for i, (model, priority) in enumerate(queues):
        _enqueue(bench, f"v{i}", model, priority)
    highest = max(priority for _, priority in queues)
    top = {f"v{i}" for i, (_, priority) in enumerate(queues) if priority == highest}
    models = {model for model, priority in queues if priority == highest}
    server = Server(bench)
    served = Counter[str]()
    # Ten seconds a job, so that a turn takes few claims.
    for _ in range(6 * len(models)):
        server.clock.now += TURN_SECONDS / 6
        served.update(server.serve(1))
    assert set(served) == top


@pytest.mark.parametrize("other", [{"model": "hashing-8"}, {"model": "hashing-16"}])
def test_live_changes_of_one_come_before_its_ranges(bench: Bench, other: dict[str, str]) -> None:
    _enqueue(bench, "a", "hashing-8", jobs=1)
    bench.sql(
        "INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, key_count)"
        " SELECT id, 'keys', '[[\"1\"]]', 1 FROM pgvec.vectorizers"
    )
    _enqueue(bench, "b", other["model"], jobs=1)
    claimer = Claimer(bench.register(), None)
    kinds = []
    while (job := claimer.claim(bench.connection)) is not None:
        kinds.append((job.vectorizer_id, job.kind))
    first = kinds[0][0]
    assert [kind for id_, kind in kinds if id_ == first] == ["keys", "range"]


def test_the_end_is_near_when_few_ranges_are_left_to_claim_for_all(bench: Bench) -> None:
    _enqueue(bench, "a", "hashing-8", jobs=6)
    _enqueue(bench, "b", "hashing-16", jobs=6)
    claimer = Claimer(bench.register(), None)

    def near(most: int) -> bool:
        return claimer.look_ahead(bench.connection, most=most).near_end

    bench.sql("UPDATE pgvec.vectorizers SET plan_complete = true")
    assert (near(12), near(13)) == (False, True)
    assert claimer.claim(bench.connection) is not None
    assert (near(11), near(12)) == (False, True)
    bench.sql("UPDATE pgvec.vectorizers SET paused = true WHERE name = 'b'")
    assert near(6), "what is paused is nobody's to claim"
    only_b = Claimer(bench.register(), ["b"])
    assert only_b.look_ahead(bench.connection, most=1) == (True, False)
    bench.sql("UPDATE pgvec.vectorizers SET plan_complete = false, plan_beat_at = clock_timestamp() WHERE name = 'a'")
    assert claimer.look_ahead(bench.connection, most=100) == (False, False), (
        "more is being planned, and is not there yet"
    )
    assert claimer.look_ahead(bench.connection, most=2) == (False, True)
    bench.sql("UPDATE pgvec.vectorizers SET rows_per_second_limit = 5 WHERE name = 'a'")
    assert claimer.look_ahead(bench.connection, most=2) == (False, False), "nobody may do these sooner"
    bench.sql("UPDATE pgvec.vectorizers SET paused = false WHERE name = 'b'")
    assert claimer.look_ahead(bench.connection, most=6) == (False, True), (
        "and those of others count, whatever comes first"
    )
