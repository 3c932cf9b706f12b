"""The real MiniLM run by OpenVINO: the same vectors, chosen by measurement, refused where it cannot be."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pgvec_queue.embedders import (
    DEFAULT_MODEL,
    DeviceOptions,
    ModelSpec,
    Vectors,
    load,
    model_files,
    openvino,
    sentence_transformers,
)
from pgvec_queue.embedders.sentence_transformers import SentenceTransformersEmbedder
from pgvec_queue.embedders.tuning import Memory
from pgvec_queue.errors import MissingExtraError, SettingsError
from tests.support import Bench, run_pgvec

# In one process: each would load torch and the models again.
pytestmark = [pytest.mark.model, pytest.mark.xdist_group("model")]

SPEC = ModelSpec("sentence-transformers", DEFAULT_MODEL)
WORDS = ["the", "queue", "of", "a", "database,", "worker", "17:", "vectors!", "Straße", "naïve", "世界", "jumped"]


def _open(runtime: str, memory: Memory | None = None, spec: ModelSpec = SPEC) -> SentenceTransformersEmbedder:
    options = DeviceOptions(device="cpu", batch_tokens=1024, threads=2, runtime=runtime)
    return SentenceTransformersEmbedder(spec, options, memory)


@pytest.fixture(scope="module")
def fast() -> Iterator[SentenceTransformersEmbedder]:
    embedder = _open("openvino")
    yield embedder
    embedder.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[SentenceTransformersEmbedder]:
    embedder = _open("torch")
    yield embedder
    embedder.close()


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """MiniLM cut to the first of its six layers, which OpenVINO compiles in a fraction of the time."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(model_files.locate(SPEC).path))
    whole = model[0].auto_model
    whole.encoder.layer = whole.encoder.layer[:1]
    whole.config.num_hidden_layers = 1
    directory = tmp_path_factory.mktemp("short") / "MiniLM-L1"
    model.save(str(directory))
    return ModelSpec("sentence-transformers", str(directory))


def _texts() -> list[str]:
    choose = random.Random(1)
    return ["", "x", *(" ".join(choose.choices(WORDS, k=choose.randint(1, 300))) for _ in range(60))]


def _embed(embedder: SentenceTransformersEmbedder, texts: list[str], *, by_ids: bool = True) -> Vectors:
    ids = embedder.tokenizer.inputs(texts)
    assert ids is not None
    return embedder.embed_documents(texts, [len(one) for one in ids], ids if by_ids else None)


@pytest.mark.parametrize("by_ids", [True, False])
def test_vectors_are_those_of_torch(
    fast: SentenceTransformersEmbedder, plain: SentenceTransformersEmbedder, by_ids: bool
) -> None:
    texts = _texts()
    found, expected = _embed(fast, texts, by_ids=by_ids), _embed(plain, texts)
    assert (found * expected).sum(axis=1).min() > 0.99999
    assert np.allclose(fast.embed_query("a question"), plain.embed_query("a question"), atol=1e-5)


def test_what_it_is_and_holds_is_as_with_torch(
    fast: SentenceTransformersEmbedder, plain: SentenceTransformersEmbedder
) -> None:
    assert (fast.runtime, plain.runtime) == ("openvino", "torch")
    assert (fast.device, fast.dtype, fast.info) == (plain.device, plain.dtype, plain.info)
    assert fast.memory_bytes == plain.memory_bytes > 80_000_000


