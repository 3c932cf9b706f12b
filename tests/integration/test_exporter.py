"""``pgvec exporter``: the queue as a whole, and what a scrape says while the database is away."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from pgvec_queue import __version__, schema
from pgvec_queue.database import Database
from pgvec_queue.metrics import METRICS, QueueCollector
from tests.chaos.proxy import Network, Proxy
from tests.chaos.server import Server
from tests.commandline import PASSWORD, assert_one_line
from tests.prometheus import Scraped, assert_clean, collected, get, needs_promtool, scrape
from tests.support import Bench, pgvec, run_pgvec
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("isolated")

ROOT = Path(__file__).parents[2]
Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts ``pgvec exporter`` at a free port; returns the process and where it is."""
    with ExitStack() as stack:

        def begin(dsn: str, *arguments: str) -> tuple[subprocess.Popen[str], str]:
            process = pgvec("exporter", "--port", "0", *arguments, dsn=dsn)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stderr is not None
            said = process.stderr.readline()
            found = re.search(r"metrics are served url=(http://\S+)/metrics", said)
            assert found is not None, said
            return process, found[1]

        yield begin


@pytest.fixture
def look(bench: Bench) -> Callable[[], Scraped]:
    """Scrapes the test's database, anew each time."""

    def scraped() -> Scraped:
        with closing(QueueCollector(bench.database)) as collector:
            return collected(collector)

    return scraped


Look = Callable[[], Scraped]


def fill(bench: Bench, rows: int, table: str = "docs") -> None:
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO {table} SELECT i, 'document number ' || i FROM generate_series(1, %s) i", rows)


def states(scraped: Scraped, metric: str, **labels: str) -> dict[str, float]:
    """The samples of a metric by their state."""
    return {
        found["state"]: scraped(metric, **found)
        for found in scraped.labels(metric)
        if all(found[name] == value for name, value in labels.items())
    }


# What it tells


def test_an_empty_queue_is_up(bench: Bench, look: Look) -> None:
    scraped = look()
    assert scraped("pgvec_up") == 1
    assert scraped("pgvec_schema_info", revision=schema.HEAD) == 1
    assert scraped("pgvec_exporter_info", version=__version__) == 1
    assert 0 < scraped("pgvec_scrape_duration_seconds") < 8
    assert set(states(scraped, "pgvec_workers").values()) == {0}
    assert not scraped.has("pgvec_last_beat_age_seconds")
    assert not scraped.has("pgvec_jobs")


def test_the_numbers_are_those_of_the_views(bench: Bench, look: Look) -> None:
    fill(bench, 400)
    fill(bench, 90, "other")
    bench.enqueue("docs", "body", rows_per_job=100)
    bench.drain()
    bench.enqueue("other", "body", rows_per_job=30)
    scraped = look()
    done = bench.progress("docs")
    assert done.state == "complete"
    one = {"vectorizer": "docs"}
    assert scraped("pgvec_rows_selected", **one) == scraped("pgvec_rows_done", **one) == 400
    assert scraped("pgvec_chunks", **one) == done.chunks == 400
    assert scraped("pgvec_tokens_embedded_total", **one) == done.tokens
    assert scraped("pgvec_rows_embedded_total", **one) == 400
    assert scraped("pgvec_written_bytes_total", **one) == done.bytes_written > 400 * 8 * 4
    assert scraped("pgvec_eta_seconds", **one) == 0
    assert scraped("pgvec_plan_complete", **one) == 1
    assert scraped(
        "pgvec_vectorizer_info", source="public.docs", destination="public.docs_vectors", model="hashing-8", **one
    )
    assert states(scraped, "pgvec_vectorizer_state", **one) == {
        **dict.fromkeys(("active", "paused", "blocked", "cancelled"), 0),
        "complete": 1,
    }
    assert states(scraped, "pgvec_jobs", **one)["queued"] == 0
    assert states(scraped, "pgvec_jobs", **one)["done"] == done.jobs["done"]
    waiting = bench.progress("other").jobs["queued"]
    assert waiting >= 3
    assert states(scraped, "pgvec_jobs", vectorizer="other") == {
        "queued": waiting,
        "running": 0,
        "done": 0,
        "cancelled": 0,
    }
    assert not any(labels == one for labels in scraped.labels("pgvec_oldest_queued_job_age_seconds"))
    # It waits, and nobody works: no time left can be told, and no lag without sync.
    assert not any(labels == {"vectorizer": "other"} for labels in scraped.labels("pgvec_eta_seconds"))
    assert not scraped.has("pgvec_change_lag_seconds")


