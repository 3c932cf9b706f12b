"""The server of metrics: what it answers, where it listens, and what it says where it cannot."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from prometheus_client.metrics_core import Metric as Family

from pgvec_queue.errors import SettingsError
from pgvec_queue.exposition import PROCESS_METRICS, Families, Metric, Server, check
from tests.prometheus import Scraped, get, scrape

DECLARED = (
    Metric("things_total", "counter", 'Things, as in "a\\b"\nand more.', ("name",)),
    Metric("level_ratio", "gauge", "A level."),
    Metric("never_known", "gauge", "Nothing."),
    Metric("sizes", "histogram", "Sizes."),
)


class Things:
    """Two things, one of them with a hostile name; fails while it is told to."""

    fails = False

    def collect(self) -> Iterator[Family]:
        if self.fails:
            raise RuntimeError("no")
        families = Families(DECLARED)
        families.add("things_total", 3, 'a "b"\\c\nd')
        families.add("things_total", 4, "ünï")
        families.add("level_ratio", 0.25)
        families.add("never_known", None)
        families.add_histogram("sizes", (10, 100), (1, 2, 3), 400)
        return iter(families)


@pytest.fixture
def things() -> Things:
    return Things()


@pytest.fixture
def health() -> list[object]:
    return [True, "all is well"]


@pytest.fixture
def server(things: Things, health: list[object]) -> Iterator[Server]:
    with Server("127.0.0.1", 0, [things], lambda: (bool(health[0]), str(health[1]))) as running:
        yield running


def test_what_is_exposed_is_what_was_added(server: Server) -> None:
    scraped = scrape(server.url)
    assert scraped("things_total", name='a "b"\\c\nd') == 3
    assert scraped("things_total", name="ünï") == 4
    assert scraped("level_ratio") == 0.25
    assert [scraped("sizes_bucket", le=bound) for bound in ("10", "100", "+Inf")] == [1, 3, 6]
    assert (scraped("sizes_count"), scraped("sizes_sum")) == (6, 400)
    assert not scraped.has("never_known")
    assert {name: kind for name, kind in scraped.kinds.items() if name not in PROCESS_METRICS} == {
        "things_total": "counter",
        "level_ratio": "gauge",
        "sizes": "histogram",
    }


def test_what_was_not_declared_cannot_be_added() -> None:
    with pytest.raises(KeyError):
        Families(DECLARED).add("things", 1)


def test_the_text_says_which_format_it_is_in(server: Server) -> None:
    answer = get(f"{server.url}/metrics?debug=1")
    assert (answer.status, answer.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")


def test_health_is_a_status_and_a_line(server: Server, health: list[object]) -> None:
    assert (get(f"{server.url}/health").status, get(f"{server.url}/health").text) == (200, "all is well\n")
    health[:] = [False, "it is not"]
    assert (get(f"{server.url}/health").status, get(f"{server.url}/health").text) == (503, "it is not\n")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metric", 404),
        ("HEAD", "/metrics", 200),
        ("POST", "/metrics", 501),
        ("HEAD", "/x", 404),
    ],
)
def test_other_requests(server: Server, method: str, path: str, status: int) -> None:
    answer = get(f"{server.url}{path}", method=method)
    assert answer.status == status
    if method == "HEAD":
        assert answer.text == ""


def test_a_collector_that_fails_costs_one_scrape(server: Server, things: Things) -> None:
    things.fails = True
    answer = get(f"{server.url}/metrics")
    assert (answer.status, answer.text) == (500, "the metrics could not be collected; see the log\n")
    things.fails = False
    assert scrape(server.url)("level_ratio") == 0.25


def test_a_silent_client_and_one_that_goes_away_hold_nobody_up(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):
        gone = socket.create_connection((host, int(port)))
        gone.sendall(b"GET /metrics HTTP/1.1\r\n")
        gone.close()
        assert scrape(server.url)("level_ratio") == 0.25


def test_several_scrapes_at_once(server: Server) -> None:
    seen: list[Scraped] = []
    threads = [threading.Thread(target=lambda: seen.append(scrape(server.url))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [one("level_ratio") for one in seen] == [0.25] * 8


def test_the_port_is_free_again_at_once(things: Things) -> None:
    with Server("127.0.0.1", 0, [things], lambda: (True, "")) as first:
        port = int(first.url.rpartition(":")[2])
        scrape(first.url)
    with Server("127.0.0.1", port, [things], lambda: (True, "")) as second:
        assert second.url == first.url
        scrape(second.url)


def test_an_address_of_the_sixth_version_is_written_in_brackets(things: Things) -> None:
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with Server("::1", 0, [things], lambda: (True, "")) as server:
        assert server.url.startswith("http://[::1]:")
        scrape(server.url)


def test_a_port_in_use_is_one_line_that_says_so() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        expected = f"metrics cannot be served at 127.0.0.1:{port}: the port is in use; choose another one"
        with pytest.raises(SettingsError, match=expected):
            check("127.0.0.1", [port])
    check("127.0.0.1", [port])


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("no-such-host.invalid", 0, "that is no address of this machine"),
        ("192.0.2.1", 0, "that is no address of this machine"),
        ("." * 300, 0, "that is no address of this machine"),
        ("127.0.0.1", 65_536, "there is none above 65535"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_line_that_says_why(host: str, port: int, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason) as caught:
        check(host, [port])
    assert "\n" not in str(caught.value)


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
