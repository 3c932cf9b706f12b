"""The sentence-transformers embedder with the real MiniLM: vectors, batches, memory, devices, and models to refuse."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgvec_queue import adoption_check, definition
from pgvec_queue.database import versions
from pgvec_queue.definition import Options
from pgvec_queue.embedders import (
    DEFAULT_MODEL,
    DeviceOptions,
    ModelSpec,
    Vectors,
    describe,
    load,
    model_files,
    model_inputs,
    model_loading,
    tokenizer_of,
)
from pgvec_queue.embedders.batching import FixedShapes
from pgvec_queue.embedders.devices import Cpu
from pgvec_queue.embedders.sentence_transformers import SentenceTransformersEmbedder
from pgvec_queue.embedders.tuning import Memory
from pgvec_queue.errors import DefinitionError, EmbedderError, Kind, SettingsError
from pgvec_queue.tokenizers import HuggingFaceTokenizer
from tests.support import Bench

# In one process: each would load torch and the models again.
pytestmark = [pytest.mark.model, pytest.mark.xdist_group("model")]

WORDS = ["the", "queue", "of", "a", "database,", "worker", "17:", "vectors!", "Straße", "naïve", "世界", "jumped"]
SPEC = ModelSpec("sentence-transformers", DEFAULT_MODEL)

Copy = Callable[..., Path]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentenceTransformersEmbedder]:
    memory = Memory(tmp_path_factory.mktemp("memory") / "devices.json")
    loaded = SentenceTransformersEmbedder(SPEC, DeviceOptions(device="cpu", runtime="torch"), memory)
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
        options = DeviceOptions(device=device, dtype=dtype, batch_tokens=1024, threads=2, runtime="torch")
        opened.append(SentenceTransformersEmbedder(spec, options))
        return opened[-1]

    yield open_embedder
    for embedder in opened:
        embedder.close()


def mixed(count: int, longest: int = 120) -> list[str]:
    choose = random.Random(count)
    return [" ".join(choose.choices(WORDS, k=choose.randint(1, longest))) for _ in range(count)]


def embed(embedder: SentenceTransformersEmbedder, texts: list[str], *, by_ids: bool = True) -> Vectors:
    prompt = embedder.info.document_prompt
    ids = embedder.tokenizer.inputs([prompt + text for text in texts])
    assert ids is not None
    return embedder.embed_documents(texts, [len(one) for one in ids], ids if by_ids else None)


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


def test_queries_together_get_the_vectors_that_each_gets_alone(embedder: SentenceTransformersEmbedder) -> None:
    texts = [*mixed(20), "x"]
    together = embedder.embed_queries(texts)
    assert together.shape == (len(texts), 384)
    assert together.dtype == np.float32
    assert cosines(together, np.stack([embedder.embed_query(text) for text in texts])).min() >= 0.9999


def test_ids_give_the_vectors_that_texts_give(
    copy: Copy, open_model: Callable[..., SentenceTransformersEmbedder], embedder: SentenceTransformersEmbedder
) -> None:
    texts = [*mixed(60), "", "x", "  spaces  ", "word " * 250]
    by_texts = embed(embedder, texts, by_ids=False)
    np.testing.assert_allclose(embed(embedder, texts), by_texts, atol=1e-6)
    own = open_model(copy(config_sentence_transformers={"prompts": {"document": "passage: "}}))
    np.testing.assert_allclose(embed(own, texts[:9]), embed(own, texts[:9], by_ids=False), atol=1e-6)
    assert np.abs(embed(own, texts[:9]) - by_texts[:9]).max() > 0.01


def test_given_ids_a_model_never_tokenizes(embedder: SentenceTransformersEmbedder) -> None:
    seen: list[object] = []
    tokenize = embedder._model.preprocess

    def watched(texts: list[str], **options: Any) -> Any:
        seen.append(texts)
        return tokenize(texts, **options)

    embedder._model.preprocess = watched
    try:
        embed(embedder, mixed(5))
        assert seen == []
        embed(embedder, mixed(5), by_ids=False)
        assert seen != []
    finally:
        del embedder._model.preprocess


def test_a_model_whose_inputs_are_not_ids_alone_is_given_texts(
    copy: Copy, open_model: Callable[..., SentenceTransformersEmbedder], embedder: SentenceTransformersEmbedder
) -> None:
    # Its tokenizer lower-cases, ours was told not to: the ids differ.
    path = copy()
    definition = json.loads((path / "tokenizer.json").read_text())
    definition["normalizer"]["lowercase"] = False
    other = embedder.tokenizer
    own = open_model(path)
    (path / "tokenizer.json").write_text(json.dumps(definition))
    from tokenizers import Tokenizer

    cased = HuggingFaceTokenizer(Tokenizer.from_file(str(path / "tokenizer.json")))
    assert model_inputs.learn(own._model, other, "") is not None
    assert model_inputs.learn(own._model, cased, "A: ") is None


def test_texts_without_padding_become_the_features_that_the_library_packs(
    open_model: Callable[..., SentenceTransformersEmbedder],
) -> None:
    from transformers import DataCollatorWithFlattening

    own = open_model()
    module = own._model[0]
    module.data_collator = DataCollatorWithFlattening(
        return_seq_idx=True, return_flash_attn_kwargs=True, return_position_ids=True
    )
    module.can_flatten_inputs, module._flatten_position_offset = True, 2
    inputs = model_inputs.learn(own._model, own.tokenizer, "")
    assert isinstance(inputs, model_inputs.PackedInputs)
    texts = mixed(7)
    ids = own.tokenizer.inputs(texts)
    assert ids is not None
    ours, theirs = inputs.features(ids, 7, 99), own._model.preprocess(texts, task="document")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(np.asarray(ours[name]), np.asarray(theirs[name])) for name in theirs)


def test_rows_that_fill_a_fixed_shape_change_no_vector(embedder: SentenceTransformersEmbedder) -> None:
    import torch

    texts = mixed(70)
    expected = embed(embedder, texts)
    device = embedder._on
    embedder._on = _FixedCpu(torch)
    try:
        with batches(embedder) as shapes:
            vectors = embed(embedder, texts)
    finally:
        embedder._on = device
    assert cosines(vectors, expected).min() >= 0.9999
    assert {length for _, length in shapes} <= set(FixedShapes().lengths)
    assert len(set(shapes)) <= 3 * len({length for _, length in shapes})


class _FixedCpu(Cpu):
    """A processor with the shapes of Apple's GPU."""

    shapes = FixedShapes()  # type: ignore[assignment]


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


