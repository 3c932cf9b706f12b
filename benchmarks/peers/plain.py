"""Plain sentence-transformers: a script with ``encode`` and ``executemany``, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import psycopg

from benchmarks.peers import databases, documents
from benchmarks.peers.environments import UnavailableError, last_line
from benchmarks.peers.rounds import RATE
from pgvec_queue.embedded import Server

_SECONDS = 3_600


def embed(cluster: Server, texts: Sequence[str]) -> dict[str, float]:
    """Embeds texts as such a script does; returns rows per second, its start-up not counted."""
    with databases.fresh(cluster) as dsn:
        with psycopg.connect(dsn, autocommit=True) as connection:
            documents.fill(connection, "docs", texts)
        command = [sys.executable, "-m", "benchmarks.peers.scripts.encode_all", dsn]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=_SECONDS)
    if done.returncode:
        raise UnavailableError(f"the script failed: {last_line(done.stderr)}")
    return {RATE: len(texts) / float(done.stdout)}
