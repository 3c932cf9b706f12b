"""The models that a worker holds: loaded when a job needs one, least recently used out first, within a budget of
memory.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict

from pgvec_queue import embedders
from pgvec_queue.embedders import DeviceOptions, Embedder, ModelSpec
from pgvec_queue.log import get_logger

log = get_logger("pgvec.worker")


class Models:
    """A cache of loaded models; one stage borrows, another gives back, anyone may look."""

    def __init__(self, options: DeviceOptions, budget: int | None) -> None:
        """``budget`` is in bytes of what models hold; None: no bound. One model is always kept."""
        self._options = options
        self._budget = budget
        self._changed = threading.Condition()
        self._loaded: OrderedDict[ModelSpec, Embedder] = OrderedDict()
        self._borrowed: Counter[ModelSpec] = Counter()
        self.loads = 0

    def borrow(self, spec: ModelSpec) -> Embedder:
        """Returns the model, loading it first where needed; every call is followed by one of ``give_back``.

        Within a budget, another model is loaded only when none is in use, so that one can be dropped for it. Raises
        what ``embedders.load`` raises.
        """
        with self._changed:
            found = self._loaded.get(spec)
            if found is None and self._budget is not None:
                self._changed.wait_for(lambda: not self._borrowed.total())
            if found is not None:
                self._loaded.move_to_end(spec)
                self._borrowed[spec] += 1
                return found
        log.info("model is loading", model=spec.model)
        began = time.monotonic()
        loaded = embedders.load(spec, self._options)
        with self._changed:
            self._loaded[spec] = loaded
            self._borrowed[spec] += 1
            self.loads += 1
            dropped = self._over_budget()
        for name, old in dropped:
            log.info("model is dropped to stay within the memory for models", model=name)
            old.close()
        log.info(
            "model is loaded",
            model=spec.model,
            device=loaded.device,
            dtype=loaded.dtype,
            runtime=getattr(loaded, "runtime", None),
            seconds=round(time.monotonic() - began, 2),
        )
        return loaded

    def give_back(self, spec: ModelSpec) -> None:
        with self._changed:
            self._borrowed[spec] -= 1
            self._changed.notify_all()

    def _over_budget(self) -> list[tuple[str, Embedder]]:
        dropped = []
        while (
            self._budget is not None
            and len(self._loaded) > 1
            and sum(embedder.memory_bytes for embedder in self._loaded.values()) > self._budget
        ):
            spec, embedder = self._loaded.popitem(last=False)
            dropped.append((spec.model, embedder))
        return dropped

    @property
    def names(self) -> list[str]:
        with self._changed:
            return [spec.model for spec in self._loaded]

    @property
    def latest(self) -> Embedder | None:
        """The model used last."""
        with self._changed:
            return next(reversed(self._loaded.values())) if self._loaded else None

    @property
    def memory_bytes(self) -> int:
        """What the models hold."""
        with self._changed:
            return sum(embedder.memory_bytes for embedder in self._loaded.values())

    def close(self) -> None:
        with self._changed:
            loaded = list(self._loaded.values())
            self._loaded.clear()
        for embedder in loaded:
            embedder.close()
