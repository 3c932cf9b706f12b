"""Looks at what would embed: the device, the files of models, and endpoints.

torch is loaded only for a device that was asked for, or where a vectorizer has a model of this machine.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

from pgvec_queue import process
from pgvec_queue.doctor.finding import Finding, error, listed, note, ok, size, warning
from pgvec_queue.doctor.question import Examined, Question
from pgvec_queue.embedders import DeviceOptions, ModelSpec, load, model_files
from pgvec_queue.embedders.openai import ask
from pgvec_queue.errors import EmbedderError, Kind, MissingExtraError, SettingsError
from pgvec_queue.vectorizer import Vectorizer

_EXTRA = "pip install 'pgvec-queue[worker]'"


def device(question: Question, vectorizers: list[Vectorizer]) -> Iterator[Finding]:
    """What a worker here would run local models on."""
    local = [one.name for one in vectorizers if one.embedder == "sentence-transformers"]
    if question.device is None and not local:
        return
    missing = [name for name in ("torch", "sentence_transformers") if importlib.util.find_spec(name) is None]
    if missing:
        said = f"{listed(missing)} is not installed" + (
            f"; workers here leave {listed(local)} to others" if local else ""
        )
        make = error if question.device is not None else warning
        yield make("device", said, _EXTRA)
        return
    from pgvec_queue.embedders import model_loading

    try:
        found = model_loading.find_device(question.device or "auto")
    except (SettingsError, MissingExtraError) as problem:
        yield error("device", str(problem), "choose a device that is there: --device auto")
        return
    import torch

    yield ok("device", _described(torch, found))
    if found == "cpu" and question.device in (None, "auto") and shutil.which("nvidia-smi"):
        yield warning(
            "device",
            f"there is an NVIDIA driver, and torch {torch.__version__} does not see a card",
            "install the CUDA build of torch (pytorch.org/get-started), and see `nvidia-smi`",
        )


def _described(torch: Any, name: str) -> str:
    if name.startswith("cuda"):
        free, total = torch.cuda.mem_get_info(name)
        half = "float16 and bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        return (
            f"{name} ({torch.cuda.get_device_name(name)}), {size(total)} of memory, {size(free)} of it free; "
            f"half precision: {half}; torch {torch.__version__}"
        )
    if name == "mps":
        most = getattr(torch.mps, "recommended_max_memory", None)
        room = f", {size(most())} of memory" if most else ""
        return f"mps{room}; half precision: float16; torch {torch.__version__}"
    runtime = "OpenVINO is installed" if importlib.util.find_spec("openvino") else "without OpenVINO"
    return f"cpu, {process.cores()} cores; no half precision; torch {torch.__version__}, {runtime}"


def files(examined: Examined) -> Iterator[Finding]:
    """Whether the models are on this machine, and which ones they are."""
    specs = _by_spec(examined, "sentence-transformers")
    if specs and importlib.util.find_spec("huggingface_hub") is None:
        yield note("model", "not looked for, since the packages for it are not installed", _EXTRA)
        return
    for spec, names in specs.items():
        yield _files_of(spec, listed(names))


def _files_of(spec: ModelSpec, names: str) -> Finding:
    try:
        found = model_files.locate(spec, fetch=False)
        if found.bundled:
            # Its digest is compared.
            model_files.locate(spec, weights=True, fetch=False)
    except model_files.NotHereError as problem:
        if problem.kind is not Kind.PASSING:
            return error("model", str(problem), "fetch it on a machine that may, and copy its cache", vectorizer=names)
        return note("model", f"{spec.model} is not in this machine's cache; the first job fetches it", vectorizer=names)
    except EmbedderError as problem:
        return error("model", str(problem), "choose another model or revision", vectorizer=names)
    which = f"revision {found.revision}" if found.revision else f"in {found.path}"
    weights = next(found.path.rglob("*.safetensors"), None)
    if weights is None:
        if spec.trust_remote_code and any(found.path.rglob("*.bin")):
            return ok("model", f"{spec.model}, {which}, with pickled weights", vectorizer=names)
        said = f"{spec.model}, {which}: its description is here; the first job fetches its weights"
        return note("model", said, vectorizer=names)
    digest = model_files.digest_in_name(weights)
    hashed = f", weights {digest[:12]}…" if digest else ""
    if found.bundled:
        which, hashed = "from the extra demo", f", weights {model_files.BUNDLED_SHA256[:12]}… as expected"
    return ok("model", f"{spec.model}, {which}{hashed}", vectorizer=names)


def endpoints(examined: Examined) -> Iterator[Finding]:
    """Whether endpoints answer, and take the key."""
    for spec, names in _by_spec(examined, "openai").items():
        yield _asked(spec, listed(names))
        if examined.question.probe_endpoint:
            yield _probed(spec, listed(names))


def _asked(spec: ModelSpec, names: str) -> Finding:
    try:
        host, status = ask(spec)
    except EmbedderError as problem:
        return error("endpoint", str(problem), "see that it runs, and that the URL is right", vectorizer=names)
    if status in (401, 403):
        remedy = "check the key in PGVEC_ENDPOINT_KEY (or OPENAI_API_KEY, for OpenAI)"
        return error("endpoint", f"{host} answers {status}: the key is refused", remedy, vectorizer=names)
    if status >= 500:
        return warning("endpoint", f"{host} answers {status}", "workers wait until it is over", vectorizer=names)
    # Not every one lists its models; that it answers is enough.
    return ok("endpoint", f"{host} answers", vectorizer=names)


def _probed(spec: ModelSpec, names: str) -> Finding:
    try:
        embedder = load(spec, DeviceOptions())
        try:
            vector = embedder.embed_query("probe")
        finally:
            embedder.close()
    except (EmbedderError, MissingExtraError) as problem:
        return error("probe", str(problem), "mend that; the vectorizer would be blocked or wait", vectorizer=names)
    return ok("probe", f"{spec.model} made a vector of {len(vector)} dimensions", vectorizer=names)


def _by_spec(examined: Examined, embedder: str) -> dict[ModelSpec, list[str]]:
    found: dict[ModelSpec, list[str]] = {}
    for one in examined.vectorizers:
        if one.embedder == embedder:
            found.setdefault(one.spec, []).append(one.name)
    return found
