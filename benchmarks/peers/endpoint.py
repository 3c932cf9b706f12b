"""An embeddings endpoint that costs nothing: OpenAI's ``POST /v1/embeddings`` and Ollama's ``POST /api/embed``.

    python -m benchmarks.peers.endpoint [--dimensions 384]

Every text gets the same vector, written out once, so that what is measured is the caller's own work. The vector comes
as numbers or, where the request asks for it as OpenAI's own client does, as base64. A request with a text that has the
word POISON is answered 400, as one with a text over the model's limit would be. The first line on stdout is the port.
"""

from __future__ import annotations

import argparse
import base64
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks.peers.documents import POISON

DIMENSIONS = 384
_REFUSAL = b'{"error": {"message": "the input cannot be embedded", "type": "invalid_request_error"}}'
_USAGE = b'"usage": {"prompt_tokens": 1, "total_tokens": 1}'
# pgai asks Ollama once what a model is.
_SHOWN = b'{"details": {}, "model_info": {"general.architecture": "bert", "bert.context_length": 512}}'


class Answers:
    """The bodies of all answers, put together from parts that are made once."""

    def __init__(self, dimensions: int) -> None:
        vector = [round(dimensions**-0.5, 6)] * dimensions
        self._numbers = json.dumps(vector).encode()
        self._base64 = b'"%s"' % base64.b64encode(struct.pack(f"<{dimensions}f", *vector))

    def openai(self, count: int, *, as_base64: bool) -> bytes:
        vector = self._base64 if as_base64 else self._numbers
        data = b",".join(
            b'{"object": "embedding", "index": %d, "embedding": %s}' % (index, vector) for index in range(count)
        )
        return (
            b'{"object": "list", "model": "free", "data": [%s], "usage": {"prompt_tokens": 1, "total_tokens": 1}}'
            % data
        )

    def ollama(self, count: int) -> bytes:
        return b'{"model": "free", "embeddings": [%s], "prompt_eval_count": 1}' % b",".join([self._numbers] * count)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer's head and body are two writes; without this the second waits for the client to acknowledge the first.
    disable_nagle_algorithm = True
    answers: Answers

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status, answer = self._answer(json.loads(body), refused=POISON.encode() in body)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _answer(self, request: dict[str, Any], *, refused: bool) -> tuple[int, bytes]:
        if self.path == "/api/show":
            return 200, _SHOWN
        if refused:
            return 400, _REFUSAL
        texts = request["input"]
        count = 1 if isinstance(texts, str) else len(texts)
        if self.path == "/api/embed":
            return 200, self.answers.ollama(count)
        if self.path == "/v1/embeddings":
            return 200, self.answers.openai(count, as_base64=request.get("encoding_format") == "base64")
        return 404, b"{}"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a line per request would cost more than the answer."""


@contextmanager
def running() -> Iterator[str]:
    """An endpoint in a process of its own; yields its base URL, without ``/v1``."""
    command = [sys.executable, "-m", "benchmarks.peers.endpoint"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--dimensions", type=int, default=DIMENSIONS)
    chosen = options.parse_args()
    _Handler.answers = Answers(chosen.dimensions)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
