"""``pgvec service`` on a machine that systemd runs: installed, killed, told to leave, removed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgvec_queue import embedded
from tests.deploy.machine import PROGRAM, Machine, machine, needs_machine
from tests.support import Bench
from tests.waiting import wait_until

pytestmark = [needs_machine, pytest.mark.xdist_group("machine")]


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, postgres: embedded.Server) -> Iterator[Machine]:
    given = conninfo_to_dict(postgres.uri(user="postgres", database="postgres"))
    with machine(tmp_path_factory.mktemp("machine"), Path(str(given["host"])), int(str(given["port"]))) as booted:
        yield booted


def dsn_there(bench: Bench) -> str:
    """The test's database as the machine reaches it."""
    return make_conninfo(bench.dsn, host="127.0.0.1")


def process(there: Machine) -> int:
    """The worker's, as systemd says; 0 where there is none."""
    return int(there.state("pgvec-worker.service")["MainPID"])


def wait_for_worker(there: Machine, bench: Bench, *, other_than: int = 0) -> None:
    """Waits until the database knows the very process that systemd started."""

    def known() -> bool:
        number = process(there)
        pids = [pid for (pid,) in bench.sql("SELECT pid FROM pgvec.worker_status WHERE state = 'idle'")]
        return number not in (0, other_than) and number in pids

    wait_until(known, 60, what="the worker")


def test_a_worker_is_installed_killed_told_to_leave_and_removed(there: Machine, bench: Bench) -> None:
    bench.sql("CREATE TABLE docs AS SELECT i::bigint AS id, 'document ' || i AS body FROM generate_series(1, 500) i")
    bench.sql("ALTER TABLE docs ADD PRIMARY KEY (id)")
    bench.enqueue("docs", "body")
    given = {"PGVEC_DSN": dsn_there(bench)}
    command = (PROGRAM, "service", "install", "--", "--lease", "2")
    installed = there(*command, environment=given)
    assert (installed.code, installed.out) == (0, ""), installed
    assert "pgvec: systemctl restart pgvec-worker.service" in installed.err

    wait_until(lambda: bench.progress("docs").state == "complete", 60, what="the work")
    assert bench.progress("docs").rows_done == 500
    wait_for_worker(there, bench)
    first = process(there)
    state = there.state("pgvec-worker.service")
    assert (state["ActiveState"], state["UnitFileState"]) == ("active", "enabled")

    # The address is the unit's credential alone: neither its environment nor any command line has it.
    secret = dsn_there(bench)
    assert secret not in there("cat", f"/proc/{first}/environ").out
    assert secret not in there("systemctl", "show", "pgvec-worker.service").out
    assert there("stat", "--format=%a", "/etc/pgvec/worker.dsn", "/etc/pgvec/worker.env").out == "600\n600\n"
    user = there("ps", "-o", "user=", "-p", str(first)).out.strip()
    assert user not in ("root", "")

    again = there(*command, environment=given)
    assert (again.code, "wrote" in again.err) == (0, False), again
    assert process(there) == first

    # What a person has written since it was started is taken up, although the installation changes no file.
    there("touch", "/etc/pgvec/worker.env")
    assert there(*command[:3], environment=given).code == 0
    wait_for_worker(there, bench, other_than=first)
    first = process(there)
    assert "--lease 2" in there("cat", "/etc/systemd/system/pgvec-worker.service").out

    told = there(PROGRAM, "service", "status")
    assert told.code == 0, told
    assert f"active (running), process {first}" in told.out
    assert f"process {first}: idle" in told.out
    assert "worker is ready" in told.out

    there("kill", f"-{signal.SIGKILL.value}", str(first))
    wait_for_worker(there, bench, other_than=first)

    # Whoever was told to leave stays away.
    assert there(PROGRAM, "workers", "stop", "--all", environment=given).code == 0
    wait_until(lambda: there.state("pgvec-worker.service")["ActiveState"] == "inactive", 30, what="the leave")
    assert there(PROGRAM, "service", "status").code == 1
    assert there(*command, environment=given).code == 0

    wait_for_worker(there, bench)
    gone = there(PROGRAM, "service", "uninstall", "--purge")
    assert gone.code == 0, gone
    # It has left in order: a worker that was killed would still stand there as alive.
    assert bench.value("SELECT count(*) FROM pgvec.worker_status WHERE state <> 'gone'") == 0
    assert there("ls", "/etc/pgvec").out == ""
    assert there.state("pgvec-worker.service")["LoadState"] == "not-found"
    assert os.path.exists("/etc/systemd/system/pgvec-worker.service") is False
