"""A network of hosts on one machine: each is a network namespace with an address of its own, wired to a switch.

The switch is a bridge in a namespace of its own, in which the database server runs too, so that nothing of it lies in
the machine's own network and no address can be in anybody's way. What the hosts send is real TCP over Ethernet frames:
a link that is down loses them, and nobody hears a reset. A host has a name of its own as well (a UTS namespace).

It takes root, a kernel with namespaces, bridges and veth, and Debian's package ``iproute2``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pgvec_queue import embedded_programs
from tests.chaos import server

NETWORK = "10.213.7"
SWITCH = f"{NETWORK}.1"
"""Where the server is."""


def obstacle() -> str | None:
    """Says why no network can be made here; None where it can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    missing = [program for program in ("ip", "unshare", "setpriv") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} not installed (Debian: iproute2, util-linux)"
    try:
        with lan() as network:
            network.add("probe")
    except subprocess.CalledProcessError as error:
        return f"this machine lets nobody make network namespaces: {error.stderr.decode(errors='replace').strip()}"
    return None


@dataclass(frozen=True)
class Host:
    """One of them."""

    name: str
    namespace: str
    port: str
    """Its end of the wire at the switch."""
    switch: str

    @property
    def within(self) -> list[str]:
        """What runs a command there, under the host's name, as the same process."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', self.name]
        return ["ip", "netns", "exec", self.namespace, *named]

    def cut(self) -> None:
        """From here on every frame is lost, either way; connections stay open on both ends."""
        _ip("-n", self.switch, "link", "set", self.port, "down")

    def heal(self) -> None:
        _ip("-n", self.switch, "link", "set", self.port, "up")


class Lan:
    """A switch and its hosts."""

    def __init__(self) -> None:
        self.switch = f"pgvec-{os.getpid()}-switch"
        self._namespaces: list[str] = []

    def open(self) -> None:
        self._add_namespace(self.switch)
        _ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self.switch, "address", "add", f"{SWITCH}/24", "dev", "switch")
        _ip("-n", self.switch, "link", "set", "switch", "up")

    def add(self, name: str) -> Host:
        """Adds a host with the next address."""
        host = Host(name, f"pgvec-{os.getpid()}-{name}", f"to-{name}", self.switch)
        address = f"{NETWORK}.{len(self._namespaces) + 1}/24"
        self._add_namespace(host.namespace)
        wire = ("type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _ip("-n", self.switch, "link", "add", host.port, *wire)
        _ip("-n", self.switch, "link", "set", host.port, "master", "switch", "up")
        _ip("-n", host.namespace, "address", "add", address, "dev", "eth0")
        _ip("-n", host.namespace, "link", "set", "eth0", "up")
        return host

    def close(self) -> None:
        """Takes away what was made; whatever ran there has been ended before."""
        while self._namespaces:
            _ip("netns", "delete", self._namespaces.pop())

    def _add_namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("-n", name, "link", "set", "lo", "up")


@contextmanager
def lan() -> Iterator[Lan]:
    """A network while inside."""
    made = Lan()
    try:
        made.open()
        yield made
    finally:
        made.close()


class Server(server.Server):
    """A database server at the switch; whoever is outside of the network reaches it by its socket."""

    settings: Mapping[str, str] = {**server.Server.settings, "listen_addresses": f"'{SWITCH}'"}

    def __init__(self, network: Lan) -> None:
        super().__init__()
        self._network = network
        sockets = self.directory / "run"
        sockets.mkdir()
        if self._account is not None:
            os.chown(sockets, self._account.uid, self._account.gid)
        self.settings = {**self.settings, "unix_socket_directories": f"'{sockets}'"}

    def dsn_at(self, port: int, database: str = "chaos") -> str:
        return f"postgresql://postgres@/{database}?host={self.directory}/run&port={port}"

    @property
    def remote_dsn(self) -> str:
        """As a host has it."""
        return f"postgresql://postgres@{SWITCH}:{self.port}/chaos"

    def _launch(self) -> None:
        with (self.directory / "data" / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {NETWORK}.0/24 trust\n")
        super()._launch()

    def _command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self._network.switch, *as_account(), *words]

    def _identity(self) -> dict[str, Any]:
        # Root enters the namespace, and gives itself up after that.
        return {}


def as_account() -> Sequence[str]:
    """What has root run a command as the account of the server."""
    account = embedded_programs.server_account()
    return ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups", "--"]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