def test_the_oldest_queued_job_of_any_kind_tells_how_long_something_waits(bench: Bench, look: Look) -> None:
    fill(bench, 90)
    bench.enqueue("docs", "body", rows_per_job=30, sync=True)
    bench.sql("UPDATE docs SET body = 'changed' WHERE id = %s", 5)
    bench.sql("UPDATE pgvec.jobs SET created_at = clock_timestamp() - interval '1 hour' WHERE kind = %s", "keys")
    scraped = look()
    assert 3_600 <= scraped("pgvec_oldest_queued_job_age_seconds", vectorizer="docs") < 3_700
    assert 3_600 <= scraped("pgvec_change_lag_seconds", vectorizer="docs") < 3_700
    bench.sql("DELETE FROM pgvec.jobs WHERE kind = %s", "keys")
    assert look()("pgvec_oldest_queued_job_age_seconds", vectorizer="docs") < 100


@pytest.mark.parametrize("state", ["paused", "blocked", "cancelled"])
def test_a_vectorizer_that_does_not_move_says_so(bench: Bench, look: Look, state: str) -> None:
    fill(bench, 10)
    bench.enqueue("docs", "body")
    flags = {"paused": "paused = true", "blocked": "blocked_reason = 'no right'", "cancelled": "cancelled = true"}
    bench.sql(f"UPDATE pgvec.vectorizers SET {flags[state]}")
    assert states(look(), "pgvec_vectorizer_state", vectorizer="docs")[state] == 1
    assert sum(states(look(), "pgvec_vectorizer_state", vectorizer="docs").values()) == 1


def test_the_quarantine_is_told_by_error_class_and_no_trigger_makes_thousands_of_them(bench: Bench, look: Look) -> None:
    fill(bench, 10)
    vectorizer = bench.enqueue("docs", "body")
    for error_class, documents in [("NotFinite", 500), *((f"SQLSTATE U{number:04}", 1) for number in range(300))]:
        bench.sql(
            "INSERT INTO pgvec.failures (vectorizer_id, key, source_hash, error_class, message, model)"
            " SELECT %s, ARRAY[%s::text || i], '', %s, 'no', 'm' FROM generate_series(1, %s) i",
            *(vectorizer.id, error_class, error_class, documents),
        )
    scraped = look()
    labels = scraped.labels("pgvec_quarantined_documents")
    assert len(labels) == 21
    assert scraped("pgvec_quarantined_documents", vectorizer="docs", error_class="NotFinite") == 500
    assert scraped("pgvec_quarantined_documents", vectorizer="docs", error_class="other") == 300 - 19
    assert sum(scraped("pgvec_quarantined_documents", **one) for one in labels) == 800
    assert scraped("pgvec_rows_failed", vectorizer="docs") == 800


def test_workers_are_counted_by_state_and_the_dead_ones_do_not_beat_for_the_others(bench: Bench, look: Look) -> None:
    for values in (
        "state = 'working', busy = 0.5, lag_seconds = 4, commit_seconds = 0.25",
        "state = 'idle', busy = 1, lag_seconds = 2, beat_at = beat_at - interval '20 s'",
        "state = 'idle', busy = 0, lag_seconds = 99, beat_at = beat_at - interval '1 hour'",
    ):
        bench.sql(f"UPDATE pgvec.workers SET {values} WHERE id = %s", bench.register().worker)
    scraped = look()
    assert states(scraped, "pgvec_workers") == {
        **dict.fromkeys(("starting", "loading", "stopping"), 0),
        "working": 1,
        "idle": 1,
        "gone": 1,
    }
    assert scraped("pgvec_last_beat_age_seconds") < 15
    assert 20 <= scraped("pgvec_oldest_beat_age_seconds") < 60
    assert scraped("pgvec_devices_busy_ratio") == 0.75
    assert scraped("pgvec_replication_lag_seconds") == 4
    assert scraped("pgvec_commit_time_seconds") == 0.25


