"""Runs a model's transformer by OpenVINO in place of torch, on processors that it is faster on.

Only the transformer is replaced: pooling and whatever else follows it stays as the model has it. Whether the vectors
are the same, and whether it pays, is for the caller to measure.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from pgvec_queue.errors import MissingExtraError

EXTRA = "openvino"
_FIELDS = ("model", "auto_model")
"""Where a sentence-transformers module keeps its transformer; the second is the name before 5.4."""
_SETTINGS = {
    "PERFORMANCE_HINT": "LATENCY",
    "INFERENCE_PRECISION_HINT": "f32",
    # Several workers would all be pinned to the same cores.
    "ENABLE_CPU_PINNING": "NO",
}


class UnsupportedError(Exception):
    """The model cannot be run by OpenVINO; the text says why."""


class Swap:
    """A model's transformer, and what OpenVINO made of it, one of which is in its place."""

    def __init__(self, torch: Any, model: Any, names: frozenset[str], threads: int) -> None:
        """Converts the transformer of ``model``, a ``SentenceTransformer`` in float32 on the CPU, and puts it in place.

        ``names`` are the tensors it is called with. Raises ``MissingExtraError`` without the package, and
        ``UnsupportedError`` where the model is no transformer from ids to hidden states, or OpenVINO cannot have it.
        """
        openvino = _import()
        self._module, self._field = _find(model)
        self._original = getattr(self._module, self._field)
        try:
            converted = _convert(openvino, torch, self._original, names)
            compiled = _core().compile_model(converted, "CPU", {**_SETTINGS, "INFERENCE_NUM_THREADS": str(threads)})
        except Exception as error:
            # Whatever its frontend finds: operations it does not know, control flow, its own failures.
            lines = str(error).strip().splitlines()
            raise UnsupportedError(f"{type(error).__name__}: {lines[-1] if lines else 'no reason given'}") from error
        self._compiled = _Compiled(torch, compiled, self._original.config, sorted(names))
        self.use()

    def use(self) -> None:
        """Has OpenVINO run the transformer."""
        self._put(self._compiled)

    def restore(self) -> None:
        """Has torch run the transformer."""
        self._put(self._original)

    def settle(self) -> None:
        """Leaves it to OpenVINO for good, and gives up torch's weights."""
        self.use()
        self._original = None

    def _put(self, transformer: Any) -> None:
        # Deleted first: torch refuses to put what is no module of its own in a module's place.
        delattr(self._module, self._field)
        setattr(self._module, self._field, transformer)


class _Compiled:
    """Answers as the transformer whose place it takes."""

    def __init__(self, torch: Any, compiled: Any, config: Any, names: list[str]) -> None:
        from transformers.modeling_outputs import BaseModelOutput

        self.config = config
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self._torch = torch
        self._compiled = compiled
        self._output = BaseModelOutput
        self._names = names

    def forward(self, **features: Any) -> Any:
        hidden = self._compiled({name: features[name].numpy() for name in self._names})[0]
        return self._output(last_hidden_state=self._torch.from_numpy(hidden))

    __call__ = forward


def is_installed() -> bool:
    """Tells whether the package is there, without loading it."""
    import importlib.util

    return importlib.util.find_spec("openvino") is not None


@functools.cache
def _core() -> Any:
    """Returns the one runtime of this process, which is never closed.

    Its CPU plugin gives the thread that opens it a signal stack of its own and takes that away when it is closed; of
    two, the later closed puts back one that is gone, and the next signal ends the process.
    """
    return _import().Core()


def _import() -> Any:
    # Each import is reported to the package's maker otherwise, over the network and unasked.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the OpenVINO runtime ({error})", EXTRA) from error
    return openvino


def _find(model: Any) -> tuple[Any, str]:
    module = next(iter(model))
    field = next((name for name in _FIELDS if name in getattr(module, "_modules", {})), None)
    if field is None or getattr(getattr(module, field), "config", None) is None:
        raise UnsupportedError(f"its first module, {type(module).__name__}, holds no transformer")
    text = getattr(module, "modality_config", {"text": {}}).get("text") or {}
    if text.get("method", "forward") != "forward" or text.get("method_output_name") not in (None, "last_hidden_state"):
        raise UnsupportedError(f"what its transformer gives is {text.get('method_output_name')}, not hidden states")
    return module, field


def _convert(openvino: Any, torch: Any, transformer: Any, names: frozenset[str]) -> Any:
    """Returns the OpenVINO model that makes hidden states of ids, and nothing else."""

    class HiddenStates(torch.nn.Module):  # type: ignore[misc]
        """The transformer without what comes after its hidden states, such as a pooler."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            return self.transformer(
                input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **types
            ).last_hidden_state

    example = {name: torch.ones(2, 8, dtype=torch.long) for name in names}
    # With padding, or the trace might leave the mask out.
    example["attention_mask"][1, 4:] = 0
    if "token_type_ids" in example:
        example["token_type_ids"] = torch.zeros_like(example["input_ids"])
    with _quiet(), torch.inference_mode():
        return openvino.convert_model(HiddenStates().eval(), example_input=example)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of each branch that depends on a shape; whether that matters is measured afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
