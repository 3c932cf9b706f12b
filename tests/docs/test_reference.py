"""The reference is what the program tells of itself; so the program has to tell all of it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from types import ModuleType

import pytest

from tests.docs.pages import ROOT
from tests.support import Bench


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    monkeypatch.setenv("PGVEC_DOCS_DSN", bench.dsn)
    return importlib.import_module("pgvec_reference")


@pytest.mark.parametrize("part", ["cli", "settings", "schema", "http"])
@pytest.mark.usefixtures("reference")
def test_all_that_the_reference_lists_has_a_description(part: str) -> None:
    module = importlib.import_module(f"pgvec_reference.{part}")
    assert module.missing() == []
    assert len(module.text().splitlines()) > 30


@pytest.mark.usefixtures("reference")
def test_a_view_s_column_without_a_comment_is_found(bench: Bench) -> None:
    bench.sql("COMMENT ON COLUMN pgvec.progress.name IS NULL")
    bench.sql("CREATE FUNCTION pgvec.nameless() RETURNS integer LANGUAGE sql AS 'SELECT 1'")
    schema = importlib.import_module("pgvec_reference.schema")
    schema.read.cache_clear()
    assert schema.missing() == ["pgvec.nameless", "pgvec.progress.name"]
    schema.read.cache_clear()


@pytest.mark.usefixtures("reference")
def test_an_option_without_a_help_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cli = importlib.import_module("pgvec_reference.cli")
    command = next(command for name, command in cli.commands() if name == "pgvec verify")
    option = next(one for one in command.params if "--fix" in one.opts)
    monkeypatch.setattr(option, "help", None)
    assert cli.missing() == ["pgvec verify --fix"]


@pytest.mark.usefixtures("reference")
def test_the_reference_has_every_command_setting_view_and_route() -> None:
    cli, settings, schema, http = (
        importlib.import_module(f"pgvec_reference.{part}") for part in ("cli", "settings", "schema", "http")
    )
    assert "### pgvec db start" in cli.text()
    assert "`--chunk-overlap N`" in cli.text()
    assert "`gateway_keep_tasks_days`" in settings.text()
    assert "`serve --port`" in settings.text()
    assert "### pgvec.worker\\_status" in schema.text()
    assert "### POST /api/v1/vectorize" in http.text()


def test_the_site_is_built_without_a_warning(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("sphinx", reason="needs the extra docs")
    pytest.importorskip("myst_parser", reason="needs the extra docs")
    pytest.importorskip("furo", reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "sphinx", "-b", "html", "-c", "docs", "-n", "-W", "--keep-going", "-q", ".", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PGVEC_DOCS_DSN": bench.dsn},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert (out / "docs" / "reference" / "cli.html").exists()
    assert "pgvec.worker_status" in (out / "docs" / "reference" / "sql.html").read_text()
    assert (out / "index.html").read_text().count("docs/index.html") == 2