def test_limits_are_told_where_there_are_any(bench: Bench, look: Look) -> None:
    fill(bench, 10)
    bench.enqueue("docs", "body")
    limits = ("pgvec_rows_per_second_limit", "pgvec_replication_lag_limit_seconds", "pgvec_commit_time_limit_seconds")
    assert not any(look().has(name) for name in limits)
    bench.sql(
        "SELECT pgvec.alter_vectorizer('docs', rows_per_second_limit => %s, replication_lag_limit => '1 min',"
        " commit_time_limit => '50 ms')",
        500,
    )
    assert [look()(name, vectorizer="docs") for name in limits] == [500, 60, 0.05]


def test_names_of_any_kind_stay_in_their_labels(bench: Bench, look: Look) -> None:
    fill(bench, 10)
    bench.enqueue("docs", "body", name='a "b" \\ ünï {c="d"} # HELP')
    assert look()("pgvec_rows_selected", vectorizer='a "b" \\ ünï {c="d"} # HELP') == 10


# Outages


def test_an_exporter_waits_for_a_schema(database: str, start: Start) -> None:
    process, url = start(database)
    scraped = scrape(url)
    assert scraped("pgvec_up") == 0
    assert scraped("pgvec_exporter_info", version=__version__) == 1
    assert not scraped.has("pgvec_schema_info")
    schema.initialize(Database(database))
    wait_until(lambda: scrape(url)("pgvec_up") == 1, what="the schema seen")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "queue cannot be read; it is tried again at each scrape: there is no pgvec schema; run: pgvec init" in err
    assert "queue can be read again" in err
    assert "Traceback" not in err


def test_an_exporter_survives_an_outage_and_says_so_once(start: Start) -> None:
    with closing(Server()) as server:
        server.create()
        schema.initialize(Database(server.dsn))
        process, url = start(server.dsn)
        assert scrape(url)("pgvec_up") == 1
        server.crash()
        wait_until(lambda: scrape(url)("pgvec_up") == 0, what="the outage")
        assert get(f"{url}/health").status == 200
        server.start()
        wait_until(lambda: scrape(url)("pgvec_up") == 1, 20, what="the end of it")
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert 1 <= err.count("queue cannot be read") <= 4, err
    assert err.count("queue can be read again") == 1
    assert "Traceback" not in err


def connections(bench: Bench, what: str = "pid") -> list[Any]:
    """Of exporters to the test's database."""
    return [
        found
        for (found,) in bench.sql(
            f"SELECT {what} FROM pg_stat_activity WHERE application_name LIKE %s AND datname = current_database()",
            "pgvec exporter%",
        )
    ]


def test_a_connection_that_was_lost_between_two_scrapes_costs_none(bench: Bench) -> None:
    with closing(QueueCollector(bench.database)) as collector:
        assert collected(collector)("pgvec_up") == 1
        assert connections(bench, "pg_terminate_backend(pid)") == [True]
        wait_until(lambda: not connections(bench), what="the end of the connection")
        told: list[float] = []

        def connects_again() -> bool:
            told.append(collected(collector)("pgvec_up"))
            return bool(connections(bench))

        wait_until(connects_again, what="a new connection")
        assert set(told) == {1}


def test_a_scrape_has_its_answer_though_the_database_gives_none() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(closing(Server()))
        server.create()
        schema.initialize(Database(server.dsn))
        network = stack.enter_context(closing(Network()))
        proxy = stack.enter_context(closing(Proxy(network, server.port)))
        collector = stack.enter_context(closing(QueueCollector(Database(server.dsn_at(proxy.port)), patience=0.5)))
        assert collected(collector)("pgvec_up") == 1
        proxy.swallow()
        wait_until(lambda: collected(collector)("pgvec_up") == 0, what="a look without an answer")
        hung = collected(collector)
        assert hung("pgvec_up") == 0
        assert hung("pgvec_scrape_duration_seconds") < 3
        proxy.heal(reset=True)
        wait_until(lambda: collected(collector)("pgvec_up") == 1, 20, what="an answer again")


