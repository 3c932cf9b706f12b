"""A virtual environment for each peer, made on first use from a pinned list in ``requirements/``.

Nothing of a peer enters the project's own environment. An environment is named after its list and this Python: a
changed list makes a new one, and one that was not finished is made again.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

_REQUIREMENTS = Path(__file__).parent / "requirements"
_INSTALL_SECONDS = 900


class UnavailableError(Exception):
    """A contender that cannot be installed or does not run here, and why, in one line."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A finished virtual environment of one peer."""

    folder: Path

    @property
    def python(self) -> str:
        return self.program("python")

    def program(self, name: str) -> str:
        return str(self.folder / "bin" / name)


def provide(scratch: Path, peer: str) -> Environment:
    """Returns the peer's environment below ``scratch``; raises ``UnavailableError`` where it cannot be made."""
    pinned = _REQUIREMENTS / f"{peer}.txt"
    digest = hashlib.sha256(pinned.read_bytes() + platform.python_version().encode()).hexdigest()[:12]
    environment = Environment(scratch / f"{peer}-{digest}")
    finished = environment.folder / "finished"
    if not finished.exists():
        _make(environment, peer, pinned)
        finished.touch()
    return environment


def version(peer: str) -> str:
    """Returns the peer's own version in its pinned list."""
    for line in (_REQUIREMENTS / f"{peer}.txt").read_text().splitlines():
        name, _, pinned = line.partition("==")
        if name == peer:
            return pinned
    raise LookupError(f"requirements/{peer}.txt does not pin {peer}")


def _make(environment: Environment, peer: str, pinned: Path) -> None:
    print(f"installing {peer} {version(peer)} into {environment.folder} ...", file=sys.stderr)
    shutil.rmtree(environment.folder, ignore_errors=True)
    venv.create(environment.folder, with_pip=True)
    command = [environment.python, "-m", "pip", "--disable-pip-version-check", "install", "--requirement"]
    try:
        subprocess.run([*command, str(pinned)], check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"pip could not install it: {last_line(error.stderr)}") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"pip did not install it in {_INSTALL_SECONDS} s") from error


def last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
