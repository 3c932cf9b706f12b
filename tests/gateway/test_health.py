"""``/health``, ``/ready``, ``/metrics``, ``/docs``: what is said of the gateway itself."""

from __future__ import annotations

import re
from contextlib import ExitStack, closing

import pytest

from pgvec_queue import __version__, schema
from pgvec_queue.database import Database
from pgvec_queue.gateway.auth import Access
from pgvec_queue.gateway.metrics import METRICS
from tests.chaos.server import Server
from tests.gateway.conftest import Serve
from tests.gateway.serving import Served, serving
from tests.prometheus import Scraped, assert_clean, needs_promtool, scrape
from tests.support import Bench
from tests.waiting import wait_until


def test_a_process_that_serves_says_so(gateway: Served) -> None:
    answer = gateway.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "version": __version__})


def test_it_is_ready_when_the_database_is(gateway: Served) -> None:
    answer = gateway.get("/ready")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "revision": schema.HEAD})


def test_another_schema_is_not_ready_and_told_in_a_line(bench: Bench, gateway: Served) -> None:
    bench.sql("UPDATE pgvec.alembic_version SET version_num = '0001'")
    answer = gateway.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["detail"] == (
        f"the pgvec schema is at revision 0001, this program needs {schema.HEAD}; run: pgvec init"
    )
    assert int(answer.headers["retry-after"]) >= 1


def test_with_another_schema_nothing_is_done_until_it_fits(bench: Bench, gateway: Served) -> None:
    bench.upgrade_to("9999")
    wait_until(lambda: gateway.get("/api/v1/workers").status_code == 503, 20, what="the gateway's look")
    for path in ("/api/v1/workers", "/api/v1/vectorizers"):
        assert gateway.get(path).json()["detail"].startswith("the pgvec schema is at revision 9999, newer than this")
    assert gateway.get("/health").status_code == 200
    assert gateway.get("/dashboard").status_code == 200
    assert "pgvec_up 0" in gateway.get("/metrics").text
    bench.upgrade_to("9999", schema.HEAD)
    wait_until(lambda: gateway.get("/api/v1/workers").status_code == 200, 20, what="the gateway's look")
    wait_until(lambda: gateway.get("/ready").status_code == 200)
    assert gateway.get("/ready").json() == {"status": "ready", "revision": "9999"}


def test_a_database_without_the_schema_is_not_ready(bench: Bench, gateway: Served) -> None:
    bench.sql("DROP TABLE pgvec.alembic_version")
    assert gateway.get("/ready").json()["detail"] == "there is no pgvec schema; run: pgvec init"


def test_an_outage_is_seen_and_so_is_its_end() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(closing(Server()))
        server.create()
        schema.initialize(Database(server.dsn))
        gateway = stack.enter_context(serving(server.dsn))
        assert gateway.get("/ready").status_code == 200
        server.crash()
        wait_until(lambda: gateway.get("/ready").status_code == 503, 20, what="the outage")
        assert gateway.get("/health").status_code == 200
        refused = gateway.get("/metrics")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "postgres" not in refused.text
        server.start()
        wait_until(lambda: gateway.get("/ready").status_code == 200, 30, what="the end of it")


# Metrics


def test_metrics_are_those_of_the_queue_and_of_the_gateway(bench: Bench, gateway: Served) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.enqueue("docs", "body")
    gateway.get("/health")
    gateway.get("/nowhere/at/all")
    scraped = scrape(gateway.url)
    assert scraped("pgvec_up") == 1
    assert scraped("pgvec_plan_complete", vectorizer="docs") == 1
    assert scraped("pgvec_gateway_info", version=__version__) == 1
    assert scraped("pgvec_gateway_requests_total", route="/health", method="GET", status="200") == 1
    assert scraped("pgvec_gateway_requests_total", route="none", method="GET", status="404") == 1
    assert scraped("pgvec_gateway_requests_in_flight") == 1
    assert {metric.name for metric in METRICS} - {"pgvec_gateway_rejected_total"} <= scraped.kinds.keys()


def test_the_durations_of_a_route_add_up(gateway: Served) -> None:
    for _ in range(5):
        gateway.get("/health")
    text = scrape(gateway.url).text
    assert 'pgvec_gateway_request_duration_seconds_count{route="/health"} 5.0' in text
    assert re.search(r'pgvec_gateway_request_duration_seconds_bucket\{le="30\.0",route="/health"\} 5\.0', text)


def test_no_client_makes_a_time_series_of_its_own(gateway: Served) -> None:
    for number in range(30):
        gateway.client.request(f"METHOD{number}", f"/api/v1/nothing/{number}")
    found: Scraped = scrape(gateway.url)
    labels = [one for one in found.labels("pgvec_gateway_requests_total") if one["method"] == "other"]
    assert labels == [{"route": "none", "method": "other", "status": "404"}]


@needs_promtool
def test_promtool_has_nothing_to_say_against_the_gateway(gateway: Served) -> None:
    gateway.get("/health")
    gateway.get("/metrics", headers={"host": "elsewhere.example"})
    assert_clean([scrape(gateway.url).text])


# Documentation


def test_the_page_of_documentation_needs_nothing_from_elsewhere(gateway: Served) -> None:
    page = gateway.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<script" not in page.text
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page.text)
    style = gateway.get("/docs.css")
    assert (style.status_code, style.headers["content-type"]) == (200, "text/css; charset=utf-8")


def test_every_endpoint_is_on_the_page_with_what_it_may_answer(gateway: Served) -> None:
    document = gateway.get("/openapi.json").json()
    page = gateway.get("/docs").text
    assert document["paths"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert f"<b>{method.upper()}</b> <code>{path}</code>" in page
            assert operation["summary"]
            assert operation.get("description"), path
            assert {"500", "503"} <= operation["responses"].keys()
            for status, response in operation["responses"].items():
                assert response["description"]
                if status[0] in "45":
                    assert list(response["content"]) == ["application/problem+json"]


def test_documentation_needs_no_token(serve: Serve) -> None:
    gateway = serve(access=Access(loopback=False))
    for path in ("/docs", "/docs.css", "/openapi.json", "/health", "/ready"):
        assert gateway.get(path).status_code == 200
    assert gateway.get("/metrics").status_code == 401


@pytest.mark.parametrize("path", ["/redoc", "/docs/oauth2-redirect", "/docs/"])
def test_there_is_no_other_page(gateway: Served, path: str) -> None:
    assert gateway.get(path).status_code == 404
