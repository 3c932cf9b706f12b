"""What a build of an index may take, and what is refused."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvec_queue.cli.types import Size
from pgvec_queue.estimate import hnsw
from pgvec_queue.index_room import TOO_LARGE, Server, decide, size
from pgvec_queue.vector_index import IndexRefusedError, Wish, check, default_wish
from pgvec_queue.vectorizer import Vectorizer

MB, GB = 2**20, 2**30
WISH = Wish(16, 64, "vector")
PLAIN = Server(maintenance=64 * MB, buffers=128 * MB, maintenance_workers=2, parallel_workers=8)
LARGE = replace(PLAIN, buffers=16 * GB)
VECTOR = hnsw.memory_bytes(384, "vector")


def _vectorizer(**changes: Any) -> Vectorizer:
    known: dict[str, Any] = dict.fromkeys((field.name for field in fields(Vectorizer)), "")
    return Vectorizer(**{**known, "name": "docs", "dimensions": 384, "store": "vector", **changes})


DOCS = _vectorizer()


def test_a_build_takes_what_its_graph_needs_and_no_more() -> None:
    given_ = decide(LARGE, DOCS, WISH, 1_000_000)
    assert 1_000_000 * VECTOR < given_.memory == round(given_.needed) < 1.2 * 1_000_000 * VECTOR
    assert given_.remark is None
    assert decide(LARGE, DOCS, WISH, 10).memory == 64 * MB


def test_a_table_of_ours_could_be_in_partitions_that_fit() -> None:
    ours = _vectorizer(destination_created=True, partitions=None, destination_kind="table")

    def said(one: Vectorizer, times: float) -> str:
        with pytest.raises(IndexRefusedError) as refused:
            decide(PLAIN, one, WISH, times * 64 * MB / VECTOR / 1.1)
        return str(refused.value)

    assert said(ours, 9.5).endswith(
        "`pgvec migrate-model docs --partitions 10` embeds all again, into partitions that fit"
    )
    assert "--partitions 159" in said(replace(ours, partitions=16), 9.9)
    for other in (
        replace(ours, destination_created=False),
        replace(ours, destination_kind="column"),
        replace(ours, partitions=64),
    ):
        assert "--partitions" not in said(other, 9.5)


def test_of_several_builds_the_disk_has_to_take_all() -> None:
    tight = replace(LARGE, free_disk=GB)
    assert decide(tight, DOCS, WISH, 100_000).remark is None
    with pytest.raises(IndexRefusedError, match="the index takes about"):
        decide(tight, DOCS, WISH, 100_000, on_disk=1_600_000)


def test_it_may_take_what_the_administrator_gives_or_half_of_the_buffers_or_an_eighth_of_this_machine() -> None:
    for there, may in (
        (PLAIN, 64 * MB),
        (replace(PLAIN, maintenance=GB), GB),
        (LARGE, 8 * GB),
        (replace(PLAIN, machine=16 * GB), 2 * GB),
    ):
        fits = int(may / VECTOR / 1.1)
        assert decide(there, DOCS, WISH, fits).remark is None
        assert "the rest is built many times slower" in (decide(there, DOCS, WISH, fits * 1.5).remark or "")
        assert decide(there, DOCS, WISH, fits * 1.5).memory == may


def test_what_needs_four_times_as_much_is_refused_with_what_to_do() -> None:
    many = TOO_LARGE * 64 * MB / VECTOR
    with pytest.raises(IndexRefusedError) as refused:
        decide(PLAIN, DOCS, WISH, many)
    said = str(refused.value)
    assert said.startswith("its graph needs about 282 MB of memory to build, and 64 MB may be used; ")
    assert "`pgvec index docs --memory 282M`" in said
    assert "`--store halfvec` needs" in said
    assert decide(PLAIN, DOCS, replace(WISH, memory=300 * MB), many).remark is None
    assert decide(PLAIN, DOCS, replace(WISH, anyway=True), many).memory == 64 * MB


@given(
    vectors=st.floats(0, 1e10),
    dimensions=st.integers(1, 2_000),
    maintenance=st.integers(1 * MB, 100 * GB),
    buffers=st.integers(1 * MB, 100 * GB),
)
def test_what_is_told_to_be_enough_is_enough(vectors: float, dimensions: int, maintenance: int, buffers: int) -> None:
    one = _vectorizer(dimensions=dimensions)
    there = replace(PLAIN, maintenance=maintenance, buffers=buffers)
    try:
        said = decide(there, one, WISH, vectors).remark
    except IndexRefusedError as refused:
        said = str(refused)
    if said is not None:
        named = Size().convert(said.partition("--memory ")[2].partition("`")[0], None, None)
        assert decide(there, one, replace(WISH, memory=named), vectors).remark is None


def test_processes_are_what_is_allowed_or_half_of_what_may_run_and_each_has_its_part_of_the_memory() -> None:
    many = 3_000_000
    assert decide(LARGE, DOCS, WISH, many).workers == 4
    assert decide(replace(LARGE, parallel_workers=64), DOCS, WISH, many).workers == 7
    assert decide(replace(LARGE, maintenance_workers=12), DOCS, WISH, many).workers == 12
    assert decide(replace(LARGE, parallel_workers=0, maintenance_workers=0), DOCS, WISH, many).workers == 0
    assert decide(replace(LARGE, cores=2), DOCS, WISH, many).workers == 1, "on this machine, a core is left"
    assert decide(LARGE, DOCS, replace(WISH, workers=9), many).workers == 9
    assert decide(PLAIN, DOCS, WISH, 10).workers == 1, "64 MB are for two"


def test_an_index_that_the_disk_does_not_hold_is_refused() -> None:
    takes = hnsw.element_bytes(384, "vector") * 1_000_000
    assert decide(replace(LARGE, free_disk=round(1.1 * takes)), DOCS, WISH, 1_000_000)
    with pytest.raises(IndexRefusedError, match=r"the index takes about 1\.91 GB, and 1 GB are free"):
        decide(replace(LARGE, free_disk=GB), DOCS, WISH, 1_000_000)


@pytest.mark.parametrize(
    ("dimensions", "column", "wanted"),
    [
        (2_000, "vector", "vector"),
        (2_001, "vector", "halfvec"),
        (4_000, "vector", "halfvec"),
        (8, "halfvec", "halfvec"),
    ],
)
def test_what_is_too_long_for_an_index_of_vector_is_indexed_as_halfvec(
    dimensions: int, column: str, wanted: str
) -> None:
    one = _vectorizer(dimensions=dimensions, store=column)
    wish = default_wish(one)
    assert wish.store == wanted
    check(one, wish)


@pytest.mark.parametrize(
    ("dimensions", "column", "store", "said"),
    [
        (2_001, "vector", "vector", "HNSW takes 2000 of vector; --store halfvec takes up to 4000"),
        (4_001, "vector", "vector", "HNSW takes 2000 of vector"),
        (4_001, "vector", "halfvec", "HNSW takes 4000 of halfvec"),
        (8, "halfvec", "vector", "an index of vector would gain nothing"),
    ],
)
def test_what_pgvector_cannot_index_is_refused(dimensions: int, column: str, store: str, said: str) -> None:
    with pytest.raises(IndexRefusedError) as refused:
        check(_vectorizer(dimensions=dimensions, store=column), Wish(16, 64, store))
    assert str(refused.value).endswith(said)


def test_sizes_are_written_as_postgresql_counts() -> None:
    assert [size(n) for n in (2_048, 64 * MB, 1.5 * GB, 1_100 * GB)] == ["2 kB", "64 MB", "1.5 GB", "1.07 TB"]
