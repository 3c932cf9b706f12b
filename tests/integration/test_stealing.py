"""The tail of a running job changes hands: at each point of its owner's life, and whatever becomes of either."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgvec_queue import pending, queue, reading, stealing
from pgvec_queue.database import Connection, Pool
from pgvec_queue.queue import Claimer, Job
from pgvec_queue.slices import Fate
from pgvec_queue.stealing import Thief, Victim
from pgvec_queue.vectorizer import Vectorizer, by_ids
from pgvec_queue.worker.link import Link
from pgvec_queue.worker.stages import Channel
from pgvec_queue.worker.state import State
from pgvec_queue.worker.work import Run, Work
from pgvec_queue.worker.writer import Breakers, Writer
from tests.oracle import assert_right, work_off
from tests.support import Bench
from tests.waiting import wait_until

ROWS = 100


class Owner:
    """A worker whose stages are run step by step; it writes with the writer that all workers have."""

    def __init__(self, bench: Bench, vectorizer: Vectorizer, pool: Pool, connection: Connection | None = None) -> None:
        self.bench = bench
        self.vectorizer = vectorizer
        self.state = State()
        self._connection = connection or bench.connection
        self.member = queue.register(self._connection, names=None, lease=60)
        self.claimer = Claimer(self.member, None)
        self.fragments = bench.fragments(vectorizer)
        self._writing = Link(pool, "writer", self.state)

    def take(self, job: Job | None) -> Owner:
        """Begins with a job that it has claimed or stolen."""
        assert job is not None
        self.run = Run(job, self.fragments)
        self._next = job
        return self

    def claim(self) -> Owner:
        return self.take(self.claimer.claim(self._connection))

    def read(self, rows: int = 10) -> Work:
        """Reads the next slice, as far as this worker knows, and embeds it."""
        job = replace(self._next, upper_key=self.run.job.upper_key)
        part = reading.read(self._connection, self.fragments, job, rows=rows, max_bytes=1 << 20)
        self.run.read_to = [] if part.last else part.checkpoint
        self._next = part.after()
        return Work(self.run, part, embedded=self.bench.embed(self.vectorizer, part))

    def write(self, *works: Work) -> None:
        channel = Channel(self.state, len(works) + 1)
        for work in works:
            self.state.enter()
            channel.put(work)
        channel.end()
        Writer(self._writing, self.state, channel, self.claimer, Breakers()).run()

    def finish(self, rows: int = 10) -> None:
        """Reads and writes to the end of what it has by then."""
        while not self.run.dropped:
            self.write(self.read(rows))

    @property
    def written(self) -> int:
        """Rows that it has embedded and written."""
        found = self.bench.sql("SELECT rows_embedded FROM pgvec.counters WHERE worker_id = %s", self.member.worker)
        return int(found[0][0]) if found else 0


@pytest.fixture
def pool(bench: Bench) -> Iterator[Pool]:
    made = bench.database.pool("worker", size=4)
    yield made
    made.close(2)


def _fill(bench: Bench, rows: int = ROWS, **options: Any) -> Vectorizer:
    """One job with a bound over all rows, and an empty one without."""
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text, other int)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, %s) i", rows)
    return bench.enqueue("docs", "body", rows_per_job=rows, **options)


def _owner(bench: Bench, pool: Pool, **options: Any) -> Owner:
    return Owner(bench, _fill(bench, **options), pool).claim()


def _steal(bench: Bench, member: queue.Membership | None = None, **options: Any) -> Job | None:
    member = member or bench.register()
    _beat(bench)
    claimer = Claimer(member, None)
    for (model,) in bench.sql("SELECT DISTINCT pgvec.model_of(v) FROM pgvec.vectorizers v"):
        claimer.serves(0, 0, model)
    thief = Thief(claimer, **options)
    return thief.steal(bench.connection, lambda id_: bench.fragments(by_ids(bench.connection, [id_])[0]))


def _beat(bench: Bench) -> None:
    """All workers are heard of."""
    bench.sql("UPDATE pgvec.workers SET beat_at = clock_timestamp() WHERE beat_at > clock_timestamp() - lease")


def _victims(bench: Bench, worker: queue.Membership) -> list[Victim]:
    _beat(bench)
    return stealing.victims(bench.connection, Claimer(worker, None))


def _rob(owner: Owner, pool: Pool) -> Owner:
    """Another worker, with what it has stolen."""
    thief = Owner(owner.bench, owner.vectorizer, pool)
    return thief.take(_steal(owner.bench, thief.member))


def _finish(bench: Bench, *vectorizers: Vectorizer) -> None:
    """What is left, by whoever comes; then everything adds up."""
    work_off(bench, 25)
    assert_right(bench, *vectorizers)
    for vectorizer in vectorizers:
        now = bench.progress(vectorizer.name)
        assert now.jobs["queued"] == now.jobs["running"] == 0
        assert now.jobs["done"] == bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'done'")
        assert now.rows_total == bench.value("SELECT count(*) FROM docs WHERE body IS NOT NULL")


def _refused(bench: Bench) -> int:
    return int(bench.value("SELECT coalesce(sum(writes_refused), 0) FROM pgvec.counters"))


# What is taken


def test_the_thief_takes_the_half_that_was_not_read(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    first, _ahead = owner.read(), owner.read()
    owner.write(first)
    assert bench.sql("SELECT checkpoint, read_to FROM pgvec.jobs WHERE state = 'running'") == [(["10"], ["20"])]
    thief = _rob(owner, pool)
    job = thief.run.job
    assert (job.lower_key, job.upper_key, job.rows, job.epoch) == (["60"], ["100"], 40, 1)
    assert bench.sql("SELECT upper_key, rows FROM pgvec.jobs WHERE id = %s", owner.run.job.id) == [(["60"], 60)]
    state = bench.sql("SELECT state, worker_id FROM pgvec.jobs WHERE id = %s", job.id)
    assert state == [("running", thief.member.worker)]


def test_of_a_job_that_has_been_read_what_is_not_written_is_taken(bench: Bench, pool: Pool) -> None:
    """Its owner would need 0.4 seconds for it."""
    owner = _owner(bench, pool)
    works = [owner.read(20) for _ in range(5)]
    owner.write(works[0])
    assert bench.value("SELECT read_to FROM pgvec.jobs WHERE state = 'running'") == []
    bench.sql("UPDATE pgvec.workers SET documents_per_second = 201")
    assert _steal(bench) is None
    bench.sql("UPDATE pgvec.workers SET documents_per_second = 200")
    thief = _rob(owner, pool)
    assert thief.run.job.lower_key == ["60"]
    owner.write(*works[1:])
    assert owner.run.dropped
    assert owner.written == 60
    assert bench.progress("docs").rows_wasted == 40
    assert _refused(bench) == 0


def test_a_claim_forgets_how_far_another_owner_had_read(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    owner.write(owner.read())
    queue.release(bench.connection, owner.member)
    bench.claim(bench.register())
    assert bench.value("SELECT read_to FROM pgvec.jobs WHERE state = 'running'") is None


def test_a_range_without_an_upper_bound_is_halved_like_any_other(bench: Bench, pool: Pool) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, 90) i")
    vectorizer = bench.enqueue("docs", "body", rows_per_job=1_000)
    owner = Owner(bench, vectorizer, pool).claim()
    work = owner.read(60)
    thief = _rob(owner, pool)
    assert (thief.run.job.lower_key, thief.run.job.upper_key) == (["45"], None)
    owner.write(work)
    assert owner.run.dropped
    bench.sql("INSERT INTO docs SELECT i, 'late ' || i FROM generate_series(91, 95) i")
    thief.finish(25)
    assert (owner.written, thief.written) == (45, 50)
    _finish(bench, vectorizer)


def test_a_stolen_tail_that_came_back_is_planned_anew_like_any_tail(bench: Bench, pool: Pool) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, 90) i")
    vectorizer = bench.enqueue("docs", "body", rows_per_job=1_000)
    owner = Owner(bench, vectorizer, pool).claim()
    thief = _rob(owner, pool)
    queue.release(bench.connection, thief.member)
    bench.plan(vectorizer)
    owner.finish()
    _finish(bench, vectorizer)


def test_of_a_rest_too_long_to_count_all_beyond_the_middle_of_its_beginning_is_taken(
    bench: Bench, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stealing, "_MOST_ROWS", 30)
    owner = _owner(bench, pool)
    thief = _rob(owner, pool)
    job = thief.run.job
    assert (job.lower_key, job.upper_key, job.rows) == (["15"], ["100"], 50)
    owner.finish()
    thief.finish()
    _finish(bench, owner.vectorizer)


# What is not


@pytest.mark.parametrize(
    "because",
    [
        "UPDATE pgvec.jobs SET alone = true",
        "UPDATE pgvec.vectorizers SET paused = true",
        "UPDATE pgvec.vectorizers SET cancelled = true",
        "UPDATE pgvec.vectorizers SET blocked_reason = 'no'",
        "UPDATE pgvec.workers SET documents_per_second = 501",
        "UPDATE pgvec.jobs SET kind = 'sweep'",
        "UPDATE pgvec.jobs SET state = 'queued', worker_id = NULL",
        "DELETE FROM docs WHERE id > 3",
        "UPDATE pgvec.jobs SET rows = 3",
        "UPDATE pgvec.jobs SET attempts = 1",
        "UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour'",
    ],
)
def test_nothing_is_stolen_where_it_may_not_or_is_not_worth_it(bench: Bench, pool: Pool, because: str) -> None:
    _owner(bench, pool)
    bench.sql(because)
    assert _steal(bench) is None
    assert bench.value("SELECT count(*) FROM pgvec.jobs") == 2


def test_a_worker_that_was_not_heard_of_since_the_thief_began_may_be_dead(bench: Bench, pool: Pool) -> None:
    """And then its job, whole, has to tell which document it was."""
    owner = _owner(bench, pool)
    thief = Thief(Claimer(bench.register(), None))
    assert thief.steal(bench.connection, lambda _: owner.fragments) is None
    _beat(bench)
    assert thief.steal(bench.connection, lambda _: owner.fragments) is not None


def test_a_model_is_loaded_only_for_what_takes_its_owner_longer(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    claimer = Claimer(bench.register(), None)
    _beat(bench)
    bench.sql("UPDATE pgvec.workers SET documents_per_second = 21")
    [victim] = stealing.victims(bench.connection, claimer)
    assert Thief(claimer).steal(bench.connection, lambda _: owner.fragments) is None
    claimer.serves(victim.vectorizer_id, 7, victim.model)
    assert Thief(claimer).steal(bench.connection, lambda _: owner.fragments) is not None


def test_a_source_that_cannot_be_looked_at_is_left_to_its_owner(bench: Bench, pool: Pool) -> None:
    _owner(bench, pool)
    bench.sql("DROP TABLE docs")
    assert _steal(bench) is None


def test_nothing_is_stolen_of_vectorizers_that_the_thief_does_not_serve(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    member = bench.register()
    _beat(bench)
    others = Claimer(member, ["others"])
    refusing = Claimer(member, None, {owner.vectorizer.id: "no model"})
    for claimer in (others, refusing, owner.claimer):
        assert Thief(claimer).steal(bench.connection, lambda _: owner.fragments) is None
    assert Thief(Claimer(member, ["docs"])).steal(bench.connection, lambda _: owner.fragments) is not None


@pytest.mark.parametrize(
    "meanwhile",
    [
        "UPDATE pgvec.vectorizers SET paused = true",
        "UPDATE pgvec.jobs SET epoch = epoch + 1 WHERE state = 'running'",
        "UPDATE pgvec.jobs SET checkpoint = '{30}' WHERE state = 'running'",
        "UPDATE pgvec.jobs SET upper_key = '{80}' WHERE state = 'running'",
        "UPDATE pgvec.jobs SET alone = true",
        "UPDATE pgvec.workers SET gone = true",
        "UPDATE pgvec.jobs SET state = 'done', worker_id = NULL",
    ],
)
def test_a_job_that_is_no_longer_as_it_was_seen_is_left_alone(bench: Bench, pool: Pool, meanwhile: str) -> None:
    owner = _owner(bench, pool)
    worker = bench.register()
    [victim] = _victims(bench, worker)
    middle = stealing.find_middle(bench.connection, owner.fragments, victim)
    assert middle is not None
    bench.sql(meanwhile)
    assert stealing.take(bench.connection, victim, middle, worker) is None
    assert stealing.take(bench.connection, victim, middle, replace(worker, world="another")) is None
    assert bench.value("SELECT count(*) FROM pgvec.jobs") == 2


def test_the_thief_looks_at_a_job_again_only_after_it_has_moved(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool, rows=20)
    asked: list[int] = []

    def fragments_of(vectorizer: int) -> Any:
        asked.append(vectorizer)
        return owner.fragments

    bench.sql("DELETE FROM docs WHERE id > 3")
    thief = Thief(Claimer(bench.register(), None))
    _beat(bench)
    for _ in range(3):
        assert thief.steal(bench.connection, fragments_of) is None
    assert len(asked) == 1
    owner.write(owner.read(2))
    for _ in range(3):
        assert thief.steal(bench.connection, fragments_of) is None
    assert len(asked) == 2


def test_the_job_that_takes_its_owner_longest_is_halved_first(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document ' || i FROM generate_series(1, 300) i")
    bench.enqueue("docs", "body", rows_per_job=100)
    slow, fast, unknown = (bench.claim(bench.register()) for _ in range(3))
    bench.sql("UPDATE pgvec.workers SET documents_per_second = 1 WHERE id = 1")
    bench.sql("UPDATE pgvec.workers SET documents_per_second = 100 WHERE id = 2")
    found = _victims(bench, bench.register())
    assert [one.id for one in found] == [unknown.id, slow.id, fast.id]


# At each point of the owner's life


def test_stolen_before_the_owner_has_read_anything(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    thief = _rob(owner, pool)
    owner.finish()
    thief.finish(25)
    assert (owner.written, thief.written) == (50, 50)
    assert _refused(bench) == 0
    _finish(bench, owner.vectorizer)


@pytest.mark.parametrize("thief_first", [True, False])
@pytest.mark.parametrize(("size", "by_owner"), [(30, 50), (50, 50), (70, 50), (100, 50)])
def test_stolen_between_the_read_and_the_write(
    bench: Bench, pool: Pool, size: int, by_owner: int, thief_first: bool
) -> None:
    """What the owner has in hand may lie below the new bound, end at it, cross it, or reach to the job's old end."""
    owner = _owner(bench, pool)
    work = owner.read(size)
    thief = _rob(owner, pool)
    if thief_first:
        thief.finish(25)
    owner.write(work)
    assert owner.written == min(size, by_owner)
    owner.finish()
    if not thief_first:
        thief.finish(25)
    assert (owner.written, thief.written) == (by_owner, ROWS - by_owner)
    assert _refused(bench) == 0
    _finish(bench, owner.vectorizer)


