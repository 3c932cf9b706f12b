"""``/api/v1/overview/events``: what the page shows, as a stream."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import StreamingResponse

from pgvec_queue.gateway.auth import requires
from pgvec_queue.gateway.overview import Overview

router = APIRouter(tags=["overview"])


def overview_of(request: Request) -> Overview:
    """The gateway's look at the queue."""
    found = request.app.state.overview
    assert isinstance(found, Overview)
    return found


_EXAMPLE = 'event: overview\ndata: {"at": 1767225600.0, "state": {"vectorizers": [], "workers": []}}\n\n'


@router.get(
    "/overview/events",
    dependencies=[Depends(requires("read"))],
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Events `overview`, with everything that the page shows, and `outage`, with the reason.",
            "content": {"text/event-stream": {"example": _EXAMPLE}},
        },
    },
)
async def overview_events(overview: Annotated[Overview, Depends(overview_of)]) -> StreamingResponse:
    """Vectorizers, workers, failures, throughput and events, sent at once, and when something has changed.

    At most once a second; a comment every 15 seconds where nothing changes. All times are seconds since 1970 by the
    database's clock, and `at` is that clock's own time.
    """
    return StreamingResponse(
        overview.events(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
