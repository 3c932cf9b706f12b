"""Finds the asked-for device, and loads a sentence-transformers model and its tokenizer onto it."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

from pgvec_queue.embedders import ModelSpec, model_files
from pgvec_queue.errors import EmbedderError, Kind, MissingExtraError, SettingsError
from pgvec_queue.log import get_logger
from pgvec_queue.tokenizers import Tokenizer

log = get_logger("pgvec.embedders")

UNPADDED = "flash_attention_2"
"""transformers' name of the attention that knows where each text of a row begins."""
_DTYPES = ("float32", "float16", "bfloat16")
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def find_device(asked: str) -> str:
    """Returns the device that ``asked`` means here; raises as the embedder does when it is not there."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the sentence-transformers embedder ({error})", "worker") from error
    return torch_device(torch, asked)


def torch_device(torch: Any, asked: str) -> str:
    """Returns the torch device for ``--device``; one that is asked for and not there is an error, never replaced."""
    cuda_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if asked == "auto":
        asked = "cuda" if cuda_devices else "mps" if has_mps else "cpu"
    kind, _, number = asked.partition(":")
    if asked == "cpu" or (asked == "mps" and has_mps):
        return asked
    if kind == "cuda" and (asked == "cuda" or number.isdecimal()):
        if int(number or 0) < cuda_devices:
            return f"cuda:{int(number or 0)}"
        why = "this torch is built without CUDA" if torch.version.cuda is None else f"torch sees {cuda_devices} of them"
        raise SettingsError(f"device '{asked}' is not on this machine ({why}); choose another --device, or auto")
    if asked == "mps":
        raise SettingsError("device 'mps' is not on this machine; choose another --device, or auto")
    raise SettingsError(f"there is no device '{asked}'; give --device auto, cpu, mps, cuda or cuda:N")


def torch_dtype(device: str, asked: str) -> str:
    """Returns torch's name of the precision for ``--dtype``; raises ``SettingsError`` where there is no such thing."""
    if asked == "auto":
        return "float32" if device == "cpu" else "float16"
    if asked not in _DTYPES:
        raise SettingsError(f"there is no dtype '{asked}'; give --dtype auto, {', '.join(_DTYPES)}")
    return asked


def attention_for(device: str, dtype: str) -> str | None:
    """Returns the attention to ask for: without padding, where the installed packages have it; None: the model's own.

    With it sentence-transformers puts the texts of a batch into one row, and so does ``model_inputs``.
    """
    from transformers.utils import is_flash_attn_2_available

    if device.startswith("cuda") and dtype in ("float16", "bfloat16") and is_flash_attn_2_available():
        return UNPADDED
    return None


def load(torch: Any, spec: ModelSpec, path: str, device: str, dtype: str) -> Any:
    """Returns the ``SentenceTransformer`` below ``path``, ready on the device."""
    try:
        import sentence_transformers
        import transformers
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the sentence-transformers embedder ({error})", "worker") from error
    hush(transformers)
    # The old name still works in new versions, but not the other way round.
    modern = int(transformers.__version__.partition(".")[0]) >= 5
    model_kwargs: dict[str, object] = {"dtype" if modern else "torch_dtype": getattr(torch, dtype)}
    if not spec.trust_remote_code:
        model_kwargs["use_safetensors"] = True
    open_model = functools.partial(
        sentence_transformers.SentenceTransformer,
        path,
        device=device,
        trust_remote_code=spec.trust_remote_code,
        # All files are there; only a trusted model may name code that lies in another repository.
        local_files_only=not spec.trust_remote_code,
    )
    try:
        model = _opened(open_model, model_kwargs, attention_for(device, dtype))
    except Exception as error:
        if is_out_of_memory(torch, error):
            raise EmbedderError(
                f"model '{spec.model}' does not fit the memory of {device} now", Kind.PASSING
            ) from error
        raise EmbedderError(f"model '{spec.model}' {_why_not_loaded(error)}", Kind.VECTORIZER) from error
    if next(model.parameters()).dtype != getattr(torch, dtype):
        # Not every kind of module heeds the keyword: a table of static embeddings does not.
        model.to(getattr(torch, dtype))
    return model


def _opened(open_model: Callable[..., Any], model_kwargs: dict[str, object], attention: str | None) -> Any:
    """Opens the model with the attention that is asked for, or, where it has none of the kind, with its own."""
    if attention is not None:
        try:
            return open_model(model_kwargs={**model_kwargs, "attn_implementation": attention})
        except (ImportError, ValueError) as error:
            log.info("model has no attention without padding", error=first_line(error))
    return open_model(model_kwargs=model_kwargs)


def _why_not_loaded(error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return model_files.OWN_CODE
    if isinstance(error, ImportError):
        return f"needs a Python package that is not installed: {first_line(error)}"
    return f"cannot be loaded ({first_line(error)}); check that it is a sentence-transformers model"


def hush(transformers: Any) -> None:
    """Keeps the libraries' bars and notices off stderr, unless somebody is looking for a fault."""
    if not log.isEnabledFor(logging.DEBUG):
        transformers.utils.logging.disable_progress_bar()
        for name in ("sentence_transformers", "transformers", "huggingface_hub"):
            logging.getLogger(name).setLevel(logging.ERROR)


def own_tokenizer(spec: ModelSpec, model: Any) -> Tokenizer:
    """Returns a private copy of the model's tokenizer: every call of the model changes its own."""
    import tokenizers

    from pgvec_queue.tokenizers import HuggingFaceTokenizer

    own = getattr(model, "tokenizer", None)
    backend = own if isinstance(own, tokenizers.Tokenizer) else getattr(own, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise EmbedderError(
            f"model '{spec.model}' has no fast tokenizer, which is needed to find where chunks may be cut; "
            "choose a model that has a tokenizer.json",
            Kind.VECTORIZER,
        )
    return HuggingFaceTokenizer(backend)


def longest_input(longest: float | None) -> int | None:
    """Returns a model's own limit in tokens; None where it states none."""
    return None if longest is None or not math.isfinite(longest) or longest >= model_files.NO_LIMIT else int(longest)


def is_out_of_memory(torch: Any, error: Exception) -> bool:
    """True for what torch raises on its devices when memory has run out."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)
    )


def is_device_failure(torch: Any, error: Exception) -> bool:
    """True for errors after which the process cannot use the device again; only newer versions of torch tell them."""
    failure = getattr(torch, "AcceleratorError", ())
    return isinstance(error, failure) and not is_out_of_memory(torch, error)


def first_line(error: Exception) -> str:
    """Returns the kind of an error and the beginning of its text, which may go on for pages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
