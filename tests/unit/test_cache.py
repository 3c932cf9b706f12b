"""What a worker remembers: the right vectors, of the right model, within its bytes, and only where it pays."""

from __future__ import annotations

import gc
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgvec_queue.chunking import Chunk
from pgvec_queue.embedders import ModelSpec
from pgvec_queue.embedders.hashing import HashingEmbedder
from pgvec_queue.errors import SettingsError
from pgvec_queue.worker.cache import ENTRY_BYTES, HOPELESS, LONGEST_REST, REST, Cache, CacheLook

ENTRY = 4 * 8 + ENTRY_BYTES


def embedder(model: str = "hashing-8", **spec: Any) -> HashingEmbedder:
    return HashingEmbedder(ModelSpec("hashing", model, **spec))


def chunks(*texts: str) -> list[Chunk]:
    return [Chunk(0, text, 1, text) for text in texts]


class Clock:
    """Tells seconds; each look at it takes some."""

    def __init__(self, step: float = 0.0) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def embed(cache: Cache, model: HashingEmbedder, *texts: str, seconds: float = 1.0) -> list[str]:
    """Does what a worker does; returns the texts that the model was given."""
    some = chunks(*texts)
    found = cache.find(model, "test", some)
    left = [at for at in range(len(texts)) if found is None or at not in found.places]
    made = model.embed_documents([texts[at] for at in left], [1] * len(left))
    if found is not None:
        right = model.embed_documents([texts[at] for at in found.places], [1] * len(found.places))
        assert found.vectors.tobytes() == right.tobytes()
        cache.add(model, found, left, made, seconds)
    return [texts[at] for at in left]


TEXTS = st.lists(st.sampled_from([f"text {i}" for i in range(12)]), unique=True, min_size=1, max_size=10)


@settings(max_examples=100, deadline=None)
@given(calls=st.lists(TEXTS, max_size=12), capacity=st.integers(1, 8))
def test_it_holds_the_texts_that_were_used_last_and_no_more_than_fit(calls: list[list[str]], capacity: int) -> None:
    cache, model = Cache(capacity * ENTRY + ENTRY - 1), embedder()
    used: OrderedDict[str, None] = OrderedDict()
    for texts in calls:
        known = [text for text in texts if text in used]
        assert embed(cache, model, *texts) == [text for text in texts if text not in used]
        for text in known:
            used.move_to_end(text)
        for text in [text for text in texts if text not in known][-capacity:]:
            used[text] = None
            if len(used) > capacity:
                used.popitem(last=False)
        assert cache.look.chunks == len(used)
        assert cache.look.bytes == len(used) * ENTRY <= capacity * ENTRY


@settings(max_examples=50, deadline=None)
@given(calls=st.lists(st.tuples(st.integers(0, 2), TEXTS), max_size=20), capacity=st.integers(1, 8))
def test_models_share_the_bytes_and_never_a_vector(calls: list[tuple[int, list[str]]], capacity: int) -> None:
    models = [embedder(), embedder(document_prompt="passage: "), embedder("hashing-16")]
    size = capacity * (64 + ENTRY_BYTES)
    cache = Cache(size)
    given_to: list[set[str]] = [set(), set(), set()]
    for which, texts in calls:
        made = embed(cache, models[which], *texts)
        assert set(texts) - given_to[which] <= set(made)
        given_to[which].update(texts)
        assert cache.look.bytes is not None
        assert cache.look.bytes <= size


def test_a_model_that_was_loaded_anew_remembers_nothing() -> None:
    cache, first = Cache(1 << 20), embedder()
    assert embed(cache, first, "a", "b") == ["a", "b"]
    assert embed(cache, first, "a", "b") == []
    again = embedder()
    assert embed(cache, again, "a", "b") == ["a", "b"]


