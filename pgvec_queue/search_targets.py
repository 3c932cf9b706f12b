"""Which vectorizer a search means: by its name, by that of its collection, or the one that goes without saying."""

from __future__ import annotations

from psycopg.rows import dict_row

from pgvec_queue.async_database import AsyncConnection
from pgvec_queue.database import statement
from pgvec_queue.errors import DefinitionError, PgvecError
from pgvec_queue.vectorizer import COLUMNS, Vectorizer, from_row

_LISTED = 10


class UnclearError(PgvecError):
    """A search names neither vectorizer nor collection, and there is not just one that it can mean."""


async def find(connection: AsyncConnection, *, vectorizer: str | None, collection: str | None) -> Vectorizer:
    """Returns the vectorizer of that name or collection; without either ``default``, else the only one there is.

    Raises ``DefinitionError`` where there is none of that name, ``UnclearError`` where it is unclear which is meant.
    """
    if vectorizer is not None and collection is not None:
        raise UnclearError("both a vectorizer and a collection are named; name one of them")
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            statement("search", "targets").format(columns=COLUMNS), {"vectorizer": vectorizer, "collection": collection}
        )
        found = [from_row(row) for row in await cursor.fetchall()]
    if len(found) == 1:
        return found[0]
    if vectorizer is not None:
        raise DefinitionError(f"no vectorizer is called {vectorizer!r}")
    if collection is not None:
        also = "; but a vectorizer is: give it as vectorizer" if await _is_vectorizer(connection, collection) else ""
        raise DefinitionError(f"no collection is called {collection!r}{also}")
    if not found:
        raise UnclearError("there is no vectorizer yet, so there is nothing to search")
    names = ", ".join(one.name for one in found[:_LISTED]) + (", ..." if len(found) > _LISTED else "")
    raise UnclearError(f"it is unclear what to search; name a vectorizer or a collection (vectorizers: {names})")


async def _is_vectorizer(connection: AsyncConnection, name: str) -> bool:
    async with connection.cursor() as cursor:
        await cursor.execute(statement("search", "is_vectorizer"), {"name": name})
        row = await cursor.fetchone()
    return bool(row and row[0])
