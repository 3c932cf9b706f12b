"""The units and agents in ``deploy/``: what ``pgvec service install`` would write, and taken by their tools.

``PGVEC_TEST_REWRITE=1`` writes the files in ``deploy/`` anew; their difference is what to look at.
"""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvec_queue.service import COMMANDS, STOP_SECONDS, Manager, Service
from pgvec_queue.service.launchd import START, Launchd
from pgvec_queue.service.systemd import Systemd
from pgvec_queue.worker.supervisor import LEAVE_PATIENCE
from tests.support import Bench
from tests.waiting import wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
HOME = Path("/Users/me")
ANALYZE = shutil.which("systemd-analyze")
PLISTUTIL = shutil.which("plistutil")

needs_systemd_analyze = pytest.mark.skipif(
    ANALYZE is None, reason="needs systemd-analyze (Debian: apt install systemd)"
)
needs_plistutil = pytest.mark.skipif(PLISTUTIL is None, reason="needs plistutil (Debian: apt install libplist-utils)")

MANAGERS: dict[str, tuple[Manager, tuple[str, ...]]] = {
    "systemd": (Systemd(), ("/opt/pgvec/bin/pgvec",)),
    "systemd/user": (Systemd(person=Path("/home/me")), ("/home/me/pgvec/bin/pgvec",)),
    "launchd": (Launchd(HOME), (f"{HOME}/pgvec/bin/pgvec",)),
}
FILES = [(folder, kind) for folder in MANAGERS for kind in COMMANDS]
UNITS = [(folder, kind) for folder, kind in FILES if folder != "launchd"]


def made(folder: str, kind: str) -> tuple[Path, str]:
    """The file in ``deploy/`` and what it should hold."""
    manager, program = MANAGERS[folder]
    service = Service(kind, kind, program)
    return DEPLOY / folder / manager.layout(kind).unit.name, manager.text(service)


def agent(kind: str) -> dict[str, Any]:
    loaded: dict[str, Any] = plistlib.loads(made("launchd", kind)[0].read_bytes())
    return loaded


def verified(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert ANALYZE is not None
    return subprocess.run(
        [ANALYZE, *options, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "notice", "LC_ALL": "C", "XDG_RUNTIME_DIR": str(path.parent)},
    )


@pytest.mark.parametrize(("folder", "kind"), FILES)
def test_what_is_in_deploy_is_what_would_be_installed(folder: str, kind: str) -> None:
    path, text = made(folder, kind)
    if os.environ.get("PGVEC_TEST_REWRITE"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text


def test_nothing_else_lies_there() -> None:
    there = {path for folder in MANAGERS for path in (DEPLOY / folder).iterdir() if path.is_file()}
    assert there == {made(folder, kind)[0] for folder, kind in FILES}


@needs_systemd_analyze
@pytest.mark.parametrize(("folder", "kind"), UNITS)
def test_systemd_has_nothing_to_say_against_a_unit(folder: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / made(folder, kind)[0].name
    program = tmp_path / "pgvec"
    shutil.copy("/bin/true", program)
    # It wants the program to be there.
    path.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={program}", made(folder, kind)[1], flags=re.MULTILINE))
    ran = verified(path, *(["--user"] if folder.endswith("user") else []), "verify")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@needs_systemd_analyze
def test_systemd_would_have_something_to_say_against_a_wrong_one(tmp_path: Path) -> None:
    path = tmp_path / "pgvec-worker.service"
    path.write_text(made("systemd", "worker")[1].replace("ProtectHome=yes", "ProtectHouse=yes"))
    assert "ProtectHouse" in verified(path, "verify").stderr


@needs_systemd_analyze
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_unit_of_the_machine_is_exposed_to_little(kind: str) -> None:
    """0 is nothing at all and 10 an unbounded root; a plain unit without hardening has 9.6."""
    said = verified(made("systemd", kind)[0], "security", "--offline=true", "--no-pager").stdout
    overall = re.search(r"Overall exposure level.*: ([0-9.]+)", said)
    assert overall is not None, said
    assert float(overall[1]) < 2, said


@pytest.mark.parametrize(("folder", "kind"), UNITS)
def test_a_unit_gives_the_worker_the_time_that_it_needs_to_leave(folder: str, kind: str) -> None:
    lines = made(folder, kind)[1].splitlines()
    assert STOP_SECONDS > LEAVE_PATIENCE > 8
    assert {f"TimeoutStopSec={STOP_SECONDS}", "KillMode=mixed", "KillSignal=SIGTERM", "Restart=on-failure"} <= set(
        lines
    )


@pytest.mark.parametrize(("folder", "kind"), FILES)
def test_no_file_holds_the_address_of_a_database(folder: str, kind: str) -> None:
    assert not re.search(r"postgres(ql)?://|password|PGVEC_DSN=", made(folder, kind)[1])


WORDS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1), max_size=4
)


@given(WORDS)
def test_systemd_reads_the_words_of_a_command_line_as_they_were_given(words: list[str]) -> None:
    text = Systemd().text(Service("worker", "worker", ("/bin/pgvec",), tuple(words)))
    line = next(line for line in text.split("\n") if line.startswith("ExecStart="))
    assert unquoted(line.removeprefix("ExecStart=")) == ["/bin/pgvec", "work", *words]


def unquoted(line: str) -> list[str]:
    """Reads a command line by systemd's rules (systemd.service, "Command lines"; systemd.syntax, "Quoting")."""
    words = []
    for quoted, bare in re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line):
        assert quoted or not re.search(r"[\"'\\;]", bare), bare
        word = re.sub(r"\\(.)", r"\1", quoted) if quoted else bare
        assert not re.search(r"(?<!%)(%%)*%(?!%)", word), "a specifier"
        words.append(word.replace("$$", "$").replace("%%", "%"))
    return words


