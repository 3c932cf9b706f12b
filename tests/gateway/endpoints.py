"""Endpoints that do what a test needs: answer late, stream, fail, take a text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ConfigDict

from pgvec_queue.errors import DatabaseError, DefinitionError, EmbedderError, Kind
from pgvec_queue.gateway.context import context_of
from pgvec_queue.gateway.problems import Problem
from pgvec_queue.log import get_logger

log = get_logger("pgvec.gateway")

router = APIRouter(prefix="/api/v1/test")
bodies = APIRouter(prefix="/api/v1/test")
"""Those that take a body."""
SECRET = "postgresql://me:hunter2-and-more@db.internal/shop"


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    number: float = 0.5
    metadata: dict[str, Any] = {}


@bodies.post("/echo", description="Says it again.")
async def echo(text: Text) -> Text:
    return text


@bodies.post("/store", description="Has it measured.")
async def store(request: Request, text: Text) -> dict[str, Any]:
    async with context_of(request).connection() as connection:
        row = await (await connection.execute("SELECT length(%s::text)", [text.text])).fetchone()
    return {"length": row[0] if row else None}


@bodies.post("/keep", description="Takes any text there is into a table's types.")
async def keep(request: Request, text: Text) -> dict[str, Any]:
    async with context_of(request).connection() as connection:
        row = await (
            await connection.execute(
                "SELECT %s::text, %s::float8, %s::jsonb", [text.text, text.number, Jsonb(text.metadata)]
            )
        ).fetchone()
    assert row is not None
    return {"text": row[0], "number": row[1], "metadata": row[2]}


@router.get("/late/{seconds}")
async def late(seconds: float) -> dict[str, float]:
    await asyncio.sleep(seconds)
    return {"seconds": seconds}


@router.get("/query/{seconds}")
async def query(request: Request, seconds: float) -> dict[str, float]:
    async with context_of(request).connection() as connection:
        await connection.execute("SELECT pg_sleep(%s)", [seconds])
    return {"seconds": seconds}


@router.get("/stream")
async def stream(size: int = 10, every: float = 0.05) -> StreamingResponse:
    async def events() -> AsyncIterator[bytes]:
        number = 0
        while True:
            number += 1
            yield b"data: " + str(number).encode() + b"x" * size + b"\n\n"
            await asyncio.sleep(every)

    return StreamingResponse(events(), media_type="text/event-stream")


@router.get("/fail/{how}")
async def fail(request: Request, how: str) -> None:
    match how:
        case "program":
            raise RuntimeError(SECRET)
        case "database":
            raise DatabaseError(f"cannot connect to the database {SECRET}")
        case "definition":
            raise DefinitionError(f"there is no table {SECRET}\nhere")
        case "model":
            raise EmbedderError(SECRET, Kind.PASSING, retry_after=7)
        case "problem":
            raise Problem(418, "no coffee", {"X-Own": "yes"})
        case "log":
            log.warning("gateway is not ready", error="a line of a request")
            return
    statements = {
        "nul": ("SELECT %s::text", ["a\0b"]),
        "value": ("SELECT %s::int", ["some text"]),
        "unique": ("INSERT INTO pgvec.api_tokens (name, role, digest) VALUES ('a', 'read', ''), ('a', 'read', '')", []),
        "table": ("SELECT * FROM nowhere_at_all", []),
        "schema": ("SELECT * FROM pgvec.of_a_later_version", []),
        "lost": ("SELECT pg_terminate_backend(pg_backend_pid())", []),
        "timeout": ("SELECT set_config('statement_timeout', '10ms', true), pg_sleep(1)", []),
        "server": ("DO $$ BEGIN RAISE EXCEPTION 'disk' USING ERRCODE = '53100'; END $$", []),
    }
    text, values = statements[how]
    async with context_of(request).connection() as connection:
        if how == "timeout":
            async with connection.transaction():
                await psycopg.AsyncCursor(connection).execute("SET LOCAL statement_timeout = '10ms'")
                await psycopg.AsyncCursor(connection).execute("SELECT pg_sleep(1)")
        await connection.execute(text.encode(), values or None)