def test_an_address_that_another_model_had_before_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python gives a new object the place of one that has gone, so a model of another dtype may lie where the old one
    lay.
    """
    monkeypatch.setattr("pgvec_queue.worker.cache.id", lambda _: 1, raising=False)
    cache, first = Cache(1 << 20), embedder()
    embed(cache, first, "a")
    assert embed(cache, embedder(document_prompt="other: "), "a") == ["a"]


def test_what_was_remembered_of_a_model_that_has_gone_is_given_back() -> None:
    cache, first = Cache(1 << 20), embedder()
    embed(cache, first, "a", "b")
    del first
    gc.collect()
    embed(cache, embedder(), "c")
    assert cache.look.chunks == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_call_with_what_is_no_number_is_not_remembered(bad: float) -> None:
    cache, model = Cache(1 << 20), embedder()
    some = chunks("a", "b")
    found = cache.find(model, "test", some)
    assert found is not None
    made = model.embed_documents(["a", "b"], [1, 1])
    made[1, 3] = bad
    cache.add(model, found, [0, 1], made, 1.0)
    assert embed(cache, model, "a", "b") == ["a", "b"]


def test_none_is_none() -> None:
    cache = Cache(0)
    assert (cache.look.chunks, cache.look.bytes) == (None, None)
    assert embed(cache, embedder(), "a") == embed(cache, embedder(), "a") == ["a"]
    assert cache.look.lookups == 0


def test_one_that_cannot_hold_a_single_vector_is_none() -> None:
    cache, model = Cache(ENTRY - 1), embedder()
    assert embed(cache, model, "a") == embed(cache, model, "a") == ["a"]


def test_more_than_the_machine_has_is_refused_in_words() -> None:
    with pytest.raises(SettingsError, match="give less with --cache"):
        Cache(1 << 60).find(embedder(), "test", chunks("a"))


# Where it does not pay


def some(number: int, start: int = 0) -> list[str]:
    return [f"text {i}" for i in range(start, start + number)]


def test_without_a_size_it_is_switched_off_where_it_costs_more_than_it_saves() -> None:
    clock = Clock(step=1.0)  # a second for each look-up, and for each time that something is stored
    cache, model = Cache(clock=clock, sample=100), embedder()
    for start in range(0, 90, 10):
        embed(cache, model, *some(10, start), seconds=10.0)
    assert cache.look.chunks == 90
    # Hits would have been worth it, but there are none.
    embed(cache, model, *some(10, 90), seconds=10.0)
    assert cache.look == CacheLook(None, None, 100, 0)
    assert embed(cache, model, *some(10)) == some(10)


def test_where_hits_save_more_than_look_ups_cost_it_stays() -> None:
    clock = Clock(step=0.1)
    cache, model = Cache(clock=clock, sample=100), embedder()
    for _ in range(50):
        embed(cache, model, *some(10), seconds=10.0)
    assert cache.look.chunks == 10
    assert cache.look.hits == 490


def test_where_even_nothing_but_hits_would_not_pay_that_is_seen_soon() -> None:
    cache, model = Cache(clock=Clock(step=1.0)), embedder()
    for start in range(0, HOPELESS, 500):
        embed(cache, model, *some(500, start), seconds=0.001)
    assert cache.look.chunks is None


def test_it_is_tried_again_after_a_while_and_each_time_later() -> None:
    clock = Clock(step=1.0)
    cache, model = Cache(clock=clock, sample=10), embedder()
    texts = some(10)
    rests = []
    many = chunks("x") * 100_000
    for _ in range(6):
        while cache.look.chunks is not None:
            embed(cache, model, *texts, seconds=0.001)
        rest = 0
        while cache.find(model, "test", many) is None:
            rest += len(many)
        rests.append(rest)
        assert cache.look.chunks is not None
    assert rests == [REST, 2 * REST, 4 * REST, 8 * REST, 16 * REST, LONGEST_REST]


def test_a_size_that_was_given_holds_whether_it_pays_or_not() -> None:
    cache, model = Cache(1 << 20, clock=Clock(step=1.0), sample=10), embedder()
    for start in range(0, 1_000, 100):
        embed(cache, model, *some(100, start), seconds=0.0001)
    assert cache.look.chunks == 1_000
