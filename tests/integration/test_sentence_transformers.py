"""The sentence-transformers embedder with the real MiniLM: vectors, batches, memory, devices, and models to refuse."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgvec_queue.embedders import DEFAULT_MODEL, DeviceOptions, ModelSpec, Vectors, describe, load, model_files
from pgvec_queue.embedders.sentence_transformers import SentenceTransformersEmbedder
from pgvec_queue.errors import EmbedderError, Kind, SettingsError

pytestmark = pytest.mark.model

WORDS = ["the", "queue", "of", "a", "database,", "worker", "17:", "vectors!", "Straße", "naïve", "世界", "jumped"]
SPEC = ModelSpec("sentence-transformers", DEFAULT_MODEL)

Copy = Callable[..., Path]


@pytest.fixture(scope="module")
def embedder() -> Iterator[SentenceTransformersEmbedder]:
    loaded = SentenceTransformersEmbedder(SPEC, DeviceOptions(device="cpu"))
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def bundled() -> Path:
    return model_files.locate(SPEC).path


@pytest.fixture(scope="module")
def reference(embedder: SentenceTransformersEmbedder, bundled: Path) -> Any:  # After the import that the embedder made.
    import sentence_transformers

    return sentence_transformers.SentenceTransformer(str(bundled), device="cpu")


@pytest.fixture
def copy(bundled: Path, tmp_path: Path) -> Copy:
    """Makes a directory with MiniLM's files, some of them replaced by other JSON or text, or by nothing."""

    def make(**replaced: object) -> Path:
        shutil.copytree(bundled, tmp_path / "model", ignore=shutil.ignore_patterns("model.safetensors"))
        (tmp_path / "model" / "model.safetensors").symlink_to(bundled / "model.safetensors")
        for name, content in replaced.items():
            file = tmp_path / "model" / {"weights": "model.safetensors"}.get(name, f"{name}.json")
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / "model"

    return make


@pytest.fixture
def open_model() -> Iterator[Callable[..., SentenceTransformersEmbedder]]:
    opened: list[SentenceTransformersEmbedder] = []

    def open_embedder(model: object = DEFAULT_MODEL, device: str = "cpu", dtype: str = "auto", **fields: Any) -> Any:
        spec = ModelSpec("sentence-transformers", str(model), **fields)
        opened.append(SentenceTransformersEmbedder(spec, DeviceOptions(device=device, dtype=dtype)))
        return opened[-1]

    yield open_embedder
    for embedder in opened:
        embedder.close()


def mixed(count: int, longest: int = 120) -> list[str]:
    choose = random.Random(count)
    return [" ".join(choose.choices(WORDS, k=choose.randint(1, longest))) for _ in range(count)]


def embed(embedder: SentenceTransformersEmbedder, texts: list[str]) -> Vectors:
    return embedder.embed_documents(texts, embedder.tokenizer.count(texts))


def cosines(some: Vectors, others: Vectors) -> Vectors:
    lengths = np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1)
    result: Vectors = (some * others).sum(axis=1) / lengths
    return result


@contextmanager
def batches(
    embedder: SentenceTransformersEmbedder, limit: int | None = None, error: Exception | None = None
) -> Iterator[list[tuple[int, int]]]:
    """Yields the list of shapes that the transformer is given; over ``limit`` tokens it raises ``error``."""
    shapes: list[tuple[int, int]] = []

    def before(_: object, args: tuple[dict[str, Any]]) -> None:
        count, longest = args[0]["input_ids"].shape
        shapes.append((count, longest))
        if limit is not None and count * longest > limit:
            assert error is not None
            raise error

    hook = embedder._model[0].register_forward_pre_hook(before)
    budget = embedder.batch_tokens
    try:
        yield shapes
    finally:
        hook.remove()
        embedder._budget = budget


# Vectors


def test_vectors_are_those_of_sentence_transformers(embedder: SentenceTransformersEmbedder, reference: Any) -> None:
    texts = [*mixed(60), "", "x", "  spaces  ", "word " * 250]
    vectors = embed(embedder, texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(texts), 384)
    assert cosines(vectors, reference.encode(texts)).min() >= 0.9999
    assert cosines(embedder.embed_query("one query")[np.newaxis], reference.encode(["one query"]))[0] >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_no_texts_give_no_vectors(embedder: SentenceTransformersEmbedder) -> None:
    assert embed(embedder, []).shape == (0, 384)


def test_the_embedder_agrees_with_the_description_of_its_model(embedder: SentenceTransformersEmbedder) -> None:
    assert embedder.info == describe(SPEC)
    assert (embedder.device, embedder.dtype) == ("cpu", "float32")
    assert 90_000_000 < embedder.memory_bytes < 92_000_000


