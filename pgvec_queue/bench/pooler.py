"""A pgbouncer of the bench's own, in transaction mode, between its workers and the server.

It listens at a socket in a folder that only this user, and the account that it runs as, can enter: whoever gets there
is let in as the role of the connection string, whose password is in its configuration.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from pgvec_queue import embedded_programs
from pgvec_queue.bench.processor import process_seconds
from pgvec_queue.errors import PgvecError

_PORT = "6432"
_START_SECONDS = 10.0
_END_SECONDS = 2.0
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
_NOT_SENT_ON = ("sslcert", "sslkey", "sslcrl", "krbsrvname", "require_auth")


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

    def dsn(self, database: str) -> str:
        """Returns the way to that database through the pooler."""
        return make_conninfo(host=str(self.folder), port=_PORT, user=self.user, dbname=database)

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
def pooling(direct: psycopg.Connection[Any], *, pool_size: int, clients: int) -> Generator[Pooler]:
    """Runs one for the server of ``direct``: ``pool_size`` connections to it at most, for ``clients`` at most.

    It connects as ``direct`` has, wherever that had it from. Raises ``PgvecError`` when it cannot, or does not start.
    """
    found = program()
    assert found is not None
    given = _given(direct)
    account = embedded_programs.server_account() if os.geteuid() == 0 else None
    # Its socket's name has to be short, whatever TMPDIR is.
    folder = Path(tempfile.mkdtemp(prefix="pgvec-pool-", dir="/tmp"))
    before = _end_on_hangup()
    try:
        configuration = folder / "pgbouncer.ini"
        configuration.touch(0o600)
        if root := given.get("sslrootcert"):
            # Where the account that it runs as can read it.
            given["sslrootcert"] = shutil.copy(root, str(folder / "root.crt"))
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
            _end(running)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if before is not None:
            signal.signal(signal.SIGHUP, before)


def _end_on_hangup() -> Any:
    """Lets SIGHUP end the bench as SIGTERM does, so that nothing stays; returns how it was, None where it stays so."""
    if threading.current_thread() is not threading.main_thread():
        return None
    before = signal.getsignal(signal.SIGHUP)
    if before is not signal.SIG_DFL:
        return None

    def hung_up(number: int, frame: object) -> None:  # noqa: ARG001
        raise SystemExit(128 + number)

    signal.signal(signal.SIGHUP, hung_up)
    return before


def _end(running: subprocess.Popen[bytes]) -> None:
    """Has it end at once. From pgbouncer 1.23 on the first SIGTERM has it wait for its clients; the second has not."""
    for stop in (running.terminate, running.terminate, running.kill):
        stop()
        with suppress(subprocess.TimeoutExpired):
            running.wait(_END_SECONDS)
            return


def _given(direct: psycopg.Connection[Any]) -> dict[str, str]:
    """Returns how a connection was made: what its string, the environment, a service and a password file say."""
    info = direct.info
    given = info.get_parameters()
    if unknown := [name for name in _NOT_SENT_ON if name in given] or (
        ["sslrootcert=system"] if given.get("sslrootcert") == "system" else []
    ):
        raise PgvecError(f"the bench's pgbouncer cannot connect with {', '.join(unknown)}; give --no-pooler")
    # Those of the server that was reached, of several.
    return given | {"host": info.host, "port": str(info.port), "user": info.user, "password": info.password}


def _configuration(folder: Path, given: Mapping[str, str], pool_size: int, clients: int) -> str:
    server = " ".join("{}='{}'".format(name, given[name].replace("'", "''")) for name in _SENT_ON if given.get(name))
    return _CONFIGURATION.format(
        server=server,
        pool_size=pool_size,
        clients=clients,
        port=_PORT,
        folder=folder,
        user=given["user"],
        tls=given.get("sslmode", "prefer")
        + (f"\nserver_tls_ca_file = {ca}" if (ca := given.get("sslrootcert")) else ""),
    )


def _await(running: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not (folder / f".s.PGSQL.{_PORT}").exists():
        if running.poll() is not None or time.monotonic() > deadline:
            log = folder / "pgbouncer.log"
            lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            raise PgvecError(f"pgbouncer did not start: {lines[-1] if lines else 'it said nothing'}")
        time.sleep(_LOOK)
