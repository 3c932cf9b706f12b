"""``pgvec service``: what it writes, keeps and removes, and what it refuses before it has written anything."""

from __future__ import annotations

import os
import plistlib
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgvec_queue.errors import DatabaseError, PgvecError
from pgvec_queue.service import Service, systemd
from pgvec_queue.service.asking import done
from pgvec_queue.service.launchd import Launchd
from pgvec_queue.service.looking import look
from pgvec_queue.service.systemd import Systemd
from tests.commandline import PASSWORD, CommandLine
from tests.support import Bench

DSN = f"postgresql://me:{PASSWORD}@db.example/shop"
UNITS = ".config/systemd/user"


def mode(path: Path) -> str:
    return f"{path.stat().st_mode & 0o777:o}"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Where the files of a system lie that does not run."""
    made = tmp_path / "image"
    made.mkdir()
    return made


@pytest.fixture
def home(cli: CommandLine, isolated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a person without anything in it."""
    monkeypatch.delenv("XDG_CONFIG_HOME")
    return isolated / "home"


def test_an_installation_is_a_unit_an_environment_file_and_an_address(
    cli: CommandLine, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_DSN", DSN)
    ran = cli("service", "install", "--system", "--run-as", "embedder", "--root", str(image), "--", "--device", "cuda")
    assert (ran.code, ran.out) == (0, "")
    unit = image / "etc/systemd/system/pgvec-worker.service"
    settings, dsn = image / "etc/pgvec/worker.env", image / "etc/pgvec/worker.dsn"
    assert {path for path in image.rglob("*") if path.is_file()} == {unit, settings, dsn}
    assert [mode(path) for path in (unit, settings, dsn)] == ["644", "600", "600"]
    assert dsn.read_text() == f"{DSN}\n"
    assert PASSWORD not in unit.read_text() + settings.read_text() + ran.err
    lines = unit.read_text().splitlines()
    assert {"User=embedder", "LoadCredential=dsn:/etc/pgvec/worker.dsn"} <= set(lines)
    assert "DynamicUser=yes" not in lines
    assert str(image) not in unit.read_text()
    (start,) = [line for line in lines if line.startswith("ExecStart=")]
    assert start.endswith(" work --device cuda")


def test_a_second_installation_changes_what_changes_and_keeps_what_a_person_wrote(
    cli: CommandLine, image: Path
) -> None:
    command = ["service", "install", "--system", "--run-as", "a", "--root", str(image)]
    settings = image / "etc/pgvec/worker.env"
    assert cli(*command, "--dsn", DSN).code == 0
    settings.write_text("PGVEC_DEVICE=cpu\n")
    # An address that is there is kept where none is given.
    assert cli(*command).err == ""
    assert settings.read_text() == "PGVEC_DEVICE=cpu\n"
    other = cli(*command, "--dsn", "postgresql://other/shop")
    assert other.err == f"pgvec: wrote {image}/etc/pgvec/worker.dsn\n"
    changed = cli(*command, "--", "--lease", "20", "--memory", "1 G")
    assert changed.err == f"pgvec: wrote {image}/etc/systemd/system/pgvec-worker.service\n"
    # So are its options and its account.
    assert cli("service", "install", "--system", "--root", str(image)).err == ""


def test_services_of_other_names_and_kinds_stand_beside_each_other(cli: CommandLine, image: Path) -> None:
    where = ["--system", "--run-as", "a", "--root", str(image), "--dsn", DSN]
    for name, options in {"worker": [], "second": ["--name", "second"], "gateway": ["--kind", "gateway"]}.items():
        assert cli("service", "install", *where, *options).code == 0
        assert (image / f"etc/systemd/system/pgvec-{name}.service").exists()
        assert (image / f"etc/pgvec/{name}.dsn").exists()
    said = cli.refused("service", "install", *where, "--kind", "worker", "--name", "gateway")
    assert said == "gateway is a gateway; give another --name, or uninstall it first"
    # It stays what it is where nothing else is said.
    assert cli("service", "install", *where, "--name", "gateway").err == ""


def test_what_is_installed_is_removed_and_what_is_kept_is_named(cli: CommandLine, image: Path) -> None:
    where = ["--system", "--root", str(image)]
    assert cli("service", "install", *where, "--run-as", "a", "--dsn", DSN).code == 0
    ran = cli("service", "uninstall", *where)
    assert (ran.code, ran.out) == (0, "")
    left = {path for path in image.rglob("*") if path.is_file()}
    assert left == {image / "etc/pgvec/worker.env", image / "etc/pgvec/worker.dsn"}
    for path in left:
        assert str(path) in ran.err
    assert "there is no" in cli.refused("service", "uninstall", *where)
    assert cli("service", "uninstall", *where, "--purge").code == 0
    assert not [path for path in image.rglob("*") if path.is_file()]


def test_a_unit_of_somebody_elses_is_neither_overwritten_nor_removed(cli: CommandLine, image: Path) -> None:
    unit = image / "etc/systemd/system/pgvec-worker.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    where = ["--system", "--root", str(image)]
    said = cli.refused("service", "install", *where, "--run-as", "a", "--dsn", DSN)
    assert said == f"{unit} is there, and was not written by this program; move it away, or give --name"
    assert "stays" in cli.refused("service", "uninstall", *where)
    assert unit.read_text() == "[Service]\nExecStart=/bin/true\n"
    assert not (image / "etc/pgvec").exists()


def test_an_agent_is_a_property_list_that_names_the_files_beside_it(cli: CommandLine, image: Path, home: Path) -> None:
    ran = cli("service", "install", "--manager", "launchd", "--root", str(image), "--dsn", DSN, "--", "--device", "mps")
    assert (ran.code, ran.out) == (0, "")
    library = home / "Library"
    below = image / library.relative_to("/")
    agent = plistlib.loads((below / "LaunchAgents/pgvec-queue.worker.plist").read_bytes())
    settings = library / "Application Support/pgvec-queue"
    assert agent["ProgramArguments"][3] == str(settings / "worker.env")
    assert agent["ProgramArguments"][-3:] == ["work", "--device", "mps"]
    assert agent["EnvironmentVariables"]["PGVEC_DSN_FILE"] == str(settings / "worker.dsn")
    assert mode(below / "Application Support/pgvec-queue/worker.dsn") == "600"
    assert cli("service", "install", "--manager", "launchd", "--root", str(image)).err == ""
    assert plistlib.loads((below / "LaunchAgents/pgvec-queue.worker.plist").read_bytes()) == agent
    gone = cli("service", "uninstall", "--manager", "launchd", "--root", str(image), "--purge")
    assert gone.code == 0
    assert not [path for path in image.rglob("*") if path.is_file()]


def test_a_dry_run_prints_the_unit_and_writes_nothing(cli: CommandLine, home: Path) -> None:
    ran = cli("service", "install", "--user", "--dry-run", "--dsn", DSN)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("# pgvec-queue, the worker: ~/.config/systemd/user/pgvec-worker.service")
    assert f"PGVEC_DSN_FILE={home}/.config/pgvec-queue/worker.dsn" in ran.out
    assert PASSWORD not in ran.out
    assert not list(home.iterdir())


def test_without_systemd_it_says_so_before_it_writes_anything(
    cli: CommandLine, home: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(systemd, "RUNNING", tmp_path / "nowhere")
    said = cli.refused("service", "install", "--user", "--dsn", bench.dsn)
    assert "systemd does not run here" in said
    assert "--no-start" in said
    assert not list(home.iterdir())
    written = cli("service", "install", "--user", "--no-start", "--dsn", bench.dsn)
    assert written.code == 0
    assert "it is not started; do that with: systemctl --user enable --now pgvec-worker.service" in written.err
    assert (home / UNITS / "pgvec-worker.service").exists()
    gone = cli("service", "uninstall", "--user")
    assert gone.code == 0
    assert "nothing is stopped: systemd does not run here" in gone.err
    assert not (home / UNITS / "pgvec-worker.service").exists()


def test_a_database_that_the_service_could_not_use_is_refused_before_anything_is_written(
    cli: CommandLine, home: Path, database: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["service", "install", "--user", "--no-start", "--dsn"]
    assert "port 1 failed" in cli.refused(*command, "host=127.0.0.1 port=1")
    assert "run: pgvec init" in cli.refused(*command, database)
    # It has not what this shell has.
    given = {name: str(value) for name, value in conninfo_to_dict(bench.dsn).items()}
    monkeypatch.setenv("PGHOST", given.pop("host"))
    hostless = make_conninfo("", **given)
    assert "cannot connect" in cli.refused(*command, hostless)
    assert not list(home.iterdir())
    assert cli(*command, hostless, "--no-check").code == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--", "--nope"], "No such option '--nope'"),
        (["--", "--device", "gpu"], "none of auto, cpu, mps, cuda, cuda:N"),
        (["--", "--drain"], "a service goes on"),
        (["--", "--dsn", DSN], "every user sees a unit: set PGVEC_DSN, or PGVEC_DSN_FILE"),
        (["--", f"--direct-dsn={DSN}"], "set PGVEC_DIRECT_DSN, or PGVEC_DIRECT_DSN_FILE, in the environment file"),
        (["--", "two\nlines"], "an argument holds control characters"),
        (["--kind", "gateway", "--", "--device", "gpu"], "none of auto"),
        (["--kind", "exporter", "--", "docs"], "Got unexpected extra argument (docs)"),
        (["--user", "--run-as", "me"], "--run-as belongs to a service of the machine"),
        (["--manager", "launchd", "--system"], "launchd's agents are a person's"),
    ],
)
def test_what_could_not_be_meant_is_misuse(cli: CommandLine, options: list[str], reason: str) -> None:
    ran = cli("service", "install", "--dry-run", "--dsn", DSN, *options)
    assert (ran.code, ran.out) == (2, "")
    assert reason in ran.err
    assert PASSWORD not in ran.err


def test_what_cannot_be_is_refused(cli: CommandLine, monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    dry = ["service", "install", "--dry-run"]
    assert "no account 'nobody-here'" in cli.refused(*dry, "--system", "--run-as", "nobody-here", "--dsn", DSN)
    assert cli.refused(*dry, "--user") == "say where the database is: --dsn or PGVEC_DSN"
    monkeypatch.setenv("PGHOST", "db.example")
    assert "has not the variables of this shell (PGHOST)" in cli.refused(*dry, "--user")
    system = ["--system", "--run-as", "root", "--dsn", "embedded:///srv/data"]
    assert "belongs to whoever started it" in cli.refused(*dry, *system)
    assert cli(*dry, "--user", "--dsn", "embedded:///srv/data").code == 0
    assert "there is no " in cli.refused("service", "status", "--user", "--name", "nobody")


def test_a_program_that_a_made_up_user_could_not_see_is_refused(
    cli: CommandLine, image: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "bin").mkdir(parents=True)
    (hidden / "bin/python").write_text("")
    monkeypatch.setattr("sys.executable", str(hidden / "bin/python"))
    hidden.chmod(0o700)
    said = cli.refused("service", "install", "--system", "--root", str(image), "--dsn", DSN)
    assert "may not look into" in said
    assert "python3 -m venv /opt/pgvec" in said
    # Its code may lie elsewhere, as that of an editable installation.
    code = hidden / "pgvec_queue/__init__.py"
    code.parent.mkdir()
    code.write_text("")
    monkeypatch.setattr("sys.executable", "/bin/sh")
    monkeypatch.setattr("sys.base_prefix", "/usr")
    monkeypatch.setattr("pgvec_queue.__file__", str(code))
    said = cli.refused("service", "install", "--system", "--root", str(image), "--dsn", DSN)
    assert f"this program needs {code.parent}" in said
    assert not list(image.iterdir())


def test_a_place_that_cannot_be_written_is_named(cli: CommandLine, image: Path) -> None:
    (image / "etc").write_text("a file")
    command = ["service", "install", "--system", "--run-as", "a", "--root", str(image), "--dsn", DSN]
    assert f"{image}/etc/pgvec/worker.dsn cannot be written: " in cli.refused(*command)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_the_database_is_looked_at_as_whoever_the_service_runs_as(bench: Bench) -> None:
    given = {name: str(value) for name, value in conninfo_to_dict(bench.dsn).items() if name != "user"}
    userless = make_conninfo("", **given)
    # An address without a user means the service's own. Interpreter and server may be closed to others, not to root.
    with pytest.raises(PgvecError, match=r'as nobody: .*(Permission denied|role "nobody")'):
        look(userless, of_a_person=False, account="nobody")
    with pytest.raises(DatabaseError, match=r'^as a user that systemd makes up: .*(role|schema) "?pgvec'):
        look(userless, of_a_person=False)
    look(bench.dsn, of_a_person=False)


def test_an_account_uses_its_caches_at_home_and_others_share_none() -> None:
    worker = Service("worker", "worker", ("/opt/pgvec/bin/pgvec",))
    at_home = Systemd(account="me", home=Path("/home/me")).text(worker)
    assert "HF_HOME" not in at_home
    assert "CacheDirectory" not in at_home
    assert "ReadWritePaths=-/home/me\n" in at_home
    assert "CacheDirectory=pgvec-embedder\n" in Systemd(account="embedder").text(worker)
    assert "CacheDirectory=pgvec\n" in Systemd().text(worker)


LAUNCHCTL = """#!/bin/sh
# As macOS's: bootout comes back before the job is gone, and bootstrap fails for a while after that.
cd "$(dirname "$0")"
echo "$*" >>said
case "$1 $2" in
  "print gui/"*/*)
    [ -e loaded ] || exit 113
    if [ -e leaving ]; then echo >>looks; [ "$(wc -l <looks)" -lt 3 ] || rm -f loaded leaving looks; fi
    echo "state = running" ;;
  print*) ;;
  bootout*) touch leaving; exit 36 ;;
  bootstrap*)
    if [ -e loaded ] || [ ! -e tried ]; then touch tried; echo "Bootstrap failed: 5: Input/output error" >&2; exit 5; fi
    rm tried; touch loaded ;;
esac
"""


@pytest.fixture
def launchctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of launchctl; returns the file with what it was asked for."""
    program = tmp_path / "bin" / "launchctl"
    program.parent.mkdir()
    program.write_text(LAUNCHCTL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program.parent / "said"


def test_an_agent_is_waited_for_until_it_has_left_and_taken_when_launchd_can(home: Path, launchctl: Path) -> None:
    found = Launchd(home)
    found.start("worker", done, anew=True)
    assert found.state("worker").running
    launchctl.write_text("")
    found.start("worker", done, anew=True)
    assert found.state("worker").running
    asked = [line.split()[0] for line in launchctl.read_text().splitlines()]
    assert [word for word in asked if word != "print"] == ["bootout", "enable", "bootstrap", "bootstrap"]
    found.stop("worker", done)
    assert found.state("worker").said == "not loaded"


def test_a_unit_that_cannot_be_stopped_is_removed_all_the_same(
    cli: CommandLine, home: Path, launchctl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 501)
    command = ["--manager", "launchd"]
    assert cli("service", "install", *command, "--no-start", "--no-check", "--dsn", DSN).code == 0
    agent = home / "Library/LaunchAgents/pgvec-queue.worker.plist"
    assert agent.exists()
    (launchctl.parent / "loaded").touch()
    program = launchctl.parent / "launchctl"
    program.write_text(LAUNCHCTL.replace("touch leaving; exit 36", "exit 1"))
    ran = cli("service", "uninstall", *command)
    assert ran.code == 1
    assert "bootout" in ran.err
    assert not agent.exists()
