"""Search: what is asked, what is answered, and the call of ``pgvec.search`` between, which does the work.

Scores are cosine similarities in [-1, 1]. The same for a plain connection and for one of an event loop: ``_asked`` says
which statements to run and makes an answer of their rows, whoever runs them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from pgvec_queue import vectorizer as vectorizers
from pgvec_queue.async_database import AsyncConnection, async_transaction
from pgvec_queue.database import Connection, one_line, statement, transaction
from pgvec_queue.embedders import Embedder, Vectors
from pgvec_queue.errors import DefinitionError, PgvecError, SchemaOutdatedError
from pgvec_queue.vectorizer import Vectorizer

MODES = ("vector", "text", "hybrid")
MAX_HITS = 10_000
MAX_SKIP = 100_000
MAX_NEIGHBOURS = 100
_MOVES = 5
"""How often a name may come to mean another vectorizer while one search goes on."""


class SearchError(PgvecError):
    """A search cannot be done as asked: a blank query, a filter where there is no metadata, no such language."""


class DestinationError(PgvecError):
    """The destination, or the source that has its text, is not what it was when the vectorizer was made."""


@dataclass(frozen=True, slots=True)
class Search:
    """One request."""

    text: str
    limit: int = 10
    offset: int = 0
    threshold: float | None = None
    """Least cosine similarity."""
    filter: Mapping[str, Any] | None = None
    """What the source's column ``metadata`` has to contain."""
    mode: str = "vector"
    """One of ``MODES``; ``text`` needs no vector of the query."""
    exact: bool = False
    """Looks at every vector, not through an index."""
    ef_search: int | None = None
    """How far an HNSW index is looked through, 1 to 1,000; None: what the server says, at least 100."""
    all_chunks: bool = False
    """Each chunk is a hit; else the best of each document."""
    neighbours: int = 0
    """How many chunks before and after a hit come along."""
    language: str = "english"
    """PostgreSQL's text search configuration."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One chunk, its cosine similarity to the query, and its score in a fused ranking where there is one."""

    key: list[str]
    chunk_index: int | None
    chunk: str | None
    score: float | None
    """None where only words were looked for, without a vector."""
    fused: float | None = None
    context_before: str | None = None
    context_after: str | None = None
    metadata: Any = None

    def as_json(self) -> dict[str, Any]:
        """Returns what there is to tell; what was not asked for is left out."""
        shown: dict[str, Any] = {
            "key": self.key,
            "chunk_index": self.chunk_index,
            "score": None if self.score is None else round(self.score, 6),
            "chunk": self.chunk,
            "fused": None if self.fused is None else round(self.fused, 6),
            "context_before": self.context_before,
            "context_after": self.context_after,
            "metadata": self.metadata,
        }
        always = ("key", "chunk_index", "score", "chunk")
        return {name: value for name, value in shown.items() if name in always or value is not None}


@dataclass(frozen=True, slots=True)
class Answer:
    """The hits above the threshold, best first, and the best score of all (None where nothing is embedded yet)."""

    hits: list[Hit]
    best_score: float | None


def search(connection: Connection, vectorizer: Vectorizer, embedder: Embedder | None, request: Search) -> Answer:
    """Embeds the query with the vectorizer's model, where one is given, and returns what ``nearest`` does."""
    check(request)
    return nearest(
        connection, vectorizer, request, None if embedder is None else embedder.embed_queries([request.text])[0]
    )


def nearest(connection: Connection, vectorizer: Vectorizer, request: Search, vector: Vectors | None) -> Answer:
    """Returns the answer to a query embedded as ``vector`` ``(dimensions,) float32``; None for words alone.

    Raises ``SearchError`` for a request that cannot be answered, ``DefinitionError`` when the vectorizer has been
    dropped, and ``DestinationError`` when its destination is gone.
    """
    with _told(vectorizer), transaction(connection, read_only=True):
        asked = _asked(vectorizer, request, vector)
        parameters = next(asked)
        while True:
            rows = connection.execute(statement("search", "search"), parameters).fetchall()
            try:
                parameters = asked.send(rows)
            except StopIteration as ended:
                answer: Answer = ended.value
                return answer


async def nearest_async(
    connection: AsyncConnection,
    vectorizer: Vectorizer,
    request: Search,
    vector: Vectors | None,
    *,
    statement_timeout: float = 15.0,
) -> Answer:
    """As ``nearest``, in an event loop; ``statement_timeout`` is in seconds."""
    with _told(vectorizer):
        async with async_transaction(connection, read_only=True, statement_timeout=statement_timeout):
            asked = _asked(vectorizer, request, vector)
            parameters = next(asked)
            while True:
                cursor = await connection.execute(statement("search", "search"), parameters)
                try:
                    parameters = asked.send(await cursor.fetchall())
                except StopIteration as ended:
                    answer: Answer = ended.value
                    return answer


