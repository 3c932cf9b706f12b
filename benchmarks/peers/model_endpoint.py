"""An embeddings endpoint with a model of ours behind it: the hashing embedder, or one that a worker could load as well.

OpenAI's ``POST /v1/embeddings`` and Ollama's ``POST /api/embed``, so that what another program made through it can be
compared with what ours makes, with and without it. It remembers every text that it was asked for.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pgvec_queue.embedders import DeviceOptions, ModelSpec, Vectors, load

_SHOWN = {"details": {}, "model_info": {"general.architecture": "bert", "bert.context_length": 512}}


@dataclass
class Endpoint:
    """One that runs; ``url`` is its base, without ``/v1``."""

    url: str
    texts: list[str] = field(default_factory=list)
    """All that was asked for, in the order of the requests."""


@contextmanager
def running(model: str) -> Iterator[Endpoint]:
    """An endpoint in a thread of this process, for ``hashing-<dimensions>`` or a model of sentence-transformers."""
    kind = "hashing" if model.startswith("hashing-") else "sentence-transformers"
    embedder = load(ModelSpec(kind, model), DeviceOptions(runtime="torch"))
    lock = threading.Lock()

    def vectors(texts: Sequence[str]) -> Vectors:
        with lock:
            endpoint.texts.extend(texts)
            return embedder.embed_documents(texts, embedder.tokenizer.count(texts))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = json.dumps(self._answer(request)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
            if self.path == "/api/show":
                return _SHOWN
            texts = [request["input"]] if isinstance(request["input"], str) else request["input"]
            found = vectors(texts)
            if self.path == "/api/embed":
                return {"model": request["model"], "embeddings": found.tolist(), "prompt_eval_count": 1}
            as_base64 = request.get("encoding_format") == "base64"
            data = [
                {
                    "object": "embedding",
                    "index": i,
                    "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                    if as_base64
                    else vector.tolist(),
                }
                for i, vector in enumerate(found)
            ]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            return {"object": "list", "model": request["model"], "data": data, "usage": usage}

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield endpoint
        finally:
            server.shutdown()
            thread.join()
            embedder.close()
