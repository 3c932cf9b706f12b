"""Workers on five hosts with one queue: one is cut off and comes back, one is far away, one has a wrong clock, one goes
through pgbouncer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pgvec_queue import schema, verify
from pgvec_queue.database import Database
from tests.chaos.program import Program, faketime_library
from tests.hosts.lan import Host, Lan, Server, as_account, lan, obstacle
from tests.oracle import assert_right
from tests.pgbouncer import PROGRAM, pooling
from tests.support import Bench, run_pgvec
from tests.upgrade.users import SOURCE, User
from tests.waiting import wait_until

pytestmark = [pytest.mark.usefixtures("isolated"), pytest.mark.xdist_group("hosts")]

ROOT = Path(__file__).parents[2]
LEASE, LEASE_FAR_AWAY = 2, 6
"""Seconds. A heartbeat is four round trips, a connection as many."""
RELAYED = 5433
FAR = 0.05
"""Seconds that what is sent takes to or from the host that is far away."""
HOSTS = ("near", "cut", "far", "clock", "pooled")


@dataclass
class Network:
    """The network, the server in it, and what runs on its hosts."""

    lan: Lan
    server: Server
    bench: Bench
    program: Program
    stack: ExitStack
    hosts: dict[str, Host] = field(default_factory=dict)
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    directory: Path = field(default_factory=Path)

    def add(self, name: str) -> Host:
        self.hosts[name] = self.lan.add(name)
        return self.hosts[name]

    def run(
        self, host: Host, *command: str, dsn: str = "", extra: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Runs something on a host until the end of the test."""
        with (self.directory / f"{host.name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*host.within, *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=self.program.directory,
                env=self.program.environment(dsn, extra or {}),
            )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def work(
        self,
        name: str,
        dsn: str,
        *options: str,
        delay: float = 0.002,
        lease: float = LEASE,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Starts a worker on a host, whose model takes ``delay`` seconds for a document."""
        environment = {"PGVEC_HASHING_FAULTS": f"delay={delay}", **(extra or {})}
        command = (sys.executable, "-m", "pgvec_queue", "work", "--lease", str(lease), *options)
        self.workers[name] = self.run(self.hosts[name], *command, dsn=dsn, extra=environment)

    def said(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def held(self, name: str) -> list[int]:
        """The jobs that the workers of a host have."""
        held = (
            "SELECT j.id FROM pgvec.jobs j JOIN pgvec.workers w ON w.id = j.worker_id"
            " WHERE j.state = 'running' AND w.host = %s"
        )
        return [job for (job,) in self.bench.sql(held, name)]

    def alive(self, name: str) -> list[int]:
        """The workers of a host that are not declared gone."""
        return [
            worker for (worker,) in self.bench.sql("SELECT id FROM pgvec.workers WHERE host = %s AND NOT gone", name)
        ]


@pytest.fixture
def network(tmp_path: Path, reachable: Path) -> Iterator[Network]:
    if (why := obstacle()) is not None:
        pytest.skip(why)
    with ExitStack() as stack:
        wires = stack.enter_context(lan())
        server = stack.enter_context(closing(Server(wires)))
        server.create()
        schema.initialize(Database(server.dsn))
        bench = stack.enter_context(closing(Bench(server.dsn)))
        program = Program(tmp_path / "program")
        yield Network(wires, server, bench, program, stack.enter_context(ExitStack()), directory=tmp_path)


@pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed (Debian: pgbouncer)")
@pytest.mark.skipif(faketime_library() is None, reason="faketime is not installed (Debian: faketime)")
def test_five_hosts_of_which_four_have_a_trouble_of_their_own(network: Network, reachable: Path) -> None:
    bench, direct = network.bench, network.server.remote_dsn
    bench.sql(SOURCE)
    bench.sql("INSERT INTO docs (body) SELECT 'document number ' || i FROM generate_series(1, 1500) i")
    docs = bench.enqueue("docs", "body", rows_per_job=20, sync=True)
    # Until all are there, so that each gets something.
    bench.sql("SELECT pgvec.pause('docs')")
    for name in HOSTS:
        network.add(name)
    pooler = network.stack.enter_context(
        pooling(reachable / "hosts", direct, pool_size=3, within=[*network.hosts["pooled"].within, *as_account()])
    )
    relay = (sys.executable, str(ROOT / "tests" / "hosts" / "relay.py"), str(RELAYED), *_address(direct), str(FAR))
    network.run(network.hosts["far"], *relay)
    library = faketime_library() or ""
    network.work("near", direct)
    # Slow enough to have something in hand when the line is cut.
    network.work("cut", direct, delay=0.05)
    network.work("far", f"postgresql://postgres@127.0.0.1:{RELAYED}/chaos", lease=LEASE_FAR_AWAY)
    clock = {"LD_PRELOAD": library, "FAKETIME": "-7h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    network.work("clock", direct, extra=clock)
    network.work("pooled", pooler.dsn(network.server.dsn), "--no-listen")

    with User(bench.dsn, 1) as user:
        wait_until(lambda: all(map(network.alive, HOSTS)), 60, what="a worker on each host")
        listed = map(json.loads, run_pgvec("workers", "--json", dsn=bench.dsn).out.splitlines())
        assert {worker["host"] for worker in listed} == set(HOSTS)
        bench.sql("SELECT pgvec.resume('docs')")
        wait_until(lambda: _at_work(bench) == set(HOSTS), 60, what="work of each host, whatever its trouble")
        cut = network.hosts["cut"]
        [before] = network.alive("cut")
        wait_until(lambda: network.held("cut"), 30, what="a job of the host that is to be cut off")
        cut.cut()
        taken = network.held("cut")
        wait_until(lambda: not network.alive("cut"), 30, what="the verdict on it")
        wait_until(lambda: not network.held("cut"), 30, what="its jobs in others' hands")
        assert bench.value("SELECT count(*) FROM pgvec.events WHERE kind = 'reclaimed'") >= bool(taken)
        wait_until(lambda: _all_done(bench, taken), 60, what="its jobs done by others")
        cut.heal()
        wait_until(lambda: network.alive("cut"), 60, what="its return")
        assert network.alive("cut") != [before]
    assert (user.failures, min(user.done.values()) > 0) == ([], True), user.done
    wait_until(lambda: bench.progress("docs").state == "complete", 60, what="all of it")
    for worker in network.workers.values():
        worker.terminate()
    assert {name: worker.wait(30) for name, worker in network.workers.items()} == dict.fromkeys(HOSTS, 0)
    assert_right(bench, docs)
    assert verify.verify(bench.connection, bench.fragments(docs)).differences == 0
    assert bench.sql("SELECT FROM pgvec.events WHERE kind IN ('blocked', 'quarantined')") == []
    # Only the line that was cut has cost an attempt.
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE attempts > 0 AND id <> ALL (%s)", taken) == 0


def _address(dsn: str) -> tuple[str, str]:
    host, _, port = dsn.rpartition("/")[0].rpartition("@")[2].partition(":")
    return host, port


def _all_done(bench: Bench, jobs: list[int]) -> bool:
    left = bench.value("SELECT count(*) FROM pgvec.jobs WHERE id = ANY (%s) AND state <> 'done'", jobs)
    return bool(left == 0)


def _at_work(bench: Bench) -> set[str]:
    """The hosts whose workers have embedded something."""
    counted = "SELECT w.host FROM pgvec.counters c JOIN pgvec.workers w ON w.id = c.worker_id WHERE c.rows_embedded > 0"
    return {host for (host,) in bench.sql(counted)}
