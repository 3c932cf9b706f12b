"""``pgvec doctor`` on real servers: each thing that can be wrong is made wrong, and named with what to do about it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgvec_queue import embedded, schema
from pgvec_queue.database import Database
from tests.commandline import PASSWORD, CommandLine
from tests.pgbouncer import PROGRAM, pooling
from tests.support import Bench, run_pgvec
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("isolated")

LEVELS = ["ok", "note", "warning", "error"]
KEYS = {"level", "check", "message", "remedy", "vectorizer"}
KEY = "endpoint-key-that-nobody-should-see"
Found = dict[str, list[dict[str, Any]]]


class Doctor:
    """Runs ``pgvec doctor --json``."""

    def __init__(self, cli: CommandLine) -> None:
        self._cli = cli

    def __call__(self, dsn: str, *arguments: str) -> Found:
        """Returns the findings by their check; the exit code has to agree with the worst of them."""
        ran = self._cli("doctor", "--json", "--dsn", dsn, *arguments)
        assert ran.err == ""
        assert PASSWORD not in ran.out
        found: Found = defaultdict(list)
        for line in ran.out.splitlines():
            finding = json.loads(line)
            assert finding.keys() == KEYS
            assert finding["level"] in LEVELS
            # Whatever is wrong has a remedy.
            assert finding["remedy"] or finding["level"] in ("ok", "note"), finding
            found[finding["check"]].append(finding)
        worst = any(finding["level"] == "error" for some in found.values() for finding in some)
        assert ran.code == int(worst), ran
        return found


def only(found: Found, check: str) -> tuple[str, str, str | None]:
    """Level, message and remedy of a check that has found one thing."""
    (finding,) = found[check]
    return finding["level"], finding["message"], finding["remedy"]


def levels(found: Found, check: str) -> list[str]:
    return [finding["level"] for finding in found[check]]


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """What all tests have set is none of what is said of the settings."""
    monkeypatch.delenv("PGVEC_INDEX")


@pytest.fixture
def doctor(cli: CommandLine) -> Doctor:
    return Doctor(cli)


def fill(bench: Bench, rows: int = 10, table: str = "docs", **options: Any) -> None:
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO {table} SELECT i, 'document ' || i FROM generate_series(1, %s) i", rows)
    bench.enqueue(table, "body", **options)


def as_role(dsn: str, role: str) -> str:
    return make_conninfo(dsn, user=role)


@pytest.fixture
def role(bench: Bench, administration: psycopg.Connection[Any]) -> Iterator[str]:
    """A role that may connect and nothing else."""
    name = f"plain_{uuid.uuid4().hex[:12]}"
    administration.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    yield name
    bench.sql(f"DROP OWNED BY {name}")
    administration.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


OURS = "ALL TABLES IN SCHEMA pgvec"


def let_work(bench: Bench, role: str) -> None:
    """Gives a role what a worker needs of the queue."""
    bench.sql(f"GRANT USAGE ON SCHEMA pgvec TO {role}")
    bench.sql(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {OURS} TO {role}")
    bench.sql(f"GRANT SELECT ON ALL SEQUENCES IN SCHEMA pgvec TO {role}")


@pytest.fixture(scope="module")
def own(reachable: Path) -> Iterator[embedded.Server]:
    """A server of these tests' own, small and badly set up."""
    base = Path(tempfile.mkdtemp(dir=reachable))
    base.chmod(0o711)
    bad = {
        "autovacuum": "off",
        "max_connections": "12",
        "max_wal_size": "64MB",
        "shared_buffers": "16MB",
        "fsync": "off",
    }
    server = embedded.Server(base / "postgres", settings=bad)
    with server.used():
        schema.initialize(Database(server.dsn))
        yield server
    shutil.rmtree(base)


# All is well


