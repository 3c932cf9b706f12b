"""The arithmetic of pages: figures that PostgreSQL and pgvector themselves give for the same rows."""

from __future__ import annotations

import numpy as np
import pytest

from pgvec_queue.estimate import hnsw, storage
from pgvec_queue.estimate.storage import Attribute, Rows

BIGINT = Attribute("key0", 8, "d", "p")
INDEX = Attribute("chunk_index", 4, "i", "p")
CHUNK = Attribute("chunk", -1, "i", "x")
EMBEDDING = Attribute("embedding", -1, "i", "e")
HASH = Attribute("source_hash", -1, "i", "x")
CREATED = Attribute("created_at", 8, "d", "p")
TABLE = [BIGINT, INDEX, CHUNK, EMBEDDING, HASH, CREATED]


def _rows(dimensions: int, *texts: int, target: int = 8160, kept: float = 1.0) -> Rows:
    count = len(texts)
    widths = {
        "chunk": np.array(texts, np.float64),
        "embedding": np.full(count, 4.0 + 4 * dimensions),
        "source_hash": np.full(count, 16.0),
    }
    return storage.rows(TABLE, widths, target, np.full(count, kept))


def test_a_row_is_its_values_each_aligned_with_header_and_line_pointer() -> None:
    # 24 header, 8 key, 4 index, 4 + 500 text, 4 + 1540 vector (aligned), 17 hash, then created_at at the next 8.
    assert _rows(384, 500).heap[0] == 24 + 2088 + 4
    # A short text has a header of one byte, and needs no alignment.
    assert _rows(384, 10).heap[0] == 24 + 1600 + 4


def test_values_that_leave_no_room_are_compressed_or_moved_out() -> None:
    stays = _rows(384, 6_000)
    assert stays.toast[0] == 0
    compressed = _rows(384, 20_000, kept=0.25)
    assert (compressed.toast[0], compressed.heap[0] > 6_500) == (0, True)
    moved = _rows(384, 20_000)
    assert moved.toast_rows[0] == 11
    assert moved.toast[0] == 10 * 2036 + 84
    assert moved.heap[0] < 1_700
    # Without a target of its own, a vector of 1,024 dimensions does not stay in its row.
    vector = _rows(1_024, 600, target=0)
    assert vector.toast_rows[0] == 3
    assert vector.heap[0] < 750
    assert _rows(64, 1_500, target=0).toast[0] == 0


def test_a_heap_of_equal_rows_has_as_many_to_a_page_as_fit() -> None:
    rows = np.full(1_000, 2_104.0)
    fill = storage.heap_fill(rows)
    assert fill == pytest.approx(3 * 2_104 / 8_168, rel=0.01)
    # 334 pages of rows, three of the free space map and one of the visibility map.
    assert storage.heap_bytes(float(rows.sum()), fill) == 8_192 * (334 + 4)


def test_small_rows_go_where_large_ones_have_left_room() -> None:
    mixed = np.tile([5_000.0, 1_500.0, 1_500.0], 500)
    assert storage.heap_fill(mixed) > 0.95
    assert storage.heap_fill(np.full(500, 5_000.0)) == pytest.approx(5_000 / 8_168, rel=0.01)


def test_an_index_that_grows_in_order_is_nine_tenths_full() -> None:
    entry = storage.index_row([BIGINT], {}, 1)[0]
    assert entry == 20
    # What a primary key of a million bigints takes: 2,745 pages.
    assert storage.index_bytes(1_000_000 * entry, 1_000_000) == pytest.approx(2_745 * 8_192, rel=0.01)


@pytest.mark.parametrize(
    ("dimensions", "store", "per_page"),
    [(384, "vector", 4), (384, "halfvec", 7), (768, "vector", 2), (1_024, "vector", 1), (1_536, "halfvec", 2)],
)
def test_an_hnsw_page_holds_as_many_elements_as_fit_with_their_neighbours(
    dimensions: int, store: str, per_page: int
) -> None:
    assert hnsw.element_bytes(dimensions, store) == pytest.approx(8_192 / per_page, rel=0.03)
    assert hnsw.wal_bytes(dimensions, store) <= hnsw.element_bytes(dimensions, store)


def test_an_element_too_large_for_a_page_with_its_neighbours_takes_two() -> None:
    assert hnsw.element_bytes(2_000, "vector") == pytest.approx(2 * 8_192, rel=0.01)
