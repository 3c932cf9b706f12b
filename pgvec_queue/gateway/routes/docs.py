"""``/docs``: the OpenAPI document for people, without anything from elsewhere."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from pgvec_queue.gateway import documentation

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Every endpoint with its parameters, an example and what it may answer."""
    if not hasattr(request.app.state, "docs"):
        request.app.state.docs = documentation.page(request.app.openapi())
    return HTMLResponse(request.app.state.docs)


@router.get("/docs.css")
async def style() -> Response:
    return Response(documentation.STYLE, media_type="text/css", headers={"Cache-Control": "max-age=3600"})
