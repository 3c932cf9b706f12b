"""Sends malformed bodies to every endpoint of a gateway that takes one: no answer may be a fault of the program.

    python -m benchmarks.fuzz_gateway [--bodies 10000] [--seed 1] [--url http://127.0.0.1:8000 --token …]

Without ``--url`` it starts a database and a gateway of its own. The endpoints and their schemas come from the
gateway's own OpenAPI document, so that what is added later is tried too. Each body is an example that was damaged:
bytes changed, values of other types, keys added, cut off, nested, or no JSON at all. Exit code 1 for any status of 500
or more (503 and 429 with Retry-After count as refusals), for a status that the document does not list, and for an
answer that is no problem+json.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from benchmarks import common
from pgvec_queue.gateway.documentation import example

_ODD: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 10**400, 0.1, -1e308, "", "a", "\u0000", "\ud800", "\U0001f642", "a" * 70_000),
    *([], {}, [[]], {"": ""}, [None], ["a"] * 5_000, {"$ref": "#"}, "'; DROP TABLE x; --", "../../etc/passwd", "%00"),
]
_RAW = [
    *(b"", b" ", b"{", b"]", b"\x00", b"\xff\xfe", b"NaN", b'{"a":NaN}', b"1e999", b"[" * 100_000, b'"\\ud800"'),
    *(b'{"a":' * 50_000, b"\xef\xbb\xbf{}", b"null", b"\x1f\x8b\x08", b'{"a":1,}', b"-" * 10_000, b"9" * 10_000),
]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--bodies", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--url")
    options.add_argument("--token")
    chosen = options.parse_args()
    if chosen.url:
        return _fuzz(chosen.url, chosen.token, chosen.bodies, chosen.seed)
    with gateway() as url:
        return _fuzz(url, None, chosen.bodies, chosen.seed)


@contextmanager
def gateway(*arguments: str) -> Iterator[str]:
    """A gateway over a fresh database, at a free port; yields where it is."""
    with common.server() as (dsn, _):
        command = [sys.executable, "-m", "pgvec_queue", "serve", "--port", "0", "--per-minute", "100000000", *arguments]
        process = subprocess.Popen([*command, "--log-level", "error", "--dsn", dsn], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.communicate(timeout=30)


def _fuzz(url: str, token: str | None, bodies: int, seed: int) -> int:
    chance = random.Random(seed)
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {token}"} if token else {})}
    found: Counter[tuple[str, int]] = Counter()
    wrong: list[str] = []
    with httpx2.Client(base_url=url, timeout=60, trust_env=False, headers=headers) as client:
        document = client.get("/openapi.json").json()
        targets = list(_targets(document))
        for _ in range(bodies):
            method, path, operation, good = chance.choice(targets)
            body = damaged(chance, good)
            filled = re.sub(r"\{[^}]*\}", lambda _: chance.choice(["a", "1", "%00", "x" * 300, "..", "%F0%9F"]), path)
            with client.stream(method, filled, content=body) as answer:
                # A stream of events has no end.
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    answer.read()
                told = answer.text[:200] if answer.is_stream_consumed else ""
            found[path, answer.status_code] += 1
            reason = fault(operation, answer)
            if reason:
                wrong.append(f"{method} {filled} {answer.status_code}: {reason}; body {body[:200]!r}; {told}")
        alive = client.get("/health").status_code
    for (path, status), count in sorted(found.items()):
        print(f"{count:7,}  {status}  {path}")
    for line in wrong[:20]:
        print(line)
    print(f"{bodies:,} bodies, seed {seed}: {len(wrong)} wrong answers; /health says {alive}")
    return 0 if not wrong and alive == 200 else 1


def fault(operation: dict[str, Any], answer: httpx2.Response) -> str | None:
    """Returns what is wrong with an answer; None where nothing is."""
    status = answer.status_code
    refused = status in (429, 503) and "retry-after" in answer.headers
    if status >= 500 and not refused:
        return "a fault of the program"
    # Of a path that is none of the endpoint's, such as one with a dot.
    if str(status) not in operation["responses"] and status not in (404, 405):
        return "not documented"
    if status >= 400 and answer.headers.get("content-type") != "application/problem+json":
        return "no problem+json"
    return None


def _targets(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], Any]]:
    """Yields each endpoint with an example of its body; those without one are sent bodies all the same."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            good = example(document, content["schema"]) if content else {}
            yield method.upper(), path, operation, good
            if content:
                # Those with a body are what this is about.
                yield from [(method.upper(), path, operation, good)] * 9


def damaged(chance: random.Random, good: Any) -> bytes:
    """Returns a body that is an example, but for some damage."""
    if chance.random() < 0.1:
        return chance.choice(_RAW)
    value = copy.deepcopy(good)
    for _ in range(chance.randint(0, 2)):
        value = _changed(chance, value)
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    body = bytearray(text)
    if chance.random() < 0.5:
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(len(body) + 1)
            body[at : at + chance.randint(0, 4)] = chance.randbytes(chance.randint(0, 4))
    return bytes(body[: chance.randrange(len(body) + 1)]) if chance.random() < 0.1 else bytes(body)


def _changed(chance: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        what = chance.random()
        if what < 0.2:
            del value[key]
        elif what < 0.4:
            value[str(chance.choice(_ODD))[:50]] = copy.deepcopy(chance.choice(_ODD))
        else:
            value[key] = _changed(chance, value[key])
        return value
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        value[at] = _changed(chance, value[at])
        return value * chance.choice([1, 1, 2])
    return copy.deepcopy(chance.choice(_ODD))


if __name__ == "__main__":
    sys.exit(main())
