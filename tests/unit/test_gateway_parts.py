"""Parts of the gateway by themselves: rates, hosts, examples, routes."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pgvec_queue import listening
from pgvec_queue.cli.serve import _LIMITS
from pgvec_queue.cli.types import SETTINGS
from pgvec_queue.gateway.admission import host_of
from pgvec_queue.gateway.documentation import example, page
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.gateway.rates import Rates, network
from pgvec_queue.masking import without_secrets
from pgvec_queue.settings import KNOWN


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def allowed(rates: Rates, clock: Clock, seconds: float, client: str = "a") -> int:
    """How many of a client's requests are allowed, one every 10 ms."""
    done = 0
    for _ in range(round(seconds * 100)):
        clock.now += 0.01
        done += rates.take(client) == 0
    return done


def test_a_rate_is_kept_in_the_long_run_and_ten_seconds_of_it_are_free_at_once() -> None:
    clock = Clock()
    rates = Rates(60, clock=clock)
    assert allowed(rates, clock, 0.9) == 10
    assert 58 <= allowed(rates, clock, 60) <= 61
    clock.now += 3_600
    assert allowed(rates, clock, 0.9) == 10


def test_whoever_waits_as_long_as_he_is_told_may_go_on() -> None:
    clock = Clock()
    rates = Rates(60, clock=clock)
    while (wait := rates.take("a")) == 0:
        pass
    assert 0 < wait <= 1
    clock.now += wait + 0.001
    assert rates.take("a") == 0


def test_clients_do_not_take_from_each_other_and_are_forgotten_in_order() -> None:
    clock = Clock()
    rates = Rates(6, most=3, clock=clock)
    assert [rates.take("a") == 0, rates.take("a") == 0] == [True, False]
    for other in "bc":
        assert rates.take(other) == 0
    assert rates.take("a") > 0
    assert rates.take("d") == 0
    assert len(rates._used_up) == 3


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
        ("testclient", "testclient"),
    ],
)
def test_one_client_of_ipv6_has_one_rate_whatever_address_it_takes(address: str, counted: str) -> None:
    assert network(address) == counted


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("Me.Test:80", "me.test"),
        ("[::1]:8000", "::1"),
        ("[::1", "::1"),
        ("a.b.", "a.b"),
        ("", ""),
        ("1.2.3.4", "1.2.3.4"),
    ],
)
def test_the_host_of_a_header(header: str, host: str) -> None:
    assert host_of(header) == host


@pytest.mark.parametrize(
    ("host", "loopback"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("0.0.0.0", False), ("::", False)]
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert listening.is_loopback(listening.find(host, 80)) is loopback


def test_each_limit_is_a_setting() -> None:
    names = {field.name for field in fields(Limits)}
    assert names == {*_LIMITS, "models"}
    for name in names:
        assert f"gateway_{name}" in SETTINGS
        assert f"gateway_{name}" in KNOWN


def test_help_says_the_defaults_that_there_are() -> None:
    sizes = {"16M": 16 * 2**20, "256M": 256 * 2**20, "1M": 2**20}
    for name, (_, text) in _LIMITS.items():
        said = text.partition("[default: ")[2].rstrip("]")
        assert getattr(Limits(), name) == (sizes[said] if said in sizes else float(said)), name


def test_a_token_is_masked_wherever_it_stands() -> None:
    token = "pgvec_api_" + "aB3-_" * 8 + "xyz"
    assert token not in without_secrets(f"got {token} from a client")


def test_an_example_is_the_schema_s_own_or_put_together() -> None:
    document = {
        "components": {
            "schemas": {
                "Inner": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}},
                "Loop": {"type": "object", "properties": {"again": {"$ref": "#/components/schemas/Loop"}}},
            }
        }
    }
    inner = {"$ref": "#/components/schemas/Inner"}
    assert example(document, inner) == {"a": 1, "b": "x"}
    assert example(document, {"type": "array", "items": inner}) == [{"a": 1, "b": "x"}]
    assert example(document, {"anyOf": [{"type": "string", "examples": ["q"]}, {"type": "null"}]}) == "q"
    assert example(document, {"type": "object", "example": {"c": 2}}) == {"c": 2}
    assert str(example(document, {"$ref": "#/components/schemas/Loop"})).count("again") < 10


def test_nothing_of_a_document_becomes_markup() -> None:
    evil = "<script>alert(1)</script>"
    document = {
        "info": {"title": evil, "version": evil, "description": evil},
        "tags": [{"name": evil, "description": evil}],
        "paths": {
            f"/{evil}": {
                "get": {
                    "tags": [evil],
                    "summary": evil,
                    "description": f"`{evil}`",
                    "parameters": [{"name": evil, "in": evil, "schema": {"default": evil}}],
                    "responses": {"200": {"description": evil, "content": {"application/json": {"example": evil}}}},
                }
            }
        },
    }
    assert "<script" not in page(document)
