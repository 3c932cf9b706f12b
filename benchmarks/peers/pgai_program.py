"""pgai's own program, in its own environment: installing its schema, and one run of its worker."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from benchmarks.peers.environments import Environment, UnavailableError, last_line

_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Program:
    """pgai in an environment, for one database."""

    environment: Environment
    dsn: str

    def install(self) -> None:
        """Makes the schema ``ai``; needs the right to make the extension ``vector``, or that it is there."""
        self._run("install", "--db-url", self.dsn)

    def work(self) -> None:
        """Works its queue off; raises ``UnavailableError`` with the worker's own words where it fails."""
        self._run("vectorizer", "worker", "--db-url", self.dsn, "--once", "--log-level", "ERROR")

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [self.environment.program("pgai"), *arguments],
            # Its client for OpenAI's API wants a key, whatever is at the other end.
            env={**os.environ, "OPENAI_API_KEY": "none", "DD_TRACE_ENABLED": "false"},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if done.returncode:
            raise UnavailableError(f"pgai {arguments[0]} failed: {last_line(done.stderr or done.stdout)}")
