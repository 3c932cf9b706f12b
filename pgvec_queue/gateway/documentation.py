"""The page ``/docs``: the OpenAPI document for people. Made here, without a script, so that nothing is fetched from
anywhere and the strictest policy holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --link: #0a58ca; }
@media (prefers-color-scheme: dark) { :root { --link: #6ea8fe; } }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; }
a { color: var(--link); }
code, pre { font: .875rem/1.45 ui-monospace, monospace; }
pre { background: var(--soft); border-radius: .375rem; overflow-x: auto; padding: .75rem; }
details { border: 1px solid var(--line); border-radius: .375rem; margin: .5rem 0; padding: .5rem .75rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
summary b { display: inline-block; min-width: 4.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .5rem; text-align: left; vertical-align: top; }
"""
_DEEPEST = 6


def page(document: Mapping[str, Any]) -> str:
    """Returns the page for an OpenAPI document."""
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f"<title>{title}</title>",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="stylesheet" href="docs.css"></head><body><main>',
        f"<h1>{title}</h1>",
        _text(info.get("description", "")),
        '<p><a href="openapi.json">openapi.json</a></p>',
    ]
    for tag, operations in _by_tag(document):
        parts.append(f'<h2 id="{escape(tag["name"])}">{escape(tag["name"])}</h2>{_text(tag.get("description", ""))}')
        parts += [_operation(document, *operation) for operation in operations]
    parts.append("</main></body></html>")
    return "\n".join(parts)


def example(document: Mapping[str, Any], schema: Mapping[str, Any], depth: int = 0) -> Any:
    """Returns a value for a schema: its own example, else one that is put together."""
    schema = _resolved(document, schema)
    if "example" in schema:
        return schema["example"]
    if schema.get("examples"):
        return schema["examples"][0]
    if schema.get("default") is not None:
        return schema["default"]
    if depth > _DEEPEST:
        return None
    for choice in ("anyOf", "oneOf", "allOf"):
        if schema.get(choice):
            return example(document, schema[choice][0], depth + 1)
    if schema.get("enum"):
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "object":
        return {name: example(document, one, depth + 1) for name, one in schema.get("properties", {}).items()}
    if kind == "array":
        return [example(document, schema.get("items", {}), depth + 1)]
    return {"string": "…", "integer": 1, "number": 0.5, "boolean": True}.get(str(kind))


Operation = tuple[str, str, Mapping[str, Any]]
"""Path, method, and what the document says."""


def _by_tag(document: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], list[Operation]]]:
    tags: dict[str, Mapping[str, Any]] = {tag["name"]: tag for tag in document.get("tags", [])}
    found: dict[str, list[Operation]] = {name: [] for name in tags}
    for path, operations in document.get("paths", {}).items():
        for method, operation in operations.items():
            name = next(iter(operation.get("tags", ["others"])))
            found.setdefault(name, []).append((path, method.upper(), operation))
    for name, operations_of in found.items():
        if operations_of:
            yield tags.get(name, {"name": name}), operations_of


def _operation(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    summary = escape(operation.get("summary", ""))
    parts = [
        f"<details><summary><b>{method}</b> <code>{escape(path)}</code> {summary}</summary>",
        _text(operation.get("description", "")),
        _parameters(operation.get("parameters", [])),
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    given = None
    if body is not None:
        given = body.get("example") or example(document, body.get("schema", {}))
        parts.append(f"<h4>Body</h4>{_properties(document, body.get('schema', {}))}")
    parts.append(f"<h4>Request</h4><pre>{escape(_curl(path, method, operation, given))}</pre>")
    parts.append(_answers(document, operation.get("responses", {})))
    parts.append("</details>")
    return "".join(parts)


def _curl(path: str, method: str, operation: Mapping[str, Any], body: Any) -> str:
    words = [f"curl{'' if method == 'GET' else f' -X {method}'} http://127.0.0.1:8000{path}"]
    if operation.get("security"):
        words.append("-H 'Authorization: Bearer pgvec_api_…'")
    if body is not None:
        text = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
        words += ["-H 'Content-Type: application/json'", f"-d '{text}'"]
    return " \\\n  ".join(words)


def _parameters(parameters: list[Mapping[str, Any]]) -> str:
    rows = [
        (one["name"], one["in"], "yes" if one.get("required") else "", _said(one.get("schema", {}), one))
        for one in parameters
    ]
    return _table("Parameters", ("name", "in", "required", "meaning"), rows)


def _properties(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    schema = _resolved(document, schema)
    required = schema.get("required", [])
    rows = [
        (name, _kind(document, one), "yes" if name in required else "", _said(one, one))
        for name, one in schema.get("properties", {}).items()
    ]
    return _table("", ("name", "type", "required", "meaning"), rows)


def _answers(document: Mapping[str, Any], responses: Mapping[str, Any]) -> str:
    rows = [(status, response.get("description", "")) for status, response in responses.items()]
    shown = [_table("Answers", ("status", "meaning"), rows)]
    for status, response in responses.items():
        content = response.get("content", {}).get("application/json")
        if status.startswith("2") and content is not None:
            given = content.get("example") or example(document, content.get("schema", {}))
            if given is not None:
                text = json.dumps(given, ensure_ascii=False, indent=2)
                shown.append(f"<pre>{escape(text)}</pre>")
    return "".join(shown)


def _table(title: str, names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = "".join(
        "<tr>"
        + "".join(f"<td>{f'<code>{escape(one)}</code>' if not at else _inline(one)}</td>" for at, one in enumerate(row))
        + "</tr>"
        for row in rows
    )
    heading = f"<h4>{title}</h4>" if title else ""
    return f'{heading}<div class="scroll"><table><tr>{head}</tr>{lines}</table></div>'


def _said(schema: Mapping[str, Any], owner: Mapping[str, Any]) -> str:
    said = str(owner.get("description") or schema.get("description") or "")
    if schema.get("default") is not None:
        said = f"{said} Default: `{json.dumps(schema['default'], ensure_ascii=False)}`.".strip()
    return said


def _kind(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    schema = _resolved(document, schema)
    if schema.get("anyOf"):
        return " or ".join(_kind(document, one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_kind(document, schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = schema.get("$ref")
    if not reference:
        return schema
    found: Mapping[str, Any] = document["components"]["schemas"][str(reference).rpartition("/")[2]]
    return found


def _text(text: str) -> str:
    """Paragraphs, of what is otherwise plain."""
    return "".join(f"<p>{_inline(one)}</p>" for one in text.strip().split("\n\n") if one.strip())


def _inline(text: str) -> str:
    """What stands between backticks is code."""
    return "".join(f"<code>{escape(one)}</code>" if at % 2 else escape(one) for at, one in enumerate(text.split("`")))
