"""Batches hold every text once, keep to the budget, and waste little on padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvec_queue.embedders.batching import AnyShape, Batch, FixedShapes, Shapes, first_batch, longest_first

lengths = st.lists(st.integers(1, 700), min_size=1, max_size=80)
shapes_ = st.sampled_from([AnyShape(), AnyShape(8), FixedShapes(), FixedShapes((16, 100))])


def cut(tokens: list[int], budget: int, shapes: Shapes) -> list[Batch]:
    order = longest_first(tokens)
    batches = []
    while len(order):
        batches.append(first_batch(order, tokens, budget, shapes))
        order = order[len(batches[-1].indexes) :]
    return batches


@given(tokens=lengths, budget=st.integers(1, 5000), shapes=shapes_)
def test_every_text_is_in_one_batch_that_holds_it(tokens: list[int], budget: int, shapes: Shapes) -> None:
    batches = cut(tokens, budget, shapes)
    assert sorted(index for batch in batches for index in batch.indexes) == list(range(len(tokens)))
    for batch in batches:
        assert 1 <= len(batch.indexes) <= batch.rows
        assert max(tokens[index] for index in batch.indexes) <= batch.length
        assert batch.tokens <= budget or batch.rows == 1
    longest = [max(tokens[index] for index in batch.indexes) for batch in batches]
    assert longest == sorted(longest, reverse=True)


@given(tokens=lengths, budget=st.integers(512, 5000))
def test_fixed_shapes_are_a_handful(tokens: list[int], budget: int) -> None:
    shapes = FixedShapes((64, 128, 256, 512, 1024))
    found = {(batch.rows, batch.length) for batch in cut(tokens, budget, shapes)}
    assert {length for _, length in found} <= set(shapes.lengths)
    assert all(len({rows for rows, one in found if one == length}) <= 3 for length in shapes.lengths)


@pytest.mark.parametrize("budget", [512, 1024, 2048, 4096])
def test_padding_is_a_few_percent_over_a_window(budget: int) -> None:
    choose = np.random.default_rng(7)
    tokens = np.clip(choose.gamma(2.0, 35.0, size=230), 5, 128).astype(int).tolist()
    batches = cut(tokens, budget, AnyShape())
    assert sum(tokens) <= sum(batch.tokens for batch in batches) <= 1.05 * sum(tokens)
    assert len(batches) < len(tokens) / 6
