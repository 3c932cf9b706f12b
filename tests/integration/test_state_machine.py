"""The real SQL driven by a machine of random steps: users, planners, and workers that die, wake up late and come back.

After each step: jobs moved only as docs/state-machine.md allows, and with live changes an empty queue means a right
destination. A write is refused if and only if its job is no longer as its worker last saw it, and then changes nothing.
At the end the destination is exactly the source, whatever happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgvec_queue import quarantine, queue, stealing, writing
from pgvec_queue.database import Connection, statement
from pgvec_queue.queue import Job, Key, Membership
from pgvec_queue.slices import Embedded, Failure, Fate, Slice, position
from tests.oracle import Held, expected, found
from tests.support import Bench

POISON = "poison"
LONG = " ".join(f"word{i}" for i in range(40))
TEXTS = ("alpha", "beta", "gamma", LONG, LONG.upper(), " \t", None, POISON)

KEYS = st.integers(0, 5)
DOCUMENTS = st.sampled_from(TEXTS)
NUMBERS = st.sampled_from((0, 1, 9))
"""Of a column beside the text; a row with 9 is not selected."""
CHANGES = st.one_of(
    st.tuples(st.just("put"), KEYS, DOCUMENTS),
    st.tuples(st.just("set_other"), KEYS, NUMBERS),
    st.tuples(st.just("set_from"), KEYS, DOCUMENTS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("change_key"), KEYS, KEYS),
    st.tuples(st.just("truncate")),
)
"""Of the source: a method of ``Users``, and its arguments."""
CHANGES_OF_ONE = st.one_of(
    st.tuples(st.just("put"), DOCUMENTS), st.tuples(st.just("set_other"), NUMBERS), st.tuples(st.just("delete"))
)
"""The same without the key."""
SIZES = st.integers(1, 3)
"""Documents in a slice."""
LISTED = st.sampled_from((1, 2, 1_000))
"""Keys that a claim makes one list of."""

MOVES = {
    (None, "queued"),
    (None, "running"),
    ("queued", "queued"),
    ("queued", "running"),
    ("queued", None),
    ("running", "running"),
    ("running", "queued"),
    ("running", "done"),
    ("running", None),
    ("done", "done"),
}
"""None: a job that is not there. A claim makes one list of several; a list that is done, and a tail that is planned
anew, are deleted."""


@dataclass(frozen=True)
class Shape:
    """A source, and where its vectors go."""

    columns: str
    key: tuple[str, ...]
    keys: Callable[[int], tuple[Any, ...]]
    parse: Callable[[list[str]], tuple[Any, ...]]
    """From the text of a key to what sorts as PostgreSQL sorts it."""
    options: dict[str, Any] = field(default_factory=dict)


def _two_columns(number: int) -> tuple[Any, ...]:
    return (number // 2, "xy"[number % 2])


INTO_TABLE = Shape(
    "id int PRIMARY KEY", ("id",), lambda number: (number,), lambda key: (int(key[0]),), {"chunk_size": 16}
)
INTO_COLUMN = replace(INTO_TABLE, options={"into_column": "embedding"})
COMPOSITE = Shape(
    "part int, name text, PRIMARY KEY (part, name)", ("part", "name"), _two_columns, lambda key: (int(key[0]), key[1])
)


class Users:
    """What users do to the source, by the number of a row."""

    def __init__(self, connection: Connection, shape: Shape) -> None:
        self._connection = connection
        self._shape = shape
        self._is_key = " AND ".join(f"{name} = %s" for name in shape.key)

    def change(self, kind: str, *arguments: Any) -> None:
        with self._connection.transaction():
            getattr(self, kind)(*arguments)

    def put(self, number: int, text: str | None) -> None:
        names = ", ".join(self._shape.key)
        marks = ", ".join("%s" for _ in self._shape.key)
        self._run(
            f"INSERT INTO docs ({names}, body) VALUES ({marks}, %s)"
            f" ON CONFLICT ({names}) DO UPDATE SET body = excluded.body",
            *self._shape.keys(number),
            text,
        )

    def set_other(self, number: int, other: int) -> None:
        self._run(f"UPDATE docs SET other = %s WHERE {self._is_key}", other, *self._shape.keys(number))

    def set_from(self, number: int, text: str | None) -> None:
        self._run(f"UPDATE docs SET body = %s WHERE {self._shape.key[0]} >= %s", text, self._shape.keys(number)[0])

    def delete(self, number: int) -> None:
        self._run(f"DELETE FROM docs WHERE {self._is_key}", *self._shape.keys(number))

    def change_key(self, number: int, to: int) -> None:
        """Onto a key whose row goes, if it has one."""
        old, new = self._shape.keys(number), self._shape.keys(to)
        if old != new and self._run(f"SELECT FROM docs WHERE {self._is_key}", *old):
            self.delete(to)
            changes = ", ".join(f"{name} = %s" for name in self._shape.key)
            self._run(f"UPDATE docs SET {changes} WHERE {self._is_key}", *new, *old)

    def truncate(self) -> None:
        self._run("TRUNCATE docs")

    def _run(self, text: str, *parameters: Any) -> int:
        return self._connection.execute(text.encode(), parameters).rowcount


@dataclass
class Claim:
    """A job in the hands of a worker, who may have lost it without knowing."""

    member: Membership
    job: Job
    over: bool = False


@dataclass
class Hand:
    """A slice that was read, on its way to the writer."""

    claim: Claim
    part: Slice


class Machine(RuleBasedStateMachine):
    """One table, one vectorizer, and whatever happens to them."""

    bench: ClassVar[Bench]
    shape: ClassVar[Shape]
    sync: ClassVar[bool]

    user: Connection | None = None
    """Of a transaction that stays open while workers read and write."""

    workers = Bundle("workers")
    hands = Bundle("hands")

    @initialize(target=workers, texts=st.lists(DOCUMENTS, min_size=6, max_size=6))
    def begin(self, texts: list[str | None]) -> Any:
        bench = self.bench
        bench.sql(f"CREATE TABLE docs (body text, other int DEFAULT 0, {self.shape.columns})")
        self.users = Users(bench.connection, self.shape)
        self.all_hands: list[Hand] = []
        for number, text in enumerate(texts):
            self.users.put(number, text)
        self.vectorizer = bench.define(
            "docs", "body", where="other <> 9", rows_per_job=4, sync=self.sync, **self.shape.options
        ).vectorizer
        self.jobs = self._jobs()
        bench.plan(self.vectorizer)
        return multiple(bench.register(), bench.register())

    # Users.

    @precondition(lambda self: self.user is None)
    @rule(change=CHANGES, commit=st.booleans())
    def change(self, change: tuple[Any, ...], commit: bool) -> None:
        with self.bench.connection.transaction(force_rollback=not commit):
            self.users.change(*change)

    @precondition(lambda self: self.user is None)
    @rule(hand=hands, nth=st.integers(0, 2), change=CHANGES_OF_ONE, stays_open=st.booleans())
    def change_what_is_being_embedded(self, hand: Hand, nth: int, change: tuple[Any, ...], stays_open: bool) -> None:
        self._change_one_of(hand, nth, change, stays_open=stays_open)

    @precondition(lambda self: self.user is not None)
    @rule(commit=st.booleans())
    def end_the_change(self, commit: bool) -> None:
        assert self.user is not None
        if commit:
            self.user.commit()
        self.user.close()
        self.user = None

    # Planners and operators.

    @rule()
    def plan(self) -> None:
        self.bench.plan(self.vectorizer)

    @rule()
    def retry(self) -> None:
        quarantine.retry(self.bench.connection, self.vectorizer.id)

    # Workers.

    @rule(target=hands, member=workers, keys=LISTED, size=SIZES)
    def claim(self, member: Membership, keys: int, size: int) -> Any:
        return self._claim(member, keys, size) or multiple()

    @rule(
        target=hands,
        workers=st.tuples(workers, st.none() | workers),
        sizes=st.tuples(LISTED, SIZES),
        first=CHANGES,
        nth=st.integers(0, 2),
        second=CHANGES_OF_ONE,
    )
    def work(
        self,
        workers: tuple[Membership, Membership | None],
        sizes: tuple[int, int],
        first: tuple[Any, ...],
        nth: int,
        second: tuple[Any, ...],
    ) -> Any:
        """Claim, read and write, while a user changes what is being embedded and another worker, if any, is faster."""
        member, other = workers
        if self.user is None:
            self.users.change(*first)
        hand = self._claim(member, *sizes)
        if hand is None:
            return multiple()
        if self.user is None:
            self._change_one_of(hand, nth, second)
        if other is not None and (overtaking := self._claim(other, *sizes)) is not None:
            self._write(overtaking)
        self._write(hand)
        return hand

    @rule(target=hands, hand=hands, size=SIZES)
    def read_again(self, hand: Hand, size: int) -> Any:
        """From where the job is now; the first slice is still on its way, or written, or lost."""
        return multiple() if hand.claim.over else self._read(hand.claim, hand.claim.job, size)

    @rule(target=hands, hand=hands, size=SIZES)
    def read_ahead(self, hand: Hand, size: int) -> Any:
        """The next slice, while this one is still on its way."""
        if hand.part.last or hand.claim.over:
            return multiple()
        return self._read(hand.claim, hand.part.after(), size)

    @rule(target=hands, member=workers, size=SIZES)
    def steal(self, member: Membership, size: int) -> Any:
        return self._steal(member, size) or multiple()

    @rule(target=hands, members=st.tuples(workers, workers), sizes=st.tuples(SIZES, SIZES), ahead=st.booleans())
    def work_and_be_robbed(self, members: tuple[Membership, Membership], sizes: tuple[int, int], ahead: bool) -> Any:
        """Claim and read; before that is written, somebody takes the end of it."""
        owner, thief = members
        hand = self._claim(owner, 1_000, sizes[0])
        if hand is None:
            return multiple()
        later = self._read(hand.claim, hand.part.after(), sizes[0]) if ahead and not hand.part.last else None
        stolen = self._steal(thief, sizes[1])
        self._write(hand)
        if later is not None:
            self._write(later)
        return stolen or multiple()

    @rule(hand=consumes(hands))
    def write(self, hand: Hand) -> None:
        self._write(hand)

    @rule(hand=hands)
    def write_and_not_hear_of_it(self, hand: Hand) -> None:
        """The connection broke; it may be written again."""
        self._write(hand)

    @rule(target=workers, member=consumes(workers))
    def die(self, member: Membership) -> Membership:
        """Or pause for longer than the lease: what it has in hand may be written later, or never."""
        self._let_the_lease_run_out("id = %s", member.worker)
        assert queue.reclaim(self.bench.connection)[0] == 1
        beat = {"worker": member.worker, "world": member.world, "state": "working", "device": None, "dtype": None}
        beat |= {"models": [], "memory": None, "waiting_for": None, "busy": None, "documents_per_second": None}
        beat |= {"loads": 0, "batch_tokens": None, "runtime": None, "padding": None}
        beat |= {"commit_seconds": None, "lag_seconds": None, "in_hand": []}
        beat |= {"cache_chunks": None, "cache_bytes": None, "cache_lookups": 0, "cache_hits": 0, "plenty": False}
        assert self.bench.connection.execute(statement("queue", "beat"), beat).fetchone() is None
        assert queue.Claimer(member, None).claim(self.bench.connection) is None
        return self.bench.register()

    @rule(member=workers)
    def release(self, member: Membership) -> None:
        queue.release(self.bench.connection, member)

    @rule(target=hands, hand=hands, keys=LISTED, size=SIZES)
    def release_and_claim_again(self, hand: Hand, keys: int, size: int) -> Any:
        """While a slice of the first claim is still on its way to the writer."""
        queue.release(self.bench.connection, hand.claim.member)
        again = self._claim(hand.claim.member, keys, size)
        self._write(hand)
        return again or multiple()

    # What holds after each step.

    @invariant()
    def jobs_move_as_they_may(self) -> None:
        self._look_at_jobs()

    @invariant()
    def with_live_changes_an_empty_queue_means_a_right_destination(self) -> None:
        if self.sync and all(job["state"] == "done" for job in self.jobs.values()):
            self._assert_right()

    def teardown(self) -> None:
        try:
            self._finish()
        finally:
            self._clean()

    # How it is done.

    def _finish(self) -> None:
        if self.user is not None:
            self.user.commit()
        self._let_the_lease_run_out("NOT gone")
        queue.reclaim(self.bench.connection)
        if not self.sync:
            self.bench.plan(self.vectorizer)
        self._work_off()
        self._assert_right()
        for hand in self.all_hands:
            assert self._write(hand) is Fate.LOST

    def _change_one_of(self, hand: Hand, nth: int, change: tuple[Any, ...], *, stays_open: bool = False) -> None:
        covered = sorted(self._covered(hand.part))
        number = self._number(covered[nth % len(covered)]) if covered else nth
        kind, *arguments = change
        if stays_open:
            self.user = psycopg.connect(self.bench.dsn)
            self.user.execute("SET lock_timeout = '5s'")
            Users(self.user, self.shape).change(kind, number, *arguments)
        else:
            self.users.change(kind, number, *arguments)

    def _number(self, key: tuple[str, ...]) -> int:
        return next(number for number in range(6) if tuple(str(part) for part in self.shape.keys(number)) == key)

    def _let_the_lease_run_out(self, which: str, *parameters: Any) -> None:
        self.bench.sql(f"UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour' WHERE {which}", *parameters)

    def _jobs(self) -> dict[int, dict[str, Any]]:
        return {job["id"]: job for (job,) in self.bench.sql("SELECT to_jsonb(j) FROM pgvec.jobs j")}

    def _look_at_jobs(self) -> None:
        before, self.jobs = self.jobs, self._jobs()
        for id_ in before.keys() | self.jobs.keys():
            old, new = before.get(id_), self.jobs.get(id_)
            move = (old and old["state"], new and new["state"])
            assert move in MOVES, (move, old, new)
            if new is not None:
                assert (new["worker_id"] is not None) == (new["state"] == "running")
            if old is not None and new is not None:
                assert new["epoch"] == old["epoch"] + (move == ("queued", "running"))
                assert new["attempts"] - old["attempts"] <= (move == ("running", "queued"))
                assert self._reached(new) >= self._reached(old)

    def _reached(self, job: dict[str, Any]) -> tuple[Any, ...]:
        """How far a job has come, in an order of its own."""
        if job["state"] == "done":
            return (2,)
        if job["checkpoint"] is None:
            return (0,)
        return 1, position(job["checkpoint"]) if job["kind"] == "keys" else self.shape.parse(job["checkpoint"])

    def _claim(self, member: Membership, keys: int, size: int) -> Hand | None:
        self._look_at_jobs()
        job = queue.Claimer(member, None).claim(self.bench.connection, keys=keys)
        self._look_at_jobs()
        return None if job is None else self._read(Claim(member, job), job, size)

    def _steal(self, member: Membership, size: int) -> Hand | None:
        """What is left of a range that somebody, who may have died since, is working on."""
        self._look_at_jobs()
        self.bench.sql("UPDATE pgvec.workers SET started_at = beat_at, beat_at = clock_timestamp() WHERE NOT gone")
        fragments = self.bench.fragments(self.vectorizer)
        thief = stealing.Thief(queue.Claimer(member, None), least_rows=2)
        job = thief.steal(self.bench.connection, lambda _: fragments)
        before = self.jobs
        self._look_at_jobs()
        if job is None:
            return None
        [robbed] = [one for id_, one in self.jobs.items() if id_ in before and one != before[id_]]
        assert (robbed["upper_key"], job.upper_key) == (job.lower_key, before[robbed["id"]]["upper_key"])
        assert robbed["rows"] + job.rows == before[robbed["id"]]["rows"]
        return self._read(Claim(member, job), job, size)

    def _read(self, claim: Claim, job: Job, rows: int) -> Hand:
        hand = Hand(claim, self.bench.read(self.vectorizer, job, rows))
        self.all_hands.append(hand)
        return hand

    def _write(self, hand: Hand) -> Fate:
        """Writes as a worker would: one that has lost its job does not know it."""
        job = hand.part.job
        row = self._jobs().get(job.id)
        is_still_its = row is not None and (
            (row["state"], row["worker_id"], row["epoch"], row["checkpoint"], row["upper_key"])
            == ("running", hand.claim.member.worker, job.epoch, job.checkpoint, job.upper_key)
        )
        before, held_before = self._everything(), found(self.bench, self.vectorizer)
        now = hand.claim.job
        part = replace(hand.part, job=replace(job, rows=now.rows, rows_seen=now.rows_seen))
        written = self.bench.write(self.vectorizer, part, self._embed(part), hand.claim.member)
        assert written.fate is (Fate.WRITTEN if is_still_its else Fate.LOST)
        if written.fate is Fate.LOST:
            assert self._everything() == before
            return self._write_cut(hand)
        # Rows that somebody holds are put off for a second, which here nobody waits for.
        self.bench.sql("UPDATE pgvec.jobs SET run_after = NULL WHERE run_after IS NOT NULL")
        hand.claim.job = written.job
        hand.claim.over = part.last
        self._assert_right_or_left_alone(self._covered(part), held_before)
        return written.fate

    def _write_cut(self, hand: Hand) -> Fate:
        """What is left of a slice whose job was lost, or only the end of it."""
        job = hand.part.job
        now = queue.reread(self.bench.connection, job, hand.claim.member)
        if now is None or now.checkpoint != job.checkpoint or now.upper_key == job.upper_key:
            return Fate.LOST
        hand.claim.job = now
        fragments = self.bench.fragments(self.vectorizer)
        hand.part = writing.cut(self.bench.connection, fragments, hand.part, now.upper_key)
        return self._write(hand)

    def _embed(self, part: Slice) -> list[Embedded]:
        return [
            Embedded(one.document, failure=Failure("Test", "no good")) if one.document.text == POISON else one
            for one in self.bench.embed(self.vectorizer, part)
        ]

    def _work_off(self) -> None:
        member = self.bench.register()
        claimer = queue.Claimer(member, None)
        while (job := claimer.claim(self.bench.connection)) is not None:
            claim = Claim(member, job)
            while not claim.over:
                part = self.bench.read(self.vectorizer, claim.job, rows=2)
                assert self._write(Hand(claim, part)) is Fate.WRITTEN

    def _covered(self, part: Slice) -> set[Key]:
        """The keys that a slice answers for, read or not."""
        if part.job.kind == "keys":
            return {tuple(key) for key in part.keys}
        every = [[str(column) for column in self.shape.keys(number)] for number in range(6)]
        lower, upper = part.lower, part.upper
        return {
            tuple(key)
            for key in every
            if part.job.kind == "range"
            and (lower is None or self.shape.parse(key) > self.shape.parse(lower))
            and (upper is None or self.shape.parse(key) <= self.shape.parse(upper))
        }

    def _assert_right_or_left_alone(self, keys: set[Key], held_before: Held) -> None:
        """What was written is the present text; what changed meanwhile keeps what it had, and is queued."""
        queued = {tuple(key) for job in self._jobs().values() if job["state"] == "queued" for key in job["keys"] or ()}
        right, held = self._right(), found(self.bench, self.vectorizer)
        for key in keys:
            before, after, wanted = (_of(key, rows) for rows in (held_before, held, right))
            assert after == wanted or (after == before and key in queued)

    def _right(self) -> Held:
        """What the destination has to hold; of poison, nothing."""
        poison = self._poison()
        return [row for row in expected(self.bench, self.vectorizer) if row[: len(self.shape.key)] not in poison]

    def _poison(self) -> set[Key]:
        names = ", ".join(f"{name}::text" for name in self.shape.key)
        return set(self.bench.sql(f"SELECT {names} FROM docs WHERE body = %s AND other <> 9", POISON))

    def _assert_right(self) -> None:
        """The destination is the source, poison is in quarantine and nothing else is."""
        assert found(self.bench, self.vectorizer) == self._right()
        assert {tuple(key) for (key,) in self.bench.sql("SELECT key FROM pgvec.failures")} == self._poison()

    def _everything(self) -> list[Any]:
        tables = ["docs", "pgvec.jobs", "pgvec.failures", "pgvec.counters"]
        if not self.vectorizer.into_column:
            tables.append("docs_vectors")
        return [self.bench.sql(f"SELECT t::text FROM {table} t ORDER BY 1") for table in tables]

    def _clean(self) -> None:
        if self.user is not None:
            self.user.close()
        self.bench.sql("DROP TABLE docs")
        self.bench.sql("DROP TABLE IF EXISTS docs_vectors")
        self.bench.sql("TRUNCATE pgvec.vectorizers, pgvec.jobs, pgvec.workers, pgvec.counters, pgvec.failures")


def _of(key: Key, rows: Held) -> Held:
    return [row for row in rows if row[: len(key)] == key]


def _run(bench: Bench, shape: Shape, *, sync: bool) -> None:
    machine = type("Machine", (Machine,), {"bench": bench, "shape": shape, "sync": sync})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=16,
            stateful_step_count=30,
            suppress_health_check=[HealthCheck.too_slow],
            phases=[Phase.generate, Phase.shrink],
        ),
    )


@pytest.mark.parametrize("sync", [False, True], ids=["planned again", "live changes"])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(INTO_TABLE, id="table"),
        pytest.param(INTO_COLUMN, id="column"),
        pytest.param(COMPOSITE, id="composite key"),
    ],
)
def test_the_destination_is_the_source_whatever_happened(bench: Bench, shape: Shape, sync: bool) -> None:
    _run(bench, shape, sync=sync)
