"""A pgbouncer of the bench's own, in transaction mode, between its workers and the server.

It listens at a socket in a folder that only this user, and the account that it runs as, can enter: whoever gets there
is let in as the role of the connection string, whose password is in its configuration.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgvec_queue import embedded_programs
from pgvec_queue.bench.processor import process_seconds
from pgvec_queue.errors import PgvecError

_PORT = "6432"
_START_SECONDS = 10.0
_LOOK = 0.05
_CONFIGURATION = """
[databases]
* = {server}
[pgbouncer]
pool_mode = transaction
default_pool_size = {pool_size}
reserve_pool_size = 0
max_client_conn = {clients}
max_db_connections = 0
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
auth_type = any
admin_users = {user}
server_tls_sslmode = {tls}
logfile = {folder}/pgbouncer.log
pidfile = {folder}/pgbouncer.pid
log_connections = 0
log_disconnections = 0
query_wait_timeout = 0
"""
_SENT_ON = ("host", "port", "user", "password")


def program() -> str | None:
    """Returns where pgbouncer is; None where it is not installed."""
    # Debian keeps it where only root's PATH leads.
    return shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")


@dataclass(frozen=True, slots=True)
class Pooler:
    """A running pgbouncer."""

    folder: Path
    process: subprocess.Popen[bytes]
    user: str

    def dsn(self, direct: str) -> str:
        """Returns the way to the database of ``direct`` through the pooler."""
        return make_conninfo(
            host=str(self.folder), port=_PORT, user=self.user, dbname=conninfo_to_dict(direct)["dbname"]
        )

    def pool(self, database: str) -> dict[str, int]:
        """Returns what its console says of a database: clients served and waiting, servers in use and idle."""
        console = make_conninfo(host=str(self.folder), port=_PORT, user=self.user, dbname="pgbouncer")
        # The console speaks the simple protocol only.
        with psycopg.connect(console, autocommit=True, cursor_factory=psycopg.ClientCursor) as connection:
            cursor = connection.execute("SHOW POOLS")
            assert cursor.description is not None
            names = [column.name for column in cursor.description]
            rows: list[dict[str, Any]] = [dict(zip(names, row, strict=True)) for row in cursor]
        counted = ("cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used")
        return {name: sum(int(row[name]) for row in rows if row["database"] == database) for name in counted}

    def seconds(self) -> float | None:
        """Returns the processor time that it has taken; None where that cannot be seen."""
        return process_seconds(self.process.pid)


@contextmanager
def pooling(direct: str, *, pool_size: int, clients: int) -> Generator[Pooler]:
    """Runs one for the server of ``direct``: ``pool_size`` connections to it at most, for ``clients`` at most.

    Raises ``PgvecError`` when it does not start.
    """
    found = program()
    assert found is not None
    given = {name: str(value) for name, value in conninfo_to_dict(direct).items() if value is not None}
    account = embedded_programs.server_account() if os.geteuid() == 0 else None
    # Its socket's name has to be short, whatever TMPDIR is.
    folder = Path(tempfile.mkdtemp(prefix="pgvec-pool-", dir="/tmp"))
    try:
        configuration = folder / "pgbouncer.ini"
        configuration.touch(0o600)
        configuration.write_text(_configuration(folder, given, pool_size, clients))
        if account is not None:
            os.chown(configuration, account.uid, account.gid)
            os.chown(folder, account.uid, account.gid)
        running = subprocess.Popen(
            [found, "-q", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
        try:
            _await(running, folder)
            yield Pooler(folder, running, given["user"])
        finally:
            # SIGINT would wait for the clients to finish their transactions.
            running.terminate()
            running.wait(_START_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _configuration(folder: Path, given: Mapping[str, str], pool_size: int, clients: int) -> str:
    server = " ".join("{}='{}'".format(name, given[name].replace("'", "''")) for name in _SENT_ON if given.get(name))
    return _CONFIGURATION.format(
        server=server,
        pool_size=pool_size,
        clients=clients,
        port=_PORT,
        folder=folder,
        user=given["user"],
        tls=given.get("sslmode", "prefer"),
    )


def _await(running: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not (folder / f".s.PGSQL.{_PORT}").exists():
        if running.poll() is not None or time.monotonic() > deadline:
            log = folder / "pgbouncer.log"
            lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            raise PgvecError(f"pgbouncer did not start: {lines[-1] if lines else 'it said nothing'}")
        time.sleep(_LOOK)
