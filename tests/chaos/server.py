"""A PostgreSQL cluster of the harness's own, over TCP, that can be crashed and started again.

The programs are those that tests/postgres.py chooses. ``fsync`` is off: the operating system does not crash here, so
whatever was committed survives an immediate shutdown of the server all the same.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from pgvec_queue import embedded_programs
from tests.postgres import chosen

_SETTINGS = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "max_connections": "500",
    "shared_buffers": "'128MB'",
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "'512MB'",
    "autovacuum_naptime": "'15s'",
    "log_line_prefix": "'%m [%p] %a '",
}
# Below the ports that connections of other programs take for themselves while the server is down.
_PORTS = range(20_000, 32_000)
_PATIENCE = 60.0

Row = tuple[Any, ...]


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nobody listens on."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Server:
    """One cluster in a directory of its own. Used by one thread; ``dsn``, ``up`` and ``accepts_since`` by any."""

    settings: Mapping[str, str] = _SETTINGS

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self.directory = Path(tempfile.mkdtemp(prefix="pgvec-chaos-", dir=memory if memory.is_dir() else None))
        self.directory.chmod(0o711)
        self.log = self.directory / "server.log"
        self.port = free_port()
        self.accepts_since: float | None = None
        """``time.monotonic()`` of when it took the first connection after its last start; None while it is down."""
        self._account = embedded_programs.server_account() if os.geteuid() == 0 else None
        version, folder = chosen()
        self._programs = folder or embedded_programs.find(version, self._account)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """As superuser, past every proxy."""
        return self.dsn_at(self.port)

    def dsn_at(self, port: int, database: str = "chaos") -> str:
        return f"postgresql://postgres@127.0.0.1:{port}/{database}"

    @property
    def up(self) -> bool:
        return self.accepts_since is not None

    def create(self) -> None:
        """Makes the cluster, starts it and makes its database with the extension."""
        data = self.directory / "data"
        data.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(data, self._account.uid, self._account.gid)
        options = ("--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8")
        status, output = embedded_programs.run(
            self._programs / "initdb", "-D", str(data), *options, account=self._account, cwd=self.directory
        )
        if status:
            raise RuntimeError(f"initdb: {embedded_programs.reason(output)}")
        lines = [f"{name} = {value}" for name, value in {**self.settings, "port": self.port}.items()]
        with (data / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")
        self._launch()
        postgres = self.dsn_at(self.port, "postgres")
        self._wait_for(postgres)
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("CREATE DATABASE chaos")
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")

    def create_standby(self, primary: Server) -> None:
        """Makes the cluster as a streaming standby of another one, and starts it."""
        data = self.directory / "data"
        data.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(data, self._account.uid, self._account.gid)
        source = f"host=127.0.0.1 port={primary.port} user=postgres"
        options = ("-D", str(data), "-d", source, "--checkpoint=fast", "--write-recovery-conf", "--no-sync")
        status, output = embedded_programs.run(
            self._programs / "pg_basebackup", *options, account=self._account, cwd=self.directory
        )
        if status:
            raise RuntimeError(f"pg_basebackup: {embedded_programs.reason(output)}")
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"port = {self.port}\n")
        self.start()

    def start(self) -> None:
        """Starts it and waits until it takes connections."""
        self._launch()
        self._wait_for(self.dsn)

    def crash(self) -> None:
        """An immediate shutdown: every session ends at once, nothing is written out, the next start recovers."""
        self._end(signal.SIGQUIT)

    def close(self) -> None:
        """Stops it and removes its directory; safe to call at any time."""
        self._end(signal.SIGINT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def connect(self, **arguments: Any) -> psycopg.Connection[Row]:
        return psycopg.connect(self.dsn, **{"autocommit": True, "application_name": "chaos", **arguments})

    def _launch(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(str(self._programs / "postgres"), "-D", str(self.directory / "data")),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={"LC_ALL": "C", "PATH": os.environ.get("PATH", "")},
                start_new_session=True,
                **self._identity(),
            )

    def _command(self, *words: str) -> list[str]:
        """What is run to run this."""
        return list(words)

    def _identity(self) -> dict[str, Any]:
        """As whom, as ``Popen`` wants it."""
        if self._account is None:
            return {}
        return {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}

    def _wait_for(self, dsn: str) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                psycopg.connect(dsn, connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    tail = self.log.read_text(errors="replace")[-2_000:]
                    raise RuntimeError(f"the server does not start: {error}\n{tail}") from error
                time.sleep(0.02)
            else:
                self.accepts_since = time.monotonic()
                return

    def _end(self, number: signal.Signals) -> None:
        self.accepts_since = None
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
