"""The vectors of a slice, whatever the sizes of its documents, stay beside their chunks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from pgvec_queue import copybuffer, writing_table


@given(st.lists(st.integers(0, 200), min_size=1, max_size=40))
@example([1, 3, 200, 2, 64, 63, 1, 130, 128, 0, 5])
def test_vectors_come_in_the_order_of_their_chunks(sizes: list[int]) -> None:
    everything = np.arange(sum(sizes) * 2, dtype=np.float32).reshape(-1, 2)
    items: Any = [SimpleNamespace(vectors=part) for part in np.split(everything, np.cumsum(sizes)[:-1])]
    items.insert(len(items) // 2, SimpleNamespace(vectors=None))
    fragments: Any = SimpleNamespace(vectorizer=SimpleNamespace(store="vector"))
    found = list(writing_table._vector_fields(fragments, items))
    assert found == copybuffer.vector_fields(everything, "vector")
