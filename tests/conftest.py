"""What all tests share: one real PostgreSQL per run, a fresh database per test, and an environment without surprises.

``PGVEC_TEST_POSTGRES`` names the server (tests/postgres.py). Under pytest-xdist all workers share the server: the first
one in starts it, the last one out stops it and removes its directory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import settings
from psycopg import sql

from pgvec_queue import embedded, schema
from pgvec_queue.database import Database
from pgvec_queue.embedded_files import flock
from tests.commandline import CommandLine, isolate, undone
from tests.postgres import chosen_server
from tests.support import Bench

TEMPLATE = "template_vector"
TEMPLATE_WITH_SCHEMA = "template_pgvec"

# What is measured of this machine while tests keep it busy is not for anybody else.
os.environ["XDG_CACHE_HOME"] = os.environ.setdefault("PGVEC_TEST_CACHE", tempfile.mkdtemp(prefix="pgvec-cache-"))

# A crash of the machine may lose the tests' data; nothing else is switched off.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_wal_size": "256MB"}
MEMORY_WANTED = 4 * 2**30

Connect = Callable[..., psycopg.Connection[tuple[Any, ...]]]


def pytest_configure() -> None:
    # Before collection: huggingface_hub and libpq's wrappers read some of these when a test module imports them.
    for name in list(os.environ):
        if name.startswith(("PG", "PGVEC_")) and not name.startswith("PGVEC_TEST_"):
            del os.environ[name]
    os.environ["HF_HUB_OFFLINE"] = "1"
    # An index waits for every transaction that a test has open; those that are about it ask for it.
    os.environ["PGVEC_INDEX"] = "false"
    # In the background of a script it is ignored, and so it would be in every command that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Several processes of tests share the cores: a model's threads that spin while they wait take them from the others.
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
    settings.register_profile("local", deadline=None)
    settings.register_profile("ci", deadline=None, derandomize=True)
    settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What runs in one process only takes long: begun last, the others would wait for it.
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says what of the documentation was not run, where its commands were."""
    reports = (report for found in terminalreporter.stats.values() for report in found)
    if any("docs/test_commands.py" in getattr(report, "nodeid", "") for report in reports):
        from tests.docs.report import lines

        terminalreporter.write_sep("=", "documentation")
        for line in lines():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def reachable() -> Iterator[Path]:
    """A directory for files that a server's own user must reach; root's ``tmp_path`` is closed to it."""
    made = _reachable_directory()
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of the run share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def postgres(shared: Path) -> Iterator[embedded.Server]:
    """The run's server, up, with a template database that has the extension ``vector`` and nothing else."""
    with ExitStack() as stack:
        with flock(shared / "postgres.lock", fcntl.LOCK_EX):
            server = chosen_server(_directory(shared / "postgres.directory"), FAST)
            stack.enter_context(server.used())
            _make_template(server)
        yield server
        with flock(shared / "postgres.lock", fcntl.LOCK_EX):
            stack.close()
            if not server.running():
                (shared / "postgres.directory").unlink()
                shutil.rmtree(server.directory)


@pytest.fixture(scope="session")
def administration(postgres: embedded.Server) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A superuser's connection to the run's server, in a database that no test uses."""
    with psycopg.connect(_superuser(postgres), autocommit=True) as connection:
        yield connection


@pytest.fixture
def database(postgres: embedded.Server, administration: psycopg.Connection[tuple[Any, ...]]) -> Iterator[str]:
    """The DSN, as superuser, of a fresh database with the extension ``vector``; dropped afterwards."""
    with _fresh(administration, TEMPLATE) as name:
        yield postgres.uri(user="postgres", database=name)


@pytest.fixture
def bench(postgres: embedded.Server, administration: psycopg.Connection[tuple[Any, ...]]) -> Iterator[Bench]:
    """A fresh database with our schema, and the steps of the command line over it; dropped afterwards."""
    with _fresh(administration, TEMPLATE_WITH_SCHEMA) as name:
        bench = Bench(postgres.uri(user="postgres", database=name))
        yield bench
        bench.close()


@pytest.fixture(params=[None, 16], ids=["one table", "16 partitions"])
def either_way(bench: Bench, request: pytest.FixtureRequest) -> None:
    """Has what the test says hold for a destination in partitions as well."""
    bench.partitions = request.param


@pytest.fixture
def connect(database: str) -> Iterator[Connect]:
    """Opens autocommit connections to the test's database (arguments as of ``psycopg.connect``), closed at its end."""
    with ExitStack() as stack:

        def open_connection(**arguments: Any) -> psycopg.Connection[tuple[Any, ...]]:
            connection = psycopg.connect(database, **{"autocommit": True, **arguments})
            stack.callback(connection.close)
            return connection

        yield open_connection


@pytest.fixture
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home and working directory for the test and all that it starts; returns what holds both."""
    isolate(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def cli(isolated: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[CommandLine]:
    """Runs the command line inside this process."""
    with undone():
        yield CommandLine(capfd)


@contextmanager
def _fresh(administration: psycopg.Connection[tuple[Any, ...]], template: str) -> Iterator[str]:
    """Makes a database from a template and yields its name; dropped afterwards, with whoever is still in it."""
    name = f"test_{uuid.uuid4().hex}"
    administration.execute(_statement("CREATE DATABASE {} TEMPLATE {}", name, template))
    yield name
    _end_sessions(administration, name)
    administration.execute(_statement("DROP DATABASE {} WITH (FORCE)", name))


def _directory(note: Path) -> Path:
    """Returns the server's directory for this run, made and noted by the first who asks."""
    if not note.exists():
        note.write_text(str(_reachable_directory()))
    return Path(note.read_text())


def _reachable_directory() -> Path:
    # In memory where there is room: a database takes 20 ms there, and 30 to 400 on a disk that others use too.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > MEMORY_WANTED
    made = Path(tempfile.mkdtemp(prefix="pgvec-test-", dir=memory if roomy else None))
    made.chmod(0o711)
    return made


def _end_sessions(administration: psycopg.Connection[tuple[Any, ...]], name: str) -> None:
    """Ends the sessions in a database and sees them gone; DROP DATABASE would look again only after 100 ms."""
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    for _ in range(50):
        if administration.execute(ended, [name]).rowcount == 0:
            break
        time.sleep(0.002)


def _make_template(server: embedded.Server) -> None:
    with psycopg.connect(_superuser(server), autocommit=True) as connection:
        for name, original in ((TEMPLATE, "pgvec"), (TEMPLATE_WITH_SCHEMA, TEMPLATE)):
            if connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                connection.execute(_statement("CREATE DATABASE {} TEMPLATE {} IS_TEMPLATE true", name, original))
                if name == TEMPLATE_WITH_SCHEMA:
                    schema.initialize(Database(server.uri(user="postgres", database=name)))


def _superuser(server: embedded.Server) -> str:
    return server.uri(user="postgres", database="postgres")


def _statement(text: str, *names: str) -> sql.Composed:
    return sql.SQL(text).format(*map(sql.Identifier, names))
