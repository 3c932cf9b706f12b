"""Opens the embedded PostgreSQL server to one network: its address, port, line of ``pg_hba.conf`` and password.

There is no TLS. SCRAM keeps the password from whoever listens on the network, but not the text and the vectors.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from pgvec_queue.embedded_files import read, write
from pgvec_queue.errors import DatabaseError

DEFAULT_PORT = 5433

_PORTS_TRIED = 100

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address of this machine with the network that may connect to it, and a port."""

    interface: Interface
    port: int

    @property
    def hba(self) -> str:
        """The line of ``pg_hba.conf`` that lets the network in."""
        return f"host pgvec pgvec {self.interface.network} scram-sha-256"

    def uri(self, password: str) -> str:
        """Returns the DSN for another machine."""
        address = self.interface.ip
        host = f"[{address}]" if address.version == 6 else str(address)
        return f"postgresql://pgvec:{password}@{host}:{self.port}/pgvec"


def parse(text: str) -> Interface:
    """Reads ``ADDRESS`` or ``ADDRESS/BITS``; without bits, the /24 or /64 around it, or a loopback address alone.

    Raises ``DatabaseError`` for what is no address of this machine, or would let in everybody.
    """
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise DatabaseError(
            f"Cannot listen on {text!r}: give an address of this machine, such as 192.168.1.10 or 192.168.1.10/24"
        ) from None
    address: Address = interface.ip
    if "/" not in text:
        network_bits = 24 if address.version == 4 else 64
        bits = address.max_prefixlen if address.is_loopback else network_bits
        interface = ipaddress.ip_interface(f"{address}/{bits}")
    if address.is_unspecified or interface.network.prefixlen == 0:
        raise DatabaseError(f"Cannot listen on {text}: it means everybody; give one address of this machine")
    if address.version == 6 and address.is_link_local:
        raise DatabaseError(f"Cannot listen on {text}: a link-local address means another thing on each machine")
    if not _is_of_this_machine(address):
        raise DatabaseError(f"Cannot listen on {address}: this machine does not have that address")
    return interface


def free_port(address: Address, wanted: int, *, exact: bool) -> int:
    """Returns the wanted port, or, unless it has to be exactly that, the next one that is free."""
    for port in range(wanted, min(wanted + _PORTS_TRIED, 65536)):
        try:
            _server(address, port).close()
        except OSError as error:
            if exact:
                raise DatabaseError(f"Cannot listen on port {port} of {address}: {error.strerror}") from error
        else:
            return port
    raise DatabaseError(f"Cannot listen on {address}: no free port in the {_PORTS_TRIED} from {wanted}; give another")


def set_password(file: Path, dsn: str) -> str:
    """Gives role ``pgvec`` the password kept in the file, generated the first time, and returns it.

    ``dsn`` is the superuser's. Only the SCRAM verifier, computed here, goes to the server: nothing that the server
    could log or show in a process title holds the password.
    """
    password = read(file) or secrets.token_urlsafe(24)
    write(file, password, 0o600)
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            verifier = connection.pgconn.encrypt_password(password.encode(), b"pgvec", b"scram-sha-256")
            connection.execute(sql.SQL("ALTER ROLE pgvec PASSWORD {}").format(sql.Literal(verifier.decode())))
    except psycopg.Error as error:
        raise DatabaseError(f"No password for other machines could be set: {str(error).splitlines()[0]}") from error
    return password


def _is_of_this_machine(address: Address) -> bool:
    # Linux lets one bind to broadcast and multicast addresses too; only an own one can be connected to.
    try:
        with _server(address, 0) as server, socket.create_connection(server.getsockname()[:2], timeout=5):
            return True
    except OSError:
        return False


def _server(address: Address, port: int) -> socket.socket:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    return socket.create_server((str(address), port), family=family)
