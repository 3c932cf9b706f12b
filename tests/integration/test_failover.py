"""A standby is promoted while workers have jobs in hand: what the primary did last is lost, and the jobs go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from pgvec_queue import schema
from pgvec_queue.database import Database
from tests.chaos.proxy import Network, Proxy
from tests.chaos.server import Server
from tests.support import Bench, pgvec
from tests.waiting import wait_until

RIGHT = {"missing": 0, "orphaned": 0, "stale": 0}


@pytest.fixture
def clusters() -> Iterator[tuple[Server, Server, Proxy]]:
    """A primary with our schema, its streaming standby, and a way to the primary that can be turned to the standby."""
    with ExitStack() as stack:
        primary, standby = (stack.enter_context(closing(Server())) for _ in range(2))
        primary.create()
        schema.initialize(Database(primary.dsn))
        standby.create_standby(primary)
        network = stack.enter_context(closing(Network()))
        yield primary, standby, stack.enter_context(closing(Proxy(network, primary.port)))


def test_workers_go_on_where_a_standby_was_promoted_and_write_nothing_of_the_world_that_is_lost(
    clusters: tuple[Server, Server, Proxy],
) -> None:
    primary, standby, proxy = clusters
    old = Bench(primary.dsn)
    old.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    old.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 1500) i")
    vectorizer = old.enqueue("docs", "body", sync=True, rows_per_job=300)
    old_world = old.value("SELECT pgvec.world()")
    dsn = primary.dsn_at(proxy.port)
    workers = [pgvec("work", "--lease", "2", dsn=dsn, env={"PGVEC_HASHING_FAULTS": "delay=0.005"}) for _ in range(2)]
    try:
        wait_until(lambda: old.progress("docs").rows_done > 200, 30, what="some progress")
        with closing(Bench(standby.dsn)) as behind:
            wait_until(
                lambda: behind.value("SELECT count(*) FROM docs_vectors") > 200, 30, what="the standby following"
            )
            # From here on nothing reaches the standby: the primary's last commits are going to be lost.
            behind.sql("ALTER SYSTEM SET primary_conninfo TO ''")
            behind.sql("SELECT pg_reload_conf()")
            wait_until(lambda: not behind.sql("SELECT FROM pg_stat_wal_receiver"), 20, what="the standby cut off")
            kept = behind.value("SELECT count(*) FROM docs_vectors")
            old.sql("UPDATE docs SET body = 'known to the old world only' WHERE id %% 3 = 0 AND id > %s", 0)
            wait_until(lambda: old.value("SELECT count(*) FROM docs_vectors") > kept + 100, 30, what="lost progress")
            proxy.cut()
            old.close()
            primary.crash()
            behind.sql("SELECT pg_promote()")
        new = Bench(standby.dsn)
        assert new.value("SELECT pgvec.world()") != old_world
        new.sql("UPDATE docs SET body = 'known to the new world only' WHERE id %% 7 = %s", 0)
        new.sql("DELETE FROM docs WHERE id %% 50 = %s", 0)
        proxy.retarget(standby.port)
        proxy.heal()
        wait_until(lambda: new.progress("docs").state == "complete", 60, what="the jobs to go on")
        assert new.wrong(vectorizer) == RIGHT
        assert new.value("SELECT count(*) FROM docs_vectors WHERE chunk LIKE '%%old world%%' AND id > %s", 0) == 0
        new.close()
    finally:
        for worker in workers:
            worker.terminate()
        said = [worker.communicate(timeout=30)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert all("starting afresh" in err for err in said), said
