"""The option that has all tests run on another PostgreSQL."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg
import pytest

from pgvec_queue import embedded_programs
from tests.postgres import VARIABLE, chosen, chosen_server


def other() -> Path:
    """The folder of a PostgreSQL that is not the default one."""
    account = embedded_programs.server_account() if os.geteuid() == 0 else None
    return embedded_programs.find(16, account)


def test_a_number_is_a_version_of_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "16")
    assert chosen() == (16, None)
    monkeypatch.delenv(VARIABLE)
    assert chosen() == (18, None)


def test_a_folder_of_programs_says_its_version_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(other()))
    assert chosen() == (16, other())


@pytest.mark.parametrize("wrong", ["16.4", "bin", "/nowhere/bin", ""])
def test_what_is_neither_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv(VARIABLE, wrong)
    with pytest.raises(ValueError, match="is neither a version nor"):
        chosen()


def test_the_server_is_that_of_the_folder(monkeypatch: pytest.MonkeyPatch, reachable: Path) -> None:
    # A cluster of its own, which takes two seconds: nothing else shows that no program of the wheel's is run.
    monkeypatch.setenv(VARIABLE, str(other()))
    monkeypatch.setattr(embedded_programs, "find", lambda *_: pytest.fail("the wheel's programs were looked for"))
    server = chosen_server(reachable / "other", {"fsync": "off"})
    with server.used(), psycopg.connect(server.dsn) as connection:
        assert connection.info.server_version // 10_000 == 16
        assert connection.execute("SELECT '[1,2]'::vector <-> '[1,2]'").fetchone() == (0.0,)
