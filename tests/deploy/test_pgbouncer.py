"""deploy/pgbouncer/pgbouncer.ini, run: it asks for passwords, and a worker works through it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgvec_queue import embedded_programs
from tests.commandline import PASSWORD
from tests.pgbouncer import PROGRAM
from tests.support import Bench, run_pgvec
from tests.waiting import wait_until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "pgbouncer" / "pgbouncer.ini"

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed (Debian: apt install pgbouncer)")


@pytest.fixture
def pooled(bench: Bench, reachable: Path) -> Iterator[str]:
    """The DSN through the pooler, without a password. Only its addresses are others than in the file."""
    given = conninfo_to_dict(bench.dsn)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = reachable / f"pgbouncer-{os.getpid()}"
    folder.mkdir(mode=0o755)
    users = folder / "users"
    users.write_text(f'"{given["user"]}" "{PASSWORD}"\n')
    text = CONFIGURATION.read_text()
    for pattern, there in {
        r"host=postgres port=5432": f"host={given['host']} port={given['port']}",
        r"listen_port = 6432": f"listen_port = {port}",
        r"listen_addr = 0\.0\.0\.0": "listen_addr = 127.0.0.1",
        r"/run/secrets/pgbouncer_users": str(users),
    }.items():
        text, replaced = re.subn(pattern, there, text)
        assert replaced == 1, pattern
    (folder / "pgbouncer.ini").write_text(text)
    account = embedded_programs.server_account() if os.geteuid() == 0 else None
    assert PROGRAM is not None
    process = subprocess.Popen(
        [PROGRAM, folder / "pgbouncer.ini"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
    try:
        wait_until(lambda: process.poll() is not None or listens(port), what="pgbouncer")
        assert process.poll() is None
        yield make_conninfo(host="127.0.0.1", port=port, user=given["user"], dbname=given["dbname"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_asks_for_a_password_and_a_worker_works_through_it(bench: Bench, pooled: str) -> None:
    for wrong in (pooled, make_conninfo(pooled, password="wrong")):
        with pytest.raises(psycopg.OperationalError, match=r"no password supplied|authentication failed"):
            psycopg.connect(wrong)
    bench.sql("CREATE TABLE docs AS SELECT i::bigint AS id, 'document ' || i AS body FROM generate_series(1, 50) i")
    bench.sql("ALTER TABLE docs ADD PRIMARY KEY (id)")
    bench.enqueue("docs", "body")
    ran = run_pgvec("work", "--drain", "--no-listen", dsn=make_conninfo(pooled, password=PASSWORD))
    assert ran.code == 0, ran
    assert bench.progress("docs").rows_done == 50
