"""TLS with a real chain: who is let in, who is refused with which words, and that nothing secret is said.

The embedded server has no OpenSSL: pgbouncer speaks TLS in front of it, as it does in front of many servers.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgvec_queue import schema
from pgvec_queue.database import Database
from pgvec_queue.errors import DatabaseError
from tests import certificates, pgbouncer
from tests.certificates import NAME, Authority, Pair
from tests.commandline import CommandLine, assert_one_line
from tests.pgbouncer import pooling

pytestmark = [
    pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="pgbouncer is not installed (Debian: apt install pgbouncer)"),
    pytest.mark.skipif(certificates.PROGRAM is None, reason="openssl is not installed (Debian: apt install openssl)"),
]

PASSWORD = "s3cret-Pa55"


@dataclass(frozen=True)
class Chain:
    """What a company's authority has issued, and another authority that nobody here trusts."""

    ours: Authority
    theirs: Authority
    server: Pair
    expired: Pair
    client: Pair


@pytest.fixture(scope="module")
def chain(reachable: Path) -> Chain:
    folder = reachable / "certificates"
    folder.mkdir()
    ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
    made = Chain(ours, theirs, ours.server(), ours.expired_server(), ours.client("postgres"))
    for pair in (made.server, made.expired):
        # The pooler's own account reads it.
        pair.key.chmod(0o644)
    return made


@contextmanager
def _listening(
    database: str, reachable: Path, chain: Chain, server: Pair, *, clients: str = "require"
) -> Iterator[str]:
    """A pooler that speaks TLS and nothing else at a port of this machine; yields what leads there."""
    with socket.socket() as free:
        free.bind(("0.0.0.0", 0))
        port = free.getsockname()[1]
    more = (
        f"listen_addr = 0.0.0.0\nclient_tls_sslmode = {clients}\nclient_tls_key_file = {server.key}\n"
        f"client_tls_cert_file = {server.chain}\nclient_tls_ca_file = {chain.ours.root.certificate}\n"
    )
    if clients == "verify-full":
        more += "auth_type = cert\nauth_file = " + str(reachable / "users.txt") + "\n"
        (reachable / "users.txt").write_text('"postgres" ""\n')
    with pooling(reachable / f"pgbouncer-{port}", database, pool_size=4, more=more, port=str(port)):
        given = conninfo_to_dict(database)
        yield make_conninfo(
            host=NAME, hostaddr="127.0.0.1", port=port, user="postgres", dbname=given["dbname"], password=PASSWORD
        )


def _verified(dsn: str, chain: Chain, **more: str) -> str:
    return make_conninfo(dsn, sslmode="verify-full", sslrootcert=str(chain.ours.root.certificate), **more)