def test_what_was_read_beyond_the_new_bound_is_dropped_and_counted_as_wasted(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    works = [owner.read(20) for _ in range(5)]
    _rob(owner, pool)
    owner.write(*works)
    assert owner.written == 50
    assert bench.value("SELECT checkpoint FROM pgvec.jobs WHERE id = %s", owner.run.job.id) == ["50"]
    assert bench.value("SELECT state FROM pgvec.jobs WHERE id = %s", owner.run.job.id) == "done"
    assert bench.progress("docs").rows_wasted == 50
    assert _refused(bench) == 0
    assert bench.value("SELECT max(id) FROM docs_vectors") == 50


def test_the_owner_touches_nothing_of_what_was_stolen(bench: Bench, pool: Pool) -> None:
    """A row of the stolen half changes after its owner has read it; only the thief may make it right."""
    owner = _owner(bench, pool)
    work = owner.read(100)
    thief = _rob(owner, pool)
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = 70")
    bench.sql("DELETE FROM docs WHERE id = 80")
    thief.finish(25)
    before = bench.sql("SELECT d::text, xmin FROM docs_vectors d WHERE id > 50 ORDER BY id")
    owner.write(work)
    assert bench.sql("SELECT d::text, xmin FROM docs_vectors d WHERE id > 50 ORDER BY id") == before
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind = 'keys'") == 0
    _finish(bench, owner.vectorizer)


def test_stolen_between_two_writes(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    owner.write(owner.read(20))
    thief = _rob(owner, pool)
    assert thief.run.job.lower_key == ["60"]
    owner.finish(30)
    thief.finish(25)
    assert (owner.written, thief.written) == (60, 40)
    _finish(bench, owner.vectorizer)


def test_stolen_after_a_write_that_was_committed_and_not_heard_of(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    work = owner.read(20)
    written = bench.write(owner.vectorizer, work.part, work.embedded, owner.member, None)
    assert written.fate is Fate.WRITTEN
    thief = _rob(owner, pool)
    owner.write(work)
    assert owner.run.job.upper_key == thief.run.job.lower_key == ["60"]
    owner.finish()
    thief.finish(25)
    assert _refused(bench) == 0
    _finish(bench, owner.vectorizer)


def test_stolen_while_a_bad_document_is_looked_for(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    bench.sql("ALTER TABLE docs_vectors ADD CHECK (id NOT IN (7, 45, 77))")
    work = owner.read(100)
    _rob(owner, pool)
    owner.write(work)
    assert owner.run.dropped
    assert sorted(bench.sql("SELECT key FROM pgvec.failures")) == [(["45"],), (["7"],)]
    assert bench.value("SELECT count(*) FROM docs_vectors") == 48
    assert _refused(bench) == 0
    assert bench.progress("docs").jobs["running"] == 1


def test_stolen_between_the_halves_of_a_slice_with_a_bad_document(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    bench.sql("ALTER TABLE docs_vectors ADD CHECK (id <> 7)")
    # What a thief does right after the first half that is written, in the same transaction.
    bench.sql(
        "CREATE FUNCTION steal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " NEW.upper_key := '{60}'; NEW.rows := 60;"
        " INSERT INTO pgvec.jobs (vectorizer_id, kind, lower_key, upper_key, rows)"
        " VALUES (NEW.vectorizer_id, 'range', '{60}', OLD.upper_key, 40); RETURN NEW; END $$"
    )
    bench.sql(
        "CREATE TRIGGER steal BEFORE UPDATE OF checkpoint ON pgvec.jobs FOR EACH ROW"
        " WHEN (OLD.upper_key = '{100}' AND NEW.state = 'running') EXECUTE FUNCTION steal()"
    )
    owner.write(owner.read(100))
    assert owner.run.dropped
    assert owner.written == 59
    assert bench.value("SELECT max(id) FROM docs_vectors") == 60
    assert _refused(bench) == 0
    bench.sql("DROP TRIGGER steal ON pgvec.jobs")
    work_off(bench, 25)
    now = bench.progress("docs")
    assert (now.rows_total, now.rows_done, now.rows_failed) == (100, 99, 1)


def test_the_owner_dies_after_the_theft(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    owner.write(owner.read(10))
    thief = _rob(owner, pool)
    _let_the_lease_run_out(bench, owner.member.worker)
    assert queue.reclaim(bench.connection) == (1, 1)
    thief.finish(25)
    _finish(bench, owner.vectorizer)


def test_the_thief_dies_after_the_theft(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    thief = _rob(owner, pool)
    _let_the_lease_run_out(bench, thief.member.worker)
    assert queue.reclaim(bench.connection) == (1, 1)
    owner.finish()
    _finish(bench, owner.vectorizer)


def test_the_owner_wakes_up_after_its_lease_and_the_theft(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    works = [owner.read(60), owner.read(60)]
    thief = _rob(owner, pool)
    _let_the_lease_run_out(bench, owner.member.worker)
    assert queue.reclaim(bench.connection) == (1, 1)
    heir = bench.register()
    assert bench.claim(heir).upper_key == ["50"]
    owner.write(*works)
    assert owner.written == 0
    assert _refused(bench) == 1
    queue.release(bench.connection, heir)
    thief.finish(25)
    _finish(bench, owner.vectorizer)


def test_the_owner_gives_the_job_back_after_the_theft(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    work = owner.read(100)
    thief = _rob(owner, pool)
    queue.release(bench.connection, owner.member)
    owner.write(work)
    assert owner.written == 0
    thief.finish(25)
    _finish(bench, owner.vectorizer)


def test_what_was_stolen_is_stolen_from_in_its_turn_and_the_owner_may_be_the_thief(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    thief = _rob(owner, pool)
    owner.finish()
    owner.take(_steal(bench, owner.member))
    other = _rob(owner, pool)
    for worker in (other, owner, thief):
        worker.finish()
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind = 'range' AND rows > 0") == 4
    _finish(bench, owner.vectorizer)


# At once


def test_of_two_thieves_that_saw_the_same_one_gets_it(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    members = [bench.register(), bench.register()]
    [victim] = _victims(bench, members[0])
    middle = stealing.find_middle(bench.connection, owner.fragments, victim)
    assert middle is not None
    jobs = [stealing.take(bench.connection, victim, middle, member) for member in members]
    assert [job is None for job in jobs] == [False, True]


def test_a_thief_does_not_wait_for_an_owner_that_is_writing(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    with bench.database.connect("owner") as writing, writing.transaction():
        writing.execute("SELECT FROM pgvec.jobs WHERE state = 'running' FOR NO KEY UPDATE")
        bench.sql("SET lock_timeout = '1ms'")
        assert _steal(bench) is None
    assert _steal(bench) is not None
    owner.finish()


def test_a_theft_that_commits_while_the_owner_waits_to_write_is_seen_by_its_fence(bench: Bench, pool: Pool) -> None:
    owner = _owner(bench, pool)
    work = owner.read(100)
    worker = bench.register()
    [victim] = _victims(bench, worker)
    middle = stealing.find_middle(bench.connection, owner.fragments, victim)
    assert middle is not None
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with bench.database.connect("thief") as thief, thief.transaction():
        assert stealing.take(thief, victim, middle, worker) is not None
        writing = threading.Thread(target=owner.write, args=(work,))
        writing.start()
        wait_until(lambda: bench.sql(waiting), what="the owner's fence, waiting for the thief")
    writing.join()
    assert owner.written == 50
    assert bench.value("SELECT max(id) FROM docs_vectors") == 50


def test_thieves_and_owners_side_by_side_end_with_what_one_worker_makes(bench: Bench, pool: Pool) -> None:
    """Each reads three slices ahead, and steals when it has nothing in hand, down to two rows."""
    vectorizer = _fill(bench, 400)
    ended: list[object] = []
    ready = threading.Barrier(4)

    def work() -> None:
        try:
            with bench.database.connect("worker") as connection:
                worker = Owner(bench, vectorizer, pool, connection)
                ready.wait()
                _beat(bench)
                thief = Thief(worker.claimer, least_rows=2)
                while any(one.waits for one in pending.pending(connection, None)):
                    job = worker.claimer.claim(connection) or thief.steal(connection, lambda _: worker.fragments)
                    if job is not None:
                        _read_ahead(worker.take(job), robbed=job.rows == 400)
            ended.append(None)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            ended.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [None] * 4
    assert bench.value("SELECT sum(rows_embedded) FROM pgvec.counters") == 400
    assert _refused(bench) == 0
    _finish(bench, vectorizer)


def _read_ahead(worker: Owner, *, robbed: bool) -> None:
    """``robbed``: writes only when somebody has stolen from it."""
    works: list[Work] = []
    while not worker.run.dropped:
        while len(works) < 3 and not (works and works[-1].part.last):
            works.append(worker.read(7))
        if robbed:
            with worker.bench.database.connect("test") as connection:
                wait_until(lambda: len(connection.execute("SELECT FROM pgvec.jobs").fetchall()) > 3, what="thefts")
            robbed = False
        worker.write(works.pop(0))


# Whatever the rows and the key


@pytest.mark.parametrize("left", ["DELETE FROM docs WHERE id > 50", "DELETE FROM docs WHERE id <= 50", "TRUNCATE docs"])
def test_a_half_may_turn_out_to_be_empty(bench: Bench, pool: Pool, left: str) -> None:
    owner = _owner(bench, pool)
    thief = _rob(owner, pool)
    bench.sql(left)
    owner.finish()
    thief.finish(25)
    _finish(bench, owner.vectorizer)


@pytest.mark.parametrize(
    ("columns", "key", "options"),
    [
        pytest.param("part int, name text, PRIMARY KEY (part, name)", "i / 7, 'n' || i", {}, id="composite"),
        pytest.param("id uuid PRIMARY KEY", "md5(i::text)::uuid", {}, id="uuid"),
        pytest.param('id text COLLATE "C" PRIMARY KEY', "chr(65 + i % 26 + 32 * (i % 2)) || i", {}, id="collated"),
        pytest.param("id timestamptz PRIMARY KEY", "to_timestamp(i * 1e6)", {}, id="time"),
        pytest.param("id bigint PRIMARY KEY", "i", {"into_column": "v"}, id="column"),
        pytest.param('"odd ""%s" numeric PRIMARY KEY', "i / 3.0", {}, id="odd name"),
    ],
)
def test_whatever_the_key_totals_are_exact_after_any_number_of_thefts(
    bench: Bench, pool: Pool, columns: str, key: str, options: dict[str, Any]
) -> None:
    bench.sql(f"CREATE TABLE docs ({columns}, body text)")
    bench.connection.execute(f"INSERT INTO docs SELECT {key}, 'document ' || i FROM generate_series(1, 100) i".encode())
    vectorizer = bench.enqueue("docs", "body", rows_per_job=100, **options)
    owner = Owner(bench, vectorizer, pool).claim()
    work = owner.read(70)
    stolen = []
    while True:
        worker = bench.register()
        job = _steal(bench, worker, least_rows=2)
        if job is None:
            break
        stolen.append((worker, job))
    assert len(stolen) > 20
    assert bench.progress("docs").rows_total == 100
    assert bench.progress("docs").jobs["running"] == len(stolen) + 1
    owner.write(work)
    assert owner.run.dropped
    for worker, _ in stolen:
        queue.release(bench.connection, worker)
    assert bench.progress("docs").jobs["queued"] == len(stolen) + 1
    assert _refused(bench) == 0
    _finish(bench, vectorizer)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.one_of(st.just(("steal",)), st.tuples(st.just("write"), st.integers(1, 40)), st.just(("ahead",))),
        max_size=12,
    )
)
def test_a_filter_blank_rows_and_any_order_of_thefts_and_writes_leave_totals_exact(
    bench: Bench, pool: Pool, steps: list[tuple[Any, ...]]
) -> None:
    bench.sql("DROP TABLE IF EXISTS docs, docs_vectors")
    bench.sql("TRUNCATE pgvec.vectorizers, pgvec.jobs, pgvec.workers, pgvec.counters, pgvec.failures")
    vectorizer = _fill(bench, 60, where="other IS NULL")
    bench.sql("UPDATE docs SET other = 1 WHERE id % 5 = 0")
    bench.sql("UPDATE docs SET body = ' ' WHERE id % 7 = 0")
    owner = Owner(bench, vectorizer, pool).claim()
    ahead: list[Work] = []
    members = []
    for kind, *arguments in steps:
        if kind == "steal":
            members.append(bench.register())
            _steal(bench, members[-1], least_rows=2)
        elif kind == "ahead" and not (ahead and ahead[-1].part.last) and not owner.run.dropped:
            ahead.append(owner.read(7))
        elif kind == "write" and not owner.run.dropped:
            owner.write(*(ahead or [owner.read(*arguments)]))
            ahead = []
    for member in (owner.member, *members):
        queue.release(bench.connection, member)
    work_off(bench, 25)
    assert_right(bench, vectorizer)
    assert bench.progress("docs").rows_total == 48


def _let_the_lease_run_out(bench: Bench, worker: int) -> None:
    bench.sql("UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour' WHERE id = %s", worker)


def test_an_owner_that_has_told_how_far_it_read_is_known_by_what_is_left() -> None:
    seen = Victim(1, 1, 1, ["0"], ["9"], None, None, None, 0, "")
    assert [lower for lower, _ in seen.rests()] == [["0"]]
    assert [lower for lower, _ in replace(seen, checkpoint=["2"]).rests()] == [["2"]]
    assert [lower for lower, _ in replace(seen, checkpoint=["2"], read_to=["5"]).rests()] == [["5"], ["2"]]
    assert [lower for lower, _ in replace(seen, checkpoint=["2"], read_to=[]).rests()] == [["2"]]
