"""Collections: list, show, create, delete."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import psycopg
from fastapi import APIRouter, Depends, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from pgvec_queue import collections
from pgvec_queue.async_database import AsyncConnection, async_transaction
from pgvec_queue.collections import CollectionExistsError, NewCollection, UnknownCollectionError
from pgvec_queue.errors import DefinitionError, EmbedderError
from pgvec_queue.gateway.auth import requires
from pgvec_queue.gateway.checks import wrong
from pgvec_queue.gateway.context import Context, context_of
from pgvec_queue.gateway.problems import Problem

router = APIRouter(prefix="/collections", tags=["collections"])
In = Annotated[Context, Depends(context_of)]
Name = Annotated[str, Path(pattern=f"^{collections.NAME}$", description="The collection's name.")]
Reads = Depends(requires("read"))
Administers = Depends(requires("admin"))
_GONE: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such collection."}}


class CollectionRequest(BaseModel):
    """A collection to be made."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "manuals", "model": "sentence-transformers/all-MiniLM-L6-v2", "chunk_size": 128}]
        },
    )

    name: str = Field(max_length=63, description="Small letters, digits and underscores; not ending in _vectors.")
    model: str | None = Field(
        None, max_length=512, description="One of the models that the gateway allows; by default its first."
    )
    chunk_size: int | None = Field(None, ge=1, le=100_000, strict=True, description="Tokens per chunk; by default 128.")
    chunk_overlap: int | None = Field(
        None, ge=0, le=50_000, strict=True, description="Tokens that neighbours share; by default 20."
    )
    whole_texts: bool = Field(False, strict=True, description="Embed each text whole: no chunks.")
    store: Literal["vector", "halfvec"] = Field("vector", description="The type of the vectors.")


class CollectionInfo(BaseModel):
    """A collection with its counts."""

    name: str
    model: str
    default: bool = Field(description="Texts for its model without a collection go here.")
    vectorizer: str = Field(description="The name of its vectorizer: `pgvec status NAME`.")
    table: str = Field(description="Where the texts are, for SQL.")
    vectors_table: str = Field(description="Where the vectors are, for SQL.")
    dimensions: int
    store: str
    chunk_size: int | None = Field(description="None: texts stay whole.")
    chunk_overlap: int | None
    state: str = Field(description="active, paused, blocked, cancelled or complete.")
    reason: str | None = Field(description="Why nothing moves.")
    texts: int = Field(description="As far as workers have seen them.")
    done: int
    failed: int = Field(description="In quarantine.")
    chunks: int
    created_at: datetime


class CollectionList(BaseModel):
    """All collections, by name."""

    collections: list[CollectionInfo]


@router.get("", dependencies=[Reads])
async def list_collections(gateway: In) -> CollectionList:
    """Lists all collections."""
    async with gateway.connection() as connection, async_transaction(connection, read_only=True):
        rows = await collections.overview(connection)
    return CollectionList(collections=[_info(row) for row in rows])


@router.get("/{name}", dependencies=[Reads], responses=_GONE)
async def show(gateway: In, name: Name) -> CollectionInfo:
    """Shows a collection."""
    async with gateway.connection() as connection:
        return await _show(connection, name)


@router.post(
    "",
    status_code=201,
    dependencies=[Administers],
    responses={409: {"description": "There is one of that name."}, 422: {"description": "It cannot be made so."}},
)
async def create(gateway: In, body: CollectionRequest, response: Response) -> CollectionInfo:
    """Makes a collection: a table for texts, a table for vectors, and a vectorizer that follows every change."""
    model = body.model or gateway.limits.models[0]
    if model not in gateway.limits.models:
        raise wrong(f"model {model!a} is not one of those allowed here: {', '.join(gateway.limits.models)}")
    if body.whole_texts and (body.chunk_size or body.chunk_overlap):
        raise wrong("whole_texts has no chunks: leave out chunk_size and chunk_overlap")
    wanted = NewCollection(
        name=body.name,
        model=model,
        chunk_size=body.chunk_size,
        chunk_overlap=body.chunk_overlap,
        no_chunking=body.whole_texts,
        store=body.store,
    )
    try:
        await gateway.in_thread("gateway", lambda connection: collections.create(connection, wanted))
    except CollectionExistsError as error:
        raise Problem(409, str(error)) from None
    except (DefinitionError, EmbedderError) as error:
        raise wrong(str(error)) from None
    response.headers["Location"] = f"/api/v1/collections/{body.name}"
    async with gateway.connection() as connection:
        return await _show(connection, body.name)


@router.delete(
    "/{name}",
    status_code=204,
    dependencies=[Administers],
    responses={**_GONE, 409: {"description": "Somebody keeps its tables locked."}},
)
async def delete(gateway: In, name: Name) -> None:
    """Deletes a collection with its texts, vectors, tasks and vectorizer; nothing is asked."""
    try:
        await gateway.in_thread("gateway", lambda connection: collections.drop(connection, name))
    except UnknownCollectionError as error:
        raise Problem(404, str(error)) from None
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        raise Problem(409, "somebody keeps its tables locked; try again later") from None
    except psycopg.errors.DependentObjectsStillExist:
        raise Problem(409, f"a view or another table depends on {name!r}; drop that first") from None


async def _show(connection: AsyncConnection, name: str) -> CollectionInfo:
    async with async_transaction(connection, read_only=True):
        rows = await collections.overview(connection, name)
    if not rows:
        raise Problem(404, str(collections.unknown(name)))
    return _info(rows[0])


def _info(row: dict[str, Any]) -> CollectionInfo:
    return CollectionInfo(
        name=row["name"],
        model=row["model"],
        default=row["default_of"] is not None,
        vectorizer=row["vectorizer"],
        table=f"{row['source_schema']}.{row['source_table']}",
        vectors_table=f"{row['destination_schema']}.{row['destination_table']}",
        dimensions=row["dimensions"],
        store=row["store"],
        chunk_size=row["chunk_size"],
        chunk_overlap=row["chunk_overlap"],
        state=row["state"],
        reason=row["reason"],
        texts=row["rows_total"],
        done=row["rows_done"],
        failed=row["rows_failed"],
        chunks=row["chunks"],
        created_at=row["created_at"],
    )
