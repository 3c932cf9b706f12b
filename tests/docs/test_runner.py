"""What runs the commands of a page notices when they do not do what the page says."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pgvec_queue import embedded, embedded_programs
from tests.docs import pages, running
from tests.docs.running import Run, World
from tests.docs.shell import split
from tests.support import Bench

RunPage = Callable[[str], Run]


@pytest.fixture
def run(scratch: Path, bench: Bench) -> RunPage:
    """Runs a page with these lines against a fresh database."""
    programs = embedded_programs.find(embedded.DEFAULT_VERSION, None)

    def run(text: str) -> Run:
        page = pages.parse(pages.ROOT / "page.md", textwrap.dedent(text))
        return running.run(page, World(bench.dsn, scratch, programs))

    return run


def test_commands_of_a_page_share_a_shell_a_directory_and_a_database(run: RunPage) -> None:
    done = run("""
        <!-- run: mkdir below -->
        ```bash
        cd below
        NAME=me
        ```

        ```sql
        CREATE TABLE t (name text);
        INSERT INTO t VALUES ('me');
        ```

        <!-- shown -->
        ```console
        $ psql -Atc "SELECT 'it is ' || name FROM t WHERE name = '$NAME'"; basename "$PWD"
        it is me
        below
        ```
        """)
    assert done == Run(commands=5, wrong=[])


def test_a_command_that_fails_is_told(run: RunPage) -> None:
    done = run("""
        ```bash
        pgvec enqueue nothing --text body
        true
        ```

        <!-- fails: 1 -->
        ```bash
        pgvec enqueue nothing --text body
        ```

        <!-- fails: 3 -->
        ```sql
        SELECT 1 FROM nothing;
        ```
        """)
    assert done.commands == 4
    [wrong] = done.wrong
    assert wrong.startswith("page.md:3: pgvec enqueue nothing --text body\n  exit status 1\n    pgvec: ")


def test_a_failure_that_does_not_come_is_told(run: RunPage) -> None:
    assert run("<!-- fails: 3 -->\n```bash\ntrue\n```\n").wrong == [
        "page.md:2: no command of the fence has failed with 3"
    ]


def test_output_that_is_not_printed_is_told(run: RunPage) -> None:
    [wrong] = run("<!-- shown -->\n```console\n$ echo two\nthree\n```\n").wrong
    assert "what the page shows is not what was printed:\n    three\n  printed was\n    two" in wrong


def test_a_question_is_answered(run: RunPage) -> None:
    assert run('```bash\nread -r answer && [ "$answer" = y ]\n```\n').wrong == []


def test_what_does_not_end_ends_the_page(run: RunPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SECONDS", 0.2)
    [wrong] = run("```bash\nwhile true; do :; done\ntrue\n```\n").wrong
    assert "is not done within 0.2 s" in wrong
    assert "the rest of the page was not run" in wrong


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl (Debian: apt install curl)")
def test_what_http_refuses_has_failed(run: RunPage) -> None:
    done = run("""
        ```console
        $ pgvec serve
        $ curl http://127.0.0.1:8000/health
        $ curl http://127.0.0.1:8000/nowhere
        ```
        """)
    assert done.commands == 3
    [wrong] = done.wrong
    assert wrong.startswith("page.md:5: curl http://127.0.0.1:8000/nowhere\n  exit status 22\n")


def test_what_serves_has_to_leave_in_order(run: RunPage) -> None:
    done = run("```bash\npgvec exporter &\nkill -KILL %1\n```\n")
    [wrong] = done.wrong
    assert wrong.startswith("page.md: pgvec exporter left with 137\n")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("pgvec serve &     # said", ("", "pgvec serve", "serve")),
        ("pgvec init && pgvec work --metrics-port 9190", ("pgvec init", "pgvec work --metrics-port 9190", "work")),
        ("PGVEC_LISTEN=0 pgvec work articles", ("", "PGVEC_LISTEN=0 pgvec work articles", "work")),
        ("pgvec status --watch", ("", "pgvec status --watch", "status")),
        ("pgvec status", ("", "", "")),
        ("pgvec work --drain && pgvec status", ("", "", "")),
        ("pgvec serve --help", ("", "", "")),
    ],
)
def test_what_serves_is_run_beside(text: str, found: tuple[str, str, str]) -> None:
    assert split(text) == found


def test_what_stands_for_something_else_is_put_in_its_place(scratch: Path) -> None:
    page = pages.parse(pages.ROOT / "page.md", "")
    world = World("host=/run dbname=x", scratch, scratch)
    put = running.substitution(page, world, {"8000": "1234"})
    assert put("psql postgresql://me@db.example/shop -c x") == "psql 'host=/run dbname=x' -c x"
    assert put('--dsn "postgresql://me@db.example/shop"') == '--dsn "host=/run dbname=x"'
    assert put("export PGVEC_DSN='postgresql://a:…@192.168.1.10/x'") == "export PGVEC_DSN='host=/run dbname=x'"
    assert put("curl localhost:8000/x --rows 8000") == "curl localhost:1234/x --rows 8000"
    assert put("--model BAAI/bge-small-en-v1.5") == "--model hashing-512"
