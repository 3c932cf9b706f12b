"""A call of the model: every chunk gets the vector of its own input, and is counted under one reason at most."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pgvec_queue import copybuffer
from pgvec_queue.chunking import Chunk
from pgvec_queue.embedders import ModelSpec
from pgvec_queue.embedders.hashing import HashingEmbedder
from pgvec_queue.slices import Document
from pgvec_queue.worker.cache import Found
from pgvec_queue.worker.call import Call
from pgvec_queue.worker.windows import Kept, Ready

MODEL = HashingEmbedder(ModelSpec("hashing", "hashing-8"))
INPUTS = [f"text {i}" for i in range(6)]


def sent(text: str, store: str) -> bytes:
    """A vector as PostgreSQL sends it."""
    (field,) = copybuffer.vector_fields(MODEL.embed_documents([text], [1]), store)
    return field[4:]


@st.composite
def documents(draw: st.DrawFn) -> list[Ready]:
    made: list[Ready] = []
    for number in range(draw(st.integers(0, 6))):
        texts = draw(st.lists(st.sampled_from(INPUTS), max_size=6))
        chunks = [Chunk(at, text, 1, text) for at, text in enumerate(texts)]
        # Of equal chunks a document has kept all or none.
        had = draw(st.sets(st.sampled_from(INPUTS)))
        store = draw(st.sampled_from(["vector", "halfvec"]))
        kept = {at: sent(text, store) for at, text in enumerate(texts) if text in had}
        document = Document((str(number),), b"", None, b"", None, 0, (), 1)
        left = len(texts) - len(kept)
        made.append((document, chunks, Kept(kept, store, left) if kept else None))
    return made


@settings(max_examples=100, deadline=None)
@given(documents=documents(), cached=st.sets(st.sampled_from(INPUTS)))
def test_every_chunk_gets_the_vector_of_its_input_and_the_model_sees_what_nobody_knows(
    documents: list[Ready], cached: set[str]
) -> None:
    call = Call(documents)
    asked = [chunk.input for chunk in call.asked]
    kept = {chunk.input for _, cut, one in documents for at, chunk in enumerate(cut) if one and at in one.vectors}
    inputs = [chunk.input for _, cut, _ in documents for chunk in cut]
    assert asked == [text for text in dict.fromkeys(inputs) if text not in kept]
    places = [at for at, text in enumerate(asked) if text in cached]
    known = MODEL.embed_documents([asked[at] for at in places], [1] * len(places))
    left = call.know(Found([text.encode() for text in asked], places, known))
    given_to = [chunk.input for chunk in call.missing]
    assert given_to == [asked[at] for at in left] == [text for text in asked if text not in cached]
    vectors = call.vectors(MODEL.embed_documents(given_to, [1] * len(given_to)).reshape(-1, 8))
    # What comes from a halfvec is rounded.
    assert np.allclose(vectors, MODEL.embed_documents(inputs, [1] * len(inputs)).reshape(-1, 8), atol=1e-3)
    spared = call.spared()
    if spared is None:
        assert len(given_to) == len(inputs)
        return
    assert len(spared) == len(documents)
    assert sum(one.kept for one in spared) == sum(len(one.vectors) for _, _, one in documents if one)
    assert sum(one.cached for one in spared) == len(places)
    assert len(inputs) - sum(sum(one) for one in spared) == len(given_to)
    assert all(sum(one) <= len(cut) for one, (_, cut, _) in zip(spared, documents, strict=True))


@settings(max_examples=100, deadline=None)
@given(
    vectors=st.lists(st.lists(st.floats(-100, 100, width=16), min_size=3, max_size=3), min_size=1, max_size=20),
    store=st.sampled_from(["vector", "halfvec"]),
)
def test_vectors_are_read_as_they_are_sent_bit_by_bit(vectors: list[list[float]], store: str) -> None:
    made = np.array(vectors, np.float32)
    fields = [field[4:] for field in copybuffer.vector_fields(made, store)]
    assert {len(field) for field in fields} == {copybuffer.vector_size(3, store)}
    assert copybuffer.vectors_of(fields, store).tobytes() == made.tobytes()