def test_scrapes_at_the_same_time_share_one_look(bench: Bench) -> None:
    with closing(QueueCollector(bench.database)) as collector:
        seen: list[Scraped] = []
        threads = [threading.Thread(target=lambda: seen.append(collected(collector))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert [one("pgvec_up") for one in seen] == [1] * 12
        assert len(connections(bench)) == 1


def test_a_role_that_may_not_read_the_queue_is_told_in_a_line(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    role = f"reader_{bench.connection.info.dbname}"
    bench.sql(f"CREATE ROLE {role} LOGIN")
    try:
        host, port = bench.connection.info.host, bench.connection.info.port
        database = Database(f"host={host} port={port} user={role} dbname={bench.connection.info.dbname}")
        with closing(QueueCollector(database)) as collector:
            assert collected(collector)("pgvec_up") == 0
            assert "permission denied for schema pgvec" in caplog.text
            bench.sql(f"GRANT USAGE ON SCHEMA pgvec TO {role}")
            bench.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA pgvec TO {role}")
            wait_until(lambda: collected(collector)("pgvec_up") == 1, what="a reader that may read")
    finally:
        bench.sql(f"DROP OWNED BY {role}")
        bench.sql(f"DROP ROLE {role}")


# The command line


def test_a_port_in_use_and_an_address_of_somebody_else_are_one_line(bench: Bench) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        ran = run_pgvec("exporter", "--port", str(other.getsockname()[1]), dsn=bench.dsn)
    assert ran.code == 1
    assert_one_line(ran)
    assert "the port is in use" in ran.err
    ran = run_pgvec("exporter", "--host", "192.0.2.1", dsn=bench.dsn)
    assert ran.code == 1
    assert_one_line(ran)
    assert "that is no address of this machine" in ran.err


def test_a_connection_string_that_cannot_be_read_is_refused_at_once() -> None:
    ran = run_pgvec("exporter", "--port", "0", dsn=f"host= = {PASSWORD}")
    assert ran.code == 1
    assert_one_line(ran)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_at_once_and_in_order(bench: Bench, start: Start, number: signal.Signals) -> None:
    process, url = start(bench.dsn)
    scrape(url)
    process.send_signal(number)
    assert process.wait(10) == 0
    assert get(url).status == 0


def test_port_and_address_are_settings(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_EXPORTER_PORT", "0")
    monkeypatch.setenv("PGVEC_EXPORTER_HOST", "localhost")
    process = pgvec("exporter", "--log-format", "json", dsn=bench.dsn)
    assert process.stderr is not None
    line = process.stderr.readline()
    process.terminate()
    process.communicate(timeout=10)
    assert re.search(r'"url": "http://(127\.0\.0\.1|\[::1\]):\d+/metrics"', line), line


@needs_promtool
def test_promtool_has_nothing_to_say_against_the_exporter(bench: Bench, start: Start) -> None:
    fill(bench, 300)
    bench.enqueue("docs", "body", sync=True)
    bench.sql("ALTER TABLE docs_vectors ADD CHECK (id <> 7)")
    bench.sql(
        "SELECT pgvec.alter_vectorizer('docs', rows_per_second_limit => %s, replication_lag_limit => '1 min',"
        " commit_time_limit => '1 min')",
        5_000,
    )
    bench.register()
    bench.sql("UPDATE pgvec.workers SET busy = 0.5, lag_seconds = 1, commit_seconds = %s", 0.1)
    bench.drain()
    bench.sql("UPDATE docs SET body = 'changed' WHERE id < %s", 50)
    _, url = start(bench.dsn)
    scraped = scrape(url)
    never = {"pgvec_eta_seconds", "pgvec_eta_low_seconds", "pgvec_eta_high_seconds"}
    assert {metric.name for metric in METRICS} - never <= scraped.kinds.keys()
    assert {name: kind for name, kind in scraped.kinds.items() if name.startswith("pgvec")} == {
        metric.name: metric.kind for metric in METRICS if metric.name in scraped.kinds
    }
    assert_clean([scraped.text])