@pytest.mark.parametrize("kind", COMMANDS)
def test_an_agent_is_kept_alive_and_awake_and_is_not_slowed_down(kind: str) -> None:
    found = agent(kind)
    assert found["Label"] == f"pgvec-queue.{kind}"
    assert found["KeepAlive"] == {"SuccessfulExit": False}
    assert found["ProcessType"] == "Interactive"
    assert found["RunAtLoad"] is True
    assert found["ExitTimeOut"] > LEAVE_PATIENCE
    assert "/usr/bin/caffeinate -is -w $$" in found["ProgramArguments"][2]
    assert found["ProgramArguments"][-1] == COMMANDS[kind]
    assert found["ProgramArguments"][:3] == ["/bin/sh", "-c", START]
    assert found["StandardErrorPath"] == f"{HOME}/Library/Logs/pgvec-queue/{kind}.log"
    environment = found["EnvironmentVariables"]
    if kind != "exporter":
        low, high = (float(environment[f"PYTORCH_MPS_{which}_WATERMARK_RATIO"]) for which in ("LOW", "HIGH"))
        # torch refuses to start where they are the other way round.
        assert 0.8 < low <= high <= 1.0


@needs_plistutil
@pytest.mark.parametrize("kind", COMMANDS)
def test_another_reader_of_property_lists_takes_an_agent(kind: str) -> None:
    assert PLISTUTIL is not None
    path = made("launchd", kind)[0]
    ran = subprocess.run([PLISTUTIL, "-i", path, "-f", "bin", "-o", "-"], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert plistlib.loads(ran.stdout, fmt=plistlib.FMT_BINARY) == agent(kind)


def test_an_agents_command_line_runs_the_worker_itself(bench: Bench, tmp_path: Path) -> None:
    """What launchd would run, run here: the shell becomes the worker, so that signals reach it, and SIGTERM ends it."""
    direct = "postgresql://me:a'b\"c$HOME\\@db.example/shop?sslmode=require&connect_timeout=3; false"
    environment, dsn = tmp_path / "a worker.env", tmp_path / "worker.dsn"
    # Its lines are read as they stand: `&` and `;` mean nothing there, and the last may lack its end.
    environment.write_text("# a=b\n\nPGVEC_DIRECT_DSN=" + direct + "\n$(exit 7)\nPGVEC_LOG_FORMAT=json")
    dsn.write_text(bench.dsn + "\n")
    told = subprocess.run(
        ["/bin/sh", "-c", START, str(environment), "/usr/bin/env"], capture_output=True, text=True, check=False
    )
    assert f"PGVEC_DIRECT_DSN={direct}\n" in told.stdout
    nothing = subprocess.run(["/bin/sh", "-c", START, "/nowhere", "/bin/true"], capture_output=True, check=False)
    assert nothing.returncode == 0
    environment.write_text(environment.read_text().replace(direct, f"{bench.dsn}&connect_timeout=3"))
    program = [sys.executable, "-m", "pgvec_queue", "work"]
    worker = subprocess.Popen(
        ["/bin/sh", "-c", START, str(environment), *program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PGVEC_DSN_FILE": str(dsn)},
    )
    try:
        wait_until(lambda: bench.sql("SELECT FROM pgvec.worker_status WHERE pid = %s", worker.pid), 30)
        worker.terminate()
        _, said = worker.communicate(timeout=20)
    finally:
        worker.kill()
    assert worker.returncode == 0
    assert '"event": "worker has left"' in said or '"event": "worker is ready"' in said
    assert not bench.sql("SELECT FROM pgvec.worker_status WHERE pid = %s AND state <> 'gone'", worker.pid)
