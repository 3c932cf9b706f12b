"""The HTTP API, from the OpenAPI document that the gateway serves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pgvec_queue.database import Database
from pgvec_queue.gateway.app import create_app
from pgvec_queue.gateway.documentation import _kind, _resolved, _said, example
from pgvec_queue.gateway.openapi import ANYWHERE
from pgvec_reference.markdown import code, prose, table

Operation = Mapping[str, Any]


def document() -> dict[str, Any]:
    """Returns the OpenAPI document; no database is asked."""
    return create_app(Database("postgresql://nobody@localhost/nothing")).openapi()


def operations(found: Mapping[str, Any]) -> Iterator[tuple[str, str, Operation]]:
    """Yields method, path and operation of every route."""
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def missing() -> list[str]:
    """Returns routes, parameters, fields of bodies and answers without a description."""
    found = document()
    tags = {tag["name"] for tag in found["tags"]}
    without = [f"{method} {path} #" for method, path, one in operations(found) if not tags & set(one.get("tags", []))]
    for method, path, operation in operations(found):
        name = f"{method} {path}"
        if not operation.get("description"):
            without.append(name)
        without += [
            f"{name} ?{one['name']}" for one in operation.get("parameters", []) if not _said(one.get("schema", {}), one)
        ]
        without += [f"{name} {{{field}}}" for field, one in _fields(found, operation) if not _said(one, one)]
        without += [
            f"{name} -> {status}" for status, one in operation["responses"].items() if not one.get("description")
        ]
    return without


def text() -> str:
    found = document()
    rows = ((str(status), prose(said)) for status, said in ANYWHERE.items())
    parts = ["Any request may get one of these, whatever else is said of it:\n", table(("status", "meaning"), rows)]
    for tag in found["tags"]:
        parts += [f"## {tag['name'].capitalize()}\n", prose(tag["description"]) + "\n"]
        for method, path, operation in operations(found):
            if tag["name"] in operation.get("tags", []):
                parts += _operation(found, method, path, operation)
    return "\n".join(parts)


def _operation(found: Mapping[str, Any], method: str, path: str, operation: Operation) -> Iterator[str]:
    yield f"### {method} {prose(path)}\n"
    for part in operation.get("description", "").split("\n\n"):
        yield prose(part.replace("\n", " ")) + "\n"
    parameters = operation.get("parameters", [])
    if parameters:
        yield table(
            ("parameter", "in", "meaning"),
            ((code(one["name"]), one["in"], prose(_said(one.get("schema", {}), one))) for one in parameters),
        )
    fields = list(_fields(found, operation))
    if fields:
        schema = _body(operation)
        required = _resolved(found, schema).get("required", [])
        rows = (
            (code(name), _kind(found, one), "yes" if name in required else "", prose(_said(one, one)))
            for name, one in fields
        )
        yield table(("field", "type", "required", "meaning"), rows)
        content = operation["requestBody"]["content"]["application/json"]
        given = content.get("example") or example(found, schema)
        yield f"```json\n{json.dumps(given, ensure_ascii=False, indent=2)}\n```\n"
    own = {
        status: one.get("description", "")
        for status, one in operation["responses"].items()
        if ANYWHERE.get(int(status)) != one.get("description")
    }
    yield table(("status", "meaning"), ((status, prose(said)) for status, said in own.items()))


def _body(operation: Operation) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (
        operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    )
    return found


def _fields(found: Mapping[str, Any], operation: Operation) -> Iterator[tuple[str, Mapping[str, Any]]]:
    body = _body(operation)
    if body:
        yield from _resolved(found, body).get("properties", {}).items()