def test_the_tokenizer_counts_what_the_model_reads(embedder: SentenceTransformersEmbedder) -> None:
    texts = mixed(20)
    read = [len(tokens) for tokens in embedder._model.tokenizer(texts)["input_ids"]]
    assert embedder.tokenizer.count(texts) == read
    assert embedder.tokenizer.count(["word " * 1000]) == [1002]


def test_the_tokenizer_may_be_used_while_the_model_runs(embedder: SentenceTransformersEmbedder) -> None:
    texts = mixed(40)
    expected = embedder.tokenizer.count(texts)
    running = threading.Event()
    stop = threading.Event()
    wrong: list[object] = []

    def count() -> None:
        while not stop.is_set():
            try:
                found = embedder.tokenizer.count(texts)
                if found != expected:
                    wrong.append(found)
            except RuntimeError as error:
                wrong.append(error)
            running.set()

    thread = threading.Thread(target=count)
    thread.start()
    running.wait(10)
    embed(embedder, texts)
    stop.set()
    thread.join()
    assert wrong == []


def test_the_models_prompts_are_used_and_the_specs_before_them(
    copy: Copy, open_model: Callable[..., SentenceTransformersEmbedder], embedder: SentenceTransformersEmbedder
) -> None:
    path = copy(config_sentence_transformers={"prompts": {"query": "query: ", "passage": "passage: "}})
    own = open_model(path)
    assert (own.info.query_prompt, own.info.document_prompt) == ("query: ", "passage: ")
    np.testing.assert_allclose(own.embed_query("cat"), embedder.embed_query("query: cat"), atol=1e-6)
    np.testing.assert_allclose(embed(own, ["cat"]), embed(embedder, ["passage: cat"]), atol=1e-6)
    given = open_model(path, query_prompt="", document_prompt="text: ")
    np.testing.assert_allclose(given.embed_query("cat"), embedder.embed_query("cat"), atol=1e-6)
    np.testing.assert_allclose(embed(given, ["cat"]), embed(embedder, ["text: cat"]), atol=1e-6)


def test_fewer_dimensions_are_the_first_ones_normalized_again(
    copy: Copy, open_model: Callable[..., SentenceTransformersEmbedder], embedder: SentenceTransformersEmbedder
) -> None:
    texts = mixed(5)
    expected = embed(embedder, texts)[:, :64]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    asked = open_model(dimensions=64)
    assert asked.info.dimensions == 64
    np.testing.assert_allclose(embed(asked, texts), expected, atol=1e-6)
    assert asked.embed_query("cat").shape == (64,)
    by_itself = open_model(copy(config_sentence_transformers={"truncate_dim": 64}))
    np.testing.assert_allclose(embed(by_itself, texts), expected, atol=1e-6)


def test_more_dimensions_than_the_model_has_are_the_vectorizers_error(
    open_model: Callable[..., SentenceTransformersEmbedder],
) -> None:
    with pytest.raises(EmbedderError, match="has 384 dimensions and cannot give 385") as caught:
        open_model(dimensions=385)
    assert caught.value.kind is Kind.VECTORIZER


def test_another_dtype_is_used_and_gives_float32(
    open_model: Callable[..., SentenceTransformersEmbedder], embedder: SentenceTransformersEmbedder
) -> None:
    texts = mixed(5)
    half = open_model(dtype="bfloat16")
    assert half.dtype == "bfloat16"
    assert half.memory_bytes < 0.6 * embedder.memory_bytes
    vectors = embed(half, texts)
    assert vectors.dtype == np.float32
    assert cosines(vectors, embed(embedder, texts)).min() > 0.99


# Batches


@pytest.mark.parametrize("budget", [1, 64, 200, 100_000])
def test_batches_keep_to_the_budget_and_the_order(embedder: SentenceTransformersEmbedder, budget: int) -> None:
    texts = mixed(30, longest=20)
    tokens = embedder.tokenizer.count(texts)
    whole = embed(embedder, texts)
    with batches(embedder) as shapes:
        embedder._budget = budget
        vectors = embedder.embed_documents(texts, tokens)
    assert cosines(vectors, whole).min() >= 0.9999
    assert sum(count for count, _ in shapes) == len(texts)
    assert all(count == 1 or count * longest <= budget for count, longest in shapes)
    padded = sum(count * longest for count, longest in shapes)
    if 1 < budget < 100_000:
        assert padded < 1.3 * sum(tokens)
        assert len(shapes) < len(texts)


