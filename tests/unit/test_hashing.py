"""The hashing embedder: the same text gives the same bytes, whoever computes it and whatever it is computed with."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvec_queue.embedders import DeviceOptions, ModelSpec, Vectors, describe, load
from pgvec_queue.embedders.hashing import HashingEmbedder
from pgvec_queue.errors import EmbedderError, Kind


def spec(model: str = "hashing-384", dimensions: int | None = None) -> ModelSpec:
    return ModelSpec("hashing", model, dimensions=dimensions)


def embed(embedder: HashingEmbedder, texts: list[str]) -> Vectors:
    return embedder.embed_documents(texts, embedder.tokenizer.count(texts))


@pytest.fixture(scope="module")
def embedder() -> HashingEmbedder:
    return HashingEmbedder(spec())


@pytest.mark.parametrize("dimensions", [1, 384, 16_000])
def test_the_name_tells_the_dimensions(dimensions: int) -> None:
    info = describe(spec(f"hashing-{dimensions}"))
    assert (info.dimensions, info.max_tokens, info.revision) == (dimensions, None, None)


@pytest.mark.parametrize("model", ["hashing-0", "hashing-16001", "hashing", "hashing-384x", "hashing--1", "minilm"])
def test_a_name_that_tells_no_dimensions_is_the_vectorizers_error(model: str) -> None:
    with pytest.raises(EmbedderError, match="write hashing-<dimensions>") as caught:
        describe(spec(model))
    assert caught.value.kind is Kind.VECTORIZER


def test_dimensions_that_contradict_the_name_are_refused() -> None:
    assert describe(spec("hashing-384", 384)).dimensions == 384
    with pytest.raises(EmbedderError, match="name it hashing-128") as caught:
        describe(spec("hashing-384", 128))
    assert caught.value.kind is Kind.VECTORIZER


def test_vectors_are_the_same_bytes_on_every_machine(embedder: HashingEmbedder) -> None:
    texts = ["", "a", "Grüße, 世界", "x" * 5000, "line\nbreak"]
    assert hashlib.sha256(embed(embedder, texts).tobytes()).hexdigest() == (
        "1ba05b6cecc9c1c3e61d93d7b821bf0ca01d0c0e8d6410273bdc25bf444b274a"
    )
    small = HashingEmbedder(spec("hashing-3"))
    assert embed(small, ["a", "b"]).tobytes().hex() == "907bec3d1eec4e3f3acd133f4f1a34bf14a500bf14a5003f"


def test_a_vector_is_the_scaled_sum_of_five_table_rows() -> None:
    dimensions, text = 7, "queue"
    stream = hashlib.shake_256(b"pgvec-queue hashing embedder").digest(5 * 256 * dimensions)
    bits = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    total = [0] * dimensions
    for table in range(5):
        start = (table * 1024 + (bits >> 10 * table) % 1024) * dimensions
        for column in range(dimensions):
            byte, quarter = divmod(start + column, 4)
            total[column] += (stream[byte] >> 2 * quarter) % 4 * 2 - 3
    scale = np.float32(1 / np.sqrt(sum(value * value for value in total)))
    expected = np.array(total, np.float32) * scale
    assert embed(HashingEmbedder(spec("hashing-7")), [text])[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("dimensions", [1, 2, 384, 16_000])
def test_vectors_are_float32_of_length_one(dimensions: int) -> None:
    vectors = embed(HashingEmbedder(spec(f"hashing-{dimensions}")), [f"text {i}" for i in range(50)])
    assert vectors.dtype == np.float32
    assert vectors.shape == (50, dimensions)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1.0, atol=2e-7)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=30), st.randoms(use_true_random=False))
def test_a_vector_depends_on_its_text_alone(texts: list[str], random: Random) -> None:
    embedder = HashingEmbedder(spec())
    alone = {text: embedder.embed_query(text).tobytes() for text in texts}
    random.shuffle(texts)
    assert [vector.tobytes() for vector in embedder.embed_queries(texts)] == [alone[text] for text in texts]
    assert [vector.tobytes() for vector in embed(embedder, texts)] == [alone[text] for text in texts]


def test_large_batches_are_the_same_as_small_ones(embedder: HashingEmbedder) -> None:
    texts = [f"text {i}" for i in range(5000)]
    small = [embed(embedder, texts[start : start + 7]) for start in range(0, len(texts), 7)]
    assert embed(embedder, texts).tobytes() == np.concatenate(small).tobytes()


def test_other_texts_have_unrelated_vectors(embedder: HashingEmbedder) -> None:
    vectors = embed(embedder, [f"text {i}" for i in range(500)]).astype(np.float64)
    similar = vectors @ vectors.T - np.eye(500)
    assert np.abs(similar).max() < 0.6
    assert abs(similar.mean()) < 0.01


def test_no_texts_give_no_vectors(embedder: HashingEmbedder) -> None:
    assert embed(embedder, []).shape == (0, 384)


def test_prompts_are_put_before_the_text(embedder: HashingEmbedder) -> None:
    prompted = HashingEmbedder(ModelSpec("hashing", "hashing-384", query_prompt="query: ", document_prompt="passage: "))
    assert (prompted.info.query_prompt, prompted.info.document_prompt) == ("query: ", "passage: ")
    np.testing.assert_array_equal(prompted.embed_query("cat"), embedder.embed_query("query: cat"))
    np.testing.assert_array_equal(embed(prompted, ["cat"]), embed(embedder, ["passage: cat"]))


def test_load_gives_an_embedder_that_says_what_it_is() -> None:
    embedder = load(spec(), DeviceOptions())
    assert (embedder.device, embedder.dtype) == ("cpu", "float32")
    assert embedder.memory_bytes == 5 * 1024 * 384
    assert embedder.tokenizer.count(["two words"]) == [2]
    embedder.close()


def test_importing_the_embedders_loads_no_torch() -> None:
    code = (
        "import sys, pgvec_queue.embedders.hashing, pgvec_queue.embedders.model_files, pgvec_queue.embedders.openai\n"
        "sys.exit(' '.join({'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False)
    assert found.stderr.strip() == ""
