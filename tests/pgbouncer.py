"""A pgbouncer in front of the test server: transaction mode, a given number of server connections, a socket of its own.

It runs as the account of the PostgreSQL server, since it refuses to run as root as that does.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgvec_queue import embedded_programs
from tests.waiting import wait_until

PROGRAM = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")

_PORT = "6432"
_CONFIGURATION = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
pool_mode = transaction
default_pool_size = {pool_size}
reserve_pool_size = 0
max_client_conn = 200
listen_port = {own_port}
unix_socket_dir = {folder}
auth_type = any
admin_users = postgres
logfile = {folder}/pgbouncer.log
pidfile = {folder}/pgbouncer.pid
"""


@dataclass(frozen=True)
class Pooler:
    """A running pgbouncer."""

    folder: Path
    port: str = _PORT

    def dsn(self, direct: str) -> str:
        """The way to the same database and role as ``direct``, through the pooler."""
        given = conninfo_to_dict(direct)
        return make_conninfo(host=str(self.folder), port=self.port, user=given["user"], dbname=given["dbname"])

    def show(self, what: str) -> list[dict[str, Any]]:
        """What pgbouncer's own console says: ``POOLS``, ``SERVERS``, ``CLIENTS`` ..."""
        administration = make_conninfo(host=str(self.folder), port=self.port, user="postgres", dbname="pgbouncer")
        # The console speaks the simple protocol only.
        with psycopg.connect(administration, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
            cursor = connection.execute(f"SHOW {what}".encode())
            assert cursor.description is not None
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    @property
    def log(self) -> str:
        return (self.folder / "pgbouncer.log").read_text(errors="replace")


@contextmanager
def pooling(
    folder: Path, direct: str, *, pool_size: int, more: str = "", port: str = _PORT, within: Sequence[str] = ()
) -> Iterator[Pooler]:
    """Runs pgbouncer, at most ``pool_size`` server connections per database, for the server that ``direct`` names.

    ``more`` is added to its configuration; ``port`` is free, where that has it listen at an address. ``within`` is a
    command line of root's that runs it elsewhere, as the same process and as the server's account.

    ``folder`` is new, and in a place that the server's account can reach.
    """
    assert PROGRAM is not None
    account = embedded_programs.server_account() if os.geteuid() == 0 else None
    folder.mkdir(mode=0o755)
    given = conninfo_to_dict(direct)
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        _CONFIGURATION.format(
            host=given["host"],
            port=given["port"],
            user=given["user"],
            pool_size=pool_size,
            own_port=port,
            folder=folder,
        )
        + more
    )
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    process = subprocess.Popen(
        [*within, PROGRAM, str(configuration)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        user=account.uid if account and not within else None,
        group=account.gid if account and not within else None,
        extra_groups=[] if account and not within else None,
    )
    try:
        socket = folder / f".s.PGSQL.{port}"
        wait_until(lambda: socket.exists() or process.poll() is not None, what="pgbouncer's socket")
        pooler = Pooler(folder, port)
        assert process.poll() is None, pooler.log
        yield pooler
    finally:
        # SIGINT would wait for the clients to finish their transactions.
        process.send_signal(signal.SIGTERM)
        process.wait(10)
        shutil.rmtree(folder)
