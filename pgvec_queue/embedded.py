"""The local PostgreSQL server, with pgvector, for people without one.

Lifetime. A command that needs the server is inside ``use()``: the first one in starts it, and the last one out stops
it, unless ``Server.start`` or ``listen`` (``pgvec db start``) asked it to stay until ``Server.stop``. Who uses it is
known by a shared file lock, which the system drops when a process dies: after ``kill -9`` the next one out stops the
server. Starting, stopping and leaving happen one at a time, under an exclusive lock. The server has a session of its
own, so Ctrl-C in a terminal ends the command and not the database below it.

Who gets in. Locally the user who runs the server, and root, without a password (``embedded_cluster`` says why).
Everybody works as the role ``pgvec``, which owns the database ``pgvec`` and is no superuser: what a local command
creates belongs to the role that a second machine logs in as. Over TCP, only with ``Server.listen``: that role, that
database, that network, with a generated password (SCRAM). The server has no TLS.

Not promised: a server that crashes under its users is started again only by the next ``use()``, and one that listened
on TCP before a reboot does so again only when ``listen`` asks it to.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import platformdirs

from pgvec_queue import embedded_programs as programs
from pgvec_queue import embedded_tcp as tcp
from pgvec_queue.embedded_cluster import Cluster
from pgvec_queue.embedded_files import flock, make_directories, read, write
from pgvec_queue.errors import DatabaseError

DEFAULT_VERSION = 18
"""PostgreSQL's major version for a new directory; an existing one keeps its own."""


def default_directory(base: Path | None = None) -> Path:
    """Returns where the user's server lives; ``base`` takes the place of the user's data directory.

    For root that is below ``/var/lib``: the server runs as another user, who cannot enter root's home.
    """
    if base is None:
        root = os.geteuid() == 0
        base = programs.SYSTEM_DIRECTORY if root else platformdirs.user_data_path("pgvec-queue", appauthor=False)
    return base / "postgres"


def directory_of(dsn: str) -> Path | None:
    """Returns the directory that ``embedded:///absolute/dir`` names; None for a DSN of any other kind."""
    if not dsn.startswith("embedded:"):
        return None
    parts = urlsplit(dsn)
    path = Path(unquote(parts.path))
    if parts.netloc or parts.query or parts.fragment or not path.is_absolute():
        raise DatabaseError(f"{dsn} names no directory; write it as embedded:///absolute/directory")
    return path


