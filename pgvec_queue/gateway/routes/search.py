"""``POST /api/v1/search``: a question in, the texts nearest to it out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pgvec_queue import search, search_targets
from pgvec_queue.errors import DefinitionError
from pgvec_queue.gateway.auth import requires
from pgvec_queue.gateway.context import Context, context_of
from pgvec_queue.gateway.problems import Problem
from pgvec_queue.vectorizer import Vectorizer

MAX_QUERY = 8_192
"""Characters."""
MAX_HITS = 1_000

router = APIRouter(tags=["search"])
In = Annotated[Context, Depends(context_of)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class SearchRequest(BaseModel):
    """What to look for, and where."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"query": "artificial intelligence", "limit": 10, "threshold": 0.7},
                {
                    "query": "broken lamp",
                    "collection": "notes",
                    "hybrid": True,
                    "filter": {"lang": "en"},
                    "neighbours": 1,
                },
            ]
        },
    )

    query: Annotated[str, Field(min_length=1, max_length=MAX_QUERY, description="The question, in words.")]
    limit: Annotated[int, Field(ge=1, le=MAX_HITS, strict=True, description="Most hits.")] = 10
    offset: Annotated[int, Field(ge=0, le=search.MAX_SKIP, strict=True, description="Leave out the first so many.")] = 0
    threshold: Annotated[
        float | None, Field(ge=-1, le=1, allow_inf_nan=False, description="Least cosine similarity.")
    ] = None
    collection: Annotated[Name | None, Field(description="Search this collection.")] = None
    vectorizer: Annotated[
        Name | None,
        Field(description="Search this vectorizer. Without either: `default`, or the only one there is."),
    ] = None
    filter: Annotated[
        dict[str, Any] | None, Field(description="What a text's metadata has to contain (jsonb containment).")
    ] = None
    hybrid: Annotated[bool, Field(strict=True, description="Look for the words as well, and fuse both rankings.")] = (
        False
    )
    exact: Annotated[bool, Field(strict=True, description="Compare with every vector, not through an index.")] = False
    all_chunks: Annotated[bool, Field(strict=True, description="Each chunk is a hit; else the best of each text.")] = (
        False
    )
    neighbours: Annotated[
        int,
        Field(
            ge=0, le=search.MAX_NEIGHBOURS, strict=True, description="Chunks before and after a hit that come along."
        ),
    ] = 0
    language: Annotated[
        str,
        Field(min_length=1, max_length=200, description="Of the words: a text search configuration of PostgreSQL's."),
    ] = "english"

    @field_validator("query", "collection", "vectorizer", "language")
    @classmethod
    def _is_text(cls, value: str | None) -> str | None:
        if value is not None and ("\0" in value or not value.strip()):
            raise ValueError("it is blank, or holds a NUL character")
        return value

    @field_validator("filter")
    @classmethod
    def _is_jsonb(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        _check_json(value, depth=0)
        return value


class SearchHit(BaseModel):
    """One chunk, or where nothing is chunked, one text."""

    text: Annotated[str | None, Field(description="The chunk.")]
    score: Annotated[float, Field(description="Cosine similarity to the query, -1 to 1.")]
    key: Annotated[list[str], Field(description="The key of its row, as text; for a collection, the id.")]
    chunk_index: Annotated[int | None, Field(description="Which chunk of its text, from 0.")]
    metadata: Annotated[Any, Field(description="What the text was stored with.")] = None
    fused: Annotated[float | None, Field(description="With `hybrid`, what the hits are sorted by.")] = None
    context_before: Annotated[str | None, Field(description="The chunks before it.")] = None
    context_after: Annotated[str | None, Field(description="The chunks after it.")] = None


class SearchAnswer(BaseModel):
    """The hits, best first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "hits": [
                        {
                            "text": "Machine learning is awesome",
                            "score": 0.83,
                            "key": ["2"],
                            "chunk_index": 0,
                            "metadata": {"lang": "en"},
                            "fused": None,
                            "context_before": None,
                            "context_after": None,
                        }
                    ],
                    "best_score": None,
                    "vectorizer": "default",
                }
            ]
        }
    )

    hits: list[SearchHit]
    best_score: Annotated[
        float | None,
        Field(description="Where there is no hit: the best score there is, or null where there is no vector."),
    ] = None
    vectorizer: Annotated[str, Field(description="What was searched.")]


@router.post(
    "/search",
    dependencies=[Depends(requires("read"))],
    responses={
        404: {"description": "Nothing has that name."},
        409: {"description": "The vectors are gone, or are not what they were."},
    },
)
async def find(request: SearchRequest, context: In) -> SearchAnswer:
    """Finds the texts nearest to the query, by cosine similarity of their vectors.

    Where nothing reaches the threshold, the answer says the best score that there was.
    """
    with _problems():
        found, answer = await search.by_name_async(
            lambda: _resolve(context, request), lambda found: _ask(context, request, found)
        )
    return SearchAnswer(
        hits=[_hit(hit) for hit in answer.hits],
        best_score=None if answer.hits else answer.best_score,
        vectorizer=found.name,
    )


async def _resolve(context: Context, request: SearchRequest) -> Vectorizer:
    async with context.connection() as connection:
        return await search_targets.find(connection, vectorizer=request.vectorizer, collection=request.collection)


async def _ask(context: Context, request: SearchRequest, found: Vectorizer) -> search.Answer:
    # No connection is held while the model works.
    vector = await context.queries.embed(found.spec, request.query)
    async with context.connection() as connection:
        return await search.nearest_async(
            connection, found, _search(request), vector, statement_timeout=context.limits.request_seconds
        )


def _search(request: SearchRequest) -> search.Search:
    return search.Search(
        request.query,
        limit=request.limit,
        offset=request.offset,
        threshold=request.threshold,
        filter=request.filter,
        mode="hybrid" if request.hybrid else "vector",
        exact=request.exact,
        all_chunks=request.all_chunks,
        neighbours=request.neighbours,
        language=request.language,
    )


def _hit(hit: search.Hit) -> SearchHit:
    assert hit.score is not None
    return SearchHit(
        text=hit.chunk,
        score=hit.score,
        key=hit.key,
        chunk_index=hit.chunk_index,
        metadata=hit.metadata,
        fused=hit.fused,
        context_before=hit.context_before,
        context_after=hit.context_after,
    )


def _check_json(value: Any, *, depth: int) -> None:
    """Raises ``ValueError`` for what PostgreSQL's jsonb does not take."""
    if depth > 50:
        raise ValueError("it is nested more than 50 deep")
    if isinstance(value, dict):
        for name, one in value.items():
            _check_json(name, depth=depth + 1)
            _check_json(one, depth=depth + 1)
    elif isinstance(value, list):
        for one in value:
            _check_json(one, depth=depth + 1)
    elif isinstance(value, str) and ("\0" in value or _has_surrogate(value)):
        raise ValueError("it holds a character that no text of PostgreSQL's can")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it holds a number that JSON has not")


def _has_surrogate(value: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in value)


@contextmanager
def _problems() -> Iterator[None]:
    """Says what errors of the search mean to a client."""
    try:
        yield
    except DefinitionError as error:
        raise Problem(404, str(error)) from error
    except (search.SearchError, search_targets.UnclearError) as error:
        raise Problem(422, str(error)) from error
    except search.DestinationError as error:
        raise Problem(409, str(error)) from error
