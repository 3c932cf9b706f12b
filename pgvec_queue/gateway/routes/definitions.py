"""``POST /api/v1/vectorizers``: a vectorizer over a table that is there, as `pgvec enqueue` makes it."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pgvec_queue.database import one_line
from pgvec_queue.definition import Options
from pgvec_queue.definition_options import MOST_PARTITIONS
from pgvec_queue.embedders import DEFAULT_MODEL
from pgvec_queue.errors import DatabaseError, DefinitionDiffersError, EmbedderError, Kind, PgvecError
from pgvec_queue.gateway.auth import requires
from pgvec_queue.gateway.context import Context
from pgvec_queue.gateway.plans import Plans
from pgvec_queue.gateway.problems import Problem
from pgvec_queue.gateway.routes.vectorizers import In

router = APIRouter(tags=["vectorizers"])

_PATIENCE = 0.7
"""Of the time that a request may take: for so long it waits for a vectorizer to be there."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SYSTEM = ("pgvec", "pg_catalog", "information_schema", "pg_toast")

Identifier = Annotated[str, Field(min_length=1, max_length=200)]


class NewVectorizer(BaseModel):
    """What `pgvec enqueue` is most often told. What is SQL or code (a filter, a template) is for the command line."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"source": "public.articles", "text": ["title", "body"], "sync": True}]},
    )

    source: Identifier = Field(description="The table: `table` or `schema.table`.")
    text: list[Identifier] = Field(
        min_length=1, max_length=32, description="Columns to embed; several are joined by a blank line."
    )
    name: Identifier | None = Field(None, description="The vectorizer's name; the source's where none is given.")
    key: list[Identifier] = Field([], max_length=32, description="Unique key; the primary key where none is given.")
    into: Identifier | None = Field(None, description="Table for the chunks; `<source>_vectors` where none is given.")
    partitions: int | None = Field(
        None, ge=1, le=MOST_PARTITIONS, description="Of a new table, by hash of the key; one table where none is given."
    )
    model: Annotated[str, Field(min_length=1, max_length=300)] = Field(
        DEFAULT_MODEL, description="One of those that this gateway allows."
    )
    chunk_size: int | None = Field(None, ge=1, le=1_000_000, description="Tokens per chunk; 128 where none is given.")
    chunk_overlap: int | None = Field(None, ge=0, le=1_000_000, description="Tokens that neighbours share.")
    no_chunking: bool = Field(False, description="Embed each document whole.")
    too_long: Literal["quarantine", "truncate"] | None = Field(
        None, description="For a whole document that is too long."
    )
    store: Literal["vector", "halfvec"] | None = Field(None, description="Type of the vectors.")
    rows_per_job: int | None = Field(None, ge=1, le=2_147_483_647, description="Source rows per job.")
    priority: int | None = Field(None, ge=-1_000_000, le=1_000_000, description="Higher ones are worked on first.")
    sync: bool | None = Field(None, description="Follow live changes by triggers on the source.")
    index: bool | None = Field(None, description="Have an HNSW index built. By default as it is; a new one gets one.")

    @field_validator("name", "source", "into", "model")
    @classmethod
    def _in_one_line(cls, value: str | None) -> str | None:
        if value is not None and _CONTROL.search(value):
            raise ValueError("it holds control characters")
        return value

    @field_validator("text", "key")
    @classmethod
    def _without_nul(cls, value: list[str]) -> list[str]:
        if any("\0" in name for name in value):
            raise ValueError("it holds a NUL")
        return value


class Made(BaseModel):
    """The vectorizer, which is there; its jobs are being planned."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "articles",
                    "new": True,
                    "source": "public.articles",
                    "destination": "public.articles_vectors",
                    "model": DEFAULT_MODEL,
                    "dimensions": 384,
                    "remarks": [],
                }
            ]
        }
    )

    name: str
    new: bool = Field(description="False: it was there, with the same definition, and is brought up to date.")
    source: str
    destination: str
    model: str
    dimensions: int
    remarks: list[str] = Field(description="What there is to know about it.")


class Accepted(BaseModel):
    """It takes longer than a request may: an index that its destination lacks is being built, for example."""

    source: str
    detail: str


def plans_of(request: Request) -> Plans:
    """The vectorizers that this gateway is making."""
    found = request.app.state.plans
    assert isinstance(found, Plans)
    return found


@router.post(
    "/vectorizers",
    status_code=201,
    dependencies=[Depends(requires("admin"))],
    response_model=Made,
    responses={
        200: {"model": Made, "description": "It was there, with the same definition, and is brought up to date."},
        202: {"model": Accepted, "description": "It is being made; it shows when it is there."},
        409: {"description": "There is one of that name, with another definition."},
        422: {"description": "Table, column, key, model or option do not fit."},
        503: {"description": "Others are being made, or planned."},
    },
)
async def make_vectorizer(
    context: In, plans: Annotated[Plans, Depends(plans_of)], wanted: NewVectorizer, response: Response
) -> Made | Response:
    """Makes a vectorizer and its destination, and answers; its jobs are planned after that.

    Asking again for the same brings it up to date, and goes on with a plan that was stopped.
    """
    _refuse(context, wanted)
    if plans.full:
        raise Problem(503, "other vectorizers are being made or planned; try again", {"Retry-After": "10"})
    future = plans.begin(Options(**wanted.model_dump(), index_new=True))
    try:
        async with asyncio.timeout(context.limits.request_seconds * _PATIENCE):
            defined = await asyncio.shield(future)
    except TimeoutError:
        accepted = Accepted(
            source=wanted.source, detail="it is being made; the list of vectorizers shows when it is there"
        )
        return Response(accepted.model_dump_json(), 202, media_type="application/json")
    except (PgvecError, OSError) as error:
        raise _problem(error) from None
    made = defined.vectorizer
    response.status_code = 201 if defined.new else 200
    return Made(
        name=made.name,
        new=defined.new,
        source=made.source,
        destination=made.destination,
        model=made.model,
        dimensions=made.dimensions,
        remarks=list(defined.remarks),
    )


def _refuse(context: Context, wanted: NewVectorizer) -> None:
    """Raises ``Problem`` for what nobody may ask for here."""
    if wanted.model not in context.limits.models:
        raise Problem(
            422,
            f"this gateway does not serve {wanted.model!r}; it serves: {', '.join(context.limits.models) or 'none'}",
        )
    for table in (wanted.source, wanted.into):
        schema = (table or "").strip().partition(".")[0].strip().strip('"').lower()
        if schema in _SYSTEM:
            raise Problem(422, f"tables of {schema} are not for vectorizers")
    if wanted.no_chunking and (wanted.chunk_size is not None or wanted.chunk_overlap is not None):
        raise Problem(422, "no_chunking and chunk_size or chunk_overlap exclude each other")
    if wanted.too_long is not None and not wanted.no_chunking:
        raise Problem(422, "too_long is about documents that stay whole; add no_chunking")


def _problem(error: PgvecError | OSError) -> Problem:
    """What kept a vectorizer from being made, as an answer."""
    if isinstance(error, DefinitionDiffersError):
        return Problem(409, one_line(error))
    if isinstance(error, EmbedderError):
        if error.kind is Kind.PASSING:
            return Problem(503, one_line(error), {"Retry-After": "30"})
        return Problem(422, one_line(error))
    if isinstance(error, DatabaseError | OSError):
        return Problem(503, "the database cannot be reached, or has no schema of this version")
    return Problem(422, one_line(error))
