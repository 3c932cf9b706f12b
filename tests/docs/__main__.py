"""``python -m tests.docs``: which commands of the documentation are not run, and why."""

from __future__ import annotations

from tests.docs.report import lines

print("\n".join(lines()))
