"""One PostgreSQL cluster of the embedded server: makes it, starts it, stops it, and tells whether it is up.

Its directory holds ``data/``, owned by the account that the server runs as, with ``server.log`` in it; ``run/``, the
folder of the unix socket; and ``postgresql.conf`` and ``pg_hba.conf``, written anew at each start. The path of a socket
may have 103 bytes on macOS: below a longer directory, the folder is one in ``/tmp`` named after the directory's hash.

Local connections need no password (``trust``), because that folder has mode 0700: only the account of the server, and
root, can enter it. They could read the data files as well, so a password would keep out nobody.

Nothing here takes a lock; ``embedded`` sees to it that one process at a time starts or stops.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import shutil
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from pgvec_queue import embedded_programs as programs
from pgvec_queue.embedded_files import read, rename_for_good, write
from pgvec_queue.embedded_tcp import DEFAULT_PORT, Endpoint
from pgvec_queue.errors import DatabaseError

_SETTINGS: Mapping[str, str] = {
    "shared_buffers": "256MB",
    "maintenance_work_mem": "256MB",
    # A parallel index build shares maintenance_work_mem; /dev/shm has 64 MB in a container, so keep room of our own.
    "min_dynamic_shared_memory": "288MB",
    "max_wal_size": "4GB",
    "max_connections": "200",
}
# Without the search path, a user's own tables would land in the schema pgvec, which is called like the role.
_ROLE_AND_DATABASE = """\
CREATE ROLE pgvec LOGIN
ALTER ROLE pgvec SET search_path = public
CREATE DATABASE pgvec OWNER pgvec
"""
_FIRST_WITH_BUILTIN_LOCALE = 17
# Text sorts by bytes, but full-text search asks the C library what a letter is: in its "C", the quotes of “word” are.
_CHARACTER_TYPES = ("C.UTF-8", "en_US.UTF-8")
_SOCKET = f".s.PGSQL.{DEFAULT_PORT}"
_PS = Path("/bin/ps")
_LONGEST_SOCKET_PATH = 103  # bytes, on macOS; Linux has four more
_PATIENCE = 300  # seconds: recovery after a crash replays up to max_wal_size


class Cluster:
    """The cluster of one directory, which the caller has made."""

    def __init__(
        self, directory: Path, *, version: int, settings: Mapping[str, str], folder: Path | None = None
    ) -> None:
        """``directory`` is absolute; ``version`` is for a new cluster; ``settings`` go to ``postgresql.conf``.

        ``folder`` holds the programs of that version, where they are not to be the wheel's.
        """
        self.directory = directory
        self.data = directory / "data"
        self.log = self.data / "server.log"
        self._version = version
        self._folder = folder
        self._settings = {**_SETTINGS, **settings}

    def uri(self, *, user: str, database: str) -> str:
        """Returns the DSN of a role and a database over the unix socket; the same for every start."""
        host = quote(str(self._socket_folder), safe="/")
        return f"postgresql://{quote(user, safe='')}@/{quote(database, safe='')}?host={host}&port={DEFAULT_PORT}"

    @functools.cached_property
    def account(self) -> programs.Account | None:
        """The system user that the server runs as when we are root; None: our own."""
        if os.geteuid() != 0:
            return None
        if self.data.exists():
            status = self.data.stat()
            return programs.Account(status.st_uid, status.st_gid)
        return programs.server_account()

    def running(self) -> bool:
        """Returns whether it is up and takes connections."""
        return self._listening() and self._ready()

    def settle(self) -> bool:
        """Returns whether it is up, once a start or stop is over that was left under way by a process that died."""
        deadline = time.monotonic() + _PATIENCE
        while self._listening() and not self._ready():
            if time.monotonic() > deadline:
                raise DatabaseError(f"The embedded PostgreSQL server takes too long to start or stop; see {self.log}")
            time.sleep(0.05)
        return self._listening()

    def listens_on(self, endpoint: Endpoint | None) -> bool:
        """Returns whether the last start was with this address and port (and the same settings)."""
        return read(self.directory / "postgresql.conf") == self._configuration(endpoint)

    def lets_in(self, endpoint: Endpoint | None) -> bool:
        """Returns whether the last start was with this network."""
        return read(self.directory / "pg_hba.conf") == _hba(endpoint)

    def start(self, endpoint: Endpoint | None) -> None:
        """Starts it, with TCP at the endpoint only, and makes the cluster first where there is none."""
        if not self.data.exists():
            self._create()
        self._make_socket_folder(endpoint)
        write(self.directory / "postgresql.conf", self._configuration(endpoint), 0o644)
        write(self.directory / "pg_hba.conf", _hba(endpoint), 0o644)
        self._forget_dead_postmaster()
        logged = self.log.stat().st_size if self.log.exists() else 0
        # pg_ctl puts -D and -l into a shell command as they are, hence the relative ones; what -o holds, we quote.
        options = f"-c config_file={shlex.quote(str(self.directory / 'postgresql.conf'))}"
        status, output = self._pg_ctl("start", "-l", "data/server.log", "-o", options)
        if status:
            reason = programs.reason(read(self.log)[logged:]) or programs.reason(output)
            raise DatabaseError(f"The embedded PostgreSQL server did not start: {reason} (log: {self.log})")

    def stop(self) -> None:
        """Stops it in order, ending its connections."""
        status, output = self._pg_ctl("stop", "-m", "fast")
        if status and self._listening():
            raise DatabaseError(
                f"The embedded PostgreSQL server did not stop: {programs.reason(output)} (log: {self.log})"
            )

    def _pg_ctl(self, command: str, *options: str) -> tuple[int, str]:
        return self._run("pg_ctl", command, "-D", "data", "-w", "-t", str(_PATIENCE), *options)

    def _run(self, program: str, *arguments: str, text: str = "") -> tuple[int, str]:
        return programs.run(self._programs / program, *arguments, account=self.account, cwd=self.directory, text=text)

    @functools.cached_property
    def _major(self) -> int:
        version = read(self.data / "PG_VERSION").strip()
        return int(version) if version else self._version

    @functools.cached_property
    def _programs(self) -> Path:
        return self._folder or programs.find(self._major, self.account)

    def _listening(self) -> bool:
        # The process id in postmaster.pid proves nothing after a crash: another program may have it by now.
        if not self._socket_folder_is_ours():
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_PATIENCE)
            try:
                probe.connect(str(self._socket_folder / _SOCKET))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
        return True

    def _ready(self) -> bool:
        lines = read(self.data / "postmaster.pid").splitlines()
        return len(lines) > 7 and lines[7].strip() == "ready"

    def _create(self) -> None:
        """Makes the cluster under another name and renames it when it is whole: role, database and extension too."""
        fresh = self.directory / "data.new"
        if fresh.exists():
            shutil.rmtree(fresh)
        self._make_own(fresh)
        self._initdb(fresh.name)
        alone = ("postgres", "--single", "-F", "-c", "exit_on_error=on", "-D", fresh.name)
        self._must(*alone, "postgres", text=_ROLE_AND_DATABASE)
        self._must(*alone, "pgvec", text="CREATE EXTENSION vector\n")
        self._must("initdb", "--sync-only", "-D", fresh.name)
        rename_for_good(fresh, self.data)

    def _initdb(self, folder: str) -> None:
        options = ["--username=postgres", "--auth=reject", "--data-checksums", "--no-sync", "--encoding=UTF8"]
        options.append("--locale=C")
        if self._major >= _FIRST_WITH_BUILTIN_LOCALE:
            options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        for character_type in _CHARACTER_TYPES:
            status, _ = self._run("initdb", "-D", folder, *options, f"--lc-ctype={character_type}")
            if status == 0:
                return
        self._must("initdb", "-D", folder, *options)

    def _must(self, program: str, *arguments: str, text: str = "") -> None:
        status, output = self._run(program, *arguments, text=text)
        if status:
            raise DatabaseError(f"The embedded PostgreSQL cluster could not be made: {programs.reason(output)}")

    def _make_own(self, folder: Path) -> None:
        """Makes a folder that only the server's account can enter."""
        folder.mkdir(mode=0o700)
        if self.account:
            os.chown(folder, self.account.uid, self.account.gid)

    @functools.cached_property
    def _socket_folder(self) -> Path:
        inside = self.directory / "run"
        # A comma would separate two folders, for the server as for libpq.
        if len(os.fsencode(inside / f"{_SOCKET}0")) <= _LONGEST_SOCKET_PATH and "," not in str(inside):
            return inside
        digest = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        # Not the temporary directory: TMPDIR differs between sessions, and all have to find the one socket.
        return Path("/tmp") / f"pgvec-{digest}"  # noqa: S108

    def _socket_folder_is_ours(self) -> bool:
        """Returns whether it is there; raises when others could enter it, or have put it there in our name."""
        try:
            status = self._socket_folder.lstat()
        except FileNotFoundError:
            return False
        owner = self.account.uid if self.account else os.geteuid()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner or status.st_mode & 0o077:
            raise DatabaseError(
                f"{self._socket_folder} has to be open to the embedded server alone (uid {owner}, mode 0700); remove it"
            )
        return True

    def _make_socket_folder(self, endpoint: Endpoint | None) -> None:
        if not self._socket_folder_is_ours():
            self._make_own(self._socket_folder)
        # A server that listens on another port names its socket after it; local users find it under the usual name.
        if endpoint and endpoint.port != DEFAULT_PORT:
            usual = self._socket_folder / _SOCKET
            usual.unlink(missing_ok=True)
            usual.symlink_to(f".s.PGSQL.{endpoint.port}")

    def _configuration(self, endpoint: Endpoint | None) -> str:
        settings = {
            **self._settings,
            "hba_file": str(self.directory / "pg_hba.conf"),
            "unix_socket_directories": '"{}"'.format(str(self._socket_folder).replace('"', '""')),
            "listen_addresses": str(endpoint.interface.ip) if endpoint else "",
            "port": str(endpoint.port if endpoint else DEFAULT_PORT),
        }
        head = "# Written by pgvec at each start. For settings of your own, use ALTER SYSTEM.\n"
        lines = [f"{name} = {_quoted(value)}\n" for name, value in settings.items()]
        return "".join([head, "include 'data/postgresql.conf'\n", *lines])

    def _forget_dead_postmaster(self) -> None:
        """Removes the lock files whose process is dead but not reaped, or by now some other program.

        PostgreSQL takes either for a running server. The first is seen in containers, whose process 1 may reap nothing,
        the second after a power cut, when process ids start over. What is left of a dead server's processes PostgreSQL
        finds by their shared memory all the same. Without ``ps`` the file stays, for a person to decide.
        """
        for lock in (self.data / "postmaster.pid", *self._socket_folder.glob(".s.PGSQL.*.lock")):
            pid = read(lock).split("\n", 1)[0].strip()
            if pid.isdigit() and _PS.exists():
                status, process = programs.run(_PS, "-o", "stat=", "-o", "comm=", "-p", pid, account=None)
                if status == 0 and (process.startswith("Z") or "postgres" not in process):
                    lock.unlink()


def _hba(endpoint: Endpoint | None) -> str:
    lines = ["local all all trust", *([endpoint.hba] if endpoint else [])]
    return "".join(f"{line}\n" for line in lines)


def _quoted(value: str) -> str:
    return "'{}'".format(value.replace("\\", "\\\\").replace("'", "''"))
