"""The way to the server: whether it leaves this machine, whether a pooler stands in it, and what is at its end."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import struct
from pathlib import Path

import psycopg

from pgvec_queue.database import Connection, statement


def is_local(connection: Connection) -> bool:
    """Whether the connection stays on this machine, as far as its address tells."""
    info = connection.info
    if info.host.startswith(("/", "@")):
        return True
    try:
        return ipaddress.ip_address(info.hostaddr).is_loopback
    except ValueError:
        return info.host == "localhost"


def finds_pooler(connection: Connection) -> bool:
    """Whether somebody else answers the handshake than runs the statements."""
    row = connection.execute(statement("doctor", "backend")).fetchone()
    return row is not None and row[0] != connection.info.backend_pid


def data_directory(connection: Connection) -> Path | None:
    """Where the server keeps its data, if that is a directory of this machine that we may look at.

    An address of this machine may lead into a container, or through a tunnel.
    """
    if not is_local(connection):
        return None
    row = connection.execute(statement("doctor", "data_directory")).fetchone()
    if row is None or row[0] is None:
        return None
    directory = Path(row[0])
    try:
        with (directory / "global" / "pg_control").open("rb") as control:
            here = struct.unpack("=Q", control.read(8))[0]
        there = connection.execute(statement("doctor", "system_identifier")).fetchone()
    except (OSError, struct.error, psycopg.Error):
        return None
    # The server shows it as a signed number.
    return directory if there is not None and here == int(there[0]) % (1 << 64) else None


def free_disk(directory: Path | None) -> int | None:
    """Bytes that are free where the directory is; None where that is not to be known."""
    try:
        return shutil.disk_usage(directory).free if directory is not None else None
    except OSError:
        return None


def sever(connection: Connection) -> None:
    """Shuts the connection's socket down, whichever thread waits for it; that thread then sees it lost."""
    try:
        descriptor = os.dup(connection.fileno())
    except (psycopg.Error, OSError):
        return
    with socket.socket(fileno=descriptor) as duplicate:
        try:
            duplicate.shutdown(socket.SHUT_RDWR)
        except OSError:
            # It was lost already.
            return