def test_a_database_without_faults_gets_no_warning(bench: Bench, doctor: Doctor) -> None:
    fill(bench, sync=True)
    assert bench.drain().value == "complete"
    found = doctor(bench.dsn)
    assert {
        *(
            "database",
            "pgvector",
            "schema",
            "tls",
            "pooler",
            "clock",
            "autovacuum",
            "connections",
            "timeouts",
            "rights",
        ),
        *("tables", "workers", "sync", "transactions", "room", "index memory"),
    } <= found.keys()
    # What the tests' server has been given for speed is no fault of the others.
    bad = {check for check in found if {"warning", "error"} & set(levels(found, check))}
    assert bad <= {"wal", "transactions", "replication slots"}
    assert re.fullmatch(r"test_\w+ at .*, PostgreSQL \d+\.\d+ \(from --dsn\)", only(found, "database")[1])
    assert only(found, "schema") == ("ok", f"pgvec at revision {schema.HEAD}", None)
    assert only(found, "tls")[:2] == ("ok", "not needed: the connection stays on this machine")
    assert only(found, "sync")[:2] == ("ok", "docs follows the changes of public.docs")
    assert only(found, "workers")[0] == "note"


def test_for_people_each_finding_is_a_line_with_what_to_do(bench: Bench, cli: CommandLine) -> None:
    fill(bench)
    bench.sql("DROP TABLE docs_vectors")
    ran = cli("doctor", "--dsn", bench.dsn)
    assert (ran.code, ran.err) == (1, "")
    lines = ran.out.splitlines()
    assert lines[-1] == "settings: all at their defaults"
    assert all(re.match(r"(ok|note|warning|error) +[a-z_ ]+ {1,}\S", line) for line in lines[:-1]), lines
    (line,) = [line for line in lines if line.startswith("error")]
    assert line.split(maxsplit=2)[1:] == ["tables", "docs: there is no public.docs_vectors any more; pgvec drop docs"]


# The way there


