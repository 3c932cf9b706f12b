"""Sockets to listen at, and why one cannot be had, in a line."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

Found = tuple[socket.AddressFamily, tuple[Any, ...]]
"""Family and address, as of ``socket.getaddrinfo``."""


def find(host: str, port: int) -> Found:
    """Returns the first address that a name stands for. Raises ``OSError`` or ``UnicodeError``."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return family, address


def bind(found: Found, *, backlog: int) -> socket.socket:
    """Listens at an address. Raises ``OSError``."""
    family, address = found
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def is_loopback(found: Found) -> bool:
    """Whether nobody outside of this machine reaches the address."""
    return ipaddress.ip_address(str(found[1][0]).partition("%")[0]).is_loopback


def reason(error: Exception) -> str:
    """Says why an address cannot be listened at, and what to do."""
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EADDRINUSE:
        return "the port is in use; choose another one, or 0 for any that is free"
    if code == errno.EACCES:
        return "this user may not use the port; choose one from 1024 on"
    if code == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror | UnicodeError):
        return "that is no address of this machine; 0.0.0.0 stands for all of them"
    return str(error)


def named(host: str) -> str:
    """Returns a host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
