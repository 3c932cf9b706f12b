"""``/dashboard``: one page to watch and to steer from, with its style and scripts, all of which come from here.

The page itself holds nothing that is worth guarding: what it shows it asks for, with the token that it is given.
"""

from __future__ import annotations

import functools
import hashlib
from importlib import resources

from fastapi import APIRouter, Request, Response

from pgvec_queue.gateway.problems import Problem

router = APIRouter(include_in_schema=False)

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@functools.cache
def files() -> dict[str, tuple[bytes, str, str]]:
    """Returns the page's files by name: content, media type and entity tag."""
    found = {}
    for file in (resources.files("pgvec_queue.gateway") / "static").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _TYPES:
            content = file.read_bytes()
            found[file.name] = (content, _TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


@router.get("/dashboard")
async def page(request: Request) -> Response:
    return _served(request, "dashboard.html")


@router.get("/dashboard/{name}")
async def file(request: Request, name: str) -> Response:
    return _served(request, name)


def _served(request: Request, name: str) -> Response:
    """Answers with a file; a browser asks each time whether it has changed, so that no two versions meet."""
    if name not in files():
        raise Problem(404, "the page has no such file")
    content, media_type, tag = files()[name]
    headers = {**SECURITY, "Cache-Control": "no-cache", "ETag": tag}
    if tag in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
