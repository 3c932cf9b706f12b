"""The cost model: what it adds up, how it grows, and what it says of sizes that do not hold."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import costs
from pgvec_queue.errors import DefinitionError
from pgvec_queue.estimate import hnsw
from pgvec_queue.estimate.cost import CONNECTIONS, Constants, Plan, Prices, cost
from tests.commandline import CommandLine

PLANS = st.builds(
    Plan,
    rows=st.floats(1, 1e11),
    chunks_per_row=st.floats(0.1, 50),
    tokens_per_chunk=st.floats(1, 8_000),
    chunk_bytes=st.floats(0, 30_000),
    dimensions=st.sampled_from([8, 384, 768, 1_024, 1_536, 2_500, 4_000]),
    store=st.sampled_from(["vector", "halfvec"]),
    rows_per_job=st.floats(1, 1e6),
    partitions=st.sampled_from([1, 2, 16, 64]),
    devices=st.integers(1, 10_000),
    tokens_per_second=st.floats(10, 1e8),
    server_cores=st.floats(1, 256),
    server_memory=st.floats(2**30, 2**42),
    disk_bytes_per_second=st.floats(1e6, 1e11),
    build_processes=st.integers(1, 64),
    prices=st.builds(Prices, st.floats(0, 100), st.floats(0, 100), st.floats(0, 10)),
)
PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
GROWS_WITH_ROWS = (
    "jobs",
    "queue_bytes",
    "table_bytes",
    "key_index_bytes",
    "wal_bytes",
    "hnsw_bytes",
    "hnsw_memory_bytes",
)


@settings(max_examples=40)
@given(PLANS)
def test_every_figure_is_a_number_and_none_is_negative(plan: Plan) -> None:
    found = cost(plan)
    assert all(math.isfinite(value) and value >= 0 for value in found.figures.values())
    assert found["stored_bytes"] == found["table_bytes"] + found["key_index_bytes"] + found["hnsw_bytes"]
    assert found["hours"] == pytest.approx(found["plan_hours"] + found["embed_hours"] + found["index_hours"])
    assert found["devices_busy_share"] <= 1.000001


@settings(max_examples=40)
@given(PLANS, st.floats(1.5, 100))
def test_more_rows_never_take_less(plan: Plan, times: float) -> None:
    smaller, larger = cost(plan), cost(replace(plan, rows=plan.rows * times))
    for name in (*GROWS_WITH_ROWS, "embed_hours", "index_hours", "hours", "devices_money", "storage_money_per_month"):
        assert larger[name] >= smaller[name], name
    assert larger["index_hours"] > smaller["index_hours"] * times * 0.99, "n log n"


@settings(max_examples=40)
@given(PLANS)
def test_more_of_anything_never_makes_it_slower(plan: Plan) -> None:
    before = cost(plan)["hours"]
    for better in (
        replace(plan, devices=plan.devices * 2),
        replace(plan, server_cores=plan.server_cores * 2),
        replace(plan, disk_bytes_per_second=plan.disk_bytes_per_second * 2),
        replace(plan, build_processes=plan.build_processes * 2),
    ):
        assert cost(better)["hours"] <= before * 1.000001


@settings(max_examples=40)
@given(PLANS)
def test_embedding_takes_as_long_as_the_slowest_part(plan: Plan) -> None:
    found = cost(plan)
    times = {
        "devices": found["device_hours"],
        "the server's cores": found["write_hours"],
        "the server's disk": found["disk_hours"],
    }
    assert found["embed_hours"] == times[found.bottleneck] == max(times.values())


def test_halfvec_halves_vectors_and_nothing_else() -> None:
    plan = Plan(rows=1e8)
    whole, half = cost(plan), cost(replace(plan, store="halfvec"))
    saved = whole["table_bytes"] - half["table_bytes"]
    assert 0.8 * 1e8 * 768 < saved < 1.3 * 1e8 * 768
    assert half["key_index_bytes"] == whole["key_index_bytes"]
    assert half["hnsw_memory_bytes"] == pytest.approx(1e8 * hnsw.memory_bytes(384, "halfvec"))


def test_what_vector_cannot_index_is_indexed_as_halfvec() -> None:
    found = cost(Plan(rows=1e6, dimensions=3_000))
    assert found["hnsw_bytes"] == pytest.approx(1e6 * hnsw.element_bytes(3_000, "halfvec"))


def test_partitions_divide_what_one_build_needs() -> None:
    plan = Plan(rows=1e9)
    one, sixteen = cost(plan), cost(replace(plan, partitions=16))
    assert sixteen["hnsw_memory_bytes"] == pytest.approx(one["hnsw_memory_bytes"] / 16)
    assert sixteen["hnsw_bytes"] == one["hnsw_bytes"]
    assert sixteen["index_hours"] < one["index_hours"]


def test_jobs_and_connections_are_counted_whole() -> None:
    found = cost(Plan(rows=1_001, rows_per_job=1_000, devices=7))
    assert found["jobs"] == 2
    assert found["connections"] == 7 * CONNECTIONS


def test_money_is_hours_by_prices() -> None:
    found = cost(Plan(rows=1e8, devices=10, prices=Prices(3.0, 2.0, 0.1)))
    assert found["devices_money"] == pytest.approx(10 * 3.0 * found["embed_hours"])
    assert found["server_money"] == pytest.approx(2.0 * (found["embed_hours"] + found["index_hours"]))
    assert found["storage_money_per_month"] == pytest.approx(found["stored_bytes"] / 1e9 * 0.1)


def test_what_breaks_is_named_and_what_helps_makes_it_hold() -> None:
    huge = Plan(rows=1e11, devices=100, tokens_per_second=1e6)
    said = " ".join(cost(huge).breaks)
    assert "a table holds 32 TiB at most: 8 partitions of the destination" in said
    assert "the graph of the index is" in said
    assert "400 connections" in said
    held = cost(replace(huge, partitions=1_024, server_memory=2**41, devices=1, tokens_per_second=1e4))
    assert held.breaks == []


def test_a_fast_device_is_held_up_by_the_server_and_a_slow_one_is_not() -> None:
    fast = cost(Plan(rows=1e9, devices=100, tokens_per_second=1e7))
    assert fast.bottleneck != "devices"
    assert fast["devices_that_fill_the_server"] < 100
    slow = cost(Plan(rows=1e9, devices=2, tokens_per_second=5e3))
    assert slow.bottleneck == "devices"
    assert slow["devices_that_fill_the_server"] > 2


def test_every_constant_can_be_given(cli: CommandLine) -> None:
    arguments = [part for one in fields(Constants) for part in ("--constant", f"{one.name}=2")]
    ran = cli("bench", "cost", *arguments, "--json")
    assert ran.code == 0, ran.err
    assert set(json.loads(ran.out)["plan"]["constants"].values()) == {2.0}


def test_the_command_prints_one_object_or_a_table(cli: CommandLine) -> None:
    ran = cli("bench", "cost", "--rows", "100M", "--devices", "10", "--tokens-per-second", "1e6", "--json")
    found = json.loads(ran.out)
    assert (found["plan"]["rows"], found["plan"]["devices"]) == (1e8, 10)
    assert found["figures"]["jobs"] == 100_000
    table = cli("bench", "cost", "--rows", "1e9", "--devices", "100", "--price-device-hour", "2")
    assert (table.code, table.err) == (0, "")
    assert "devices money" in table.out
    assert "server money" not in table.out
    assumed = (
        "assumed: 100 devices of 50,000 tokens/s, 1 x 100 tokens a row, 384 dimensions as vector, a server of 16 cores"
    )
    assert assumed in " ".join(table.out.split())
    assert "no price" not in table.out
    assert "no price was given" in " ".join(cli("bench", "cost").out.split())
    assert "\n- " in table.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--constant", "colour=3"], "is no constant; write NAME=NUMBER, of job_bytes"),
        (["--constant", "slice_ms"], "is no constant"),
        (["--constant", "build_at=1"], "1"),
        (["--partitions", "257"], "256"),
        (["--rows", "0"], "0"),
        (["--rows", "many"], "many"),
    ],
)
def test_what_cannot_be_computed_is_refused(cli: CommandLine, arguments: list[str], says: str) -> None:
    ran = cli("bench", "cost", *arguments)
    assert ran.code == 2
    assert says in ran.err


def test_an_index_that_cannot_be_is_one_line(cli: CommandLine) -> None:
    assert "indexes at most 4,000 dimensions" in cli.refused("bench", "cost", "--dimensions", "5000")
    assert cli("bench", "cost", "--dimensions", "5000", "--no-index").code == 0


def test_no_more_partitions_are_advised_than_a_destination_may_have() -> None:
    assert cost(Plan(rows=1e11)).breaks[0] == "a table holds 32 TiB at most: 8 partitions of the destination"
    assert "more than the 256 partitions that a destination may have" in cost(Plan(rows=1e13)).breaks[0]
    wide = cost(Plan(rows=5e9, dimensions=3_000, partitions=4)).breaks
    assert not any("out of line" in one for one in wide)
    wide = cost(Plan(rows=5e9, dimensions=3_000)).breaks
    assert any("2^32 values that are stored out of line: 2 partitions" in one for one in wide)


def test_another_type_is_refused() -> None:
    with pytest.raises(DefinitionError, match="no type 'bit' of vectors"):
        cost(Plan(store="bit"))


def test_the_table_of_the_documentation_is_what_the_model_says() -> None:
    page = PAGE.read_text()
    assert costs.replaced(page, costs.table()) == page, "run: python -m benchmarks.costs --write docs/scaling.md"


def test_the_documentation_names_every_constant() -> None:
    page = PAGE.read_text()
    for one in fields(Constants):
        assert f"`{one.name}`" in page, one.name
