"""Runs schemathesis over a gateway's OpenAPI document: no 5xx, no status or content that the document does not list.

    python -m benchmarks.contract_gateway --schemathesis /path/to/schemathesis [--examples 100] [--seed 1]

schemathesis (https://schemathesis.readthedocs.io) is a program of its own, in an environment of its own. It runs three
times, each against a fresh gateway and database: where no token is asked for, with an admin's token, and without one
where one is asked for. Exit code 1 where any of them finds something.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import common
from pgvec_queue import api_tokens

_CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,unsupported_method"
)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--schemathesis", required=True)
    options.add_argument("--examples", type=int, default=100)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    codes = []
    for title, makes, shows in (("no token asked for", False, False), ("a token", True, True), ("none", True, False)):
        print(f"== {title}", flush=True)
        codes.append(_run(chosen, makes=makes, shows=shows))
    return 1 if any(codes) else 0


def _run(chosen: argparse.Namespace, *, makes: bool, shows: bool) -> int:
    with common.server() as (dsn, connection):
        token = api_tokens.create(connection, "contract", "admin") if makes else None
        serve = [sys.executable, "-m", "pgvec_queue", "serve", "--port", "0", "--per-minute", "100000000"]
        gateway = subprocess.Popen([*serve, "--log-level", "error", "--dsn", dsn], stdout=subprocess.PIPE, text=True)
        try:
            assert gateway.stdout is not None
            url = gateway.stdout.readline().strip()
            program = str(Path(chosen.schemathesis).absolute())
            command = [program, "run", f"{url}/openapi.json", "--url", url, "--checks", _CHECKS]
            command += ["-n", str(chosen.examples), "--seed", str(chosen.seed)]
            # A request may ask to wait for 25 s.
            command += ["--request-timeout", "40"]
            if shows:
                command += ["-H", f"Authorization: Bearer {token}"]
            # It keeps what it has found in the folder in which it runs.
            with tempfile.TemporaryDirectory(prefix="pgvec-contract-") as directory:
                return subprocess.run(command, check=False, cwd=directory).returncode
        finally:
            gateway.terminate()
            gateway.communicate(timeout=30)


if __name__ == "__main__":
    sys.exit(main())