def test_out_of_memory_halves_the_batches_and_loses_nothing(embedder: SentenceTransformersEmbedder) -> None:
    import torch

    texts = mixed(25, longest=20)
    expected = embed(embedder, texts)
    with batches(embedder, 200, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")) as shapes:
        vectors = embed(embedder, texts)
        assert embedder.batch_tokens <= 200
        failed = sum(count * longest > 200 for count, longest in shapes)
        embed(embedder, texts)
        assert sum(count * longest > 200 for count, longest in shapes) == failed
    assert 1 <= failed <= 3
    assert cosines(vectors, expected).min() >= 0.9999


@pytest.mark.parametrize(
    "message", ["MPS backend out of memory (MPS allocated: 9 GB)", "DefaultCPUAllocator: can't allocate memory"]
)
def test_other_devices_say_out_of_memory_in_words(embedder: SentenceTransformersEmbedder, message: str) -> None:
    with batches(embedder, 100, RuntimeError(message)):
        assert embed(embedder, mixed(20, longest=10)).shape == (20, 384)
        assert embedder.batch_tokens <= 100


def test_a_text_that_alone_is_too_big_is_the_rows_error(embedder: SentenceTransformersEmbedder) -> None:
    import torch

    with (
        batches(embedder, 50, torch.OutOfMemoryError("CUDA out of memory")),
        pytest.raises(EmbedderError, match="a text of 102 tokens alone does not fit") as caught,
    ):
        embed(embedder, ["short", "word " * 100])
    assert caught.value.kind is Kind.ROW


def test_a_query_that_fails_is_an_error_of_ours(embedder: SentenceTransformersEmbedder) -> None:
    with batches(embedder, 0, RuntimeError("shapes differ")), pytest.raises(EmbedderError, match="shapes differ"):
        embedder.embed_query("one")


def test_a_model_that_fails_on_its_input_is_the_rows_error(embedder: SentenceTransformersEmbedder) -> None:
    with (
        batches(embedder, 0, IndexError("index out of range in self")),
        pytest.raises(EmbedderError, match="failed on 2 texts: IndexError: index out of range") as caught,
    ):
        embed(embedder, ["one", "two"])
    assert caught.value.kind is Kind.ROW


def test_a_device_that_broke_is_not_blamed_on_the_rows(embedder: SentenceTransformersEmbedder) -> None:
    import torch

    broken = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with batches(embedder, 0, broken), pytest.raises(torch.AcceleratorError):
        embed(embedder, ["one"])


# Devices


@pytest.mark.parametrize(
    ("device", "dtype", "problem"),
    [
        ("cuda:99", "auto", "device 'cuda:99' is not on this machine"),
        ("gpu", "auto", "there is no device 'gpu'"),
        ("cuda:x", "auto", "there is no device 'cuda:x'"),
        ("cpu:1", "auto", "there is no device 'cpu:1'"),
        ("cpu", "float8", "there is no dtype 'float8'"),
    ],
)
def test_a_device_that_is_not_there_is_never_replaced(device: str, dtype: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        load(SPEC, DeviceOptions(device=device, dtype=dtype))


def test_an_accelerator_that_is_asked_for_and_missing_is_an_error(embedder: SentenceTransformersEmbedder) -> None:
    import torch

    missing = [name for name in ("cuda", "mps") if not getattr(torch, name).is_available()]
    for device in missing:
        with pytest.raises(SettingsError, match=f"device '{device}' is not on this machine"):
            load(SPEC, DeviceOptions(device=device))


def test_auto_takes_the_best_device_there_is(open_model: Callable[..., SentenceTransformersEmbedder]) -> None:
    import torch

    best = "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    automatic = open_model(device="auto")
    assert automatic.device == best
    assert automatic.dtype == ("float32" if best == "cpu" else "float16")


# What cannot be loaded


@pytest.mark.parametrize(
    ("replaced", "problem"),
    [
        ({"weights": None}, "no safetensors weights"),
        ({"weights": "no weights"}, r"cannot be loaded \("),
        ({"config": {"model_type": "nonesuch"}}, r"cannot be loaded \("),
        ({"config": {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}}, "--trust-remote-code"),
        ({"modules": [{"idx": 0, "name": "0", "path": "", "type": "own.Transformer"}]}, "--trust-remote-code"),
        ({"config_sentence_transformers": {"model_type": "SparseEncoder"}}, "is a SparseEncoder"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why_in_one_line(
    copy: Copy,
    open_model: Callable[..., SentenceTransformersEmbedder],
    replaced: dict[str, object],
    problem: str,
) -> None:
    with pytest.raises(EmbedderError, match=problem) as caught:
        open_model(copy(**replaced))
    assert caught.value.kind is Kind.VECTORIZER
    assert "\n" not in str(caught.value)


def test_a_model_without_a_fast_tokenizer_is_refused(
    open_model: Callable[..., SentenceTransformersEmbedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "backend_tokenizer", None)
    with pytest.raises(EmbedderError, match="no fast tokenizer") as caught:
        open_model()
    assert caught.value.kind is Kind.VECTORIZER


def test_loading_and_embedding_print_nothing(
    open_model: Callable[..., SentenceTransformersEmbedder],
    embedder: SentenceTransformersEmbedder,
    capfd: pytest.CaptureFixture[str],
) -> None:
    embed(open_model(), ["word " * 600, "short"])
    assert capfd.readouterr() == ("", "")
