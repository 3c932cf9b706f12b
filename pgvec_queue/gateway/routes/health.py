"""``/health``: the process serves. ``/ready``: the database answers, and its schema is the one that this program needs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from pgvec_queue import __version__
from pgvec_queue.gateway.context import Context, context_of

router = APIRouter(tags=["health"])
In = Annotated[Context, Depends(context_of)]


class Health(BaseModel):
    """That the process serves."""

    status: str
    version: str


@router.get("/health")
async def health() -> Health:
    """The process serves; whether its database does is `/ready`."""
    return Health(status="ok", version=__version__)
