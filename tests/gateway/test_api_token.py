"""``pgvec api-token``: made, listed, revoked."""

from __future__ import annotations

import json
import re

import pytest

from tests.commandline import CommandLine
from tests.support import Bench


@pytest.fixture(autouse=True)
def dsn(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)


def test_a_token_is_printed_once_and_alone(cli: CommandLine, bench: Bench) -> None:
    ran = cli("api-token", "create", "--name", "shop", "--role", "write")
    assert (ran.code, ran.err) == (0, "")
    assert re.fullmatch(r"pgvec_api_[A-Za-z0-9_-]{43}\n", ran.out)
    listed = cli("api-token", "list").out + cli("api-token", "list", "--json").out
    assert ran.out.strip() not in listed
    assert bench.value("SELECT digest = sha256(%s::bytea) FROM pgvec.api_tokens", ran.out.strip())


def test_two_tokens_are_never_the_same(cli: CommandLine) -> None:
    made = {cli("api-token", "create", "--name", f"n{number}", "--role", "read").out for number in range(5)}
    assert len(made) == 5


def test_the_list_says_what_each_is_good_for(cli: CommandLine, bench: Bench) -> None:
    assert cli("api-token", "list").out == ""
    cli("api-token", "create", "--name", "a", "--role", "read", "--expires", "7")
    cli("api-token", "create", "--name", "b", "--role", "admin")
    cli("api-token", "create", "--name", "c", "--role", "write")
    assert cli("api-token", "revoke", "b").code == 0
    bench.sql("UPDATE pgvec.api_tokens SET expires_at = clock_timestamp() - interval '1 s' WHERE name = 'c'")
    found = [json.loads(line) for line in cli("api-token", "list", "--json").out.splitlines()]
    assert [(one["name"], one["role"], one["state"]) for one in found] == [
        ("a", "read", "valid"),
        ("b", "admin", "revoked"),
        ("c", "write", "expired"),
    ]
    lasts = bench.value("SELECT expires_at - created_at FROM pgvec.api_tokens WHERE name = 'a'")
    assert abs(lasts.total_seconds() - 7 * 86_400) < 5
    table = cli("api-token", "list").out.splitlines()
    assert table[0].split() == ["name", "role", "state", "made", "expires", "last", "used"]
    assert len(table) == 4


def test_a_name_is_given_once_even_after_its_end(cli: CommandLine) -> None:
    cli("api-token", "create", "--name", "shop", "--role", "read")
    assert "choose another name" in cli.refused("api-token", "create", "--name", "shop", "--role", "read")
    cli("api-token", "revoke", "shop")
    assert "choose another name" in cli.refused("api-token", "create", "--name", "shop", "--role", "read")


def test_revoking_twice_changes_nothing_and_revoking_nothing_is_an_error(cli: CommandLine, bench: Bench) -> None:
    cli("api-token", "create", "--name", "shop", "--role", "read")
    assert cli("api-token", "revoke", "shop").code == 0
    first = bench.value("SELECT revoked_at FROM pgvec.api_tokens")
    assert cli("api-token", "revoke", "shop").code == 0
    assert bench.value("SELECT revoked_at FROM pgvec.api_tokens") == first
    assert "there is no token named 'shep'" in cli.refused("api-token", "revoke", "shep")


def test_name_and_role_have_to_be_said(cli: CommandLine) -> None:
    for missing, given in (("--role", ["--name", "shop"]), ("--name", ["--role", "read"])):
        ran = cli("api-token", "create", *given)
        assert ran.code == 2
        assert f"Missing option '{missing}'" in ran.err