def test_the_tokenizer_of_the_files_is_that_of_the_loaded_model(embedder: SentenceTransformersEmbedder) -> None:
    assert isinstance(embedder.tokenizer, HuggingFaceTokenizer)
    alone = tokenizer_of(SPEC)
    assert isinstance(alone, HuggingFaceTokenizer)
    texts = [*mixed(50), "na\u00efve \u4e16\u754c ABC", "word " * 1000, ""]
    assert alone.count(texts) == embedder.tokenizer.count(texts)
    assert [*map(list, alone.inputs(texts) or [])] == [*map(list, embedder.tokenizer.inputs(texts) or [])]


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

    texts = mixed(80, longest=20)
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


def test_what_suits_the_device_is_measured_once(tmp_path: Path) -> None:
    file = tmp_path / "devices.json"
    options = DeviceOptions(device="cpu", runtime="torch")
    first = SentenceTransformersEmbedder(SPEC, options, Memory(file))
    found = json.loads(file.read_text())
    assert {name.rpartition(": ")[2] for name in found} == {"threads", "batch tokens"}
    batch_tokens = next(name for name in found if name.endswith("batch tokens"))
    assert first.batch_tokens == found[batch_tokens]["value"] in (512, 1024, 2048)
    found[batch_tokens]["value"] = 777
    file.write_text(json.dumps(found))
    assert SentenceTransformersEmbedder(SPEC, options, Memory(file)).batch_tokens == 777
    asked = SentenceTransformersEmbedder(SPEC, replace(options, batch_tokens=99), Memory(file))
    assert asked.batch_tokens == 99


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


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "asked"),
    [
        ("cuda:0", "float16", True, "flash_attention_2"),
        ("cuda:1", "bfloat16", True, "flash_attention_2"),
        ("cuda:0", "float16", False, None),
        ("cuda:0", "float32", True, None),
        ("cpu", "float16", True, None),
        ("mps", "float16", True, None),
    ],
)
def test_attention_without_padding_is_asked_for_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: str, installed: bool, asked: str | None
) -> None:
    import transformers.utils

    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: installed)
    assert model_loading.attention_for(device, dtype) == asked


def test_a_model_without_that_attention_is_run_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the package is not installed: transformers refuses, as it does for a model that has no such attention."""
    monkeypatch.setattr(model_loading, "attention_for", lambda *_: model_loading.UNPADDED)
    embedder = SentenceTransformersEmbedder(SPEC, DeviceOptions(device="cpu", batch_tokens=1024, runtime="torch"))
    assert embedder.embed_documents(["it works"], [4]).shape == (1, 384)


def test_what_encode_has_made_is_taken_over_and_what_another_model_has_is_not(bench: Bench, reference: Any) -> None:
    """As `enqueue --adopt` compares: vectors of a script, by the library's own ``encode``."""
    texts = [" ".join(random.Random(i).choices(WORDS, k=5 + i % 40)) for i in range(30)]
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("CREATE TABLE made (id int, chunk text, embedding halfvec(384)); CREATE INDEX ON made (id)")
    for i, (text, vector) in enumerate(zip(texts, reference.encode(texts), strict=True)):
        bench.sql("INSERT INTO docs VALUES (%s, %s)", i, text)
        bench.sql("INSERT INTO made VALUES (%s, %s, %s::text::halfvec)", i, text, str(vector.tolist()))
    options = Options(source="docs", text=["body"], into="made", store="halfvec", no_chunking=True, adopt=True)
    proposed = definition.propose(bench.connection, options, versions(bench.connection))
    checked = adoption_check.check(bench.connection, proposed, versions(bench.connection))
    assert (checked.compared, checked.documents, dict(checked.left)) == (30, 30, {})
    assert 0.999 <= checked.least <= 1.0001
    bench.sql("UPDATE made SET embedding = (SELECT embedding FROM made WHERE id = 1) WHERE id = 2")
    with pytest.raises(DefinitionError, match=r"of 30 compared, 1 below a cosine of 0\.999"):
        adoption_check.check(bench.connection, proposed, versions(bench.connection))
