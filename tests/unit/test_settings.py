"""Where the database is and what a file may say: precedence, and that no password gets into a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgvec_queue import settings
from pgvec_queue.errors import SettingsError
from pgvec_queue.settings import DsnSource, FileSettings
from tests.commandline import PASSWORD

DEFAULT = Path("/default")
NO_FILE = FileSettings(None, {})


def find(flag: str | None = None, file: FileSettings = NO_FILE, environment: dict[str, str] | None = None) -> DsnSource:
    return settings.find_database(flag, file, environment or {}, embedded_default=DEFAULT)


def test_the_database_is_flag_then_environment_then_file_then_libpqs_variables_then_the_embedded_server() -> None:
    file = FileSettings(Path("/etc/pgvec.toml"), {"dsn": "host=file"})
    environment = {"PGVEC_DSN": "host=variable", "PGHOST": "libpq", "PGUSER": "me"}
    libpq = {"PGHOST": "libpq", "PGUSER": "me", "PGPASSWORD": PASSWORD}
    assert find("host=flag", file, environment) == DsnSource("host=flag", None, "--dsn")
    assert find(None, file, environment) == DsnSource("host=variable", None, "PGVEC_DSN")
    assert find(None, file, {**environment, "PGVEC_DSN": ""}) == DsnSource("host=file", None, "/etc/pgvec.toml")
    assert find(None, NO_FILE, libpq) == DsnSource("", None, "PGHOST, PGUSER")
    assert find(None, NO_FILE, {"PGPASSWORD": PASSWORD}) == DsnSource(None, DEFAULT, "default")


def test_an_empty_flag_is_refused_and_not_passed_over() -> None:
    with pytest.raises(SettingsError, match="--dsn is empty"):
        find("", NO_FILE, {"PGVEC_DSN": "host=variable"})


def test_an_embedded_server_is_named_by_its_directory() -> None:
    assert find("embedded:///var/my%20data") == DsnSource(None, Path("/var/my data"), "--dsn")
    for wrong in ("embedded:", "embedded:data", "embedded://data", "embedded:///", "embedded://host/data"):
        with pytest.raises(SettingsError, match="write embedded:///absolute/directory"):
            find(wrong)


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://me:{PASSWORD}@more@host:5432/shop",
        f"postgresql://me:{PASSWORD}@more@host:port/shop",
        f"postgresql://me:{PASSWORD}/more@host/shop",
        f"postgresql://me:more/{PASSWORD}@host/shop",
        f"postgresql://me:{PASSWORD}?more@host/shop",
        f"postgresql://me:{PASSWORD}",
        f"postgresql://me:{PASSWORD}/shop",
        f"postgres://me:x@host:{PASSWORD}/shop",
        f"postgresql://one:5432,two:{PASSWORD}/shop",
    ],
)
def test_a_uri_with_a_password_where_host_port_or_database_should_be_is_refused_unseen(dsn: str) -> None:
    with pytest.raises(SettingsError, match="written as %40") as caught:
        find(dsn)
    assert PASSWORD not in str(caught.value)
    assert "more" not in str(caught.value)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://",
        "postgresql:///shop?host=/run/postgresql",
        "postgresql://me@/shop",
        "postgresql://%2Frun%2Fpostgresql/shop",
        "postgres://me:p%40%2F%3Aw@host:5432/shop?sslmode=require",
        "postgresql://me:with:colon#hash@host/shop",
        "postgresql://[::1]:5432/shop",
        "postgresql://me:pw@[::1]/shop",
        "postgresql://me@one:5432,two,three:5433/shop",
        "host=host password='a@b/c' dbname=shop",
        "service=shop",
    ],
)
def test_a_string_that_libpq_reads_is_passed_on(dsn: str) -> None:
    assert find(dsn) == DsnSource(dsn, None, "--dsn")


@pytest.mark.parametrize("dbname", ["dbname=", "user=me dbname = '"])
def test_a_uri_in_dbname_is_refused_unseen(dbname: str) -> None:
    with pytest.raises(SettingsError, match="give the URI alone") as caught:
        find(f"host=host {dbname}postgresql://me:{PASSWORD}@host/shop")
    assert PASSWORD not in str(caught.value)


def test_a_uri_in_pgdatabase_is_refused_unseen() -> None:
    with pytest.raises(SettingsError, match="put it into PGVEC_DSN") as caught:
        find(environment={"PGDATABASE": f"postgresql://me:{PASSWORD}@host/shop"})
    assert PASSWORD not in str(caught.value)


def test_the_file_of_the_working_directory_comes_before_the_users(isolated: Path) -> None:
    assert settings.read_file() == FileSettings(None, {})
    users = isolated / "home" / "config" / "pgvec-queue" / "pgvec.toml"
    users.parent.mkdir(parents=True)
    users.write_text("lease = 5")
    assert settings.read_file() == FileSettings(users, {"lease": 5})
    mine = isolated / "here" / "pgvec.toml"
    mine.write_text("model = 'm'")
    assert settings.read_file() == FileSettings(mine, {"model": "m"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff", "is not valid TOML"),
        (b"[work]\nlease = 5", "unknown setting 'work'"),
        (f"dsn = ['postgresql://me:{PASSWORD}@host/shop']".encode(), "dsn must be a string"),
        (f"dsn = 'postgresql://me:{PASSWORD}@host/shop".encode(), "is not valid TOML"),
        (f"lease = '{PASSWORD}'".encode(), "lease must be a number"),
        (b"rows_per_job = 1.5", "rows_per_job must be a whole number"),
        (b"listen = 1", "listen must be true or false"),
        (b"gateway_models = 'm'", "gateway_models must be a list of strings"),
        (b"gateway_models = [1]", "gateway_models must be a list of strings"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_showing_its_values(
    isolated: Path, content: bytes, reason: str
) -> None:
    Path("pgvec.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=reason) as caught:
        settings.read_file()
    assert str(isolated / "here" / "pgvec.toml") in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_a_whole_number_is_a_number(isolated: Path) -> None:
    Path("pgvec.toml").write_text("lease = 5\nthreshold = 0.5\nlisten = false")
    assert settings.read_file().values == {"lease": 5, "threshold": 0.5, "listen": False}


def test_what_holds_a_password_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "dsn"
    path.write_text("host=file password='a b'\n")
    # As systemd and Kubernetes give it to a user who is not its owner; libpq refuses such a PGPASSFILE.
    path.chmod(0o440)
    given = {"PGVEC_DSN_FILE": str(path)}
    file = FileSettings(Path("/etc/pgvec.toml"), {"dsn": "host=toml"})
    assert find(None, file, given) == DsnSource("host=file password='a b'", None, "PGVEC_DSN_FILE")
    assert find(None, file, {**given, "PGVEC_DSN": "host=variable"}).origin == "PGVEC_DSN"
    assert find("host=flag", file, {"PGVEC_DSN_FILE": "/nowhere"}).origin == "--dsn"
    for name in ("direct_dsn", "endpoint_key"):
        variable = f"PGVEC_{name.upper()}"
        assert settings.secret(name, {f"{variable}_FILE": str(path)}) == (
            "host=file password='a b'",
            f"{variable}_FILE",
        )


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read: No such file"), ("", "holds 0 lines"), (f"host=a\n{PASSWORD}\n", "holds 2 lines")],
)
def test_a_file_of_no_use_is_named_and_not_shown(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "dsn"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=reason) as caught:
        find(None, NO_FILE, {"PGVEC_DSN_FILE": str(path)})
    assert str(caught.value).startswith(f"PGVEC_DSN_FILE: {path} ")
    assert PASSWORD not in str(caught.value)
