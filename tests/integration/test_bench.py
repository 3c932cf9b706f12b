"""`pgvec bench`, small: every measure really runs, says what it promises, and leaves nothing behind.

How fast anything is, is no matter here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pgvec_queue import embedded
from pgvec_queue.bench import crowd, part, pooler, simulation
from pgvec_queue.bench import simulated as simulated_module
from pgvec_queue.bench.database import PREFIX, Arena, Place, arena
from pgvec_queue.bench.fleet import fleet
from pgvec_queue.bench.processor import ServerClock
from pgvec_queue.bench.report import Figure, Report
from pgvec_queue.cli.bench import by_size
from pgvec_queue.errors import DatabaseError, PgvecError
from tests.commandline import CommandLine
from tests.support import pgvec
from tests.waiting import wait_until

# One at a time: what is left behind by one of them must not be another's.
pytestmark = [pytest.mark.usefixtures("isolated"), pytest.mark.xdist_group("bench")]

Administration = psycopg.Connection[tuple[Any, ...]]

FIGURES = {
    "load": ({"worker_rows_per_second", "copy_rows_per_second"}, {"worker_to_copy"}),
    "plan": (
        {
            *("planned_rows_per_second", "index_scan_rows_per_second", "jobs", "queue_bytes_per_row"),
            "first_job_seconds",
        },
        {"plan_to_index_scan"},
    ),
    "claim": (
        {f"{name}_{what}" for name in ("empty", "queued", "done") for what in ("ms", "p95_ms")},
        {"queued_to_empty", "done_to_empty"},
    ),
    "memory": (
        {"model_mb", *(f"{name}_mb_above_model" for name in ("document", "job", "table"))},
        {"document_to_bar", "job_to_bar", "table_to_bar"},
    ),
    "encode": (
        {
            *("worker_tokens_per_second", "encode_tokens_per_second", "forward_tokens_per_second"),
            *("worker_chunks_per_second", "encode_chunks_per_second", "tokens_per_chunk"),
            *("encode_padding_share", "forward_padding_share"),
        },
        {"worker_to_encode", "worker_to_forward"},
    ),
    "scale": (
        {
            *("rows_per_second_of_2", "rows_per_second_of_1_beside_1", "claim_p50_ms_of_2", "claim_p99_ms_of_2"),
        },
        {"speed_up_of_2", "efficiency_of_2"},
    ),
}


@pytest.fixture
def dsn(postgres: embedded.Server) -> str:
    """Of somebody who may make databases, and add the extension to them."""
    return postgres.uri(user="postgres", database="postgres")


@pytest.fixture
def role(administration: Administration) -> Iterator[str]:
    """Somebody who may make databases, and nothing else."""
    name = "bench_maker"
    administration.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEDB").format(sql.Identifier(name)))
    yield name
    administration.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def left_behind(administration: Administration) -> list[str]:
    query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
    return [name for (name,) in administration.execute(query, [PREFIX])]


def measured(cli: CommandLine, dsn: str, measure: str, *options: str) -> dict[str, Any]:
    """Runs a measure, holds its object against what is promised of all of them, and returns it."""
    ran = cli("bench", measure, *options, "--json", "--dsn", dsn)
    assert ran.code == 0, ran.err
    assert ran.out.count("\n") == 1
    found: dict[str, Any] = json.loads(ran.out)
    assert found["measure"] == measure
    assert set(found["machine"]) == {"cpu", "cores", "memory", "os", "accelerator"}
    assert set(found["versions"]) == {
        *("pgvec-queue", "python", "torch", "sentence-transformers", "postgresql", "pgvector"),
    }
    assert "fsync" in found["server"]
    figures, ratios = FIGURES[measure]
    assert set(found["medians"]) >= figures
    assert set(found["ratios"]) == ratios
    for figure in (*found["medians"].values(), *found["ratios"].values()):
        assert set(figure) == {"median", "lowest", "highest", "rounds"}
        assert figure["lowest"] <= figure["median"] <= figure["highest"]
    return found


def test_load_compares_a_worker_with_a_copy_of_the_same_rows(
    cli: CommandLine, dsn: str, administration: Administration
) -> None:
    found = measured(cli, dsn, "load", "--rows", "300", "--rounds", "2")
    assert found["parameters"] == {"rows": 300, "rounds": 2, "dimensions": 384, "workers": 1}
    assert found["ratios"]["worker_to_copy"]["rounds"] == 2
    assert left_behind(administration) == []


def test_plan_counts_jobs_and_weighs_the_queue(cli: CommandLine, dsn: str, administration: Administration) -> None:
    found = measured(cli, dsn, "plan", "--rows", "20500", "--rounds", "2")["medians"]
    assert found["jobs"] == {"median": 21.0, "lowest": 21.0, "highest": 21.0, "rounds": 2}
    assert found["queue_bytes_per_row"]["highest"] > 0
    assert found["first_job_seconds"]["median"] > 0
    assert left_behind(administration) == []


def test_claim_holds_full_queues_against_an_empty_one(
    cli: CommandLine, dsn: str, administration: Administration
) -> None:
    measured(cli, dsn, "claim", "--jobs", "120", "--samples", "5", "--rounds", "2")
    assert left_behind(administration) == []


def test_scale_compares_all_workers_with_one_of_them(
    cli: CommandLine, dsn: str, administration: Administration
) -> None:
    options = ("--workers", "2", "--seconds", "6", "--rate", "100", "--rounds", "1")
    found = measured(cli, dsn, "scale", *options)
    assert found["parameters"]["rate"] == 100
    assert found["notes"] == []
    assert left_behind(administration) == []


def of_fleet(found: Report, name: str) -> float:
    """The median of the one size that was measured."""
    (size,) = found.parameters["workers"]
    return {figure.name: figure.median for figure in found.figures}[f"{name}_of_{size}"]


@pytest.mark.skipif(pooler.program() is None, reason="pgbouncer is not installed")
def test_simulated_workers_work_through_a_pooler_of_the_benchs_own(
    dsn: str, administration: Administration, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the server is, is not in the connection string alone.
    for name, value in conninfo_to_dict(dsn).items():
        monkeypatch.setenv({"dbname": "PGDATABASE"}.get(name, f"PG{name.upper()}"), str(value))
    options = simulation.Options((20,), 2.5, 1, rate=16.0, processes=2, pool_size=6, lease=3.0)
    found = simulation.run(Place("dbname=postgres"), options, lambda _line: None)
    assert found.parameters["pooled"]
    assert of_fleet(found, "server_connections") <= 6
    assert of_fleet(found, "client_connections") >= 20
    for figure in ("claims_per_second", "claim_p99_ms", "heartbeats_per_second", "writes_per_second"):
        assert of_fleet(found, figure) > 0, figure
    assert 0 < of_fleet(found, "share_of_ideal") < 1.3, "a device does no more than it could, but for what was waiting"
    assert any("knee" in note for note in found.notes)
    assert left_behind(administration) == []


def test_simulated_workers_connect_directly_and_listen_where_they_are_told_to(
    dsn: str, administration: Administration
) -> None:
    options = simulation.Options((3,), 1.5, 1, rate=16.0, processes=1, pooled=False, listen=True, lease=3.0)
    found = simulation.run(Place(dsn), options, lambda _line: None)
    assert not found.parameters["pooled"]
    assert of_fleet(found, "server_connections") >= 6
    assert of_fleet(found, "told_claims_per_second") > 0
    assert of_fleet(found, "notify_p99_ms") > 0
    assert left_behind(administration) == []


def test_a_fleet_of_several_sizes_is_a_table_with_a_column_for_each() -> None:
    figures = [Figure("claim_p99_ms_of_1", [3.0]), Figure("claim_p99_ms_of_1000", [7.0, 9.0, 8.0])]
    table = by_size(Report("scale", {"workers": (1, 1_000), "simulated": True}, figures))
    assert [column.header for column in table.columns] == ["workers", "1", "1,000"]
    assert [[*column.cells] for column in table.columns] == [["claim p99 ms"], ["3"], ["8"]]


def test_more_simulated_workers_than_the_server_has_connections_for_are_refused(
    cli: CommandLine, dsn: str, administration: Administration
) -> None:
    said = cli.refused("bench", "scale", "--simulated", "--workers", "1000", "--no-pooler", "--dsn", dsn)
    assert "1,000 simulated workers need 3,010 connections" in said
    assert said.endswith("leave --no-pooler out, measure fewer --workers, or raise max_connections")
    assert left_behind(administration) == []


def test_options_of_simulated_workers_are_for_these_alone(cli: CommandLine) -> None:
    assert "give --simulated as well" in cli.misused("bench", "scale", "--pool-size", "9")
    assert "give --simulated as well" in cli.misused("bench", "scale", "--listen")


@pytest.mark.parametrize(
    ("happens", "says"),
    [
        ("DROP FUNCTION pgvec.world() CASCADE", "a simulated worker cannot go on: "),
        (
            "UPDATE pgvec.alembic_version SET version_num = '0001'",
            "the schema of the bench's database has become another",
        ),
        ("ALTER TABLE docs RENAME body TO gone", "the simulated workers cannot go on: reading public.docs: "),
    ],
)
def test_a_simulated_worker_that_cannot_go_on_ends_the_bench_with_its_words(
    own: Arena, happens: LiteralString, says: str
) -> None:
    part.of_texts(own, "docs", ["one text", "another text"], model="hashing-8", no_chunking=True)
    settings = simulated_module.Settings(own.dsn, None, ("docs",), 2, 8.0, lease=3.0)
    with crowd.crowd(own, settings, 1, None) as fleet:
        own.connection.execute(happens)
        own.connection.execute("UPDATE pgvec.vectorizers SET paused = false")
        with pytest.raises(PgvecError, match=says):
            fleet.wait("nothing", 60, lambda: False)


def test_scale_asks_for_no_more_than_the_machine_can_write(dsn: str) -> None:
    from pgvec_queue.bench import scale

    said: list[str] = []
    found = scale.run(Place(dsn), scale.Options((1,), 1.0, 1, full_speed_rows=300), said.append)
    assert 0 < found.parameters["rate"] <= scale.MOST_RATE
    assert "at full speed: each simulated device makes" in found.notes[0]
    assert "full speed" in said[0]


def test_memory_is_what_a_worker_needs_above_its_model(
    cli: CommandLine, dsn: str, administration: Administration
) -> None:
    options = ("--document", "30K", "--job-rows", "200", "--rows", "300")
    found = measured(cli, dsn, "memory", *options)
    assert found["parameters"]["document_bytes"] == 30 * 1024
    assert found["medians"]["model_mb"]["median"] > 10
    assert found["medians"]["table_mb_above_model"]["median"] > 1, "the driver, the pool and the stages at least"
    assert left_behind(administration) == []


@pytest.mark.model
@pytest.mark.timeout(600)
def test_encode_compares_a_worker_with_the_plain_library_and_the_bare_model(
    cli: CommandLine, dsn: str, administration: Administration
) -> None:
    found = measured(cli, dsn, "encode", "--chunks", "6", "--rounds", "1", "--threads", "1", "--device", "cpu")
    parameters = found["parameters"]
    assert (parameters["device"], parameters["dtype"], parameters["threads"]) == ("cpu", "float32", 1)
    assert parameters["encode_batch_size"] in (8, 16, 32, 64, 128)
    assert 4 <= found["medians"]["tokens_per_chunk"]["median"] <= 128
    assert 0 <= found["medians"]["forward_padding_share"]["lowest"] < 1
    assert left_behind(administration) == []


def test_without_json_a_table_comes_on_stdout_and_progress_on_stderr(cli: CommandLine, dsn: str) -> None:
    ran = cli("bench", "plan", "--rows", "1000", "--rounds", "1", "--dsn", dsn)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[0].split() == ["plan", "median", "lowest", "highest"]
    assert "planned rows per second" in ran.out
    assert "PostgreSQL" not in ran.err
    assert ran.err.splitlines() == ["making a table of 1,000 rows", "round 1 of 1"]
    assert "\x1b" not in ran.out + ran.err


def test_on_the_embedded_server_the_right_to_make_databases_is_there(cli: CommandLine, reachable: Path) -> None:
    base = Path(tempfile.mkdtemp(dir=reachable))
    base.chmod(0o711)
    ran = cli("bench", "plan", "--rows", "1000", "--rounds", "1", "--dsn", f"embedded://{base}/postgres")
    assert ran.code == 0, ran.err
    assert not embedded.Server(base / "postgres").running()
    shutil.rmtree(base)


def test_on_the_embedded_server_its_dsn_will_do(cli: CommandLine, postgres: embedded.Server) -> None:
    """The one that `pgvec db start` prints, whose login may make no database."""
    ran = cli("bench", "plan", "--rows", "1000", "--rounds", "1", "--dsn", postgres.uri())
    assert ran.code == 0, ran.err


def test_who_may_make_no_database_is_told_so_in_one_line(
    cli: CommandLine, postgres: embedded.Server, administration: Administration
) -> None:
    administration.execute("CREATE ROLE poor LOGIN")
    try:
        said = cli.refused("bench", "load", "--dsn", postgres.uri(user="poor", database="postgres"))
        assert said.startswith("bench measures in a database of its own, and the role poor may not make a database;")
    finally:
        administration.execute("DROP ROLE poor")


def test_who_may_not_add_the_extension_is_told_so_in_one_line(
    cli: CommandLine, postgres: embedded.Server, role: str, administration: Administration
) -> None:
    said = cli.refused("bench", "load", "--dsn", postgres.uri(user=role, database="postgres"))
    assert f"the role {role} may not add pgvector to one" in said
    assert left_behind(administration) == []


def test_a_server_that_is_not_there_is_one_line(cli: CommandLine) -> None:
    assert "cannot connect" in cli.refused("bench", "plan", "--dsn", "postgresql://localhost:1/none")


def test_encode_needs_a_model_that_the_library_has(cli: CommandLine, dsn: str) -> None:
    said = cli.refused("bench", "encode", "--model", "hashing-8", "--dsn", dsn)
    assert said == "bench encode compares with sentence-transformers, which has no model hashing-8"


def test_a_model_that_is_nowhere_is_one_line(cli: CommandLine, dsn: str) -> None:
    said = cli.refused("bench", "memory", "--model", "hashing-0", "--dsn", dsn)
    assert "hashing-0" in said


@pytest.mark.model
def test_a_device_that_is_not_there_ends_the_bench_with_the_workers_own_words(cli: CommandLine, dsn: str) -> None:
    ran = cli("bench", "encode", "--device", "cuda:99", "--dsn", dsn)
    assert (ran.code, ran.out) == (1, "")
    last = ran.err.splitlines()[-1]
    assert last.startswith("pgvec: a worker of the bench ended with exit code 1: ")
    assert "device 'cuda:99' is not on this machine" in last


def test_ctrl_c_ends_the_workers_and_drops_the_database(
    request: pytest.FixtureRequest, dsn: str, postgres: embedded.Server, administration: Administration
) -> None:
    process = pgvec("bench", "load", "--rows", "200000", "--rounds", "9", dsn=dsn)
    request.addfinalizer(process.kill)
    wait_until(lambda: left_behind(administration), 60, what="the bench's database")
    (name,) = left_behind(administration)

    def worker() -> int | None:
        try:
            with psycopg.connect(postgres.uri(user="postgres", database=name)) as connection:
                row = connection.execute("SELECT pid FROM pgvec.workers").fetchone()
        except psycopg.Error:
            return None
        return row[0] if row else None

    wait_until(worker, 60, what="the bench's worker")
    pid = worker()
    assert pid is not None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "pgvec: interrupted"
    assert left_behind(administration) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_goes_wrong_inside_leaves_no_database(dsn: str, administration: Administration) -> None:
    with pytest.raises(ZeroDivisionError), arena(Place(dsn)):
        raise ZeroDivisionError
    assert left_behind(administration) == []


def test_a_database_that_cannot_be_made_for_another_reason_is_one_line(dsn: str) -> None:
    with pytest.raises(DatabaseError, match="cannot connect"), arena(Place(dsn, "host=/nowhere")):
        pass


@pytest.fixture
def own(dsn: str) -> Iterator[Arena]:
    with arena(Place(dsn)) as made:
        yield made


def test_a_part_is_done_once_and_counted_whole(own: Arena) -> None:
    with fleet(own, [("--device", "cpu")]) as workers:
        first = part.of_texts(own, "first", ["one text", "another text", "  "], model="hashing-8", no_chunking=True)
        done = first.work(workers)
        assert (done.rows, done.chunks, done.tokens) == (2, 2, 4)
        assert 0 < done.seconds < 60
        assert first.chunks() == ["one text", "another text"]
        assert first.contributors() == 1
        first.refill(30)
        assert len(first.chunks()) == 0
        assert first.work(workers).rows == 30
        assert {len(text) for text in first.chunks()} == {400}
        first.drop()
        left = own.connection.execute("SELECT to_regclass('first'), to_regclass('first_vectors')").fetchone()
        assert left == (None, None)


def test_a_document_that_fails_is_no_measurement(own: Arena) -> None:
    faults = {"PGVEC_HASHING_FAULTS": "refuse=bad"}
    spoilt = part.of_texts(own, "spoilt", ["good", "bad"], model="hashing-8", no_chunking=True)
    with (
        fleet(own, [("--device", "cpu")], environment=faults) as workers,
        pytest.raises(PgvecError, match=r"bench cannot go on: .*'bad'"),
    ):
        spoilt.work(workers)


def test_settings_of_the_users_own_workers_are_not_taken_over(own: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_DEVICE", "cuda:99")
    with fleet(own, [()]) as workers:
        assert len(workers.rows()) == 1


def test_the_servers_processor_time_is_seen_where_it_is_local(own: Arena) -> None:
    clock = ServerClock(own)
    with clock:
        own.connection.execute("SELECT count(*) FROM generate_series(1, 3000000)")
    if Path("/proc/self/stat").exists():
        assert clock.cores is not None
        assert clock.cores > 0
    else:
        assert clock.cores is None
