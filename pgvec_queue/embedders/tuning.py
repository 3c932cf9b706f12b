"""Measures what suits a device, once in a while, and remembers it: tokens per batch, and for a CPU its threads.

What was in use already is kept unless something else is clearly faster, since measurements on a busy machine scatter,
and what was found is forgotten after a week. The file lies in the user's cache directory; without it everything is
measured again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs

from pgvec_queue.log import get_logger
from pgvec_queue.settings import APPLICATION

log = get_logger("pgvec.embedders")

Measure = Callable[[int], float]
"""Tokens per second with a candidate."""

BETTER = 1.1
"""Times as fast as what is in use that something else has to be."""
DAYS = 7
SECONDS = 4.0
"""Longest that one question may take."""
_ROUNDS = 3


def choose(candidates: Sequence[int], present: int, measure: Measure, seconds: float = SECONDS) -> int:
    """Returns the candidate with which ``measure`` gives most, or ``present``, which is one of them.

    ``measure`` returns tokens per second. Candidates are measured in turns, smallest first, each at its best; one that
    the time does not suffice for is left out.
    """
    best: dict[int, float] = {}
    until = time.monotonic() + seconds
    took: dict[int, float] = {}
    for turn in range(_ROUNDS + 1):
        for candidate in sorted(candidates):
            began = time.monotonic()
            # A larger one takes as much longer as it is larger.
            expected = max((took[one] * candidate / one for one in took), default=0.0)
            if began + expected > until:
                continue
            rate = measure(candidate)
            took[candidate] = time.monotonic() - began
            if turn:
                # The first turn warms up.
                best[candidate] = max(rate, best.get(candidate, 0.0))
    fastest = max(best, key=best.__getitem__, default=present)
    if fastest == present or best[fastest] < BETTER * best.get(present, float("inf")):
        return present
    return fastest


class Memory:
    """Numbers under names for a week, in a file that several processes may write; the last one wins."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or platformdirs.user_cache_path(APPLICATION, appauthor=False) / "devices.json"

    def get(self, name: str) -> int | None:
        found = self._read().get(name)
        return found["value"] if found is not None else None

    def put(self, name: str, value: int) -> None:
        """Keeps the number; where nothing can be written, it is measured again the next time."""
        known = {**self._read(), name: {"value": value, "at": int(time.time())}}
        draft = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(known, indent=1, sort_keys=True))
            draft.replace(self._file)
        except OSError as error:
            log.debug("what was measured is not remembered", error=str(error))
            with contextlib.suppress(OSError):
                draft.unlink()

    def _read(self) -> dict[str, dict[str, int]]:
        """Returns what is neither too old nor damaged."""
        try:
            known = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        oldest = time.time() - DAYS * 86_400
        return {
            name: found
            for name, found in (known.items() if isinstance(known, dict) else ())
            if isinstance(found, dict)
            and isinstance(found.get("value"), int)
            and found["value"] > 0
            and isinstance(found.get("at"), int)
            and found["at"] > oldest
        }
