"""Every fault once, against real workers on a server that is theirs alone; and the harness's own parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from tests.chaos.bench import Bench
from tests.chaos.checker import Checked, check
from tests.chaos.driver import Draw, Driver, draw
from tests.chaos.history import record, recorded
from tests.chaos.poison import poison
from tests.chaos.strangers import Stranger, end_a_backend
from tests.chaos.tables import POISON, TABLES, Table, by_name
from tests.chaos.users import Users
from tests.chaos.workers import Worker
from tests.chaos.writers import writers
from tests.waiting import wait_until

# One server and one fleet for all of them; what they do most is wait.
pytestmark = pytest.mark.xdist_group("chaos")

LEASE = 2.0
WORKERS = 3
PATIENCE = 60.0
SHARE = 0.1


class Chaos:
    """The shared server with its workers, and the steps of a test."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.server = bench.server
        self.fleet = bench.fleet
        self.observer = bench.observer
        self._driver = Driver(bench.fleet, bench.server, bench.observer, None, 0)
        self._changes = 0

    def ready(self) -> None:
        """Waits until all workers run, every one of them able to take over from any other."""
        wait_until(self._all_judge, PATIENCE, what="all workers can judge")

    def _all_judge(self) -> bool:
        self.tend()
        return len(self.observer.judges()) >= WORKERS

    def tend(self) -> None:
        """Starts workers anew where one has ended; none may end by itself."""
        self._driver.tend()
        assert self._driver.ended == []

    def value(self, query: str) -> object:
        with self.server.connect() as connection:
            row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None

    def change(self, rows: int = 150) -> None:
        """Changes the text of so many rows of every table."""
        self._changes += 1
        with self.server.connect() as connection:
            for table in TABLES:
                connection.execute(
                    f"UPDATE {table.name} SET body = coalesce(body, '') || ' change {self._changes}.' WHERE"
                    f" ({', '.join(table.key_columns)}) IN (SELECT {', '.join(table.key_columns)} FROM {table.name}"
                    f" WHERE coalesce(body, '') !~ 'poison' ORDER BY md5(body) LIMIT {rows})".encode()
                )
        self.catch_up()

    def catch_up(self) -> None:
        """Without live changes: what triggers would have done."""
        if not self.bench.sync:
            self.bench.enqueue()

    def busy(self) -> Worker:
        """Waits for a worker that has jobs."""
        found: list[Worker] = []

        def look() -> bool:
            sample = self.observer.latest
            if sample is not None:
                found.extend(w for w in self.fleet.workers if w.able and sample.jobs(sample.ids(w.pid)))
            return bool(found)

        wait_until(look, PATIENCE, what="a worker has jobs")
        return found[0]

    def settled(self) -> Checked:
        """Waits until nothing is left to do, and checks all of it."""
        unfinished = "SELECT count(*) FROM pgvec.jobs WHERE state IN ('queued', 'running')"

        def look() -> bool:
            self.tend()
            return self.value(unfinished) == 0

        wait_until(look, PATIENCE, what="the queue is empty")
        return check(self.server)

    def attempts(self) -> object:
        return self.bench.counters()["jobs_reclaimed"]


@pytest.fixture(scope="module")
def shared() -> Iterator[Bench]:
    with Bench(seed=1, lease=LEASE, delay=0.01) as bench:
        bench.fill(share=SHARE, poison=0.01)
        bench.enqueue()
        bench.start_workers(WORKERS)
        yield bench


@pytest.fixture
def chaos(shared: Bench) -> Iterator[Chaos]:
    """All is well before the test, and what it has destroyed is mended after it."""
    chaos = Chaos(shared)
    chaos.ready()
    yield chaos
    for worker in shared.fleet.workers:
        if worker.proxy.state != "open":
            worker.proxy.heal()
        if worker.stopped:
            worker.go_on()
    assert chaos.settled().right


def test_the_jobs_of_a_killed_worker_are_back_after_its_lease(chaos: Chaos) -> None:
    chaos.change()
    victim = chaos.busy()
    known = len(chaos.observer.kills)
    victim.kill()
    chaos.observer.killed(victim.pid, victim.ended_at)
    wait_until(lambda: len(chaos.observer.kills) > known, PATIENCE, what="its jobs are seen")
    recovery = chaos.observer.kills[-1]
    wait_until(lambda: recovery.seconds is not None, PATIENCE, what="its jobs are back")
    assert recovery.excluded is None
    assert LEASE - 1 < (recovery.seconds or 0) <= LEASE + 2
    assert chaos.settled().right


