"""Measures this machine and its database: what `pgvec bench` runs, one module per measure.

Each measure has a database of its own, works it off with real worker processes, and gives its figures as a ``Report``.
What is compared alternates (A B A B ...), so that a machine that is slow for a while is slow for both; a ratio is taken
within each round.
"""

from __future__ import annotations

from collections.abc import Callable

DEFAULT_ROUNDS = 5

Say = Callable[[str], None]
"""Takes a line about what is being done now."""