def by_name(
    connection: Connection, name: str, request: Search, embed: Callable[[Vectorizer], Vectors | None]
) -> tuple[Vectorizer, Answer]:
    """Resolves the name, embeds the query with that vectorizer's model, and asks its vectors.

    Where the vectorizer is dropped in the middle, since its name means another one by now, all of it is done again:
    ``embed`` is called with each vectorizer that is asked, unless there is nothing to find. Raises as ``nearest`` and
    ``embed`` do.
    """
    check(request)
    found = vectorizers.get(connection, name)
    for left in reversed(range(_MOVES)):
        try:
            if _is_empty(connection, found, request):
                return found, Answer([], None)
            return found, nearest(connection, found, request, embed(found))
        except (PgvecError, psycopg.Error):
            now = vectorizers.find(connection, name) if left else None
            if now is None or now.id == found.id:
                raise
            found = now
    raise AssertionError("the last try raises")


def _is_empty(connection: Connection, vectorizer: Vectorizer, request: Search) -> bool:
    """Whether nothing can be found, which is told before a model is loaded.

    A filter may be one that cannot be, words lie in the source as well, and a column may hold its only vector at the
    end of a large table: those are for the search itself.
    """
    if request.mode != "vector" or request.filter is not None or vectorizer.into_column:
        return False
    destination = sql.Identifier(vectorizer.destination_schema, vectorizer.destination_table)
    with _told(vectorizer), transaction(connection, read_only=True):
        row = connection.execute(statement("search", "has_rows").format(destination=destination)).fetchone()
    return row is not None and not row[0]


async def by_name_async(
    resolve: Callable[[], Awaitable[Vectorizer]], ask: Callable[[Vectorizer], Awaitable[Answer]]
) -> tuple[Vectorizer, Answer]:
    """The same in an event loop: ``ask`` embeds and searches, with connections of its own."""
    found = await resolve()
    for left in reversed(range(_MOVES)):
        try:
            return found, await ask(found)
        except (PgvecError, psycopg.Error):
            if not left:
                raise
            try:
                now = await resolve()
            except PgvecError:
                now = found
            if now.id == found.id:
                raise
            found = now
    raise AssertionError("the last try raises")


def check(request: Search) -> None:
    """Raises ``SearchError`` for what can be told before anything is embedded."""
    if not request.text.strip():
        raise SearchError("the query is blank; give some text to look for")
    if "\0" in request.text:
        raise SearchError("the query holds a NUL character, which no text of PostgreSQL's can")


def _asked(
    vectorizer: Vectorizer, request: Search, vector: Vectors | None
) -> Generator[dict[str, Any], list[tuple[Any, ...]], Answer]:
    """Yields the parameters of each statement, is sent its rows, and returns the answer."""
    check(request)
    hits = [Hit(*row) for row in (yield _parameters(vectorizer, request, vector))]
    if hits or vector is None:
        return Answer(hits, max((hit.score for hit in hits if hit.score is not None), default=None))
    # All below the threshold, or before this page.
    first = replace(request, mode="vector", limit=1, offset=0, threshold=None, neighbours=0, all_chunks=True)
    best = [Hit(*row) for row in (yield _parameters(vectorizer, first, vector))]
    return Answer(hits, best[0].score if best else None)


def _parameters(vectorizer: Vectorizer, request: Search, vector: Vectors | None) -> dict[str, Any]:
    return {
        "vectorizer": vectorizer.id,
        "query": None if vector is None else vector.tolist(),
        "query_text": request.text,
        "max_hits": request.limit,
        "skip": request.offset,
        "threshold": request.threshold,
        "filter": None if request.filter is None else Jsonb(request.filter),
        "mode": request.mode,
        "exact": request.exact,
        "ef_search": request.ef_search,
        "all_chunks": request.all_chunks,
        "neighbours": request.neighbours,
        "language": request.language,
    }


@contextmanager
def _told(vectorizer: Vectorizer) -> Iterator[None]:
    """Says what PostgreSQL's errors mean here."""
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
        raise DestinationError(
            f"{vectorizer.destination} is not what it was: {one_line(error)}; put it back, or "
            f"`pgvec drop {vectorizer.name}` and enqueue again"
        ) from error
    except psycopg.errors.NoDataFound as error:
        raise DefinitionError(f"no vectorizer is called {vectorizer.name!r} any more") from error
    except psycopg.errors.UndefinedFunction as error:
        raise SchemaOutdatedError(
            f"the pgvec schema cannot be searched ({one_line(error)}); run: pgvec init"
        ) from error
    except (psycopg.errors.DataError, psycopg.errors.UndefinedObject, psycopg.errors.InvalidName) as error:
        raise SearchError(one_line(error)) from error