def test_work_goes_on_after_all_workers_were_killed_at_once(chaos: Chaos) -> None:
    chaos.change()
    chaos.busy()
    for worker in chaos.fleet.workers:
        worker.kill()
    assert chaos.settled().right


def test_a_zombie_that_wakes_up_after_its_lease_does_no_harm(chaos: Chaos) -> None:
    chaos.change()
    sample = chaos.observer.latest
    assert sample is not None
    zombie = chaos.busy()
    ids = sample.ids(zombie.pid)
    zombie.stop()

    def is_replaced() -> bool:
        now = chaos.observer.latest
        return now is not None and all(id_ not in now.workers or now.workers[id_][1] for id_ in ids)

    wait_until(is_replaced, PATIENCE, what="somebody has declared it gone")
    with chaos.server.connect() as connection:
        connection.execute("UPDATE docs SET body = body || ' since then' WHERE body !~ 'poison'")
    chaos.catch_up()
    zombie.go_on()

    def is_back() -> bool:
        now = chaos.observer.latest
        return now is not None and bool(now.ids(zombie.pid) - ids)

    wait_until(is_back, PATIENCE, what="it works under a new id")
    assert chaos.settled().right


def test_a_worker_told_to_leave_gives_its_jobs_back_and_counts_no_attempt(chaos: Chaos) -> None:
    chaos.change()
    before = chaos.attempts()
    victim = chaos.busy()
    pid = victim.pid
    victim.tell_to_leave()
    wait_until(lambda: next((e for e in chaos.fleet.ended()), None), PATIENCE, what="it has left")
    assert chaos.value(f"SELECT count(*) FROM pgvec.workers WHERE pid = {pid} AND NOT gone") == 0
    assert chaos.settled().right
    assert chaos.attempts() == before


def test_workers_survive_a_crash_of_the_server(chaos: Chaos) -> None:
    chaos.change(300)
    chaos.busy()
    pids = {worker.pid for worker in chaos.fleet.workers}
    known = len(chaos.observer.restarts)
    chaos.observer.crashed()
    chaos.server.crash()
    chaos.server.start()
    assert chaos.server.accepts_since is not None
    chaos.observer.restarted(chaos.server.accepts_since)
    wait_until(lambda: len(chaos.observer.restarts) > known, PATIENCE, what="the queue is looked at again")
    recovery = chaos.observer.restarts[-1]
    wait_until(lambda: recovery.seconds is not None, PATIENCE, what="somebody works again")
    assert recovery.excluded is None
    assert (recovery.seconds or 0) <= 5.0
    assert chaos.settled().right
    assert {worker.pid for worker in chaos.fleet.workers} == pids


def test_workers_survive_a_cut_network(chaos: Chaos) -> None:
    chaos.change()
    victim = chaos.busy()
    pids = {worker.pid for worker in chaos.fleet.workers}
    victim.proxy.cut()
    chaos.change(20)
    wait_until(lambda: _is_gone(chaos, victim), PATIENCE, what="its lease has run out")
    victim.proxy.heal()
    assert chaos.settled().right
    chaos.ready()
    assert {worker.pid for worker in chaos.fleet.workers} == pids


@pytest.mark.parametrize("reset", [False, True], ids=["late", "reset"])
def test_what_a_black_hole_held_back_does_no_harm(chaos: Chaos, reset: bool) -> None:
    chaos.change()
    victim = chaos.busy()
    pids = {worker.pid for worker in chaos.fleet.workers}
    victim.proxy.swallow()
    chaos.change(20)
    wait_until(lambda: _is_gone(chaos, victim), PATIENCE, what="its lease has run out")
    victim.proxy.heal(reset=reset)
    assert chaos.settled().right
    chaos.ready()
    assert {worker.pid for worker in chaos.fleet.workers} == pids


def _is_gone(chaos: Chaos, worker: Worker) -> bool:
    sample = chaos.observer.latest
    return sample is not None and not sample.ids(worker.pid)


def test_workers_survive_that_their_backends_are_ended(chaos: Chaos) -> None:
    chaos.change()
    chaos.busy()
    pids = {worker.pid for worker in chaos.fleet.workers}
    random, ended = Random(1), Counter[bool]()

    def end_one() -> bool:
        ended[end_a_backend(chaos.server, random) is not None] += 1
        return ended[True] >= 10

    wait_until(end_one, PATIENCE, what="ten backends were ended")
    assert chaos.settled().right
    assert {worker.pid for worker in chaos.fleet.workers} == pids


