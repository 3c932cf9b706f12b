"""Who is let in: tokens and roles, hosts, origins, proxies, rates."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable

import httpx2
import psycopg
import pytest
from fastapi import Depends

from pgvec_queue import api_tokens
from pgvec_queue.api_tokens import ROLES, Role
from pgvec_queue.database import Database
from pgvec_queue.gateway.app import Gateway, create_app
from pgvec_queue.gateway.auth import LIFE, Access, requires
from pgvec_queue.gateway.limits import Limits
from tests.gateway.conftest import Serve
from tests.gateway.serving import Served
from tests.support import Bench
from tests.waiting import wait_until

ANY = "/metrics"
"""An endpoint that asks for the role read."""


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def with_roles(bench: Bench, limits: Limits | None = None, access: Access | None = None) -> Gateway:
    """A gateway with an endpoint for each role."""
    app = create_app(Database(bench.dsn), limits, access)
    for role in ROLES:

        @app.api_route(f"/api/v1/as-{role}", methods=["GET", "POST"], dependencies=[Depends(requires(role))])
        async def done() -> dict[str, bool]:
            return {"done": True}

    return app


@pytest.fixture
def token(bench: Bench) -> Callable[..., str]:
    def create(name: str = "somebody", role: Role = "read", days: float | None = None) -> str:
        return api_tokens.create(bench.connection, name, role, days=days)

    return create


Token = Callable[..., str]


# Tokens


def test_no_token_is_asked_for_on_this_machine_until_there_is_one(gateway: Served, token: Token) -> None:
    assert gateway.get(ANY).status_code == 200
    mine = token()
    wait_until(lambda: gateway.get(ANY).status_code == 401, LIFE + 5, what="tokens being asked for")
    assert gateway.get(ANY, headers=bearer(mine)).status_code == 200


def test_a_gateway_that_has_asked_for_tokens_does_not_fall_open_when_the_last_one_ends(
    bench: Bench, serve: Serve, token: Token
) -> None:
    token()
    api_tokens.revoke(bench.connection, "somebody")
    assert serve().get(ANY).status_code == 401


def test_another_address_asks_for_tokens_though_there_is_none(serve: Serve) -> None:
    refused = serve(access=Access(loopback=False)).get(ANY)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == 'Bearer realm="pgvec"'
    assert refused.json()["detail"].startswith("a token is needed")


def test_nobody_is_asked_where_that_was_said_in_so_many_words(serve: Serve, token: Token) -> None:
    token()
    gateway = serve(access=Access(loopback=False, allow_unauthenticated=True))
    assert gateway.get(ANY).status_code == 200
    assert gateway.get(ANY, headers=bearer("pgvec_api_" + "x" * 43)).status_code == 401


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_what_those_below_it_may_and_no_more(bench: Bench, serve: Serve, token: Token, role: Role) -> None:
    mine = bearer(token(role=role))
    gateway = serve(app=with_roles(bench))
    for asked in ROLES:
        answer = gateway.get(f"/api/v1/as-{asked}", headers=mine)
        allowed = ROLES.index(role) >= ROLES.index(asked)
        assert answer.status_code == (200 if allowed else 403), (role, asked)
        if not allowed:
            assert answer.json()["detail"] == f"this needs a token of the role {asked}; yours is of {role}"


OF_READERS = {("post", "/api/v1/search")}
OF_WRITERS = {
    ("post", "/api/v1/vectorize"),
    ("delete", "/api/v1/collections/{name}/texts/{text_id}"),
    ("delete", "/api/v1/tasks/{task_id}"),
}


def test_every_endpoint_asks_for_the_role_that_it_is_for(serve: Serve, token: Token) -> None:
    """Readers look and search, writers add and delete texts, and all else is for administrators."""
    gateway = serve()
    tokens = {role: bearer(token(role, role)) for role in ROLES}
    asked: Counter[str] = Counter()
    for path, operations in gateway.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            if not operation.get("security"):
                continue
            place = (method, path)
            least = "read" if method == "get" or place in OF_READERS else "write" if place in OF_WRITERS else "admin"
            asked[least] += 1
            for role in ROLES:
                with gateway.client.stream(method, re.sub(r"{\w+}", "x", path), headers=tokens[role]) as answer:
                    assert (answer.status_code == 403) is (ROLES.index(role) < ROLES.index(least)), (place, role)
                    assert answer.status_code != 401
    assert (asked["write"], asked["admin"] > 5, asked["read"] > 10) == (len(OF_WRITERS), True, True)


@pytest.mark.parametrize(
    "header",
    [
        "Bearer pgvec_api_" + "A" * 43,
        "Bearer pgvec_api_short",
        "Bearer",
        "Basic cHd2ZWM6cHd2ZWM=",
        "pgvec_api_" + "A" * 43,
        "Bearer \xff\xfe",
        "",
    ],
)
def test_what_is_no_token_comes_in_nowhere(serve: Serve, token: Token, header: str) -> None:
    token()
    refused = serve().get(ANY, headers={"authorization": header.encode("latin-1")})
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Bearer ")
    assert "A" * 20 not in refused.text


def test_a_token_ends_when_it_expires(serve: Serve, token: Token) -> None:
    mine = bearer(token(days=1.0 / 86_400))
    other = bearer(token("another"))
    gateway = serve()
    wait_until(lambda: gateway.get(ANY, headers=mine).status_code == 401, 10, what="the end of the token")
    assert gateway.get(ANY, headers=other).status_code == 200


def test_a_revoked_token_is_refused_within_seconds(bench: Bench, serve: Serve, token: Token) -> None:
    mine = bearer(token())
    gateway = serve()
    assert gateway.get(ANY, headers=mine).status_code == 200
    api_tokens.revoke(bench.connection, "somebody")
    wait_until(lambda: gateway.get(ANY, headers=mine).status_code == 401, LIFE + 3, what="the revocation")


def test_only_the_digest_is_in_the_database(bench: Bench, token: Token) -> None:
    mine = token()
    (row,) = bench.sql("SELECT t::text, length(digest) FROM pgvec.api_tokens t")
    assert row[1] == 32
    assert mine not in row[0]
    assert mine.removeprefix("pgvec_api_") not in row[0]


def test_the_last_use_is_written_to_the_minute_and_not_with_each_request(
    bench: Bench, serve: Serve, token: Token
) -> None:
    mine = bearer(token())
    gateway = serve()
    assert gateway.get("/ready").status_code == 200
    for _ in range(20):
        assert gateway.get(ANY, headers=mine).status_code == 200
    used = "SELECT last_used_at FROM pgvec.api_tokens WHERE last_used_at = date_trunc('minute', last_used_at)"
    wait_until(lambda: bench.sql(used), what="the use")
    before = bench.value("SELECT xmin::text FROM pgvec.api_tokens")
    bench.sql("UPDATE pgvec.api_tokens SET last_used_at = date_trunc('minute', clock_timestamp())")
    after = bench.value("SELECT xmin::text FROM pgvec.api_tokens")
    assert before != after
    for _ in range(20):
        gateway.get(ANY, headers=mine)
    # One use in a minute is enough; only a minute that has just begun would be written again.
    assert bench.value("SELECT count(*) FROM pgvec.api_tokens WHERE last_used_at <= clock_timestamp()") == 1


def test_a_thousand_requests_look_at_the_tokens_a_few_times(bench: Bench, serve: Serve, token: Token) -> None:
    mine = bearer(token(role="read"))
    gateway = serve(app=with_roles(bench))
    statuses: list[int] = []

    def ask() -> None:
        with httpx2.Client(base_url=gateway.url, trust_env=False) as client:
            statuses.extend(client.get("/api/v1/as-read", headers=mine).status_code for _ in range(40))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 320
    bench.sql("SELECT pg_stat_force_next_flush()")
    scans = bench.value("SELECT coalesce(seq_scan, 0) FROM pg_stat_user_tables WHERE relname = 'api_tokens'")
    assert scans < 60


def test_too_many_tokens_are_refused(bench: Bench) -> None:
    bench.sql(
        "INSERT INTO pgvec.api_tokens (name, role, digest)"
        " SELECT 'n' || i, 'read', sha256(i::text::bytea) FROM generate_series(1, %s) i",
        api_tokens.MOST,
    )
    with pytest.raises(Exception, match="revoke those that nobody needs"):
        api_tokens.create(bench.connection, "one more", "read")


def test_without_the_table_nobody_comes_in(bench: Bench, serve: Serve) -> None:
    gateway = serve()
    bench.sql("ALTER TABLE pgvec.api_tokens RENAME TO hidden")
    refused = gateway.get(ANY)
    assert refused.status_code == 503
    assert "pgvec init" in refused.json()["detail"]
    assert "api_tokens" not in refused.text


# Hosts, proxies, origins


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:99", "[::1]:8000", "LOCALHOST.", "me.test"])
def test_names_of_this_machine_are_taken(serve: Serve, host: str) -> None:
    gateway = serve(access=Access(hosts=Access().hosts | {"me.test"}))
    assert gateway.get(ANY, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "[::2]"])
def test_another_name_is_refused_where_no_token_is_asked_for(gateway: Served, host: str) -> None:
    for path in (ANY, "/docs", "/dashboard"):
        refused = gateway.get(path, headers={"host": host})
        assert refused.status_code == 421, path
        assert "evil" not in refused.text


def test_a_token_makes_any_name_good(serve: Serve, token: Token) -> None:
    mine = bearer(token())
    assert serve().get(ANY, headers={"host": "pgvec.example", **mine}).status_code == 200


def test_an_open_gateway_takes_its_addresses_and_the_names_it_was_given(serve: Serve) -> None:
    gateway = serve(access=Access(loopback=False, allow_unauthenticated=True, hosts=Access().hosts | {"pgvec.example"}))
    for host in ("192.0.2.7:8000", "[2001:db8::7]", "pgvec.example"):
        assert gateway.get(ANY, headers={"host": host}).status_code == 200
    assert gateway.get(ANY, headers={"host": "evil.example"}).status_code == 421


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip", "via"])
def test_a_proxy_lets_nobody_in_without_a_token(serve: Serve, token: Token, header: str) -> None:
    gateway = serve()
    refused = gateway.get(ANY, headers={header: "203.0.113.9"})
    assert refused.status_code == 403
    assert "pgvec api-token create" in refused.json()["detail"]
    mine = bearer(token())
    proxied = {header: "203.0.113.9", **mine}
    wait_until(lambda: gateway.get(ANY, headers=proxied).status_code == 200, 1.5, what="the new token")


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"origin": "http://localhost:8000", "host": "localhost:8000"}, True),
        ({"origin": "http://localhost:9999", "host": "localhost:8000"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://["}, False),
    ],
)
def test_a_page_of_another_origin_changes_nothing(
    bench: Bench, serve: Serve, headers: dict[str, str], allowed: bool
) -> None:
    gateway = serve(app=with_roles(bench))
    assert gateway.post("/api/v1/as-admin", headers=headers).status_code == (200 if allowed else 403)
    assert gateway.get("/api/v1/as-admin", headers=headers).status_code == 200


def test_no_other_origin_is_ever_invited(gateway: Served) -> None:
    asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = gateway.client.request("OPTIONS", ANY, headers=asked)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


# Rates


def test_a_client_that_asks_too_often_is_told_when_to_ask_again(serve: Serve) -> None:
    gateway = serve(Limits(per_minute=30))
    answers = [gateway.get(ANY) for _ in range(12)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[:5] == [200] * 5
    assert statuses[-1] == 429
    assert answers[-1].json()["title"] == "Too Many Requests"
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 3
    # Whoever watches over the process is answered all the same.
    assert gateway.get("/health").status_code == 200
    assert gateway.get("/ready").status_code == 200


def test_each_token_has_a_rate_of_its_own_and_guessing_has_the_address_s(serve: Serve, token: Token) -> None:
    one, other = bearer(token("one")), bearer(token("other"))
    gateway = serve(Limits(per_minute=30))
    assert [gateway.get(ANY, headers=one).status_code for _ in range(8)][-1] == 429
    assert gateway.get(ANY, headers=other).status_code == 200
    guesses = [gateway.get(ANY, headers=bearer(f"pgvec_api_{number:043}")).status_code for number in range(10)]
    assert guesses[0] == 401
    assert guesses[-1] == 429


# Outages


def test_requests_during_an_outage_are_told_to_come_again(bench: Bench, serve: Serve) -> None:
    gateway = serve(Limits(connection_seconds=0.5), app=None)
    assert gateway.get(ANY).status_code == 200
    name = bench.connection.info.dbname
    with psycopg.connect(bench.dsn, dbname="postgres", autocommit=True) as other:
        other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        try:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> %s",
                (name, bench.connection.info.backend_pid),
            )
            wait_until(lambda: gateway.get(ANY).status_code == 503, LIFE + 5, what="the outage")
            refused = gateway.get(ANY)
            assert refused.headers["content-type"] == "application/problem+json"
            assert int(refused.headers["retry-after"]) >= 1
            assert name not in refused.text
        finally:
            other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())
    wait_until(lambda: gateway.get(ANY).status_code == 200, 20, what="the end of it")