def test_a_vector_is_not_overwritten_by_the_next_batch(tmp_path: Path, short: ModelSpec) -> None:
    """Pooling by the first token, unnormalized, gives a view of what the runtime has returned."""
    model = tmp_path / "model"
    shutil.copytree(short.model, model)
    (model / "modules.json").write_text(json.dumps(json.loads((model / "modules.json").read_text())[:2]))
    pooling = json.loads((model / "1_Pooling" / "config.json").read_text())
    pooling |= {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    (model / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    spec = ModelSpec("sentence-transformers", str(model))
    texts = _texts()
    assert np.allclose(_embed(_open("openvino", spec=spec), texts), _embed(_open("torch", spec=spec), texts), atol=1e-3)


@pytest.mark.parametrize("faster", ["torch", "openvino"])
def test_the_faster_one_is_taken_and_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, short: ModelSpec, faster: str
) -> None:
    memory = Memory(tmp_path / "devices.json")
    measured = []

    def rate(self: SentenceTransformersEmbedder, batch_tokens: int) -> float:
        by = "openvino" if type(self._model[0].auto_model).__module__ == openvino.__name__ else "torch"
        measured.append(by)
        return 1000.0 if by == faster else 500.0

    monkeypatch.setattr(SentenceTransformersEmbedder, "_rate", rate)
    assert _open("auto", memory, short).runtime == faster
    assert {*measured} == {"torch", "openvino"}
    measured.clear()
    again = _open("auto", memory, short)
    assert (again.runtime, measured) == (faster, [])
    assert _embed(again, ["as before"]).shape == (1, 384)


def test_vectors_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, short: ModelSpec) -> None:
    monkeypatch.setattr(sentence_transformers, "SAME", 1.1)
    with pytest.raises(SettingsError, match=r"cannot run .* \(its vectors have a cosine of 1\.0000 with torch.s\)"):
        _open("openvino", spec=short)
    memory = Memory(tmp_path / "devices.json")
    embedder = _open("auto", memory, short)
    assert embedder.runtime == "torch"
    assert _embed(embedder, ["torch is back in its place"]).shape == (1, 384)
    monkeypatch.setattr(openvino, "Swap", None)
    assert _open("auto", memory, short).runtime == "torch", "it is not tried again"


def test_another_dtype_is_refused_where_it_is_asked_for() -> None:
    options = DeviceOptions(device="cpu", dtype="bfloat16", batch_tokens=1024, threads=2)
    assert SentenceTransformersEmbedder(SPEC, options).runtime == "torch"
    with pytest.raises(SettingsError, match="float32 on the CPU, not in bfloat16 on cpu; leave --runtime out"):
        load(SPEC, DeviceOptions(device="cpu", dtype="bfloat16", runtime="openvino"))


def test_a_model_without_a_transformer_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = SentenceTransformer(str(model_files.locate(SPEC).path)).tokenizer
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)]).save(str(tmp_path / "static"))
    spec = ModelSpec("sentence-transformers", str(tmp_path / "static"))
    assert _open("auto", Memory(tmp_path / "devices.json"), spec).runtime == "torch"
    with pytest.raises(SettingsError, match=r"OpenVINO cannot run .*leave --runtime out"):
        _open("openvino", spec=spec)


def test_without_the_package_torch_is_taken_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert _open("auto", Memory(tmp_path / "devices.json")).runtime == "torch"
    with pytest.raises(MissingExtraError, match=r"pip install 'pgvec-queue\[openvino\]'"):
        _open("openvino")


def test_a_process_calls_nobody_and_outlives_models_that_come_and_go(short: ModelSpec) -> None:
    """The maker's own reporting is never loaded; and the runtime changes the stack on which signals are handled."""
    program = """
import faulthandler, gc, os, signal, sys, pgvec_queue.embedders as e
faulthandler.enable()
def model(): return e.load(e.ModelSpec("sentence-transformers", sys.argv[1]),
                           e.DeviceOptions("cpu", threads=1, batch_tokens=512, runtime="openvino"))
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
first = model(); second = model()
print(first.runtime, [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module])
del first; gc.collect()
del second; gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""
    ran = subprocess.run([sys.executable, "-c", program, short.model], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "openvino []\nheard\n"), ran


def test_a_worker_says_what_computes(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 20) i")
    bench.enqueue("docs", "body", model=DEFAULT_MODEL)
    ran = run_pgvec("work", "--drain", "--runtime", "openvino", "--threads", "2", dsn=bench.dsn)
    assert ran.code == 0, ran
    assert "device=cpu dtype=float32 runtime=openvino" in ran.err
    assert bench.value("SELECT count(*) FROM docs_vectors") == 20