def test_strangers_with_idle_connections_snapshots_and_locks_stop_nobody(chaos: Chaos) -> None:
    visitor = Stranger(chaos.server)
    try:
        visitor.idle()
        visitor.hold_snapshot()
        chaos.change()
        assert chaos.settled().right
        visitor.hold_rows(Random(1))
        chaos.change(0)
        with chaos.server.connect() as connection:
            connection.execute(
                "INSERT INTO tags (id, body) SELECT -i, 'while rows are locked ' || i FROM generate_series(1, 40) i"
            )
        chaos.catch_up()
        wait_until(
            lambda: chaos.value("SELECT count(*) FROM tags_vectors WHERE id < 0") == 40, PATIENCE, what="work goes on"
        )
    finally:
        visitor.leave()
    assert chaos.settled().right


def test_a_worker_whose_clock_is_hours_off_is_like_any_other(chaos: Chaos) -> None:
    if chaos.fleet.faketime is None:
        pytest.skip("the package faketime is not installed")
    before = chaos.attempts()
    for worker, hours in zip(chaos.fleet.workers, (-7, 9, 0), strict=False):
        worker.tell_to_leave()
        wait_until(lambda: list(chaos.fleet.ended()), PATIENCE, what="it has left")
        chaos.fleet.start(worker, clock=hours)
    chaos.ready()
    chaos.change()
    assert chaos.settled().right
    assert chaos.attempts() == before


def test_each_kind_of_poison_is_quarantined_and_leaves_it_when_its_text_changes(chaos: Chaos) -> None:
    kinds = [name for name in POISON if name != "kill"]
    with chaos.server.connect() as connection:
        for i, name in enumerate(kinds):
            for table in ("docs", "cards", "tags"):
                connection.execute(
                    f"INSERT INTO {table} (id, body) VALUES (-{100 + i}, 'a text with {POISON[name]} in it')".encode()
                )
    chaos.catch_up()
    poisoned = chaos.settled()
    assert poisoned.right
    assert poisoned.quarantined >= 3 * len(kinds)
    with chaos.server.connect() as connection:
        for table in ("docs", "cards", "tags"):
            connection.execute(f"UPDATE {table} SET body = 'healed' WHERE id BETWEEN -110 AND -100".encode())
    chaos.catch_up()
    healed = chaos.settled()
    assert healed.right
    assert healed.quarantined == poisoned.quarantined - 3 * len(kinds)


def test_a_row_that_kills_its_workers_is_found_and_quarantined(chaos: Chaos) -> None:
    with chaos.server.connect() as connection:
        connection.execute(
            "INSERT INTO docs (id, body) SELECT -1000 - i, CASE WHEN i = 20 THEN 'a poisonkill row'"
            " ELSE 'beside a killer ' || i END FROM generate_series(1, 40) i"
        )
    chaos.catch_up()
    assert chaos.settled().right
    assert chaos.value("SELECT array_agg(key[1]) FROM pgvec.failures WHERE key[1] LIKE '-10__'") == ["-1020"]


def test_users_and_faults_all_at_once(chaos: Chaos) -> None:
    users = Users(chaos.server, 1, count=4, per_second=5.0, poison=0.0)
    driver = Driver(chaos.fleet, chaos.server, chaos.observer, users, 1)
    kinds = ("kill", "zombie", "server restart", "network cut", "backend ended", "locked rows", "terminate")
    users.start()
    try:
        driver.run([Draw(1.0 + i, kind, i) for i, kind in enumerate(kinds)], 14.0)
    finally:
        driver.calm()
        users.stop()
    assert driver.ended == []
    assert users.changes > 100
    chaos.catch_up()
    assert chaos.settled().right


def _break_and_check(chaos: Chaos, *statements: str) -> Counter[str]:
    """Spoils the destination by hand, checks, and makes it right again."""
    with chaos.server.connect() as connection:
        for statement in statements:
            assert connection.execute(statement.encode()).rowcount
    problems = check(chaos.server).problems
    with chaos.server.connect() as connection:
        for table in ("docs", "places", "tags"):
            connection.execute(f"DELETE FROM {table}_vectors".encode())
            connection.execute(
                f"UPDATE {table} SET body = coalesce(body, '') || ' again.' WHERE body !~ 'poison'".encode()
            )
        connection.execute("DELETE FROM pgvec.failures WHERE key[1] IN ('1', '-1')")
    chaos.bench.enqueue()
    return problems


