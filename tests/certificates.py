"""A chain of certificates as a company has it: a root, an intermediate, a server's for one name, clients' for roles.

Made by the program ``openssl``. Keys are on the curve P-256, which takes milliseconds.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROGRAM = shutil.which("openssl")

NAME = "db.example.test"
"""The server's name; it needs no resolver, since tests give ``hostaddr`` as well."""

_CA = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
_SERVER = f"basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nsubjectAltName=DNS:{NAME}\n"
_CLIENT = "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth\n"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in PEM; ``chain`` has the certificates between it and the root as well."""

    certificate: Path
    key: Path
    chain: Path


class Authority:
    """A root with an intermediate that signs everything else."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder / name
        self._folder.mkdir()
        self.root = self._issue("root", _CA, None)
        self._intermediate = self._issue("intermediate", _CA, self.root)
        # What a server sends ends below the root.
        self._intermediate.chain.write_text(self._intermediate.certificate.read_text())

    def server(self) -> Pair:
        return self._issue("server", _SERVER, self._intermediate)

    def expired_server(self) -> Pair:
        return self._issue("expired", _SERVER, self._intermediate, days=-1)

    def client(self, role: str) -> Pair:
        """One by which a server knows the role."""
        return self._issue(role, _CLIENT, self._intermediate)

    def _issue(self, name: str, extensions: str, signer: Pair | None, *, days: int = 2) -> Pair:
        key, request, certificate, chain = (
            self._folder / f"{name}.{kind}" for kind in ("key", "csr", "crt", "chain.crt")
        )
        told = self._folder / f"{name}.ext"
        told.write_text(extensions)
        _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
        _openssl("req", "-new", "-key", key, "-subj", f"/O=Example/CN={name}", "-out", request)
        signed = (
            ("-signkey", key)
            if signer is None
            else ("-CA", signer.certificate, "-CAkey", signer.key, "-CAcreateserial")
        )
        _openssl("x509", "-req", "-in", request, *signed, "-days", str(days), "-extfile", told, "-out", certificate)
        chain.write_text(certificate.read_text() + ("" if signer is None else signer.chain.read_text()))
        key.chmod(0o600)
        return Pair(certificate, key, chain)


def _openssl(*arguments: str | Path) -> None:
    assert PROGRAM is not None
    subprocess.run([PROGRAM, *map(str, arguments)], check=True, capture_output=True)
