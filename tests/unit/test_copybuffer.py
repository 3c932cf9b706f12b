"""Rows and vectors in PostgreSQL's binary formats, as the server reads them back."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from pgvec_queue import copybuffer
from pgvec_queue.database import kind_of
from pgvec_queue.errors import Kind

Connect = Callable[..., psycopg.Connection[tuple[Any, ...]]]

TYPES: dict[str, type[np.floating[Any]]] = {"vector": np.float32, "halfvec": np.float16}

# The largest that halfvec holds, so that every example fits both types.
FLOATS = st.floats(-65_504, 65_504, width=16).filter(lambda number: abs(number) > 1e-4 or number == 0)
VECTORS = st.tuples(st.integers(0, 5), st.integers(1, 9)).flatmap(
    lambda shape: arrays.arrays(np.float32, shape, elements=FLOATS.map(np.float32))
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)


def _copy(connection: psycopg.Connection[tuple[Any, ...]], table: str, stream: Iterable[bytes]) -> None:
    with connection.cursor().copy(f"COPY {table} FROM STDIN (FORMAT BINARY)".encode()) as copy:
        for block in stream:
            copy.write(block)


@pytest.mark.parametrize("store", TYPES)
@given(vectors=VECTORS, texts=st.lists(TEXTS, min_size=5, max_size=5))
@example(vectors=np.array([[0.1, -0.0, 1e-7, 65_504]], np.float32), texts=["", "\\.\t\r\n", "ä€\U0001f600", "'", '"'])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
def test_a_stream_of_rows_is_what_the_server_reads(
    connect: Connect, store: str, vectors: NDArray[np.float32], texts: list[str]
) -> None:
    connection = connect()
    connection.execute(f"DROP TABLE IF EXISTS t; CREATE TABLE t (a text, n int, v {store}, h bytea)")
    fields = copybuffer.vector_fields(vectors, store)
    lines = [
        [copybuffer.text_field(text) + copybuffer.int4_field(n - 2), field, copybuffer.field(bytes([n, 0, 255]))]
        for n, (text, field) in enumerate(zip(texts, fields, strict=False))
    ]
    _copy(connection, "t", copybuffer.rows(4, lines))
    found = connection.execute("SELECT a, n, v::text, h FROM t ORDER BY n").fetchall()
    connection.close()
    assert [(a, n, h) for a, n, _, h in found] == [(texts[n], n - 2, bytes([n, 0, 255])) for n in range(len(vectors))]
    read = [np.array(json.loads(v), TYPES[store]) for _, _, v, _ in found]
    assert [one.tolist() for one in read] == [one.tolist() for one in vectors.astype(TYPES[store])]


@pytest.mark.parametrize("store", TYPES)
def test_an_array_of_vectors_is_a_parameter(connect: Connect, store: str) -> None:
    connection = connect()
    oid = connection.execute("SELECT %s::regtype::oid", [store]).fetchone()
    assert oid is not None
    vectors = np.array([[1, 2, 0.5], [-1, 0, 0.25]], np.float32)
    array = copybuffer.Raw(copybuffer.array(copybuffer.vector_fields(vectors, store), oid[0]))
    found = connection.execute(
        f"SELECT v::text, n FROM unnest(%b::{store}[]) WITH ORDINALITY u(v, n)".encode(), [array]
    )
    assert found.fetchall() == [("[1,2,0.5]", 1), ("[-1,0,0.25]", 2)]


@pytest.mark.parametrize(
    ("store", "value"),
    [("vector", np.nan), ("vector", np.inf), ("halfvec", np.nan), ("halfvec", -np.inf), ("halfvec", 1e6)],
)
def test_a_value_that_no_vector_holds_is_refused_as_the_row_s_fault(connect: Connect, store: str, value: float) -> None:
    connection = connect()
    connection.execute(f"CREATE TABLE t (v {store})")
    fields = copybuffer.vector_fields(np.array([[1, 2], [1, value]], np.float32), store)
    with pytest.raises(psycopg.Error) as refused:
        _copy(connection, "t", copybuffer.rows(1, [[field] for field in fields]))
    assert kind_of(refused.value) is Kind.ROW
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_a_field_is_its_length_and_its_bytes() -> None:
    assert copybuffer.field(b"") == b"\0\0\0\0"
    assert copybuffer.text_field("ä") == b"\0\0\0\x02\xc3\xa4"
    assert copybuffer.int4_field(-2) == struct.pack(">ii", 4, -2)
    assert b"".join(copybuffer.rows(1, [])) == b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"\xff\xff"


def test_a_long_stream_comes_in_small_blocks() -> None:
    line = [copybuffer.field(bytes(1_000))] * 3
    blocks = list(copybuffer.rows(3, [line] * 500))
    assert len(blocks) > 5
    assert max(map(len, blocks)) < copybuffer.BLOCK_BYTES + 4_000
    assert b"".join(blocks).count(b"\0\x03" + line[0]) == 500
