"""Every command of the documentation is run, page by page, or says why it is not."""

from __future__ import annotations

import fcntl
import shutil
import uuid
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pgvec_queue import embedded, embedded_programs, schema
from pgvec_queue.database import Database
from pgvec_queue.embedded_files import flock
from tests.docs import pages, rows, running
from tests.docs.running import World
from tests.support import run_pgvec

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl (Debian: apt install curl)")

# What loads a model takes longest, and is begun first.
ALL = sorted((pages.read(path) for path in pages.paths()), key=lambda page: not page.real_model)
_TEMPLATES = {"empty": "template_vector", "tables": "template_docs", "vectors": "template_docs_vectors"}

Administration = psycopg.Connection[tuple[object, ...]]


@pytest.fixture(scope="module")
def templates(shared: Path, postgres: embedded.Server, administration: Administration) -> None:
    """Databases with what pages begin with."""
    with flock(shared / "docs.lock", fcntl.LOCK_EX):
        made = administration.execute("SELECT FROM pg_database WHERE datname = %s", [_TEMPLATES["vectors"]]).fetchone()
        if made is not None:
            return
        _copy(administration, _TEMPLATES["tables"], "template_pgvec")
        _fill(postgres.uri(user="postgres", database=_TEMPLATES["tables"]), "tables")
        _copy(administration, _TEMPLATES["vectors"], "template_pgvec")
        _fill(postgres.uri(user="postgres", database=_TEMPLATES["vectors"]), "vectors")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in ALL if page.fences], ids=lambda page: page.name)
def test_the_commands_of_a_page_do_what_it_says(
    page: pages.Page, scratch: Path, postgres: embedded.Server, administration: Administration, templates: None
) -> None:
    programs = embedded_programs.find(embedded.DEFAULT_VERSION, None)
    shutil.copytree(pages.ROOT / "deploy", scratch / "here" / "deploy")
    setup, statements = page.setup
    if setup == "none":
        done = running.run(page, World("", scratch, programs, f"embedded://{scratch}/server"))
    elif page.alone:
        server = embedded.Server(scratch / "server")
        with server.used():
            dsn = server.uri(user="postgres", database="pgvec")
            if setup != "empty":
                schema.initialize(Database(dsn))
                _fill(dsn, setup)
            _execute(dsn, statements)
            done = running.run(page, World(dsn, scratch, programs))
    else:
        name = f"page_{uuid.uuid4().hex}"
        _copy(administration, name, _TEMPLATES[setup])
        dsn = postgres.uri(user="postgres", database=name)
        try:
            _execute(dsn, statements)
            done = running.run(page, World(dsn, scratch, programs))
        finally:
            administration.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
    if done.wrong:
        pytest.fail("\n\n".join(done.wrong), pytrace=False)


def _fill(dsn: str, setup: str) -> None:
    """Makes the tables in a database that has our schema, and for ``vectors`` the vectors of one."""
    with psycopg.connect(dsn) as connection:
        rows.make(connection)
    if setup == "vectors":
        for command in (("enqueue", "articles", "--text", "body", "--model", "hashing-384"), ("work", "--drain")):
            ran = run_pgvec(*command, dsn=dsn)
            assert ran.code == 0, ran


def _execute(dsn: str, statements: str) -> None:
    if statements:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(statements.encode())


def _copy(administration: Administration, name: str, template: str) -> None:
    administration.execute(
        sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    )
