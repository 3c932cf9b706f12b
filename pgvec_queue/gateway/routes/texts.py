"""The texts of a collection: list, get, delete. ``POST /vectorize`` puts them there."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import psycopg
from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, Field
from starlette.convertors import Convertor, register_url_convertor

from pgvec_queue import collections, texts
from pgvec_queue.async_database import AsyncConnection, async_transaction
from pgvec_queue.collections import Collection
from pgvec_queue.gateway import checks
from pgvec_queue.gateway.auth import requires
from pgvec_queue.gateway.context import Context, context_of
from pgvec_queue.gateway.problems import Problem
from pgvec_queue.gateway.routes.collections import Name
from pgvec_queue.texts import Text


class _AnyText(Convertor[str]):
    """Whatever is left of a path; ``path`` takes no line breaks."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("text", _AnyText())

router = APIRouter(prefix="/collections/{name}/texts", tags=["texts"])
In = Annotated[Context, Depends(context_of)]
Id = Annotated[str, Path(description="The text's id, percent-encoded; slashes may stay.")]
Reads = Depends(requires("read"))
_GONE: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such collection or text."}}


class TextInfo(BaseModel):
    """A text of a collection."""

    id: str
    text: str
    metadata: dict[str, Any]
    state: Literal["done", "waiting", "failed", "skipped"] = Field(description="Whether its present text is embedded.")
    created_at: datetime
    updated_at: datetime


class TextList(BaseModel):
    """A page of texts, in the order of their ids."""

    texts: list[TextInfo]
    next: str | None = Field(None, description="The cursor of the next page; none: this was the last.")


@router.get("", dependencies=[Reads], responses=_GONE)
async def list_texts(
    gateway: In,
    name: Name,
    limit: Annotated[int, Query(ge=1, le=1_000, description="A page of long texts may be shorter.")] = 100,
    cursor: Annotated[str | None, Query(max_length=4_000, description="Of the page before: its next.")] = None,
) -> TextList:
    """Lists texts in the order of their ids, by code point."""
    after = checks.read_cursor(cursor, str)[0] if cursor is not None else ""
    async with gateway.connection() as connection, async_transaction(connection, read_only=True):
        collection = await _collection(connection, name)
        try:
            found, more = await texts.page(connection, collection, after=after, limit=limit)
        except psycopg.errors.UndefinedTable:
            raise _no_collection(name) from None
    return TextList(texts=[_info(one) for one in found], next=checks.cursor(found[-1].id) if more else None)


@router.get("/{text_id:text}", dependencies=[Reads], responses=_GONE)
async def get_text(gateway: In, name: Name, text_id: Id) -> TextInfo:
    """Returns a text."""
    async with gateway.connection() as connection, async_transaction(connection, read_only=True):
        collection = await _collection(connection, name)
        try:
            found = await texts.get(connection, collection, _held(name, text_id))
        except psycopg.errors.UndefinedTable:
            raise _no_collection(name) from None
    if found is None:
        raise _no_text(name, text_id)
    return _info(found)


@router.delete("/{text_id:text}", status_code=204, dependencies=[Depends(requires("write"))], responses=_GONE)
async def delete_text(gateway: In, name: Name, text_id: Id) -> None:
    """Deletes a text; its vectors go with it, usually within a second."""
    async with gateway.connection() as connection, async_transaction(connection):
        collection = await _collection(connection, name)
        try:
            there = await texts.delete(connection, collection, _held(name, text_id))
        except psycopg.errors.UndefinedTable:
            raise _no_collection(name) from None
    if not there:
        raise _no_text(name, text_id)


async def _collection(connection: AsyncConnection, name: str) -> Collection:
    found = await collections.find(connection, name=name)
    if not found:
        raise _no_collection(name)
    return found[0]


def _held(name: str, id_: str) -> str:
    """Returns an id that may be in a collection."""
    if not id_ or "\x00" in id_ or (not id_.isascii() and any("\ud800" <= one <= "\udfff" for one in id_)):
        raise _no_text(name, id_)
    return id_


def _no_collection(name: str) -> Problem:
    return Problem(404, str(collections.unknown(name)))


def _no_text(name: str, id_: str) -> Problem:
    return Problem(404, f"the collection {name!r} has no text with the id {id_[:200]!a}")


def _info(text: Text) -> TextInfo:
    return TextInfo(
        id=text.id,
        text=text.text,
        metadata=text.metadata,
        state=text.state,  # type: ignore[arg-type]
        created_at=text.created_at,
        updated_at=text.updated_at,
    )
