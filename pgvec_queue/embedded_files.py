"""The small files of the embedded server: read as they are or empty, written whole or not at all, locked."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def read(file: Path) -> str:
    """Returns the text of a file, or "" where there is none."""
    try:
        return file.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def write(file: Path, text: str, mode: int) -> None:
    """Writes a file whole or not at all, with these rights from its first byte on, whatever the umask."""
    fresh = file.with_name(f"{file.name}.new")
    fresh.unlink(missing_ok=True)
    with open(fresh, "x", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(text)
    fresh.replace(file)


def rename_for_good(old: Path, new: Path) -> None:
    """Renames within a directory, and returns when the new name survives a power cut."""
    old.rename(new)
    parent = os.open(new.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def make_directories(directory: Path, mode: int) -> None:
    """Makes the directory and the parents that are missing, all with this mode, whatever the umask."""
    if directory.is_dir():
        return
    make_directories(directory.parent, mode)
    try:
        directory.mkdir()
    except FileExistsError:
        return
    directory.chmod(mode)


@contextmanager
def flock(file: Path, kind: int) -> Iterator[int]:
    """Holds a lock (``fcntl.LOCK_SH`` or ``LOCK_EX``) on a file, made if missing; the system drops it when we die."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, kind)
        yield descriptor
    finally:
        os.close(descriptor)