@contextmanager
def use(directory: Path, *, version: int = DEFAULT_VERSION, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Has the server of a directory running while inside, and yields its DSN; see ``Server`` for the arguments.

    Raises ``DatabaseError`` when it cannot start, ``MissingExtraError`` when its programs are not installed.
    """
    server = Server(directory, version=version, settings=settings)
    with server.used():
        yield server.dsn


def administrator(conninfo: str) -> str | None:
    """Returns the superuser's way to the same database, for the login of ours on a server of ours; else None.

    That login, ``pgvec``, owns one database and can make neither others nor roles.
    """
    # Late: what only starts a server needs no driver.
    from psycopg.conninfo import conninfo_to_dict

    given = conninfo_to_dict(conninfo)
    host, database = str(given.get("host") or ""), str(given.get("dbname") or "pgvec")
    if given.get("user") != "pgvec":
        return None
    server = Server(Path(host).parent) if host.startswith("/") else None
    if server is None or not server.running() or conninfo_to_dict(server.dsn).get("host") != host:
        return None
    return server.uri(user="postgres", database=database)


class Server:
    """The server of one directory. Making the object touches neither."""

    def __init__(
        self,
        directory: Path,
        *,
        version: int = DEFAULT_VERSION,
        settings: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """``version`` is the major version for a new directory; ``settings`` go to ``postgresql.conf`` at a start.

        ``folder`` holds the programs of another installation of that version, with pgvector, instead of the wheel's.
        """
        self.directory = directory.resolve()
        self._cluster = Cluster(self.directory, version=version, settings=settings or {}, folder=folder)
        self._start_lock = self.directory / "start.lock"
        self._keep_marker = self.directory / "keep-running"

    @property
    def dsn(self) -> str:
        """The DSN of database ``pgvec`` for role ``pgvec``, over the unix socket; the same for every start."""
        return self.uri()

    @property
    def log(self) -> Path:
        """The server's log."""
        return self._cluster.log

    def uri(self, *, user: str = "pgvec", database: str = "pgvec") -> str:
        """Returns a local DSN for another role (``postgres`` is the superuser) or another database."""
        return self._cluster.uri(user=user, database=database)

    def running(self) -> bool:
        """Returns whether the server is up and takes connections."""
        return self._exists() and self._cluster.running()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Has it running while inside; the last one out stops it, unless it was asked to stay."""
        with ExitStack() as stack:
            with self._locked():
                users = stack.enter_context(flock(self.directory / "in-use.lock", fcntl.LOCK_SH))
                stack.callback(self._leave, users)
                if not self._cluster.settle():
                    self._cluster.start(None)
            yield

    def start(self) -> None:
        """Has it running until ``stop``, without TCP: one that is open to TCP is restarted to close it."""
        with self._locked():
            self._run_with(None)
            self._keep_marker.touch(mode=0o600)

    def listen(self, address: str, port: int | None = None) -> str:
        """Has it running until ``stop``, open to one network; returns the line for the shell of another machine.

        ``address`` is one of this machine's, as ``192.168.1.10/24`` or without the network. ``port`` defaults to the
        one used before, else to 5433, else to the next free one. A server that listens on nothing or elsewhere is
        restarted.
        """
        interface = tcp.parse(address)
        with self._locked():
            remembered = self.directory / "port"
            wanted = port or int(read(remembered) or tcp.DEFAULT_PORT)
            endpoint = tcp.Endpoint(interface, wanted)
            if not (self._cluster.settle() and self._cluster.listens_on(endpoint)):
                endpoint = tcp.Endpoint(interface, tcp.free_port(interface.ip, wanted, exact=port is not None))
            self._run_with(endpoint)
            self._keep_marker.touch(mode=0o600)
            write(remembered, str(endpoint.port), 0o600)
            password = tcp.set_password(self.directory / "password", self.uri(user="postgres", database="postgres"))
            return f"export PGVEC_DSN='{endpoint.uri(password)}'"

    def stop(self) -> bool:
        """Stops it, whoever uses it; returns whether it was running."""
        if not self._exists():
            return False
        with self._locked():
            self._keep_marker.unlink(missing_ok=True)
            was_up = self._cluster.settle()
            if was_up:
                self._cluster.stop()
            return was_up

    def _run_with(self, endpoint: tcp.Endpoint | None) -> None:
        if self._cluster.settle():
            if self._cluster.listens_on(endpoint) and self._cluster.lets_in(endpoint):
                return
            self._cluster.stop()
        self._cluster.start(endpoint)

    def _leave(self, users: int) -> None:
        """``users`` is this user's hold on the lock that all users share."""
        with self._locked():
            if self._keep_marker.exists():
                return
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            if self._cluster.settle():
                self._cluster.stop()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps all others from starting, stopping and leaving; makes the directory where there is none."""
        try:
            self._make()
            with flock(self._start_lock, fcntl.LOCK_EX):
                yield
        except OSError as error:
            raise DatabaseError(f"{self.directory} cannot hold the embedded server: {error}") from error

    def _exists(self) -> bool:
        """Returns whether the directory is there; raises where it is somebody else's or holds something else."""
        try:
            names = os.listdir(self.directory)
            owner = self.directory.stat().st_uid
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DatabaseError(f"{self.directory} cannot hold the embedded server: {error.strerror}") from error
        if owner != os.geteuid():
            raise DatabaseError(f"{self.directory} belongs to another user (uid {owner}); run pgvec as that user")
        # The lock is the first file that we put there: where others are without it, they are not ours.
        if names and not self._start_lock.exists():
            raise DatabaseError(f"{self.directory} holds files that pgvec did not put there; name an empty directory")
        return True

    def _make(self) -> None:
        exists = self._exists()
        if exists and self._cluster.data.exists():
            return
        account = self._cluster.account
        nearest = next(each for each in (self.directory, *self.directory.parents) if each.exists())
        if account and not programs.can_enter(account, nearest):
            raise DatabaseError(
                f"{self.directory}: as root, the server runs as another user (uid {account.uid}), "
                f"who may not enter {nearest}; name a directory below {programs.SYSTEM_DIRECTORY}"
            )
        if not exists:
            make_directories(self.directory, 0o711 if account else 0o700)
