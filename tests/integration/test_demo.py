"""The demo: its text, its table, and the command once for real on a server of its own."""

from __future__ import annotations

import email
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgvec_queue import demo, embedded, progress
from pgvec_queue.database import Database
from tests.support import Bench, Ran, run_pgvec

pytestmark = pytest.mark.usefixtures("isolated")


@pytest.fixture
def directory(reachable: Path) -> Iterator[Path]:
    """Where an embedded server is going to be."""
    base = Path(tempfile.mkdtemp(dir=reachable))
    base.chmod(0o711)
    yield base / "demo"
    embedded.Server(base / "demo").stop()
    shutil.rmtree(base)


def write(library: Path, **files: str) -> None:
    for name, content in files.items():
        path = library / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_the_library_has_docstrings_enough_and_nothing_of_it_is_imported() -> None:
    before = set(sys.modules)
    found = list(demo.docstrings())
    # A file may be in an encoding that was not needed before.
    assert {name for name in set(sys.modules) - before if not name.startswith("encodings.")} == set()
    assert len(found) > 5_000
    assert all(one.text.strip() for one in found)
    by_name = {one.name: one.text for one in found}
    assert by_name["asyncio.tasks.gather"].startswith("Return a future aggregating results")
    assert not any("site-packages" in name or ".test." in name for name in by_name)
    mail = [one.text for one in found if one.name == "email" or one.name.startswith("email.")]
    assert [one.text for one in demo.docstrings(Path(email.__file__).parent)] == mail, "the same, in the same order"


def test_modules_classes_and_functions_are_named_by_where_they_stand(tmp_path: Path) -> None:
    write(
        tmp_path,
        package__inner='"""A module."""\nclass C:\n    """A class."""\n    async def f(self):\n        """A\\0."""\n',
        bare="x = 1\ndef f():\n    pass\n",
        broken="def f(:\n",
        tests__helper='"""A test."""\n',
        warned='"""Warned about."""\nx = "\\d" is 3\n',
    )
    (tmp_path / "package" / "__init__.py").write_text('"""A package."""')
    assert [(one.name, one.text) for one in demo.docstrings(tmp_path)] == [
        ("package", "A package."),
        ("package.inner", "A module."),
        ("package.inner.C", "A class."),
        ("package.inner.C.f", "A\ufffd."),
        ("warned", "Warned about."),
    ]


def test_loading_twice_changes_nothing_and_loading_more_adds(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions = "".join(f'def f{i:03}():\n    """Function {i}."""\n' for i in range(500))
    write(tmp_path / "library", module=functions + 'def f000():\n    """The last of this name."""\n')
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "library") if name == "stdlib" else None)
    rows = "SELECT id, name, docstring, xmin::text FROM pgvec_demo ORDER BY id"
    assert demo.load(bench.connection, 100) == 100
    first = bench.sql(rows)
    assert [name for _, name, _, _ in first] == [f"module.f{i:03}" for i in range(0, 500, 5)], "spread over all"
    assert demo.load(bench.connection, 100) == 100
    assert bench.sql(rows) == first
    assert demo.load(bench.connection, None) == 500
    assert bench.sql(f"SELECT * FROM ({rows}) t WHERE id <= 100") == first
    assert bench.value("SELECT docstring FROM pgvec_demo WHERE name = 'module.f000'") == "The last of this name."


@pytest.mark.model
def test_the_demo_answers_leaves_no_server_running_and_can_be_run_again(directory: Path) -> None:
    def run() -> Ran:
        ran = run_pgvec("demo", "--documents", "30", dsn=f"embedded://{directory}", timeout=240)
        assert ran.code == 0, ran.err
        assert not embedded.Server(directory).running()
        assert "\x1b" not in ran.out + ran.err
        return ran

    first = run()
    for query in demo.QUERIES:
        answers = first.out.split(f"? {query}\n")[1].split("\n\n")[0]
        scores = [float(line.split()[0]) for line in answers.splitlines() if not line.startswith(" ")]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > 0.1
    assert "The table pgvec_demo holds 30 docstrings" in first.err
    assert "pgvec db start" in first.err
    again = run()
    assert again.out == first.out
    with embedded.use(directory) as dsn, Database(dsn).connect("test") as connection:
        (held,) = progress.read(connection)
    assert (held.state, held.rows_done, held.rows_failed) == ("complete", 30, 0)
    assert held.rows_embedded == 30, "the second run embedded nothing"