def test_the_check_sees_whatever_is_wrong(chaos: Chaos) -> None:
    assert chaos.settled().right
    one = "(SELECT id FROM docs_vectors ORDER BY id LIMIT 1)"
    problems = _break_and_check(
        chaos,
        "DELETE FROM docs_vectors WHERE (id, chunk_index) IN (SELECT id, max(chunk_index) FROM docs_vectors"
        " WHERE id > (SELECT min(id) FROM docs_vectors) GROUP BY id LIMIT 1)",
        f"INSERT INTO docs_vectors SELECT id, 99, chunk, embedding, source_hash FROM docs_vectors WHERE id = {one}"
        " AND chunk_index = 0",
        "UPDATE places_vectors SET source_hash = 'other'"
        " WHERE (tableoid, ctid) = (SELECT tableoid, ctid FROM places_vectors LIMIT 1)",
        "UPDATE tags_vectors SET embedding = (embedding::real[] || 1::real)[2:]::vector"
        " WHERE ctid = (SELECT ctid FROM tags_vectors LIMIT 1)",
        "INSERT INTO tags_vectors SELECT -77, chunk_index, chunk, embedding, source_hash FROM tags_vectors LIMIT 1",
        "DELETE FROM pgvec.failures WHERE ctid = (SELECT ctid FROM pgvec.failures LIMIT 1)",
        "INSERT INTO pgvec.failures SELECT vectorizer_id, ARRAY['-1'], source_hash, error_class, message, model"
        " FROM pgvec.failures LIMIT 1",
    )
    assert problems == {
        "lost": 2,
        "duplicate": 1,
        "stale": 2,
        "orphaned": 1,
        "poison missed": 1,
        "poison false": 1,
    }


def test_many_writers_at_once_leave_the_destination_as_the_source_and_no_row_is_embedded_for_nothing() -> None:
    summary = writers(seed=2, seconds=4.0, kills=True, filling=False, share=0.1)
    assert summary.checked.right
    assert summary.failures == []
    assert summary.faults["kill"]
    assert summary.changes > 100
    assert 0 < summary.measured["documents embedded for it"] <= summary.measured["documents changed"]


def test_the_log_shows_rows_that_were_embedded_though_they_did_not_change(chaos: Chaos) -> None:
    assert chaos.settled().right
    record(chaos.server, TABLES)
    try:
        with chaos.server.connect() as connection:
            connection.execute("UPDATE cards SET note = note + 1")
            connection.execute("UPDATE places_vectors SET chunk = chunk")
            connection.execute("INSERT INTO tags (id, body) VALUES (-5000, 'a new one')")
        assert chaos.settled().right
        assert {line.split()[0] for line in recorded(chaos.server).needless} == {"places"}
        with chaos.server.connect() as connection:
            connection.execute("UPDATE cards SET embedding = embedding WHERE embedding IS NOT NULL")
            connection.execute("UPDATE tags SET body = 'another one' WHERE id = -5000")
        assert chaos.settled().right
        log = recorded(chaos.server)
        assert {line.split()[0] for line in log.needless} == {"cards", "places"}
        assert log.changed == 2
        assert log.twice == len(log.needless)
    finally:
        with chaos.server.connect() as connection:
            connection.execute("DROP FUNCTION chaos_version, chaos_embedding CASCADE")
            connection.execute("DROP TABLE chaos_versions, chaos_embeddings")
            connection.execute("DROP FUNCTION chaos_key, chaos_document")


def test_poison_costs_no_row_but_itself_however_it_shows() -> None:
    kinds = ("none", "mixed")
    cost = poison(seed=1, runs=1, lease=1.0, rows=60, poisoned=4, delay=0.001, kinds=kinds, workers=(1,))
    assert cost.failures == []
    assert all(len(times) == 1 for times in cost.seconds.values())
    assert cost.killed[0].deaths >= 4
    assert cost.killed[0].quarantined is not None


def test_a_seed_gives_the_same_faults_again_and_enough_of_them() -> None:
    faults = draw(1, 1800)
    assert faults == draw(1, 1800)
    assert faults != draw(2, 1800)
    counted = Counter(one.kind for one in faults)
    assert counted["kill"] >= 250
    assert counted["zombie"] >= 60
    assert counted["server restart"] >= 25
    assert counted["network cut"] >= 25


def test_the_tables_differ_in_key_and_destination() -> None:
    def destination(table: Table) -> str:
        return "column" if "--into-column" in table.enqueue else "table"

    assert {destination(table) for table in TABLES} == {"table", "column"}
    assert len(by_name("places").key_columns) == 2
