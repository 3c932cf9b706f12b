"""The OpenAPI document: what FastAPI makes of the endpoints, with the answers that any request may get, and all that is
wrong told as a problem.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pgvec_queue.gateway.problems import MEDIA_TYPE, ProblemDocument

DESCRIPTION = """
Texts in, answers out: the HTTP face of pgvec-queue. It holds no state that is not in the database.

Send `Authorization: Bearer pgvec_api_…` where tokens are asked for (`pgvec api-token create`): `read` searches and
looks, `write` adds and deletes texts as well, `admin` may do everything. Bodies are JSON in UTF-8. Whatever goes wrong
is told as `application/problem+json`, and each answer has the `X-Request-ID` under which the log speaks of it.
"""
TAGS = [
    {"name": "texts", "description": "Texts to be embedded."},
    {"name": "tasks", "description": "How far the texts of a request are, and their vectors."},
    {"name": "search", "description": "Questions, and the texts nearest to them."},
    {"name": "collections", "description": "Tables of texts that the gateway keeps for its clients."},
    {"name": "vectorizers", "description": "What is embedded, how far it is, and steering it."},
    {"name": "workers", "description": "Who embeds."},
    {"name": "overview", "description": "All of it at a glance, for the page and for programs."},
    {"name": "health", "description": "For those who watch over the gateway."},
]

_REQUESTS = {
    400: "The body is not JSON, or holds what no text or number may be.",
    403: "The role of the token does not suffice, or a page of another origin asks.",
    421: "The header `Host` names no host of this gateway.",
    429: "Too many requests of this client, or too much is waiting; `Retry-After` says how long to wait.",
    500: "The gateway has failed; its log says more.",
    503: "The gateway or its database cannot do it at the moment; `Retry-After` says how long to wait.",
    504: "It took too long.",
}
_WITH_TOKEN = {401: "There is no valid token."}
_WITH_BODY = {
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not `application/json`.",
}
ANYWHERE = dict(sorted((_REQUESTS | _WITH_TOKEN | _WITH_BODY).items()))
"""What any request may be answered, by status."""
_WITH_INPUT = {422: "A value is not as it has to be; `errors` says which."}
_PROBES, _OF_PROBES = {"/health", "/ready"}, (400, 500, 503)
_OF_FASTAPI = ("HTTPValidationError", "ValidationError")


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Adds to a document, in place, what FastAPI does not know of."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in _OF_FASTAPI:
        schemas.pop(name, None)
    problem = ProblemDocument.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["Problem"] = problem
    for path, operations in document.get("paths", {}).items():
        for operation in operations.values():
            if isinstance(operation, dict) and "responses" in operation:
                _complete(path, operation)
    return document


def _complete(path: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    # Any request may have a body, and be refused for it.
    statuses = _WITH_BODY | ({status: _REQUESTS[status] for status in _OF_PROBES} if path in _PROBES else _REQUESTS)
    if operation.get("security"):
        statuses |= _WITH_TOKEN
    if "422" in responses:
        statuses |= _WITH_INPUT
        if any(_is_fastapi_s(content) for content in responses["422"].get("content", {}).values()):
            del responses["422"]
    for status, description in statuses.items():
        responses.setdefault(str(status), {"description": description})
    for status, response in responses.items():
        if status[0] in "45":
            _as_problem(int(status), response)
    operation["responses"] = dict(sorted(responses.items()))


def _is_fastapi_s(content: dict[str, Any]) -> bool:
    return str(content.get("schema", {}).get("$ref", "")).endswith("/HTTPValidationError")


def _as_problem(status: int, response: dict[str, Any]) -> None:
    response.setdefault("description", HTTPStatus(status).phrase)
    response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    headers = response.setdefault("headers", {})
    if status == 401:
        headers["WWW-Authenticate"] = {"description": "How to come in.", "schema": {"type": "string"}}
    if status in (429, 503, 504):
        headers["Retry-After"] = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
