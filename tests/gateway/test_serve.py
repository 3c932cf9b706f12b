"""``pgvec serve`` as a process: how it starts, what it refuses to start with, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx2
import pytest

from pgvec_queue import schema
from tests.commandline import CommandLine, assert_one_line
from tests.support import Bench, pgvec, run_pgvec
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("isolated")

ROOT = Path(__file__).parents[2]
Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def start(bench: Bench) -> Iterator[Start]:
    """Starts ``pgvec serve`` at a free port; returns the process and where it is."""
    with ExitStack() as stack:

        def begin(*arguments: str, env: dict[str, str] | None = None) -> tuple[subprocess.Popen[str], str]:
            process = pgvec("serve", "--port", "0", *arguments, dsn=bench.dsn, env=env)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert re.fullmatch(r"http://\S+:\d+", url), process.communicate()
            return process, url

        yield begin


def get(url: str, **options: object) -> httpx2.Response:
    return httpx2.get(url, trust_env=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_serves_until_it_is_told_to_leave(start: Start, number: signal.Signals) -> None:
    process, url = start()
    assert url.startswith("http://127.0.0.1:")
    assert get(f"{url}/ready").status_code == 200
    process.send_signal(number)
    _, err = process.communicate(timeout=15)
    assert process.returncode == 0, err
    assert "gateway is leaving" in err
    assert "Traceback" not in err


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    process, url = start()
    where = (url.rpartition(":")[0].removeprefix("http://"), int(url.rpartition(":")[2]))
    with closing(socket.create_connection(where)) as client:
        # A body that never ends keeps the first signal waiting.
        client.sendall(b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        while "gateway is leaving" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(3) == 128 + signal.SIGTERM


def test_limits_hosts_and_models_are_settings(start: Start) -> None:
    Path("pgvec.toml").write_text('gateway_texts = 7\ngateway_body_bytes = "1K"\ngateway_models = ["one", "two"]')
    _, url = start("--allowed-host", "Me.Test:80", env={"PGVEC_GATEWAY_PER_MINUTE": "60"})
    too_large = httpx2.post(f"{url}/health", content=b"a" * 1_025, trust_env=False)
    assert too_large.status_code == 413
    assert get(f"{url}/docs", headers={"host": "me.test"}).status_code == 200
    assert get(f"{url}/docs", headers={"host": "you.test"}).status_code == 421
    # A slow machine's requests are let in one by one, as seconds pass.
    assert any(get(f"{url}/docs").status_code == 429 for _ in range(200))


def test_another_address_says_that_nobody_comes_in_yet(start: Start) -> None:
    process, url = start("--host", "0.0.0.0")
    port = url.rpartition(":")[2]
    assert get(f"http://127.0.0.1:{port}/metrics").status_code == 401
    assert get(f"http://127.0.0.1:{port}/health").status_code == 200
    process.terminate()
    _, err = process.communicate(timeout=15)
    assert "warning: there is no valid token; pgvec api-token create makes one" in err


def test_an_open_gateway_is_warned_of(start: Start) -> None:
    process, url = start("--host", "0.0.0.0", "--allow-unauthenticated")
    assert get(f"http://127.0.0.1:{url.rpartition(':')[2]}/metrics").status_code == 200
    process.terminate()
    assert "warning: nobody is asked for a token (--allow-unauthenticated)" in process.communicate(timeout=15)[1]


def test_a_port_in_use_and_an_address_of_somebody_else_are_one_line(bench: Bench) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        ran = run_pgvec("serve", "--port", str(other.getsockname()[1]), dsn=bench.dsn)
    assert ran.code == 1
    assert_one_line(ran)
    assert "the gateway cannot listen at 127.0.0.1:" in ran.err
    assert "the port is in use" in ran.err
    ran = run_pgvec("serve", "--host", "192.0.2.1", dsn=bench.dsn)
    assert ran.code == 1
    assert_one_line(ran)


def test_no_schema_is_one_line(cli: CommandLine, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_DSN", database)
    assert cli.refused("serve") == "there is no pgvec schema; run: pgvec init"


def test_it_begins_with_an_outdated_schema_and_waits_for_the_next(bench: Bench, start: Start) -> None:
    bench.sql("UPDATE pgvec.alembic_version SET version_num = '0001'")
    process, url = start("--dsn", bench.dsn)
    assert get(f"{url}/health").status_code == 200
    assert get(f"{url}/ready").status_code == 503
    wait_until(lambda: get(f"{url}/api/v1/workers").status_code == 503, 20, what="the gateway's look")
    bench.sql("UPDATE pgvec.alembic_version SET version_num = %s", schema.HEAD)
    wait_until(lambda: get(f"{url}/api/v1/workers").status_code == 200, 20, what="the gateway's look")
    process.terminate()
    told = process.communicate(timeout=15)[1]
    assert "warning: gateway waits for a schema that its program works with: the pgvec schema is at" in told
    assert "schema is there; the gateway goes on" in told


def test_missing_packages_are_one_line(cli: CommandLine, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)
    monkeypatch.setattr("pgvec_queue.cli.serve.find_spec", lambda name: None)
    assert cli.refused("serve") == (
        "the gateway needs packages that are not installed; run: pip install 'pgvec-queue[gateway]'"
    )


def test_an_embedded_server_runs_as_long_as_the_gateway(reachable: Path, start: Start) -> None:
    dsn = f"embedded://{reachable}/gateway"
    assert run_pgvec("init", dsn=dsn).code == 0
    process, url = start("--dsn", dsn)
    assert get(f"{url}/ready").status_code == 200
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 0
    pid = reachable / "gateway" / "data" / "postmaster.pid"
    wait_until(lambda: not pid.exists(), what="the end of the server")
