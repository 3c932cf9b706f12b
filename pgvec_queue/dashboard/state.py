"""What is on the screen besides what the database said, and how keys move it.

That is: which vectorizer is chosen, where the list of workers is scrolled to, a question, a message.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pgvec_queue.dashboard.cells import Glyphs
from pgvec_queue.dashboard.snapshot import Snapshot
from pgvec_queue.progress import Progress


@dataclass(frozen=True, slots=True)
class State:
    """All that the screen depends on, but for its size."""

    address: str
    """Of the database, for a person."""
    snapshot: Snapshot | None = None
    """None: nothing has been read yet."""
    clock: str = ""
    """When that was, by the terminal's clock."""
    trouble: str | None = None
    """Why what is shown is not how it is now: since when, and what happens about it."""
    chosen: str | None = None
    scrolling: bool = False
    """Arrows scroll the workers, instead of choosing a vectorizer."""
    offset: int = 0
    """Workers above the first one shown."""
    message: str | None = None
    """What the last key did."""
    wrong: bool = False
    """It did not do that: the message is an error."""
    question: str | None = None
    help: bool = False
    glyphs: Glyphs = field(default_factory=Glyphs)

    @property
    def picked(self) -> Progress | None:
        """The chosen vectorizer; the first one where that is not there."""
        rows = self.snapshot.vectorizers if self.snapshot else ()
        return next((one for one in rows if one.name == self.chosen), rows[0] if rows else None)


def chosen_after(state: State, step: int, *, around: bool = False) -> str | None:
    """Returns the name of the vectorizer so many steps below the chosen one; ``around``: the first follows the last."""
    names = [one.name for one in state.snapshot.vectorizers] if state.snapshot else []
    if not names or state.picked is None:
        return state.chosen
    place = names.index(state.picked.name) + step
    return names[place % len(names) if around else min(max(place, 0), len(names) - 1)]


def offset_after(state: State, step: int, room: int) -> int:
    """Returns where the workers are scrolled to after so many steps, with ``room`` of them on the screen."""
    workers = len(state.snapshot.workers) if state.snapshot else 0
    return min(max(state.offset + step, 0), max(workers - room, 0))
