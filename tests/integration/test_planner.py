"""Key ranges: whatever is stopped, resumed, worked on or planned twice, each row lies in exactly one unfinished job."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pgvec_queue import queue
from pgvec_queue.database import Connection
from pgvec_queue.errors import PgvecError
from pgvec_queue.planner import Bound, Planned, Planner, PlanTakenOverError, _between
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker import Outcome
from tests.oracle import assert_right, expected, found, work_off
from tests.support import Bench
from tests.waiting import wait_until

# One database for all examples of a test: each empties its tables first. Explaining a failure would take minutes.
many = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    max_examples=12,
)


class StoppedError(Exception):
    """What stops a plan in these tests."""


def _fill(bench: Bench, count: int, **options: Any) -> Vectorizer:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, %s) i", count)
    return bench.define("docs", "body", **options).vectorizer


def _planner(
    bench: Bench, vectorizer: Vectorizer, then: Callable[[int], object], connection: Connection | None = None
) -> Planner:
    """A planner that calls ``then`` with the number of its transaction, from 1, when that is committed."""
    steps = iter(range(1, 1_000_000))

    def progress(jobs: int, rows: int) -> None:
        then(next(steps))

    return Planner(connection or bench.connection, bench.fragments(vectorizer), progress)


def _stop_at(step: int) -> Callable[[int], None]:
    def then(at: int) -> None:
        if at == step:
            raise StoppedError

    return then


def _ranges(bench: Bench, kind: str = "range", state: str = "queued|running") -> list[tuple[Bound, Bound]]:
    """What jobs still have to do, as (lower, upper]."""
    return [
        (lower, upper)
        for lower, upper in bench.sql(
            "SELECT coalesce(checkpoint, lower_key), upper_key FROM pgvec.jobs"
            " WHERE kind = %s AND state ~ %s ORDER BY id",
            kind,
            state,
        )
    ]


def _assert_tiled(ranges: Sequence[tuple[Bound, Bound]]) -> None:
    """The ranges cover everything, and nothing twice: from no bound they lead, one after the other, to no bound."""
    following = {tuple(lower or ()): upper for lower, upper in ranges}
    assert len(following) == len(ranges), "two ranges begin at the same key"
    at: Bound = None
    for _ in ranges:
        at = following.pop(tuple(at or ()))
    assert at is None
    assert following == {}


def _planned_twice(bench: Bench, key: str, types: Sequence[str]) -> list[tuple[Any, ...]]:
    """Rows of the source that do not lie in exactly one unfinished range, by comparing keys as their types do."""

    def bound(name: str) -> str:
        return ", ".join(f"({name})[{i}]::{type_}" for i, type_ in enumerate(types, 1))

    return bench.sql(
        f"SELECT {key} FROM docs WHERE 1 <> (SELECT count(*) FROM pgvec.jobs"
        " WHERE kind = 'range' AND state IN ('queued', 'running')"
        f" AND (coalesce(checkpoint, lower_key) IS NULL OR ({key}) > ({bound('coalesce(checkpoint, lower_key)')}))"
        f" AND (upper_key IS NULL OR ({key}) <= ({bound('upper_key')})))"
    )


def _work(bench: Bench, vectorizer: Vectorizer, slices: Sequence[int]) -> None:
    """Claims jobs and writes slices of so many rows; what it claimed last goes back unfinished, or is done."""
    worker = bench.register()
    claimer = queue.Claimer(worker, None)
    job = None
    for rows in slices:
        job = job or claimer.claim(bench.connection)
        if job is None:
            break
        part = bench.read(vectorizer, job, rows)
        written = bench.write(vectorizer, part, bench.embed(vectorizer, part), worker)
        job = None if part.last else written.job
    queue.leave(bench.connection, worker)


# Any keys, any stops, any work in between


KEYS = st.tuples(st.integers(-2, 2), st.text("aB ä'\\{},\"", max_size=2))
ROUND = st.tuples(st.integers(1, 4), st.lists(st.integers(1, 3), max_size=5), st.sets(KEYS, max_size=3))


@given(keys=st.sets(KEYS, max_size=40), rows_per_job=st.integers(1, 9), rounds=st.lists(ROUND, max_size=4))
@many
def test_each_row_lies_in_exactly_one_range_wherever_a_plan_was_stopped_and_whatever_happened(
    bench: Bench,
    keys: set[tuple[int, str]],
    rows_per_job: int,
    rounds: list[tuple[int, list[int], set[tuple[int, str]]]],
) -> None:
    bench.sql("CREATE TABLE IF NOT EXISTS docs (a int, b text, body text, PRIMARY KEY (a, b))")
    bench.sql("TRUNCATE docs, pgvec.vectorizers, pgvec.jobs, pgvec.counters; DROP TABLE IF EXISTS docs_vectors")
    vectorizer = bench.define("docs", "body", rows_per_job=rows_per_job).vectorizer
    _toggle(bench, keys)
    for step, slices, toggled in rounds:
        try:
            _planner(bench, vectorizer, _stop_at(step)).plan()
        except StoppedError:
            assert not bench.progress("docs").plan_complete
        _work(bench, vectorizer, slices)
        _toggle(bench, toggled)
    bench.plan(vectorizer)
    progress = bench.progress("docs")
    assert progress.plan_complete
    assert progress.jobs["queued"] == bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'queued'")
    _assert_tiled(_ranges(bench))
    assert _planned_twice(bench, "a, b", ("int", "text")) == []
    there = bench.sql("SELECT a, b FROM docs ORDER BY a, b")
    if not any(toggled for *_, toggled in rounds):
        assert progress.rows_total == len(there)
    work_off(bench, rows=9)
    assert bench.sql("SELECT a, b FROM docs_vectors ORDER BY a, b") == there
    progress = bench.progress("docs")
    assert (progress.rows_total, progress.rows_done, progress.chunks) == (len(there), len(there), len(there))


def _toggle(bench: Bench, keys: Iterable[tuple[int, str]]) -> None:
    """Deletes the rows of these keys, or adds them where there is none."""
    for key in sorted(keys):
        if not bench.sql("DELETE FROM docs WHERE (a, b) = (%s, %s) RETURNING a", *key):
            bench.sql("INSERT INTO docs VALUES (%s, %s, 'some text')", *key)


@given(bounds=st.sets(st.integers(0, 40)).map(sorted), data=st.data())
def test_ranges_and_the_gaps_between_them_cover_every_key_once(bounds: list[int], data: st.DataObject) -> None:
    ends = [None, *([str(bound)] for bound in bounds), None]
    tiles = list(pairwise(ends))
    taken = data.draw(st.lists(st.booleans(), min_size=len(tiles), max_size=len(tiles)))
    covered = [tile for tile, is_taken in zip(tiles, taken, strict=True) if is_taken]
    gaps = list(_between(covered))
    _assert_tiled([*covered, *gaps])
    assert all(after[0] != before[1] for before, after in pairwise(gaps)), "a gap is in two parts"


# Stopped and resumed


def test_a_stopped_plan_leaves_valid_jobs_and_the_next_goes_on_behind_them(bench: Bench) -> None:
    vectorizer = _fill(bench, 100, rows_per_job=10)
    with pytest.raises(StoppedError):
        _planner(bench, vectorizer, _stop_at(1)).plan()
    first = bench.sql("SELECT id, lower_key, upper_key, rows FROM pgvec.jobs ORDER BY id")
    assert [(lower, upper, rows) for _, lower, upper, rows in first] == [
        (None, ["10"], 10),
        (["10"], ["20"], 10),
        (["20"], ["30"], 10),
        (["30"], ["40"], 10),
    ]
    assert bench.progress("docs").rows_total == 40
    # A worker waits for a plan that was heard of a minute ago.
    bench.sql("UPDATE pgvec.vectorizers SET plan_beat_at = plan_beat_at - interval '61 seconds'")
    assert bench.drain(listen=False) is Outcome.BLOCKED
    assert bench.value("SELECT count(*) FROM docs_vectors") == 40
    bench.plan(vectorizer)
    _assert_tiled(_ranges(bench))
    assert bench.drain(listen=False) is Outcome.COMPLETE
    assert_right(bench, vectorizer)


def test_a_plan_goes_on_where_a_stopped_one_ended_and_plans_nothing_twice(bench: Bench) -> None:
    vectorizer = _fill(bench, 100, rows_per_job=10)
    with pytest.raises(StoppedError):
        _planner(bench, vectorizer, _stop_at(1)).plan()
    first = bench.sql("SELECT id FROM pgvec.jobs ORDER BY id")
    assert bench.plan(vectorizer) == Planned(jobs=7, rows=60)
    assert bench.sql("SELECT id FROM pgvec.jobs ORDER BY id")[:4] == first
    _assert_tiled(_ranges(bench))
    assert bench.plan(vectorizer) == Planned(jobs=1, rows=0), "only the tail is planned anew"
    assert bench.progress("docs").rows_total == 100


def test_an_empty_table_gets_a_job_so_that_what_the_destination_holds_goes(bench: Bench) -> None:
    vectorizer = _fill(bench, 5)
    bench.plan(vectorizer)
    work_off(bench)
    bench.sql("TRUNCATE docs")
    assert bench.plan(vectorizer) == Planned(jobs=1, rows=0)
    work_off(bench)
    assert found(bench, vectorizer) == []
    progress = bench.progress("docs")
    assert (progress.state, progress.rows_total, progress.chunks) == ("complete", 0, 0)


def test_rows_before_the_first_key_and_after_the_last_are_found_by_the_next_plan(bench: Bench) -> None:
    vectorizer = _fill(bench, 10, rows_per_job=5)
    bench.plan(vectorizer)
    work_off(bench)
    bench.sql("INSERT INTO docs VALUES (-5, 'before'), (0, 'before'), (99, 'after')")
    bench.sql("DELETE FROM docs WHERE id IN (1, 5, 10)")
    assert bench.plan(vectorizer) == Planned(jobs=3, rows=10)
    work_off(bench)
    assert_right(bench, vectorizer)
    assert bench.progress("docs").rows_embedded == 13


# A second plan beside unfinished jobs


def test_a_running_job_is_passed_over_and_what_it_has_done_is_planned_again(bench: Bench) -> None:
    vectorizer = _fill(bench, 30, rows_per_job=10)
    bench.plan(vectorizer)
    worker = bench.register()
    job = bench.claim(worker)
    part = bench.read(vectorizer, job, rows=4)
    bench.write(vectorizer, part, bench.embed(vectorizer, part), worker)
    bench.plan(vectorizer)
    assert (["4"], ["10"]) in _ranges(bench, state="running")
    assert (None, ["4"]) in _ranges(bench, state="queued")
    _assert_tiled(_ranges(bench))
    assert bench.progress("docs").rows_total == 30


def test_a_queued_tail_that_has_grown_is_split_anew(bench: Bench) -> None:
    vectorizer = _fill(bench, 13, rows_per_job=10)
    bench.plan(vectorizer)
    assert _ranges(bench) == [(None, ["10"]), (["10"], None)]
    bench.sql("INSERT INTO docs SELECT i, 'more' FROM generate_series(14, 45) i")
    bench.plan(vectorizer)
    assert _ranges(bench) == [(None, ["10"]), (["10"], ["20"]), (["20"], ["30"]), (["30"], ["40"]), (["40"], None)]
    progress = bench.progress("docs")
    assert (progress.rows_total, progress.jobs["queued"]) == (45, 5)


def test_a_running_tail_is_left_to_its_worker(bench: Bench) -> None:
    vectorizer = _fill(bench, 3)
    bench.plan(vectorizer)
    bench.claim(bench.register())
    bench.sql("INSERT INTO docs SELECT i, 'more' FROM generate_series(11, 45) i")
    assert bench.plan(vectorizer) == Planned(jobs=0, rows=0)
    assert _ranges(bench) == [(None, None)]


def test_totals_stay_right_however_often_and_whenever_it_is_planned_again(bench: Bench) -> None:
    vectorizer = _fill(bench, 40, rows_per_job=7, where="id % 2 = 0")
    for slices in ([3, 3], [], [7, 7, 1]):
        bench.plan(vectorizer)
        _work(bench, vectorizer, slices)
        progress = bench.progress("docs")
        assert 20 <= progress.rows_total <= 40
        assert progress.rows_done <= progress.rows_total
    work_off(bench)
    assert_right(bench, vectorizer)
    assert bench.progress("docs").rows_total == 20
    assert bench.progress("docs").rows_embedded == 20


# Two plans at once, and workers beside a plan


def test_the_earlier_of_two_plans_ends_and_the_later_covers_everything(bench: Bench) -> None:
    vectorizer = _fill(bench, 100, rows_per_job=5)
    with bench.database.connect("other") as other:

        def second(step: int) -> None:
            if step == 1:
                Planner(other, bench.fragments(vectorizer)).plan()

        with pytest.raises(PlanTakenOverError, match="another enqueue of 'docs' has begun and plans the rest"):
            _planner(bench, vectorizer, second).plan()
    assert bench.progress("docs").plan_complete
    assert bench.progress("docs").rows_total == 100
    _assert_tiled(_ranges(bench))


@contextmanager
def _held_up(bench: Bench, table: str) -> Iterator[Callable[[], object]]:
    """Holds up a connection named "first" after it has written to ``table``; yields what lets it go on."""
    bench.sql(
        "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('application_name') LIKE '%first%' THEN PERFORM pg_advisory_xact_lock(42); END IF;"
        " RETURN NULL; END $$"
    )
    bench.sql(f"CREATE TRIGGER wait AFTER INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION wait()")
    with bench.database.connect("gate") as gate:
        gate.execute("SELECT pg_advisory_lock(42)")
        yield lambda: gate.execute("SELECT pg_advisory_unlock_all()")


@pytest.mark.parametrize("table", ["pgvec.jobs", "pgvec.vectorizers"])
def test_a_plan_that_is_overtaken_in_the_middle_of_a_step_plans_nothing_twice(bench: Bench, table: str) -> None:
    """With its jobs inserted it adds nothing; with its fence passed too, the later one waits, and goes on behind it."""
    vectorizer = _fill(bench, 100, rows_per_job=5)
    ended: list[object] = []
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    first, second = bench.database.connect("first"), bench.database.connect("second")
    entered, go = threading.Event(), threading.Event()

    def plan(connection: Connection, then: Callable[[int], object]) -> None:
        try:
            ended.append(_planner(bench, vectorizer, then, connection).plan())
        except PlanTakenOverError as error:
            ended.append(error)

    def pause(step: int) -> None:
        if step == 1:
            entered.set()
            go.wait(30)

    earlier = threading.Thread(target=plan, args=(first, pause))
    later = threading.Thread(target=plan, args=(second, lambda step: None))
    earlier.start()
    assert entered.wait(30)
    with _held_up(bench, table) as release:
        go.set()
        wait_until(lambda: bench.value(waiting) == 1, what="the earlier plan in the middle of its second step")
        later.start()
        if table == "pgvec.jobs":
            later.join(30)
        else:
            wait_until(lambda: bench.value(waiting) == 2, what="the later plan waiting for the earlier one's step")
        release()
        earlier.join(30)
        later.join(30)
    first.close()
    second.close()
    assert sum(isinstance(one, PlanTakenOverError) for one in ended) == 1
    assert len(ended) == 2
    assert bench.progress("docs").rows_total == 100
    _assert_tiled(_ranges(bench))


def test_workers_begin_while_the_plan_is_still_being_made(bench: Bench) -> None:
    vectorizer = _fill(bench, 60, rows_per_job=5)
    written = []

    def work(step: int) -> None:
        _work(bench, vectorizer, [5, 5, 2])
        written.append(bench.value("SELECT count(*) FROM docs_vectors"))

    _planner(bench, vectorizer, work).plan()
    assert written[0] == 12
    work_off(bench)
    assert_right(bench, vectorizer)
    assert bench.progress("docs").rows_embedded == 60


def test_a_job_that_is_claimed_while_the_tail_is_opened_keeps_its_range(bench: Bench) -> None:
    vectorizer = _fill(bench, 3)
    bench.plan(vectorizer)
    worker = bench.register()
    ended: list[object] = []
    planner = threading.Thread(target=lambda: ended.append(Planner(other, bench.fragments(vectorizer)).plan()))
    with bench.database.connect("other") as other, psycopg.connect(bench.dsn) as claiming:
        claiming.execute("SELECT FROM pgvec.jobs FOR UPDATE")
        planner.start()
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        wait_until(lambda: bench.value(waiting) == 1)
        claiming.execute("UPDATE pgvec.jobs SET state = 'running', worker_id = %s", [worker.worker])
        claiming.commit()
        planner.join(30)
    assert ended == [Planned(jobs=0, rows=0)]
    assert _ranges(bench, state="running") == [(None, None)]
    assert bench.progress("docs").rows_total == 3


def test_a_vectorizer_that_is_dropped_meanwhile_ends_the_plan(bench: Bench) -> None:
    vectorizer = _fill(bench, 30, rows_per_job=2)
    with pytest.raises(PgvecError, match="docs"):
        _planner(bench, vectorizer, lambda step: bench.sql("DELETE FROM pgvec.vectorizers")).plan()
    with pytest.raises(PgvecError, match="the vectorizer 'docs' was dropped meanwhile"):
        bench.plan(vectorizer)


# Limits


@given(
    limits=st.lists(st.integers(1, 25), min_size=1, max_size=4),
    rows_per_job=st.integers(1, 12),
    every=st.integers(1, 4),
    slices=st.lists(st.integers(1, 4), max_size=4),
)
@many
def test_each_limited_run_adds_at_most_so_many_more_selected_rows(
    bench: Bench, limits: list[int], rows_per_job: int, every: int, slices: list[int]
) -> None:
    bench.sql("CREATE TABLE IF NOT EXISTS docs (id int PRIMARY KEY, body text)")
    bench.sql("TRUNCATE docs, pgvec.vectorizers, pgvec.jobs, pgvec.counters; DROP TABLE IF EXISTS docs_vectors")
    bench.sql("INSERT INTO docs SELECT i, 'text' FROM generate_series(1, 50) i")
    vectorizer = bench.define("docs", "body", where=f"id % {every} = 0", rows_per_job=rows_per_job).vectorizer
    selected = [i for i in range(1, 51) if i % every == 0]
    wanted = 0
    for limit in limits:
        added = bench.plan(vectorizer, limit)
        assert added.rows == min(limit, len(selected) - wanted)
        wanted += added.rows
        progress = bench.progress("docs")
        assert (progress.rows_total, progress.plan_complete) == (wanted, True)
        _work(bench, vectorizer, slices)
        assert bench.progress("docs").rows_total == wanted
    work_off(bench, rows=9)
    assert bench.sql("SELECT id FROM docs_vectors ORDER BY id") == [(i,) for i in selected[:wanted]]
    progress = bench.progress("docs")
    assert (progress.state, progress.rows_total, progress.rows_done) == ("complete", wanted, wanted)
    assert progress.jobs["queued"] == 0


def test_a_plan_without_limit_takes_the_rest_after_limited_ones(bench: Bench) -> None:
    vectorizer = _fill(bench, 30, rows_per_job=4)
    bench.plan(vectorizer, 5)
    work_off(bench)
    bench.plan(vectorizer, 6)
    bench.plan(vectorizer)
    _assert_tiled(_ranges(bench))
    assert bench.progress("docs").rows_total == 30
    work_off(bench)
    assert_right(bench, vectorizer)
    assert bench.progress("docs").rows_embedded == 30


def test_a_limit_is_refused_when_all_rows_are_planned_but_not_done(bench: Bench) -> None:
    vectorizer = _fill(bench, 10, rows_per_job=4)
    bench.plan(vectorizer)
    with pytest.raises(PgvecError, match="all rows of 'docs' are planned already; --limit can add none until"):
        bench.plan(vectorizer, 5)
    assert bench.progress("docs").rows_total == 10
    assert bench.progress("docs").plan_complete
    work_off(bench)
    assert_right(bench, vectorizer)


def test_a_limit_after_everything_is_done_counts_what_it_selects(bench: Bench) -> None:
    vectorizer = _fill(bench, 10, rows_per_job=4)
    bench.plan(vectorizer)
    work_off(bench)
    bench.sql("UPDATE docs SET body = 'changed' WHERE id IN (2, 9)")
    assert bench.plan(vectorizer, 5).rows == 5
    work_off(bench)
    progress = bench.progress("docs")
    assert (progress.rows_total, progress.rows_done, progress.rows_embedded) == (5, 5, 11)


def test_a_limit_when_nothing_is_left_adds_nothing_and_new_rows_behind_are_taken(bench: Bench) -> None:
    vectorizer = _fill(bench, 4)
    assert bench.plan(vectorizer, 9).rows == 4
    assert bench.plan(vectorizer, 9) == Planned(jobs=0, rows=0)
    bench.sql("INSERT INTO docs VALUES (5, 'five'), (6, 'six')")
    assert bench.plan(vectorizer, 1).rows == 1
    work_off(bench)
    assert [row[0] for row in found(bench, vectorizer)] == list("12345")


# Destinations in another order


def test_a_sweep_covers_the_destination_s_keys_once_and_is_resumed_like_a_plan(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, 40) i")
    bench.sql("CREATE TABLE vectors (id text, embedding vector)")
    vectorizer = bench.enqueue("docs", "body", into="vectors", rows_per_job=3)
    assert _ranges(bench, "sweep") == [], "an empty destination needs none"
    work_off(bench)
    bench.sql("DELETE FROM docs WHERE id % 4 = 0")
    with pytest.raises(StoppedError):
        # Four transactions plan the ranges; the fifth is the sweep's first.
        _planner(bench, vectorizer, _stop_when(bench, "sweep")).plan()
    assert 0 < len(_ranges(bench, "sweep")) < 10
    bench.plan(vectorizer)
    _assert_tiled(_ranges(bench, "sweep"))
    _assert_tiled(_ranges(bench))
    work_off(bench)
    assert found(bench, vectorizer) == expected(bench, vectorizer)
    assert bench.progress("docs").rows_total == 30


def _stop_when(bench: Bench, kind: str) -> Callable[[int], None]:
    def then(step: int) -> None:
        if _ranges(bench, kind):
            raise StoppedError

    return then


def test_documents_in_quarantine_whose_rows_are_gone_leave_it_with_the_next_plan(bench: Bench) -> None:
    vectorizer = _fill(bench, 5, where="id < 5")
    for key in ("1", "2", "5", "77"):
        bench.sql(
            "INSERT INTO pgvec.failures (vectorizer_id, key, source_hash, error_class, message, model)"
            " VALUES (%s, %s, '', '', '', '')",
            vectorizer.id,
            [key],
        )
    bench.sql("DELETE FROM docs WHERE id = 2")
    bench.plan(vectorizer)
    assert bench.sql("SELECT key FROM pgvec.failures") == [(["1"],)]