@pytest.mark.parametrize(
    "where",
    [
        f"postgresql://me:{PASSWORD}@127.0.0.1:1/shop",
        f"postgresql://me:{PASSWORD}@nowhere.invalid/shop",
        f"host=/nowhere dbname=shop user=me password={PASSWORD}",
    ],
)
def test_a_server_that_cannot_be_reached_is_a_finding_without_a_password(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("PGVEC_LEASE", "7")
    found = doctor(where)
    level, message, remedy = only(found, "database")
    assert level == "error"
    assert message.startswith("cannot connect to the database shop at ")
    assert remedy is not None
    assert only(found, "setting")[1] == "lease = 7 (from PGVEC_LEASE)"


def test_a_role_or_a_database_that_is_not_there_is_a_finding(database: str, doctor: Doctor) -> None:
    assert 'role "nobody_at_all" does not exist' in only(doctor(as_role(database, "nobody_at_all")), "database")[1]
    assert 'database "nowhere" does not exist' in only(doctor(make_conninfo(database, dbname="nowhere")), "database")[1]


def own_address() -> str | None:
    """An address of this machine that is no loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def test_a_connection_over_the_network_without_tls_is_a_warning(reachable: Path, doctor: Doctor) -> None:
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    base = Path(tempfile.mkdtemp(dir=reachable))
    base.chmod(0o711)
    server = embedded.Server(base / "postgres")
    try:
        dsn = server.listen(address).removeprefix("export PGVEC_DSN='").removesuffix("'")
        password = conninfo_to_dict(dsn)["password"]
        found = doctor(dsn)
        level, message, _ = only(found, "tls")
        assert (level, message) == ("warning", f"what goes to {address} crosses the network unencrypted, texts and all")
        assert str(password) not in json.dumps(found)
        wrong = doctor(dsn.replace(str(password), PASSWORD))
        assert 'password authentication failed for user "pgvec"' in only(wrong, "database")[1]
    finally:
        server.stop()
        shutil.rmtree(base)


@pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed (Debian: apt install pgbouncer)")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_an_encrypted_connection_is_well_if_it_is_known_who_answers(
    bench: Bench, doctor: Doctor, reachable: Path
) -> None:
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    base = Path(tempfile.mkdtemp(dir=reachable))
    base.chmod(0o711)
    key, certificate = base / "key.pem", base / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=pooler"),
            *("-addext", f"subjectAltName=IP:{address}", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    for file in (key, certificate):
        file.chmod(0o644)
    tls = f"listen_addr = {address}\nclient_tls_sslmode = allow\n"
    tls += f"client_tls_key_file = {key}\nclient_tls_cert_file = {certificate}\n"
    with pooling(base / "pgbouncer", bench.dsn, pool_size=2, more=tls) as pooler:
        pooled = make_conninfo(pooler.dsn(bench.dsn), host=address)
        assert only(doctor(make_conninfo(pooled, sslmode="disable")), "tls")[0] == "warning"
        level, message, remedy = only(doctor(make_conninfo(pooled, sslmode="require")), "tls")
        assert (level, message) == ("note", "encrypted; who answers is not verified")
        assert "verify-full" in str(remedy)
        verified = make_conninfo(pooled, sslmode="verify-full", sslrootcert=str(certificate))
        assert only(doctor(verified), "tls") == ("ok", "encrypted", None)
    shutil.rmtree(base)


@pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed (Debian: apt install pgbouncer)")
def test_a_pooler_in_transaction_mode_is_found_and_listen_should_be_off(
    bench: Bench, doctor: Doctor, reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(doctor(bench.dsn), "pooler")[:2] == ("ok", "none stands between")
    with pooling(reachable / f"pgbouncer-{uuid.uuid4().hex[:8]}", bench.dsn, pool_size=2) as pooler:
        pooled = pooler.dsn(bench.dsn)
        level, message, remedy = only(doctor(pooled), "pooler")
        assert level == "warning"
        assert message.startswith("one in transaction mode stands between")
        assert "--no-listen" in str(remedy)
        monkeypatch.setenv("PGVEC_LISTEN", "false")
        assert only(doctor(pooled), "pooler") == ("ok", "one in transaction mode stands between; LISTEN is off", None)
        monkeypatch.delenv("PGVEC_LISTEN")
        monkeypatch.setenv("PGVEC_DIRECT_DSN", bench.dsn)
        found = doctor(pooled)
        assert (only(found, "pooler")[0], only(found, "direct_dsn")[0]) == ("ok", "ok")
        monkeypatch.setenv("PGVEC_DIRECT_DSN", pooled)
        assert only(doctor(pooled), "direct_dsn")[0] == "warning"


def test_a_direct_address_that_leads_elsewhere_is_an_error(
    bench: Bench, database: str, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.initialize(Database(database))
    monkeypatch.setenv("PGVEC_DIRECT_DSN", database)
    level, message, _ = only(doctor(bench.dsn), "direct_dsn")
    assert (level, message.endswith("is another database")) == ("error", True)
    monkeypatch.setenv("PGVEC_DIRECT_DSN", f"postgresql://me:{PASSWORD}@127.0.0.1:1/shop")
    found = doctor(bench.dsn)
    assert only(found, "direct_dsn")[0] == "error"
    shown = [finding["message"] for finding in found["setting"]]
    assert shown == ["direct_dsn = postgresql://me:***@127.0.0.1:1/shop (from PGVEC_DIRECT_DSN)"]


def test_a_clock_that_is_wrong_here_is_a_note(bench: Bench, doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 3_600)
    level, message, _ = only(doctor(bench.dsn), "clock")
    assert level == "note"
    assert re.fullmatch(r"this machine's is 3,600 s ahead of the database's, which alone counts", message)


# What the database is


def test_a_missing_schema_is_an_error_and_the_rest_is_looked_at_all_the_same(database: str, doctor: Doctor) -> None:
    found = doctor(database)
    assert only(found, "schema") == ("error", "there is no pgvec schema", "run: pgvec init")
    assert {"tls", "autovacuum", "rights", "timeouts"} <= found.keys()
    assert "tables" not in found


def test_an_outdated_schema_and_one_that_is_too_new_are_errors(bench: Bench, doctor: Doctor) -> None:
    bench.sql("UPDATE pgvec.alembic_version SET version_num = '0001'")
    level, message, remedy = only(doctor(bench.dsn), "schema")
    assert (level, remedy) == ("error", "run: pgvec init")
    assert message.startswith("the pgvec schema is at revision 0001")
    bench.upgrade_to("9999")
    assert only(doctor(bench.dsn), "schema")[2] == "upgrade pgvec-queue"
    bench.upgrade_to("9999", schema.HEAD)
    level, what, _ = only(doctor(bench.dsn), "schema")
    newer = f"pgvec at revision 9999; newer than this program's {schema.HEAD}, which works with it"
    assert (level, what) == ("ok", newer)


def test_a_missing_extension_is_an_error(database: str, doctor: Doctor) -> None:
    level, message, remedy = only(doctor(make_conninfo(database, dbname="template1")), "pgvector")
    assert (level, message) == ("error", "the database has no pgvector")
    assert "pgvec init" in str(remedy)


def test_an_extension_that_is_older_than_what_is_installed_is_a_note(bench: Bench, doctor: Doctor) -> None:
    newest = bench.value("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
    bench.sql("UPDATE pg_extension SET extversion = '0.7.0' WHERE extname = 'vector'")
    assert levels(doctor(bench.dsn), "pgvector") == (["ok"] if newest == "0.7.0" else ["ok", "note"])


# Its settings


def test_settings_that_slow_the_work_or_risk_it_are_named(own: embedded.Server, doctor: Doctor) -> None:
    found = doctor(own.dsn)
    level, message, remedy = only(found, "autovacuum")
    assert (level, message.startswith("autovacuum is off")) == ("warning", True)
    assert "ALTER SYSTEM SET autovacuum = on" in str(remedy)
    assert only(found, "shared_buffers")[:2] == (
        "note",
        "16 MB; searches by an index that does not fit into it are slow",
    )
    assert only(found, "wal")[1].startswith("fsync off")
    assert only(found, "connections")[0] == "ok"


def test_a_table_of_ours_that_is_not_vacuumed_is_named(bench: Bench, doctor: Doctor) -> None:
    bench.sql("ALTER TABLE pgvec.jobs SET (autovacuum_enabled = off)")
    level, message, remedy = only(doctor(bench.dsn), "autovacuum")
    assert (level, message) == ("warning", "it is switched off for pgvec.jobs")
    bench.sql(str(remedy))
    assert only(doctor(bench.dsn), "autovacuum")[0] == "ok"


def test_too_few_connections_for_another_worker_are_an_error(own: embedded.Server, doctor: Doctor) -> None:
    with psycopg.connect(own.dsn) as connection:
        row = connection.execute("SELECT 12 - current_setting('superuser_reserved_connections')::int").fetchone()
    assert row is not None
    (most,) = row
    # Beside the doctor's own, all but what one worker takes.
    held = [psycopg.connect(own.dsn) for _ in range(most - 4)]
    try:
        # Connections that were closed a moment ago may still be counted.
        wait_until(lambda: only(doctor(own.dsn), "connections")[0] == "ok")
        held.append(psycopg.connect(own.dsn))
        level, message, remedy = only(doctor(own.dsn), "connections")
        assert level == "error"
        assert re.match(rf"\d of {most} in use \(max_connections\); a worker takes up to 4: there is no room", message)
        assert "--pool-size" in str(remedy)
    finally:
        for connection in held:
            connection.close()


def test_fewer_connections_than_all_workers_could_have_are_a_warning(own: embedded.Server, doctor: Doctor) -> None:
    with psycopg.connect(own.dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO pgvec.workers (host, pid, version, lease)"
            " SELECT 'elsewhere', 1, '', interval '1 hour' FROM generate_series(1, 5)"
        )
        try:
            level, message, _ = only(doctor(own.dsn), "connections")
            assert (level, message.endswith("5 workers and one more do not all fit")) == ("warning", True)
        finally:
            connection.execute("DELETE FROM pgvec.workers")


def test_the_roles_own_limit_counts_where_it_is_lower(
    bench: Bench, role: str, doctor: Doctor, administration: psycopg.Connection[Any]
) -> None:
    let_work(bench, role)
    administration.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT 3").format(sql.Identifier(role)))
    level, message, _ = only(doctor(as_role(bench.dsn, role)), "connections")
    assert (level, "of 3 in use (the role's CONNECTION LIMIT)" in message) == ("error", True)


def test_timeouts_of_the_role_that_would_end_our_work_are_named_with_where_they_come_from(
    bench: Bench, role: str, doctor: Doctor
) -> None:
    let_work(bench, role)
    as_it = as_role(bench.dsn, role)
    assert levels(doctor(as_it), "timeouts") == ["ok"]
    bench.sql(f"ALTER ROLE {role} SET statement_timeout = '90s'")
    bench.sql(f"ALTER DATABASE {bench.connection.info.dbname} SET idle_session_timeout = '5s'")
    found = {finding["message"].split()[0]: finding for finding in doctor(as_it)["timeouts"]}
    assert found.keys() == {"statement_timeout", "idle_session_timeout"}
    assert found["statement_timeout"]["message"].startswith(f"statement_timeout is 90 s (by ALTER ROLE {role})")
    assert found["statement_timeout"]["remedy"] == f"ALTER ROLE {role} RESET statement_timeout"
    assert found["idle_session_timeout"]["message"].startswith("idle_session_timeout is 5 s (by ALTER DATABASE test_")
    for finding in found.values():
        bench.sql(finding["remedy"])
    assert levels(doctor(as_it), "timeouts") == ["ok"]


def test_a_role_whose_transactions_are_read_only_is_an_error(bench: Bench, role: str, doctor: Doctor) -> None:
    let_work(bench, role)
    bench.sql(f"ALTER ROLE {role} SET default_transaction_read_only = on")
    level, message, _ = only(doctor(as_role(bench.dsn, role)), "database")
    assert (level, message.endswith(f"whose transactions are read-only for {role}")) == ("error", True)


def test_an_index_that_would_not_be_built_in_memory_is_a_note(bench: Bench, doctor: Doctor) -> None:
    fill(bench)
    assert only(doctor(bench.dsn), "index memory")[0] == "ok"
    bench.sql("UPDATE pgvec.vectorizers SET rows_planned = 100000000, dimensions = 384")
    level, message, remedy = only(doctor(bench.dsn), "index memory")
    assert level == "note"
    assert message.startswith("an HNSW index would take about 208 GB to build")
    assert str(remedy).startswith("SET maintenance_work_mem = '")


def test_of_partitions_one_is_built_at_a_time_and_all_are_locked_by_a_search(bench: Bench, doctor: Doctor) -> None:
    bench.partitions = 40
    fill(bench)
    found = doctor(bench.dsn)
    level, message, remedy = only(found, "locks")
    assert level == "note"
    # Each with its unique index, and so the table itself.
    assert message.startswith(
        "a search in its 40 partitions locks 82 tables and indexes; max_locks_per_transaction is 64"
    )
    assert remedy == "ALTER SYSTEM SET max_locks_per_transaction = 82, then restart the server"
    bench.sql("UPDATE pgvec.vectorizers SET rows_planned = 100000000, dimensions = 384")
    _, message, _ = only(doctor(bench.dsn), "index memory")
    gigabytes = float(message.partition("about ")[2].partition(" GB")[0])
    assert 208 / 40 <= gigabytes < 208 / 10, message


# Rights


def test_what_a_role_lacks_is_named_step_by_step(bench: Bench, role: str, doctor: Doctor) -> None:
    fill(bench)
    dsn = as_role(bench.dsn, role)
    found = doctor(dsn)
    assert only(found, "rights") == (
        "error",
        f"{role} may not use the schema pgvec",
        f"GRANT USAGE ON SCHEMA pgvec TO {role}",
    )
    assert levels(found, "schema") == ["note"]
    bench.sql(f"GRANT USAGE ON SCHEMA pgvec TO {role}")
    bench.sql(f"GRANT SELECT ON {OURS} TO {role}")
    level, message, _ = only(doctor(dsn), "rights")
    assert (level, message.startswith(f"{role} lacks INSERT, UPDATE, DELETE on pgvec.")) == ("error", True)
    let_work(bench, role)
    found = doctor(dsn)
    assert levels(found, "rights") == ["ok", "note"]
    wrong = {finding["message"] for finding in found["tables"] if finding["level"] == "error"}
    assert len(wrong) == 3
    assert {
        f"{role} may not read xmin, id, body of public.docs",
        f"{role} lacks SELECT, INSERT, DELETE on public.docs_vectors",
    } < wrong
    bench.sql(
        f"GRANT SELECT (id, body, xmin) ON docs TO {role}; GRANT SELECT, INSERT, DELETE ON docs_vectors TO {role}"
    )
    found = doctor(dsn)
    assert only(found, "tables")[:2] == ("ok", "public.docs can be read, public.docs_vectors written")


def test_a_schema_that_the_role_may_not_make_is_an_error(
    database: str, administration: psycopg.Connection[Any], doctor: Doctor
) -> None:
    name = f"plain_{uuid.uuid4().hex[:12]}"
    administration.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
    try:
        level, message, remedy = only(doctor(as_role(database, name)), "rights")
        assert (level, message) == ("error", f"{name} may not make the schema pgvec")
        assert "pgvec init --sql" in str(remedy)
    finally:
        administration.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_a_destination_in_the_source_wants_its_column_to_be_updated(bench: Bench, role: str, doctor: Doctor) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text, embedding vector(8))")
    bench.enqueue("docs", "body", into_column="embedding")
    let_work(bench, role)
    bench.sql(f"GRANT SELECT ON docs TO {role}")
    found = doctor(as_role(bench.dsn, role))
    assert only(found, "tables")[:2] == ("error", f"{role} may not update embedding, embedding_hash of public.docs")
    bench.sql(f"GRANT UPDATE (embedding, embedding_hash) ON docs TO {role}")
    assert only(doctor(as_role(bench.dsn, role)), "tables")[0] == "ok"


def test_triggers_that_the_role_could_not_renew_and_rows_that_it_does_not_see_are_told(
    bench: Bench, role: str, doctor: Doctor
) -> None:
    fill(bench, sync=True)
    let_work(bench, role)
    bench.sql(f"GRANT SELECT ON docs TO {role}; GRANT SELECT, INSERT, DELETE ON docs_vectors TO {role}")
    found = doctor(as_role(bench.dsn, role))
    assert levels(found, "tables") == ["ok", "warning"]
    assert found["tables"][1]["message"].startswith(f"{role} may make no trigger on public.docs")
    bench.sql(f"GRANT TRIGGER ON docs TO {role}; ALTER TABLE docs ENABLE ROW LEVEL SECURITY")
    found = doctor(as_role(bench.dsn, role))
    assert levels(found, "tables") == ["error"]
    assert found["tables"][0]["message"].startswith(f"row-level security hides rows of public.docs from {role}")


def test_columns_that_are_gone_are_an_error(bench: Bench, doctor: Doctor) -> None:
    fill(bench)
    bench.sql("ALTER TABLE docs RENAME COLUMN body TO content")
    level, message, _ = only(doctor(bench.dsn), "tables")
    assert (level, message) == ("error", "public.docs has no column body any more")


def test_a_limit_on_standbys_that_cannot_be_seen_is_a_warning(
    bench: Bench, role: str, doctor: Doctor, administration: psycopg.Connection[Any]
) -> None:
    fill(bench)
    let_work(bench, role)
    dsn = as_role(bench.dsn, role)
    assert "standbys" not in doctor(dsn)
    bench.sql("UPDATE pgvec.vectorizers SET replication_lag_limit = '5 s'")
    level, message, remedy = only(doctor(dsn), "standbys")
    assert (level, "limit on their lag of docs does not hold" in message) == ("warning", True)
    assert remedy == f"GRANT pg_monitor TO {role}"
    administration.execute(sql.SQL("GRANT pg_monitor TO {}").format(sql.Identifier(role)))
    assert only(doctor(dsn), "standbys")[0] == "ok"


def test_what_a_role_may_not_look_at_is_a_note(bench: Bench, role: str, doctor: Doctor) -> None:
    let_work(bench, role)
    bench.sql(
        "REVOKE EXECUTE ON FUNCTION pg_wal_lsn_diff FROM PUBLIC; REVOKE SELECT ON pg_replication_slots FROM PUBLIC"
    )
    found = doctor(as_role(bench.dsn, role))
    level, message, _ = only(found, "replication slots")
    assert (level, message.startswith("it could not be looked at: permission denied")) == ("note", True)
    assert found["transactions"][-1]["level"] == "note"
    assert "sessions of other roles may not be looked at" in found["transactions"][-1]["message"]


# What holds things up


def test_a_transaction_that_has_been_open_for_long_is_a_warning(
    bench: Bench, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(bench.dsn, application_name="somebody's report") as other:
        other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        other.execute("SELECT 1")
        assert levels(doctor(bench.dsn), "transactions") == ["ok"]
        monkeypatch.setattr("pgvec_queue.doctor.upkeep.LONG_SECONDS", 0.0)
        (finding,) = [one for one in doctor(bench.dsn)["transactions"] if "somebody's report" in one["message"]]
        assert finding["level"] == "warning"
        assert finding["remedy"] == f"end it: SELECT pg_terminate_backend({other.info.backend_pid})"


def test_a_replication_slot_that_nobody_reads_from_is_a_warning(own: embedded.Server, doctor: Doctor) -> None:
    assert only(doctor(own.dsn), "replication slots")[0] == "ok"
    with psycopg.connect(own.uri(user="postgres"), autocommit=True) as administration:
        administration.execute("SELECT pg_create_physical_replication_slot('left_behind', true)")
        level, message, remedy = only(doctor(own.dsn), "replication slots")
        assert (level, message.startswith("nobody reads from left_behind, which keeps ")) == ("warning", True)
        administration.execute(str(remedy).rpartition("or ")[2].encode())
    assert only(doctor(own.dsn), "replication slots")[0] == "ok"


def test_a_dead_worker_whose_jobs_nobody_took_over_is_a_warning(bench: Bench, doctor: Doctor) -> None:
    fill(bench)
    dead = bench.register(lease=60)
    bench.claim(dead)
    assert only(doctor(bench.dsn), "workers")[:2] == ("ok", "1 at work")
    bench.sql("UPDATE pgvec.workers SET beat_at = beat_at - interval '1 hour'")
    warned, noted = doctor(bench.dsn)["workers"]
    assert (warned["level"], noted["level"]) == ("warning", "note")
    assert re.search(
        rf"worker {dead.worker} \(.*\) has not been heard of for 3,60\d s and holds 1 jobs", warned["message"]
    )


def test_a_blocked_vectorizer_and_a_plan_that_was_stopped_are_warnings(bench: Bench, doctor: Doctor) -> None:
    fill(bench)
    bench.sql("UPDATE pgvec.vectorizers SET blocked_reason = 'no such model'")
    assert only(doctor(bench.dsn), "blocked") == (
        "warning",
        "no such model",
        "mend that, then run: pgvec resume docs",
    )
    bench.sql(
        "UPDATE pgvec.vectorizers SET blocked_reason = NULL, plan_complete = false,"
        " plan_beat_at = clock_timestamp() - interval '1 hour'"
    )
    assert only(doctor(bench.dsn), "plan")[0] == "warning"


def test_a_partition_that_is_not_followed_is_an_error(bench: Bench, doctor: Doctor) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    bench.enqueue("docs", "body", sync=True)
    bench.sql("CREATE TABLE docs_new PARTITION OF docs FOR VALUES FROM (0) TO (100)")
    level, message, remedy = only(doctor(bench.dsn), "sync")
    assert (level, message) == ("error", "docs does not follow what is written straight into public.docs_new")
    assert remedy == "run: pgvec enqueue public.docs --name docs"


def test_a_destination_that_will_not_fit_is_an_error(bench: Bench, doctor: Doctor) -> None:
    fill(bench)
    assert only(doctor(bench.dsn), "room")[0] == "ok"
    bench.sql("UPDATE pgvec.vectorizers SET rows_planned = 1000000000000")
    level, message, _ = only(doctor(bench.dsn), "room")
    assert (level, "are still to be written" in message) == ("error", True)


def test_room_that_cannot_be_known_is_a_note_with_what_is_needed(bench: Bench, role: str, doctor: Doctor) -> None:
    fill(bench)
    let_work(bench, role)
    bench.sql("UPDATE pgvec.vectorizers SET rows_planned = 1000000")
    level, message, _ = only(doctor(as_role(bench.dsn, role)), "room")
    assert (level, bool(re.match(r"about \d+ MB are still to be written", message))) == ("note", True)


# Models and endpoints


class Endpoint:
    """Answers every request with a status; embeds one text, and remembers what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.asked: list[tuple[str, str | None]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None: ...

            def do_GET(self) -> None:
                endpoint.asked.append((self.path, self.headers["authorization"]))
                self._answer(b"{}")

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                endpoint.asked.append((self.path, self.headers["authorization"]))
                self._answer(json.dumps({"data": [{"index": 0, "embedding": [0.5] * 4}]}).encode())

            def _answer(self, body: bytes) -> None:
                self.send_response(endpoint.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.thread.join()


@pytest.fixture
def remote(bench: Bench, endpoint: Endpoint, tmp_path: Path) -> Callable[..., None]:
    """Defines a vectorizer whose model is at the endpoint."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))

    def define(url: str = endpoint.url, dimensions: int = 4) -> None:
        fill(
            bench,
            model="fake",
            embedder="openai",
            endpoint=url,
            dimensions=dimensions,
            tokenizer=str(tmp_path / "tokenizer.json"),
        )

    return define


def test_an_endpoint_is_asked_with_the_key_and_embeds_only_where_that_is_asked_for(
    bench: Bench, doctor: Doctor, endpoint: Endpoint, remote: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_ENDPOINT_KEY", KEY)
    remote()
    host = endpoint.url.split("/")[2]
    found = doctor(bench.dsn)
    assert only(found, "endpoint") == ("ok", f"{host} answers", None)
    assert endpoint.asked == [("/v1/models", f"Bearer {KEY}")]
    assert "probe" not in found
    found = doctor(bench.dsn, "--probe-endpoint")
    assert only(found, "probe")[:2] == ("ok", "fake made a vector of 4 dimensions")
    assert endpoint.asked[-1] == ("/v1/embeddings", f"Bearer {KEY}")
    for status, level in ((404, "ok"), (401, "error"), (503, "warning")):
        endpoint.status = status
        found = doctor(bench.dsn)
        assert only(found, "endpoint")[0] == level
        assert KEY not in json.dumps(found)


def test_an_endpoint_that_gives_other_vectors_is_an_error_of_the_probe(
    bench: Bench, doctor: Doctor, remote: Callable[..., None]
) -> None:
    remote(dimensions=5)
    level, message, _ = only(doctor(bench.dsn, "--probe-endpoint"), "probe")
    assert (level, "gives 4 dimensions, not 5" in message) == ("error", True)


def test_an_endpoint_that_is_not_there_is_an_error(bench: Bench, doctor: Doctor, remote: Callable[..., None]) -> None:
    remote("http://127.0.0.1:1/v1")
    level, message, _ = only(doctor(bench.dsn), "endpoint")
    assert (level, message.startswith("endpoint 127.0.0.1:1 cannot be reached")) == ("error", True)


@pytest.mark.model
def test_the_device_is_looked_at_where_it_is_asked_for_or_needed(bench: Bench, doctor: Doctor) -> None:
    assert "device" not in doctor(bench.dsn)
    level, message, _ = only(doctor(bench.dsn, "--device", "cpu"), "device")
    assert (level, message.startswith("cpu, ")) == ("ok", True)
    level, message, remedy = only(doctor(bench.dsn, "--device", "cuda:99"), "device")
    assert (level, "cuda:99" in message, remedy) == ("error", True, "choose a device that is there: --device auto")
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.enqueue("docs", "body", model=None)
    found = doctor(bench.dsn)
    assert found["device"][0]["level"] == "ok"
    level, message, _ = only(found, "model")
    assert level == "ok"
    assert message.endswith("from the extra demo, weights 53aa51172d14… as expected")


@pytest.mark.model
def test_a_model_in_the_cache_is_named_with_its_revision_and_hash(bench: Bench, tmp_path: Path) -> None:
    fill(bench, model="somebody/something", dimensions=8, embedder="sentence-transformers")
    commit, digest = "1" * 40, "ab" * 32
    home = tmp_path / "hub"
    folder = home / "hub" / "models--somebody--something"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)

    def looked() -> dict[str, Any]:
        ran = run_pgvec("doctor", "--json", dsn=bench.dsn, env={"HF_HOME": str(home)})
        (finding,) = [one for one in map(json.loads, ran.out.splitlines()) if one["check"] == "model"]
        assert ran.code == int(finding["level"] == "error")
        return dict(finding)

    (snapshot / "config.json").write_text("{}")
    assert looked()["message"] == (
        f"somebody/something, revision {commit}: its description is here; the first job fetches its weights"
    )
    (folder / "blobs").mkdir()
    (folder / "blobs" / digest).write_bytes(b"")
    (snapshot / "model.safetensors").symlink_to(Path("..", "..", "blobs", digest))
    found = looked()
    assert found["level"] == "ok"
    assert found["message"] == f"somebody/something, revision {commit}, weights abababababab…"
    shutil.rmtree(home)
    found = looked()
    assert found["level"] == "error"
    assert "is not in this machine's cache, and HF_HUB_OFFLINE forbids fetching it" in found["message"]
