"""What the tests of pages share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgvec_queue import embedded


@pytest.fixture
def scratch(reachable: Path) -> Iterator[Path]:
    """A directory of the page, which a server of the page's own can reach too."""
    made = Path(tempfile.mkdtemp(dir=reachable))
    made.chmod(0o711)
    yield made
    for lock in made.rglob("start.lock"):
        embedded.Server(lock.parent).stop()
    shutil.rmtree(made)