def _own_address() -> str | None:
    """An address of this machine that is not the loopback's; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))
        except OSError:
            return None
        found: str = asked.getsockname()[0]
    return None if found.startswith("127.") else found


def test_everything_works_through_a_verified_server(
    bench_dsn: str, reachable: Path, chain: Chain, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _listening(bench_dsn, reachable, chain, chain.server) as dsn:
        monkeypatch.setenv("PGVEC_DSN", _verified(dsn, chain))
        for arguments in (
            ("enqueue", "docs", "--text", "body", "--model", "hashing-8", "--no-chunking"),
            ("work", "--drain", "--no-listen"),
            ("verify", "docs"),
            ("status", "docs"),
        ):
            ran = cli(*arguments)
            assert ran.code == 0, ran
            assert PASSWORD not in ran.out + ran.err
        with Database(_verified(dsn, chain)).connect("test") as connection:
            assert connection.pgconn.ssl_in_use


def test_doctor_tells_whether_the_server_is_verified(
    bench_dsn: str, reachable: Path, chain: Chain, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = _own_address()
    if address is None:
        pytest.skip("this machine has no address but the loopback's, over which nobody needs TLS")
    with _listening(bench_dsn, reachable, chain, chain.server) as dsn:
        for more, level in (
            ({"sslmode": "verify-full", "sslrootcert": str(chain.ours.root.certificate)}, "ok"),
            ({"sslmode": "require"}, "note"),
        ):
            monkeypatch.setenv("PGVEC_DSN", make_conninfo(dsn, hostaddr=address, **more))
            ran = cli("doctor", "--json")
            [found] = [one for line in ran.out.splitlines() if (one := json.loads(line))["check"] == "tls"]
            assert found["level"] == level, found
            assert PASSWORD not in ran.out + ran.err


def test_a_server_that_is_not_the_one_meant_is_refused_in_one_line(
    bench_dsn: str, reachable: Path, chain: Chain, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(dsn: str, **more: str) -> str:
        monkeypatch.setenv("PGVEC_DSN", make_conninfo(dsn, **more))
        ran = cli("status")
        assert ran.code == 1
        assert_one_line(ran)
        assert str(reachable) not in ran.err
        return ran.err

    with _listening(bench_dsn, reachable, chain, chain.server) as dsn:
        told = refused(_verified(dsn, chain), host="other.example.test")
        assert f'server certificate for "{NAME}" does not match host name "other.example.test"; name the server' in told
        told = refused(_verified(dsn, chain), sslrootcert=str(chain.theirs.root.certificate))
        assert "certificate verify failed; it was not signed by what sslrootcert names, or has expired" in told
        told = refused(_verified(dsn, chain), sslrootcert=str(reachable / "nowhere.crt"))
        assert 'root certificate file "(sslrootcert)" does not exist' in told
        # Whoever does not look is let through: that is what verify-full is for.
        with Database(make_conninfo(dsn, sslmode="require")).connect("test") as connection:
            assert connection.pgconn.ssl_in_use
        with pytest.raises(DatabaseError, match="SSL required"):
            Database(make_conninfo(dsn, sslmode="disable")).connect("test")
    with _listening(bench_dsn, reachable, chain, chain.expired) as dsn:
        told = refused(_verified(dsn, chain))
        assert "certificate verify failed; it was not signed by what sslrootcert names, or has expired" in told


def test_a_client_is_known_by_its_certificate(
    bench_dsn: str, reachable: Path, chain: Chain, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(dsn: str, pair: Pair | None, **more: str) -> tuple[int, str]:
        known = {} if pair is None else {"sslcert": str(pair.chain), "sslkey": str(pair.key)}
        monkeypatch.setenv("PGVEC_DSN", _verified(dsn, chain, **{**known, **more}))
        ran = cli("status")
        assert str(reachable) not in ran.err
        assert PASSWORD not in ran.err
        if ran.code:
            assert_one_line(ran)
        return ran.code, ran.err

    with _listening(bench_dsn, reachable, chain, chain.server, clients="verify-full") as dsn:
        assert run(dsn, chain.client)[0] == 0
        code, told = run(dsn, None)
        assert (code, "the server wants to know who asks: give sslcert and sslkey" in told) == (1, True), told
        code, told = run(dsn, chain.theirs.client("postgres"))
        assert (code, "the server does not know who signed our certificate (sslcert)" in told) == (1, True), told
        # A certificate for another role.
        code, told = run(dsn, chain.ours.client("somebody"))
        assert code == 1
        code, told = run(dsn, chain.client, sslkey=str(reachable / "nowhere.key"))
        assert (code, '"(sslkey)"' in told) == (1, True), told


@pytest.fixture
def bench_dsn(database: str, connect: object) -> str:
    """A database with our schema and a table."""
    schema.initialize(Database(database))
    with Database(database).connect("test") as connection:
        connection.execute("CREATE TABLE docs (id int PRIMARY KEY, body text)")
        connection.execute("INSERT INTO docs SELECT i, 'text ' || i FROM generate_series(1, 10) i")
    return database
